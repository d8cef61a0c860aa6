"""Evaluations, manifests, options and surroundings in which something is wrong: read as they are, or refused in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import close_session

from tests.conftest import tiny_llama, word_rows, write_lines
from tests.faults.harness import Outcome, assert_can_go_on, assert_one_line, assert_right_or_one_line, outcome, unharmed
from tests.faults.mutations import WHOLE, mutate
from tests.test_compare import evaluation


@pytest.fixture(scope="module")
def sound(tmp_path_factory, chat_folder, chatml):
    """Two models, a data set, an evaluation of them, and one for `sepo compare`."""
    root = tmp_path_factory.mktemp("sound")
    shutil.copytree(chat_folder, root / "one")
    tiny_llama(len(chatml), seed=1).save_pretrained(root / "two")
    chatml.save_pretrained(root / "two")
    write_lines(root / "pairs.jsonl", word_rows(2))
    evaluation(root / "compare.json", {0: (1.0, 0.0), 8: (1.5, 0.3), 16: (2.0, 0.5)})
    assert outcome(*evaluated(root, root / "report.json")).code == 0
    return root


def evaluated(root, output, *more):
    models = ("--model", f"a={root / 'one'}", "--model", f"b={root / 'two'}")
    return ("evaluate", *models, "--dataset", root / "pairs.jsonl", "--samples", 0, "--output", output, *more)


@pytest.mark.parametrize("number", range(20))
def test_one_value_of_a_run_to_compare(sound, tmp_path, number):
    bad = tmp_path / "bad.json"
    shutil.copy(sound / "compare.json", bad)
    print(mutate(bad, number))
    runs = ("--run", f"good={sound / 'compare.json'}", "--run", f"bad={bad}")
    with unharmed(bad, sound):
        found = outcome("compare", *runs, "--output-dir", tmp_path / "out")
    assert_right_or_one_line(found)
    if found.code:
        assert_can_go_on(tmp_path / "out")


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
def test_a_run_to_compare_that_is_something_else(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    assert_one_line(outcome("compare", "--run", f"bad={tmp_path / 'bad.json'}", "--output-dir", tmp_path / "out"))
    assert_can_go_on(tmp_path / "out")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_has_no_end_is_no_report(sound, tmp_path, make):
    make(tmp_path / "bad.json")
    for command in (
        ("compare", "--run", f"bad={tmp_path / 'bad.json'}", "--output-dir", tmp_path / "out"),
        evaluated(sound, tmp_path / "bad.json"),
    ):
        assert "no evaluation" in assert_one_line(outcome(*command))


@pytest.mark.parametrize("number", range(12))
def test_one_value_of_an_evaluation_that_is_there_already(sound, tmp_path, number):
    shutil.copy(sound / "report.json", tmp_path / "report.json")
    shutil.copy(sound / "report.pairs.parquet", tmp_path / "report.pairs.parquet")
    print(mutate(tmp_path / "report.json", number))
    with unharmed(sound):
        assert_right_or_one_line(outcome(*evaluated(sound, tmp_path / "report.json")))


@pytest.mark.parametrize("number", range(12))
def test_one_value_of_a_manifest(world, tmp_path, number):
    shutil.copytree(world / "scores", tmp_path / "scores")
    name = "oracle" if number % 2 else "scores"
    shutil.copytree(world / name, tmp_path / "bad")
    print(mutate(tmp_path / "bad/manifest.json", number))
    source = ("--oracle", tmp_path / "bad") if number % 2 else ("--scores", tmp_path / "bad", "--max-length", 2)
    command = ("score", *source, "--dataset", world / "pairs.jsonl") if number % 2 else ("train-policy", *source)
    more = ("--max-length", 128) if number % 2 else ("--model", world / "oracle/reference")
    with unharmed(tmp_path / "bad"):
        found = outcome(*command, *more, "--output-dir", tmp_path / "out")
    assert_right_or_one_line(found)
    if found.code:
        assert_can_go_on(tmp_path / "out")


NAMES = ["$x\\y", "a" * 300, "", "\udcff", "\x1b[2J", "a\nb", "=", "s3://key:secret@b/c", "~nobody/x", "/dev/null", "/"]  # fmt: skip
OPTIONS = {
    "validate": ("--dataset", "--model", "--columns"),
    "evaluate": ("--dataset", "--model", "--reference-model", "--output"),
    "cut-model": ("--model", "--output-dir"),
    "compare": ("--run", "--against", "--output-dir"),
}


EVERY_OPTION = [(command, option) for command, options in OPTIONS.items() for option in options]


@pytest.mark.parametrize(
    ("command", "option", "name"),
    # Every second name for an option, the others for the next one.
    [(*option, name) for number, option in enumerate(EVERY_OPTION) for name in NAMES[number % 2 :: 2]],
    ids=ascii,
)
def test_an_odd_name_as_an_option(sound, tmp_path, monkeypatch, command, option, name):
    monkeypatch.chdir(tmp_path)
    given = {
        "validate": {"--dataset": sound / "pairs.jsonl", "--model": sound / "one"},
        "evaluate": {"--dataset": sound / "pairs.jsonl", "--model": sound / "one", "--samples": 0},
        "cut-model": {"--model": sound / "one", "--layers": 1, "--output-dir": tmp_path / "out"},
        "compare": {"--run": f"a={sound / 'compare.json'}", "--output-dir": tmp_path / "out"},
    }[command]
    with unharmed(sound):
        found = outcome(command, *(part for each in (given | {option: name}).items() for part in each))
    assert_right_or_one_line(found)
    assert "secret" not in found.out + found.err
    for path in tmp_path.rglob("*.json"):
        assert "secret" not in path.read_text(), path


SURROUNDINGS = [
    {"SEPO_CACHE": "{file}"},
    {"SEPO_CACHE": "{file}/below"},
    {"SEPO_CACHE": "\udcff"},
    {"SEPO_CACHE": "a" * 5000},
    {"HF_HOME": "{file}"},
    {"RANK": "junk"},
    {"RANK": "-7"},
    {"LOCAL_RANK": "junk"},
    {"WORLD_SIZE": "junk"},
    {"WORLD_SIZE": "0"},
    {"WORLD_SIZE": "2"},
    {"WORLD_SIZE": ""},
    {"WORLD_SIZE": "\u0662"},
    {"LOCAL_WORLD_SIZE": "0"},
    {"COLUMNS": "0"},
    {"COLUMNS": "-5", "LINES": "x"},
    {"TERM": "no-such-terminal", "FORCE_COLOR": "1"},
    {"TMPDIR": "/nowhere"},
    {"HOME": "/nowhere"},
    {"XDG_CACHE_HOME": "{file}"},
    {"MPLCONFIGDIR": "{file}"},
    {"ACCELERATE_USE_DEEPSPEED": "true"},
]


@pytest.mark.parametrize("variables", SURROUNDINGS, ids=lambda variables: "-".join(variables))
def test_odd_surroundings(sound, tmp_path, tmp_path_factory, monkeypatch, variables):
    (tmp_path / "file").write_text("")
    # Where a name is taken for one from here, such as that of a cache.
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    environment = {name: value.format(file=tmp_path / "file") for name, value in variables.items()}
    with unharmed(sound, tmp_path):
        command = ("validate", "--model", sound / "one", "--dataset", sound / "pairs.jsonl")
        found = outcome(*command, environment=environment)
    assert_right_or_one_line(found)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OMP_NUM_THREADS": "abc", "MASTER_PORT": "junk", "WORLD_SIZE": "1", "RANK": "0", "CUDA_VISIBLE_DEVICES": "junk", "LANG": "C", "LC_ALL": "junk.junk", "PYTHONIOENCODING": "ascii"}, ""),
        ({"HF_ENDPOINT": "http://["}, "huggingface_hub does not load: Invalid IPv6 URL"),
        ({"HF_HUB_ETAG_TIMEOUT": "x"}, "huggingface_hub does not load: invalid literal"),
    ],
)  # fmt: skip
def test_surroundings_that_a_process_reads_when_it_starts(sound, variables, said):
    command = [sys.executable, "-m", "sepo_cli", "validate"]
    command += ["--model", sound / "one", "--dataset", sound / "pairs.jsonl"]
    environment = os.environ | variables
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert_right_or_one_line(Outcome(found.returncode, found.stdout, found.stderr))
    assert said in found.stderr


@pytest.mark.parametrize(
    ("variable", "proxy", "command", "said"),
    [
        ("HTTP_PROXY", "http://a:b:c", ("validate", "--model", "x/y"), "there is no folder x/y, and the hub did not give it: Invalid port"),
        ("HTTPS_PROXY", "http://a:b:c", ("validate", "--dataset", "x/y"), "x/y cannot be loaded from the hub: Invalid port"),
        ("ALL_PROXY", "foo://x", ("train-oracle", "--output-dir", "out", "--push-to-hub", "x/y"), "push_to_hub x/y: the hub does not let you in: Unknown scheme"),
    ],
)  # fmt: skip
def test_a_proxy_that_is_none(sound, monkeypatch, tmp_path, variable, proxy, command, said):
    monkeypatch.chdir(tmp_path)
    for switch in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(switch, False)
    given = {"--model": sound / "one", "--dataset": sound / "pairs.jsonl"}
    more = [part for option, value in given.items() if option not in command for part in (option, value)]
    close_session()
    found = outcome(*command, *more, environment={"HF_TOKEN": "x", variable: proxy})
    close_session()
    assert said in assert_one_line(found)


def test_a_figure_that_is_no_number_is_refused(sound, tmp_path):
    report = json.loads((sound / "compare.json").read_text())
    report["models"]["16"]["figures"]["true_reward"]["value"] = float("nan")
    (tmp_path / "bad.json").write_text(json.dumps(report))
    message = assert_one_line(
        outcome("compare", "--run", f"a={tmp_path / 'bad.json'}", "--output-dir", tmp_path / "out")
    )
    assert str(tmp_path / "bad.json") in message
