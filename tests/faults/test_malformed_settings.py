"""Configuration files and numbers that no option takes: one line and a hint, before anything is loaded or written."""

import os
from dataclasses import fields, is_dataclass
from math import inf, nan
from typing import get_args, get_type_hints

import pytest

from stages import configs
from stages.errors import SepoError
from tests.faults.harness import assert_one_line, outcome

CONFIGS = [each for each in vars(configs).values() if is_dataclass(each)]
NUMBERS = [
    (each, field.name, kind)
    for each in CONFIGS
    for field in fields(each)
    for kind in get_args(get_type_hints(each)[field.name]) or [get_type_hints(each)[field.name]]
    if kind in (int, float)
]
HUGE = 10**4400
"""more digits than Python writes"""

FILES = {
    "a leading zero": (b"seed: 042", ":1: seed is 042, which YAML takes for another number"),
    "a leading zero behind a sign": (b"seed: +0_17", ":1: seed is +0_17"),
    "minutes and seconds": (b"train_pairs: 1:30", ":1: train_pairs is 1:30"),
    "bits": (b"seed: 0b11", ":1: seed is 0b11"),
    "hexadecimal digits": (b"seed: 0x2A", ":1: seed is 0x2A"),
    "5000 digits": (b"seed: " + b"1" * 5000, ":1: seed: "),
    "5000 digits in quotes": (b"seed: '" + b"1" * 5000 + b"'", ":1: seed: "),
    "5000 hexadecimal digits": (b"seed: 0x" + b"f" * 5000, ":1: seed is 0xfff"),
    "a number that no float holds": (b"beta: 1" + b"0" * 400, "beta must be above 0 and finite, got inf"),
    "no number": (b"beta: nan", "beta must be above 0 and finite, got nan"),
    "no number, as YAML has it": (b"beta: .nan", ":1: beta: "),
    "a key twice": (b"seed: 1\nseed: 2", ":2: seed is given twice"),
    "a key twice, spelt in two ways": (b"train_pairs: 1\ntrain-pairs: 2", ":2: train-pairs is given twice"),
    "a merge": (b"a: &a {seed: 1}\n<<: *a", "unknown key a; "),
    "laughs": (b"seed: &a [x,x]\ntest_pairs: &b [*a,*a]\ntrain_pairs: [*b,*b]", ":1: seed takes no list"),
    "a mapping": (b"seed: {a: 1}", "seed takes no list or mapping"),
    "a list in a list": (b"output_dir: [[a]]", "output_dir takes no list or mapping"),
    "a list that holds itself": (b"seed: &a [*a]", "seed takes no list or mapping"),
    "a mapping that holds itself": (b"&a\nseed: *a", "seed takes no list or mapping"),
    "brackets in brackets": (b"seed: " + b"[" * 500, "nested too deep"),
    "blocks in blocks": (b"".join(b" " * at + b"a:\n" for at in range(300)), "unknown key a"),
    "an object of Python": (b"seed: !!python/object/apply:os.getpid []", ":1: seed takes no list"),
    "a boolean that is none": (b"overwrite: !!bool perhaps", ":1: overwrite: "),
    "a number that is none": (b"seed: !!int x", ":1: seed is x"),
    "a number that is empty": (b"seed: !!int ''", ":1: seed: "),
    "a date that is none": (b"seed: !!timestamp x", ":1: seed: "),
    "a date": (b"seed: 2024-01-01", ":1: seed: "),
    "UTF-16": ("seed: 1".encode("utf-16"), " is not UTF-8 text"),
    "a NUL": (b"seed: \0", ": not valid YAML: special characters"),
    "a NUL behind a backslash": (b'beta: 1\nsft_dataset: "a\\0b"', "sft_dataset must be a text without NUL"),
    "a surrogate": (b"seed: \xed\xa0\xbd", " is not UTF-8 text"),
    "two documents": (b"seed: 1\n---\nseed: 2", ":2: not valid YAML"),
    "an unknown key in every line": (b"".join(b"k%d: 1\n" % at for at in range(999)), ":10: unknown key k9"),
    "a word": (b"seed", " is not a mapping of option names to values"),
    "a name of nothing": (b"seed: *nobody", ":1: not valid YAML"),
    "a list": (b"- seed", " is not a mapping of option names to values"),
    "a key that is a list": (b"? [seed]\n: 1", ":1: a key has to be a single word"),
    "a tab": (b"a:\n\tseed: 1", ":2: not valid YAML"),
    "JSON that is cut": (b'{"seed": 1', ":1: not valid YAML"),
    "another kind of file": (b"\x80\x04\x95" * 99, " is not UTF-8 text"),
    "200,000 bytes": (b"#" * 200_000, " has more than 65,536 bytes"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_configuration_file(folder, case):
    data, said = FILES[case]
    (folder / "run.yaml").write_bytes(data)
    command = "make-demo" if b"beta" not in data else "train-oracle"
    given = [] if command == "make-demo" else ["--model", "m", "--dataset", "d"]
    message = assert_one_line(outcome(command, "--config", "run.yaml", "--output-dir", "out", *given))
    assert said in message
    assert len(message) < 500
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path.name),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/proc/self/mem"),
    ],
)
def test_what_is_no_configuration_file(folder, make):
    make(folder / "run.yaml")
    assert "run.yaml" in assert_one_line(outcome("make-demo", "--config", "run.yaml", "--output-dir", "out"))


@pytest.mark.parametrize(("config", "name", "kind"), NUMBERS, ids=lambda each: getattr(each, "__name__", each))
def test_no_number_is_without_a_limit(config, name, kind):
    """A seed has 64 bits, a count 32, and NaN passes no comparison."""
    for value in [nan, inf, -inf] if kind is float else [2**63, -(2**64), HUGE]:
        with pytest.raises(SepoError) as caught:
            config(**{name: value})
        assert f"{name} must be " in caught.value.message
        assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", "1" * 5000), ("seed", "nan"), ("columns", "prompt=a,prompt=b"), ("columns", "="), ("sft-dataset", "")],
)
def test_a_number_that_has_no_room_is_refused_first(folder, option, value):
    given = ["--model", "none", "--dataset", "none.jsonl", "--output-dir", "out"]
    found = outcome("train-oracle", *given, f"--{option}={value}")
    assert option.replace("-", "_") in assert_one_line(found).replace("-", "_")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("worker", ["1" * 5000 + "/1", "1/" + "9" * 5000, "²/3", "1/0", "/", "-1/2", "2/1"])
def test_a_worker_that_is_none(worker):
    given = ["--oracle", "none", "--dataset", "none.jsonl", "--output-dir", "out"]
    assert "worker must be like 3/16" in assert_one_line(outcome("score", *given, f"--worker={worker}"))
