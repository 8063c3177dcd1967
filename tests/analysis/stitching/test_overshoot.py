"""The best factor on a change of reconstructions, against least squares."""

import numpy as np
import pytest
import torch

from saekit.analysis import measure_overshoot
from saekit.dictionary import Dictionary
from saekit.metrics import evaluate


def dictionary(width, seed, scale=1.0):
    rows = torch.nn.functional.normalize(torch.randn(width, 8, generator=torch.Generator().manual_seed(seed)))
    zero, info = torch.zeros(width), {"kind": "relu", "seed": 0}
    return Dictionary(scale * rows.T.contiguous(), zero, rows, torch.zeros(8), zero, info=info)


@pytest.fixture
def x():
    return torch.randn(500, 8, generator=torch.Generator().manual_seed(5)) + 0.3


def test_the_factor_is_that_of_least_squares(x):
    before, after = dictionary(6, 0), dictionary(9, 1)
    found = measure_overshoot(before, after, x)
    change = (after.reconstruct(x) - before.reconstruct(x)).double().numpy().ravel()
    residual = (x - before.reconstruct(x)).double().numpy().ravel()
    (scale,), (rest,), *_ = np.linalg.lstsq(change[:, None], residual, rcond=None)
    variance = float(((x.double() - x.double().mean(0)) ** 2).sum())
    assert found.scale == pytest.approx(scale, rel=1e-9)
    assert found.fvu_scaled == pytest.approx(rest / variance, rel=1e-6)
    assert found.fvu_before == pytest.approx(evaluate(before, x).fvu, rel=1e-6)
    assert found.fvu_after == pytest.approx(evaluate(after, x).fvu, rel=1e-6)
    assert found.fvu_scaled < min(found.fvu_before, found.fvu_after)
    assert found.n_tokens == 500


def test_activations_twice_too_large_have_factor_one_half(x):
    """Twice the reconstruction on top of the right one is one reconstruction too much."""
    rows, zero, info = torch.eye(8), torch.zeros(8), {"kind": "relu", "seed": 0}
    positive = x.abs()
    dead = Dictionary(rows, zero, rows, zero, torch.full((8,), 1e6), info=info)
    double = Dictionary(2 * rows, zero, rows, zero, zero, info=info)
    found = measure_overshoot(dead, double, positive)
    assert found.scale == pytest.approx(0.5)
    assert found.fvu_scaled == pytest.approx(0, abs=1e-9)


def test_no_change_is_refused(x):
    before = dictionary(6, 0)
    with pytest.raises(ValueError, match="reconstruct every token alike"):
        measure_overshoot(before, before, x)
