"""The error of a ratio of totals, against resampling."""

import numpy as np
import pytest
import torch

from saekit.moments import ratio_of_totals


def test_the_error_of_a_mean_is_the_usual_one():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    ratio, error = ratio_of_totals(values, torch.ones(50))
    assert ratio == pytest.approx(float(values.mean()))
    assert error == pytest.approx(float(values.std()) / 50**0.5)


def test_it_agrees_with_the_bootstrap_where_units_differ_in_size():
    random = np.random.default_rng(0)
    size = random.integers(20, 130, 200)
    total = size * random.normal(1.0, 0.3, 200)
    _, error = ratio_of_totals(torch.from_numpy(total), torch.from_numpy(size))
    draws = random.integers(0, 200, (4000, 200))
    resampled = total[draws].sum(1) / size[draws].sum(1)
    assert error == pytest.approx(resampled.std(), rel=0.05)


def test_one_unit_has_no_error():
    ratio, error = ratio_of_totals(torch.tensor([3.0]), torch.tensor([2.0]))
    assert ratio == 1.5
    assert np.isnan(error)
