"""What every stage imports, or works out once, for the process that `tests.lives` forks the others from."""

# ruff: noqa: F401
import tempfile

import pandas
import pyarrow.dataset
from transformers import AutoModelForCausalLM

from stages import evaluate, generate, score, train_oracle, train_policy
from stages.report import card
from tests import world
from tests.conftest import tiny_llama

# The first model that a process loads compiles every pattern of a weight's name that transformers knows.
with tempfile.TemporaryDirectory() as folder:
    tiny_llama(8).save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder)

card.draw_curves = world.sketch_curves
