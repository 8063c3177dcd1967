"""Features that are not lines: clusters of latents whose reconstruction fills a plane irreducibly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore, random_stream
from saekit.analysis.labels import Labels
from saekit.analysis.latents import LatentActivations, display_strings, require_vocabulary
from saekit.analysis.similarity import cosines
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.results import Result
from saekit.selection import Latents, select_latents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METHODS = ("spectral", "graph")
SPECTRAL_SIZE = 24  # latents per spectral cluster: about that of Engels et al., 24,576 latents in 1,000
NEIGHBOURS = 2  # of each latent in the graph
COMPONENTS = 5  # principal components of a cluster; planes are those of two consecutive ones
ANGLES, BINS = 100, 10  # of the mutual information
EPSILON = 0.1  # half-width of a mixture's band, in root mean squares
STARTS, STEPS = 12, 120  # of the search for that band
WARMEST, COLDEST = 0.5, 0.01  # temperature of the search, first and last
NEGLIGIBLE = 1e-6  # of the greatest singular value, under which a component is rounding


# ---------------------------------------------------------------------- clusters


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
        Cluster of each latent, int64 `[width]`, numbered by size, largest first; -1 for a latent that is in
        none.
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
        """`dictionary`, `method`, `n_clusters`, `n_alone` (latents in none), `median_size`, `largest`."""
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
        graph in which each latent is joined to its two nearest ones, in either direction, if their cosine is
        over `theta`.
    n_clusters : int, optional
        Of the spectral method; one for every 24 latents if left out.
    theta : float
        Of the graph method.
    seed : int
        Seed of the spectral method. The graph needs none.

    Raises
    ------
    ValueError
        If the method is neither, or a number is out of range.

    Notes
    -----
    Engels et al. (2024, arXiv:2405.14860) use the spectral method on GPT-2, unseeded, with 1,000 clusters of
    24,576 latents, and the graph on Mistral 7B. The spectral method holds a matrix of `width` squared.

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
    means = [_mean_cosine(dictionary, (labels == cluster).nonzero()[:, 0]) for cluster in range(len(names))]
    return LatentClusters(dictionary.identity, method, labels, torch.tensor(means, dtype=torch.float64), seed)


def _mean_cosine(dictionary: Dictionary, latents: Tensor) -> float:
    """Mean cosine over all pairs of some latents; NaN for fewer than two."""
    n = len(latents)
    rows = F.normalize(dictionary.W_dec[latents.to(dictionary.W_dec.device)].double(), dim=1)
    return (float(rows.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else float("nan")


# ---------------------------------------------------------------------- scores of points


def plane_scores(
    points: Tensor | np.ndarray,
    *,
    components: int = COMPONENTS,
    epsilon: float = EPSILON,
    permutations: int = 49,
    seed: int = 0,
) -> pd.DataFrame:
    """Separability and mixture of points in the planes of consecutive principal components.

    A feature of two dimensions is reducible if it is two independent features (then the coordinates are
    independent in some rotation) or a mixture of features that exclude each other (then many points lie in
    a narrow band).

    - *Separability*: the mutual information of the two coordinates, in bits, in the rotation where it is
      least: of 100 angles in a quarter turn, from histograms of 10 by 10 equal bins between the extremes.
    - *Mixture*: the greatest share of points with `|z| < epsilon`, where `z = (x . a + b) / rms`, over all
      directions `a` and offsets `b`; `rms` is the root mean square of `x . a + b` over the points.

    Both are needed: a feature that is irreducible scores high in separability and low in mixture, and its
    `score` is `(1 - mixture) * separability`. Mutual information is overestimated where points are
    few. Hence the null: the separability after one coordinate, in the rotation found, is permuted.

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
    Engels et al. (2024, arXiv:2405.14860), section 3. Three things differ. Rotations repeat after a quarter
    turn, so their 100 angles between 0 and 2 pi are spread over that. The band is found by annealing from
    several seeded starts where their code takes one unseeded start at a fixed temperature, so planes whose
    search failed (mixture under 0.01) do not occur. The null is ours.

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
    return _scored(_as_points(points), components, epsilon, permutations, seed)[0]


def _as_points(points: Tensor | np.ndarray, fewest: int = BINS) -> Tensor:
    points = torch.as_tensor(points).double()
    if points.ndim != 2 or len(points) < fewest or points.shape[1] < 2:
        raise ValueError(
            f"Points must be [n, d] with at least {fewest} points in 2 dimensions, found shape "
            f"{list(points.shape)}."
        )
    settings.finite("The points hold", points)
    return points


