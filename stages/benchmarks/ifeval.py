"""IFEval: 541 prompts whose instructions a program verifies; it needs no judge."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.benchmarks.benchmark import Benchmark, Decoding, NextSteps, OfficialFiles, Published, Whole, id_of, text_of
from stages.benchmarks.judges import quoted
from stages.data.text_files import kind
from stages.errors import SepoError
from stages.generation.questions import Question
from stages.store.answers import Answer


class IfEval(Benchmark):
    """See above."""

    name = "ifeval"
    title = "IFEval"
    published = Published("google/IFEval", "ifeval_input_data.jsonl")
    # As lm-eval's task `ifeval`: greedy, max_gen_toks 1280.
    decoding = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=1280)

    def question(self, number: int, where: str, row: dict[str, Any]) -> Question:
        for column in ("instruction_id_list", "kwargs"):
            if not isinstance(row[column], list):
                raise SepoError(f"{where}: {column} is {kind(row[column])}, not a list", hint=_HINT)
        instructions, arguments = len(row["instruction_id_list"]), len(row["kwargs"])
        if not instructions or instructions != arguments:
            raise SepoError(f"{where}: {instructions} instructions, but kwargs of {arguments}", hint=_HINT)
        messages = [{"role": "user", "content": text_of(row, "prompt", where)}]
        return Question(number, id_of(row, "key", where), messages, (), None, row)

    def identities(self, question: Question) -> dict[str, str]:
        # The official verifier finds a response by its prompt.
        return {"key": question.question_id, "prompt": question.messages[-1]["content"]}

    def whole(self, first: Question) -> Whole:
        return Whole(self.title, 541)

    def write_files(self, folder: Path, name: str, answers: Iterable[Answer]) -> OfficialFiles:
        return self.write_file(folder, f"ifeval/{name}.jsonl", name, _rows, answers)

    def next_steps(self, folder: Path, names: Sequence[str]) -> NextSteps:
        at, tool = folder.absolute(), "instruction_following_eval"
        lines = ["# IFEval needs no judge: a program verifies the answers.", f"sepo results {quoted(at)}"]
        verify = f"python -m {tool}.evaluation_main --input_data={tool}/data/input_data.jsonl"
        # For a reader alone: it takes all of its prompts or none.
        lines += ["# Or, in a checkout of google-research, where the verifier comes from, with answers to all prompts:"]
        for name in names:
            responses, results = at / f"ifeval/{name}.jsonl", at / f"ifeval/google/{name}"
            flags = f"--input_response_data={quoted(responses)} --output_dir={quoted(results)}"
            lines.append(f"# mkdir -p {quoted(results)} && {verify} {flags}")
        return NextSteps("\n".join(lines), [])


def _rows(name: str, answers: Iterable[Answer]) -> Iterator[dict[str, Any]]:
    for answer in answers:
        yield {"prompt": answer.row["prompt"], "response": answer.text}


_HINT = "give ifeval_input_data.jsonl of google/IFEval"
