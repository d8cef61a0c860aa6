"""What a benchmark is to this pipeline: its prompts, its decoding, its official files, and how its judge is run."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from huggingface_hub import hf_hub_download

from stages.data.text_files import Placed, kind
from stages.errors import SepoError, borrowed
from stages.generation.questions import Question, QuestionCounts
from stages.reporting import printable
from stages.store.answers import Answer
from stages.store.files import make_durable, write_whole

SIGNATURES: Final[Mapping[str, frozenset[str]]] = {
    "alpaca-eval": frozenset({"instruction", "dataset"}),
    "arena-hard": frozenset({"uid", "category", "prompt"}),
    "mt-bench": frozenset({"question_id", "category", "turns"}),
    "ifeval": frozenset({"key", "instruction_id_list", "kwargs", "prompt"}),
}
"""the columns that every row of a benchmark's file has; no file has those of two"""


class Decoding(NamedTuple):
    """How a benchmark's answers are generated where nothing else is asked for."""

    temperature: float
    top_p: float
    max_new_tokens: int


class Published(NamedTuple):
    """Where a benchmark's authors publish its prompts on the hub."""

    repository: str
    file: str
    repo_type: str = "dataset"


class Whole(NamedTuple):
    """All of a benchmark, in one of its versions."""

    title: str
    rows: int
    prompts: str = ""
    """`QuestionCounts.digest` of them; "" where we have not seen the published file"""


class OfficialFiles(NamedTuple):
    """What was written for the official tools."""

    files: list[str]
    """names from the folder of `sepo generate`"""
    counts: dict[str, int]
    """answers that are odd or left out, by reason; none of 0"""
    warnings: list[str]
    """one line for each reason that spoils a result"""


class NextSteps(NamedTuple):
    """How to go on to the official judge."""

    text: str
    """lines with the exact commands, and a sentence on the judge"""
    files: list[str]
    """configuration files written beside the answers; names from the folder of `sepo generate`"""


OfficialRows = Callable[[str, Iterator[Answer]], Iterable[Mapping[str, Any]]]
"""the rows of a model's file, of its name and the answers that go in"""


class Benchmark(ABC):
    """A public benchmark. Its subclasses hold all that is peculiar to one."""

    name: ClassVar[str]
    """as in ``--benchmark alpaca-eval``"""
    title: ClassVar[str]
    published: ClassVar[Published]
    decoding: ClassVar[Decoding]

    @abstractmethod
    def question(self, number: int, where: str, row: dict[str, Any]) -> Question:
        """A row as a question; one that is unfit is a `SepoError` that names `where` it stands."""

    @abstractmethod
    def whole(self, first: Question) -> "Whole":
        """All of the benchmark, in the version that this question is of."""

    @abstractmethod
    def write_files(self, folder: Path, name: str, answers: Iterable[Answer]) -> OfficialFiles:
        """Write a model's answers as the official tools read them; the same answers give the same bytes.

        Args:
            folder: that of `sepo generate`.
            name: the model's.
            answers: by question, sample and turn; only the first sample goes into official files.
        """

    @abstractmethod
    def next_steps(self, folder: Path, names: Sequence[str]) -> NextSteps:
        """How the official judge is run on the files of these models, with its configuration written beside them."""

    def write_file(
        self, folder: Path, file: str, name: str, rows: OfficialRows, answers: Iterable[Answer]
    ) -> OfficialFiles:
        """Write the file of a model's answers: a list if its name ends in .json, else JSON Lines."""
        counts: dict[str, int] = {}
        write_rows(folder / file, rows(name, first_samples(answers, counts)), as_list=file.endswith(".json"))
        return OfficialFiles([file], counts, warnings_of(counts, name, self.title))

    def questions(self, rows: Iterable[Placed], first: int = 0) -> Iterator[Question]:
        """The questions of a prompt file; a row unfit or of another benchmark, or an id twice, is a `SepoError`.

        Args:
            first: number of the first row, where these are a slice of their file.
        """
        seen: dict[str, str] = {}
        for number, (where, row) in enumerate(rows, start=first):
            self._recognise(where, row)
            question = self.question(number, where, row)
            for said, value in self.identities(question).items():
                key = hashlib.sha256(f"{said}\0{value}".encode(errors="surrogatepass")).hexdigest()
                if key in seen:
                    raise SepoError(f"{where}: the same {said} as in {seen[key]}", hint="keep one of the two rows")
                seen[key] = where
            yield question

    def deviation(self, counts: QuestionCounts) -> str:
        """A sentence where these are not all the questions as they are published, else ""."""
        whole = self.whole(counts.first)
        if counts.questions != whole.rows:
            said = f"{counts.questions:,} of the {whole.rows:,} prompts of {whole.title}"
            return f"{said}: its published figures are of all"
        if whole.prompts and counts.digest != whole.prompts:
            return f"these are not the prompts of {whole.title} as they are published, or not in their order"
        return ""

    def identities(self, question: Question) -> dict[str, str]:
        """What no two rows may share, by what it is called: the official tools tell rows apart by it."""
        return {"id": question.question_id}

    def prompts(self) -> Path:
        """The published prompts, fetched from the hub or taken from its cache."""
        place = self.published
        hint = f"give --prompts FILE, with {place.file} of the {place.repo_type} {place.repository}"
        with borrowed(f"cannot fetch the prompts of {self.title} from the hub", hint):
            return Path(hf_hub_download(place.repository, place.file, repo_type=place.repo_type))

    def _recognise(self, where: str, row: dict[str, Any]) -> None:
        missing = sorted(SIGNATURES[self.name] - {*row})
        if missing:
            other = next((name for name, columns in SIGNATURES.items() if columns <= {*row}), None)
            if other:
                raise SepoError(f"{where}: a row of {other}, not of {self.name}", hint=f"give --benchmark {other}")
            said = printable(", ".join([*row][:10])) or "none"
            raise SepoError(
                f"{where}: no column {missing[0]}, which the prompts of {self.title} have; its columns are {said}",
                hint=f"give {self.published.file} of the {self.published.repo_type} {self.published.repository}, "
                "or leave out --benchmark",
            )


