"""What the training commands share, and `sepo train-oracle`."""

from dataclasses import dataclass

from stages.configs import limits
from stages.configs.fields import MIXED_PRECISIONS, OPTIMIZERS, OVERLONG, QUANTIZATIONS, SCHEDULERS, TRACKERS, outside
from stages.configs.scores import ScoreConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What every training command shares. The defaults are the paper's (section 4.1, Table 5) where it gives them."""

    learning_rate: float = 5e-7
    batch_size: int = 128
    num_train_epochs: int = 1
    max_steps: int = 0
    warmup_ratio: float = 0.05
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_target_modules: str | None = None
    quantize: str | None = None
    merge: bool = False
    max_length: int = 2048
    seed: int = 42
    trust_remote_code: bool = False
    mixed_precision: str = "no"
    gradient_checkpointing: bool = outside(False)
    compile: bool = outside(False)
    max_tokens_per_device: int | None = outside(None)
    save_steps: int = outside(100)
    save_total_limit: int = outside(1)
    resume: bool = outside(True)
    report_to: str = outside("none")
    push_to_hub: str | None = outside(None)
    hub_private: bool = outside(False)
    logging_steps: int = outside(1)
    overwrite: bool = outside(False)

    @property
    def tokens_read(self) -> int:
        """Token budget where a model is only read, which takes far less memory than training it."""
        return self.max_tokens_per_device or ScoreConfig.max_tokens_per_device

    def _faults(self) -> list[str]:
        return (
            self._lora_faults()
            + self._idle_faults()
            + limits.check(
                self,
                learning_rate=limits.positive,
                batch_size=limits.at_least_one,
                num_train_epochs=limits.at_least_one,
                max_steps=limits.not_negative,
                warmup_ratio=limits.share_or_zero,
                lr_scheduler_type=limits.one_of(SCHEDULERS),
                weight_decay=limits.not_negative,
                max_grad_norm=limits.positive,
                optim=limits.one_of(OPTIMIZERS),
                adam_beta1=limits.fraction_below_one,
                adam_beta2=limits.fraction_below_one,
                adam_epsilon=limits.positive,
                lora_rank=limits.not_negative,
                lora_alpha=limits.positive_if_given,
                lora_target_modules=limits.modules,
                quantize=limits.one_of_if_given(QUANTIZATIONS),
                max_length=limits.at_least_two,
                mixed_precision=limits.one_of(MIXED_PRECISIONS),
                max_tokens_per_device=limits.unless_none(limits.at_least_two),
                save_steps=limits.not_negative,
                save_total_limit=limits.at_least_one,
                report_to=limits.one_of(TRACKERS),
                logging_steps=limits.at_least_one,
                seed=limits.not_negative,
            )
        )

    def _idle_faults(self) -> list[str]:
        """Options without what they are about."""
        return ["hub_private needs push_to_hub"] if self.hub_private and not self.push_to_hub else []

    def _lora_faults(self) -> list[str]:
        """Options that say how an adapter is trained, where none is."""
        names = ("lora_alpha", "lora_target_modules", "quantize", "merge")
        idle = [] if self.lora_rank else [name for name in names if getattr(self, name) not in (None, False)]
        return [f"{name} needs lora_rank: without it all weights are trained" for name in idle]

    def __post_init__(self) -> None:
        limits.refuse(self._faults())


@dataclass(frozen=True, kw_only=True)
class OracleConfig(OptimizerConfig):
    """`sepo train-oracle`: SFT, then DPO (arXiv 2408.13518 section 3.2)."""

    model: str = outside()
    dataset: str = outside()
    output_dir: str = outside()
    beta: float = 0.1
    data_fraction: float = 1.0
    eval_fraction: float = 0.05
    columns: str | None = None
    overlong: str = "drop"
    sft_dataset: str | None = outside(None)
    sft_epochs: int = 1
    sft_learning_rate: float = 1e-5
    sft_batch_size: int = 512
    sft_weight: float = 0.0
    strict: bool = outside(False)

    def _idle_faults(self) -> list[str]:
        unused = ["sft_dataset needs sft_epochs"] if self.sft_dataset and not self.sft_epochs else []
        return super()._idle_faults() + unused

    def _faults(self) -> list[str]:
        return super()._faults() + limits.check(
            self,
            columns=limits.columns,
            overlong=limits.one_of(OVERLONG),
            beta=limits.positive,
            data_fraction=limits.share,
            eval_fraction=limits.fraction_below_one,
            sft_epochs=limits.not_negative,
            sft_learning_rate=limits.positive,
            sft_batch_size=limits.at_least_one,
            sft_weight=limits.not_negative,
            output_dir=limits.local,
        )
