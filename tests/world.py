"""A small run of the three stages, for the tests that need its outputs."""

from stages import score, train_oracle, train_policy
from stages.configs import OracleConfig, PolicyConfig, ScoreConfig
from stages.reporting import Quiet

FAST = {"batch_size": 8, "learning_rate": 3e-3, "warmup_ratio": 0.1, "max_length": 128}


def run_oracle(root, model, reporter=None, output="oracle", dataset=None, **options):
    settings = {**FAST, "sft_batch_size": 8, "sft_learning_rate": 3e-3, "eval_fraction": 0.2, "beta": 0.5, **options}
    config = OracleConfig(
        model=str(model), dataset=str(dataset or root / "pairs.jsonl"), output_dir=str(root / output), **settings
    )
    return train_oracle.run(config, reporter or Quiet())


def run_score(root, reporter=None, output="scores", dataset=None, output_dir=None, **options):
    settings = {"shard_size": 16, "max_length": 128, "oracle": str(root / "oracle"), **options}
    output_dir = output_dir or str(root / output)
    config = ScoreConfig(dataset=str(dataset or root / "pairs.jsonl"), output_dir=output_dir, **settings)
    return score.run(config, reporter or Quiet())


def run_policy(root, model, reporter=None, output="policy", scores="scores", scores_dir=None, **options):
    config = PolicyConfig(
        model=str(model), scores=scores_dir or str(root / scores), output_dir=str(root / output), **{**FAST, **options}
    )
    return train_policy.run(config, reporter or Quiet())
