"""Training in several processes, for the tests that compare it with one: `python -m tests.engines FOLDER` in each of them.

FSDP2 wants a GPU a process. Here accelerate's own state is told that a CPU and gloo will do; from there on everything is
accelerate's and torch's real work.
"""

import contextlib
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from stages.configs import OptimizerConfig
from stages.devices.engines import gather_weights
from stages.devices.processes import join_processes
from stages.logprobs import logps
from stages.logprobs.batches import whole
from stages.logprobs.head import kl_of_reference
from stages.logprobs.logps import Reference, response_logps
from stages.logprobs.paths import find_paths
from stages.method.objectives import sft
from stages.models.folders import load_waiting
from stages.models.quantization import load_trainable
from stages.models.references import Frozen, RunContext, WantedLogps, find_paths_of, kept_logps
from stages.registry import OBJECTIVES
from stages.reporting import Quiet
from stages.training.loop import fit
from stages.training.lora import Divided, make_trainee
from stages.training.metrics import read_metrics
from stages.types import ReferenceSums
from tests.conftest import masked, random_pairs, tiny_llama
from tests.logprobs.zoo import VOCABULARY, tiny
from tests.training.fits import Killed, KilledAfter

dpo, sepo, tdpo = (OBJECTIVES[name].load() for name in ("dpo", "sepo", "tdpo"))

SETTINGS = {
    "learning_rate": 1e-2, "batch_size": 5, "warmup_ratio": 0.0, "num_train_epochs": 1, "max_grad_norm": 1e9,
    "max_tokens_per_device": 30, "save_steps": 0,
}  # fmt: skip
PAIRS = 11
"""steps of 5, 5 and 1: the last one leaves a second process idle"""
HALF = {"mixed_precision": "bf16", "gradient_checkpointing": True}
KILLED = {"save_steps": 1, "max_grad_norm": 0.1}


def packed():
    return rounded(tiny_llama(VOCABULARY, tie_word_embeddings=True))


def another():
    return rounded(tiny_llama(VOCABULARY, seed=1, tie_word_embeddings=True))


def untied():
    return rounded(tiny("qwen2"))


def padded():
    return tiny("lfm2, a convolution")


