"""Data files as no writer should leave them: rows, counted rows, or one line and a hint."""

import gzip
import io
import json
import os
import resource
import socket
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data import text_files
from stages.data.layouts import _GENERAL, read_conversations, read_pairs
from stages.data.published import PUBLISHED
from stages.data.read import dataset_hash
from stages.errors import SepoError
from stages.types import Dropped, Pair
from tests.data.turns import bot, user

ROW = {"prompt": "why?", "chosen": "so", "rejected": "no"}
GOOD = json.dumps(ROW) + "\n"
RANKED = '{"context": [{"role": "user", "content": "a"}], "completions": [{"rank": RANK, "completion": []}]}'
LEAP = pa.array([-(10**15)], pa.timestamp("s"))
"""a date before year 1"""
TWO_ROLES = pa.StructArray.from_arrays([pa.array(["user"]), pa.array(["assistant"])], ["role", "role"])
"""an object that has a key twice"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def line(**more):
    return json.dumps(ROW | more) + "\n"


def turns(**more):
    return {"chosen": [user("why?"), bot("so") | more], "rejected": [user("why?"), bot("no")]}


def table(**more):
    columns = {name: pa.array([text]) for name, text in ROW.items()} | more
    return pa.table(list(columns.values()), list(columns))


def twice(name):
    whole = table()
    return pa.table([*whole.columns, whole["prompt"]], [*whole.column_names, name])


def parquet(content, **how):
    file = io.BytesIO()
    pq.write_table(content, file, **how)
    return file.getvalue()


def arrow(content):
    file = io.BytesIO()
    with pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)
    return file.getvalue()


def zstd(data):
    return pa.compress(data.encode(), "zstd", asbytes=True)


def nested(depth, kind="[]"):
    return kind[0] * depth + kind[1] * depth


def deep_table(depth):
    value, kind = "x", pa.string()
    for _ in range(depth):
        value, kind = [value], pa.list_(kind)
    return table(deep=pa.array([value], kind))


PAIR = Pair(0, [user("why?")], "so", "no")
USED = [PAIR]
BROKEN = "broken Unicode"
CASES = {
    # text and its bytes
    "a lone surrogate in a prompt": ("a.jsonl", line(prompt="\ud83d"), [Dropped(0, BROKEN)]),
    "a lone surrogate in an answer": ("a.jsonl", line(rejected="cut \udc00"), [Dropped(0, BROKEN)]),
    "a lone surrogate in a column name": ("a.jsonl", line(**{"\ud83d": 1}), USED),
    "a lone surrogate in the system turn": ("a.jsonl", line(system="\ud83d"), [Dropped(0, BROKEN)]),
    "a surrogate as bytes": ("a.jsonl", GOOD.encode().replace(b"so", b"\xed\xa0\xbd"), "a.jsonl:1: not UTF-8 at byte 31"),
    "a NUL in an answer": ("a.jsonl", line(chosen="\0"), [Dropped(0, "NUL character")]),
    "a NUL in a line": ("a.jsonl", GOOD.replace("why", "w\0y"), "a.jsonl:1: broken JSON: Invalid control character"),
    "a NUL in CSV": ("a.csv", "prompt,chosen,rejected\nw\0y,so,no\n", "a.csv:2: a NUL byte"),
    "nothing but NUL": ("a.jsonl", "\0" * 999, "a.jsonl:1: broken JSON"),
    "UTF-16": ("a.jsonl", GOOD.encode("utf-16"), "a.jsonl:1: not UTF-8 at byte 1"),
    "UTF-16 CSV": ("a.csv", "prompt,chosen\n".encode("utf-16"), "a.csv:1: not UTF-8 at byte 1"),
    "UTF-32 list": ("a.json", f"[{GOOD}]".encode("utf-32"), "a.json: not UTF-8 in or after line 1"),
    "Latin-1 in a list, cut in a character": ("a.json", f"[{GOOD}".encode() + b"\xc3", "a.json: not UTF-8 in or after line 1"),
    # numbers
    "a number beyond floats": ("a.jsonl", GOOD[:-2] + ', "n": 1e400}', USED),
    "no number, and infinities": ("a.jsonl", GOOD[:-2] + ', "n": [NaN, Infinity, -Infinity]}', USED),
    "a number of 5000 digits that nobody reads": ("a.jsonl", GOOD[:-2] + f', "n": {"1" * 5000}}}', USED),
    "a number of 5000 digits in a list": ("a.json", f'[{GOOD[:-2]}, "n": {"1" * 5000}}}]', USED),
    "a number of 5000 digits as an answer": ("a.jsonl", GOOD.replace('"so"', "1" * 5000), 'a.jsonl:1: "chosen" is a number'),
    "a rank that is no number": ("a.jsonl", RANKED.replace("RANK", "NaN"), 'a.jsonl:1: "completions item 1 rank" is NaN'),
    "a rank beyond floats": ("a.jsonl", RANKED.replace("RANK", "1" + "0" * 400), 'a.jsonl:1: "completions item 1 rank" is a number'),
    "an infinite rank": ("a.jsonl", RANKED.replace("RANK", "1e400"), [Dropped(0, "fewer than two answers")]),
    "an infinite grade": ("a.jsonl", GOOD[:-2] + ', "score_chosen": 1e400, "score_rejected": NaN}', USED),
    # shapes
    "brackets in brackets": ("a.jsonl", GOOD[:-2] + f', "n": {nested(100_000)}}}', "a.jsonl:1: broken JSON: nested too deeply"),
    "brackets in brackets in a list": ("a.json", f"[{GOOD}, {nested(100_000)}]", "a.json row 1: broken JSON: nested too deeply"),
    "brackets in a turn": ("a.jsonl", json.dumps(turns(content=json.loads(nested(300)))), 'a.jsonl:1: "chosen" turn 2: "content" is a list'),
    "brackets in tools": ("a.jsonl", line(tools=nested(100_000)), 'a.jsonl:1: "tools" is text, but not JSON'),
    "a key twice": ("a.jsonl", GOOD + GOOD[:-2] + ', "chosen": "x"}', 'a.jsonl:2: an object has the key "chosen" twice'),
    "a key twice in a turn": ("a.jsonl", json.dumps(turns()).replace('"so"', '"so", "content": "x"'), 'a.jsonl:1: an object has the key "content" twice'),
    "a key twice in a list": ("a.json", f'[{GOOD[:-2]}, "chosen": "x"}}]', 'a.json row 0: an object has the key "chosen" twice'),
    "a column twice in CSV": ("a.csv", "prompt,chosen,chosen\n1,2,3\n", 'a.csv:1: two columns are called "chosen"'),
    "arguments that are nested": ("a.jsonl", line(chat_template_kwargs={"a": json.loads(nested(700))}), [Dropped(0, '"chat_template_kwargs" is nested more than 100 deep')]),
    "tools that are nested, as text": ("a.jsonl", line(tools=nested(700)), [Dropped(0, '"tools" is nested more than 100 deep')]),
    "a lone surrogate in tools": ("a.jsonl", line(tools=[{"name": "\ud83d"}]), [Dropped(0, BROKEN)]),
    "a lone surrogate in the name of an argument": ("a.jsonl", line(chat_template_kwargs={"\ud83d": 1}), [Dropped(0, BROKEN)]),
    "a NUL in tools": ("a.jsonl", line(tools='[{"name": "\\u0000"}]'), [Dropped(0, "NUL character")]),
    "a lone surrogate in an argument of a conversation": ("a.jsonl", json.dumps(turns() | {"chat_template_kwargs": {"x": "\ud83d"}}), [Dropped(0, BROKEN)]),
    "an empty object": ("a.jsonl", "{}", "a.jsonl:1: no known layout in the columns (none)"),
    "a list in a list": ("a.json", "[[]]", "a.json row 0: a list, not an object"),
    "a list that goes on": ("a.json", f"[{GOOD}] x", "a.json:2: broken JSON: Extra data (column 3)"),
    "a list with a comma too many": ("a.json", f"[{GOOD},]", "a.json:2: broken JSON: Expecting value (column 2)"),
    "a list without commas": ("a.json", f"[{GOOD}{GOOD}]", "a.json:2: broken JSON: Expecting ',' delimiter (column 1)"),
    "a list that is cut": ("a.json", f"[{GOOD},{GOOD[:20]}", "a.json:2: broken JSON: Unterminated string"),
    "an opening bracket": ("a.json", " [", "a.json:1: broken JSON: Expecting value"),
    "a list after 100,000 blanks": ("a.json", " " * 100_000 + f"[{GOOD}]", USED),
    "a list of one line": ("a.json", "[" + ", ".join([GOOD.strip()] * 3000) + "]", 3000),
    "a list with a long object": ("a.json", f"[{line(x='y' * 300_000)}, {GOOD}]", 2),
    "a list of strings": ("a.jsonl", '"a"\n"b"', "a.jsonl:1: text, not an object"),
    "answers as numbers": ("a.jsonl", line(chosen=1), 'a.jsonl:1: "chosen" is a number'),
    "answers that are missing": ("a.jsonl", line(chosen=None), 'a.jsonl:1: "chosen" is null'),
    "no turns": ("a.jsonl", '{"chosen": [], "rejected": []}', [Dropped(0, "no assistant turn at the end")]),
    "turns that are none": ("a.jsonl", line(chosen=[None]), 'a.jsonl:1: "chosen" turn 1 is null, not an object'),
    "a role that is an object": ("a.jsonl", json.dumps(turns(role={})), 'a.jsonl:1: "chosen" turn 2: "role" is an object'),
    "a role that is a list": ("a.jsonl", json.dumps(turns(role=[])), 'a.jsonl:1: "chosen" turn 2: "role" is a list'),
    "contents in parts": ("a.jsonl", json.dumps(turns(content=[{"type": "text", "text": "x"}])), 'a.jsonl:1: "chosen" turn 2: "content" is a list'),
    "a system turn that is a number": ("a.jsonl", line(system=1), 'a.jsonl:1: "system" is a number'),
    "tools that are a number": ("a.jsonl", line(tools=1), 'a.jsonl:1: "tools" is a number'),
    "arguments that are a list": ("a.jsonl", line(chat_template_kwargs=[1]), 'a.jsonl:1: "chat_template_kwargs" is a list'),
    "a quote without end": ("a.csv", 'prompt,chosen,rejected\n"a,b,c\n', "a.csv:2: broken CSV"),
    "a row that is short": ("a.csv", "prompt,chosen,rejected\na,b\n", "a.csv:2: broken CSV: 2 fields, but 3 columns"),
    "a header alone": ("a.csv", "prompt,chosen,rejected\n", "a.csv: no rows"),
    "a row of 10,000 fields": ("a.csv", "prompt,chosen,rejected\n" + "a," * 10_000, "a.csv:2: broken CSV: 10,001 fields"),
    # packed
    "gzip by name": ("a.jsonl.gz", GOOD, "a.jsonl.gz: damaged gzip data: Not a gzipped file"),
    "a gzip that is cut": ("a.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9], "a.jsonl.gz: the gzip data ends too early"),
    "a gzip that is empty": ("a.jsonl.gz", b"", "a.jsonl.gz: no rows"),
    "a gzip in a gzip": ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD.encode())), "a.jsonl.gz:1: not UTF-8"),
    "a gzip with another's checksum": ("a.jsonl.gz", gzip.compress(GOOD.encode())[:-8] + b"\0" * 8, "a.jsonl.gz: damaged gzip data: CRC check failed"),
    "a gzip with rubbish behind it": ("a.jsonl.gz", gzip.compress(GOOD.encode()) + b"rubbish", "a.jsonl.gz: damaged gzip data: Not a gzipped file"),
    "zstd by name": ("a.jsonl.zst", GOOD, "a.jsonl.zst: damaged zstd data"),
    "a zstd that is cut": ("a.csv.zst", zstd(GOOD * 99)[:-9], "a.csv.zst: damaged zstd data"),
    "a list that is packed and cut": ("a.json.gz", gzip.compress(f"[{GOOD}]".encode())[:-9], "a.json.gz: the gzip data ends too early"),
    # Parquet and Arrow
    "Parquet by name": ("a.parquet", GOOD, "a.parquet: damaged Parquet data"),
    "JSON by name": ("a.jsonl", parquet(table()), "a.jsonl:1: "),
    "a Parquet file that is cut": ("a.parquet", parquet(table())[:-9], "a.parquet: damaged Parquet data"),
    "a Parquet file without its middle": ("a.parquet", parquet(table())[:60] + parquet(table())[-400:], "a.parquet: "),
    "a Parquet file without columns": ("a.parquet", parquet(pa.table({})), "a.parquet: no rows"),
    "Parquet columns that nobody knows": ("a.parquet", parquet(pa.table({"a": ["x"], "b": LEAP})), "a.parquet row 0: no known layout in the columns a, b"),
    "a Parquet column twice": ("a.parquet", parquet(twice("chosen")), 'a.parquet: two columns are called "chosen"'),
    "an Arrow column twice": ("a.arrow", arrow(twice("chosen")), 'a.arrow: two columns are called "chosen"'),
    "a field twice in a turn": ("a.parquet", parquet(table(chosen=TWO_ROLES)), 'a.parquet: the column "chosen" cannot be read after row 0'),
    "answers as bytes": ("a.parquet", parquet(table(chosen=pa.array([b"so"]))), 'a.parquet row 0: "chosen" is bytes'),
    "answers as dates": ("a.parquet", parquet(table(chosen=LEAP)), 'a.parquet: the column "chosen" cannot be read after row 0'),
    "text that is not UTF-8": ("a.parquet", parquet(table(chosen=pa.array([b"\xff"]).view(pa.string()))), "a.parquet: not UTF-8 after row 0"),
    "text that is not UTF-8 in Arrow": ("a.arrow", arrow(table(chosen=pa.array([b"\xff"]).view(pa.string()))), "a.arrow: not UTF-8 after row 0"),
    "Arrow by name": ("a.arrow", GOOD, "a.arrow: damaged Arrow data"),
    "an Arrow stream that is cut": ("a.arrow", arrow(table())[:-9], "a.arrow: damaged Arrow data: the stream ends too early"),
    "encrypted columns": ("a.parquet", b"PARE" + parquet(table())[4:-4] + b"PARE", "a.parquet: damaged Parquet data"),
    "a date in a column of another layout": ("a.parquet", parquet(table(context=LEAP, labels=LEAP, input=LEAP)), USED),
    "two columns of a name that nobody reads": ("a.parquet", parquet(twice("x").append_column("x", pa.array(["y"]))), USED),
    "40 lists in lists": ("a.parquet", parquet(deep_table(40)), USED),
    "90 lists in lists": ("a.parquet", parquet(deep_table(90)), "a.parquet: damaged Parquet data: Parquet schema too deeply nested"),
    "an empty Arrow file": ("a.arrow", b"", "a.arrow: damaged Arrow data"),
}  # fmt: skip
UNREAD = {
    "a date before year 1": LEAP,
    "a date in no zone": pa.array([0], pa.timestamp("s", "Mars/Olympus")),
    "an identifier": pa.array([b"0" * 16], pa.binary(16)).cast(pa.uuid()),
    "a type of its own": pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "x", "y"), pa.array([b"\xff"])),
    "text that is not UTF-8": pa.array([b"\xff"]).view(pa.string()),
    "a date beyond year 9999": pa.array([10**15], pa.timestamp("s")),
    "a time beyond a day": pa.array([10**15], pa.duration("s")),
    "a dictionary": pa.array(["x"]).dictionary_encode(),
    "lists in lists": pa.array([[[["x"]]]]),
    "a map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
}


def read(name, rows=read_pairs):
    """The items of a data set, or the message of the one error."""
    try:
        dataset_hash(name)
        return list(rows(name))
    except SepoError as fault:
        said = fault
    assert "\n" not in said.message + said.hint
    assert len(said.message) < 500
    assert said.hint
    return said.message


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_file(folder, case):
    name, data, wanted = CASES[case]
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    found = read(name)
    if isinstance(wanted, str):
        assert isinstance(found, str), found
        assert found.startswith(wanted)
    elif isinstance(wanted, int):
        assert [type(item) for item in found] == [Pair] * wanted
    else:
        assert found == wanted


@pytest.mark.parametrize("case", UNREAD)
@pytest.mark.parametrize("write", [parquet, arrow])
def test_a_column_that_nobody_reads_is_of_no_account(folder, case, write):
    (folder / f"a.{write.__name__}").write_bytes(write(table(made=UNREAD[case])))
    assert read(f"a.{write.__name__}") == USED
    (folder / f"sft.{write.__name__}").write_bytes(
        write(pa.table({"messages": [turns()["chosen"]], "made": UNREAD[case]}))
    )
    assert read(f"sft.{write.__name__}", read_conversations) == [PAIR._replace(rejected="")]


def test_a_column_in_the_place_of_another(folder):
    """A name is a column's own, also where another one's begins with it."""
    whole = table().append_column("chosen.x", LEAP).rename_columns(["question", "chosen", "rejected", "chosen.x"])
    (folder / "a.parquet").write_bytes(parquet(whole))
    assert read("a.parquet", lambda name: read_pairs(name, {"prompt": "question"})) == USED


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: os.mkfifo(path), "neither a file nor a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "neither a file nor a folder"),
        (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
        (lambda path: path.symlink_to(path), "a link to nothing"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(path.name), "neither a file nor a folder"),
        (lambda path: path.mkdir(), "no data file in this folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_what_is_no_file(folder, make, said):
    make(folder / "a.jsonl")
    assert read("a.jsonl") == f"a.jsonl: {said}"


@pytest.mark.parametrize(
    "name", ["/dev/zero", "/dev/stdin", "/dev/null", "/proc/self/mem", "/etc", "a\0b", "\ud83d", "x" * 300]
)
def test_names_of_what_is_no_data_set(name):
    assert isinstance(read(name), str)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"_data_files": 1}',
        '{"_data_files": [1]}',
        '{"_data_files": [{"filename": "\\u0000"}]}',
        nested(100_000),
        "\xff",
    ],
)
def test_a_saved_folder_whose_state_is_damaged(folder, state):
    (folder / "d").mkdir()
    (folder / "d/state.json").write_text(state, encoding="latin-1")
    assert read("d").startswith("d: ")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["\n\nHuman: a", "[]", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "weight", "rank", "completion", "text"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(
    columns=st.sampled_from([sorted(layout.needs) for layout in (*PUBLISHED, *_GENERAL)]).flatmap(
        lambda names: st.fixed_dictionaries(
            dict.fromkeys(names, ANYTHING),
            optional={"system": ANYTHING, "tools": ANYTHING, "chat_template_kwargs": ANYTHING},
        )
    )
)
def test_whatever_the_columns_hold_is_a_row_a_reason_or_a_line(tmp_path_factory, columns):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_text(json.dumps(columns))
    for rows in (read_pairs, read_conversations):
        assert read(str(path), rows)


# --- what would fill the memory ---


def run_within(gigabytes, code):
    """The last line that a program prints which may use so much address space."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))

    program = f"from stages.data.layouts import read_pairs\nfrom stages.errors import SepoError\n{code}"
    ended = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("size", [1 << 17, 1 << 15])
