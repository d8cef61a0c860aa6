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

from stages import evaluate, generate, pair, score
from stages.configs import EvaluateConfig, GenerateConfig, PairConfig, ScoreConfig
from stages.devices.processes import join_processes
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store.answers import open_answers
from tests import lives
from tests.conftest import tiny_llama, word_rows, write_lines
from tests.training.fits import Killed, KilledAfter
from tests.world import FAST, run_policy, run_score


def launch(*arguments):
    """Two processes of `sepo` under torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sepo_cli"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=180, check=False
    )


def fork(folder, *arguments, module="sepo_cli"):
    """Two processes of `sepo` in the environment that torchrun makes: their exit codes and what they said."""
    ends = [run.end() for run in lives.run_module(module, *arguments, folder=folder, processes=2)]
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
    """As they are given on a command line."""
    found = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "models":
            found += [f"--model={model}" for model in value]
        elif name == "answers":
            found.append(value)
        else:
            found.append(flag if value is True else f"{flag}={value}")
    return found


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


TOGETHER = {
    "score": (score, ScoreConfig), "evaluate": (evaluate, EvaluateConfig), "greedy": (generate, GenerateConfig),
    "sampled": (generate, GenerateConfig), "pair": (pair, PairConfig),
}  # fmt: skip
"""what one process does, and then two that hold every model together: by its name, the stage and its configuration"""


@pytest.fixture(scope="module")
def together(world, chatml, tmp_path_factory):
    """A folder with ONE, which one process made of each of `TOGETHER`, and TWO, which two made; and what these said.

    Of the scores a second worker of one process made its half; the sampled answers, one process had begun.
    """
    root = tmp_path_factory.mktemp("together")
    save_brief_model(root / "brief", chatml)
    settings, commands = settings_of(world, root), []
    with pytest.MonkeyPatch.context() as patch:
        for name, (stage, config) in TOGETHER.items():
            given = settings[name]
            patch.setenv("SEPO_CACHE", str(root / "cache-one"))
            stage.run(config(**given, **written_to(root / "one", name)), Quiet())
            there = written_to(root / "two", name)
            if name == "score":
                stage.run(config(**given, **there, worker="2/2"), Quiet())
                given = {**given, "worker": "1/2"}
            if name == "sampled":
                with pytest.raises(Killed):
                    stage.run(config(**given, **there), KilledAfter(6))
            more = {**given, **there, "device_map": "tensor-parallel"}
            commands.append([stage.STAGE, *options(more)])
        (root / "commands.json").write_text(json.dumps(commands))
        patch.setenv("SEPO_CACHE", str(root / "cache-two"))
        codes, said = fork(root, root, module="tests.together")
    assert codes == [0, 0], said
    return root, said


def save_brief_model(folder, chatml):
    """A tiny model that ends its answers soon, each at another step."""
    model = tiny_llama(len(chatml), tie_word_embeddings=True)
    with torch.no_grad():
        model.get_output_embeddings().weight[chatml.eos_token_id] *= 4
    model.save_pretrained(folder)
    chatml.save_pretrained(folder)


def written_to(folder, name):
    folder.mkdir(exist_ok=True)
    file = {"evaluate": "evaluation.json", "pair": "pairs.jsonl"}.get(name)
    return {"output": str(folder / file)} if file else {"output_dir": str(folder / name)}


def test_processes_that_hold_every_model_together_write_what_one_does(together):
    """The first one alone; of the second there is the claim of a folder, which all write alike."""
    root, said = together
    one, two = ({str(path.relative_to(root / name)) for path in (root / name).rglob("*")} for name in ("one", "two"))
    assert two == one
    assert json.loads((root / "written.json").read_text()) == ["manifest.unfinished.json"]
    assert said.count("GB in each process") == 4 + 2 + 1 + 1 + 2, "by the first process alone"


def test_processes_that_hold_the_models_together_score_as_one_worker(together):
    """The second of two workers is one process. Everybody's noise check reads both models once more."""
    root, said = together
    assert "noise check, 16 pairs" in said
    one, two = (root / name / "score" for name in ("one", "two"))
    mine, other = "scores-00000.parquet", "scores-00001.parquet"
    assert (two / other).read_bytes() == (one / other).read_bytes()
    assert (two / mine).read_bytes() != (one / mine).read_bytes(), "its sums were rounded in another order"
    assert_same_columns(two / mine, one / mine)
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (two, one))
    differing = {name for name in theirs if ours[name] != theirs[name]}
    assert differing <= {"made_by", "results", "shards", "warnings", "checksum"}, differing
    assert ours["results"]["noise"]["mean"] < 1e-5


