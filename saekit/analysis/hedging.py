"""Whether narrow dictionaries already carry a part of what wider ones add: feature hedging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekit.analysis.novelty import GroupInsertion, Insertion
from saekit.analysis.nulls import random_directions
from saekit.results import Result
from saekit.settings import choice, whole

GROUPS = ("novel_cos", "novel_gain")


@dataclass(frozen=True, eq=False, repr=False)
class Hedging(Result):
    """How far rows of a narrow dictionary turned out of the span of added rows.

    Attributes
    ----------
    projection : float
        Mean norm of the change of a row within the span of the added rows, over the mean norm of a row.
    baseline, baseline_sd : float
        The same for spans of as many random directions: mean and standard deviation of the draws.
    score : float
        `(projection - baseline) / (1 - baseline)`: 0 for a change that has nothing to do with the added rows.
        May be negative.
    n_rows, n_added : int
        Rows compared and rows added.
    """

    projection: float
    baseline: float
    baseline_sd: float
    score: float
    n_rows: int
    n_added: int

    @property
    def summary(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))


def measure_hedging(
    before: Tensor, after: Tensor, added: Tensor, *, draws: int = 50, seed: int = 0
) -> Hedging:
    """Measure how much of the change of decoder rows lies in the span of rows that were added.

    A dictionary too narrow for all features mixes those that it has no latent for into the latents that it
    has. Given latents of their own, the old rows give them up: they change within the span of the new ones.

    Parameters
    ----------
    before, after : Tensor
        The same rows in the narrow and in the wide dictionary, `[n, d_in]`: after training on with added
        latents, or matched by direction.
    added : Tensor
        The added rows, `[m, d_in]`. They must leave room: `m` below `d_in`.
    draws : int
        Draws of random directions.
    seed : int
        Their seed.

    Raises
    ------
    ValueError
        If shapes differ, or the added rows span everything, so that any change lies within their span.

    Notes
    -----
    Chanin et al. (2025), "Feature Hedging" (arXiv:2505.11756), whose rate is this score cut off at 0.

    Examples
    --------
    >>> parent, child = torch.eye(2, 20)
    >>> measure_hedging((parent + 0.5 * child)[None], parent[None], child[None]).score > 0.2
    True
    """
    draws = whole("draws", draws)
    if before.shape != after.shape or before.shape[1] != added.shape[1]:
        shapes = ", ".join(str(list(rows.shape)) for rows in (before, after, added))
        raise ValueError(f"before and after must be [n, d_in] and added [m, d_in], found {shapes}.")
    if len(added) >= added.shape[1]:
        raise ValueError(
            f"{len(added)} added rows span all {added.shape[1]} dimensions: take fewer than d_in of them."
        )
    change, size = (after - before).double(), float(before.double().norm(dim=1).mean())

    def within(rows: Tensor) -> float:
        basis, values, _ = torch.linalg.svd(rows.double().T, full_matrices=False)
        basis = basis[:, values > 1e-10 * values[0]]
        return float((change @ basis).norm(dim=1).mean()) / size

    projection = within(added)
    n, d_in = added.shape
    random = torch.tensor([within(random_directions(n, d_in, seed=seed * draws + i)) for i in range(draws)])
    baseline = float(random.mean())
    return Hedging(
        projection=projection,
        baseline=baseline,
        baseline_sd=float(random.std()) if draws > 1 else float("nan"),
        score=(projection - baseline) / (1 - baseline),
        n_rows=len(before),
        n_added=n,
    )


def overshoot_parts(
    insertion: Insertion, groups: GroupInsertion, group: str = "novel_cos"
) -> dict[str, float]:
    """Split the change in MSE of inserting a group of latents into its three exact parts.

    With `f_i` the latents, `w_i` their unit rows and `r` the small dictionary's residual, the change is
    `sum_i E[f_i^2] - 2 sum_i E[f_i <w_i, r>] + sum_{i != j} E[f_i f_j] <w_i, w_j>`.

    Parameters
    ----------
    insertion : Insertion
        Of each latent alone.
    groups : GroupInsertion
        Of the same dictionaries on the same tokens.
    group : str
        `"novel_cos"` or `"novel_gain"`.

    Returns
    -------
    dict
        `ideal` (the change if the residual held each latent's contribution whole, and no two overlapped),
        `carried` (what is lost since the small dictionary carries a part already), `interaction` (what is
        lost
        since inserted latents overlap), `change` (their sum: positive is overshoot) and `carried_share`
        (of the
        contributions).

    Raises
    ------
    ValueError
        If there is no such group, or the results are of other dictionaries.

    Examples
    --------
    >>> single = saekit.insertion(small, large, x)
    >>> parts = overshoot_parts(single, saekit.group_insertion(small, large, single, x))
    >>> total = parts["ideal"] + parts["carried"] + parts["interaction"]
    >>> abs(total - parts["change"]) < 1e-9
    True
    """
    choice("group", group, GROUPS)
    for mine, theirs in ((insertion.small, groups.small), (insertion.large, groups.large)):
        mine.require(theirs, "The insertion")
    chosen = ~insertion.dead & getattr(insertion, group)
    n = insertion.n_tokens
    power = float(insertion.power.sum(0)[chosen].sum()) / n
    overlap = float(insertion.overlap.sum(0)[chosen].sum()) / n
    change = float(groups.frame.set_index("group").loc[group, "mse_change"])
    return {
        "ideal": -power,
        "carried": 2 * (power - overlap),
        "interaction": change - (power - 2 * overlap),
        "change": change,
        "carried_share": 1 - overlap / power if power else float("nan"),
    }
