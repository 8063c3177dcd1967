"""Whether the latents that no other seed finds again still span the same subspace in every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.analysis.nulls import random_directions
from saekit.analysis.uniqueness.seeds import Uniqueness
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.identity import Identity, distinct_names
from saekit.results import Result

GROUPS = ("never recurring", "recurring", "random directions")
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, eq=False, repr=False)
class SharedSubspace(Result):
    """How far the spans of some latents of two seeds agree.

    Attributes
    ----------
    dictionaries : tuple of Identity
        The dictionaries.
    theta : float
        Cosine from which two matched latents count as the same one.
    draws : int
        Draws of each null.
    frame : DataFrame
        One row per pair of dictionaries, dimension and group of latents: `a`, `b` (names), `dimension`,
        `group`, `n_a`, `n_b` (latents); `overlap` (mean squared cosine of the principal angles: 1 for
        equal subspaces, about `chance`, the dimension over `d_in`, for independent ones), `overlap_sd`
        (over draws; NaN for a single one), `first_cosine` and `median_cosine` (of the principal angles);
        `explained` (share of the density-weighted squared norm of one dictionary's latents within the
        other's subspace, mean of both ways) beside `explained_own` (within its own subspace). Groups
        are `"never recurring"` and two nulls: `"recurring"`, as many latents of each that always recur,
        none the partner of another (left out where there are fewer than the dimension), and `"random
        directions"` with the densities of those that never recur.
    """

    dictionaries: tuple[Identity, ...]
    theta: float
    draws: int
    frame: pd.DataFrame
    _plot: ClassVar[str] = "shared_subspace"

    @property
    def summary(self) -> dict[str, Any]:
        """`theta`, `dimension` (the one nearest to 16) and there `overlap` by group, mean over all pairs."""
        dimensions = self.frame["dimension"].unique()
        dimension = int(dimensions[np.abs(np.log(dimensions / 16)).argmin()])
        at = self.frame[self.frame["dimension"] == dimension]
        overlap = at.groupby("group", sort=False)["overlap"].mean()
        return {
            "theta": self.theta,
            "dimension": dimension,
            "chance": float(at["chance"].iloc[0]),
            "overlap": {str(group): float(value) for group, value in overlap.items()},
        }


@cached
def measure_shared_subspace(
    uniqueness: Uniqueness,
    dictionaries: Sequence[Dictionary],
    *,
    dimensions: Sequence[int] = DIMENSIONS,
    draws: int = 20,
    seed: int = 0,
) -> SharedSubspace:
    """Compare the subspaces that the latents without a counterpart span in each pair of seeds.

    The subspace of some latents is that of the leading right singular vectors of their decoder rows,
    each weighted by the square root of the latent's density, so that dead latents have no say.

    Parameters
    ----------
    uniqueness : Uniqueness
        Measured with activations, which give the densities.
    dictionaries : sequence of Dictionary
        Those it was measured on, in the same order.
    dimensions : sequence of int
        Dimensions of the subspaces; those beyond the number of living latents without a counterpart, or
        from `d_in` on, are left out.
    draws : int
        Draws of each null.
    seed : int
        Seed of the draws.

    Raises
    ------
    ValueError
        If the dictionaries are others, there are no activations, a setting is out of range, or fewer than
        two living latents of a dictionary never recur.

    Notes
    -----
    "Unstable Features, Reproducible Subspaces" (2026, arXiv:2606.12138) reports that unstable latents lie
    in a reproducible subspace of low rank. Here the nulls are subspaces of as many latents that do
    recur, in disjoint halves, and of random directions.

    Examples
    --------
    >>> unique = saekit.measure_uniqueness(small, other_seed, theta=0.979, activations=x)
    >>> result = measure_shared_subspace(unique, [small, other_seed], dimensions=[1, 2])
    >>> result.frame["group"].unique().tolist()
    ['never recurring', 'recurring', 'random directions']
    """
    sizes = sorted({settings.whole("dimensions", each) for each in dimensions})
    draws, seed = settings.whole("draws", draws), settings.whole("seed", seed, at_least=0)
    require_same(uniqueness, dictionaries)
    frame = uniqueness.frame
    if "density" not in frame:
        raise ValueError("Densities weight the latents: measure the uniqueness with activations.")
    density = [part["density"].to_numpy() for _, part in frame.groupby("place")]
    groups = {
        recurring: [
            latents[density[place][latents] > 0]
            for place in range(len(dictionaries))
            for latents in [uniqueness.latents(place, recurring=recurring)]
        ]
        for recurring in (False, True)
    }
    lacking = min(map(len, groups[False]))
    if lacking < 2:
        raise ValueError(f"A subspace needs at least two living latents that never recur, found {lacking}.")
    random, d_in = np.random.default_rng(seed), dictionaries[0].d_in

    def span(place: int, latents: np.ndarray, *, turned: bool = False) -> _Span:
        rows = dictionaries[place].W_dec[latents]
        if turned:
            rows = random_directions(len(latents), d_in, seed=int(random.integers(1 << 31)))
        return _Span.of(rows, density[place][latents])

    names, rows, smallest = distinct_names(uniqueness.dictionaries), [], d_in
    for i, j in uniqueness.matchings:
        match = uniqueness.matchings[i, j].frame["match"].to_numpy()
        lone, stable = ((groups[recurring][i], groups[recurring][j]) for recurring in (False, True))
        spans: dict[str, list[tuple[_Span, _Span]]] = {group: [] for group in GROUPS}
        spans[GROUPS[0]].append((span(i, lone[0]), span(j, lone[1])))
        for _ in range(draws):
            one = random.permutation(stable[0])[: min(len(lone[0]), len(stable[0]) // 2)]
            other = random.permutation(np.setdiff1d(stable[1], match[one]))[: len(lone[1])]
            if len(one) and len(other):
                spans[GROUPS[1]].append((span(i, one), span(j, other)))
            spans[GROUPS[2]].append((span(i, lone[0], turned=True), span(j, lone[1], turned=True)))
        smallest = min(smallest, *map(len, lone))
        for size in sizes:
            if size > min(map(len, lone)) or size >= d_in:
                continue
            for group, pairs in spans.items():
                if min((part.n for pair in pairs for part in pair), default=0) < size:
                    continue
                found = pd.DataFrame([first.compared(second, size) for first, second in pairs])
                row = {"a": names[i], "b": names[j], "dimension": size, "group": group}
                row |= {"n_a": pairs[0][0].n, "n_b": pairs[0][1].n, **found.mean().to_dict()}
                rows.append(row | {"overlap_sd": found["overlap"].std(), "chance": size / d_in})
    if not rows:
        raise ValueError(
            f"No dimension of {sizes} fits: {smallest} living latents never recur, in {d_in} dimensions."
        )
    return SharedSubspace(uniqueness.dictionaries, uniqueness.theta, draws, pd.DataFrame(rows))


def require_same(uniqueness: Uniqueness, dictionaries: Sequence[Dictionary]) -> None:
    """Refuse dictionaries that a uniqueness was not measured on.

    Examples
    --------
    >>> require_same(saekit.measure_uniqueness(small, other_seed), [small, other_seed])
    """
    if len(dictionaries) != len(uniqueness.dictionaries):
        raise ValueError(
            f"The uniqueness was measured on {len(uniqueness.dictionaries)} dictionaries, found "
            f"{len(dictionaries)}."
        )
    for place, (expected, dictionary) in enumerate(zip(uniqueness.dictionaries, dictionaries, strict=True)):
        expected.require(dictionary.identity, f"The uniqueness's dictionary {place}")


@dataclass(frozen=True, eq=False)
class _Span:
    """Weighted rows: their second moment `[d, d]` (of trace 1) and its eigenvectors, greatest first."""

    n: int
    moment: Tensor
    axes: Tensor

    @classmethod
    def of(cls, rows: Tensor, weights: np.ndarray) -> _Span:
        weighted = rows.cpu().double() * torch.from_numpy(weights).sqrt()[:, None]
        moment = weighted.T @ weighted
        moment /= moment.trace()
        return cls(len(rows), moment, torch.linalg.eigh(moment).eigenvectors.flip(1))

    def within(self, axes: Tensor) -> float:
        """Share of the weighted squared norm within a subspace."""
        return float((axes.T @ self.moment @ axes).trace())

    def compared(self, other: _Span, size: int) -> dict[str, float]:
        """Agreement of the two subspaces of this dimension."""
        one, two = self.axes[:, :size], other.axes[:, :size]
        cosines = torch.linalg.svdvals(one.T @ two).clamp(max=1)
        return {
            "overlap": float(cosines.square().mean()),
            "first_cosine": float(cosines[0]),
            "median_cosine": float(cosines.quantile(0.5)),
            "explained": (self.within(two) + other.within(one)) / 2,
            "explained_own": (self.within(one) + other.within(two)) / 2,
        }