def test_processes_that_hold_the_models_together_evaluate_as_one_does(together):
    """Log-probs, margins and KL to rounding, accuracies, answers and their figures exactly."""
    root, _ = together
    for table, columns in (("pairs", {"chosen_logp", "rejected_kl"}), ("samples", {"kl", "response"})):
        ours, theirs = (root / name / f"evaluation.{table}.parquet" for name in ("two", "one"))
        assert columns <= {*pq.read_schema(theirs).names}
        assert_same_columns(ours, theirs, tolerance=1e-4)
        assert ours.read_bytes() != theirs.read_bytes(), "its sums were rounded in another order"
    ours, theirs = (json.loads((root / name / "evaluation.json").read_text()) for name in ("two", "one"))
    assert ours["fingerprint"] == theirs["fingerprint"]
    for model, found in theirs["models"].items():
        for name, figure in found["figures"].items():
            exact = name.startswith(("accuracy", "sample_tokens", "sample_ended"))
            expected = figure["value"] if exact else pytest.approx(figure["value"], abs=1e-5)
            assert ours["models"][model]["figures"][name]["value"] == expected, (model, name)


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_processes_that_hold_the_model_together_answer_as_one_does(together, name):
    """Token for token, however the second one would draw; what one process had answered is not asked again."""
    root, _ = together
    ours, theirs = ([*open_answers(str(root / each / name)).answers("m")] for each in ("two", "one"))
    assert len(ours) == 4 * 2 * (1 if name == "greedy" else 2)
    bits = []
    for mine, other in zip(ours, theirs, strict=True):
        assert mine[:8] == other[:8]
        np.testing.assert_array_equal(mine.answer_ids, other.answer_ids)
        np.testing.assert_allclose(mine.logps, other.logps, atol=1e-5)
        bits.append(np.array_equal(mine.logps, other.logps))
    assert not all(bits), "its sums were rounded in another order"
    if name == "sampled":
        assert sum(bits) >= 4, "of the batches that were whole"
    assert len({len(answer.answer_ids) for answer in ours}) > 1, "rows end at different steps"


def test_processes_that_hold_the_oracle_together_pair_as_one_does(together):
    root, _ = together
    ours, theirs = ((root / name / "pairs.jsonl").read_text().splitlines() for name in ("two", "one"))
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
        assert mine["chosen"] == other["chosen"]
        assert mine["chosen_reward"] == pytest.approx(other["chosen_reward"], abs=1e-5)


@pytest.mark.parametrize("name", TOGETHER)
def test_one_process_cannot_hold_a_model_together(together, world, tmp_path, name):
    stage, config = TOGETHER[name]
    given = {**settings_of(world, together[0])[name], **written_to(tmp_path, name), "device_map": "tensor-parallel"}
    with pytest.raises(SepoError, match="divides a model among several processes, but one was started"):
        stage.run(config(**given), Quiet())
    assert not [*tmp_path.iterdir()]


def settings_of(world, root):
    """Of each of `TOGETHER`, in several batches and shards; the answers that are ranked are those of one process."""
    models = {f"{name}_model": str(world / "oracle" / name) for name in ("oracle", "reference")}
    scored = {"dataset": str(write_lines(root / "p.jsonl", word_rows(20))), "shard_size": 5, "center": True}
    held_out = {"dataset": str(write_lines(root / "held-out.jsonl", word_rows(6, seed=9))), "samples": 4}
    held_out |= {"models": (f"oracle={models['oracle_model']}",), "reference_model": models["reference_model"]}
    turns = [["what is " + "the fox " * n, "and why?"] for n in range(4)]
    asked = {"models": (f"m={root / 'brief'}",), "max_new_tokens": 8, "max_tokens_per_device": 120, "shard_size": 2}
    asked["prompts"] = str(write_lines(root / "prompts.jsonl", [{"turns": each} for each in turns]))
    return {
        "score": {**models, **scored, "max_length": 128},
        "evaluate": {**held_out, "max_new_tokens": 6, "max_length": 128, "max_tokens_per_device": 60},
        "greedy": {**asked, "temperature": 0.0},
        "sampled": {**asked, "samples": 2, "top_p": 0.95},
        "pair": {**models, "answers": str(root / "one/sampled"), "keep_cut": True},
    }


def assert_same_columns(ours, theirs, tolerance=1e-5):
    ours, theirs = (pq.read_table(path).to_pydict() for path in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, column in theirs.items():
        for row, expected in zip(ours[name], column, strict=True):
            assert row == (expected if isinstance(expected, str) else pytest.approx(expected, abs=tolerance)), name


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
