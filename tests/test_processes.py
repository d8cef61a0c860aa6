"""Two processes on this machine, started as a user starts them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from stages import evaluate
from stages.configs import EvaluateConfig
from stages.devices.processes import join_processes
from stages.errors import SepoError
from stages.reporting import Quiet
from tests import lives
from tests.conftest import word_rows, write_lines
from tests.world import FAST, run_policy, run_score


def launch(*arguments):
    """Two processes of `sepo` under torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sepo_cli"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=180, check=False
    )


def fork(folder, *arguments):
    """Two processes of `sepo` in the environment that torchrun makes: their exit codes and what they said."""
    ends = [run.end() for run in lives.run_module("sepo_cli", *arguments, folder=folder, processes=2)]
    return [code for code, _ in ends], "".join(said for _, said in ends)


def test_two_processes_train_as_one_does(world, chat_folder, tmp_path):
    """Odd steps, small micro-batches, checkpoints, and a last step with one pair for two processes: 13, 13, 13, 1.

    The scores' reference is another model than the policy's, which each reads for half of the pairs.
    """
    odd = {"objective": "dpo", "batch_size": 13, "max_tokens_per_device": 100, "save_steps": 2}
    run_policy(world, chat_folder, output=tmp_path / "one", **odd)
    arguments = ["--model", chat_folder, "--scores", world / "scores", "--output-dir", tmp_path / "two"]
    codes, said = fork(tmp_path, "train-policy", *arguments, *options({**FAST, **odd}))
    assert codes == [0, 0], said
    assert_same_weights(tmp_path / "two", tmp_path / "one")
    lines = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("one", "two")]
    assert lines[0] == lines[1] == 4
    kept = [(tmp_path / name / "reference-logps.parquet").read_bytes() for name in ("one", "two")]
    assert kept[0] == kept[1]


