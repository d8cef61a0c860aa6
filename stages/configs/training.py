"""What the training commands share, and `sepo train-oracle`."""

from dataclasses import dataclass
from typing import Annotated

from stages.configs import limits
from stages.configs.fields import MIXED_PRECISIONS, OPTIMIZERS, QUANTIZATIONS, SCHEDULERS, TRACKERS
from stages.configs.option import DATA, LORA, MEMORY, METHOD, OPTIMISER, OUTPUT, REFERENCE, Config, Option, required
from stages.configs.scores import ScoreConfig
from stages.configs.shared import (
    ChatTemplateKwargs,
    Columns,
    Dataset,
    MaxLength,
    Model,
    OutputDir,
    Overlong,
    Overwrite,
    Seed,
    Strict,
    TrustRemoteCode,
)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """What every training command shares. The defaults are the paper's (section 4.1, Table 5) where it gives them."""

    learning_rate: Annotated[
        float,
        Option(
            "Peak learning rate. Paper: 5e-7 (Table 5), for large models; small ones need more, and LoRA about ten"
            " times as much.",
            OPTIMISER,
            limit=limits.positive,
        ),
    ] = 5e-7
    batch_size: Annotated[
        int, Option("Pairs per optimiser step, over all devices. Paper: 128.", OPTIMISER, limit=limits.at_least_one)
    ] = 128
    num_train_epochs: Annotated[
        int, Option("Times that every pair is seen. Paper: 1.", OPTIMISER, limit=limits.at_least_one)
    ] = 1
    max_steps: Annotated[
        int,
        Option(
            "Stop each training phase after so many optimiser steps; 0 = all epochs.",
            OPTIMISER,
            limit=limits.not_negative,
        ),
    ] = 0
    warmup_ratio: Annotated[
        float,
        Option(
            "Share of the steps in which the learning rate rises from 0. Paper: 0.05.",
            OPTIMISER,
            limit=limits.share_or_zero,
        ),
    ] = 0.05
    lr_scheduler_type: Annotated[
        str,
        Option(
            f"Course of the learning rate after the warm-up: {', '.join(SCHEDULERS)}. Authors' code: cosine.",
            OPTIMISER,
            "NAME",
            limit=limits.one_of(SCHEDULERS),
        ),
    ] = "cosine"
    weight_decay: Annotated[
        float,
        Option("AdamW's weight decay; 0 = none, as in the authors' code.", OPTIMISER, limit=limits.not_negative),
    ] = 0.0
    max_grad_norm: Annotated[
        float, Option("Gradients are scaled down to this norm.", OPTIMISER, limit=limits.positive)
    ] = 1.0
    optim: Annotated[
        str,
        Option(
            "8bit: AdamW with its two moments in 8 bits; paged: moments move to the host's memory where a GPU's runs"
            " out. Both by bitsandbytes.",
            OPTIMISER,
            "|".join(OPTIMIZERS),
            limit=limits.one_of(OPTIMIZERS),
        ),
    ] = "adamw"
    adam_beta1: Annotated[
        float, Option("AdamW's beta1. Authors' code: 0.9.", OPTIMISER, limit=limits.fraction_below_one)
    ] = 0.9
    adam_beta2: Annotated[
        float, Option("AdamW's beta2. Authors' code: 0.95.", OPTIMISER, limit=limits.fraction_below_one)
    ] = 0.95
    adam_epsilon: Annotated[float, Option("AdamW's epsilon.", OPTIMISER, limit=limits.positive)] = 1e-8
    lora_rank: Annotated[
        int,
        Option(
            "Train an adapter of this rank and leave the model's own weights alone; 0 = train all weights. Wants about"
            " ten times the learning rate (also --lora-r).",
            LORA,
            limit=limits.not_negative,
        ),
    ] = 0
    lora_alpha: Annotated[
        float | None,
        Option(
            "Scale of the adapter: what it adds is times alpha / rank. Without it, twice the rank.",
            LORA,
            limit=limits.positive,
        ),
    ] = None
    lora_target_modules: Annotated[
        str | None,
        Option(
            "Layers that get an adapter, by their names: q_proj,v_proj. Without it, all linear layers but the head.",
            LORA,
            "NAMES",
            limit=limits.modules,
        ),
    ] = None
    quantize: Annotated[
        str | None,
        Option(
            "Hold the model's own weights in so many bits while the adapter is trained (QLoRA): 4bit is NF4, 8bit is"
            " LLM.int8 (also --load-in-4bit, --load-in-8bit).",
            LORA,
            "|".join(QUANTIZATIONS),
            limit=limits.one_of(QUANTIZATIONS),
        ),
    ] = None
    merge: Annotated[
        bool, Option("Add the adapter to its model's weights at the end: an ordinary model folder.", LORA)
    ] = False
    max_length: MaxLength = 2048
    seed: Seed = 42
    trust_remote_code: TrustRemoteCode = False
    mixed_precision: Annotated[
        str,
        Option(
            "no: everything in float32; bf16, fp16 (GPUs only): half-precision products in the layers, while weights,"
            " moments, logits and losses stay float32 (also --bf16, --fp16).",
            MEMORY,
            "|".join(MIXED_PRECISIONS),
            limit=limits.one_of(MIXED_PRECISIONS),
        ),
    ] = "no"
    gradient_checkpointing: Annotated[
        bool,
        Option(
            "Compute every layer twice instead of keeping it for the backward pass: less memory, a third slower.",
            MEMORY,
            content=False,
        ),
    ] = False
    compile: Annotated[
        bool,
        Option(
            "Compile the layers with torch.compile: minutes at first, faster steps after that.", MEMORY, content=False
        ),
    ] = False
    max_tokens_per_device: Annotated[
        int | None,
        Option(
            "Token budget of one micro-batch on one device: bounds the memory and does not change the gradient. Without"
            " it, the largest that fits, measured with the model before the first step.",
            MEMORY,
            limit=limits.at_least_two,
            content=False,
        ),
    ] = None
    save_steps: Annotated[
        int,
        Option(
            "Steps between checkpoints, from which an interrupted run goes on; SIGTERM and Ctrl-C leave one too;"
            " 0 = no checkpoints.",
            OUTPUT,
            limit=limits.not_negative,
            content=False,
        ),
    ] = 100
    save_total_limit: Annotated[
        int,
        Option(
            "Checkpoints to keep: the newest ones; an older one serves where the newest is damaged.",
            OUTPUT,
            limit=limits.at_least_one,
            content=False,
        ),
    ] = 1
    resume: Annotated[
        bool,
        Option(
            "Go on with an interrupted run of the same settings; --no-resume deletes what it made and starts anew."
            " A finished run is left as it is either way.",
            OUTPUT,
            content=False,
        ),
    ] = True
    report_to: Annotated[
        str,
        Option(
            f"Where metrics go beside metrics.jsonl: {', '.join(TRACKERS)}. Needs that package; for tensorboard:"
            " pip install 'sepo[report]'.",
            OUTPUT,
            "NAME",
            limit=limits.one_of(TRACKERS),
            content=False,
        ),
    ] = "none"
    push_to_hub: Annotated[
        str | None,
        Option(
            "Upload the finished folder, without checkpoints, to this repository of the Hugging Face hub"
            " (also --hub-model-id).",
            OUTPUT,
            "ORG/NAME",
            content=False,
        ),
    ] = None
    hub_private: Annotated[
        bool,
        Option("Make that repository a private one, where it is new (also --hub-private-repo).", OUTPUT, content=False),
    ] = False
    logging_steps: Annotated[
        int, Option("Steps between lines of metrics.jsonl.", OUTPUT, limit=limits.at_least_one, content=False)
    ] = 1
    overwrite: Overwrite = False

    @property
    def tokens_read(self) -> int:
        """Token budget where a model is only read, which takes far less memory than training it."""
        return self.max_tokens_per_device or ScoreConfig.max_tokens_per_device

    def _faults(self) -> list[str]:
        """Options without what they are about."""
        names = ("lora_alpha", "lora_target_modules", "quantize", "merge")
        idle = [] if self.lora_rank else [name for name in names if getattr(self, name) not in (None, False)]
        faults = [f"{name} needs lora_rank: without it all weights are trained" for name in idle]
        return faults + (["hub_private needs push_to_hub"] if self.hub_private and not self.push_to_hub else [])


