"""`sepo results`."""

from dataclasses import dataclass
from typing import Annotated

from stages.configs import limits, shared
from stages.configs.option import OUTPUT, REQUIRED, Config, Option, required


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(Config):
    """What official judges and verifiers say of models' answers: every figure with its interval, and every lead that is
    none."""

    paths: Annotated[tuple[str, ...], Option(REQUIRED, "PATH...", content=False, flags=("PATH",))] = required(())
    """Folders of `sepo generate`, files that official tools wrote, or folders with any of these below: AlpacaEval's
    annotations.json and leaderboard.csv, Arena-Hard's and MT-Bench's judgments, IFEval's results of lm-eval or of
    Google's script. Answers to IFEval are verified here."""
    seed: shared.Seed = 42
    output: Annotated[str | None, Option(OUTPUT, "FILE.json", limit=limits.new_file, content=False)] = None
    """JSON file for all figures; `sepo report` shows it."""
    json: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Print one JSON object for programs, and nothing else, on stdout."""
    overwrite: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Replace an --output that holds other results."""
