"""The points of clusters in their best planes, with their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch

from saekit import settings
from saekit.activations import ActivationStore, random_stream
from saekit.analysis.irreducibility.measure import Irreducibility, cluster_points
from saekit.analysis.irreducibility.search import principal_components
from saekit.analysis.latents import LatentActivations, display_strings, require_vocabulary
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.results import Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False, repr=False)
class ClusterPanels(Result):
    """Points of some clusters in their planes, with their tokens.

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
    """The points, with their tokens, of the highest-scoring clusters, each in its best plane.

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
        Names of clusters to show instead of the `n` best.
    n : int
        Number of best clusters to show.
    max_points : int
        Points per cluster, drawn at random if there are more.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If result, activations and store do not belong together, a cluster was not scored, or there is none.

    Examples
    --------
    >>> clusters = saekit.cluster_latents(large, method="graph", theta=0.7)
    >>> of_large = saekit.collect(large, store)
    >>> result = saekit.measure_irreducibility(large, of_large, clusters, min_tokens=20)
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
    if not names:
        raise ValueError("There are no clusters to show.")
    if unknown := [name for name in names if name not in scored.index]:
        raise ValueError(f"The cluster {unknown[0]!r} is not among the {len(scored)} that were scored.")
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
