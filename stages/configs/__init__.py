"""One frozen dataclass per command, which declares every option once (`stages.configs.option`).

May import: errors, reporting, types and registry. On disk it touches nothing, and it loads nothing heavy.
"""

from stages.configs.demo import CompareConfig as CompareConfig
from stages.configs.demo import DemoConfig as DemoConfig
from stages.configs.demo import DemoReportConfig as DemoReportConfig
from stages.configs.evaluation import EvaluateConfig as EvaluateConfig
from stages.configs.evaluation import ResultsConfig as ResultsConfig
from stages.configs.fields import NAMED_TRACKERS as NAMED_TRACKERS
from stages.configs.fields import PRECISIONS as PRECISIONS
from stages.configs.fields import byte_count as byte_count
from stages.configs.fields import column_names as column_names
from stages.configs.fields import is_remote as is_remote
from stages.configs.fields import module_names as module_names
from stages.configs.fields import worker_numbers as worker_numbers
from stages.configs.generation import GenerateConfig as GenerateConfig
from stages.configs.option import Config as Config
from stages.configs.option import Declared as Declared
from stages.configs.option import content_defaults as content_defaults
from stages.configs.option import content_settings as content_settings
from stages.configs.option import declared as declared
from stages.configs.option import is_several as is_several
from stages.configs.pairs import PairConfig as PairConfig
from stages.configs.policy import PolicyConfig as PolicyConfig
from stages.configs.report import ReportConfig as ReportConfig
from stages.configs.resources import TrainingResources as TrainingResources
from stages.configs.scores import CacheConfig as CacheConfig
from stages.configs.scores import CheckConfig as CheckConfig
from stages.configs.scores import CutModelConfig as CutModelConfig
from stages.configs.scores import DenoiseConfig as DenoiseConfig
from stages.configs.scores import ExtrapolateConfig as ExtrapolateConfig
from stages.configs.scores import InspectConfig as InspectConfig
from stages.configs.scores import ProjectScoresConfig as ProjectScoresConfig
from stages.configs.scores import ScoreConfig as ScoreConfig
from stages.configs.training import OptimizerConfig as OptimizerConfig
from stages.configs.training import OracleConfig as OracleConfig
from stages.configs.validation import ValidateConfig as ValidateConfig
