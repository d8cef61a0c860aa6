"""The options that the training commands share; see `sepo_cli.options`."""

from typing import Annotated

from sepo_cli.option_kinds import LORA, MACHINE, OPTIMISER, one_of, option, switch
from stages.configs import MIXED_PRECISIONS, OPTIMIZERS, QUANTIZATIONS, SCHEDULERS, TRACKERS

MaxTokensPerDevice = Annotated[
    int | None,
    option(
        MACHINE,
        "Token budget of one micro-batch on one device: bounds the memory and does not change the gradient. Without it,"
        " the largest that fits, measured with the model before the first step.",
    ),
]

# --- the optimiser ---
LearningRate = Annotated[
    float,
    option(
        OPTIMISER,
        "Peak learning rate. Paper: 5e-7 (Table 5), for large models; small ones need more, and LoRA about ten times"
        " as much.",
    ),
]
BatchSize = Annotated[int, option(OPTIMISER, "Pairs per optimiser step, over all devices. Paper: 128.")]
NumTrainEpochs = Annotated[int, option(OPTIMISER, "Times that every pair is seen. Paper: 1.")]
MaxSteps = Annotated[int, option(OPTIMISER, "Stop each training phase after so many optimiser steps; 0 = all epochs.")]
WarmupRatio = Annotated[
    float, option(OPTIMISER, "Share of the steps in which the learning rate rises from 0. Paper: 0.05.")
]
LrSchedulerType = Annotated[
    str,
    option(
        OPTIMISER,
        f"Course of the learning rate after the warm-up: {', '.join(SCHEDULERS)}. Authors' code: cosine.",
        metavar="NAME",
    ),
]
WeightDecay = Annotated[float, option(OPTIMISER, "AdamW's weight decay; 0 = none, as in the authors' code.")]
MixedPrecision = Annotated[
    str,
    option(
        OPTIMISER,
        "no: everything in float32; bf16, fp16 (GPUs only): half-precision products in the layers, while weights,"
        " moments, logits and losses stay float32.",
        metavar=one_of(MIXED_PRECISIONS),
    ),
]
GradientCheckpointing = Annotated[
    bool, switch("Compute every layer twice instead of keeping it for the backward pass: less memory, a third slower.")
]
Compile = Annotated[bool, switch("Compile the layers with torch.compile: minutes at first, faster steps after that.")]
MaxGradNorm = Annotated[float, option(OPTIMISER, "Gradients are scaled down to this norm.")]
Optim = Annotated[
    str,
    option(
        OPTIMISER,
        "8bit: AdamW with its two moments in 8 bits; paged: moments move to the host's memory where a GPU's runs out."
        " Both by bitsandbytes.",
        metavar=one_of(OPTIMIZERS),
    ),
]
AdamBeta1 = Annotated[float, option(OPTIMISER, "AdamW's beta1. Authors' code: 0.9.")]
AdamBeta2 = Annotated[float, option(OPTIMISER, "AdamW's beta2. Authors' code: 0.95.")]
AdamEpsilon = Annotated[float, option(OPTIMISER, "AdamW's epsilon.")]

# --- LoRA ---
LoraRank = Annotated[
    int,
    option(
        LORA,
        "Train an adapter of this rank and leave the model's own weights alone; 0 = train all weights. Wants about ten"
        " times the learning rate.",
    ),
]
LoraAlpha = Annotated[
    float | None,
    option(LORA, "Scale of the adapter: what it adds is times alpha / rank. Without it, twice the rank."),
]
LoraTargetModules = Annotated[
    str | None,
    option(
        LORA,
        "Layers that get an adapter, by their names: q_proj,v_proj. Without it, all linear layers but the head.",
        metavar="NAMES",
    ),
]
Quantize = Annotated[
    str | None,
    option(
        LORA,
        "Hold the model's own weights in so many bits while the adapter is trained (QLoRA): 4bit is NF4, 8bit is"
        " LLM.int8.",
        metavar=one_of(QUANTIZATIONS),
    ),
]
Merge = Annotated[bool, switch("Add the adapter to its model's weights at the end: an ordinary model folder.")]

PushToHub = Annotated[
    str | None,
    option(
        MACHINE,
        "Upload the finished folder, without checkpoints, to this repository of the Hugging Face hub.",
        metavar="ORG/NAME",
    ),
]
HubPrivate = Annotated[bool, switch("Make that repository a private one, where it is new.")]
SnapshotSteps = Annotated[
    int,
    option(
        MACHINE,
        "Steps between models that are kept as ordinary folders, snapshots/step-00000032; 0 = only the last one.",
    ),
]
SaveSteps = Annotated[
    int,
    option(
        MACHINE,
        "Steps between checkpoints, from which an interrupted run goes on; SIGTERM and Ctrl-C leave one too;"
        " 0 = no checkpoints.",
    ),
]
SaveTotalLimit = Annotated[
    int, option(MACHINE, "Checkpoints to keep: the newest ones; an older one serves where the newest is damaged.")
]
Resume = Annotated[
    bool,
    switch(
        "Go on with an interrupted run of the same settings; --no-resume deletes what it made and starts anew."
        " A finished run is left as it is either way."
    ),
]
ReportTo = Annotated[
    str,
    option(
        MACHINE,
        f"Where metrics go beside metrics.jsonl: {', '.join(TRACKERS)}. Needs that package; for tensorboard:"
        " pip install 'sepo[report]'.",
        metavar="NAME",
    ),
]
LoggingSteps = Annotated[int, option(MACHINE, "Steps between lines of metrics.jsonl.")]
