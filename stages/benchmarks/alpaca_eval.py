"""AlpacaEval 2 (package `alpaca_eval`): 805 instructions, each answer against one of GPT-4 Turbo."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.benchmarks.benchmark import (
    Benchmark,
    Decoding,
    NextSteps,
    OfficialFiles,
    Published,
    Whole,
    first_samples,
    text_of,
    warnings_of,
    write_rows,
)
from stages.generation.questions import Question
from stages.store.answers import Answer

FOLDER = "alpaca_eval"


class AlpacaEval(Benchmark):
    """See above."""

    name = "alpaca-eval"
    title = "AlpacaEval 2"
    # Not through datasets, which runs no scripts since 4.0. This file also holds the answers of the baseline.
    published = Published("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json")
    # As 126 and 92 of the 234 configurations of models that `alpaca_eval` 0.6.6 ships.
    decoding = Decoding(temperature=0.7, top_p=1.0, max_new_tokens=2048)

    def question(self, number: int, where: str, row: dict[str, Any]) -> Question:
        text_of(row, "dataset", where)
        messages = [{"role": "user", "content": text_of(row, "instruction", where)}]
        return Question(number, str(number), messages, (), None, row)

    def identities(self, question: Question) -> dict[str, str]:
        return {"instruction": question.messages[-1]["content"]}

    def whole(self, first: Question) -> Whole:
        return Whole(self.title, 805, "81db2f426d2f66ece6e47d0ae37bdddded65b6d77d07087e5f212daf6920d0db")

    def write_files(self, folder: Path, name: str, answers: Iterable[Answer]) -> OfficialFiles:
        counts: dict[str, int] = {}
        file = f"{FOLDER}/{name}.json"
        write_rows(folder / file, _rows(name, first_samples(answers, counts)), as_list=True)
        return OfficialFiles([file], counts, warnings_of(counts, name, self.title))

    def next_steps(self, folder: Path, names: Sequence[str]) -> NextSteps:
        return NextSteps("", [])


def _rows(name: str, answers: Iterable[Answer]) -> Iterator[dict[str, Any]]:
    for answer in answers:
        row = answer.row
        yield {
            "dataset": row["dataset"],
            "instruction": row["instruction"],
            "output": answer.text,
            "generator": name,
        }
