"""What a step is does not depend on how it is computed: budget of tokens, order of pairs, processes, DDP or FSDP2."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from stages.devices.engines import refuse_undividable
from stages.devices.processes import join_processes
from stages.errors import SepoError
from stages.logprobs.logps import Forward
from stages.logprobs.packing import unique_tokens
from stages.training.schedule import deal
from stages.training.step import Engine, shares
from tests import lives
from tests.conftest import masked, token_pair
from tests.engines import (
    ADAPTERS,
    CASES,
    DIVIDED,
    HALF,
    IN_TWO,
    KILLED,
    PAIRS,
    UNTIED,
    another,
    chosen,
    distances,
    kept_twice,
    logps_of,
    name_of,
    packed,
    padded,
    train,
    train_adapter,
)
from tests.logprobs.zoo import VOCABULARY

KEY_TOKENS = CASES[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, every step in one micro-batch."""
    folder = tmp_path_factory.mktemp("alone")
    whole_steps = {"max_tokens_per_device": 100_000}
    found = {case: train(case, folder / name_of("one", case), **whole_steps) for case in [*CASES, UNTIED]}
    assert all(run["micro_batches"] == [1, 1, 1] for run in found.values())
    return found


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """What the runs of `tests.engines` leave there."""
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def together(shared_folder):
    """A function from the name of a run of `tests.engines` to what came out in each of two processes."""
    folder = shared_folder
    runs = lives.run_module("tests.engines", folder, folder=folder, processes=2)
    for run in runs:
        code, said = run.end()
        assert code == 0, said
    return lambda name: [torch.load(folder / f"{name}.{number}.pt") for number in range(2)]