def test_two_processes_make_the_oracle_of_one(world, chat_folder, tmp_path, monkeypatch):
    """Each reads half of the pairs under the reference, and half of the held-out ones under the oracle."""
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    settings = {**FAST, "sft_batch_size": 8, "sft_learning_rate": 3e-3, "eval_fraction": 0.2, "beta": 0.5}
    settings |= {"max_tokens_per_device": 128, "eval_steps": 2}
    arguments = ["--model", chat_folder, "--dataset", world / "pairs.jsonl", "--output-dir", tmp_path / "oracle"]
    codes, said = fork(tmp_path, "train-oracle", *arguments, *options(settings))
    assert codes == [0, 0], said
    for name in ("reference", "oracle"):
        assert_same_weights(tmp_path / "oracle" / name, world / "oracle" / name, tolerance=2e-4)
    ours, theirs = (pq.read_table(root / "oracle/reference-logps.parquet").to_pydict() for root in (tmp_path, world))
    assert ours["content_hash"] == theirs["content_hash"]
    for name in ("chosen_logps", "rejected_logps"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-3)
    ours, theirs = (json.loads((root / "oracle/manifest.json").read_text())["results"] for root in (tmp_path, world))
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["reward_margin"] == pytest.approx(theirs["reward_margin"], abs=2e-3)
    last = json.loads((tmp_path / "oracle/metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval_accuracy"] == pytest.approx(ours["accuracy"]["value"])
    # The second process read what the first one had tokenised.
    [entry] = (tmp_path / "cache").glob("*-*")
    assert not entry.name.startswith(".")


def options(settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def assert_same_weights(ours, theirs, tolerance=1e-5):
    mine, other = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert mine.keys() == other.keys()
    for name in other:
        torch.testing.assert_close(mine[name], other[name], atol=tolerance, rtol=1e-4)


def score_arguments(world, output):
    arguments = ["--oracle", world / "oracle", "--dataset", world / "pairs.jsonl", "--output-dir", output]
    return ["score", *arguments, "--shard-size", "16", "--max-length", "128"]


def test_processes_that_do_not_know_of_each_other_are_refused(world, tmp_path, monkeypatch):
    """As where a launcher starts two on a machine in which accelerate finds one GPU, or none."""
    join_processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SepoError, match="2 processes were started, but accelerate uses 1"):
        run_score(world, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_host_that_cannot_be_found_is_named_before_anybody_waits_for_it(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "junk..x", "MASTER_PORT": "29511"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SepoError, match=r"MASTER_ADDR must be a host that can be found from here, got 'junk..x'"):
        join_processes()


def test_restarts_that_would_fail_are_refused_before_there_is_one(monkeypatch):
    """torch keeps the addresses of dead processes, unless it is told not to."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert join_processes().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SepoError, match="--max-restarts 3 would fail") as caught:
        join_processes()
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caught.value.hint
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": "False", "TORCHELASTIC_MAX_RESTARTS": "0"}.items():
        monkeypatch.setenv(name, value)
        with pytest.raises(SepoError, match="2 processes were started, but accelerate uses 1"):
            join_processes()
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")


def test_fsdp_on_a_machine_without_a_gpu_is_refused(world, tmp_path, monkeypatch):
    """accelerate would train with whole models there, and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    codes, said = fork(tmp_path, *score_arguments(world, tmp_path / "out"))
    assert codes == [1, 1]
    assert "error: accelerate was told to use FSDP version 2, but uses MULTI_CPU on cpu" in said
    assert not (tmp_path / "out").exists()


def test_two_processes_score_as_one_does(world, tmp_path):
    done = launch(*score_arguments(world, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert f"scores in {tmp_path}/out" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (world / "scores").iterdir()}
    for shard in (world / "scores").glob("*.parquet"):
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


def test_processes_that_hold_the_models_together_are_one_worker(world, tmp_path):
    """The second of two workers is one process. Everybody's noise check reads both models once more."""
    models = {f"{name}_model": str(world / "oracle" / name) for name in ("oracle", "reference")}
    models |= {"dataset": write_lines(tmp_path / "p.jsonl", word_rows(20)), "shard_size": 10, "center": True}
    for output, worker in (("one", None), ("two", "2/2")):
        run_score(world, output=tmp_path / output, oracle=None, noise_check=0.01, worker=worker, **models)
    arguments = options({**models, "output_dir": tmp_path / "two", "max_length": 128})
    arguments = [each for each in arguments if each != "--center=True"] + ["--center", "--worker=1/2"]
    codes, said = fork(tmp_path, "score", *arguments, "--device-map=tensor-parallel")
    assert codes == [0, 0], said
    assert said.count("GB in each process") == 4, "by the first process alone"
    assert "noise check, 16 pairs" in said
    one, two = (tmp_path / name for name in ("one", "two"))
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    mine, other = "scores-00000.parquet", "scores-00001.parquet"
    assert (two / other).read_bytes() == (one / other).read_bytes()
    assert (two / mine).read_bytes() != (one / mine).read_bytes(), "its sums were rounded in another order"
    ours, theirs = (pq.read_table(folder / mine).to_pydict() for folder in (two, one))
    assert ours.keys() == theirs.keys()
    for name, column in theirs.items():
        for row, expected in zip(ours[name], column, strict=True):
            assert row == pytest.approx(expected, abs=1e-5), name
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (two, one))
    differing = {name for name in theirs if ours[name] != theirs[name]}
    assert differing <= {"made_by", "results", "shards", "warnings", "checksum"}, differing
    assert ours["results"]["noise"]["mean"] < 1e-5


def test_two_processes_evaluate_as_one_does(world, tmp_path, monkeypatch):
    """Log-probs, KL and samples in several batches each; of the policy all is measured already, of the oracle nothing."""
    write_lines(tmp_path / "pairs.jsonl", word_rows(9, seed=9))
    settings = {"dataset": str(tmp_path / "pairs.jsonl"), "reference_model": str(world / "oracle/reference")}
    settings |= {"samples": 7, "max_new_tokens": 6, "max_length": 128, "max_tokens_per_device": 20}
    models = [f"policy={world / 'policy'}", f"oracle={world / 'oracle/oracle'}"]
    for name, given in (("one", models), ("policy", models[:1])):
        monkeypatch.setenv("SEPO_CACHE", str(tmp_path / f"cache-{name}"))
        output = str(tmp_path / f"{name}.json")
        evaluate.run(EvaluateConfig(models=tuple(given), output=output, **settings), Quiet())
    arguments = [*options(settings), *(f"--model={model}" for model in models), "--output", tmp_path / "two.json"]
    codes, said = fork(tmp_path, "evaluate", *arguments)
    assert codes == [0, 0], said
    assert "oracle: samples: 4/4 responses" in said
    assert "policy: log-probs" not in said
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    for part in ("models", "comparisons", "warnings", "fingerprint"):
        assert ours[part] == theirs[part]
    for table in ("pairs", "samples"):
        files = [pq.read_table(tmp_path / f"{name}.{table}.parquet") for name in ("one", "two")]
        assert files[0].equals(files[1])


def namespaces_can_be_made():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "sepo-probe"], capture_output=True, check=False).returncode == 0
    return made and subprocess.run(["ip", "netns", "delete", "sepo-probe"], check=False).returncode == 0


@pytest.fixture
def hosts():
    """Two network namespaces joined by a cable: as far as the network goes, two hosts with a shared disk."""
    if not namespaces_can_be_made():
        pytest.skip("needs root and the ip command")
    names = ["sepo-a", "sepo-b"]
    lines = [f"netns add {name}" for name in names]
    lines += ["link add sepo-va netns sepo-a type veth peer name sepo-vb netns sepo-b"]
    for number, (name, cable) in enumerate(zip(names, ("sepo-va", "sepo-vb"), strict=True), 1):
        lines += [f"-n {name} addr add 10.77.0.{number}/24 dev {cable}", f"-n {name} link set {cable} up"]
        lines += [f"-n {name} link set lo up"]
    try:
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True)
        yield list(zip(names, ("sepo-va", "sepo-vb"), strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def test_two_hosts_train_as_one_does(world, chat_folder, tmp_path, hosts):
    """One process on each, in the environment that a launcher makes there."""
    arguments = ["--model", chat_folder, "--scores", world / "scores", "--output-dir", tmp_path / "policy"]
    command = ("sepo_cli", "train-policy", *arguments, *options(FAST))
    for run in lives.run_on_hosts(hosts, *command, folder=tmp_path):
        code, said = run.end()
        assert code == 0, said
    assert_same_weights(tmp_path / "policy", world / "policy")
