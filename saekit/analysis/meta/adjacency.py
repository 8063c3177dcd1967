"""Two graphs on the latents of a dictionary: which share a meta-latent, and which are close together.

[LW] is the LessWrong post "Showing SAE Latents Are Not Atomic Using Meta-SAEs" (Bussmann, Pearce,
Leask et al., 2024), which preceded Leask et al. (ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array, triu
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.agreement import check_agreement
from saekit.analysis.meta.latents import decomposition_matrix
from saekit.analysis.meta.sae import MetaSAE
from saekit.analysis.nulls import null_dictionary
from saekit.analysis.similarity import cosines
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.results import Result

BLOCK = 512  # latents whose neighbours are held at once, at most
BLOCK_PATHS = 1 << 22  # paths from these latents through a smaller latent to another one, at most
SAMPLE = 128  # smaller latents from which the number of such paths is estimated
LOWEST = -1.1  # below every cosine


@dataclass(frozen=True, eq=False, repr=False)
class AdjacencyOverlap(Result):
    """Whether latents that share a meta-latent are those close to the same latent of a smaller dictionary.

    Attributes
    ----------
    dictionary, small : Identity
        The dictionary whose latents are joined and the smaller one.
    n_pairs : int
        Pairs of its latents.
    frame : DataFrame
        One row per graph to compare with, that of the smaller dictionary and that of as many random
        directions: `graph`, `tau` (the cosine to exceed), `n_edges` and `n_edges_meta` (of this
        graph and of that of shared meta-latents), `n_shared`, `overlap` (shared edges over the
        latter's), `chance` (the average overlap if the graph's nodes are shuffled).
    """

    dictionary: Identity
    small: Identity
    n_pairs: int
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `small`, `n_edges`, `tau`, `overlap`, `chance`, `overlap_random_directions`."""
        row, random = self.frame.iloc[0], self.frame.iloc[1]
        return {
            "dictionary": str(self.dictionary),
            "small": str(self.small),
            "n_edges": int(row["n_edges_meta"]),
            "tau": float(row["tau"]),
            "overlap": float(row["overlap"]),
            "chance": float(row["chance"]),
            "overlap_random_directions": float(random["overlap"]),
        }


