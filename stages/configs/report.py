"""`sepo report`."""

from dataclasses import dataclass
from typing import Annotated, Final

from stages.configs import limits, shared
from stages.configs.option import DATA, METHOD, OUTPUT, REQUIRED, Config, Option, required

RULES: Final = ("oracle", "inverted", "symmetric", "earliest", "latest", "threshold", "auto", "all")
"""those that the page itself can apply: they look at one response at a time"""


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Show scores token by token, training runs, evaluations and benchmarks in one HTML file that needs nothing
    else."""

    folders: Annotated[tuple[str, ...], Option(REQUIRED, "FOLDER...", content=False, flags=("FOLDER",))] = required(())
    """What to show: folders of score, project-scores, denoise, train-oracle, train-policy, compare and demo-report, and
    JSON files of evaluate and results. A folder that holds such folders stands for all of them."""
    output: Annotated[str, Option(REQUIRED, "FILE.html", limit=limits.new_file, content=False)] = required()
    """HTML file to write."""
    pairs: Annotated[int, Option(DATA, limit=limits.at_least_one)] = 200
    """Most pairs to show token by token; of more, so many are drawn by --seed."""
    tokenizer: Annotated[str | None, Option(DATA, "FOLDER|NAME", content=False)] = None
    """Tokenizer that the scores were made with; without it, the one that the scores' manifest names."""
    select: Annotated[str, Option(METHOD, choices=RULES)] = "oracle"
    """Rule by which the page underlines tokens at first, as train-policy selects them; the page can change it."""
    chosen_ratio: Annotated[float, Option(METHOD, limit=limits.share)] = 0.3
    """Share of the tokens of a chosen response that is underlined at first."""
    rejected_ratio: Annotated[float, Option(METHOD, limit=limits.share)] = 0.3
    """The same for a rejected response."""
    figures: Annotated[str | None, Option(OUTPUT, "FOLDER", limit=limits.local, content=False)] = None
    """Folder for every plot as SVG and as PDF, as wide as a column of a paper."""
    seed: shared.Seed = 42
    overwrite: Annotated[bool, Option(OUTPUT, content=False)] = False
    """Replace a page or figures that show something else."""
