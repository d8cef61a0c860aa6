"""One frozen dataclass per command: every option, its default and its limits. Loads nothing heavy.

A field marked ``content=False`` decides where or how fast something is made, not what is made; all the others enter
the fingerprint of the stage (`stages.store.manifest`). Faults are collected and raised together, before any model
loads.
"""

from stages.configs.demo import CompareConfig, DemoConfig, DemoReportConfig
from stages.configs.evaluation import EvaluateConfig
from stages.configs.fields import (
    MIXED_PRECISIONS,
    OPTIMIZERS,
    ORACLE_SIZES,
    OVERLONG,
    PRECISIONS,
    QUANTIZATIONS,
    SCHEDULERS,
    TRACKERS,
    column_names,
    content_settings,
    is_remote,
    module_names,
    worker_numbers,
)
from stages.configs.policy import PolicyConfig
from stages.configs.scores import CutModelConfig, ProjectScoresConfig, ScoreConfig, ValidateConfig
from stages.configs.training import OptimizerConfig, OracleConfig

__all__ = [
    "MIXED_PRECISIONS",
    "OPTIMIZERS",
    "ORACLE_SIZES",
    "OVERLONG",
    "PRECISIONS",
    "QUANTIZATIONS",
    "SCHEDULERS",
    "TRACKERS",
    "CompareConfig",
    "CutModelConfig",
    "DemoConfig",
    "DemoReportConfig",
    "EvaluateConfig",
    "OptimizerConfig",
    "OracleConfig",
    "PolicyConfig",
    "ProjectScoresConfig",
    "ScoreConfig",
    "ValidateConfig",
    "column_names",
    "content_settings",
    "is_remote",
    "module_names",
    "worker_numbers",
]
