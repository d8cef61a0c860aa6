"""IFEval's accuracies: by its verifier, of our own answers; and what lm-eval and Google's script write."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from stages.benchmarks.ifeval_verifier import Followed
from stages.benchmarks.judged import HINT, Judged, Judgments, Parts, Subject, number_in, prompt_key, stated, text_in
from stages.data.text_files import Placed
from stages.errors import SepoError
from stages.store.answers import Answer

BENCHMARK: Final = "ifeval"
SAMPLES: Final = frozenset({"doc", "prompt_level_strict_acc", "inst_level_strict_acc"})
RESULTS: Final = frozenset({"results", "configs"})
GOOGLE: Final = frozenset({"prompt", "follow_all_instructions", "follow_instruction_list"})
VERIFIER: Final = "its verifier"
LM_EVAL: Final = "lm-eval"
SCRIPT: Final = "Google's script"
WAYS: Final = ("strict", "loose")


def verified(
    model: str, source: str, answers: Iterable[Answer], verify: Callable[[Mapping[str, Any], str], Followed]
) -> Judged:
    """What the verifier says of our own answers, of every sample; one that is empty follows nothing."""
    ours = Judgments(Subject(BENCHMARK, "", VERIFIER, "", model), source)
    for answer in answers:
        followed = verify(answer.row, answer.text)
        parts = [_parts(way, found) for way, found in zip(WAYS, followed, strict=True)]
        ours.add(prompt_key(answer.row["prompt"]), parts[0] | parts[1])
    return ours.judged()


def read_samples(rows: Iterator[Placed], source: str) -> list[Judged]:
    """lm-eval's samples_ifeval_DATE.jsonl, of `--log_samples`; its folder is named after the model."""
    ours = Judgments(Subject(BENCHMARK, "", LM_EVAL, "", Path(source).parent.name), source)
    for where, row in rows:
        if not isinstance(row["doc"], dict):
            raise SepoError(f"{where}: doc is no object", hint=HINT)
        parts = [_parts(way, _booleans(row, f"inst_level_{way}_acc", where)) for way in WAYS]
        ours.put(prompt_key(text_in(row["doc"], "prompt", where)), parts[0] | parts[1])
    return [ours.judged()]


def read_lm_eval(rows: Iterator[Placed], source: str) -> list[Judged]:
    """lm-eval's results_DATE.json, which has standard errors of what is counted by prompt."""
    found = []
    for _, row in rows:
        task = row["results"].get("ifeval") if isinstance(row["results"], dict) else None
        if not isinstance(task, dict):
            continue
        figures = {}
        for level, ours in (("prompt", "prompt"), ("inst", "instruction")):
            for way in WAYS:
                values = (number_in(task, f"{level}_level_{way}_acc{what},none") for what in ("", "_stderr"))
                value, error = (None if each is None else 100 * each for each in values)
                figures[f"accuracy_{ours}_{way}"] = stated(value, error)
        there = {name: each for name, each in figures.items() if each is not None}
        subject = Subject(BENCHMARK, "", LM_EVAL, "", Path(source).parent.name)
        found.append(Judged(subject, source, [], {}, there, {}, {}))
    return found


def read_google(rows: Iterator[Placed], source: str) -> list[Judged]:
    """eval_results_strict.jsonl and eval_results_loose.jsonl of instruction_following_eval: the name tells which."""
    way = next((way for way in WAYS if way in Path(source).name), None)
    if way is None:
        raise SepoError(f"{source}: strict or loose? Its name does not tell", hint=HINT)
    ours = Judgments(Subject(BENCHMARK, "", SCRIPT, "", Path(source).parent.name), source)
    for where, row in rows:
        response = row.get("response")
        parts = _parts(way, _booleans(row, "follow_instruction_list", where))
        prompt = prompt_key(text_in(row, "prompt", where))
        ours.put(prompt, parts, response if isinstance(response, str) else None)
    return [ours.judged()]


def _parts(way: str, followed: list[bool]) -> Parts:
    """In percent: a prompt counts if all its instructions are followed."""
    return {
        f"accuracy_prompt_{way}": (100.0 * all(followed), 1.0),
        f"accuracy_instruction_{way}": (100.0 * sum(followed), float(len(followed))),
    }


def _booleans(row: Mapping[str, Any], name: str, where: str) -> list[bool]:
    values = row.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(value, bool) for value in values):
        raise SepoError(f"{where}: {name} is no list of true and false", hint=HINT)
    return values
