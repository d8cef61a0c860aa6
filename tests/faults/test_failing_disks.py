"""Disks that are full, files that may not grow, and folders that may not be written: one line, and nothing half-written."""

import re
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from transformers import LlamaConfig

from tests.conftest import word_rows, write_lines
from tests.faults.harness import assert_one_line, outcome
from tests.test_compare import evaluation
from tests.tokenizers_zoo import FAMILIES, dress

TRAINING = ("--batch-size", 4, "--max-length", 64, "--save-steps", 1)


@pytest.fixture(scope="module")
def commands(world, tmp_path_factory):
    """Every command that writes, on inputs as small as they can be; the output is still to be named."""
    root = tmp_path_factory.mktemp("inputs")
    write_lines(root / "pairs.jsonl", word_rows(8))
    evaluation(root / "compare.json", {0: (1.0, 0.0), 8: (1.5, 0.3)})
    assert outcome("make-demo", "--output-dir", root / "demo", "--train-pairs", 8, "--test-pairs", 8).code == 0
    models = ("--oracle-model", root / "demo/model", "--reference-model", root / "demo/model")
    data = ("--dataset", root / "demo/train.jsonl")
    assert outcome("score", *models, *data, "--output-dir", root / "scores").code == 0
    tokenizer = dress(FAMILIES["metaspace_first"](), "bos")
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(root / "other")
    tokenizer.save_pretrained(root / "other")
    reference, policy = world / "oracle/reference", world / "policy"
    pairs = ("--dataset", root / "pairs.jsonl")
    return {
        "make-demo": ("make-demo", "--train-pairs", 8, "--test-pairs", 8),
        "cut-model": ("cut-model", "--model", policy, "--layers", 1),
        "extrapolate": ("extrapolate", "--model", policy, "--reference-model", reference, "--scale", 2),
        "train-oracle": ("train-oracle", "--model", reference, *pairs, *TRAINING, "--sft-batch-size", 4),
        "score": ("score", "--oracle", world / "oracle", *pairs, "--max-length", 64),
        "project-scores": ("project-scores", "--scores", world / "scores", "--model", root / "other", "--dataset", world / "pairs.jsonl"),
        "denoise": ("denoise", "--scores", world / "scores"),
        "train-policy": ("train-policy", "--model", reference, "--scores", world / "scores", *TRAINING),
        "evaluate": ("evaluate", "--model", policy, "--reference-model", reference, *pairs, "--samples", 2, "--max-new-tokens", 4),
        "compare": ("compare", "--run", f"a={root / 'compare.json'}"),
        "demo-report": (
            "demo-report", "--demo", root / "demo", "--scores", root / "scores", "--samples", 2,
            "--model", f"a={root / 'demo/model'}", "--reference", root / "demo/model",
        ),
    }  # fmt: skip


NAMES = [
    "make-demo", "cut-model", "extrapolate", "train-oracle", "score", "project-scores", "denoise", "train-policy", "evaluate", "compare", "demo-report",
]  # fmt: skip

SIZES = {
    "train-oracle": (4, 40, 400),
    "train-policy": (4, 40, 400),
    "cut-model": (4, 40),
    "extrapolate": (4, 40),
    "make-demo": (4, 40),
}
"""KiB of disks on which a command fails, in the end at what is largest"""
LARGEST = {
    "train-oracle": 30_000,
    "train-policy": 30_000,
    "score": 3000,
    "make-demo": 30_000,
    "cut-model": 30_000,
    "extrapolate": 30_000,
}
"""bytes of a file"""
FULL = re.compile("cannot write .*: .*(No space left|File too large|the disk takes no more)")


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def with_output(command, folder):
    option = "--output" if command[0] == "evaluate" else "--output-dir"
    return (*command, option, folder / "out.json" if command[0] == "evaluate" else folder / "out")


@contextmanager
def mounted(folder, options):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def limited_files(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_then_larger_then_read_only(commands, tmp_path, name):
    """Every failed run can be gone on with, and a finished one is read without writing."""
    with mounted(tmp_path / "disk", "size=4k") as disk:
        command = with_output(commands[name], disk)
        for size in SIZES.get(name, (4, 12)):
            remount(disk, f"size={size}k")
            assert FULL.search(assert_one_line(outcome(*command)))
            assert not list(disk.rglob("*.tmp"))
        remount(disk, "size=8m")
        found = outcome(*command)
        assert found.code == 0, found
        remount(disk, "ro")
        found = outcome(*command)
        assert found.code == 0, found
        assert "nothing to do" in found.out, found


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_grow(commands, tmp_path, name):
    with limited_files(LARGEST.get(name, 600)):
        assert FULL.search(assert_one_line(outcome(*with_output(commands[name], tmp_path))))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_may_not_be_written(commands, tmp_path, name):
    with mounted(tmp_path / "disk", "ro") as disk:
        assert "Read-only file system" in assert_one_line(outcome(*with_output(commands[name], disk)))
