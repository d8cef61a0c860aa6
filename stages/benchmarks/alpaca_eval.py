"""AlpacaEval 2 (package `alpaca_eval`): 805 instructions, each answer against one of GPT-4 Turbo."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from stages.benchmarks.benchmark import (
    Benchmark,
    Decoding,
    NextSteps,
    OfficialFiles,
    Published,
    Whole,
    text_of,
    write_rows,
)
from stages.benchmarks.judges import JUDGE, URL, quoted, steps, write_settings
from stages.generation.questions import Question
from stages.store.answers import Answer

FOLDER: Final = "alpaca_eval"
_ROWS: Final = 805
_BASELINE: Final = "gpt4_1106_preview"
_REFERENCE: Final = f"reference/{_BASELINE}.json"
_PROMPT: Final = Path("alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt")
# As evaluators_configs/weighted_alpaca_eval_vllm_llama3_70b/configs.yaml, which is the official judge on a server.
# Without requires_chatml a model with "instruct" in its name is asked for a completion, not for a chat's answer.
_JUDGE_CONFIG: Final[dict[str, Any]] = {
    "prompt_template": str(_PROMPT),
    "fn_completions": "openai_completions",
    "completions_kwargs": {
        "model_name": JUDGE,
        "max_tokens": 1,
        "temperature": 1,
        "logprobs": True,
        "top_logprobs": 5,
        "requires_chatml": True,
    },
    "fn_completion_parser": "logprob_parser",
    "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False},
    "completion_key": "completions_all",
    "batch_size": 1,
}


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
        return Whole(self.title, _ROWS, "81db2f426d2f66ece6e47d0ae37bdddded65b6d77d07087e5f212daf6920d0db")

    def write_files(self, folder: Path, name: str, answers: Iterable[Answer]) -> OfficialFiles:
        baseline: list[dict[str, Any]] = []
        rows = partial(_rows, baseline=baseline)
        written = self.write_file(folder, f"{FOLDER}/{name}.json", name, rows, answers)
        if baseline and all(row["generator"] == _BASELINE and row["output"] for row in baseline):
            written.files.append(f"{FOLDER}/{_REFERENCE}")
            write_rows(folder / written.files[-1], baseline, as_list=True)
        return written

    def next_steps(self, folder: Path, names: Sequence[str]) -> NextSteps:
        client = {"default": [{"api_key": "none", "base_url": URL}]}
        files = [
            write_settings(folder, f"{FOLDER}/judge/configs.yaml", {JUDGE: _JUDGE_CONFIG}),
            write_settings(folder, f"{FOLDER}/judge/client.yaml", client),
        ]
        # It takes a relative folder for one of its own, and looks for the prompt in the folder above.
        at = (folder / FOLDER).absolute()
        package = "import importlib.util as u; print(*u.find_spec('alpaca_eval').submodule_search_locations)"
        prompt = f'"$(python -c "{package}")"/evaluators_configs/{_PROMPT.parent}'
        # It imports pkg_resources, which setuptools had until then.
        commands = ["pip install alpaca-eval 'setuptools<82'", f"cp -r {prompt} {quoted(at)}/"]
        reference: Path | str = at / _REFERENCE
        if not (at / _REFERENCE).exists():
            place, reference = self.published, self.published.file
            commands.append(f"hf download --repo-type dataset --local-dir . {place.repository} {place.file}")
        commands += [self._evaluate(at, name, reference) for name in names]
        return steps(self.title, "Its own, gpt-4-1106-preview, closed on 23 October 2026.", commands, files)

    def _evaluate(self, at: Path, name: str, reference: Path | str) -> str:
        """The command for a model's file."""
        outputs = at / f"{name}.json"
        command = (
            f"OPENAI_CLIENT_CONFIG_PATH={quoted(at / 'judge/client.yaml')} alpaca_eval evaluate "
            f"--model_outputs {quoted(outputs)} --reference_outputs {quoted(reference)} "
            f"--annotators_config {quoted(at / 'judge')} --output_path {quoted(at / 'results' / name)} "
            "--precomputed_leaderboard None"
        )
        with outputs.open("rb") as file:
            # A row a line, within brackets.
            rows = sum(1 for _ in file) - 2
        # The model of lengths is fitted to the difficulty of each of the 805, by its row number.
        return command if rows == _ROWS else f"{command} --fn_metric get_winrate --sort_by win_rate"


def _rows(name: str, answers: Iterable[Answer], baseline: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a model's file; the answers that it is compared with are put into `baseline`."""
    for answer in answers:
        same = {column: answer.row[column] for column in ("dataset", "instruction")}
        baseline.append(same | {column: answer.row.get(column) for column in ("output", "generator")})
        yield same | {"output": answer.text, "generator": name}
