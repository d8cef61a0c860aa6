"""The commands: each a signature that lists its options, with their defaults read from the stage's dataclass.

A new command is a dataclass in `stages.configs`, a module of the same name in `stages`, a function here and a line in
`COMMANDS`. Stages are imported in `sepo_cli.run`, when a command really runs: they load torch.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import typer

from sepo_cli import options as o
from sepo_cli.run import run_stage
from stages.configs import (
    DemoConfig,
    DemoReportConfig,
    EvaluateConfig,
    OracleConfig,
    PolicyConfig,
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
    learning_rate: o.LearningRate = OracleConfig.learning_rate,
    batch_size: o.BatchSize = OracleConfig.batch_size,
    num_train_epochs: o.NumTrainEpochs = OracleConfig.num_train_epochs,
    max_steps: o.MaxSteps = OracleConfig.max_steps,
    warmup_ratio: o.WarmupRatio = OracleConfig.warmup_ratio,
    lr_scheduler_type: o.LrSchedulerType = OracleConfig.lr_scheduler_type,
    weight_decay: o.WeightDecay = OracleConfig.weight_decay,
    max_grad_norm: o.MaxGradNorm = OracleConfig.max_grad_norm,
    max_tokens_per_device: o.MaxTokensPerDevice = OracleConfig.max_tokens_per_device,
    save_steps: o.SaveSteps = OracleConfig.save_steps,
    logging_steps: o.LoggingSteps = OracleConfig.logging_steps,
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
    learning_rate: o.LearningRate = PolicyConfig.learning_rate,
    batch_size: o.BatchSize = PolicyConfig.batch_size,
    num_train_epochs: o.NumTrainEpochs = PolicyConfig.num_train_epochs,
    max_steps: o.MaxSteps = PolicyConfig.max_steps,
    warmup_ratio: o.WarmupRatio = PolicyConfig.warmup_ratio,
    lr_scheduler_type: o.LrSchedulerType = PolicyConfig.lr_scheduler_type,
    weight_decay: o.WeightDecay = PolicyConfig.weight_decay,
    max_grad_norm: o.MaxGradNorm = PolicyConfig.max_grad_norm,
    max_tokens_per_device: o.MaxTokensPerDevice = PolicyConfig.max_tokens_per_device,
    save_steps: o.SaveSteps = PolicyConfig.save_steps,
    logging_steps: o.LoggingSteps = PolicyConfig.logging_steps,
    trust_remote_code: o.TrustRemoteCode = PolicyConfig.trust_remote_code,
    overwrite: o.Overwrite = PolicyConfig.overwrite,
) -> None:
    """Train a policy on the tokens that matter, without a reference model."""
    run_stage(context, PolicyConfig, locals())


def evaluate(
    context: typer.Context,
    config: o.ConfigFile = None,
    models: o.Evaluated = None,
    dataset: o.HeldOut = EvaluateConfig.dataset,
    reference_model: o.EvaluationReference = EvaluateConfig.reference_model,
    output: o.Output = EvaluateConfig.output,
    training_data: o.TrainingData = None,
    columns: o.Columns = EvaluateConfig.columns,
    max_length: o.MaxLength = EvaluateConfig.max_length,
    overlong: o.Overlong = EvaluateConfig.overlong,
    strict: o.Strict = EvaluateConfig.strict,
    samples: o.EvaluationSamples = EvaluateConfig.samples,
    max_new_tokens: o.MaxNewTokens = EvaluateConfig.max_new_tokens,
    demo: o.EvaluationDemo = EvaluateConfig.demo,
    seed: o.Seed = EvaluateConfig.seed,
    max_tokens_per_device: o.MaxTokensPerDevice = EvaluateConfig.max_tokens_per_device,
    trust_remote_code: o.TrustRemoteCode = EvaluateConfig.trust_remote_code,
    overwrite: o.Overwrite = EvaluateConfig.overwrite,
) -> None:
    """Is it better? Judge models on held-out pairs and by their samples, and compare them."""
    run_stage(context, EvaluateConfig, locals(), _dataset_or_demo)


def make_demo(
    context: typer.Context,
    config: o.ConfigFile = None,
    output_dir: o.OutputDir = DemoConfig.output_dir,
    train_pairs: o.TrainPairs = DemoConfig.train_pairs,
    test_pairs: o.TestPairs = DemoConfig.test_pairs,
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
)
