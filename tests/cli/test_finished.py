"""A command with nothing to do answers at once, and only as long as nothing that it took or made is another."""

import os
import shutil
import subprocess
import sys

import pytest

AGAIN = """
import sys
from sepo_cli.main import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["sepo", *line.split("\\t")]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, line
    print("heavy:", sorted({"torch", "transformers", "pyarrow"} & set(sys.modules)))
"""


@pytest.fixture
def commands(tmp_path, chat_folder):
    """One call of every command that keeps what it makes in a folder, in an order in which they can run."""
    demo, oracle, scores, policy = (tmp_path / name for name in ("demo", "oracle", "scores", "policy"))
    step = "--max-steps 1 --batch-size 8"
    data, report = f"--dataset {demo}/train.jsonl", f"--demo {demo} --samples 4 --model 1={policy}"
    lines = f"""
        make-demo --train-pairs 24 --test-pairs 8 --output-dir {demo}
        train-oracle --model {demo}/model {data} {step} --sft-epochs 0 --lora-rank 2 --output-dir {oracle}
        score --oracle {oracle} {data} --output-dir {scores}
        train-policy --model {demo}/model --scores {scores} {step} --output-dir {policy}
        project-scores --scores {scores} --model {chat_folder} {data} --output-dir {tmp_path}/projected
        denoise --scores {scores} --output-dir {tmp_path}/denoised
        cut-model --model {policy} --layers 1 --output-dir {tmp_path}/cut
        extrapolate --model {policy} --reference-model {demo}/model --scale 2 --output-dir {tmp_path}/further
        demo-report {report} --scores {scores} --reference {demo}/model --output-dir {tmp_path}/report
        evaluate {report} --reference-model {demo}/model --output {tmp_path}/e.json
        compare --run sepo={tmp_path}/e.json --output-dir {tmp_path}/table
    """
    return {line.split()[0]: line.split() for line in lines.strip().splitlines()}


def test_nothing_heavy_is_loaded_where_there_is_nothing_to_do(sepo, commands, tmp_path):
    for command in commands.values():
        code, _, err = sepo(*command)
        assert code == 0, err
    del commands["evaluate"]
    lines = "\n".join("\t".join(command) for command in commands.values())
    done = subprocess.run([sys.executable, "-c", AGAIN], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said[::3]] == ["nothing to do"] * len(commands), said
    assert {line for line in said if line.startswith("heavy")} == {"heavy: []"}
    assert f"  already finished  {tmp_path}/report/report.md" in said


@pytest.mark.parametrize(
    ("changed", "ends"),
    [
        ("train.jsonl", "the dataset differs"),
        ("scores/scores-00000.parquet", "scores in "),
        ("oracle/oracle/model.safetensors", "is not what was written there"),
        ("oracle/reference/new.safetensors", "error: cannot load"),
    ],
)
def test_a_file_that_is_another_one_is_looked_at(sepo, world, tmp_path, changed, ends):
    """Also where its size and the time of its change are as they were."""
    shutil.copytree(world / "oracle", tmp_path / "oracle")
    shutil.copy(world / "pairs.jsonl", tmp_path / "train.jsonl")
    command = ["score", "--oracle", tmp_path / "oracle", "--dataset", tmp_path / "train.jsonl", "--max-length", 128]
    command += ["--output-dir", tmp_path / "scores"]
    assert sepo(*command)[0] == 0
    assert sepo(*command)[1].startswith("nothing to do")
    path = tmp_path / changed
    data, state = (path.read_bytes(), path.stat()) if path.exists() else (b"{}x", None)
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    if state:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    _, out, err = sepo(*command)
    assert ends in out + err
    assert "nothing to do" not in out