def rounded(model):
    """Weights that a file in bfloat16 holds as they are."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model


def waiting(make, folder):
    """A model of a folder, of which each process is to read its own part."""
    if PartialState().is_main_process:
        make().bfloat16().save_pretrained(folder)
    PartialState().wait_for_everyone()
    return load_waiting(folder, trust_remote_code=False)


def key_tokens(logps_RW, batch):
    return sepo(logps_RW, batch, gamma=2.1, margin=0.5)


def preferences(logps_RW, batch):
    return dpo(logps_RW, batch, beta=0.5, sft_weight=0.1)


def chosen(logps_RW, batch):
    return sft(logps_RW, batch)


def distances(logps_RW, batch):
    return tdpo(logps_RW, batch, beta=0.5, alpha=0.5)


CASES = [(model, objective) for model in (packed, padded) for objective in (key_tokens, preferences, chosen)]
ADAPTERS = {
    "lora": (key_tokens, {}),
    "lora on 4 bits": (key_tokens, {**KILLED, "quantize": "4bit"}),
    "lora with a divergence": (distances, {"gradient_checkpointing": True}),
}
UNTIED = (untied, key_tokens)
IN_TWO = [*CASES[:3], (padded, preferences)]
DIVIDED = [(packed, key_tokens), (padded, preferences), UNTIED]


def name_of(engine, case):
    return "-".join([engine, *(part.__name__ for part in case)])


def examples_of(objective, pairs):
    """Examples as the stages make them for an objective, and what a step is divided by."""
    if objective is key_tokens:
        return [masked(pair, [-1], [0]) for pair in pairs], lambda example: 1.0
    if objective in (preferences, distances):
        lengths = [(-float(len(pair.chosen_ids)), -float(len(pair.rejected_ids))) for pair in pairs]
        return [
            whole(pair)._replace(reference=ReferenceSums(*sums)) for pair, sums in zip(pairs, lengths, strict=True)
        ], lambda example: 1.0
    alone = [whole(pair._replace(rejected_ids=pair.rejected_ids[:0])) for pair in pairs]
    return alone, lambda example: float(len(example.pair.chosen_ids))


class Watch:
    """What a training run did: of every step the whole gradient, and how many micro-batches it was made of."""

    def __init__(self, objective):
        self.gradients, self.micro_batches, self._objective, self._calls = [], [], objective, 0
        self.logps = []
        """the log-probs of every micro-batch"""

    def __enter__(self):
        self._handle = register_optimizer_step_pre_hook(self._keep)
        return self

    def __exit__(self, *_):
        self._handle.remove()

    def objective(self, logps_RW, batch):
        self._calls += 1
        self.logps.append(logps_RW.detach().clone())
        return self._objective(logps_RW, batch)

    def _keep(self, optimizer, *_):
        if not self._calls:
            # torch takes a step without a gradient before it loads an optimiser's state.
            return
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        whole_ones = [each.full_tensor() if isinstance(each, DTensor) else each.clone() for each in gradients]
        self.gradients.append(torch.cat([each.flatten() for each in whole_ones]))
        self.micro_batches.append(self._calls)
        self._calls = 0


def train(case, folder, *, pairs=None, reporter=None, reference=None, waits=False, **settings):
    """One run of `fit`: gradients and micro-batches of all steps, the weights after them, and the logged lines.

    With `waits` every process reads its own part of the model alone.
    """
    make, objective = case
    examples, size = examples_of(objective, pairs or random_pairs(PAIRS, VOCABULARY))
    config = OptimizerConfig(**{**SETTINGS, **settings})
    accelerator = join_processes(config.mixed_precision)
    folder.mkdir(parents=True, exist_ok=True)
    model = waiting(make, folder / "model") if waits else make()
    if reference:
        other = waiting(reference, folder / "reference") if accelerator.is_fsdp2 else reference()
        reference = Reference(find_paths_of(other, accelerator, Quiet()), kl_of_reference)
    watch = fitted(model, examples, objective, config, folder, reporter, size=size, reference=reference)
    with torch.no_grad():
        # As held-out pairs are read: without a backward pass what was gathered last stays so.
        model(input_ids=torch.arange(1, 5)[None])
    weights = gather_weights(model)
    return outcome(watch, folder, model.state_dict() if weights is None else weights, weights is not None)


def fitted(model, examples, objective, config, folder, reporter, **more):
    with Watch(objective) as watch:
        more |= {"phase": "test", "folder": folder, "reporter": reporter or Quiet()}
        fit(model, examples, watch.objective, config, **more)
    return watch


def outcome(watch, folder, weights, divided):
    """What a test compares of a run."""
    return {
        "gradients": watch.gradients, "micro_batches": watch.micro_batches, "logps": watch.logps, "weights": weights,
        "divided": divided, "metrics": read_metrics(folder),
    }  # fmt: skip


def train_adapter(objective, folder, *, reporter=None, **settings):
    """The same for an adapter, with the model that it is merged into; the reference is the model without it."""
    examples, size = examples_of(objective, random_pairs(PAIRS, VOCABULARY))
    config = OptimizerConfig(**{**SETTINGS, "lora_rank": 4, **settings})
    accelerator = join_processes(config.mixed_precision)
    base = folder / "base"
    if accelerator.is_main_process:
        # What the model has in few bits wants blocks of 64.
        tiny_llama(VOCABULARY, tie_word_embeddings=True, hidden_size=64, intermediate_size=128).save_pretrained(base)
    accelerator.wait_for_everyone()
    load = partial(load_trainable, base, config, torch.device("cpu"))
    divided = accelerator.is_fsdp2 and objective is not distances
    trainee = make_trainee(load(divided=divided), config, str(base), Quiet(), merged=True)
    reference = None
    if objective is distances:
        forward = find_paths_of(trainee.model, accelerator, Quiet())
        forward = forward._replace(model=trainee.model, context=trainee.adapter.disable_adapter)
        reference = Reference(forward, kl_of_reference)
    watch = fitted(trainee.model, examples, objective, config, folder, reporter, size=size, reference=reference)
    weights, first = trainee.gathered(), accelerator.is_main_process
    divided = None if weights is None else Divided(weights, load)
    learnt = {name: each.detach() for name, each in trainee.adapter.named_parameters() if each.requires_grad}
    merged = trainee.finished(merged=True, aside=folder / "aside", divided=divided).state_dict() if first else {}
    accelerator.wait_for_everyone()
    found = outcome(watch, folder, learnt if weights is None else weights, weights is not None)
    return found | {"merged": merged}


def divide_on_cpu(mixed_precision="no", **options):
    """From here on `fit` runs on accelerate's FSDP2."""
    # What an earlier call has made of it is nothing that a new state could begin with.
    PartialState().distributed_type = DistributedType.MULTI_CPU
    state = join_processes(mixed_precision).state
    for each in (state, PartialState()):
        each.distributed_type = DistributedType.FSDP
    settings = {"auto_wrap_policy": "transformer_based_wrap", "cpu_ram_efficient_loading": False, **options}
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **settings)


