"""How a model is computed while it trains: its precision, what is kept for the backward pass, compiled or not.

None of it changes what is trained: the weights stay float32, and so do the optimiser's moments, the head's logits and
the losses.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from accelerate.utils.other import has_repeated_blocks, is_repeated_blocks

from stages.compat import DROPOUT, forget_compiled
from stages.configs import OptimizerConfig
from stages.devices.precision import products
from stages.errors import SepoError, one_line
from stages.logprobs.trial import agree, rounds_as, same, trial_logps
from stages.reporting import flat
from stages.types import CausalLM

HALF: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""of the names of mixed precision"""
_NOISE: Final = re.compile("drop|jitter|noise")
_READINGS: Final = 8
"""of a model that draws random numbers: what leaves a layer out now and then shows in some of them only"""


def refuse_impossible(config: OptimizerConfig, device: torch.device) -> None:
    """Stop where a device has no such arithmetic."""
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise SepoError("mixed_precision fp16 needs a GPU", hint="use --mixed-precision bf16, or no")


@contextmanager
def training_mode(model: CausalLM, config: OptimizerConfig) -> Iterator[None]:
    """While open, `model` is computed as the configuration says; it is an ordinary model again at the end.

    With mixed precision the layers' products are half precision by accelerate's autocast, and the head's products take
    half-precision inputs (TF32 on CUDA) but give float32 logits.
    """
    with ExitStack() as stack:
        if config.mixed_precision != "no":
            stack.enter_context(products("medium"))
            stack.enter_context(_products_with_4_bits_in(model, HALF[config.mixed_precision]))
        if config.gradient_checkpointing:
            _checkpoint_layers(model)
            stack.callback(_renamed(model, "checkpointing_disable"))
        if config.compile:
            for block in _repeated_blocks(model):
                block.compile(dynamic=True)
                stack.callback(forget_compiled, block)
        train_without_noise(model)
        stack.callback(model.eval)
        yield


@contextmanager
def _products_with_4_bits_in(model: CausalLM, dtype: torch.dtype) -> Iterator[None]:
    """While open, products with weights in 4 bits are of that type: autocast does not reach into bitsandbytes."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "compute_dtype")]
    # A bias is cast for good.
    before = [(layer.compute_dtype, layer.bias is not None and layer.bias.data) for layer in layers]
    for layer in layers:
        layer.compute_dtype = dtype
    try:
        yield
    finally:
        for layer, (own, bias) in zip(layers, before, strict=True):
            layer.compute_dtype = own
            if layer.bias is not None:
                layer.bias.data = bias


def train_without_noise(model: CausalLM) -> None:
    """Train mode, but for the modules that would draw random numbers in it.

    What they draw by is left as it is: the jitter of some routers also decides what they do when nothing is drawn.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, DROPOUT):
            # Attention asks it for its share, and draws by itself.
            module.p = 0.0
        elif _makes_noise(module):
            module.training = False


@torch.no_grad()
def refuse_noise(model: CausalLM) -> None:
    """Refuse a model that says something else in train mode, or something else each time, by reading the trial pairs.

    Preference losses compare log-probs: a policy that starts as its reference has to give the same ones. The run's
    random numbers stay as they were.
    """
    training = model.training
    model.eval()
    expected_N = trial_logps(model)
    precision = rounds_as(model)
    # What is rounded batch by batch is so in each mode in its own way.
    alike = same if precision == model.dtype else agree
    train_without_noise(model)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        for seed in range(_READINGS if expected_N.isfinite().all() else 0):
            torch.manual_seed(seed)
            before = _random_state(model.device)
            found_N = trial_logps(model)
            if not alike(found_N, expected_N, precision):
                _say_noise(model, float((found_N - expected_N).abs().max()))
            if torch.equal(_random_state(model.device), before):
                # Nothing was drawn: another reading would be the same.
                break
    model.train(training)


def _makes_noise(module: torch.nn.Module) -> bool:
    """Whether a module holds a number by which it would draw noise."""
    return any(isinstance(value, float) and value and _NOISE.search(name) for name, value in vars(module).items())


def _random_state(device: torch.device) -> torch.Tensor:
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


def _say_noise(model: CausalLM, most: float) -> None:
    numbers = ((path, value) for path, value in flat(model.config.to_dict()) if isinstance(value, float))
    named = (path.rpartition(", ")[2] for path, value in numbers if value)
    left = sorted(name for name in named if _NOISE.search(name))
    remedy = f"set {', '.join(left)} to 0 in its config.json" if left else "look for `self.training` in its code"
    raise SepoError(
        f"{model.config.name_or_path or type(model).__name__} gives other log-probs in train mode (up to {most:.2g}"
        " nats apart): their noise would be trained on",
        hint=remedy,
    )


def _checkpoint_layers(model: CausalLM) -> None:
    try:
        # Not reentrant: the hooks of DDP and FSDP see every gradient once.
        _renamed(model, "checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        raise SepoError(f"gradient_checkpointing: {one_line(error)}", hint="leave it out for this model") from error


def _renamed(model: CausalLM, name: str) -> Any:
    """A method that newer versions of transformers call ``activation_...``, and warn of its older name."""
    return getattr(model, f"activation_{name}", None) or getattr(model, f"gradient_{name}")


def _repeated_blocks(model: Any) -> list[torch.nn.Module]:
    """The layers, each compiled on its own: the same code serves them all, and hooks around them stay in force."""
    if is_repeated_blocks(model):
        return [*model.children()]
    if has_repeated_blocks(model):
        return [block for child in model.children() for block in _repeated_blocks(child)]
    return []