@pytest.mark.parametrize("name", ["a.parquet", "turns.parquet", "a.arrow"])
def test_one_value_in_every_row(folder, monkeypatch, name, size):
    """A file holds it once: in memory it is bounded alone, and all that are there together."""
    monkeypatch.setattr(text_files, "LONGEST", 1 << 16)
    text = pa.array(["a" * size]).dictionary_encode().dictionary
    chosen = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), text)
    if name == "turns.parquet":
        turns = [[user("why?"), bot("a" * size)], [user("why?"), bot("b" * size)]] * 500
        whole = pa.table({"chosen": turns, "rejected": [[user("why?"), bot("no")]] * 1000})
    else:
        whole = pa.table({"prompt": ["why?"] * 1000, "chosen": chosen, "rejected": ["no"] * 1000})
    (folder / name).write_bytes(parquet(whole) if name.endswith("parquet") else arrow(whole))
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        found = read(name)
    finally:
        pa.set_memory_pool(before)
    if size > 1 << 16:
        assert found == f"{name} row 0: more than 65,536 bytes"
    else:
        assert [type(item) for item in found] == [Pair] * 1000
    # The file's buffer comes on top.
    assert pool.max_memory() < 3 << 20


def test_lines_that_have_no_end(folder):
    """A line of 70 MB, and 3 GB that are small as long as they are packed: as lines, as a list, as CSV."""
    member = gzip.compress(b"a" * (1 << 26), 1)
    (folder / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "', 1) + member * 48)
    (folder / "bomb.json.gz").write_bytes(gzip.compress(b'[{"prompt": "', 1) + member * 48)
    (folder / "bomb.csv.gz").write_bytes(gzip.compress(b'prompt,chosen,rejected\n"', 1) + member * 48)
    (folder / "long.jsonl").write_text(line(chosen="a" * 70_000_000))
    (folder / "text.jsonl").write_text(line(chosen="a " * 10_000_000))
    said = run_within(
        3,
        "for name in ('bomb.jsonl.gz', 'bomb.json.gz', 'bomb.csv.gz', 'long.jsonl', 'text.jsonl'):\n"
        "    try: print(*[item.reason for item in read_pairs(name)], end='; ')\n"
        "    except SepoError as error: print(error.message, end='; ')",
    )
    assert said.split("; ") == [
        "bomb.jsonl.gz:1: a line of more than 67,108,864 bytes",
        "bomb.json.gz row 0: more than 67,108,864 characters",
        "bomb.csv.gz:2: a line of more than 67,108,864 bytes",
        "long.jsonl:1: a line of more than 67,108,864 bytes",
        "more than 4,194,304 characters",
        "",
    ]
