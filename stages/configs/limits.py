"""What the fields of a configuration may hold. Faults are sentences, collected and raised together."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final

from stages.configs.fields import column_names, is_remote, module_names, worker_numbers
from stages.errors import SepoError

Rule = tuple[Callable[[Any], bool], str]

_SEEDS: Final = 1 << 63
_COUNTS: Final = 1 << 31

positive: Rule = (lambda x: 0 < x < math.inf, "above 0 and finite")
not_negative: Rule = (lambda x: 0 <= x < math.inf, "at least 0 and finite")
at_least_one: Rule = (lambda x: x >= 1, "at least 1")
at_least_two: Rule = (lambda x: x >= 2, "at least 2")
finite: Rule = (lambda x: math.isfinite(x), "finite")
share: Rule = (lambda x: 0 < x <= 1, "in (0, 1]")
share_or_zero: Rule = (lambda x: 0 <= x <= 1, "in [0, 1]")
fraction_below_one: Rule = (lambda x: 0 <= x < 1, "in [0, 1)")


positive_if_given: Rule = (lambda x: x is None or 0 < x < math.inf, positive[1])


modules: Rule = (lambda x: x is None or all(module_names(x)), "names of layers, like q_proj,v_proj")


columns: Rule = (
    lambda x: (
        all(ours and theirs for ours, theirs in column_names(x).items())
        and len(column_names(x)) == (len(x.split(",")) if x else 0)
    ),
    "like prompt=question,chosen=good,rejected=bad",
)


local: Rule = (
    lambda x: x is None or not is_remote(x),
    "a folder of this computer (only `sepo score` and `sepo project-scores` write elsewhere)",
)


worker: Rule = (
    lambda x: x is None or 1 <= worker_numbers(x)[0] <= worker_numbers(x)[1],
    "like 3/16: its number, from 1, and how many there are",
)


def unless_none(rule: Rule) -> Rule:
    holds, wanted = rule
    return (lambda x: x is None or holds(x), wanted)


def one_of(names: tuple[str, ...]) -> Rule:
    return (lambda x: x in names, "one of " + ", ".join(names))


def one_of_if_given(names: tuple[str, ...]) -> Rule:
    return (lambda x: x is None or x in names, one_of(names)[1])


def check(config: Any, **rules: Rule) -> list[str]:
    """One sentence for each field that breaks its rule."""
    return _too_large(config) or [
        f"{name} must be {wanted}, got {getattr(config, name)!r}"
        for name, (holds, wanted) in rules.items()
        if not holds(getattr(config, name))
    ]


def _too_large(config: Any) -> list[str]:
    """Whole numbers that torch, numpy or Arrow have no room for: seeds have 64 bits, lengths and counts 32."""
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    most = {name: _SEEDS if name == "seed" else _COUNTS for name, value in given.items() if type(value) is int}
    return [
        f"{name} must be below {above:,}, got {'a longer number' if given[name].bit_length() > 99 else given[name]}"
        for name, above in most.items()
        if abs(given[name]) >= above
    ]


def refuse(faults: list[str]) -> None:
    if faults:
        raise SepoError("; ".join(dict.fromkeys(faults)), hint="nothing was started and nothing was written")
