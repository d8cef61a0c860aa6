"""The model card beside a policy's weights: where they come from, in the form the Hugging Face hub reads."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.configs import PolicyConfig
from stages.store.files import write_text

TEMPLATE = """---
library_name: {library}
pipeline_tag: text-generation
base_model: {model}
tags:
- sepo
- preference-optimization
---

# {model}, trained by Selective Preference Optimization

Trained by `sepo train-policy` with the objective `{objective}` on {kept:,} scored pairs: of their response tokens, only
{chosen} of {chosen_tokens:,} chosen and {rejected} of {rejected_tokens:,} rejected ones supervised the model
(arXiv 2408.13518).

| setting | value |
|---|---|
{settings}

| last logged step | value |
|---|---|
{results}

Scores: `{scores}`. The complete record is in `manifest.json`, every logged step in `metrics.jsonl`.
"""


def write_card(
    folder: Path, config: PolicyConfig, inputs: dict[str, str], counts: dict[str, Any], last: dict[str, float]
) -> None:
    """Write README.md.

    Args:
        inputs: hashes of what was read, by name.
        counts: kept pairs, response tokens and selected tokens, as in the manifest.
        last: averages of the last logged step.
    """
    card = TEMPLATE.format(
        library="peft" if config.lora_rank and not config.merge else "transformers",
        model=Path(config.model).name,
        objective=config.objective,
        kept=counts["kept"],
        chosen=f"{counts['selected']['chosen']:,}",
        rejected=f"{counts['selected']['rejected']:,}",
        chosen_tokens=counts["tokens"]["chosen"],
        rejected_tokens=counts["tokens"]["rejected"],
        settings=_table(asdict(config)),
        results=_table({name: f"{value:.6g}" for name, value in last.items()}),
        scores=inputs["scores"],
    )
    write_text(folder / "README.md", card)


def _table(values: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in values.items())
