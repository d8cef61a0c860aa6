"""What the texts of some options mean, and the names that some of them take."""

import json
import re
from typing import Any, Final

PRECISIONS: Final = ("float32", "tf32", "medium", "bfloat16")
TRACKERS: Final = (
    "none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
)  # fmt: skip
NAMED_TRACKERS: Final = {
    "tensorboard": "", "wandb": "name", "trackio": "name", "mlflow": "run_name", "clearml": "task_name",
    "swanlab": "experiment_name",
}  # fmt: skip
"""trackers in which a run has a name, and the argument that it is; of tensorboard it is the folder's"""


def column_names(columns: str | None) -> dict[str, str]:
    """``prompt=question,chosen=good`` as ``{"prompt": "question", "chosen": "good"}``; nothing as ``{}``."""
    items = [item.partition("=") for item in columns.split(",")] if columns else []
    return {ours.strip(): theirs.strip() for ours, _, theirs in items}


def byte_count(text: str) -> int:
    """``80GB`` as 80,000,000,000 and ``80GiB`` as 85,899,345,920; 0 for what is no such thing."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([kmgt])(i?)b", text.strip().lower())
    if not found:
        return 0
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("kmgt".index(prefix) + 1))


def json_object(text: str) -> dict[str, Any] | None:
    """``{"enable_thinking": false}``; None for what is no JSON object, or has numbers that JSON has not."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        text.encode()
        found = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_remote(name: str) -> bool:
    """Whether a name is a URI such as ``s3://bucket/folder``."""
    return "://" in name


def module_names(modules: str) -> list[str]:
    """``q_proj, v_proj`` as ``["q_proj", "v_proj"]``."""
    return [name.strip() for name in modules.split(",")]


def worker_numbers(worker: str) -> tuple[int, int]:
    """``3/16`` as ``(3, 16)``; ``(0, 0)`` for what is no such thing."""
    number, _, count = worker.partition("/")
    small = all(part.isdecimal() and len(part) < 10 for part in (number, count))
    return (int(number), int(count)) if small else (0, 0)