@dataclass(frozen=True, kw_only=True)
class OracleConfig(OptimizerConfig):
    """Train an oracle: fine-tune a reference, then DPO from it on preference pairs (arXiv 2408.13518 section 3.2)."""

    model: Model = required()
    dataset: Dataset = required()
    output_dir: OutputDir = required()
    beta: Annotated[
        float,
        Option(
            "DPO's beta: how dearly the oracle pays for leaving the reference. Authors' code: 0.1.",
            METHOD,
            limit=limits.positive,
        ),
    ] = 0.1
    data_fraction: Annotated[
        float,
        Option(
            "Share of the pairs that SFT and DPO train on, drawn without replacement; 1.0 = all (section 3.2).",
            DATA,
            limit=limits.share,
        ),
    ] = 1.0
    eval_fraction: Annotated[
        float,
        Option(
            "Share of the pairs that is never trained on and judges the oracle; 0 = no judgement.",
            DATA,
            limit=limits.fraction_below_one,
        ),
    ] = 0.05
    columns: Columns = None
    chat_template_kwargs: ChatTemplateKwargs = None
    overlong: Overlong = "drop"
    sft_dataset: Annotated[
        str | None,
        Option(
            "Conversations to fine-tune the reference on; without it, the chosen responses of --dataset.",
            REFERENCE,
            "FILE|NAME",
            content=False,
        ),
    ] = None
    sft_epochs: Annotated[
        int,
        Option(
            "Epochs of fine-tuning; 0 takes the model as the reference as it is. Paper: 2.",
            REFERENCE,
            limit=limits.not_negative,
        ),
    ] = 1
    sft_learning_rate: Annotated[
        float, Option("Peak learning rate of fine-tuning. Paper: 1e-5.", REFERENCE, limit=limits.positive)
    ] = 1e-5
    sft_batch_size: Annotated[
        int,
        Option("Responses per optimiser step of fine-tuning. Paper: 512.", REFERENCE, limit=limits.at_least_one),
    ] = 512
    sft_weight: Annotated[
        float,
        Option(
            "Weight of an SFT term on the chosen responses beside DPO, against drift of tokens that both responses"
            " share; 0 = pure DPO, as in the paper.",
            METHOD,
            limit=limits.not_negative,
        ),
    ] = 0.0
    strict: Strict = False

    def _faults(self) -> list[str]:
        unused = ["sft_dataset needs sft_epochs"] if self.sft_dataset and not self.sft_epochs else []
        return super()._faults() + unused
