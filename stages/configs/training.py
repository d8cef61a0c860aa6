"""What the training commands share, and `sepo train-oracle`."""

from dataclasses import dataclass
from typing import Annotated

from stages.configs import limits, shared
from stages.configs.fields import NAMED_TRACKERS, TRACKERS
from stages.configs.option import DATA, LORA, MEMORY, METHOD, OPTIMISER, OUTPUT, REFERENCE, Option, required
from stages.configs.resources import TrainingResources
from stages.configs.scores import ScoreConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(TrainingResources):
    """What every training command shares. The defaults are the paper's (section 4.1, Table 5) where it gives them."""

    learning_rate: Annotated[float, Option(OPTIMISER, limit=limits.positive)] = 5e-7
    """Peak learning rate. Paper: 5e-7 (Table 5), for large models; small ones need more, and LoRA about ten times as
    much."""
    max_steps: Annotated[int, Option(OPTIMISER, limit=limits.not_negative)] = 0
    """Stop each training phase after so many optimiser steps; 0 = all epochs."""
    warmup_ratio: Annotated[float, Option(OPTIMISER, limit=limits.share_or_zero)] = 0.05
    """Share of the steps in which the learning rate rises from 0. Paper: 0.05."""
    lr_scheduler_type: Annotated[
        str, Option(OPTIMISER, "NAME", choices=("cosine", "linear", "constant", "constant_with_warmup"))
    ] = "cosine"
    """Course of the learning rate after the warm-up. Authors' code: cosine."""
    weight_decay: Annotated[float, Option(OPTIMISER, limit=limits.not_negative)] = 0.0
    """AdamW's weight decay; 0 = none, as in the authors' code."""
    max_grad_norm: Annotated[float, Option(OPTIMISER, limit=limits.positive)] = 1.0
    """Gradients are scaled down to this norm."""
    adam_beta1: Annotated[float, Option(OPTIMISER, limit=limits.fraction_below_one)] = 0.9
    """AdamW's beta1. Authors' code: 0.9."""
    adam_beta2: Annotated[float, Option(OPTIMISER, limit=limits.fraction_below_one)] = 0.95
    """AdamW's beta2. Authors' code: 0.95."""
    adam_epsilon: Annotated[float, Option(OPTIMISER, limit=limits.positive)] = 1e-8
    """AdamW's epsilon."""
    lora_alpha: Annotated[float | None, Option(LORA, limit=limits.positive)] = None
    """Scale of the adapter: what it adds is times alpha / rank. Without it, twice the rank."""
    merge: Annotated[bool, Option(LORA)] = False
    """Add the adapter to its model's weights at the end: an ordinary model folder."""
    eval_fraction: shared.EvalFraction = 0.0
    seed: shared.Seed = 42
    attn_implementation: Annotated[str | None, Option(MEMORY, choices=("sdpa", "eager"))] = None
    """Train by this attention of transformers, every response in a padded row of its own. Without it, several pairs
    share a row, each prompt once, where the model gives the same log-probs so: much faster."""
    compile: Annotated[bool, Option(MEMORY, content=False)] = False
    """Compile the layers with torch.compile: minutes at first, faster steps after that."""
    save_steps: Annotated[int, Option(OUTPUT, limit=limits.not_negative, content=False)] = 100
    """Steps between checkpoints, from which an interrupted run goes on; SIGTERM and Ctrl-C leave one too; 0 = no
    checkpoints."""
    save_total_limit: Annotated[int, Option(OUTPUT, limit=limits.at_least_one, content=False)] = 1
    """Checkpoints to keep: the newest ones; an older one serves where the newest is damaged."""
    resume: Annotated[bool, Option(OUTPUT, content=False)] = True
    """Go on with an interrupted run of the same settings; --no-resume deletes what it made and starts anew. A finished
    run is left as it is either way."""
    report_to: Annotated[str, Option(OUTPUT, "NAME", choices=TRACKERS, content=False)] = "none"
    """Where metrics go beside metrics.jsonl. Needs that package; for tensorboard: pip install 'sepo[report]'."""
    run_name: Annotated[str | None, Option(OUTPUT, "NAME", limit=limits.file_name, content=False)] = None
    """What the run is called by the tracker of --report-to."""
    push_to_hub: Annotated[str | None, Option(OUTPUT, "ORG/NAME", content=False)] = None
    """Upload the finished folder, without checkpoints, to this repository of the Hugging Face hub (also
    --hub-model-id)."""
    hub_private: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Make that repository a private one, where it is new (also --hub-private-repo)."""
    logging_steps: Annotated[int, Option(OUTPUT, limit=limits.at_least_one, content=False)] = 1
    """Steps between lines of metrics.jsonl."""
    eval_steps: Annotated[int, Option(OUTPUT, limit=limits.not_negative, content=False)] = 0
    """Steps between figures of held-out pairs (loss, accuracy, margin) in metrics.jsonl, a multiple of --logging-steps;
    0 = none during training."""
    overwrite: shared.Overwrite = False

    @property
    def tokens_read(self) -> int:
        """Token budget where a model is only read, which takes far less memory than training it."""
        return self.max_tokens_per_device or ScoreConfig.max_tokens_per_device

    def _faults(self) -> list[str]:
        """Options without what they are about."""
        faults = super()._faults() + self._idle_without_lora("lora_alpha", "merge")
        if self.run_name and self.report_to not in NAMED_TRACKERS:
            faults.append(f"run_name needs report_to {', '.join(NAMED_TRACKERS)}, got {self.report_to}")
        if self.eval_steps and not self.eval_fraction:
            faults.append("eval_steps needs eval_fraction: no pair is held out")
        if self.eval_steps % self.logging_steps:
            faults.append(
                f"eval_steps must be a multiple of logging_steps, got {self.eval_steps}, {self.logging_steps}"
            )
        return faults + (["hub_private needs push_to_hub"] if self.hub_private and not self.push_to_hub else [])


@dataclass(frozen=True, kw_only=True)
class OracleConfig(OptimizerConfig):
    """Train an oracle: fine-tune a reference, then DPO from it on preference pairs (arXiv 2408.13518 section 3.2)."""

    dataset: shared.Dataset = required()
    output_dir: shared.OutputDir = required()
    beta: Annotated[float, Option(METHOD, limit=limits.positive)] = 0.1
    """DPO's beta: how dearly the oracle pays for leaving the reference. Authors' code: 0.1."""
    kl_weight: Annotated[float, Option(METHOD, limit=limits.not_negative)] = 0.0
    """Weight of KL(reference || oracle) over the whole vocabulary, summed over the tokens of both responses, beside
    DPO; 0 = pure DPO, as in the paper."""
    folds: Annotated[int, Option(METHOD, limit=limits.at_least_one)] = 1
    """Train so many oracles, each on all prompts but those of a fold of its own, and let `score` take for each pair the
    one that has not seen its prompt: scores without memory of their labels, for `denoise` to calibrate by. 2 = two on
    halves, which together cost as much as one; 1 = one oracle on all pairs, as in the paper."""
    data_fraction: Annotated[float, Option(DATA, limit=limits.share)] = 1.0
    """Share of the pairs that SFT and DPO train on, drawn without replacement; 1.0 = all (section 3.2)."""
    eval_fraction: shared.EvalFraction = 0.05
    columns: shared.Columns = None
    chat_template_kwargs: shared.ChatTemplateKwargs = None
    overlong: shared.Overlong = "drop"
    sft_dataset: Annotated[str | None, Option(REFERENCE, "FILE|NAME", content=False)] = None
    """Conversations to fine-tune the reference on; without it, the chosen responses of --dataset."""
    sft_epochs: Annotated[int, Option(REFERENCE, limit=limits.not_negative)] = 1
    """Epochs of fine-tuning; 0 takes the model as the reference as it is. Paper: 2."""
    sft_learning_rate: Annotated[float, Option(REFERENCE, limit=limits.positive)] = 1e-5
    """Peak learning rate of fine-tuning. Paper: 1e-5."""
    sft_batch_size: Annotated[int, Option(REFERENCE, limit=limits.at_least_one)] = 512
    """Responses per optimiser step of fine-tuning. Paper: 512."""
    sft_weight: Annotated[float, Option(METHOD, limit=limits.not_negative)] = 0.0
    """Weight of an SFT term on the chosen responses beside DPO, against drift of tokens that both responses share; 0 =
    pure DPO, as in the paper."""
    strict: shared.Strict = False

    def _faults(self) -> list[str]:
        unused = ["sft_dataset needs sft_epochs"] if self.sft_dataset and not self.sft_epochs else []
        return super()._faults() + unused
