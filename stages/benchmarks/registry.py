"""The benchmarks there are."""

from typing import Final

from stages.benchmarks.alpaca_eval import AlpacaEval
from stages.benchmarks.arena_hard import ArenaHard
from stages.benchmarks.benchmark import Benchmark
from stages.benchmarks.ifeval import IfEval
from stages.benchmarks.mt_bench import MtBench

BENCHMARKS: Final[dict[str, Benchmark]] = {each.name: each for each in (AlpacaEval(), ArenaHard(), MtBench(), IfEval())}
"""by the name on the command line"""
