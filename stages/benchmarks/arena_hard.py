"""Arena-Hard (lmarena/arena-hard-auto), v0.1 of 500 prompts and v2.0 of 750, each answer against a baseline's."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
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
    id_of,
    text_of,
)
from stages.benchmarks.judges import JUDGE, URL, quoted, steps, write_settings
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
    shown: tuple[str, ...]
    """the categories that it has a table of"""
    judge: str
    """a sentence on its own judge"""

    @property
    def answers(self) -> str:
        """The folder of models' answers, from where ``data`` is."""
        return f"data/{self.name}/model_answer"

    @property
    def names(self) -> list[str]:
        """The models that ours are compared with."""
        return sorted({*self.baselines.values()})


_O3_MINI: Final = "o3-mini-2025-01-31"
VERSIONS: Final = (
    Version(
        "arena-hard-v0.1",
        Whole("Arena-Hard v0.1", 500),
        {"arena-hard-v0.1": "gpt-4-0314"},
        ("arena-hard-v0.1",),
        "Its own, gpt-4-1106-preview, closed on 23 October 2026.",
    ),
    Version(
        "arena-hard-v2.0",
        Whole("Arena-Hard v2.0", 750),
        {"hard_prompt": _O3_MINI, "coding": _O3_MINI, "math": _O3_MINI, "creative_writing": "gemini-2.0-flash-001"},
        ("hard_prompt", "creative_writing"),
        "Its own is gpt-4.1, which closes on 14 January 2027.",
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

    def questions(self, rows: Iterable[Placed], first: int = 0) -> Iterator[Question]:
        versions: dict[str, str] = {}
        for question in super().questions(rows, first):
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
        said = iter(answers)
        first = next(said, None)
        if first is None:
            return OfficialFiles([], {}, [])
        encoding, problem = _encoding()
        file, rows = f"{version_of(first.row).answers}/{name}.jsonl", partial(_rows, encoding=encoding)
        written = self.write_file(folder, file, name, rows, chain([first], said))
        if problem:
            written.warnings.append(f"{name}: no metadata for style control: {problem}")
        return written

    def next_steps(self, folder: Path, names: Sequence[str]) -> NextSteps:
        version = next(each for each in VERSIONS if (folder / each.answers / f"{names[0]}.jsonl").exists())
        server = {"model": JUDGE, "endpoints": [{"api_base": URL, "api_key": "-"}], "api_type": "openai"}
        judge = {"judge_model": JUDGE, "temperature": 0.0, "max_tokens": 4096, "model_list": [*names]}
        files = [
            write_settings(folder, "arena_hard/api_config.yaml", {JUDGE: server | {"parallel": 8}}),
            write_settings(folder, "arena_hard/settings.yaml", judge),
        ]
        at, data = folder.absolute(), f"data/{version.name}"
        wanted = [f"{data}/question.jsonl", *(f"{version.answers}/{name}.jsonl" for name in version.names)]
        commands = [
            # One line: without the folder nothing of it is right, and there may be other requirements here.
            "{ [ -d arena-hard-auto ] || git clone https://github.com/lmarena/arena-hard-auto; } && cd arena-hard-auto "
            "&& pip install -r requirements.txt",
            # The questions, and the answers that ours are compared with.
            f"hf download --repo-type dataset --local-dir . {self.published.repository} {' '.join(wanted)}",
            f"cp {quoted(at / version.answers)}/*.jsonl {version.answers}/",
            # In YAML as Python reads it the later one of two equal keys counts.
            f"cat config/{version.name}.yaml {quoted(at / files[1])} > config/sepo.yaml",
            f"cat config/api_config.yaml {quoted(at / files[0])} > config/sepo-api.yaml",
            "python gen_judgment.py --setting-file config/sepo.yaml --endpoint-file config/sepo-api.yaml",
            f"cp -r {data}/model_judgment {quoted(at / data)}/",
            # One at a time: it mixes up the battles of several categories.
            *(
                f"python show_result.py --benchmark {version.name} --judge-names {JUDGE} --category {category}"
                for category in version.shown
            ),
            f"# With --control-features markdown length once utils/add_markdown_info.py --dir {version.answers} "
            f"--output-dir {version.answers} has added the metadata where there is none.",
        ]
        return steps(version.whole.title, version.judge, commands, files)


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
