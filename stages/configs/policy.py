"""`sepo train-policy`."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from stages.configs import limits, shared
from stages.configs.option import METHOD, OUTPUT, Option, required
from stages.configs.training import OptimizerConfig
from stages.registry import OBJECTIVES, RULES, measuring, unknown


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(OptimizerConfig):
    """What is trained on which scores by which loss, and the options of the losses."""

    scores: shared.Scores = required()
    output_dir: shared.OutputDir = required()
    objective: Annotated[str, Option(METHOD, "|".join(OBJECTIVES))] = "sepo"
    """The loss. On selected tokens: sepo (Eq. 11), sepo-hinge (the ranking variant in the authors' code). On all tokens
    unless --select says otherwise: simpo and the others, each by its paper's name."""
    select: Annotated[str | None, Option(METHOD, "|".join(RULES))] = None
    """Which tokens count. oracle: by their score; random: as many by chance, the control that an oracle has to beat;
    the docs have the others. Default: oracle for sepo and sepo-hinge, else all."""
    gamma: Annotated[float | None, Option(METHOD, limit=limits.positive)] = None
    """Scale of a response's reward (Eq. 11; SimPO's beta). Paper: 2.1."""
    margin: Annotated[float | None, Option(METHOD, limit=limits.not_negative)] = None
    """Lambda, by which the chosen reward has to lead (Eq. 11; SimPO's gamma; SLiC's delta). Paper: 0.5 for
    TinyLlama-1.1B, 0.9 for LLaMA2-7B, 1.3 for LLaMA2-13B."""
    beta: Annotated[float | None, Option(METHOD, limit=limits.positive)] = None
    """How dearly leaving the reference is paid for; IPO's tau, ORPO's lambda."""
    alpha: Annotated[float | None, Option(METHOD, limit=limits.not_negative)] = None
    """TDPO2's weight of the sequential KL; R-DPO's weight of the difference in length."""
    scale: Annotated[float | None, Option(METHOD, limit=limits.positive)] = None
    """Times a token's score, the log-ratio to the reference that the policy is to reach there."""
    sft_weight: Annotated[float | None, Option(METHOD, limit=limits.not_negative)] = None
    """Weight of an SFT term on the chosen response's selected tokens beside the loss."""
    kl_weight: Annotated[float | None, Option(METHOD, limit=limits.not_negative)] = None
    """Weight of KL(policy || reference) over the whole vocabulary, a mean over all response tokens, beside a loss that
    has no reference."""
    kl_selected: Annotated[float, Option(METHOD, limit=limits.not_negative)] = 0.0
    """Weight of half the squared log-ratio to the reference, an estimate of KL that needs no second model, summed over
    the selected tokens of both responses, beside the loss."""
    kl_unselected: Annotated[float, Option(METHOD, limit=limits.not_negative)] = 0.0
    """The same of the tokens that are not selected: the policy stays there where the reference is."""
    anchor_margin: Annotated[bool, Option(METHOD)] = False
    """Count the log-probs of selected tokens from the reference's."""
    reference_model: Annotated[str | None, Option(METHOD, "FOLDER|NAME", content=False)] = None
    """Model that objectives with a reference (such as dpo), --anchor-margin and the --kl options measure from; without
    it, the one the policy starts from."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(shared.RuleOptions, ObjectiveOptions):
    """Train a policy on the tokens that matter (arXiv 2408.13518 Eq. 11); by default without a reference model.

    An option that is None (or off) has the default of the objective or of the rule that uses it; see `resolved`.
    """

    snapshot_steps: Annotated[int, Option(OUTPUT, limit=limits.not_negative)] = 0
    """Steps between models that are kept as ordinary folders, snapshots/step-00000032; 0 = only the last one."""

    @property
    def rule(self) -> str:
        """The selection rule: the one asked for, or the objective's own."""
        return self.select or OBJECTIVES[self.objective].select

    @property
    def needs(self) -> frozenset[str]:
        """What has to be there beside the policy: reference (log-probs), per_token, kl, start_logps, weights."""
        needs = {*OBJECTIVES[self.objective].needs, *RULES[self.rule].needs}
        needs |= {"reference"} if self.anchor_margin else set()
        needs |= {"kl"} if self.kl_weight else set()
        return frozenset(needs | ({"reference", "per_token"} if self.is_held else set()))

    @property
    def is_held(self) -> bool:
        """Whether single tokens are held at the reference."""
        return bool(self.kl_selected or self.kl_unselected)

    @property
    def objective_options(self) -> dict[str, Any]:
        """The objective's options, by name."""
        return self._options(OBJECTIVES[self.objective].options)

    @property
    def rule_options(self) -> dict[str, Any]:
        """The selection rule's options, by name."""
        return self._options(RULES[self.rule].options)

    def resolved(self) -> "PolicyConfig":
        """The same with the defaults of this objective and this rule filled in; what they do not use stays None."""
        used = {name: value for name, value in self.rule_options.items() if name not in OBJECTIVES[self.objective].void}
        return replace(self, select=self.rule, **self.objective_options, **used)

    def _faults(self) -> list[str]:
        wrong = [] if self.objective in OBJECTIVES else [unknown("objective", self.objective, OBJECTIVES)]
        if self.select not in (None, *RULES):
            wrong.append(unknown("select", str(self.select), RULES))
        return super()._faults() + (wrong or self._useless())

    def _useless(self) -> list[str]:
        """One sentence for each option that was given and changes nothing."""
        faults = self._unused(f"objective {self.objective}", OBJECTIVES[self.objective].options, OBJECTIVES)
        faults += self._rule_faults(self.rule)
        void = [name for name in OBJECTIVES[self.objective].void if self._given(name) and name in self.rule_options]
        faults += [f"{name} changes nothing of objective {self.objective}" for name in void]
        if self.is_held and OBJECTIVES[self.objective].chosen_only:
            faults.append(f"kl_selected and kl_unselected are for pairwise objectives, not {self.objective}")
        if self.kl_unselected and RULES[self.rule].every_token:
            faults.append(
                f"kl_unselected changes nothing: select {self.rule} takes every token; kl_selected holds them"
            )
        if self.reference_model and not self.needs & {"reference", "kl"}:
            faults.append(
                f"reference_model is not used by objective {self.objective} as it is set;"
                f" {shared.have(measuring())} one, and so have anchor_margin, kl_weight, kl_selected and kl_unselected"
            )
        return faults