def assert_same_steps(ours, theirs):
    """Every step's gradient, and what follows from it.

    Not of every single weight: where a gradient is 0 but for rounding, Adam makes a step of full size of that.
    """
    for mine, other in zip(ours["gradients"], theirs["gradients"], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5 * other.abs().max().item(), rtol=1e-5)
    # A head that is the embedding too may be there once.
    differences = [(theirs["weights"][name] - weights).abs().flatten() for name, weights in ours["weights"].items()]
    assert (torch.cat(differences) > 1e-5).float().mean() < 0.005
    for mine, other in zip(ours["metrics"], theirs["metrics"], strict=True):
        numbers = [{name: value for name, value in line.items() if name != "phase"} for line in (mine, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of("one", case))
def test_the_budget_does_not_change_a_gradient(tmp_path, case):
    """All pairs of a step are equally long, so that the budget is a number of pairs."""
    row = {"packed": 3 + 2 * 5, "padded": 2 * (3 + 5)}[case[0].__name__] if case[1] is not chosen else 3 + 5
    one, *others = (
        train(case, tmp_path / str(parts), pairs=even_pairs(), batch_size=8, max_tokens_per_device=row * 8 // parts)
        for parts in (1, 2, 8)
    )
    assert one["micro_batches"] == [1]
    assert [other["micro_batches"] for other in others] == [[2], [8]]
    for other in others:
        assert_same_steps(other, one)


def even_pairs():
    """Eight pairs whose weighted tokens all lie 3 + 5 tokens deep."""
    rng = np.random.default_rng(0)
    return [token_pair(number, *(rng.integers(0, VOCABULARY, length) for length in (3, 5, 5))) for number in range(8)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of("one", case))
def test_the_order_of_pairs_does_not_change_a_gradient(tmp_path, case):
    """One step of all pairs, shuffled by two seeds into other micro-batches."""
    one, other = (train(case, tmp_path / str(seed), batch_size=PAIRS, seed=seed) for seed in (1, 2))
    assert one["micro_batches"][0] > 2
    assert_same_steps(other, one)


@pytest.mark.parametrize("case", IN_TWO, ids=lambda case: name_of("ddp", case))
def test_two_processes_take_the_steps_of_one(alone, together, case):
    first, second = together(name_of("ddp", case))
    assert_same_steps(first, alone[case])
    assert all(map(torch.equal, first["gradients"], second["gradients"]))
    # They need not agree on the number of micro-batches; the second one is idle in the last step, with one.
    assert first["micro_batches"][-1] == second["micro_batches"][-1] == 1
    assert first["micro_batches"][0] > 1 < second["micro_batches"][0]
    assert not first["divided"]


@pytest.mark.parametrize("case", DIVIDED, ids=lambda case: name_of("fsdp2", case))
def test_a_divided_model_takes_the_steps_of_a_whole_one(alone, together, case):
    first, second = together(name_of("fsdp2", case))
    assert first["divided"]
    assert_same_steps(first, alone[case])
    assert first["micro_batches"] == second["micro_batches"], "one of them would wait for the other"
    if case[0] is not padded:
        assert max(first["whole"], second["whole"]) < 0.8, "and not before it is divided either"
    assert not second["weights"], "the whole model is in the memory of one process only"
    assert case[0] is not packed or "lm_head.weight" not in first["weights"], (
        "a head that is the embedding is saved once"
    )


@pytest.mark.parametrize("case", DIVIDED, ids=lambda case: name_of("fsdp2", case))
def test_a_divided_model_reads_its_head_in_tiles(together, case):
    first, _ = together(name_of("fsdp2", case))
    assert first["chunks"] == sum(first["micro_batches"])


def test_a_head_that_is_divided_by_itself_is_read_by_its_own_forward(alone, together):
    """Every linear layer has a group of its own there, and layers are computed twice."""
    first, _ = together("apart")
    assert first["divided"]
    assert first["chunks"] == 0
    assert_same_steps(first, alone[UNTIED])


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_in_a_divided_model_learns_what_it_learns_in_a_whole_one(tmp_path, together, shared_folder, name):
    """Gathered, and merged into a model that is whole again; on 4 bits killed in the last step, and gone on with."""
    first, second = together(name)
    objective, settings = ADAPTERS[name]
    alone = train_adapter(objective, tmp_path, **settings)
    assert (first["divided"], second["weights"]) == (True, {})
    # The first process merges in the end; of what it trains divided from the start, the other never has it all.
    assert second["whole"] < 0.8 or name != "lora"
    steps = len(first["gradients"])
    assert steps == (1 if "save_steps" in settings else 3)
    assert_same_steps(first, {**alone, "gradients": alone["gradients"][-steps:]})
    assert first["merged"].keys() == alone["merged"].keys()
    for key, weight in alone["merged"].items():
        torch.testing.assert_close(first["merged"][key], weight, atol=1e-6, rtol=0)


def test_a_divided_checkpoint_of_an_adapter_holds_nothing_else(together, shared_folder):
    learnt = together("lora on 4 bits")[0]["weights"]
    [checkpoint] = (shared_folder / "lora on 4 bits/checkpoints").iterdir()
    parts = FileSystemReader(checkpoint / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
    assert len(parts) == len(learnt)
    assert all("lora_" in part for part in parts)


def test_a_divided_model_is_held_to_a_second_one(tmp_path, together):
    """Which is whole in every process, and neither trained nor divided."""
    first, second = together("kl")
    assert_same_steps(first, train((packed, distances), tmp_path, reference=another))
    assert first["micro_batches"] == second["micro_batches"]
    assert first["micro_batches"][0] > 1


def test_a_divided_model_in_half_precision_keeps_its_logits_and_sums_in_float32(tmp_path, alone, together):
    """The layers' products are rounded as in one process; the log-probs and the gradients' sums are not rounded again."""
    first, _ = together("half")
    exact, rounded = alone[KEY_TOKENS], train(KEY_TOKENS, tmp_path, **HALF)
    for values in (*first["logps"], first["gradients"][0]):
        assert values.dtype == torch.float32
        assert (values != values.bfloat16()).float().mean() > 0.4

    def error_of(run):
        return (run["gradients"][0] - exact["gradients"][0]).norm() / exact["gradients"][0].norm()

    # Saved as they were trained, and not as they are gathered.
    assert all((weight != weight.bfloat16()).float().mean() > 0.4 for weight in first["weights"].values())
    assert 1e-3 < error_of(rounded) < 0.05
    assert error_of(first) < 2 * error_of(rounded)


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_a_divided_run_goes_on_where_it_was_killed(tmp_path, together, kind):
    """Killed in the third step: only that one is taken again, from what the first two left."""
    first, _ = together(kind)
    expected = train(KEY_TOKENS, tmp_path, **KILLED)
    assert len(first["gradients"]) == 1
    assert_same_steps(first, {**expected, "gradients": expected["gradients"][2:]})
    assert first["gradients"][0].norm() == pytest.approx(0.1, rel=1e-4), "clipped by the norm of all parts"


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_one_process_does_not_go_on_from_parts(together, shared_folder, kind):
    assert together(kind)
    written = f"was written by FSDP2 with {kind}, and this run would go on with the whole model in every process"
    with pytest.raises(SepoError, match=written) as caught:
        train(KEY_TOKENS, shared_folder / kind, **KILLED)
    assert "with any number of processes" in caught.value.hint


def test_processes_find_the_log_probs_of_one_bit_by_bit(together):
    for found in together("logps"):
        assert len(found) == 22
        assert all(map(torch.equal, found, logps_of()))


@pytest.mark.parametrize("name", ["kept", "kept in parts"])
def test_two_processes_divide_the_logps_that_are_kept(together, tmp_path, name):
    """To the bit what one process finds; and what is kept, neither reads again."""
    (alone, most), (again, none) = kept_twice(join_processes(), tmp_path)
    assert all(map(torch.equal, again, alone))
    assert none == 0
    for first, second in together(name):
        assert all(map(torch.equal, first[0], alone))
        assert all(map(torch.equal, second[0], alone))
        assert (0 < first[1] < most, second[1]) == (True, 0)


@pytest.mark.parametrize("engine", ["DeepSpeed", "Megatron_LM"])
def test_other_engines_are_refused(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")
    with pytest.raises(SepoError, match=f"accelerate was told to use {engine}") as caught:
        join_processes()
    assert "--fsdp_version 2" in caught.value.hint


def test_weights_of_8_bits_are_not_divided():
    divided, held = SimpleNamespace(is_fsdp2=True), torch.nn.Parameter(torch.zeros(2, dtype=torch.int8), False)
    with pytest.raises(SepoError, match="whole numbers of 8 bits, which FSDP2 cannot divide"):
        refuse_undividable(divided, torch.nn.ParameterList([held]))
    refuse_undividable(SimpleNamespace(is_fsdp2=False), torch.nn.ParameterList([held]))
    refuse_undividable(divided, torch.nn.ParameterList([held.data.float()]))


@pytest.mark.parametrize("short", ["TP", "CP", "SP"])
def test_processes_that_would_share_a_pair_are_refused(monkeypatch, short):
    """accelerate would give them one model, and the loop would give them different pairs."""
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{short}_SIZE", "2")
    with pytest.raises(SepoError, match=rf"parallelism \(PARALLELISM_CONFIG_{short}_SIZE=2\)"):
        join_processes()


def test_the_precision_of_accelerates_configuration_has_to_be_the_stages(monkeypatch):
    """What a configuration names would not be used, and nobody would be told."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(SepoError, match="told to use mixed precision bf16, but this stage computes with no") as caught:
        join_processes()
    assert "--mixed-precision bf16" in caught.value.hint
    assert join_processes("bf16").mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert join_processes("bf16").mixed_precision == "bf16"
    assert join_processes().mixed_precision == "no"


def test_pairs_are_dealt_out_by_their_tokens():
    """Eight processes, 128 pairs of lognormal lengths; by number they would be at work for 0.84 of the time."""
    assert deal([5, 5, 5, 5, 5], 2) == [[0, 2, 4], [1, 3]]
    assert deal([1, 9, 4, 4, 2], 2) == [[0, 1], [2, 3, 4]]
    assert deal([3], 3) == [[0], [], []]
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5, 0.5, (128, 3)).astype(int) + 1
    examples = [masked(token_pair(number, *map(np.zeros, row)), [-1], [-1]) for number, row in enumerate(lengths)]
    eight = SimpleNamespace(num_processes=8)
    dealt = shares(Engine(eight, None, Forward(None, packs=True), False, 100, None, None), examples)
    assert sorted(example.pair.pair_id for share in dealt for example in share) == list(range(128))
    loads = [sum(map(unique_tokens, share)) for share in dealt]
    assert sum(loads) / 8 / max(loads) > 0.95
