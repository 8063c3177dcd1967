"""Irreducibility of what clusters of latents reconstruct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import random_stream
from saekit.analysis.irreducibility.clusters import LatentClusters, mean_cosine
from saekit.analysis.irreducibility.scores import EPSILON, p_value, score_planes
from saekit.analysis.irreducibility.search import BINS, COMPONENTS
from saekit.analysis.latents import LatentActivations
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.results import Result
from saekit.selection import Latents, select_latents


@dataclass(frozen=True, eq=False, repr=False)
class Irreducibility(Result):
    """How irreducible the reconstructions of clusters of latents are.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    frame : DataFrame
        One row per cluster, greatest score first: `cluster`, `n_latents`, `n_tokens` (on which at least one
        latent is active), `mean_cosine` (over all pairs of latents), `share_single` (share of these tokens
        on which exactly one is active), `n_planes`; means over planes of `separability`, `separability_null`,
        `mixture`, `score` and `score_null`; `p_value` of the mean score under the null; and `best_plane`, the
        plane of greatest score.
    planes : DataFrame
        One row per cluster and plane: `cluster` and the columns of `plane_scores`.
    latents : dict
        Latents of each cluster, by the name in `cluster`.
    n_left_out : int
        Clusters that are not scored: active on too few tokens, or with all points on a line.
    """

    dictionary: Identity
    frame: pd.DataFrame
    planes: pd.DataFrame
    latents: dict[Any, Tensor]
    n_left_out: int

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `n_clusters`, `n_left_out`, `median_score`, `best_score`, `best_cluster`."""
        score = self.frame["score"]
        return {
            "dictionary": str(self.dictionary),
            "n_clusters": len(self.frame),
            "n_left_out": self.n_left_out,
            "median_score": float(score.median()),
            "best_score": float(score.max()),
            "best_cluster": self.frame["cluster"].iat[0] if len(score) else None,
        }


@cached
def measure_irreducibility(
    dictionary: Dictionary,
    activations: LatentActivations,
    clusters: LatentClusters | Mapping[Any, Latents],
    *,
    min_tokens: int = 200,
    max_tokens: int = 2000,
    components: int = COMPONENTS,
    epsilon: float = EPSILON,
    permutations: int = 49,
    seed: int = 0,
    progress: bool = False,
) -> Irreducibility:
    """Score how irreducible the joint reconstruction of each cluster of latents is.

    The points of a cluster are the sums of its latents' activations times their decoder rows, on all
    tokens on which one of them is active. `plane_scores` scores the planes of consecutive principal
    components; a cluster's score is the mean over its planes.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary.
    activations : LatentActivations
        Its activations.
    clusters : LatentClusters or mapping
        The clusters to score: those of `cluster_latents`, or latents by name.
    min_tokens : int
        Leave out clusters that are active on fewer tokens.
    max_tokens : int
        If a cluster is active on more tokens, score a random sample of this size, in the principal
        components of all of them. With `max_tokens` equal to `min_tokens` all scores rest on equally many
        points, so the bias of the mutual information is that of all.
    components, epsilon, permutations, seed
        As `plane_scores`; the sample is drawn by `seed` too.
    progress : bool
        Show a progress bar in clusters.

    Raises
    ------
    ValueError
        If activations or clusters are those of another dictionary, there are no clusters, a cluster holds a
        latent twice, or a number is out of range.
    TypeError, IndexError
        If latents are not latents of the dictionary.

    Notes
    -----
    Engels et al. (2024, arXiv:2405.14860), section 3 and appendix. A small `p_value` shows that the
    coordinates in a cluster's planes are not independent. It does not tell a circle from latents that exclude
    each other, whose coordinates depend on each other too. The mixture index does so for two such latents;
    but with three or more in a plane no band holds most points, so a star of rays can score like a circle:
    read `share_single`, compare with `shuffled_clusters`, and look at the panels (`show_clusters`).

    Examples
    --------
    >>> clusters = saekit.cluster_latents(large, method="graph", theta=0.7)
    >>> result = measure_irreducibility(large, saekit.collect(large, x), clusters, min_tokens=20)
    >>> result.frame[["cluster", "n_latents", "n_tokens"]].head(2)
       cluster  n_latents  n_tokens
    0        5          2        63
    1        3          2        53
    """
    activations.dictionary.require(dictionary.identity, "The dictionary of the activations")
    if isinstance(clusters, LatentClusters):
        clusters.dictionary.require(dictionary.identity, "The dictionary of the clusters")
        clusters = {cluster: clusters.members(cluster) for cluster in range(len(clusters))}
    if not clusters:
        raise ValueError("There are no clusters to score.")
    chosen = {name: _members(latents, dictionary.width) for name, latents in clusters.items()}
    min_tokens = settings.whole("min_tokens", min_tokens, at_least=BINS)
    max_tokens = settings.whole("max_tokens", max_tokens, at_least=min_tokens)
    components = settings.whole("components", components, at_least=2)
    epsilon = settings.positive("epsilon", epsilon)
    permutations = settings.whole("permutations", permutations)
    seed = settings.whole("seed", seed, at_least=0)
    rows, planes = [], []
    bar = tqdm(chosen.items(), disable=not progress, unit="cluster", desc="irreducibility")
    for place, (name, latents) in enumerate(bar):
        positions, points = cluster_points(dictionary, activations, latents)
        n_tokens = len(points)
        if n_tokens < min_tokens:
            continue
        sample = None
        if n_tokens > max_tokens:
            drawn = torch.randperm(n_tokens, generator=random_stream(seed, place))[:max_tokens]
            sample = drawn.sort().values
        table, null = score_planes(points, components, epsilon, permutations, seed, sample=sample)
        if not len(table):
            continue
        where = torch.cat([activations.entries(latent)[0] for latent in latents.tolist()])
        n_active = torch.bincount(torch.searchsorted(positions, where), minlength=n_tokens)
        weight = 1 - torch.tensor(table["mixture"].to_list(), dtype=torch.float64)
        means = table[["separability", "separability_null", "mixture", "score", "score_null"]].mean()
        rows.append(
            {
                "cluster": name,
                "n_latents": len(latents),
                "n_tokens": n_tokens,
                "mean_cosine": mean_cosine(dictionary, latents),
                "share_single": float((n_active == 1).double().mean()),
                "n_planes": len(table),
                **means.to_dict(),
                "p_value": p_value(means["score"], (weight[:, None] * null).mean(0)),
                "best_plane": int(table.loc[table["score"].idxmax(), "plane"]),
            }
        )
        planes.append(table.assign(cluster=name))
    n_left_out = len(chosen) - len(rows)
    if not rows:
        raise ValueError(
            f"None of {len(chosen)} clusters is active on {min_tokens} tokens in a plane: give more tokens, "
            "or a smaller min_tokens."
        )
    frame = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)
    detail = pd.concat(planes, ignore_index=True)
    detail.insert(0, "cluster", detail.pop("cluster"))
    return Irreducibility(dictionary.identity, frame, detail, chosen, n_left_out)


