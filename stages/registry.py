"""Which objectives and selection rules there are, their options and what they need. Nothing heavy loads.

An objective is a function in `stages.method.objectives` and a line of `OBJECTIVES`, a rule one in `stages.method.rules`
and a line of `RULES`. The function has the name, with underscores for dashes, and takes the options as keywords.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple


class Objective(NamedTuple):
    """A loss on the tokens that a rule selects."""

    name: str
    options: Mapping[str, Any]
    """option -> its default"""
    needs: tuple[str, ...] = ()
    """of "reference" (its log-probs), "per_token" (these of every token, and its score), "kl" """
    select: str = "all"
    """the rule where none was asked for"""
    divergence: Literal["policy||reference", "reference||policy"] = "policy||reference"
    chosen_only: bool = False
    """the rejected responses are left out"""
    void: tuple[str, ...] = ()
    """options of rules that change nothing of it"""

    def load(self) -> Callable[..., Any]:
        """The function, with its options at their defaults."""
        return _load("objectives", self)


class Rule(NamedTuple):
    """A way to choose the tokens that count, and their weights."""

    name: str
    options: Mapping[str, Any]
    """option -> its default"""
    needs: tuple[str, ...] = ()
    """of "start_logps", "weights" """
    every_token: bool = False
    """whether every token has a weight"""
    whole_data: bool = False
    """whether what it takes of a pair depends on the other pairs"""

    def load(self) -> Callable[..., Any]:
        """The function, with its options at their defaults."""
        return _load("rules", self)


_ANCHORS: Final = {"sft_weight": 0.0, "kl_weight": 0.0, "anchor_margin": False}
_RATIOS: Final = {"chosen_ratio": 0.3, "rejected_ratio": 0.3}
_REFERENCE_KL: Final = ("reference", "kl")

OBJECTIVES: Final = {
    entry.name: entry
    for entry in (
        Objective("sepo", {"gamma": 2.1, "margin": 0.5} | _ANCHORS, select="oracle", void=("soft_k",)),
        Objective("sepo-hinge", {"gamma": 1.0, "margin": 0.0} | _ANCHORS, select="oracle", void=("soft_k",)),
        Objective("simpo", {"gamma": 2.1, "margin": 0.5} | _ANCHORS, void=("soft_k",)),
        Objective("confpo", {"gamma": 2.1, "margin": 0.5}, void=("soft_k",)),
        Objective("simper", {}, void=("soft_k",)),
        Objective("dpo", {"beta": 0.1, "sft_weight": 0.0}, needs=("reference",)),
        Objective("ipo", {"beta": 0.1}, needs=("reference",), void=("soft_k",)),
        # The paper names no alpha.
        Objective("r-dpo", {"beta": 0.1, "alpha": 0.01}, needs=("reference",)),
        Objective("tdpo1", {"beta": 0.1}, needs=_REFERENCE_KL, divergence="reference||policy"),
        Objective("tdpo", {"beta": 0.1, "alpha": 0.5}, needs=_REFERENCE_KL, divergence="reference||policy"),
        Objective("cpo", {"beta": 0.1, "sft_weight": 1.0, "kl_weight": 0.0}),
        Objective("orpo", {"beta": 0.1, "kl_weight": 0.0}, void=("soft_k",)),
        # The paper names no weight.
        Objective("slic", {"margin": 1.0, "sft_weight": 1.0, "kl_weight": 0.0}),
        Objective("rrhf", {"sft_weight": 1.0, "kl_weight": 0.0}),
        Objective("regress", {"scale": 1.0}, needs=("reference", "per_token")),
        Objective("sft", {}, chosen_only=True, void=("rejected_ratio", "soft_k")),
    )
}
RULES: Final = {
    entry.name: entry
    for entry in (
        Rule("oracle", _RATIOS | {"authors_rule": False}),
        Rule("inverted", _RATIOS | {"authors_rule": False}),
        Rule("random", _RATIOS | {"authors_rule": False}),
        Rule("all", {}, every_token=True),
        Rule("earliest", _RATIOS),
        Rule("latest", _RATIOS),
        Rule("confidence", _RATIOS, needs=("start_logps",)),
        Rule("sampo", {}),
        Rule("symmetric", _RATIOS, whole_data=True),
        Rule("dataset-share", _RATIOS, whole_data=True),
        Rule("dataset-symmetric", _RATIOS, whole_data=True),
        Rule("threshold", {"threshold": 0.0}),
        Rule("soft", {"soft_k": 1.0, "soft_mu": 1.0, "soft_low": -0.5, "soft_high": 1.5}, every_token=True),
        Rule("auto", {"auto_share": 0.8}),
        Rule("column", {}, needs=("weights",)),
    )
}


def defaults_in_words(option: str) -> str:
    """Who uses an option, and with which default: ``sepo, simpo 2.1; sepo-hinge 1.0``."""
    by_default: dict[Any, list[str]] = {}
    for name in users(option):
        by_default.setdefault(_ALL[name].options[option], []).append(name)
    return "; ".join(f"{', '.join(names)} {default}" for default, names in by_default.items())


def users(option: str) -> list[str]:
    """The objectives and rules that have an option."""
    return [name for name, entry in _ALL.items() if option in entry.options]


def measuring() -> list[str]:
    """The objectives that measure from a reference whatever their options."""
    return [name for name, entry in OBJECTIVES.items() if "reference" in entry.needs]


def unknown(kind: str, name: str, entries: Mapping[str, Any]) -> str:
    """The sentence for a name that nothing has, with the names that are near it."""
    near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"{kind} must be one of {', '.join(entries)}, got {name!r}{meant}"


def _load(module: str, entry: Objective | Rule) -> Callable[..., Any]:
    functions = importlib.import_module(f"stages.method.{module}")
    return partial(getattr(functions, entry.name.replace("-", "_")), **entry.options)


_ALL: Final[dict[str, Objective | Rule]] = {**OBJECTIVES, **RULES}
