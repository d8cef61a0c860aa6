"""What an option may hold: a test, and the words for "X must be ..."."""

import math
import os
import re
from collections.abc import Callable
from typing import Any, Final

from stages.configs.fields import byte_count, column_names, is_remote, json_object, module_names, worker_numbers

Limit = tuple[Callable[[Any], bool], str]

_SEEDS: Final = 1 << 63
_COUNTS: Final = 1 << 31

positive: Limit = (lambda x: 0 < x < math.inf, "above 0 and finite")
not_negative: Limit = (lambda x: 0 <= x < math.inf, "at least 0 and finite")
at_least_one: Limit = (lambda x: x >= 1, "at least 1")
at_least_two: Limit = (lambda x: x >= 2, "at least 2")
finite: Limit = (lambda x: math.isfinite(x), "finite")
share: Limit = (lambda x: 0 < x <= 1, "in (0, 1]")
share_or_zero: Limit = (lambda x: 0 <= x <= 1, "in [0, 1]")
fraction_below_one: Limit = (lambda x: 0 <= x < 1, "in [0, 1)")
size: Limit = (lambda x: byte_count(x) > 0, "a size like 80GB or 80GiB")
modules: Limit = (lambda x: all(module_names(x)), "names of layers, like q_proj,v_proj")
columns: Limit = (
    lambda x: (
        all(ours and theirs for ours, theirs in column_names(x).items())
        and len(column_names(x)) == (len(x.split(",")) if x else 0)
    ),
    "like prompt=question,chosen=good,rejected=bad",
)
an_object: Limit = (lambda x: json_object(x) is not None, """a JSON object, like '{"enable_thinking": false}'""")
local: Limit = (
    lambda x: not is_remote(x),
    "a folder of this computer (only `sepo score`, `sepo project-scores` and `sepo denoise` write elsewhere)",
)
revision: Limit = (lambda x: re.fullmatch(r"[\w./-]+", x) is not None, "the name of a branch or tag, or a commit")
file_name: Limit = (lambda x: x.isprintable() and "/" not in x and x.strip(".") != "", "a name without slashes")
new_file: Limit = (
    # What is written beside it, and before it is whole, has a longer name.
    lambda x: 0 < len(os.fsencode(os.path.basename(x))) <= 200 and x not in (".", ".."),
    "a file, whose name has at most 200 bytes",
)
jsonl_file: Limit = (
    lambda x: new_file[0](x) and x.endswith(".jsonl") and os.path.basename(x) != ".jsonl",
    "a file whose name ends in .jsonl and has at most 200 bytes",
)
verifier: Limit = (
    lambda x: re.fullmatch(r"[\w-]+|\w+(\.\w+)*:\w+", x) is not None,
    "a verifier's name, or like my_module:my_function",
)
worker: Limit = (
    lambda x: 1 <= worker_numbers(x)[0] <= worker_numbers(x)[1],
    "like 3/16: its number, from 1, and how many there are",
)


def no_text(value: Any) -> str:
    """What a text must be that is empty, as an unset variable of a shell is, or holds a NUL, which no name may."""
    return "a text without NUL, and not empty" if value == "" or (isinstance(value, str) and "\0" in value) else ""


def too_large(name: str, value: Any) -> str:
    """Such as "below 2,147,483,648", where torch, numpy or Arrow have no room for a whole number: seeds have 64 bits,
    lengths and counts 32."""
    above = _SEEDS if name == "seed" else _COUNTS
    return f"below {above:,}" if type(value) is int and abs(value) >= above else ""
