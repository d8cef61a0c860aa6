"""What to know before a judge's figures are trusted: prompts that are missing, answers that are not the ones judged."""

from collections.abc import Iterable, Mapping
from typing import Final

from stages.benchmarks.ifeval_results import VERIFIER
from stages.benchmarks.judged import Judged
from stages.benchmarks.mt_bench_results import BENCHMARK as MT_BENCH
from stages.benchmarks.mt_bench_results import PAIRS
from stages.benchmarks.own_answers import ANSWERS

WHOLE: Final = {
    ("alpaca-eval", ""): 805,
    ("mt-bench", ""): 80,
    ("ifeval", ""): 541,
    ("arena-hard", "arena-hard-v0.1"): 500,
    ("arena-hard", "hard_prompt"): 500,
    ("arena-hard", "creative_writing"): 250,
}
"""prompts, by benchmark and category"""


def judgment_warnings(
    judged: Iterable[Judged], benchmarks: Mapping[str, str | None], names: Mapping[tuple[str, str], str]
) -> list[str]:
    """One line for each thing that spoils a result, with its count.

    Args:
        benchmarks: of each folder of answers, by its name.
        names: of the models, `stages.benchmarks.same_subject.model_names`.
    """
    judged = list(judged)
    mine = [(each.subject.part, each.subject.model, each) for each in judged if _is_own(each)]
    own = {(benchmarks[part], names[part, model]): each for part, model, each in mine}
    warnings = [
        f"{label(each)}: {count:,} {reason}" for each in judged for reason, count in each.counts.items() if count
    ]
    for each in (each for each in judged if not _is_own(each) and each.subject.judge != VERIFIER):
        subject = each.subject
        benchmark = MT_BENCH if subject.benchmark == PAIRS else subject.benchmark
        answers = own.get((benchmark, subject.model))
        if answers is not None:
            warnings += _against_own(each, answers, judged)
        else:
            warnings += _against_others(each, [model for name, model in own if name == benchmark])
        whole = WHOLE.get((benchmark, subject.part))
        if answers is None and whole and each.prompts and len(each.prompts) != whole:
            warnings.append(f"{label(each)}: {len(each.prompts):,} of {whole:,} prompts are judged")
    return warnings


def label(judged: Judged) -> str:
    """Such as ``alpaca-eval, sepo``."""
    subject = judged.subject
    return ", ".join(dict.fromkeys(part for part in (subject.benchmark, subject.part, subject.model) if part))


def _is_own(judged: Judged) -> bool:
    return judged.subject.benchmark == ANSWERS


def _against_others(each: Judged, models: list[str]) -> list[str]:
    """Of a model that is none of those of its benchmark whose answers are here."""
    several = ", ".join(model for model in models if model.endswith(f"/{each.subject.model}"))
    if several:
        said = "its place does not tell: put the file into the folder whose answers it judges"
        return [f"{label(each)}: whether it judges {several}, {said}"]
    return [f"{label(each)}: no answers of it are here, but of {', '.join(models)}"] if models else []


def _against_own(each: Judged, mine: Judged, judged: list[Judged]) -> list[str]:
    """Of a model whose answers are here; a benchmark may be judged in several categories."""
    if not each.prompts:
        return []
    category = {"part": "", "against": ""}
    parts = [one for one in judged if one.subject._replace(**category) == each.subject._replace(**category)]
    there = {prompt for part in parts for prompt in part.prompts}
    known = mine.answers
    strange = len({*each.prompts} - {*known})
    missing = len({*known} - there) if each is parts[0] else 0
    other = sum(known.get(prompt, answer) != answer for prompt, answer in each.answers.items())
    told = {
        f"of {len(known):,} prompts are not judged": missing,
        "prompts are judged that the folder has no answer to": strange,
        f"of {len(each.answers):,} judged answers are not those of the folder: judge again": other,
    }
    return [f"{label(each)}: {count:,} {said}" for said, count in told.items() if count]
