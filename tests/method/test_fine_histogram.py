import numpy as np
import pytest

from stages.method.fine_histogram import FineHistogram


def histogram(*parts):
    found = FineHistogram()
    for part in parts:
        found.add(np.array(part, np.float32))
    return found


@pytest.mark.parametrize("shift", [0.0, 0.5, -40.0])
def test_its_quantiles_are_those_of_the_values_within_a_thousandth(shift):
    values = (np.random.default_rng(0).standard_t(2, 5001) / 5 + shift).astype(np.float32)
    half = histogram(values[:2000]) + histogram(values[2000:])
    for share in (0.0, 0.02, 0.5, 0.7512, 1.0):
        assert half.quantile(share) == pytest.approx(np.quantile(values, share), rel=1e-3, abs=1e-6)
    far = np.quantile(np.abs(values - np.median(values)), 0.98)
    assert half.distance(half.median, 0.98) == pytest.approx(far, rel=1e-3, abs=2e-3 * abs(shift))
    assert half.within(shift, 0.3) == pytest.approx(
        (np.abs(values - shift) < 0.3).mean(), abs=0.03 * abs(shift) / 40 + 0.002
    )
    assert (half.count, half.low, half.high) == (5001, values.min(), values.max())
    assert (half.mean, half.spread) == pytest.approx((values.mean(dtype=float), values.std(dtype=float)), rel=1e-6)
    edges = np.linspace(shift - 1, shift + 1, 9)
    inside = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], -1e9)), edges)[0]
    assert np.abs(half.binned(edges) - inside).sum() <= (20 if abs(shift) < 1 else 800)
    assert half.binned(edges).sum() == 5001


def test_values_that_are_all_one_or_few():
    assert histogram([0.0, -0.0], [0.0]).median == 0.0
    assert histogram([0.3]).quantile(0.98) == np.float32(0.3)
    assert histogram([-3, -1, 2, 4]).median == pytest.approx(0.5, rel=1e-3)
    assert histogram([-3.4e38, 3.4e38, 1e-40]).median == pytest.approx(1e-40, abs=1e-38)
