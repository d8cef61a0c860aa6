"""What a plan counts, against torch itself: what `fully_shard` leaves a rank, what a step takes, what few bits take."""

import json
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.profiler import profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, MambaConfig
from transformers.pytorch_utils import Conv1D

from stages.compat import unsplit_modules
from stages.configs import OptimizerConfig
from stages.logprobs.batches import whole
from stages.logprobs.logps import Forward, WeightedLogps, attention_for, make_batch
from stages.models.folders import load_without_weights
from stages.models.quantization import bytes_in_few_bits, load_trainable, quantizable
from stages.reporting import Quiet
from stages.training.budget import measured_kept
from stages.training.footprint import ALONE, Machine, footprint, gathered_bytes, kept_without_numbers, planned
from stages.training.lora import make_trainee
from tests.conftest import tiny_gpt2, tiny_llama, token_pair

SMALL = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 4000,
}  # fmt: skip


@pytest.fixture
def plan(tmp_path):
    """A plan of the model that a configuration describes."""

    def make(config, **options):
        config.save_pretrained(tmp_path)
        settings = OptimizerConfig(model=str(tmp_path), **options)
        return planned(load_without_weights(tmp_path, trust_remote_code=False), settings, Quiet()), settings

    return make


@pytest.fixture
def world():
    """Processes that are not there: what they would send is not sent."""

    def make(rank, size):
        dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
        return init_device_mesh("cpu", (size,))

    yield make
    dist.destroy_process_group()


def divided(model, mesh, **policy):
    """As accelerate wraps what `fit` gives it: every layer, and the rest."""
    for layer in [each for each in model.modules() if type(each).__name__ in unsplit_modules(model)]:
        fully_shard(layer, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def machine(processes, *, divided=True, memory=80 * 10**9):
    return Machine(processes, divided, "cuda", memory)


@pytest.mark.parametrize(
    ("sizes", "options", "processes"), [(SMALL, {"lora_rank": 6}, 8), (SMALL | {"vocab_size": 4001}, {}, 64)]
)
def test_a_rank_of_fsdp2_has_what_torch_gives_it(plan, world, sizes, options, processes):
    found, settings = plan(LlamaConfig(**sizes), **options)
    counted = footprint(found, settings, machine(processes), 100, 1000)
    whole = footprint(found, settings, machine(processes, divided=False), 100, 1000)
    local = [weight.to_local() for weight in divided(found.model, world(0, processes)).parameters()]
    trained = sum(weight.numel() for weight in local if weight.requires_grad)
    assert counted.weights == sum(weight.numel() for weight in local) * 4
    assert (counted.gradients, counted.moments) == (4 * trained, 8 * trained)
    # Of the rest, embeddings and head, and of a layer there are two copies while they are gathered.
    layer = sum(weight.numel() for weight in found.model.model.layers[0].parameters())
    every = sum(weight.numel() for weight in found.model.parameters())
    rest = every - layer * found.model.config.num_hidden_layers
    assert counted.loading == counted.weights + 2 * (rest + layer) * 4
    assert whole.loading == every * 4


def test_gathered_layers_are_those_that_torch_follows_through_a_step(plan, world):
    found, _ = plan(LlamaConfig(**SMALL), mixed_precision="bf16")
    counted = gathered_bytes(found.model, half=True)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, None, cast_forward_inputs=False)
    mesh = world(0, 8)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        model = divided(found.model.to_empty(device="cpu"), mesh, mp_policy=policy)
        tracker = FSDPMemTracker(model)
        with tracker:
            model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits.sum().backward()
    peak = {part.value: size for part, size in tracker.get_tracker_snapshot("peak")[torch.device("cpu")].items()
            if part != "Total"}  # fmt: skip
    undivided = ("Unsharded Param", "Unsharded Grad", "All Gather", "Reduce Scatter", "Temp")
    assert counted == pytest.approx(sum(peak[part] for part in undivided), rel=0.05)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_few_bits_are_those_that_bitsandbytes_holds(tmp_path, quantize):
    model = tiny_llama(50, hidden_size=96, tie_word_embeddings=True)
    counted = [bytes_in_few_bits(weight.shape, quantize) for weight in quantizable(model)]
    model.save_pretrained(tmp_path)
    config = OptimizerConfig(model=str(tmp_path), quantize=quantize, lora_rank=4)
    real = load_trainable(tmp_path, config, torch.device("cpu"))
    held = [module.weight for module in real.modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert counted == [size_in_few_bits(weight) for weight in held]


def size_in_few_bits(weight):
    if not hasattr(weight, "quant_state"):
        return weight.nbytes + weight.SCB.nbytes
    state = weight.quant_state
    parts = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return weight.nbytes + sum(part.nbytes for part in parts)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
def test_activations_are_those_of_a_real_forward_pass(plan, make, half, rank):
    # On a GPU grouped heads are repeated, on a CPU they are not.
    real = make(50, **({"num_key_value_heads": 4} if make is tiny_llama else {}))
    options = {"lora_rank": rank, "mixed_precision": "bf16" if half else "no"}
    found, settings = plan(real.config, **options)
    counted = kept_without_numbers(found.model, settings)
    forward = Forward(make_trainee(real, settings, "x", Quiet(), merged=False).model, packs=True, chunked=True)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16) if half else None
    measured = measured_kept(WeightedLogps(forward), forward, whole(token_pair(0, *([1] * 64, [2] * 96, [3] * 96))), autocast=autocast)  # fmt: skip
    assert counted.a_token == pytest.approx(measured.a_token, rel=0.15)
    # The copies of the weights in half precision, the head's excepted; what else is kept for once is little.
    matrices = [each for each in make(50).modules() if isinstance(each, (torch.nn.Linear, Conv1D))]
    cast = sum(each.weight.numel() for each in matrices) - real.get_output_embeddings().weight.numel()
    assert counted.fixed == pytest.approx(2 * cast if half else 0, rel=0.2)


