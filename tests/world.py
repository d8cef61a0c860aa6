"""A small run of the three stages, and what it leaves, for the tests that look at its outputs."""

import json

import torch
from safetensors.torch import load_file

from stages import score, train_oracle, train_policy
from stages.configs import OracleConfig, PolicyConfig, ScoreConfig
from stages.models.folders import load_model
from stages.reporting import Quiet
from stages.store.files import write_text

FAST = {"batch_size": 8, "learning_rate": 3e-3, "warmup_ratio": 0.1, "max_length": 128}
MODEL_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
}  # fmt: skip
CARD_FILES = {"README.md", "curves.png"}
OWN_FILES = {"manifest.json", "timing.jsonl"}
"""what holds times; a card names its folder"""


def sketch_curves(records, path, title):
    """In place of a card's picture, which takes as long to draw as the model to train: what would be drawn."""
    write_text(path, json.dumps([title, *records]))


def run_oracle(root, model, reporter=None, output="oracle", dataset=None, **options):
    settings = {**FAST, "sft_batch_size": 8, "sft_learning_rate": 3e-3, "eval_fraction": 0.2, "beta": 0.5, **options}
    config = OracleConfig(
        model=str(model), dataset=str(dataset or root / "pairs.jsonl"), output_dir=str(root / output), **settings
    )
    return train_oracle.run(config, reporter or Quiet())


def run_score(root, reporter=None, output="scores", dataset=None, output_dir=None, **options):
    settings = {"shard_size": 16, "max_length": 128, "noise_check": 0.0, "oracle": str(root / "oracle"), **options}
    output_dir = output_dir or str(root / output)
    config = ScoreConfig(dataset=str(dataset or root / "pairs.jsonl"), output_dir=output_dir, **settings)
    return score.run(config, reporter or Quiet())


def run_policy(root, model, reporter=None, output="policy", scores="scores", scores_dir=None, **options):
    config = PolicyConfig(
        model=str(model), scores=scores_dir or str(root / scores), output_dir=str(root / output), **{**FAST, **options}
    )
    return train_policy.run(config, reporter or Quiet())


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights(folder):
    """All weights of a model folder in a row; an adapter's are merged."""
    if (folder / "model.safetensors").exists():
        found = load_file(folder / "model.safetensors")
    else:
        found = dict(load_model(folder, trust_remote_code=False).named_parameters())
    return torch.cat([found[name].detach().flatten() for name in sorted(found)])


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def repeatable(folder):
    """The files that a rerun writes to the byte."""
    return {name for name in files(folder) - OWN_FILES if not name.endswith("README.md")}
