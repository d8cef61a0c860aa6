"""Arena-Hard (lmarena/arena-hard-auto), v0.1 of 500 prompts and v2.0 of 750, each answer against a baseline's."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.benchmarks.benchmark import (
    NO_TIME,
    Benchmark,
    Decoding,
    NextSteps,
    OfficialFiles,
    Published,
    Whole,
    answer_id,
    first_samples,
    id_of,
    text_of,
    warnings_of,
    write_rows,
)
from stages.data.text_files import Placed
from stages.errors import SepoError, one_line
from stages.generation.questions import Question
from stages.store.answers import Answer


class Version(NamedTuple):
    """A version of the benchmark."""

    name: str
    """of its folder in the official ``data``"""
    whole: Whole
    baselines: dict[str, str]
    """category of a question -> whose answer ours is compared with (`JUDGE_SETTINGS` of utils/judge_utils.py)"""


_O3_MINI: Final = "o3-mini-2025-01-31"
VERSIONS: Final = (
    Version("arena-hard-v0.1", Whole("Arena-Hard v0.1", 500), {"arena-hard-v0.1": "gpt-4-0314"}),
    Version(
        "arena-hard-v2.0",
        Whole("Arena-Hard v2.0", 750),
        {
            "hard_prompt": _O3_MINI,
            "coding": _O3_MINI,
            "math": _O3_MINI,
            "creative_writing": "gemini-2.0-flash-001",
        },
    ),
)


class ArenaHard(Benchmark):
    """See above."""

    name = "arena-hard"
    title = "Arena-Hard"
    # The version of the paper, and of models of up to 8B: v2.0 is too hard for them to differ.
    published = Published("lmarena-ai/arena-hard-auto", "data/arena-hard-v0.1/question.jsonl")
    # As config/gen_answer_config.yaml of v0.1, and its entries of config/api_config.yaml.
    decoding = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=4096)

    def questions(self, rows: Iterable[Placed]) -> Iterator[Question]:
        versions: dict[str, str] = {}
        for question in super().questions(rows):
            versions.setdefault(version_of(question.row).name, question.question_id)
            if len(versions) > 1:
                (old, one), (new, other) = versions.items()
                problem = f"uid {one} is of {old}, uid {other} of {new}"
                raise SepoError(problem, hint="give the prompts of one version")
            yield question

    def question(self, number: int, where: str, row: dict[str, Any]) -> Question:
        category = text_of(row, "category", where)
        known = [name for version in VERSIONS for name in version.baselines]
        if category not in known:
            said = f"category must be one of {', '.join(known)}, got {category!r}"
            raise SepoError(f"{where}: {said}", hint="give question.jsonl of arena-hard-auto")
        messages = [{"role": "user", "content": text_of(row, "prompt", where)}]
        return Question(number, id_of(row, "uid", where), messages, (), None, row)

    def whole(self, first: Question) -> Whole:
        return version_of(first.row).whole

    def write_files(self, folder: Path, name: str, answers: Iterable[Answer]) -> OfficialFiles:
        counts: dict[str, int] = {}
        said = first_samples(answers, counts)
        first = next(said, None)
        if first is None:
            return OfficialFiles([], counts, [])
        version = version_of(first.row)
        file = f"data/{version.name}/model_answer/{name}.jsonl"
        encoding, problem = _encoding()
        write_rows(folder / file, _rows(name, chain([first], said), encoding))
        warnings = warnings_of(counts, name, self.title)
        if problem:
            warnings.append(f"{name}: no metadata for style control: {problem}")
        return OfficialFiles([file], counts, warnings)

    def next_steps(self, folder: Path, names: Sequence[str]) -> NextSteps:
        return NextSteps("", [])


def version_of(row: dict[str, Any]) -> Version:
    """Which version a question is of: its category tells."""
    return next(version for version in VERSIONS if row["category"] in version.baselines)


def _rows(name: str, answers: Iterable[Answer], encoding: Any) -> Iterator[dict[str, Any]]:
    for answer in answers:
        uid, said = answer.row["uid"], {"role": "assistant", "content": {"answer": answer.text}}
        yield {
            "uid": uid,
            "ans_id": answer_id(name, str(uid), answer.text),
            "model": name,
            "messages": [{"role": "user", "content": answer.row["prompt"]}, said],
            "tstamp": NO_TIME,
        } | ({"metadata": _metadata(answer.text, encoding)} if encoding else {})


def _metadata(text: str, encoding: Any) -> dict[str, Any]:
    """What style control needs, as utils/add_markdown_info.py counts it: all tokens, and marks outside of code."""
    prose = text
    for block in re.findall("```([^`]*)```", text):
        prose = prose.replace(block, "")
    return {
        "token_len": len(encoding.encode(text, disallowed_special=())),
        "header_count": {f"h{level}": _count(rf"^#{{{level}}}\s", prose) for level in range(1, 7)},
        "list_count": {"ordered": _count(r"^\s*\d+\.\s", prose), "unordered": _count(r"^\s*[-*+]\s", prose)},
        "bold_count": {"**": _count(r"\*\*[^*\n]+\*\*", prose), "__": _count(r"__[^_\n]+__", prose)},
    }


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.MULTILINE))


def _encoding() -> tuple[Any, str]:
    """tiktoken's tokenizer of gpt-4o, or why there is none: it downloads its vocabulary at the first use."""
    try:
        import tiktoken
    except ImportError:
        return None, "tiktoken is not installed; run `pip install 'sepo[arena-hard]'`"
    try:
        return tiktoken.encoding_for_model("gpt-4o"), ""
    except Exception as error:
        return None, f"tiktoken cannot fetch its vocabulary: {one_line(error)}"