class Whole:
    """Watches what share of a model's weights a process has undivided, the largest of all its forward passes."""

    def __enter__(self):
        self.share = 0.0
        self._handle = register_module_forward_pre_hook(self._look)
        return self

    def __exit__(self, *_):
        self._handle.remove()

    def _look(self, module, _):
        if isinstance(module, PreTrainedModel):
            self._model = module
        weights = [*self._model.parameters()]
        here = sum(each.numel() for each in weights if not isinstance(each, DTensor))
        self.share = max(self.share, here / sum(each.numel() for each in weights))


class Chunks:
    """Counts how often the chunked head is used in training."""

    def __enter__(self):
        self.used, self._head_logps = 0, logps.head_logps
        logps.head_logps = self._count
        return self

    def __exit__(self, *_):
        logps.head_logps = self._head_logps

    def _count(self, *arguments):
        self.used += torch.is_grad_enabled()
        return self._head_logps(*arguments)


def runs(folder):
    """Every run that the tests compare, as (name, what came out)."""
    yield "logps", logps_of(join_processes())
    yield "kept", kept_twice(join_processes(), folder / "kept")
    for case in IN_TWO:
        yield name_of("ddp", case), train(case, folder / name_of("ddp", case))
    for case in DIVIDED:
        divide_on_cpu()
        with Chunks() as chunks, Whole() as whole:
            found = train(case, folder / name_of("fsdp2", case), waits=case[0] is not padded)
        yield name_of("fsdp2", case), {**found, "chunks": chunks.used, "whole": whole.share}
    for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
        divide_on_cpu(state_dict_type=kind)
        with contextlib.suppress(Killed):
            train(CASES[0], folder / kind, reporter=KilledAfter(2), **KILLED)
        yield kind, train(CASES[0], folder / kind, **KILLED)
    for name, (objective, settings) in ADAPTERS.items():
        divide_on_cpu()
        if "save_steps" in settings:
            with contextlib.suppress(Killed):
                train_adapter(objective, folder / name, reporter=KilledAfter(2), **settings)
        with Whole() as whole:
            found = train_adapter(objective, folder / name, **settings)
        yield name, {**found, "whole": whole.share}
    divide_on_cpu()
    yield "kept in parts", kept_twice(join_processes(), folder / "kept in parts")
    yield "kl", train((packed, distances), folder / "kl", reference=another)
    divide_on_cpu("bf16")
    yield "half", train(CASES[0], folder / "half", waits=True, **HALF)
    divide_on_cpu(transformer_cls_names_to_wrap=["Qwen2DecoderLayer", "Linear"], activation_checkpointing=True)
    with Chunks() as chunks:
        found = train(UNTIED, folder / "apart")
    yield "apart", {**found, "chunks": chunks.used}


def logps_of(accelerator=None):
    """Log-probs of some pairs, the batches divided among the processes of an accelerator."""
    forward = find_paths(packed(), Quiet())
    pairs = random_pairs(11, VOCABULARY)
    [found] = response_logps(
        [forward], pairs, max_tokens=60, device=torch.device("cpu"), task=Quiet(), accelerator=accelerator
    )
    return [torch.from_numpy(each) for pair in found for each in (pair.chosen, pair.rejected)]


def kept_twice(accelerator, folder):
    """Log-probs that are kept in a folder: as asked for once, and again, with how often this process read a model each time."""
    context, found = RunContext(accelerator, folder, 60, Quiet()), []
    folder.mkdir(exist_ok=True)
    for _ in range(2):
        model, forwards = waiting(packed, folder / "model") if accelerator.is_fsdp2 else packed(), []
        model.base_model.register_forward_hook(lambda *_, forwards=forwards: forwards.append(1))
        frozen, pairs = Frozen("some", folder, "its hash"), random_pairs(11, VOCABULARY)
        logps = kept_logps(WantedLogps(frozen, lambda model=model: model, pairs, context, "some.parquet", "some"))
        found.append(([torch.tensor(side) for pair in logps for side in pair], len(forwards)))
    return found


def main(folder):
    torch.set_num_threads(1)
    rank = join_processes().process_index
    for name, found in runs(folder):
        torch.save(found, folder / f"{name}.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