def cluster_points(
    dictionary: Dictionary, activations: LatentActivations, latents: Latents
) -> tuple[Tensor, Tensor]:
    """The joint reconstruction of some latents on all tokens on which one of them is active.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary.
    activations : LatentActivations
        Its activations.
    latents : tensor, array, Series, slice or list
        The latents, see `saekit.selection.select_latents`.

    Returns
    -------
    positions : Tensor
        Positions at which one of them is active, ascending, int64 `[n]`.
    points : Tensor
        Sums of their activations times decoder rows, float64 `[n, r]`, in an orthonormal basis of the span of
        these rows, which keeps distances and angles.

    Raises
    ------
    ValueError
        If the activations are those of another dictionary, or a latent comes twice.

    Examples
    --------
    >>> positions, points = cluster_points(small, collected, [0, 6])
    >>> positions.shape, points.shape
    (torch.Size([75]), torch.Size([75, 2]))
    """
    activations.dictionary.require(dictionary.identity, "The dictionary of the activations")
    chosen = _members(latents, dictionary.width)
    rows = dictionary.W_dec[chosen.to(dictionary.W_dec.device)].double().cpu()
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    basis = left * singular  # decoder rows in their own span, `[latents, r]`
    entries = [activations.entries(latent) for latent in chosen.tolist()]
    positions = torch.cat([where for where, _ in entries] or [torch.zeros(0, dtype=torch.long)]).unique()
    points = torch.zeros(len(positions), basis.shape[1], dtype=torch.float64)
    for (where, values), row in zip(entries, basis, strict=True):
        points[torch.searchsorted(positions, where)] += values.double()[:, None] * row
    return positions, points


def _members(latents: Latents, width: int) -> Tensor:
    """The latents of a cluster: one that came twice would count twice in every point."""
    chosen = select_latents(latents, width)
    found, counts = chosen.unique(return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"A cluster must hold each latent once, found {int(found[counts > 1][0])} twice.")
    return chosen
