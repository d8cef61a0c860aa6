"""`sepo train-policy`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from stages.configs import limits
from stages.configs.option import METHOD, OUTPUT, Option, required
from stages.configs.shared import Model, OutputDir, Scores
from stages.configs.training import OptimizerConfig
from stages.registry import OBJECTIVES, RULES, defaults_in_words, measuring, unknown, users


def _own(name: str, text: str, limit: limits.Rule) -> Option:
    """An option of some objectives or rules, each with a default of its own."""
    return Option(f"{text} Default: {defaults_in_words(name)}.", METHOD, limit=limit)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(OptimizerConfig):
    """Train a policy on the tokens that matter (arXiv 2408.13518 Eq. 11); by default without a reference model.

    An option that is None (or off) has the default of the objective or of the rule that uses it; see `resolved`.
    """

    model: Model = required()
    scores: Scores = required()
    output_dir: OutputDir = required()
    objective: Annotated[
        str,
        Option(
            "The loss. On selected tokens: sepo (Eq. 11), sepo-hinge (the ranking variant in the authors' code). On all"
            " tokens unless --select says otherwise: simpo and the others, each by its paper's name.",
            METHOD,
            "|".join(OBJECTIVES),
        ),
    ] = "sepo"
    select: Annotated[
        str | None,
        Option(
            "Which tokens count. oracle: by their score; random: as many by chance, the control that an oracle has to"
            " beat; the docs have the others. Default: oracle for sepo and sepo-hinge, else all.",
            METHOD,
            "|".join(RULES),
        ),
    ] = None
    # Options of objectives.
    gamma: Annotated[
        float | None,
        _own("gamma", "Scale of a response's reward (Eq. 11; SimPO's beta). Paper: 2.1.", limits.positive),
    ] = None
    margin: Annotated[
        float | None,
        _own(
            "margin",
            "Lambda, by which the chosen reward has to lead (Eq. 11; SimPO's gamma; SLiC's delta)."
            " Paper: 0.5 for TinyLlama-1.1B, 0.9 for LLaMA2-7B, 1.3 for LLaMA2-13B.",
            limits.not_negative,
        ),
    ] = None
    beta: Annotated[
        float | None,
        _own("beta", "How dearly leaving the reference is paid for; IPO's tau, ORPO's lambda.", limits.positive),
    ] = None
    alpha: Annotated[
        float | None,
        _own(
            "alpha",
            "TDPO2's weight of the sequential KL; R-DPO's weight of the difference in length.",
            limits.not_negative,
        ),
    ] = None
    sft_weight: Annotated[
        float | None,
        _own(
            "sft_weight",
            "Weight of an SFT term on the chosen response's selected tokens beside the loss.",
            limits.not_negative,
        ),
    ] = None
    kl_weight: Annotated[
        float | None,
        _own(
            "kl_weight",
            "Weight of KL(policy || reference) over the whole vocabulary, a mean over all response tokens, beside a"
            " loss that has no reference.",
            limits.not_negative,
        ),
    ] = None
    anchor_margin: Annotated[
        bool,
        Option(
            f"Count the log-probs of selected tokens from the reference's ({', '.join(users('anchor_margin'))}).",
            METHOD,
        ),
    ] = False
    reference_model: Annotated[
        str | None,
        Option(
            f"Model that {', '.join(measuring())}, --anchor-margin and --kl-weight measure from; without it, the one"
            " the policy starts from.",
            METHOD,
            "FOLDER|NAME",
            content=False,
        ),
    ] = None
    # Options of selection rules.
    chosen_ratio: Annotated[
        float | None,
        _own(
            "chosen_ratio",
            "Share k of a chosen response's tokens to train on. Paper: 0.3, the highest scores.",
            limits.share,
        ),
    ] = None
    rejected_ratio: Annotated[
        float | None,
        _own(
            "rejected_ratio",
            "Share k of a rejected response's tokens to train on. Paper: 0.3, the lowest scores.",
            limits.share,
        ),
    ] = None
    authors_rule: Annotated[
        bool,
        Option(
            "Select as the authors' code does: never the first token of a response, and floor(k (n - 1)) of the others"
            f" ({', '.join(users('authors_rule'))}).",
            METHOD,
        ),
    ] = False
    threshold: Annotated[
        float | None,
        _own(
            "threshold",
            "Least score of a chosen token, and its negative the most of a rejected one, nats.",
            limits.finite,
        ),
    ] = None
    soft_k: Annotated[
        float | None, _own("soft_k", "k of the weights k exp(mu clamp(score, low, high)).", limits.positive)
    ] = None
    soft_mu: Annotated[
        float | None,
        _own("soft_mu", "mu of these weights; its sign is turned in rejected responses.", limits.not_negative),
    ] = None
    soft_low: Annotated[
        float | None, _own("soft_low", "Scores below it count as it in these weights, nats.", limits.finite)
    ] = None
    soft_high: Annotated[
        float | None, _own("soft_high", "Scores above it count as it in these weights, nats.", limits.finite)
    ] = None
    auto_share: Annotated[
        float | None,
        _own(
            "auto_share",
            "Share of a response's reward beyond the scorer's noise that the selected tokens have to hold.",
            limits.share,
        ),
    ] = None
    snapshot_steps: Annotated[
        int,
        Option(
            "Steps between models that are kept as ordinary folders, snapshots/step-00000032; 0 = only the last one.",
            OUTPUT,
            limit=limits.not_negative,
        ),
    ] = 0

    @property
    def rule(self) -> str:
        """The selection rule: the one asked for, or the objective's own."""
        return self.select or OBJECTIVES[self.objective].select

    @property
    def needs(self) -> frozenset[str]:
        """What has to be there beside the policy: reference (log-probs), kl, start_logps, weights."""
        needs = {*OBJECTIVES[self.objective].needs, *RULES[self.rule].needs}
        return frozenset(
            needs | ({"reference"} if self.anchor_margin else set()) | ({"kl"} if self.kl_weight else set())
        )

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
        used = {name: value for name, value in self.rule_options.items() if name not in self._voids}
        return replace(self, select=self.rule, **self.objective_options, **used)

    @property
    def _voids(self) -> tuple[str, ...]:
        """The selection rules' options that change nothing of the objective."""
        return OBJECTIVES[self.objective].void

    def _options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        return {name: getattr(self, name) if self._given(name) else default for name, default in defaults.items()}

    def _given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False

    def _faults(self) -> list[str]:
        named: list[tuple[str, str, Mapping[str, Any]]] = [
            ("objective", self.objective, OBJECTIVES),
            ("select", self.select or "all", RULES),
        ]
        wrong = [unknown(kind, name, entries) for kind, name, entries in named if name not in entries]
        return super()._faults() + (wrong or self._useless())

    def _useless(self) -> list[str]:
        """One sentence for each option that was given and changes nothing."""
        faults = []
        for kind, used, entries in (
            (f"objective {self.objective}", self.objective_options, OBJECTIVES),
            (f"select {self.rule}", self.rule_options, RULES),
        ):
            for name in dict.fromkeys(option for entry in entries.values() for option in entry.options):
                if self._given(name) and name not in used:
                    faults.append(f"{name} is no option of {kind}; {_have(users(name))} it")
        void = [name for name in self._voids if self._given(name) and name in self.rule_options]
        faults += [f"{name} changes nothing of objective {self.objective}" for name in void]
        if self.reference_model and not self.needs & {"reference", "kl"}:
            faults.append(
                f"reference_model is not used by objective {self.objective} as it is set;"
                f" {_have(measuring())} one, and so have anchor_margin and kl_weight"
            )
        low, high = (self.rule_options.get(name, 0.0) for name in ("soft_low", "soft_high"))
        if low > high:
            faults.append(f"soft_low must be at most soft_high, got {low} and {high}")
        return faults


def _have(names: list[str]) -> str:
    """``dpo, ipo have`` or ``threshold has``."""
    return f"{', '.join(names)} {'have' if len(names) > 1 else 'has'}"
