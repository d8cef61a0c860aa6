"""Kinds of fields, what their texts mean, and the names that some of them take."""

from dataclasses import field, fields
from typing import Any, Final

SCHEDULERS: Final = ("cosine", "linear", "constant", "constant_with_warmup")
OVERLONG: Final = ("drop", "truncate", "error")
PRECISIONS: Final = ("float32", "tf32", "medium", "bfloat16")
MIXED_PRECISIONS: Final = ("no", "bf16", "fp16")
OPTIMIZERS: Final = ("adamw", "adamw-8bit", "adamw-paged", "adamw-8bit-paged")
QUANTIZATIONS: Final = ("4bit", "8bit")
ORACLE_SIZES: Final = ("same", "small")
TRACKERS: Final = (
    "none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
)  # fmt: skip


def outside(default: Any = None) -> Any:
    """A field that does not decide the content of what a stage makes."""
    return field(default=default, metadata={"content": False})


def required() -> Any:
    """A field that decides the content and has no default: None stands for "not given"."""
    return field(default=None)


def column_names(columns: str | None) -> dict[str, str]:
    """``prompt=question,chosen=good`` as ``{"prompt": "question", "chosen": "good"}``; nothing as ``{}``."""
    items = [item.partition("=") for item in columns.split(",")] if columns else []
    return {ours.strip(): theirs.strip() for ours, _, theirs in items}


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


def content_settings(config: Any) -> dict[str, Any]:
    """The settings that decide what a stage makes, by field name."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("content", True)}
