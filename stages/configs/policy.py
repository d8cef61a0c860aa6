"""`sepo train-policy`."""

from dataclasses import dataclass, replace
from typing import Any

from stages.catalogue import measuring, objectives, rules, unknown, users
from stages.configs import limits
from stages.configs.fields import outside
from stages.configs.training import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(OptimizerConfig):
    """`sepo train-policy`: an objective on weighted tokens (arXiv 2408.13518 Eq. 11).

    An option that is None (or off) has the default of the objective or of the rule that uses it; see `resolved`.
    """

    model: str = outside()
    scores: str = outside()
    output_dir: str = outside()
    objective: str = "sepo"
    select: str | None = None
    reference_model: str | None = outside(None)
    snapshot_steps: int = 0
    # Options of objectives.
    gamma: float | None = None
    margin: float | None = None
    beta: float | None = None
    alpha: float | None = None
    sft_weight: float | None = None
    kl_weight: float | None = None
    anchor_margin: bool = False
    # Options of selection rules.
    chosen_ratio: float | None = None
    rejected_ratio: float | None = None
    authors_rule: bool = False
    threshold: float | None = None
    soft_k: float | None = None
    soft_mu: float | None = None
    soft_low: float | None = None
    soft_high: float | None = None
    auto_share: float | None = None

    @property
    def rule(self) -> str:
        """The selection rule: the one asked for, or the objective's own."""
        return self.select or str(objectives()[self.objective].constants.get("SELECT", "all"))

    @property
    def needs(self) -> frozenset[str]:
        """What has to be there beside the policy: reference (log-probs), kl, start_logps, weights."""
        needs = {*objectives()[self.objective].needs, *rules()[self.rule].needs}
        return frozenset(
            needs | ({"reference"} if self.anchor_margin else set()) | ({"kl"} if self.kl_weight else set())
        )

    @property
    def objective_options(self) -> dict[str, Any]:
        """The objective's options, by name."""
        return self._options(objectives()[self.objective].options)

    @property
    def rule_options(self) -> dict[str, Any]:
        """The selection rule's options, by name."""
        return self._options(rules()[self.rule].options)

    def resolved(self) -> "PolicyConfig":
        """The same with the defaults of this objective and this rule filled in; what they do not use stays None."""
        used = {name: value for name, value in self.rule_options.items() if name not in self._voids}
        return replace(self, select=self.rule, **self.objective_options, **used)

    @property
    def _voids(self) -> tuple[str, ...]:
        """The selection rules' options that change nothing of the objective."""
        return tuple(objectives()[self.objective].constants.get("VOIDS", ()))

    def _options(self, defaults: dict[str, Any]) -> dict[str, Any]:
        return {name: getattr(self, name) if self._given(name) else default for name, default in defaults.items()}

    def _given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False

    def _faults(self) -> list[str]:
        faults = super()._faults() + limits.check(
            self,
            output_dir=limits.local,
            snapshot_steps=limits.not_negative,
            gamma=limits.unless_none(limits.positive),
            margin=limits.unless_none(limits.not_negative),
            beta=limits.unless_none(limits.positive),
            alpha=limits.unless_none(limits.not_negative),
            sft_weight=limits.unless_none(limits.not_negative),
            kl_weight=limits.unless_none(limits.not_negative),
            chosen_ratio=limits.unless_none(limits.share),
            rejected_ratio=limits.unless_none(limits.share),
            threshold=limits.unless_none(limits.finite),
            soft_k=limits.unless_none(limits.positive),
            soft_mu=limits.unless_none(limits.not_negative),
            soft_low=limits.unless_none(limits.finite),
            soft_high=limits.unless_none(limits.finite),
            auto_share=limits.unless_none(limits.share),
        )
        named = [("objective", self.objective, objectives()), ("select", self.select or "all", rules())]
        wrong = [unknown(kind, name, entries) for kind, name, entries in named if name not in entries]
        return faults + (wrong or self._useless())

    def _useless(self) -> list[str]:
        """One sentence for each option that was given and changes nothing."""
        faults = []
        for kind, used, entries in (
            (f"objective {self.objective}", self.objective_options, objectives()),
            (f"select {self.rule}", self.rule_options, rules()),
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
