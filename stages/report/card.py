"""The model card beside weights: where they come from, in the form the Hugging Face hub reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.configs import OracleConfig, PolicyConfig, content_settings
from stages.models.adapters import is_adapter
from stages.report.curves import FILE as CURVES
from stages.report.curves import draw_curves
from stages.reporting import markdown
from stages.store.files import write_text
from stages.training.metrics import read_metrics

FILE: Final = "README.md"
TEMPLATE: Final = """---
library_name: {library}
pipeline_tag: text-generation
{base}tags:
- sepo
- preference-optimization
---

# {title}

{what}
{picture}
| setting | value |
|---|---|
{settings}

| data | count |
|---|---|
{counts}

| {results_of} | value |
|---|---|
{results}

| read | hash |
|---|---|
{inputs}

The complete record is in `manifest.json`, every logged step in `metrics.jsonl`.
"""


class Made(NamedTuple):
    """What a card tells of a run."""

    config: OracleConfig | PolicyConfig
    inputs: dict[str, str]
    """hashes of what was read, by name; of scores their fingerprint"""
    counts: dict[str, Any]
    """as in the manifest"""


def write_policy_card(folder: Path, made: Made, last: dict[str, float]) -> None:
    """Write README.md and the curves of a policy.

    Args:
        last: averages of the last logged step.
    """
    assert isinstance(made.config, PolicyConfig)
    counts = made.counts
    shares = [f"{counts['selected'][side]:,} of {tokens:,} {side}" for side, tokens in counts["tokens"].items()]
    what = (
        f"Trained by `sepo train-policy` with the objective `{made.config.objective}` on {counts['kept']:,} scored"
        f" pairs: of their response tokens, only {' and '.join(shares)} ones supervised"
        " the model (arXiv 2408.13518)."
    )
    title = f"{_base(made)}, trained by Selective Preference Optimization"
    _write(folder, folder, made, title, what, made.config.objective, last)


def write_reference_card(folder: Path, run: Path, made: Made) -> None:
    """Write README.md and the curves of the reference of an oracle, which lies in the folder `run`."""
    assert isinstance(made.config, OracleConfig)
    what = (
        "The model from which an oracle was trained by `sepo train-oracle`, and against which it scores tokens"
        " (arXiv 2408.13518 section 3.2): "
        + (
            "fine-tuned on the chosen responses."
            if made.config.sft_epochs
            else "the model as it was, without fine-tuning."
        )
    )
    last = _last(run, "sft")
    _write(folder, run, made, f"{_base(made)}, reference of an oracle", what, "sft", last)


def write_oracle_card(folder: Path, run: Path, made: Made, held_out: dict[str, float]) -> None:
    """Write README.md and the curves of an oracle, which lies in the folder `run`.

    Args:
        held_out: what the pairs say that it was not trained on.
    """
    what = (
        "An oracle by `sepo train-oracle`: trained by DPO, its log-probs minus those of its reference score the tokens"
        " of responses (arXiv 2408.13518 section 3.2). It is made to score, not to be talked to."
    )
    last = _last(run, "dpo") | {f"held-out {name}": value for name, value in held_out.items()}
    _write(folder, run, made, f"{_base(made)}, oracle for token scores", what, "dpo", last)


def _write(folder: Path, run: Path, made: Made, title: str, what: str, phase: str, results: dict[str, float]) -> None:
    records = [record for record in read_metrics(run) if record["phase"] == phase]
    if records:
        draw_curves(records, folder / CURVES, title)
    card = TEMPLATE.format(
        library="peft" if is_adapter(folder) else "transformers",
        base=_base_line(made),
        title=markdown(title),
        what=what,
        picture=f"\n![{phase} by step]({CURVES})\n" if records else "",
        settings=_table({name: value for name, value in content_settings(made.config).items() if value is not None}),
        counts=_table({name: f"{count:,}" for name, count in _flat(made.counts)}),
        results_of="last logged step" if records else "training",
        results=_table({name: f"{value:.6g}" for name, value in results.items()} or {"steps": 0}),
        inputs=_table(made.inputs),
    )
    write_text(folder / FILE, card)


def _base(made: Made) -> str:
    return Path(made.config.model).name


def _base_line(made: Made) -> str:
    """Names a model of the hub; a folder of this computer is nowhere else."""
    name = made.config.model
    return "" if Path(name).expanduser().is_dir() else f"base_model: {name}\n"


def _last(run: Path, phase: str) -> dict[str, float]:
    """The figures of the last logged step of a phase; none where it was not trained."""
    records = [record for record in read_metrics(run) if record["phase"] == phase]
    return {name: value for record in records[-1:] for name, value in record.items() if isinstance(value, float)}


def _flat(counts: dict[str, Any], before: str = "") -> Iterator[tuple[str, int]]:
    """Nested counts as lines: ``dropped, empty response``."""
    for name, value in counts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}, ")
        elif isinstance(value, int):
            yield f"{before}{name}", value


def _table(values: dict[str, Any]) -> str:
    return "\n".join(f"| {markdown(str(name))} | {markdown(str(value))} |" for name, value in values.items())
