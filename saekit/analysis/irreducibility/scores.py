"""Separability and mixture of points in planes, beside a permutation null."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.activations import random_stream
from saekit.analysis.irreducibility.search import (
    BINS,
    COMPONENTS,
    mixture,
    principal_components,
    rotated,
    separability,
)

EPSILON = 0.1  # half-width of a mixture's band, in root mean squares


def plane_scores(
    points: Tensor | np.ndarray,
    *,
    components: int = COMPONENTS,
    epsilon: float = EPSILON,
    permutations: int = 49,
    seed: int = 0,
) -> pd.DataFrame:
    """Separability and mixture of points in the planes of consecutive principal components.

    A feature of two dimensions is reducible if it consists of two independent features (its coordinates are
    then independent in some rotation) or is a mixture of features that exclude each other (many of its points
    then lie in a narrow band).

    - *Separability*: the least mutual information of the two coordinates, in bits, over 100 rotations in a
      quarter turn, from histograms of 10 by 10 equal bins between the extremes.
    - *Mixture*: the greatest share of points with `|z| < epsilon`, where `z = (x . a + b) / rms`, over all
      directions `a` and offsets `b`; `rms` is the root mean square of `x . a + b` over the points.

    An irreducible feature has high separability and low mixture, so a high `score`,
    `(1 - mixture) * separability`. Mutual information is overestimated where points are few; in the null,
    one coordinate is permuted in the rotation of least mutual information, and the search over rotations is
    repeated.

    Parameters
    ----------
    points : Tensor or array
        `[n, d]`, at least 10 points.
    components : int
        Principal components; those without variance are left out.
    epsilon : float
        Half-width of the band.
    permutations : int
        Draws of the null.
    seed : int
        Seed of permutations and search.

    Returns
    -------
    DataFrame
        One row per plane: `plane` (number of its first component, from 0), `explained` (share of the variance
        in it), `separability`, `separability_null` (mean over permutations), `mixture`, `score`, `score_null`
        (with the separability of the null) and `p_value` (of the separability).

    Raises
    ------
    ValueError
        If points are too few, not finite or in fewer than two dimensions, or a number is out of range.

    Notes
    -----
    Engels et al. (2024, arXiv:2405.14860), section 3, with three differences. Their 100 angles cover a full
    turn, but rotations repeat after a quarter, which ours cover. Their band is found from one unseeded start
    at a fixed temperature, ours by annealing from 12 seeded starts; failed searches, which they drop (mixture
    under 0.01), do not occur. The null is ours.

    Examples
    --------
    >>> turn = 2 * torch.pi * torch.rand(1000, generator=torch.Generator().manual_seed(0))
    >>> circle = torch.stack([turn.cos(), turn.sin()], dim=1)
    >>> plane_scores(circle)[["separability", "mixture", "score", "p_value"]].round(2)
       separability  mixture  score  p_value
    0          1.48     0.23   1.14     0.02
    """
    components = settings.whole("components", components, at_least=2)
    epsilon = settings.positive("epsilon", epsilon)
    permutations = settings.whole("permutations", permutations)
    seed = settings.whole("seed", seed, at_least=0)
    table, _ = score_planes(as_points(points), components, epsilon, permutations, seed)
    if not len(table):
        raise ValueError("The points lie on a line: there is no plane to score.")
    return table


def as_points(points: Tensor | np.ndarray, fewest: int = BINS) -> Tensor:
    """Points in float64, refused if they are too few, in one dimension or not finite.

    Examples
    --------
    >>> as_points([[0, 1], [2, 3]], fewest=2).dtype
    torch.float64
    """
    points = torch.as_tensor(points).double()
    if points.ndim != 2 or len(points) < fewest or points.shape[1] < 2:
        raise ValueError(
            f"Points must be [n, d] with at least {fewest} points in 2 dimensions, found shape "
            f"{list(points.shape)}."
        )
    settings.finite("The points hold", points)
    return points


def score_planes(
    points: Tensor,
    components: int,
    epsilon: float,
    permutations: int,
    seed: int,
    *,
    sample: Tensor | None = None,
) -> tuple[pd.DataFrame, Tensor]:
    """Scores of every plane, and the null's separability in each draw, float64 `[planes, permutations]`.

    Components are those of all points; only those at `sample` are scored in them. A plane in which these lie
    on a line is left out.

    Examples
    --------
    >>> table, null = score_planes(torch.randn(50, 4), 3, 0.1, 5, 0, sample=torch.arange(20))
    >>> table["plane"].tolist(), null.shape
    ([0, 1], torch.Size([2, 5]))
    """
    coordinates = principal_components(points, components)
    shares = coordinates.square().sum(0) / (points - points.mean(0)).square().sum()
    if sample is not None:
        coordinates = coordinates[sample]
    pairs = {i: coordinates[:, i : i + 2] for i in range(coordinates.shape[1] - 1)}
    planes = {i: pair.float() for i, pair in pairs.items() if principal_components(pair, 2).shape[1] == 2}
    if not planes:
        return pd.DataFrame(), torch.zeros(0, permutations, dtype=torch.float64)
    own = list(planes.values())
    if sample is not None:  # it has mean 0 and no correlation in components of its own, a turn of the plane
        own = [principal_components(plane.double(), 2).float() for plane in own]
    mixtures = mixture(torch.stack(own), epsilon, seed)
    rows, nulls = [], []
    for (i, plane), share in zip(planes.items(), mixtures.tolist(), strict=True):
        found, angle = separability(plane)
        generator = random_stream(seed, i)
        draws = [_permuted(plane, angle, generator) for _ in range(permutations)]
        null = torch.tensor(draws, dtype=torch.float64)
        nulls.append(null)
        rows.append(
            {
                "plane": i,
                "explained": float(shares[i : i + 2].sum()),
                "separability": found,
                "separability_null": float(null.mean()),
                "mixture": share,
                "score": (1 - share) * found,
                "score_null": (1 - share) * float(null.mean()),
                "p_value": p_value(found, null),
            }
        )
    return pd.DataFrame(rows), torch.stack(nulls)


def p_value(found: float, null: Tensor) -> float:
    """Share of draws, with the value found counted as one of them, that reach it.

    Examples
    --------
    >>> p_value(2.0, torch.tensor([1.0, 2.0, 3.0]))
    0.75
    """
    return (1 + int((null >= found).sum())) / (1 + len(null))


def _permuted(plane: Tensor, angle: float, generator: torch.Generator) -> float:
    """Separability after one of the coordinates in a rotation is permuted."""
    pair = rotated(plane, plane.new_tensor([angle]))[0]
    order = torch.randperm(len(plane), generator=generator)
    return separability(torch.stack([pair[0], pair[1, order]], dim=1))[0]
