"""Mean and variance of activations, and the fraction of variance unexplained: one definition each."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 256  # summed at a time, so that they stay in cache in float64


def squared_norms(rows: Tensor) -> Tensor:
    """Squared norm of each row, summed in float64: `[n, d]` to `[n]`."""
    # Without a copy of the rows in float64, which would cost ten times as much.
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square()


class Moments:
    """Running mean and total variance of activations, in float64.

    `total_variance` is the sum over tokens and dimensions of squared deviations from the
    per-dimension mean: the denominator of FVU.
    """

    def __init__(self, d_in: int) -> None:
        self.n = 0
        self._mean = torch.zeros(d_in, dtype=torch.float64)
        self._deviations = torch.zeros(d_in, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add a batch `[batch, d_in]`."""
        for part in x.split(ROWS):
            self._merge(part.double())

    def _merge(self, x: Tensor) -> None:
        if not len(x):
            return
        centre = x.mean(0)
        mean = centre.cpu()
        total = self.n + len(x)
        shift = mean - self._mean
        # Chan et al.: merging centred sums does not cancel where the mean is large.
        self._deviations += ((x - centre) ** 2).sum(0).cpu() + shift**2 * (self.n * len(x) / total)
        self._mean += shift * (len(x) / total)
        self.n = total

    @property
    def mean(self) -> Tensor:
        """Mean of each dimension, float64 `[d_in]`."""
        return self._mean

    @property
    def total_variance(self) -> float:
        """Sum of squared deviations from the mean."""
        return float(self._deviations.sum())


def fvu(squared_error: float, total_variance: float) -> float:
    """Fraction of variance unexplained: sum of squared errors over sum of squared deviations.

    Deviations are from the per-dimension mean of the evaluation set, so that predicting this
    mean scores 1 and a perfect reconstruction 0.

    Raises
    ------
    ValueError
        If the activations do not vary.
    """
    if not total_variance > 0:
        raise ValueError("FVU is not defined: the activations do not vary.")
    return squared_error / total_variance


def ratio_of_totals(numerators: Tensor, denominators: Tensor) -> tuple[float, float]:
    """Sum of numerators over sum of denominators, with its standard error over units drawn at random.

    A unit is sampled as a whole, such as a row of tokens: values within it depend on each other, so
    they count once. Differences are paired by giving the units' differences as numerators.

    Parameters
    ----------
    numerators, denominators : Tensor
        Totals of each unit, such as squared error and squared deviation, or loss and targets, `[units]`.

    Returns
    -------
    float, float
        The ratio, and its standard error to first order (the ratio estimator of survey sampling, Cochran
        1977, section 6.4); NaN for fewer than two units.
    """
    numerators, denominators = numerators.double(), denominators.double()
    total, n = float(denominators.sum()), len(numerators)
    ratio = float(numerators.sum()) / total
    if n < 2:
        return ratio, float("nan")
    residual = numerators - ratio * denominators
    return ratio, float(residual.square().sum() * n / (n - 1)) ** 0.5 / total
