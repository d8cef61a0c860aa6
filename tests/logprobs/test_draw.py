"""Tokens are drawn as often as temperature and top-p say."""

import numpy as np
import torch

from stages.logprobs import draw as module
from stages.logprobs.draw import draw

LOGITS = [0.5, -1.0, 2.0, 1.0, -3.0, 1.5]
DRAWS = 20_000


def drawn(temperature, top_p, logits=LOGITS, count=DRAWS):
    uniform = torch.from_numpy((np.arange(count) + 0.5) / count)
    return draw(torch.tensor([logits] * count), torch.full((count,), temperature), torch.full((count,), top_p), uniform)


def expected(temperature, top_p, logits=LOGITS):
    """Probabilities, by hand."""
    weights = np.exp(np.array(logits) / temperature)
    weights /= weights.sum()
    kept, total = [], 0.0
    for index in np.argsort(-weights):
        if total < top_p:
            kept.append(index)
        total += weights[index]
    left = np.zeros_like(weights)
    left[kept] = weights[kept]
    return left / left.sum()


def test_temperature_and_top_p():
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (2.0, 0.6), (1.0, 0.01), (0.7, 0.95)):
        found = np.bincount(drawn(temperature, top_p).numpy(), minlength=len(LOGITS)) / DRAWS
        np.testing.assert_allclose(found, expected(temperature, top_p), atol=2e-4)


def test_rows_are_drawn_each_in_its_own_way():
    rows = torch.tensor([LOGITS] * 3)
    found = draw(rows, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.3]), torch.tensor([0.999] * 3).double())
    assert found.tolist() == [2, 5, 2]


def test_a_nucleus_is_the_same_wherever_it_is_looked_for(monkeypatch):
    """Among the likeliest few, or the whole vocabulary."""
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0)).tolist()
    usual = drawn(3.0, 0.8, logits, 500)
    monkeypatch.setattr(module, "_LIKELY", 10)
    assert drawn(3.0, 0.8, logits, 500).equal(usual)


def test_the_ends_of_the_random_numbers():
    """0 and what rounds to 1 give tokens that have a probability."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, torch.ones(2), torch.ones(2), uniform).tolist() == [1, 2]