def principal_components(points: Tensor, components: int = COMPONENTS) -> Tensor:
    """Coordinates of points along their principal components, `[n, at most components]`.

    Components without variance are left out. In each, the point that is furthest out is positive.

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


def _scored(
    points: Tensor, components: int, epsilon: float, permutations: int, seed: int
) -> tuple[pd.DataFrame, Tensor]:
    """Scores of every plane, and the null's separability in each draw, `[planes, permutations]`."""
    coordinates = principal_components(points, components)
    total = float((points - points.mean(0)).square().sum())
    planes = [coordinates[:, i : i + 2].float() for i in range(coordinates.shape[1] - 1)]
    if not planes:
        raise ValueError("The points lie on a line: there is no plane to score.")
    mixture = _mixture(torch.stack(planes), epsilon, seed)
    rows, nulls = [], []
    for i, plane in enumerate(planes):
        separability, angle = _separability(plane)
        generator = random_stream(seed, i)
        null = torch.tensor([_permuted(plane, angle, generator) for _ in range(permutations)])
        nulls.append(null)
        rows.append(
            {
                "plane": i,
                "explained": float(plane.double().square().sum()) / total,
                "separability": separability,
                "separability_null": float(null.mean()),
                "mixture": float(mixture[i]),
                "score": (1 - float(mixture[i])) * separability,
                "score_null": (1 - float(mixture[i])) * float(null.mean()),
                "p_value": _p_value(separability, null),
            }
        )
    return pd.DataFrame(rows), torch.stack(nulls)


def _p_value(found: float, null: Tensor) -> float:
    """Share of draws, the value found among them, that reach it."""
    return (1 + int((null >= found).sum())) / (1 + len(null))


def _separability(plane: Tensor) -> tuple[float, float]:
    """The least mutual information over rotations, in bits, and the angle that reaches it."""
    angles = torch.arange(ANGLES, dtype=plane.dtype) * (math.pi / 2 / ANGLES)
    information = _information(_rotated(plane, angles))
    least = int(information.argmin())
    return float(information[least]), float(angles[least])


def _rotated(plane: Tensor, angles: Tensor) -> Tensor:
    """Coordinates of points `[n, 2]` in each of some rotations, `[angles, 2, n]`."""
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


def _permuted(plane: Tensor, angle: float, generator: torch.Generator) -> float:
    """Separability once the coordinates in a rotation are made independent."""
    pair = _rotated(plane, plane.new_tensor([angle]))[0]
    order = torch.randperm(len(plane), generator=generator)
    return _separability(torch.stack([pair[0], pair[1, order]], dim=1))[0]


def _mixture(planes: Tensor, epsilon: float, seed: int) -> Tensor:
    """The greatest share of points in a band, of each plane `[planes, n, 2]`.

    With coordinates of mean 0 and covariance 1, `(x . a + b) / rms` is the product of `[x, 1]` and a unit
    vector: the search is over a sphere. Steps shrink as the edge of the band hardens.
    """
    spread = planes.square().mean(1, keepdim=True).sqrt()  # principal components: mean 0, uncorrelated
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


# ---------------------------------------------------------------------- scores of clusters