def text_of(row: dict[str, Any], column: str, where: str) -> str:
    """A column's text, which is not blank; anything else is a `SepoError`."""
    value = row[column]
    if not isinstance(value, str):
        raise SepoError(f"{where}: {column} is {kind(value)}, not text", hint="give the benchmark's own file")
    if not value.strip():
        raise SepoError(f"{where}: {column} is empty", hint="give the benchmark's own file")
    return value


def id_of(row: dict[str, Any], column: str, where: str) -> str:
    """A column's id, a number or a text, as text."""
    value = row[column]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_of(row, column, where)


def first_samples(answers: Iterable[Answer], counts: dict[str, int]) -> Iterator[Answer]:
    """The answers that official files hold; what is odd or left out is counted in `counts`."""
    for answer in answers:
        reason = _oddity(answer)
        if reason:
            counts[reason] = counts.get(reason, 0) + 1
        if not answer.sample:
            yield answer


def _oddity(answer: Answer) -> str:
    if answer.sample:
        return "further samples"
    if answer.problem:
        return "no answer"
    return "" if answer.text.strip() else "empty"


def warnings_of(counts: Mapping[str, int], name: str, title: str) -> list[str]:
    """What a user should know of a model's official file before it is judged."""
    told = {
        "further samples": "further samples are not in the file of {title}, which holds one answer a prompt",
        "no answer": "prompts have no answer: they stand as empty texts in the file of {title}, and will be judged",
        "empty": "answers are empty: they stand so in the file of {title}, and will be judged",
    }
    return [f"{name}: {counts[key]:,} {said.format(title=title)}" for key, said in told.items() if counts.get(key)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, as_list: bool = False) -> None:
    """Write JSON Lines, or one JSON list with a row a line; one row at a time is in memory, the file appears whole."""
    opening, between, closing = (b"[\n", b",\n", b"\n]\n") if as_list else (b"", b"\n", b"\n")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(opening)
            for number, row in enumerate(rows):
                # Escaped, as other people's readers may take U+2028 for the end of a line.
                file.write(between * bool(number) + json.dumps(row).encode())
            file.write(closing)
            make_durable(file)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)


def answer_id(*parts: str) -> str:
    """22 letters and digits, as shortuuid's, of what an answer is: the same answer has the same id in every run."""
    digest = hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).digest()
    number, letters = int.from_bytes(digest[:16], "big"), []
    for _ in range(22):
        number, index = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[index])
    return "".join(letters)


_LETTERS: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
NO_TIME: Final = 0.0
"""the time stamp of every answer: the tools show it and do not use it, and the same answers give the same bytes"""
