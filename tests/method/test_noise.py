import numpy as np
import pytest

from stages.method.noise import measure_noise
from stages.report.scores import noise_rows, noise_warnings
from stages.types import PairLogps


def logps(chosen, rejected):
    return PairLogps(np.array(chosen, np.float32), np.array(rejected, np.float32))


def test_noise_by_hand():
    """Ten tokens a side. Chosen: the exact top 3 are 0, 1, 2 and the measured ones 0, 1, 3: two of four agree.
    Rejected: unchanged, three of three. Together 5 of 7; at k = 0.1 one token a side, and both agree."""
    exact = logps([9, 8, 7, 6, 0, 0, 0, 0, 0, 0], [-9, -8, -7, 0, 0, 0, 0, 0, 0, 0])
    measured = logps([9, 8, 5, 6, 0, 0, 0, 0, 0, 0], [-9, -8, -7, 0, 0, 0, 0, 0, 0, 0])
    noise = measure_noise([measured], [exact])
    assert noise.pairs == 1
    assert noise.mean == pytest.approx(2 / 20)
    assert noise.p99 == pytest.approx(np.quantile([2.0] + [0.0] * 19, 0.99))
    assert noise.median_score == 0.0
    assert noise.agreement == {"0.1": 1.0, "0.3": pytest.approx(5 / 7)}
    assert "at k = 0.3 only 0.71" in noise_warnings(noise)[0]
    assert "0.714 at k = 0.3" in noise_rows(noise)[1][1]


def test_exact_scores_have_no_noise():
    exact = logps([1, 2, 3], [3, 2])
    noise = measure_noise([exact], [exact])
    assert (noise.mean, noise.p99, noise.agreement) == (0.0, 0.0, {"0.1": 1.0, "0.3": 1.0})
    assert noise_warnings(noise) == []
    assert noise.median_score == 2.0


def test_rejected_tokens_agree_by_their_lowest():
    """Raising the highest rejected score changes nothing of what is selected there."""
    noise = measure_noise([logps([1], [-5, 0, 0, 9])], [logps([1], [-5, 0, 0, 1])])
    assert noise.agreement["0.1"] == 1.0
