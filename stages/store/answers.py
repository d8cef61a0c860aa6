"""Answers of models to questions: Parquet shards, one row an answer, in the order of the questions.

A folder of `sepo generate` holds, for each model NAME, ``NAME/answers-00000.parquet`` and so on, each with the answers
to `--shard-size` questions: by question, then sample, then turn. Like shards of scores (`stages.store.parquet`) they
hold a sha256 of themselves, and say whose they are. A shard that is not whole yet is a journal,
``NAME/answers-00000.partial.jsonl``: a line for each answer as it comes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import SepoError, borrowed
from stages.store.manifest import FORMAT, read_manifest
from stages.store.parquet import FLOATS, IDS, is_whole, parquet_bytes
from stages.store.place import Place, place_of
from stages.types import Floats, Ids, Message

DAMAGED: Final = "run the same `sepo generate` again: it makes what is damaged anew"
SCHEMA: Final = pa.schema(
    [
        pa.field("question", pa.int64(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("messages", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
        pa.field("prompt_ids", IDS),
        pa.field("answer_ids", IDS),
        pa.field("logps", FLOATS),
        pa.field("row", pa.string(), nullable=False),
    ]
)


class Answer(NamedTuple):
    """One answer of one model, as it is stored."""

    question: int
    """row number of the question in its file, from 0"""
    question_id: str
    """the benchmark's own id, as text; without one the row number"""
    sample: int
    """from 0"""
    turn: int
    """from 0; MT-Bench has two"""
    messages: list[Message]
    """the conversation that was answered: of a later turn with the model's own earlier answers"""
    text: str
    """the answer, without the end of turn"""
    ended: bool
    """False: cut at --max-new-tokens, or earlier where the model had no more positions"""
    problem: str
    """why there is no answer, where there is none"""
    prompt_ids: Ids | None
    """(P,)"""
    answer_ids: Ids | None
    """(A,), with the end-of-turn token if the answer ended"""
    logps: Floats | None
    """(A,), nats"""
    row: dict[str, Any]
    """the question's row as it was read"""


def answers_name(index: int) -> str:
    """``answers-00000.parquet`` and so on."""
    return f"answers-{index:05d}.parquet"


def journal_name(index: int) -> str:
    """Of the journal of a shard that is not whole yet."""
    return f"answers-{index:05d}.partial.jsonl"


def is_answers(name: str) -> bool:
    """Whether a file's name is that of such a shard."""
    return re.fullmatch(r"answers-\d{5,}\.parquet", name) is not None


def write_answers(place: Place, name: str, answers: list[Answer], fingerprint: str) -> None:
    """Write answers, which are in order, as one shard, whole or not at all."""
    columns = {field: [getattr(answer, field) for answer in answers] for field in SCHEMA.names}
    columns |= {field: list(map(_json, columns[field])) for field in ("messages", "row")}
    said = {"sepo.format": str(FORMAT), "sepo.fingerprint": fingerprint, "sepo.shard": name}
    place.write(name, parquet_bytes(pa.Table.from_pydict(columns, schema=SCHEMA.with_metadata(said))))


def _json(value: Any) -> str:
    # A column that nothing of ours reads may hold a date, or half of a surrogate pair.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode(errors="backslashreplace").decode()


def read_answers(place: Place, name: str, remedy: str) -> Iterator[Answer]:
    """The answers of a shard; one that is damaged is a `SepoError`."""
    where = place.at(name)
    with borrowed(f"cannot read {where}", remedy):
        data = place.read(name)
        if not is_whole(data):
            raise SepoError(f"{where} is damaged: its checksum is of another text", hint=remedy)
        rows = pq.read_table(pa.BufferReader(data), schema=SCHEMA).to_pylist()
    for row in rows:
        ids = {field: _array(row[field], np.int32) for field in ("prompt_ids", "answer_ids")}
        texts = {field: json.loads(row[field]) for field in ("messages", "row")}
        yield Answer(**(row | ids | texts | {"logps": _array(row["logps"], np.float32)}))


def _array(values: list[Any] | None, kind: Any) -> Any:
    return None if values is None else np.array(values, kind)


class AnswerFolder(NamedTuple):
    """A finished folder of `sepo generate`."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def models(self) -> list[str]:
        """The names of the models that answered."""
        return list(self.manifest["models"])

    def count(self, model: str) -> int:
        """How many answers there are of a model; 0 where a shard does not say."""
        try:
            return sum(pq.read_metadata(self.folder / model / name).num_rows for name in self._shards(model))
        except (OSError, pa.ArrowException):
            # Whoever reads it will tell what is wrong.
            return 0

    def keys(self, model: str) -> Iterator[tuple[str, int]]:
        """The question's id and the sample of each answer of a model, several times where there are later turns."""
        for name in self._shards(model):
            path = self.folder / model / name
            with borrowed(f"cannot read {path}", DAMAGED):
                columns = pq.read_table(path, columns=["question_id", "sample"]).to_pydict().values()
            yield from zip(*columns, strict=True)

    def answers(self, model: str) -> Iterator[Answer]:
        """All answers of a model, by question, sample and turn; one shard is in memory at a time."""
        for name in self._shards(model):
            yield from read_answers(place_of(self.folder / model), name, DAMAGED)

    def _shards(self, model: str) -> list[str]:
        parts = (name.partition("/") for name in self.manifest["files"])
        return [name for owner, _, name in parts if owner == model and is_answers(name)]


def open_answers(folder: str | Path) -> AnswerFolder:
    """A folder in which `sepo generate` has finished."""
    remedy = "run `sepo generate` first, or let it finish"
    return AnswerFolder(Path(folder).expanduser(), read_manifest(folder, "generate", remedy, ("models", "files")))
