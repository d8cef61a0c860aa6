"""MT-Bench (FastChat's `llm_judge`): 80 questions of two turns in 8 categories, scored from 1 to 10."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from stages.benchmarks.benchmark import (
    NO_TIME,
    Benchmark,
    Decoding,
    NextSteps,
    OfficialFiles,
    Published,
    Whole,
    answer_id,
    id_of,
    text_of,
)
from stages.benchmarks.judges import JUDGE, URL, quoted, steps
from stages.data.text_files import kind
from stages.errors import SepoError
from stages.generation.questions import Question
from stages.reporting import counted
from stages.store.answers import Answer

TURNS: Final = 2
_ANSWERS: Final = "data/mt_bench/model_answer"
# `temperature_config` of FastChat's llm_judge/common.py; a category that it does not know has 0.7.
TEMPERATURES: Final = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}


class MtBench(Benchmark):
    """See above."""

    name = "mt-bench"
    title = "MT-Bench"
    # Where FastChat's own scripts fetch published answers from.
    published = Published("lmsys/mt-bench", "data/mt_bench/question.jsonl", "space")
    # As llm_judge/gen_model_answer.py: temperature by category, --max-new-token 1024.
    decoding = Decoding(temperature=0.7, top_p=1.0, max_new_tokens=1024)

    def question(self, number: int, where: str, row: dict[str, Any]) -> Question:
        turns = row["turns"]
        if not isinstance(turns, list) or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            said = "holds an empty turn or one that is no text" if isinstance(turns, list) else f"is {kind(turns)}"
            raise SepoError(f"{where}: turns {said}, not a list of {TURNS} texts", hint=_HINT)
        if len(turns) != TURNS:
            raise SepoError(f"{where}: {counted(len(turns), 'turn')}, not {TURNS}", hint=_HINT)
        category = text_of(row, "category", where)
        temperature = row.get("required_temperature", TEMPERATURES.get(category, self.decoding.temperature))
        if not isinstance(temperature, (int, float)) or temperature < 0:
            raise SepoError(f"{where}: required_temperature is {temperature!r}, not a number from 0", hint=_HINT)
        messages = [{"role": "user", "content": turns[0]}]
        question_id = id_of(row, "question_id", where)
        return Question(number, question_id, messages, tuple(turns[1:]), float(temperature), row)

    def whole(self, first: Question) -> Whole:
        return Whole(self.title, 80)

    def write_files(self, folder: Path, name: str, answers: Iterable[Answer]) -> OfficialFiles:
        return self.write_file(folder, f"{_ANSWERS}/{name}.jsonl", name, _rows, answers)

    def next_steps(self, folder: Path, names: Sequence[str]) -> NextSteps:
        at = folder.absolute()
        commands = ["pip install nvidia-mtbench-evaluator"]
        for name in names:
            responses = at / "mt_bench/mtbench" / name / "responses"
            answers = at / _ANSWERS / f"{name}.jsonl"
            commands += [
                f"mkdir -p {quoted(responses)} && cp {quoted(answers)} {quoted(responses)}/",
                f"mtbench-evaluator --model {quoted(name)} --workdir {quoted(at / 'mt_bench')} --judge "
                f"--judge_model {JUDGE} --judge_url {URL} --judge_parallelism 8 --judge_max_tokens 2048",
            ]
        commands.append(
            "# It brings the questions, and gpt-4's reference answers for any judge. FastChat's own gen_judgment.py "
            "asks only judges that it knows by name, needs openai<1, and data/mt_bench/reference_answer/JUDGE.jsonl."
        )
        return steps(self.title, "Its own, gpt-4, closed on 23 October 2026.", commands, [])


def _rows(name: str, answers: Iterable[Answer]) -> Iterator[dict[str, Any]]:
    for _, group in groupby(answers, key=lambda answer: answer.question):
        said = list(group)
        turns = [answer.text for answer in said]
        # The judge reads both turns: where the first has no answer, the second was never asked.
        turns += [""] * (TURNS - len(turns))
        question_id = said[0].row["question_id"]
        yield {
            "question_id": question_id,
            "answer_id": answer_id(name, str(question_id), *turns),
            "model_id": name,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": NO_TIME,
        }


_HINT: Final = "give data/mt_bench/question.jsonl of FastChat"
