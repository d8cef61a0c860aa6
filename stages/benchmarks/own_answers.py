"""What can be said of our own answers without a judge: how long they are, whether they end, whether they loop."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from stages.benchmarks.ifeval_results import BENCHMARK as IFEVAL
from stages.benchmarks.ifeval_results import verified
from stages.benchmarks.ifeval_verifier import Followed
from stages.benchmarks.judged import Judged, Judgments, Parts, Subject, prompt_key
from stages.reporting import Task
from stages.store.answers import Answer, AnswerFolder

ANSWERS: Final = "answers"
NO_ANSWER: Final = "without an answer"
GRAM: Final = 4
LOOPS_ABOVE: Final = 0.5
_PROMPTS: Final = {"alpaca-eval": "instruction", IFEVAL: "prompt"}
"""the columns by which the official tools know a prompt; elsewhere it has an id"""
_PIECE: Final = re.compile(r"\w+|[^\w\s]|\n")

Verifier = Callable[[Mapping[str, Any], str], Followed]


def own_figures(folder: AnswerFolder, name: str, verify: Verifier | None, task: Task) -> list[Judged]:
    """Figures of every model's answers and, with a verifier, its accuracies on IFEval.

    Args:
        name: of the folder, in tables.
    """
    found = []
    for model in folder.models:
        answers = []
        for answer in folder.answers(model):
            # Of what follows nobody needs more.
            answers.append(answer._replace(prompt_ids=None, logps=None))
            task.advance(0 if verify else 1)
        found.append(described(folder, name, model, answers))
        if verify is not None:
            found.append(verified(model, str(folder.folder), answers, _counting(verify, task)))
    return found


def described(folder: AnswerFolder, name: str, model: str, answers: list[Answer]) -> Judged:
    """Tokens and characters of an answer, shares in percent of those that were cut, are empty or loop."""
    benchmark = folder.manifest.get("benchmark")
    ours = Judgments(Subject(ANSWERS, name, "", "", model), str(folder.folder))
    first: dict[str, str] = {}
    for answer in answers:
        prompt = prompt_of(answer, benchmark)
        first.setdefault(prompt, answer.text)
        if answer.problem:
            ours.count(NO_ANSWER)
        else:
            ours.add(prompt, _parts(answer))
    keys = {prompt: prompt_key(text) for prompt, text in first.items()}
    return ours.judged()._replace(answers=keys)


def prompt_of(answer: Answer, benchmark: str | None) -> str:
    """The key of an answer's prompt, as `Judged.prompts` has it."""
    column = _PROMPTS.get(benchmark or "")
    return prompt_key(answer.row[column]) if column else answer.question_id


def repetition(text: str) -> float:
    """The share of a text's runs of 4 words, marks and line ends that stood in it before."""
    pieces = _PIECE.findall(text)
    runs = [*zip(*(pieces[at:] for at in range(GRAM)), strict=False)]
    return 1 - len({*runs}) / len(runs) if runs else 0.0


def _parts(answer: Answer) -> Parts:
    loops = repetition(answer.text) > LOOPS_ABOVE
    shares = {"cut": not answer.ended, "empty": not answer.text.strip(), "loops": loops}
    ids = answer.answer_ids
    lengths: Parts = {} if ids is None else {"tokens": (float(len(ids) - answer.ended), 1.0)}
    lengths["characters"] = (float(len(answer.text)), 1.0)
    return lengths | {share: (100.0 * holds, 1.0) for share, holds in shares.items()}


def _counting(verify: Verifier, task: Task) -> Verifier:
    def counted(row: Mapping[str, Any], text: str) -> Followed:
        followed = verify(row, text)
        task.advance()
        return followed

    return counted
