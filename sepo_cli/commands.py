"""The commands: each a signature that lists its options, with their defaults read from the stage's dataclass.

A new command is a dataclass in `stages.configs`, a module of the same name in `stages`, a function here and a line in
`COMMANDS`. Stages are imported in `sepo_cli.run`, when a command really runs: they load torch.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import typer

from sepo_cli import evaluation_options as e
from sepo_cli import options as o
from sepo_cli import training_options as t
from sepo_cli.run import run_stage
from stages.configs import (
    CompareConfig,
    CutModelConfig,
    DemoConfig,
    DemoReportConfig,
    EvaluateConfig,
    OracleConfig,
    PolicyConfig,
    ProjectScoresConfig,
    ScoreConfig,
    ValidateConfig,
)


class Command(NamedTuple):
    """A command and what its help shows about it."""

    function: Callable[..., None]
    config: type[Any]
    panel: str
    example: str


def validate(
    context: typer.Context,
    config: o.ConfigFile = None,
    model: o.Model = ValidateConfig.model,
    dataset: o.Dataset = ValidateConfig.dataset,
    columns: o.Columns = ValidateConfig.columns,
    max_length: o.MaxLength = ValidateConfig.max_length,
    overlong: o.Overlong = ValidateConfig.overlong,
    strict: o.Strict = ValidateConfig.strict,
    trust_remote_code: o.TrustRemoteCode = ValidateConfig.trust_remote_code,
    json: o.Json = ValidateConfig.json,
) -> None:
    """Show what a data set becomes and will cost, before any of it is spent."""
    run_stage(context, ValidateConfig, locals())


def train_oracle(
    context: typer.Context,
    config: o.ConfigFile = None,
    model: o.Model = OracleConfig.model,
    dataset: o.Dataset = OracleConfig.dataset,
    output_dir: o.OutputDir = OracleConfig.output_dir,
    columns: o.Columns = OracleConfig.columns,
    data_fraction: o.DataFraction = OracleConfig.data_fraction,
    eval_fraction: o.EvalFraction = OracleConfig.eval_fraction,
    max_length: o.MaxLength = OracleConfig.max_length,
    overlong: o.Overlong = OracleConfig.overlong,
    strict: o.Strict = OracleConfig.strict,
    seed: o.Seed = OracleConfig.seed,
    sft_dataset: o.SftDataset = OracleConfig.sft_dataset,
    sft_epochs: o.SftEpochs = OracleConfig.sft_epochs,
    sft_learning_rate: o.SftLearningRate = OracleConfig.sft_learning_rate,
    sft_batch_size: o.SftBatchSize = OracleConfig.sft_batch_size,
    beta: o.Beta = OracleConfig.beta,
    sft_weight: o.SftWeight = OracleConfig.sft_weight,
    learning_rate: t.LearningRate = OracleConfig.learning_rate,
    batch_size: t.BatchSize = OracleConfig.batch_size,
    num_train_epochs: t.NumTrainEpochs = OracleConfig.num_train_epochs,
    max_steps: t.MaxSteps = OracleConfig.max_steps,
    warmup_ratio: t.WarmupRatio = OracleConfig.warmup_ratio,
    lr_scheduler_type: t.LrSchedulerType = OracleConfig.lr_scheduler_type,
    weight_decay: t.WeightDecay = OracleConfig.weight_decay,
    max_grad_norm: t.MaxGradNorm = OracleConfig.max_grad_norm,
    mixed_precision: t.MixedPrecision = OracleConfig.mixed_precision,
    optim: t.Optim = OracleConfig.optim,
    adam_beta1: t.AdamBeta1 = OracleConfig.adam_beta1,
    adam_beta2: t.AdamBeta2 = OracleConfig.adam_beta2,
    adam_epsilon: t.AdamEpsilon = OracleConfig.adam_epsilon,
    lora_rank: t.LoraRank = OracleConfig.lora_rank,
    lora_alpha: t.LoraAlpha = OracleConfig.lora_alpha,
    lora_target_modules: t.LoraTargetModules = OracleConfig.lora_target_modules,
    quantize: t.Quantize = OracleConfig.quantize,
    max_tokens_per_device: t.MaxTokensPerDevice = OracleConfig.max_tokens_per_device,
    save_steps: t.SaveSteps = OracleConfig.save_steps,
    save_total_limit: t.SaveTotalLimit = OracleConfig.save_total_limit,
    resume: t.Resume = OracleConfig.resume,
    report_to: t.ReportTo = OracleConfig.report_to,
    push_to_hub: t.PushToHub = OracleConfig.push_to_hub,
    logging_steps: t.LoggingSteps = OracleConfig.logging_steps,
    gradient_checkpointing: t.GradientCheckpointing = OracleConfig.gradient_checkpointing,
    compile: t.Compile = OracleConfig.compile,
    hub_private: t.HubPrivate = OracleConfig.hub_private,
    merge: t.Merge = OracleConfig.merge,
    trust_remote_code: o.TrustRemoteCode = OracleConfig.trust_remote_code,
    overwrite: o.Overwrite = OracleConfig.overwrite,
) -> None:
    """Train an oracle: fine-tune a reference, then DPO from it on preference pairs."""
    run_stage(context, OracleConfig, locals())


def score(
    context: typer.Context,
    config: o.ConfigFile = None,
    dataset: o.Dataset = ScoreConfig.dataset,
    output_dir: o.OutputDir = ScoreConfig.output_dir,
    oracle: o.Oracle = ScoreConfig.oracle,
    oracle_model: o.OracleModel = ScoreConfig.oracle_model,
    reference_model: o.ReferenceModel = ScoreConfig.reference_model,
    columns: o.Columns = ScoreConfig.columns,
    max_length: o.MaxLength = ScoreConfig.max_length,
    overlong: o.Overlong = ScoreConfig.overlong,
    precision: o.Precision = ScoreConfig.precision,
    noise_check: o.NoiseCheck = ScoreConfig.noise_check,
    strict: o.Strict = ScoreConfig.strict,
    max_tokens_per_device: o.MaxTokensPerDevice = ScoreConfig.max_tokens_per_device,
    shard_size: o.ShardSize = ScoreConfig.shard_size,
    worker: o.Worker = ScoreConfig.worker,
    check: o.Check = ScoreConfig.check,
    trust_remote_code: o.TrustRemoteCode = ScoreConfig.trust_remote_code,
    overwrite: o.Overwrite = ScoreConfig.overwrite,
) -> None:
    """Score every response token: oracle minus reference log-prob."""
    run_stage(context, ScoreConfig, locals(), _oracle_or_both_models, alone="check")


def train_policy(
    context: typer.Context,
    config: o.ConfigFile = None,
    model: o.Model = PolicyConfig.model,
    scores: o.Scores = PolicyConfig.scores,
    output_dir: o.OutputDir = PolicyConfig.output_dir,
    max_length: o.MaxLength = PolicyConfig.max_length,
    seed: o.Seed = PolicyConfig.seed,
    objective: o.Objective = PolicyConfig.objective,
    select: o.Select = PolicyConfig.select,
    chosen_ratio: o.ChosenRatio = PolicyConfig.chosen_ratio,
    rejected_ratio: o.RejectedRatio = PolicyConfig.rejected_ratio,
    gamma: o.Gamma = PolicyConfig.gamma,
    margin: o.Margin = PolicyConfig.margin,
    beta: o.PolicyBeta = PolicyConfig.beta,
    alpha: o.Alpha = PolicyConfig.alpha,
    sft_weight: o.PolicySftWeight = PolicyConfig.sft_weight,
    kl_weight: o.KlWeight = PolicyConfig.kl_weight,
    anchor_margin: o.AnchorMargin = PolicyConfig.anchor_margin,
    reference_model: o.PolicyReference = PolicyConfig.reference_model,
    authors_rule: o.AuthorsRule = PolicyConfig.authors_rule,
    threshold: o.Threshold = PolicyConfig.threshold,
    soft_k: o.SoftK = PolicyConfig.soft_k,
    soft_mu: o.SoftMu = PolicyConfig.soft_mu,
    soft_low: o.SoftLow = PolicyConfig.soft_low,
    soft_high: o.SoftHigh = PolicyConfig.soft_high,
    auto_share: o.AutoShare = PolicyConfig.auto_share,
    learning_rate: t.LearningRate = PolicyConfig.learning_rate,
    batch_size: t.BatchSize = PolicyConfig.batch_size,
    num_train_epochs: t.NumTrainEpochs = PolicyConfig.num_train_epochs,
    max_steps: t.MaxSteps = PolicyConfig.max_steps,
    warmup_ratio: t.WarmupRatio = PolicyConfig.warmup_ratio,
    lr_scheduler_type: t.LrSchedulerType = PolicyConfig.lr_scheduler_type,
    weight_decay: t.WeightDecay = PolicyConfig.weight_decay,
    max_grad_norm: t.MaxGradNorm = PolicyConfig.max_grad_norm,
    mixed_precision: t.MixedPrecision = PolicyConfig.mixed_precision,
    optim: t.Optim = PolicyConfig.optim,
    adam_beta1: t.AdamBeta1 = PolicyConfig.adam_beta1,
    adam_beta2: t.AdamBeta2 = PolicyConfig.adam_beta2,
    adam_epsilon: t.AdamEpsilon = PolicyConfig.adam_epsilon,
    lora_rank: t.LoraRank = PolicyConfig.lora_rank,
    lora_alpha: t.LoraAlpha = PolicyConfig.lora_alpha,
    lora_target_modules: t.LoraTargetModules = PolicyConfig.lora_target_modules,
    quantize: t.Quantize = PolicyConfig.quantize,
    max_tokens_per_device: t.MaxTokensPerDevice = PolicyConfig.max_tokens_per_device,
    snapshot_steps: t.SnapshotSteps = PolicyConfig.snapshot_steps,
    save_steps: t.SaveSteps = PolicyConfig.save_steps,
    save_total_limit: t.SaveTotalLimit = PolicyConfig.save_total_limit,
    resume: t.Resume = PolicyConfig.resume,
    report_to: t.ReportTo = PolicyConfig.report_to,
    push_to_hub: t.PushToHub = PolicyConfig.push_to_hub,
    logging_steps: t.LoggingSteps = PolicyConfig.logging_steps,
    gradient_checkpointing: t.GradientCheckpointing = PolicyConfig.gradient_checkpointing,
    compile: t.Compile = PolicyConfig.compile,
    hub_private: t.HubPrivate = PolicyConfig.hub_private,
    merge: t.Merge = PolicyConfig.merge,
    trust_remote_code: o.TrustRemoteCode = PolicyConfig.trust_remote_code,
    overwrite: o.Overwrite = PolicyConfig.overwrite,
) -> None:
    """Train a policy on the tokens that matter; by default without a reference model."""
    run_stage(context, PolicyConfig, locals())


def evaluate(
    context: typer.Context,
    config: o.ConfigFile = None,
    models: e.Evaluated = None,
    dataset: e.HeldOut = EvaluateConfig.dataset,
    reference_model: e.EvaluationReference = EvaluateConfig.reference_model,
    output: e.Output = EvaluateConfig.output,
    training_data: e.TrainingData = None,
    columns: o.Columns = EvaluateConfig.columns,
    max_length: o.MaxLength = EvaluateConfig.max_length,
    overlong: o.Overlong = EvaluateConfig.overlong,
    strict: o.Strict = EvaluateConfig.strict,
    samples: e.EvaluationSamples = EvaluateConfig.samples,
    max_new_tokens: e.MaxNewTokens = EvaluateConfig.max_new_tokens,
    demo: e.EvaluationDemo = EvaluateConfig.demo,
    seed: o.Seed = EvaluateConfig.seed,
    max_tokens_per_device: o.MaxTokensPerDevice = EvaluateConfig.max_tokens_per_device,
    skip_kl: e.SkipKl = EvaluateConfig.skip_kl,
    trust_remote_code: o.TrustRemoteCode = EvaluateConfig.trust_remote_code,
    overwrite: o.Overwrite = EvaluateConfig.overwrite,
) -> None:
    """Is it better? Judge models on held-out pairs and by their samples, and compare them."""
    run_stage(context, EvaluateConfig, locals(), _dataset_or_demo)


def cut_model(
    context: typer.Context,
    config: o.ConfigFile = None,
    model: o.Model = CutModelConfig.model,
    layers: o.Layers = CutModelConfig.layers,
    output_dir: o.OutputDir = CutModelConfig.output_dir,
    trust_remote_code: o.TrustRemoteCode = CutModelConfig.trust_remote_code,
    overwrite: o.Overwrite = CutModelConfig.overwrite,
) -> None:
    """Cut a model to its first layers, to fine-tune a weak oracle from."""
    run_stage(context, CutModelConfig, locals())


def project_scores(
    context: typer.Context,
    config: o.ConfigFile = None,
    scores: o.Scores = ProjectScoresConfig.scores,
    model: o.Model = ProjectScoresConfig.model,
    dataset: o.Dataset = ProjectScoresConfig.dataset,
    output_dir: o.OutputDir = ProjectScoresConfig.output_dir,
    tokenizer: o.OtherTokenizer = ProjectScoresConfig.tokenizer,
    columns: o.Columns = ProjectScoresConfig.columns,
    trust_remote_code: o.TrustRemoteCode = ProjectScoresConfig.trust_remote_code,
    overwrite: o.Overwrite = ProjectScoresConfig.overwrite,
) -> None:
    """Carry scores over to the tokens of a model with another tokenizer."""
    run_stage(context, ProjectScoresConfig, locals())


def make_demo(
    context: typer.Context,
    config: o.ConfigFile = None,
    output_dir: o.OutputDir = DemoConfig.output_dir,
    train_pairs: o.TrainPairs = DemoConfig.train_pairs,
    test_pairs: o.TestPairs = DemoConfig.test_pairs,
    oracle_size: o.OracleSize = DemoConfig.oracle_size,
    seed: o.Seed = DemoConfig.seed,
    overwrite: o.Overwrite = DemoConfig.overwrite,
) -> None:
    """Write pairs whose true token rewards are known, and a tiny model for them."""
    run_stage(context, DemoConfig, locals())


def demo_report(
    context: typer.Context,
    config: o.ConfigFile = None,
    demo: o.Demo = DemoReportConfig.demo,
    scores: o.Scores = DemoReportConfig.scores,
    reference: o.DemoReference = DemoReportConfig.reference,
    models: o.Models = None,
    output_dir: o.OutputDir = DemoReportConfig.output_dir,
    samples: o.Samples = DemoReportConfig.samples,
    seed: o.Seed = DemoReportConfig.seed,
    overwrite: o.Overwrite = DemoReportConfig.overwrite,
) -> None:
    """Compare what selection found and policies gained with the planted truth."""
    run_stage(context, DemoReportConfig, locals())


def compare(
    context: typer.Context,
    config: o.ConfigFile = None,
    runs: o.Runs = None,
    against: o.Against = CompareConfig.against,
    output_dir: o.OutputDir = CompareConfig.output_dir,
    overwrite: o.Overwrite = CompareConfig.overwrite,
) -> None:
    """Compare recipes on the demo, over several runs, at equal divergence."""
    run_stage(context, CompareConfig, locals())


def _oracle_or_both_models(settings: dict[str, Any]) -> list[str]:
    """What is missing of the two ways to name the models to score with."""
    if settings["oracle"]:
        return []
    apart = {"--oracle-model": settings["oracle_model"], "--reference-model": settings["reference_model"]}
    if any(apart.values()):
        return [name for name, value in apart.items() if not value]
    return [f"--oracle (or {' and '.join(apart)})"]


def _dataset_or_demo(settings: dict[str, Any]) -> list[str]:
    return [] if settings["dataset"] or settings["demo"] else ["--dataset (or --demo)"]


PIPELINE: Final = "The pipeline"
WEAK_TO_STRONG: Final = "Weak to strong"
DEMO: Final = "The demo with planted truth"

COMMANDS: Final = (
    Command(
        validate,
        ValidateConfig,
        PIPELINE,
        "sepo validate --model M --dataset pairs.jsonl",
    ),
    Command(
        train_oracle,
        OracleConfig,
        PIPELINE,
        "sepo train-oracle --model M --dataset pairs.jsonl --output-dir runs/oracle",
    ),
    Command(
        score,
        ScoreConfig,
        PIPELINE,
        "sepo score --oracle runs/oracle --dataset pairs.jsonl --output-dir runs/scores",
    ),
    Command(
        train_policy,
        PolicyConfig,
        PIPELINE,
        "sepo train-policy --model P --scores runs/scores --output-dir runs/policy",
    ),
    Command(
        evaluate,
        EvaluateConfig,
        PIPELINE,
        "sepo evaluate --model runs/policy --model simpo=runs/simpo --reference-model P --dataset held-out.jsonl",
    ),
    Command(
        cut_model,
        CutModelConfig,
        WEAK_TO_STRONG,
        "sepo cut-model --model M --layers 6 --output-dir runs/small",
    ),
    Command(
        project_scores,
        ProjectScoresConfig,
        WEAK_TO_STRONG,
        "sepo project-scores --scores S --model P --dataset pairs.jsonl --output-dir runs/projected",
    ),
    Command(
        make_demo,
        DemoConfig,
        DEMO,
        "sepo make-demo --output-dir runs/demo",
    ),
    Command(
        demo_report,
        DemoReportConfig,
        DEMO,
        "sepo demo-report --demo D --scores S --reference R --model sepo=P --output-dir runs/report",
    ),
    Command(
        compare,
        CompareConfig,
        DEMO,
        "sepo compare --run sepo=sepo-1.json --run sepo=sepo-2.json --run dpo=dpo-1.json --output-dir runs/compare",
    ),
)
