"""The options that decide what training takes of a device's memory and time."""

from dataclasses import dataclass
from typing import Annotated

from stages.configs import limits, shared
from stages.configs.option import LORA, MEMORY, OPTIMISER, Option


@dataclass(frozen=True, kw_only=True)
class TrainingResources(shared.StartsFromModel):
    """What a training command and a plan of it share."""

    batch_size: Annotated[int, Option(OPTIMISER, limit=limits.at_least_one)] = 128
    """Pairs per optimiser step, over all devices. Paper: 128."""
    num_train_epochs: Annotated[int, Option(OPTIMISER, limit=limits.at_least_one)] = 1
    """Times that every pair is seen. Paper: 1."""
    optim: Annotated[str, Option(OPTIMISER, choices=("adamw", "adamw-8bit", "adamw-paged", "adamw-8bit-paged"))] = (
        "adamw"
    )
    """8bit: AdamW with its two moments in 8 bits; paged: moments move to the host's memory where a GPU's runs out. Both
    by bitsandbytes."""
    lora_rank: Annotated[int, Option(LORA, limit=limits.not_negative)] = 0
    """Train an adapter of this rank and leave the model's own weights alone; 0 = train all weights. Wants about ten
    times the learning rate (also --lora-r)."""
    lora_target_modules: Annotated[str | None, Option(LORA, "NAMES", limit=limits.modules)] = None
    """Layers that get an adapter, by their names: q_proj,v_proj. Without it, all linear layers but the head."""
    quantize: Annotated[str | None, Option(LORA, choices=("4bit", "8bit"))] = None
    """Hold the model's own weights in so many bits while the adapter is trained (QLoRA): 4bit is NF4, whose
    products take the type of --mixed-precision; 8bit is LLM.int8 (also --load-in-4bit, --load-in-8bit)."""
    max_length: shared.MaxLength = 2048
    mixed_precision: Annotated[str, Option(MEMORY, choices=("no", "bf16", "fp16"))] = "no"
    """no: everything in float32; bf16, fp16 (GPUs only): half-precision products in the layers, while weights, moments,
    logits and losses stay float32 (also --bf16, --fp16)."""
    gradient_checkpointing: Annotated[bool, Option(MEMORY, content=False)] = False
    """Compute every layer twice instead of keeping it for the backward pass: less memory, a third slower."""
    max_tokens_per_device: Annotated[int | None, Option(MEMORY, limit=limits.at_least_two, content=False)] = None
    """Token budget of one micro-batch on one device: bounds the memory and does not change the gradient. Without it,
    the largest that fits, measured with the model before the first step."""

    def _faults(self) -> list[str]:
        return self._idle_without_lora("lora_target_modules", "quantize")

    def _idle_without_lora(self, *names: str) -> list[str]:
        """One sentence for each of these options that was given and is about an adapter that nobody asked for."""
        idle = [] if self.lora_rank else [name for name in names if getattr(self, name) not in (None, False)]
        return [f"{name} needs lora_rank: without it all weights are trained" for name in idle]
