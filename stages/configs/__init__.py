"""One frozen dataclass per command, which declares every option once (`stages.configs.option`).

May import: errors, reporting, types and registry. On disk it touches nothing, and it loads nothing heavy.
"""

from stages.configs.demo import CompareConfig, DemoConfig, DemoReportConfig
from stages.configs.evaluation import EvaluateConfig
from stages.configs.fields import (
    NAMED_TRACKERS,
    PRECISIONS,
    column_names,
    is_remote,
    module_names,
    worker_numbers,
)
from stages.configs.option import Config, Declared, content_defaults, content_settings, declared, is_several
from stages.configs.policy import PolicyConfig
from stages.configs.scores import (
    CacheConfig,
    CheckConfig,
    CutModelConfig,
    ProjectScoresConfig,
    ScoreConfig,
    ValidateConfig,
)
from stages.configs.training import OptimizerConfig, OracleConfig

__all__ = [
    "NAMED_TRACKERS",
    "PRECISIONS",
    "CacheConfig",
    "CheckConfig",
    "CompareConfig",
    "Config",
    "CutModelConfig",
    "Declared",
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
    "content_defaults",
    "content_settings",
    "declared",
    "is_remote",
    "is_several",
    "module_names",
    "worker_numbers",
]
