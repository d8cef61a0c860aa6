"""The model card beside weights: where they come from, in the form the Hugging Face hub reads."""

from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.configs import OracleConfig, PolicyConfig, content_settings
from stages.models.adapters import is_adapter
from stages.report.curves import FILE as CURVES
from stages.report.curves import draw_curves
from stages.reporting import Table, flat, markdown
from stages.store.files import write_text
from stages.training.metric_lines import read_metrics

FILE: Final = "README.md"


class Made(NamedTuple):
    """What a card tells of a run."""

    config: OracleConfig | PolicyConfig
    inputs: dict[str, str]
    """hashes of what was read, by name; of scores their fingerprint"""
    counts: dict[str, Any]
    """as in the manifest"""


def write_policy_card(folder: Path, made: Made, last: dict[str, float]) -> None:
    """Write README.md and the curves of a policy; `last` are averages of the last logged step."""
    assert isinstance(made.config, PolicyConfig)
    counts = made.counts
    shares = [f"{counts['selected'][side]:,} of {tokens:,} {side}" for side, tokens in counts["tokens"].items()]
    what = (
        f"Trained by `sepo train-policy` with the objective `{made.config.objective}` on {counts['kept']:,} scored"
        f" pairs: of their response tokens, only {' and '.join(shares)} ones supervised"
        " the model (arXiv 2408.13518)."
    )
    title = "trained by Selective Preference Optimization"
    _write(folder, _records(folder, made.config.objective), made, title, what, last)


def write_reference_card(folder: Path, run: Path, made: Made) -> None:
    """Write README.md and the curves of the reference of an oracle, which lies in the folder `run`."""
    assert isinstance(made.config, OracleConfig)
    tuned = (
        "fine-tuned on the chosen responses" if made.config.sft_epochs else "the model as it was, without fine-tuning"
    )
    what = (
        "The model from which an oracle was trained by `sepo train-oracle`, and against which it scores tokens"
        f" (arXiv 2408.13518 section 3.2): {tuned}."
    )
    records = _records(run, "sft")
    _write(folder, records, made, "reference of an oracle", what, _last(records))


def write_oracle_card(folder: Path, run: Path, made: Made, held_out: dict[str, float], phase: str) -> None:
    """The same of an oracle, trained in a phase; `held_out` is what the pairs say that it was not trained on."""
    what = (
        "An oracle by `sepo train-oracle`: trained by DPO, its log-probs minus those of its reference score the tokens"
        " of responses (arXiv 2408.13518 section 3.2). It is made to score, not to be talked to."
    )
    records = _records(run, phase)
    results = _last(records) | {f"held-out {name}": value for name, value in held_out.items()}
    _write(folder, records, made, "oracle for token scores", what, results)


def _write(
    folder: Path, records: list[dict[str, Any]], made: Made, role: str, what: str, results: dict[str, float]
) -> None:
    from huggingface_hub import ModelCardData

    model = made.config.model
    title = f"{Path(model).name}, {role}"
    if records:
        draw_curves(records, folder / CURVES, title)
    data = ModelCardData(
        # A folder of this computer is nowhere else.
        base_model=None if Path(model).expanduser().is_dir() else model,
        library_name="peft" if is_adapter(folder) else "transformers",
        pipeline_tag="text-generation",
        tags=["sepo", "preference-optimization"],
    )
    settings = {name: value for name, value in content_settings(made.config).items() if value is not None}
    figures = {name: f"{value:.6g}" for name, value in results.items()} or {"steps": "0"}
    tables = [
        _table("Settings", "setting", settings),
        _table("Data", "count of", {name: f"{count:,}" for name, count in flat(made.counts) if isinstance(count, int)}),
        _table("Last logged step" if records else "Training", "figure", figures),
        _table("Read", "hash of", made.inputs),
    ]
    picture = [f"![{records[0]['phase']} by step]({CURVES})\n"] if records else []
    closing = "The complete record is in `manifest.json`, every logged step in `metrics.jsonl`.\n"
    text = "\n".join([f"# {markdown(title)}\n", f"{what}\n", *picture, *tables, closing])
    write_text(folder / FILE, f"---\n{data.to_yaml()}\n---\n\n{text}")


def _records(run: Path, phase: str) -> list[dict[str, Any]]:
    """The logged steps of a phase; none where it was not trained."""
    return [record for record in read_metrics(run) if record["phase"] == phase]


def _last(records: list[dict[str, Any]]) -> dict[str, float]:
    return {name: value for record in records[-1:] for name, value in record.items() if isinstance(value, float)}


def _table(title: str, named: str, values: dict[str, Any]) -> str:
    return Table(title, [named, "value"], [[str(name), str(value)] for name, value in values.items()]).markdown()