@cached
def adjacency_overlap(
    meta: MetaSAE,
    small: Dictionary,
    *,
    base: int = -1,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> AdjacencyOverlap:
    """Compare the graph of shared meta-latents with that of shared neighbours in a smaller dictionary.

    In the first, two latents are joined if a meta-latent is active on both. In the second, if the
    cosines of both with the same latent of the smaller dictionary exceed tau, which is chosen so that
    there are as many edges (up to ties).

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    small : Dictionary
        The smaller dictionary.
    base : int
        Place in `meta.bases` of the dictionary whose latents are joined.
    seed : int
        Seed of the random directions.
    progress : bool
        Show a progress bar in latents whose neighbours have been counted.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If `small` does not belong together with the base, or no two latents share a meta-latent.
    TypeError, IndexError
        If there is no such base.

    Notes
    -----
    [LW], which reports shared edges over edges. Both controls are ours: chance is the share of all
    pairs that are joined; random directions in place of the smaller dictionary show how much comes
    from latents being close to each other, whatever else they are close to. Two latents stay joined
    until tau reaches a threshold of their own: the lesser of their cosines with the smaller latent
    that makes it greatest. One count of these thresholds gives the number of edges for every tau.
    Cosines too low to matter are not kept, and no graph is held as a whole.

    Examples
    --------
    >>> summary = adjacency_overlap(meta, small).summary
    >>> summary["n_edges"], round(summary["overlap"], 2), round(summary["chance"], 2)
    (18, 0.89, 0.27)
    """
    require_dictionaries(small=small)
    place, seed = meta.place(base), settings.whole("seed", seed, at_least=0)
    source = meta.source(place)
    check_agreement(dictionaries=[source, small], allow_mismatch=allow_mismatch)
    shared = decomposition_matrix(meta, place).astype(bool)
    n_pairs, n_edges = source.width * (source.width - 1) // 2, _n_edges(shared)
    if not n_edges:
        raise ValueError(f"No two latents of {source.name} share a meta-latent.")
    random = null_dictionary(small, "random directions", seed=seed)
    rows = []
    with tqdm(disable=not progress, unit="latent", desc="adjacency") as bar:
        for name, other in ((small.name, small), ("random directions", random)):
            tau, n_near, both = _matched(source.W_dec, other.W_dec, shared, n_edges, bar)
            rows.append(
                {
                    "graph": name,
                    "tau": tau,
                    "n_edges": n_near,
                    "n_edges_meta": n_edges,
                    "n_shared": both,
                    "overlap": both / n_edges,
                    "chance": n_near / n_pairs,
                }
            )
    return AdjacencyOverlap(source.identity, small.identity, n_pairs, pd.DataFrame(rows))


def _joined(links: csr_array, start: int, stop: int) -> csr_array:
    """Pairs of rows that share a column, above the diagonal: a block of rows with all from there on."""
    return triu(links[start:stop] @ links[start:].T, k=1, format="csr")


def _n_edges(links: csr_array) -> int:
    """Pairs of rows that share a column."""
    n = links.shape[0]
    return sum(_joined(links, start, start + BLOCK).nnz for start in range(0, n, BLOCK))


def _matched(
    rows: Tensor, others: Tensor, shared: csr_array, n_edges: int, bar: tqdm[Any]
) -> tuple[float, int, int]:
    """The cosine tau that gives this number of edges, as near as can be, their number, and those shared.

    There are at most as many edges as paths: pairs of rows that exceed tau with one of the others, counted
    for each. So cosines are kept down to where there are several paths for each edge, and the highest of
    them are counted first.
    """
    ratio, aim = 2.0, 4.0  # paths over edges: counted, and above the floor; both grow until there are enough
    floor, paths = np.inf, np.zeros(0)
    while True:
        while floor > LOWEST and (paths[-1:] <= ratio * n_edges).all():
            aim *= 4
            floor = _floor(rows, others, aim * n_edges)
            kept = cosines(rows, others, floor=floor).above.tocoo()
            values, paths = _n_paths(kept.col, kept.data)
        cut = int(np.searchsorted(paths, ratio * n_edges))
        lowest = values[cut] if cut < len(values) else LOWEST
        high = kept.data > lowest
        steps, rank = np.unique(kept.data[high], return_inverse=True)
        steps = np.append(np.float32(lowest), steps)
        links = _Links(kept.row[high], kept.col[high], (rank + 1).astype(np.int32), len(rows))
        # By number of steps up to tau: how many edges have their threshold there, and how many are shared.
        near, both = np.zeros((2, len(steps)), dtype=np.int64)
        for start, stop, thresholds in links.blocks():
            near += np.bincount(thresholds[thresholds > 0], minlength=len(steps))
            pairs = _joined(shared, start, stop).tocoo()
            both += np.bincount(thresholds[pairs.row, pairs.col], minlength=len(steps))
            bar.update(stop - start)
        left = near.sum() - near.cumsum()  # edges at each step
        if left[0] > n_edges or lowest == LOWEST:
            break
        ratio *= 1.2 * n_edges / max(left[0], n_edges / 8)
    at = int(np.argmax(left <= n_edges))
    # The number of edges changes only where tau passes a cosine, and falls as tau rises.
    best = min(range(max(at - 1, 0), at + 1), key=lambda step: abs(left[step] - n_edges))
    return float(steps[best]), int(left[best]), int(both[best + 1 :].sum())


def _floor(rows: Tensor, others: Tensor, n_paths: float) -> float:
    """Approximate cosine above which there is a given number of paths, from a sample of the others."""
    sample = others[:: -(-len(others) // SAMPLE)]
    products = F.normalize(rows, dim=1) @ F.normalize(sample, dim=1).T
    low, high = LOWEST, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        near = (products > middle).sum(0).double()
        n = float((near * (near - 1)).sum()) / 2 * len(others) / len(sample)
        low, high = (middle, high) if n >= n_paths else (low, middle)
    return low


def _n_paths(columns: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cosines in falling order, and the paths over those down to each."""
    order = np.lexsort((-values, columns))
    first = np.searchsorted(columns[order], columns[order])
    added = np.empty(len(values), dtype=np.int64)
    added[order] = np.arange(len(values)) - first
    falling = np.argsort(-values, kind="stable")
    return values[falling], added[falling].cumsum()


class _Links:
    """A bipartite graph: which of `n` rows are linked to which columns, and how strongly (from 1 on)."""

    def __init__(self, rows: NDArray[Any], columns: NDArray[Any], strength: NDArray[Any], n: int) -> None:
        by_column = np.lexsort((rows, columns))
        self.n, self.rows, self.strength = n, rows[by_column].astype(np.int64), strength[by_column]
        columns = columns[by_column]
        ends = np.searchsorted(columns, columns, side="right")
        self.n_further = ends - np.arange(len(ends)) - 1  # links of the same column to later rows
        self.by_row = np.argsort(self.rows, kind="stable")
        self.starts = np.searchsorted(self.rows[self.by_row], np.arange(n + 1))

    def blocks(self) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Rows `start` to `stop`, and how strongly each is joined with every row from `start` on.

        That is, over the best column, the weaker one of the two links; 0 where two rows share none,
        and on and below the diagonal.
        """
        paths = np.append(0, self.n_further[self.by_row].cumsum())[self.starts]
        start = 0
        while start < self.n:
            within = int(np.searchsorted(paths, paths[start] + BLOCK_PATHS, side="right")) - 1
            stop = min(max(within, start + 1), start + BLOCK, self.n)
            links = self.by_row[self.starts[start] : self.starts[stop]]
            counts = self.n_further[links]
            others = np.arange(counts.sum()) + np.repeat(links + 1 - (counts.cumsum() - counts), counts)
            cells = np.repeat((self.rows[links] - start) * (self.n - start), counts)
            cells += self.rows[others] - start
            joined = np.zeros((stop - start) * (self.n - start), dtype=np.int32)
            weaker = np.minimum(np.repeat(self.strength[links], counts), self.strength[others])
            np.maximum.at(joined, cells, weaker)
            yield start, stop, joined.reshape(stop - start, self.n - start)
            start = stop
