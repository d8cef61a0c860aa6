"""IFEval's official verifier, which lm-eval carries: which of its instructions an answer follows (arXiv 2311.07911).

Strict judges the answer as it is. Loose takes an instruction as followed too if the answer follows it without its first
line, its last one or both, or without asterisks: an upper bound.
"""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from os.path import join
from types import ModuleType, SimpleNamespace
from typing import Any, Final, NamedTuple

from stages.devices.extras import refuse_without
from stages.errors import SepoError, borrowed

LIBRARIES: Final = ("lm_eval", "nltk", "langdetect", "immutabledict")
_SENTENCES: Final = "tokenizers/punkt_tab/english"
_TASKS: Final = "lm_eval.tasks"
_ROW: Final = {"prompt": str, "instruction_id_list": list, "kwargs": list}
"""what the verifier needs of a row, and what it has to be"""
ROW_HINT: Final = "give rows of IFEval's input_data.jsonl, with prompt, instruction_id_list and kwargs"


class Followed(NamedTuple):
    """Whether an answer follows each instruction of its prompt, in their order."""

    strict: list[bool]
    loose: list[bool]


def open_verifier() -> Callable[[Mapping[str, Any], str], Followed]:
    """The verifier: a function of a row of IFEval's file and an answer. The same again gives the same.

    Raises:
        SepoError: a library or the data that cuts texts into sentences is not here. Of the function: a row that is not
            IFEval's.
    """
    for library in LIBRARIES:
        refuse_without(library, "IFEval's verifier", "ifeval")
    with borrowed("IFEval's verifier does not load", "pip install -U 'sepo[ifeval]'"):
        import langdetect
        import nltk

        _refuse_without_sentences(nltk)
        with _without_other_tasks():
            official: Any = import_module(f"{_TASKS}.ifeval.utils")
    # Without a seed it takes another language for a text now and then.
    langdetect.DetectorFactory.seed = 0
    known = official.instructions_registry.INSTRUCTION_DICT

    def verify(row: Mapping[str, Any], answer: str) -> Followed:
        refuse_other_row(row, known)
        asked = SimpleNamespace(**{name: row[name] for name in _ROW})
        with borrowed(f"IFEval's verifier fails on {row['prompt'][:60]!r}", ROW_HINT):
            with _same_draws():
                strict = official.test_instruction_following_strict(asked, answer)
            with _same_draws():
                loose = official.test_instruction_following_loose(asked, answer)
        return Followed(strict.follow_instruction_list, loose.follow_instruction_list)

    return verify


def refuse_other_row(row: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Stop at a row that is none of IFEval's."""
    for name, kind in _ROW.items():
        if not isinstance(row.get(name), kind):
            raise SepoError(f"a row has no {name}, as IFEval's rows have", hint=ROW_HINT)
    named, options = row["instruction_id_list"], row["kwargs"]
    unknown = [each for each in named if not isinstance(each, str) or each not in known]
    if unknown or not named:
        problem = f"no instruction {unknown[0]!r}" if unknown else "no row without instructions"
        raise SepoError(f"IFEval's verifier knows {problem}", hint=ROW_HINT)
    if len(options) != len(named) or not all(isinstance(each, dict) for each in options):
        raise SepoError(f"a row has {len(named)} instructions and other kwargs than one object for each", hint=ROW_HINT)


def _refuse_without_sentences(nltk: Any) -> None:
    """lm-eval would ask the network for the data, and go on without it where there is none."""
    try:
        nltk.data.find(_SENTENCES)
    except LookupError:
        raise SepoError(
            "IFEval's verifier needs nltk's punkt_tab, which cuts texts into sentences and is not here",
            hint="python -m nltk.downloader punkt_tab, or name the folder that has it in NLTK_DATA",
        ) from None


@contextmanager
def _same_draws() -> Iterator[None]:
    """Of two rows the verifier does not take the character that is to be counted (#, !), and draws a letter."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _without_other_tasks() -> Iterator[None]:
    """Import a task of lm-eval without the package of all tasks, which loads its metrics, data sets and models."""
    if _TASKS in sys.modules:
        yield
        return
    spec = find_spec("lm_eval")
    package = ModuleType(_TASKS)
    package.__path__ = [join(folder, "tasks") for folder in (spec and spec.submodule_search_locations) or ()]
    sys.modules[_TASKS] = package
    try:
        yield
    finally:
        # Whoever imports it later gets the whole one.
        del sys.modules[_TASKS]