def peak_of(work, tmp_path):
    """Bytes at the highest, over those at the beginning, as torch's allocator tells."""
    with profile(profile_memory=True) as told:
        work()
    told.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    return max(totals) - totals[0]


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_step_takes_what_was_counted(plan, tmp_path, rank, checkpointing):
    real = tiny_llama(300, hidden_size=64, intermediate_size=160, num_hidden_layers=6)
    found, settings = plan(real.config, lora_rank=rank, gradient_checkpointing=checkpointing)
    counted = footprint(found, settings, ALONE, 300, 300)
    model = make_trainee(real, settings, "x", Quiet(), merged=False).model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    forward = Forward(model, packs=True, chunked=True)
    batch = make_batch([whole(token_pair(0, *([1] * 100,) * 3))], torch.device("cpu"), packs=True)

    def step():
        with attention_for(forward, batch):
            WeightedLogps(forward)(batch).sum().backward()

    # Afterwards there are gradients, which are counted apart.
    step()
    measured = peak_of(step, tmp_path)
    assert 0.85 * measured < counted.activations + counted.head < 1.35 * measured


def test_ddp_has_a_second_copy_of_the_gradients(plan):
    found, settings = plan(tiny_llama(50).config, lora_rank=4)
    alone, together = (footprint(found, settings, machine(n, divided=False), 10, 100) for n in (1, 2))
    assert (alone.buckets, together.buckets) == (0, together.gradients)
    assert together.total == alone.total + alone.gradients


def test_what_fits_is_what_training_would_dare(plan):
    """1.25 times all that is counted has to be within 0.9 of the device, and the model has to be loaded before."""
    found, settings = plan(tiny_llama(50).config)
    counted = footprint(found, settings, machine(8), 100, 1000)
    needed = round(counted.total * 1.25 / 0.9)
    assert counted.fits(machine(8, memory=needed + 1))
    assert not counted.fits(machine(8, memory=needed - 1))
    assert not counted._replace(loading=needed + 2).fits(machine(8, memory=needed + 1))
    assert counted._replace(loading=needed + 2).trains_in(machine(8, memory=needed + 1))


def test_a_micro_batch_is_that_of_training(plan):
    found, settings = plan(tiny_llama(50).config)
    tokens = [
        footprint(found, config, where, longest, most).tokens
        for config, where, longest, most in [
            (settings, machine(1, divided=False), 300, 10**6),
            (settings, machine(8), 300, 10**6),
            (settings, machine(8), 300, 1000),
            (settings, machine(8), 5000, 1000),
            (settings, machine(1, divided=False, memory=10**6), 10, 10**6),
            (OptimizerConfig(max_tokens_per_device=700), machine(8), 300, 10**6),
        ]
    ]
    assert tokens == [16_384, 4096, 1000, 5000, 256, 700]


def test_what_looks_at_numbers_is_not_guessed(plan):
    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50, state_size=4)
    found, settings = plan(config)
    counted = footprint(found, settings, machine(8), 100, 1000)
    assert counted.weights
    assert counted.activations is None or counted.activations > 0
