"""The commands, and how each becomes a signature that typer reads: all options come from the command's dataclass.

A new command is a dataclass in `stages.configs`, a module of its name in `stages` and a line in `COMMANDS`. Stages are
imported in `sepo_cli.run`, when a command really runs: they load torch.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.markup import escape
from typer.core import TyperCommand

from sepo_cli.config_file import use_config_file
from sepo_cli.run import run_stage
from sepo_cli.spelling import translated
from stages import configs
from stages.configs import Declared, declared, is_several
from stages.registry import OBJECTIVES, RULES

PIPELINE: Final = "The pipeline"
WEAK_TO_STRONG: Final = "Weak to strong"
DEMO: Final = "The demo with planted truth"


class Command(NamedTuple):
    """A command and what its help shows about it; its description is that of its dataclass."""

    name: str
    config: type[Any]
    panel: str
    example: str


COMMANDS: Final = (
    Command("validate", configs.ValidateConfig, PIPELINE, "--model M --dataset pairs.jsonl"),
    Command("train-oracle", configs.OracleConfig, PIPELINE, "--model M --dataset pairs.jsonl --output-dir runs/oracle"),
    Command(
        "score", configs.ScoreConfig, PIPELINE, "--oracle runs/oracle --dataset pairs.jsonl --output-dir runs/scores"
    ),
    Command("check", configs.CheckConfig, PIPELINE, "runs/scores"),
    Command("inspect", configs.InspectConfig, PIPELINE, "runs/scores --sort wrong"),
    Command("denoise", configs.DenoiseConfig, PIPELINE, "--scores runs/scores --output-dir runs/denoised"),
    Command("train-policy", configs.PolicyConfig, PIPELINE, "--model P --scores runs/scores --output-dir runs/policy"),
    Command(
        "evaluate",
        configs.EvaluateConfig,
        PIPELINE,
        "--model runs/policy --model simpo=runs/simpo --reference-model P --dataset held-out.jsonl",
    ),
    Command(
        "generate", configs.GenerateConfig, PIPELINE, "--model runs/policy --benchmark ifeval --output-dir runs/answers"
    ),
    Command("results", configs.ResultsConfig, PIPELINE, "runs/answers --output results.json"),
    Command("report", configs.ReportConfig, PIPELINE, "runs/scores runs/oracle runs/policy --output report.html"),
    Command("pair", configs.PairConfig, PIPELINE, "runs/answers --oracle runs/oracle --output pairs.jsonl"),
    Command(
        "extrapolate",
        configs.ExtrapolateConfig,
        PIPELINE,
        "--model runs/policy --reference-model runs/oracle/reference --scale 0.5 --output-dir runs/half-way",
    ),
    Command("cache", configs.CacheConfig, PIPELINE, "prune --older-than 30"),
    Command("cut-model", configs.CutModelConfig, WEAK_TO_STRONG, "--model M --layers 6 --output-dir runs/small"),
    Command(
        "project-scores",
        configs.ProjectScoresConfig,
        WEAK_TO_STRONG,
        "--scores S --model P --dataset pairs.jsonl --output-dir runs/projected",
    ),
    Command("make-demo", configs.DemoConfig, DEMO, "--output-dir runs/demo"),
    Command(
        "demo-report",
        configs.DemoReportConfig,
        DEMO,
        "--demo D --scores S --reference R --model sepo=P --output-dir runs/report",
    ),
    Command(
        "compare",
        configs.CompareConfig,
        DEMO,
        "--run sepo=sepo-1.json --run sepo=sepo-2.json --run dpo=dpo-1.json --output-dir runs/compare",
    ),
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=use_config_file,
        is_eager=True,
        help="YAML file with any of the options below; flags beat the file, the file beats the defaults.",
    ),
]
_Quietly = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Show only warnings, the result and errors.")]
_Loudly = Annotated[bool, typer.Option("--verbose", "-v", metavar="", help="Show also what the libraries log.")]


class TranslatingCommand(TyperCommand):
    """A command that understands spellings of others, and whose help shows first what an objective or rule uses."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        args = translated(args, {name for param in self.params for name in param.opts})
        if {"-h", "--help"} & set(args):
            self._show_first(args)
        return super().parse_args(ctx, args)

    def _show_first(self, args: list[str]) -> None:
        for option, entries in (("--select", RULES), ("--objective", OBJECTIVES)):
            entry = entries.get(_value_of(option, args))
            if entry:
                own = [param for param in self.params if param.name in entry.options]
                for param in own:
                    param.rich_help_panel = f"Options of {option} {entry.name}"  # type: ignore[attr-defined]
                self.params = own + [param for param in self.params if param not in own]


def _value_of(option: str, args: list[str]) -> str:
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else following
    return ""


def function_of(command: Command) -> Callable[..., None]:
    """What typer calls for a command, with the signature that it reads."""

    def function(context: typer.Context, config: Path | None, quiet: bool, verbose: bool, **options: Any) -> None:
        run_stage(context, command.config, options, quiet=quiet, verbose=verbose)

    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, annotation=ConfigFile, default=None),
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, annotation=_Quietly, default=False),
        inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, annotation=_Loudly, default=False),
        *map(_parameter, declared(command.config)),
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in parameters}
    function.__name__, function.__doc__ = command.name, description(command)
    return function


def description(command: Command) -> str:
    """The first paragraph of the dataclass, on one line."""
    return " ".join(inspect.getdoc(command.config).split("\n\n")[0].split())  # type: ignore[union-attr]


def _parameter(each: Declared) -> inspect.Parameter:
    kind = list[str] if is_several(each.kind) else each.kind
    # Asked for by the command, all that is missing at once, and not by typer, which knows no configuration file.
    kind, default = (kind | None, None) if each.required or is_several(each.kind) else (kind, each.default)
    spellings = each.flags
    shown: dict[str, Any] = {"metavar": each.metavar}
    if each.kind is bool:
        # Off is what a switch is, and "[default: no-overwrite]" no news; only what is on can be turned off.
        spellings = (f"{spellings[0]}/--no-{spellings[0][2:]}",) if each.default else spellings
        shown = {"metavar": "", "show_default": False}
    shown |= {"help": escape(each.help), "rich_help_panel": each.option.panel}
    is_option = spellings[0].startswith("--")
    option = typer.Option(*spellings, **shown) if is_option else typer.Argument(**shown)
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option], default=default
    )
