"""Mean and variance of activations, and the fraction of variance unexplained: one definition each."""

from __future__ import annotations

import torch
from torch import Tensor


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
        if not len(x):
            return
        x = x.double()
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
