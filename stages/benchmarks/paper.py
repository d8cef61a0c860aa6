"""What the paper reports of its own models: arXiv 2408.13518, Table 1. Judged by GPT-4o; no decoding is stated."""

from typing import Final, NamedTuple

CITED: Final = "arXiv 2408.13518, Table 1"


class PaperFigures(NamedTuple):
    """One line of the table."""

    policy: str
    method: str
    arena_hard: float
    """win rate, %, over GPT-4-0314, of v0.1's 500 prompts"""
    lc_win_rate: float
    """AlpacaEval 2, length-controlled, %"""
    win_rate: float
    """AlpacaEval 2, %"""
    mt_bench: float


_TABLE: Final = {
    "Pythia-SFT-2.8B": """2.34 3.8 4.12 2.8   5.71 5.72 6.1 3.16   5.6 4.8 4.96 3.12   4.37 4.33 4.47 2.93
        5.2 5.8 6.0 3.3   6.2 6.58 6.8 3.26   3.07 4.26 4.4 2.86   6.3 7.1 7.32 3.45""",
    "Pythia-SFT-6.9B": """4.23 5.0 5.17 3.58   10.2 12.78 13.27 4.7   8.1 11.78 12.6 4.34   7.47 11.42 13.2 4.31
        8.0 11.8 12.72 4.51   10.68 13.92 13.7 4.78   4.82 5.28 5.46 3.45   10.94 14.27 13.6 5.09""",
    "TinyLLaMA-Chat": """1.6 1.26 1.43 3.28   2.2 1.95 2.18 3.31   2.3 1.85 2.06 3.38   3.1 3.02 2.12 3.4
        2.61 1.3 3.7 3.28   3.47 2.93 2.74 3.42   1.52 1.26 1.57 3.26   4.1 3.55 3.37 3.78""",
    "LLaMA2-Chat-7B": """4.6 5.4 5.0 4.48   8.5 7.8 6.71 5.43   8.12 8.78 9.4 5.64   9.4 13.35 14.41 5.35
        9.59 13.58 15.4 5.63   9.23 10.86 10.7 5.55   6.73 6.38 6.47 5.23   10.3 14.4 14.91 6.38""",
    "LLaMA2-Chat-13B": """12.0 8.4 7.7 5.7   13.48 13.72 13.37 5.84   13.95 14.27 14.4 5.76   13.84 15.94 16.36 5.73
        14.7 16.4 17.02 5.7   14.4 15.0 15.65 6.37   10.05 8.16 7.5 5.66   15.5 17.53 18.41 6.86""",
}
METHODS: Final = ("Base", "DPO", "IPO", "RRHF", "SimPO", "TDPO", "SePO-rand", "SePO")


def paper_figures() -> list[PaperFigures]:
    """All lines of the table, in its order."""
    lines = []
    for policy, text in _TABLE.items():
        numbers = [float(word) for word in text.split()]
        for at, method in enumerate(METHODS):
            lines.append(PaperFigures(policy, method, *numbers[4 * at : 4 * at + 4]))
    return lines
