"""Planes of points, and the two searches in each: over rotations, and over bands."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saekit.activations import random_stream

COMPONENTS = 5  # principal components of a cluster; planes are those of two consecutive ones
NEGLIGIBLE = 1e-6  # of the sum of singular values, under which a component is rounding
ANGLES, BINS = 100, 10  # of the mutual information
STARTS, STEPS = 12, 120  # of the search for the fullest band
WARMEST, COLDEST = 0.5, 0.01  # temperature of that search, first and last


def separability(plane: Tensor) -> tuple[float, float]:
    """The least mutual information over rotations, in bits, and the angle that reaches it.

    Examples
    --------
    >>> separability(torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0)))
    (0.0, 0.0)
    """
    angles = torch.arange(ANGLES, dtype=plane.dtype) * (math.pi / 2 / ANGLES)
    information = _information(rotated(plane, angles))
    least = int(information.argmin())
    return float(information[least]), float(angles[least])


def rotated(plane: Tensor, angles: Tensor) -> Tensor:
    """Coordinates of points `[n, 2]` in each of some rotations, `[angles, 2, n]`.

    Examples
    --------
    >>> rotated(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0])).tolist()
    [[[1.0], [2.0]]]
    """
    cos, sin = angles.cos(), angles.sin()
    axes = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    return axes @ plane.T


def _information(pairs: Tensor) -> Tensor:
    """Mutual information of the two coordinates in each `[k, 2, n]`, in bits, from their histograms."""
    low, high = pairs.amin(2, keepdim=True), pairs.amax(2, keepdim=True)
    places = ((pairs - low) * (BINS / (high - low))).int().clamp(max=BINS - 1)
    k, _, n = pairs.shape
    cells = (torch.arange(k, dtype=torch.int32)[:, None] * BINS + places[:, 0]) * BINS + places[:, 1]
    joint = torch.bincount(cells.flatten(), minlength=k * BINS**2).view(k, BINS, BINS).double() / n
    return _entropy(joint.sum(2)) + _entropy(joint.sum(1)) - _entropy(joint.flatten(1))


def _entropy(shares: Tensor) -> Tensor:
    return -torch.xlogy(shares, shares).sum(1) / math.log(2)


def mixture(planes: Tensor, epsilon: float, seed: int) -> Tensor:
    """The greatest share of points in a band, float64, of each plane `[planes, n, 2]`.

    Coordinates must be uncorrelated with mean 0, as principal components are. Once scaled to variance 1,
    `(x . a + b) / rms` is the product of `[x, 1]` and a unit vector, so the search is over a sphere. Steps
    shrink as the edge of the band hardens.

    Examples
    --------
    >>> cross = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> mixture(cross[None], 0.1, seed=0)
    tensor([0.5000], dtype=torch.float64)
    """
    spread = planes.square().mean(1, keepdim=True).sqrt()
    x = F.pad(planes / spread, (0, 1), value=1.0)
    start = torch.randn(3, STARTS, generator=random_stream(seed), dtype=x.dtype)
    axis = F.normalize(start, dim=0).expand(len(planes), 3, STARTS)
    best = x.new_zeros(len(planes))
    for temperature in np.geomspace(WARMEST, COLDEST, STEPS).tolist():
        z = x @ axis
        best = torch.maximum(best, (z.abs() < epsilon).double().mean(1).amax(1))
        inside = torch.sigmoid((epsilon - z.abs()) / temperature)
        uphill = x.mT @ (-inside * (1 - inside) * z.sign())
        uphill = uphill - (uphill * axis).sum(1, keepdim=True) * axis  # along the sphere
        axis = F.normalize(axis + temperature * F.normalize(uphill, dim=1), dim=1)
    z = x @ axis
    return torch.maximum(best, (z.abs() < epsilon).double().mean(1).amax(1))


def principal_components(points: Tensor, components: int = COMPONENTS) -> Tensor:
    """Coordinates of points along their principal components, `[n, at most components]`.

    Components without variance are left out. In each component, the coordinate greatest in absolute value is
    positive.

    Examples
    --------
    >>> principal_components(torch.tensor([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]])).round(decimals=2).tolist()
    [[-3.0], [-1.0], [4.0]]
    """
    left, singular, _ = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    kept = int((singular[:components] > NEGLIGIBLE * singular.sum()).sum())
    found: Tensor = left[:, :kept] * singular[:kept]
    furthest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return found * furthest.sign()