@dataclass(frozen=True, eq=False, repr=False)
class Irreducibility(Result):
    """How irreducible the reconstructions of clusters of latents are.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    frame : DataFrame
        One row per cluster, greatest score first: `cluster`, `n_latents`, `n_tokens` (where one of them is
        active), `mean_cosine` (over all pairs), `share_single` (of these tokens, those where no other one
        is), `n_planes`; means over planes of `separability`,
        `separability_null`, `mixture`, `score` and `score_null`; `p_value` of the mean score under the null;
        and `best_plane`, the one of greatest score.
    planes : DataFrame
        One row per cluster and plane: `cluster` and the columns of `plane_scores`.
    latents : dict
        Latents of each cluster, by the name in `cluster`.
    n_left_out : int
        Clusters that are not scored: active on too few tokens, or on a line.
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
    """Score clusters of latents by whether what they reconstruct together is an irreducible feature.

    The points of a cluster are the sums of its latents' activations times their decoder rows, on all
    tokens where one of them is active. `plane_scores` scores the planes of their consecutive principal
    components; the cluster's score is the mean over planes.

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
        Of a cluster that is active on more, score a sample of this size. Components are those of all.
    components, epsilon, permutations, seed
        As `plane_scores`; the sample is drawn by `seed` too.
    progress : bool
        Show a progress bar in clusters.

    Raises
    ------
    ValueError
        If activations or clusters are those of another dictionary, there are no clusters, or a number is out
        of range.
    TypeError, IndexError
        If latents are not latents of the dictionary.

    Notes
    -----
    Engels et al. (2024, arXiv:2405.14860), section 3 and appendix. A small `p_value` tells that a
    cluster's planes are not two independent coordinates. It does not tell a circle from latents that exclude
    each other, which are dependent too. The mixture does so for two such latents, but of three or more in
    one plane no band holds most points, so a star of rays can score like a circle: read `share_single`,
    compare with `shuffled_clusters`, and look at the panels (`show_clusters`).

    Examples
    --------
    >>> clusters = cluster_latents(large, method="graph", theta=0.7)
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
    chosen = {name: select_latents(latents, dictionary.width) for name, latents in clusters.items()}
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
        points = principal_components(points, components)
        if points.shape[1] < 2:
            continue
        if n_tokens > max_tokens:
            drawn = torch.randperm(n_tokens, generator=random_stream(seed, place))[:max_tokens]
            points = points[drawn.sort().values]
        where = torch.cat([activations.entries(latent)[0] for latent in latents.tolist()])
        n_active = torch.bincount(torch.searchsorted(positions, where), minlength=n_tokens)
        table, null = _scored(points, components, epsilon, permutations, seed)
        weight = 1 - torch.tensor(table["mixture"].to_list(), dtype=torch.float64)
        means = table[["separability", "separability_null", "mixture", "score", "score_null"]].mean()
        rows.append(
            {
                "cluster": name,
                "n_latents": len(latents),
                "n_tokens": n_tokens,
                "mean_cosine": _mean_cosine(dictionary, latents),
                "share_single": float((n_active == 1).double().mean()),
                "n_planes": len(table),
                **means.to_dict(),
                "p_value": _p_value(means["score"], (weight[:, None] * null).mean(0)),
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
    """What some latents reconstruct together wherever one of them is active.

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
        Where one of them is active, ascending, int64 `[n]`.
    points : Tensor
        Sums of their activations times decoder rows, float64 `[n, r]`, in an orthonormal basis of the span of
        these rows: distances and angles are those of the activations.

    Raises
    ------
    ValueError
        If the activations are those of another dictionary.

    Examples
    --------
    >>> positions, points = cluster_points(small, collected, [0, 6])
    >>> positions.shape, points.shape
    (torch.Size([75]), torch.Size([75, 2]))
    """
    activations.dictionary.require(dictionary.identity, "The dictionary of the activations")
    chosen = select_latents(latents, dictionary.width)
    rows = dictionary.W_dec[chosen.to(dictionary.W_dec.device)].double().cpu()
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    basis = left * singular  # decoder rows in their own span, `[latents, r]`
    entries = [activations.entries(latent) for latent in chosen.tolist()]
    positions = torch.cat([where for where, _ in entries] or [torch.zeros(0, dtype=torch.long)]).unique()
    points = torch.zeros(len(positions), basis.shape[1], dtype=torch.float64)
    for (where, values), row in zip(entries, basis, strict=True):
        points[torch.searchsorted(positions, where)] += values.double()[:, None] * row
    return positions, points


# ---------------------------------------------------------------------- panels


@dataclass(frozen=True, eq=False, repr=False)
class ClusterPanels(Result):
    """Points of some clusters in their planes, with the tokens that they are at.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    frame : DataFrame
        One row per point: `cluster`, `plane`, `position` (in the store), `token`, `x`, `y`.
    scores : DataFrame
        One row per panel: `cluster`, `n_latents`, and the columns of `plane_scores`.
    """

    dictionary: Identity
    frame: pd.DataFrame
    scores: pd.DataFrame
    _plot: ClassVar[str] = "cluster_panels"

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `n_panels`, `n_points`, and `commonest`, the most frequent token of each panel."""
        commonest = self.frame.groupby("cluster", sort=False)["token"].agg(lambda t: t.mode().iat[0])
        return {
            "dictionary": str(self.dictionary),
            "n_panels": len(self.scores),
            "n_points": len(self.frame),
            "commonest": commonest.tolist(),
        }


def show_clusters(
    result: Irreducibility,
    dictionary: Dictionary,
    activations: LatentActivations,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    clusters: Iterable[Any] | None = None,
    n: int = 6,
    max_points: int = 1000,
    seed: int = 0,
) -> ClusterPanels:
    """The points of the clusters with the greatest scores, each in its best plane, with their tokens.

    Parameters
    ----------
    result : Irreducibility
        The scores.
    dictionary : Dictionary
        The dictionary.
    activations : LatentActivations
        Its activations, collected over `store`.
    store : ActivationStore
        Holds the tokens.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    clusters : iterable, optional
        Names of clusters to show in place of the `n` best.
    n : int
        How many of the best to show.
    max_points : int
        Points of each, drawn at random if there are more.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If result, activations and store do not belong together, or a cluster was not scored.

    Examples
    --------
    >>> clusters = cluster_latents(large, method="graph", theta=0.7)
    >>> of_large = saekit.collect(large, store)
    >>> result = measure_irreducibility(large, of_large, clusters, min_tokens=20)
    >>> panels = show_clusters(result, large, of_large, store, vocabulary, n=1)
    >>> panels.frame["token"].value_counts().index[0]
    ' the'
    """
    result.dictionary.require(dictionary.identity, "The dictionary of the scores")
    activations.require_store(store)
    tokens = store.tokens.flatten()
    require_vocabulary(vocabulary, int(tokens.max()) + 1)
    n, seed = settings.whole("n", n), settings.whole("seed", seed, at_least=0)
    max_points = settings.whole("max_points", max_points)
    scored = result.frame.set_index("cluster")
    names = list(scored.index[:n] if clusters is None else clusters)
    if unknown := [name for name in names if name not in scored.index]:
        raise ValueError(f"The cluster {unknown[0]!r} was not scored; there are {len(scored)} that were.")
    parts, scores = [], []
    for place, name in enumerate(names):
        plane = int(scored.at[name, "best_plane"])
        positions, points = cluster_points(dictionary, activations, result.latents[name])
        pair = principal_components(points)[:, plane : plane + 2]
        drawn = (
            torch.randperm(len(positions), generator=random_stream(seed, place))[:max_points].sort().values
        )
        shown = display_strings(vocabulary, tokens[positions[drawn]].tolist())
        x, y = pair[drawn].T.numpy()
        part = {"plane": plane, "position": positions[drawn].numpy(), "token": shown, "x": x, "y": y}
        parts.append(pd.DataFrame({"cluster": name, **part}))
        row = result.planes[(result.planes["cluster"] == name) & (result.planes["plane"] == plane)]
        scores.append(row.assign(n_latents=len(result.latents[name])))
    return ClusterPanels(
        dictionary.identity,
        pd.concat(parts, ignore_index=True),
        pd.concat(scores, ignore_index=True),
    )


# ---------------------------------------------------------------------- words in a circle


def latents_about(labels: Labels, words: Iterable[str], *, share: float = 0.5) -> Tensor:
    """Latents whose strongest evidence is mostly tokens out of a list of words, ascending.

    Parameters
    ----------
    labels : Labels
        Labels of the latents, with the share of each token in their 50 greatest activations.
    words : iterable of str
        The words, such as the days of the week. Upper and lower case and surrounding space do not count; a
        word that is not one token of the vocabulary cannot be found.
    share : float
        Least share of the evidence.

    Raises
    ------
    TypeError
        If `words` is one string.
    ValueError
        If the share is not between 0 and 1, or there are no words.

    Examples
    --------
    >>> latents_about(labels, ["river", "stone"]).tolist()
    [2, 3, 8, 9]
    """
    share = settings.share("share", share)
    ids = torch.tensor([i for i, _ in word_tokens(labels.vocabulary, words)], dtype=torch.long)
    found: np.ndarray = np.asarray(labels.tokens[:, ids.numpy()].sum(axis=1)).ravel()
    return torch.from_numpy(np.flatnonzero((found >= share) & (found > 0)))


def word_tokens(
    vocabulary: Sequence[str] | PreTrainedTokenizerBase, words: Iterable[str]
) -> list[tuple[int, int]]:
    """Token ids that are one of some words, each with the place of the word in the list.

    Upper and lower case and surrounding space do not count.

    Raises
    ------
    TypeError
        If `words` is one string.
    ValueError
        If there are no words.

    Examples
    --------
    >>> word_tokens(vocabulary, ["Moon", "king"])
    [(0, 1), (4, 0)]
    """
    if isinstance(words, str):
        raise TypeError(f"words must be a sequence of words, found the string {words!r}.")
    places = {word.strip().lower(): place for place, word in reversed([*enumerate(words)])}
    if not places:
        raise ValueError("There must be at least one word.")
    shown = display_strings(vocabulary, range(len(vocabulary)))
    return [(i, places[word]) for i, token in enumerate(shown) if (word := token.strip().lower()) in places]


@dataclass(frozen=True, eq=False, repr=False)
class CircularOrder(Result):
    """Whether the mean points of words lie around a circle in the order of the words.

    Attributes
    ----------
    frame : DataFrame
        One row per word: `word`, `n_points`, and the mean `x` and `y` of its points in the plane chosen; NaN
        without points.
    plane : int
        Number of the plane's first component, from 0.
    order : float
        Length of the mean of `exp(i (angle - 2 pi place / n))` in the direction that fits better: 1 if the
        words lie at equal angles in their order.
    order_null : float
        Its mean with the words in random order.
    p_value : float
        Share of random orders that reach it.
    """

    frame: pd.DataFrame
    plane: int
    order: float
    order_null: float
    p_value: float
    _plot: ClassVar[str] = "word_circles"

    @property
    def summary(self) -> dict[str, Any]:
        """`n_words` (with points), `n_points`, `plane`, `order`, `order_null`, `p_value`."""
        return {
            "n_words": int((self.frame["n_points"] > 0).sum()),
            "n_points": int(self.frame["n_points"].sum()),
            "plane": self.plane,
            "order": self.order,
            "order_null": self.order_null,
            "p_value": self.p_value,
        }


def measure_circular_order(
    points: Tensor | np.ndarray,
    places: Tensor | np.ndarray | Sequence[int],
    words: Sequence[str],
    *,
    components: int = COMPONENTS,
    permutations: int = 999,
    seed: int = 0,
) -> CircularOrder:
    """Test whether words such as days or months lie around a circle in their order.

    In each plane of two consecutive principal components of the words' mean points, the angles of the means
    around their centre are compared with the order of the words; the plane where they agree best is
    reported. The null does the same with the words in random order.

    Parameters
    ----------
    points : Tensor or array
        `[n, d]`: activations, or what latents reconstruct.
    places : sequence of int
        For each point, the place of its word in `words`.
    words : sequence of str
        The words in their cyclic order.
    components : int
        Principal components of the means.
    permutations : int
        Random orders.
    seed : int
        Seed of the orders.

    Raises
    ------
    ValueError
        If fewer than five words have points, a place is out of range, or a value is not finite.

    Notes
    -----
    The test is ours; Engels et al. (2024, arXiv:2405.14860) show the circles. With few words chance is high:
    of the 720 cyclic orders of seven words each is reached by chance, in one direction or the other, once in
    360 draws.

    Examples
    --------
    >>> turn = 2 * torch.pi * torch.arange(7) / 7
    >>> week = torch.stack([turn.cos(), turn.sin()], dim=1)
    >>> found = measure_circular_order(week, range(7), ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"])
    >>> round(found.order, 3), found.p_value < 0.01
    (1.0, True)
    """
    points = _as_points(points, fewest=5)
    components = settings.whole("components", components, at_least=2)
    permutations = settings.whole("permutations", permutations)
    seed = settings.whole("seed", seed, at_least=0)
    places = torch.as_tensor(places if isinstance(places, Tensor | np.ndarray) else list(places)).long()
    if places.shape != points.shape[:1] or not ((places >= 0) & (places < len(words))).all():
        raise ValueError(
            f"places must give the place of a word, from 0 to {len(words) - 1}, for each of {len(points)} "
            f"points, found {len(places)} of them."
        )
    counts = torch.bincount(places, minlength=len(words))
    present = counts.nonzero()[:, 0]
    if len(present) < 5:
        raise ValueError(f"A circular order needs points of at least 5 words, found {len(present)}.")
    sums = points.new_zeros(len(words), points.shape[1]).index_add_(0, places, points)
    means = principal_components((sums / counts[:, None])[present], components)
    if means.shape[1] < 2:
        raise ValueError("The mean points of the words lie on a line: there is no plane to test.")
    angles = torch.stack([torch.atan2(means[:, i + 1], means[:, i]) for i in range(means.shape[1] - 1)])
    expected = 2 * math.pi * present.double() / len(words)
    order = _agreement(angles, expected)
    plane = int(order.argmax())
    generator = random_stream(seed)
    draws = [torch.randperm(len(present), generator=generator) for _ in range(permutations)]
    null = torch.stack([_agreement(angles, expected[draw]).max() for draw in draws])
    where = pd.Series(present.numpy())
    frame = pd.DataFrame({"word": list(words), "n_points": counts.numpy(), "x": np.nan, "y": np.nan})
    frame.loc[where, ["x", "y"]] = means[:, plane : plane + 2].numpy()
    found = float(order[plane])
    # A hair below, so that the order found counts itself however its cosines are rounded.
    return CircularOrder(frame, plane, found, float(null.mean()), _p_value(found - 1e-9, null))


def _agreement(angles: Tensor, expected: Tensor) -> Tensor:
    """Length of the mean phase between angles `[planes, n]` and expected ones, in the better direction."""
    forward, backward = (
        torch.polar(torch.ones_like(angles), angles - way * expected).mean(1).abs() for way in (1, -1)
    )
    return torch.maximum(forward, backward)
