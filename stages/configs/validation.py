"""`sepo validate`: a data set, a model, and the machine that a plan is for."""

from dataclasses import dataclass, fields
from typing import Annotated

from stages.configs import limits, shared
from stages.configs.option import MEMORY, OUTPUT, Option, required
from stages.configs.resources import TrainingResources
from stages.configs.training import OptimizerConfig

_OF_A_PLAN = (
    "world_size", "use_fsdp", "device_memory", "peak_tflops", "mfu",
    "mixed_precision", "gradient_checkpointing", "max_tokens_per_device",
)  # fmt: skip
"""what changes nothing but the plan"""


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(TrainingResources):
    """Show what a data set becomes and will cost, before any of it is spent.

    With --plan also whether training fits some GPUs, and how long it takes there; no GPU has to be at hand.
    """

    dataset: shared.Dataset = required()
    columns: shared.Columns = None
    chat_template_kwargs: shared.ChatTemplateKwargs = None
    overlong: shared.Overlong = "drop"
    strict: shared.Strict = False
    plan: Annotated[bool, Option(MEMORY, content=False)] = False
    """Count what training with these settings takes of each GPU of a machine, part by part, and say whether it fits."""
    world_size: Annotated[int, Option(MEMORY, limit=limits.at_least_one, content=False)] = 1
    """With --plan: GPUs, each with a process of its own."""
    use_fsdp: Annotated[bool, Option(MEMORY, content=False)] = False
    """With --plan: weights, gradients and moments are divided among the GPUs, as by `accelerate launch --use_fsdp
    --fsdp_version 2`; without it every GPU has all of them (DDP)."""
    device_memory: Annotated[str | None, Option(MEMORY, "SIZE", limit=limits.size, content=False)] = None
    """With --plan: memory of one GPU, such as 80GB (10^9 bytes) or 80GiB (2^30). Without it, this computer's device."""
    peak_tflops: Annotated[float | None, Option(MEMORY, limit=limits.positive, content=False)] = None
    """With --plan: the most that one GPU computes in the precision of the run, in 10^12 operations a second; an H100
    (SXM) has 989 in bfloat16 and 67 in float32. Without it no time is said."""
    mfu: Annotated[float, Option(MEMORY, limit=limits.share, content=False)] = 0.3
    """With --peak-tflops: the share of that peak which is reached. Measured: 0.31 in training 1 billion weights on one
    H200 in bfloat16; torchtitan reports 0.33 to 0.39 for 8 billion by FSDP2 on H100s. More GPUs reach less."""
    json: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Print one JSON object for programs, and nothing else, on stdout."""

    def training(self) -> OptimizerConfig:
        """The settings of a training stage that is planned."""
        return OptimizerConfig(**{each.name: getattr(self, each.name) for each in fields(TrainingResources)})

    def _faults(self) -> list[str]:
        faults = super()._faults()
        if not self.plan:
            given = [name for name in _OF_A_PLAN if getattr(self, name) != getattr(type(self), name)]
            return faults + [f"{name} needs plan" for name in given]
        if self.use_fsdp and self.world_size == 1:
            faults.append("use_fsdp needs a world_size of at least 2: there is nobody to divide with")
        if self.use_fsdp and self.quantize == "8bit":
            faults.append("use_fsdp cannot divide weights in 8 bits; quantize 4bit, or leave out use_fsdp")
        if self.use_fsdp and self.mixed_precision == "fp16":
            faults.append("use_fsdp does not train in mixed_precision fp16; take bf16")
        if self.mfu != ValidateConfig.mfu and self.peak_tflops is None:
            faults.append("mfu needs peak_tflops: it is a share of that")
        return faults
