"""Two graphs on the latents of a dictionary: who shares a meta-latent, and who is near whom.

[LW] stands for the authors' post "Showing SAE latents are not atomic using meta-SAEs" (Bussmann,
Pearce, Leask et al., 2024), which came before Leask et al. (ICLR 2025).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array, triu
from tqdm.auto import tqdm

from saekit import settings
from saekit.agreement import check_agreement
from saekit.analysis.meta.latents import decomposition_matrix
from saekit.analysis.meta.sae import MetaSAE
from saekit.analysis.nulls import null_dictionary
from saekit.analysis.similarity import CHUNK_ELEMENTS
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.results import Result

BLOCK = 1024  # latents whose neighbours are held at once
FLOOR_STEP = 0.1  # by which the floor of the cosines is lowered until there are edges enough


@dataclass(frozen=True, eq=False, repr=False)
class AdjacencyOverlap(Result):
    """Whether latents that share a meta-latent are those that are near the same smaller latent.

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
        latter's), `chance` (what the overlap is on average if the graph's nodes are shuffled).
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
    cosines of both with one and the same latent of the smaller dictionary exceed tau, which is
    chosen so that there are as many edges (as near as ties let it).

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    small : Dictionary
        The smaller dictionary.
    base : int
        Place in `meta.bases` of the dictionary whose latents are joined.
    seed : int
        Of the random directions.
    progress : bool
        Show a progress bar in counts of a graph's edges (about 20 for each of the two graphs).
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
    pairs that are joined; random directions in place of the smaller dictionary show what comes
    from latents being near each other, whatever they are near to. The graphs are looked through in
    blocks of rows and never held as a whole.

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
    with tqdm(disable=not progress, unit="count", desc="adjacency") as bar:
        for name, other in ((small.name, small), ("random directions", random)):
            tau, near = _matched(source, other, n_edges, bar)
            n_near = _n_edges(near)
            both = sum(
                _joined(shared, start).multiply(_joined(near, start)).count_nonzero()
                for start in range(0, source.width, BLOCK)
            )
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


def _joined(links: csr_array, start: int) -> csr_array:
    """Pairs of rows that share a column, above the diagonal: a block of rows with all from there on."""
    return triu(links[start : start + BLOCK] @ links[start:].T, k=1, format="csr")


def _n_edges(links: csr_array, bar: tqdm[Any] | None = None) -> int:
    """Pairs of rows that share a column."""
    if bar is not None:
        bar.update()
    return sum(_joined(links, start).nnz for start in range(0, links.shape[0], BLOCK))


def _matched(source: Dictionary, other: Dictionary, n_edges: int, bar: tqdm[Any]) -> tuple[float, csr_array]:
    """The cosine tau that gives this number of edges, as near as can be, and what exceeds it."""
    floor = 1.0
    while True:
        floor -= FLOOR_STEP
        cosines = _cosines_above(source, other, floor)
        if floor < -1 or _n_edges(cosines.astype(bool), bar) >= n_edges:
            break

    def above(tau: float) -> csr_array:
        keep = cosines.data > tau
        offsets = np.concatenate([[0], np.cumsum(keep)])[cosines.indptr]
        return csr_array((np.ones(offsets[-1], bool), cosines.indices[keep], offsets), cosines.shape)

    # The number of edges changes only where tau passes a cosine, and falls as tau rises.
    steps = np.unique(np.append(cosines.data, np.float32(floor))).tolist()
    at = bisect_left(range(len(steps)), -n_edges, key=lambda i: -_n_edges(above(steps[i]), bar))
    tau = min(steps[max(at - 1, 0) : at + 1], key=lambda tau: abs(_n_edges(above(tau), bar) - n_edges))
    return tau, above(tau)


def _cosines_above(source: Dictionary, other: Dictionary, floor: float) -> csr_array:
    """Cosines of decoder directions above a floor, float32 `[source.width, other.width]`."""
    directions = F.normalize(other.W_dec, dim=1).T
    counts, indices, values = [], [], []
    for part in source.W_dec.split(max(1, CHUNK_ELEMENTS // other.width)):
        cosines = F.normalize(part, dim=1) @ directions
        above = cosines > floor
        counts.append(above.sum(1).cpu())
        indices.append(above.nonzero()[:, 1].cpu())
        values.append(cosines[above].cpu())
    offsets = F.pad(torch.cat(counts).cumsum(0), (1, 0))
    entries = (torch.cat(values).numpy(), torch.cat(indices).numpy(), offsets.numpy())
    return csr_array(entries, (source.width, other.width))
