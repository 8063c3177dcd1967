"""Clusters of latents by the cosines of their decoder directions, and their null."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from saekit import settings
from saekit.analysis.similarity import cosines
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.results import Result

METHODS = ("spectral", "graph")
SPECTRAL_SIZE = 24  # latents per spectral cluster: about that of Engels et al., 24,576 latents in 1,000
NEIGHBOURS = 2  # of each latent in the graph


@dataclass(frozen=True, eq=False, repr=False)
class LatentClusters(Result):
    """A partition of latents by the cosines of their decoder directions.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    method : str
        `"spectral"` or `"graph"`.
    labels : Tensor
        Cluster of each latent, int64 `[width]`, numbered by size, largest first; -1 for a latent in no
        cluster.
    mean_cosine : Tensor
        Mean cosine over all pairs of latents of each cluster, float64 `[n_clusters]`; NaN for one latent.
    seed : int
        Seed of the clustering.
    """

    dictionary: Identity
    method: str
    labels: Tensor
    mean_cosine: Tensor
    seed: int

    def __len__(self) -> int:
        return len(self.mean_cosine)

    def members(self, cluster: int) -> Tensor:
        """The latents of a cluster, ascending.

        Raises
        ------
        TypeError, ValueError
            If there is no such cluster.
        """
        cluster = settings.whole("cluster", cluster, at_least=0, at_most=len(self) - 1)
        return (self.labels == cluster).nonzero()[:, 0]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per cluster: `cluster`, `n_latents`, `mean_cosine`."""
        sizes = torch.bincount(self.labels[self.labels >= 0], minlength=len(self))
        return pd.DataFrame(
            {"cluster": range(len(self)), "n_latents": sizes.numpy(), "mean_cosine": self.mean_cosine.numpy()}
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `method`, `n_clusters`, `n_alone` (in no cluster), `median_size`, `largest`."""
        sizes = self.frame["n_latents"]
        return {
            "dictionary": str(self.dictionary),
            "method": self.method,
            "n_clusters": len(self),
            "n_alone": int((self.labels < 0).sum()),
            "median_size": float(sizes.median()),
            "largest": int(sizes.max()) if len(self) else 0,
        }


@cached
def cluster_latents(
    dictionary: Dictionary,
    *,
    method: str = "spectral",
    n_clusters: int | None = None,
    theta: float = 0.5,
    seed: int = 0,
) -> LatentClusters:
    """Cluster latents by the cosines of their decoder directions.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary.
    method : {"spectral", "graph"}
        Spectral clustering with the affinity `1 - arccos(cosine) / pi`, or the connected components of the
        graph in which each latent is joined to its two nearest latents, in either direction, where their
        cosine exceeds `theta`.
    n_clusters : int, optional
        Number of spectral clusters; one per 24 latents by default.
    theta : float
        Least cosine of an edge of the graph.
    seed : int
        Seed of spectral clustering. The graph needs none.

    Raises
    ------
    ValueError
        If there is no such method, or a number is out of range.

    Notes
    -----
    Engels et al. (2024, arXiv:2405.14860) use spectral clustering on GPT-2, unseeded, with 1,000 clusters of
    24,576 latents, and the graph on Mistral 7B. Spectral clustering holds a matrix of `width` squared.

    Examples
    --------
    >>> clusters = cluster_latents(large, method="graph", theta=0.7)
    >>> clusters.summary["n_clusters"], clusters.members(0).tolist()
    (6, [0, 6])
    """
    require_dictionaries(dictionary=dictionary)
    dictionary.require_finite()
    method = settings.choice("method", method, METHODS)
    theta, seed = settings.cosine("theta", theta), settings.whole("seed", seed, at_least=0)
    width = dictionary.width
    if n_clusters is None:
        n_clusters = max(1, width // SPECTRAL_SIZE)
    n_clusters = settings.whole("n_clusters", n_clusters, at_most=width)
    labels = _graph(dictionary, theta) if method == "graph" else _spectral(dictionary, n_clusters, seed)
    return _clusters(dictionary, method, labels, seed)


def shuffled_clusters(clusters: LatentClusters, dictionary: Dictionary, *, seed: int = 0) -> LatentClusters:
    """Clusters of the same sizes of latents drawn at random: the null of a clustering.

    Parameters
    ----------
    clusters : LatentClusters
        Clusters of the dictionary.
    dictionary : Dictionary
        The dictionary.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If the clusters are those of another dictionary.

    Examples
    --------
    >>> clusters = cluster_latents(large, method="graph", theta=0.7)
    >>> shuffled_clusters(clusters, large).frame["n_latents"].equals(clusters.frame["n_latents"])
    True
    """
    clusters.dictionary.require(dictionary.identity, "The dictionary of the clusters")
    order = np.random.default_rng(settings.whole("seed", seed, at_least=0)).permutation(dictionary.width)
    return _clusters(dictionary, f"{clusters.method}, shuffled", clusters.labels.numpy()[order], seed)


def _spectral(dictionary: Dictionary, n_clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import SpectralClustering

    if n_clusters in (1, dictionary.width):  # nothing to find, and its eigensolver fails or warns
        return np.arange(dictionary.width) % n_clusters
    rows = F.normalize(dictionary.W_dec.double(), dim=1).cpu()
    affinity = 1 - (rows @ rows.T).clamp(-1, 1).arccos() / math.pi
    method = SpectralClustering(n_clusters, affinity="precomputed", random_state=seed)
    found: np.ndarray = method.fit_predict(affinity.numpy())
    return found


def _graph(dictionary: Dictionary, theta: float) -> np.ndarray:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    width = dictionary.width
    if width < 2:
        return np.full(width, -1)
    cosine, neighbour = cosines(dictionary.W_dec, dictionary.W_dec, k=NEIGHBOURS, exclude_self=True).up
    cosine, neighbour = cosine[:, :NEIGHBOURS].cpu(), neighbour[:, :NEIGHBOURS].cpu()
    near = (cosine > theta).numpy()
    latents, others = np.broadcast_to(np.arange(width)[:, None], near.shape)[near], neighbour.numpy()[near]
    graph = csr_array((np.ones(len(latents)), (latents, others)), shape=(width, width))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    alone = np.bincount(found)[found] == 1
    return np.where(alone, -1, found)


def _clusters(dictionary: Dictionary, method: str, found: np.ndarray, seed: int) -> LatentClusters:
    """Number clusters by size, then by their first latent, and add their mean cosines."""
    names, first, sizes = np.unique(found[found >= 0], return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.full(found.max(initial=-1) + 2, -1)  # the last entry is that of -1
    number[names[order]] = np.arange(len(names))
    labels = torch.from_numpy(number[found])
    means = [mean_cosine(dictionary, (labels == cluster).nonzero()[:, 0]) for cluster in range(len(names))]
    return LatentClusters(dictionary.identity, method, labels, torch.tensor(means, dtype=torch.float64), seed)


def mean_cosine(dictionary: Dictionary, latents: Tensor) -> float:
    """Mean cosine over all pairs of some latents; NaN for fewer than two.

    Examples
    --------
    >>> mean_cosine(large, torch.tensor([3]))
    nan
    """
    n = len(latents)
    rows = F.normalize(dictionary.W_dec[latents.to(dictionary.W_dec.device)].double(), dim=1)
    return (float(rows.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else float("nan")
