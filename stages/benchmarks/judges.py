"""What the commands for official judges have in common: any OpenAI-compatible server can be the judge."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from stages.benchmarks.benchmark import NextSteps
from stages.store.files import write_text

JUDGE: Final = "judge"
URL: Final = "http://127.0.0.1:8000/v1"
# https://developers.openai.com/api/docs/deprecations, read in November 2026.
PAPER: Final = (
    "The paper's judge was the latest GPT-4o of an unknown date, which cannot be had again: OpenAI dropped that name "
    "in February 2026, and closes the last GPT-4o on 14 January 2027"
)
OTHERS: Final = "Others now judge with gpt-4.1 (until that day) or an open model on a server of their own"


def quoted(path: Path | str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def steps(title: str, official: str, commands: Sequence[str], files: Sequence[str]) -> NextSteps:
    """The commands under what to know of the judge.

    Args:
        official: a sentence on the benchmark's own judge.
    """
    serve = f"vllm serve MODEL --served-model-name {JUDGE} --port 8000"
    lines = [
        f"# To judge {title}:",
        f"# {PAPER}.",
        f"# {official} {OTHERS}; figures of different judges do not compare.",
        f"# The judge is whatever answers to the name {JUDGE} at {URL}, such as: {serve}",
        "# For another name or address change both here and in the files beside the answers.",
        *commands,
    ]
    return NextSteps("\n".join(lines), [*files])


def write_settings(folder: Path, file: str, settings: dict[str, Any]) -> str:
    """Write a YAML file that may stand behind another one, whose keys it then replaces; returns its name."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    write_text(folder / file, "\n" + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000))
    return file
