"""What meta-latents are: parts of latents, and how they compare with smaller dictionaries' latents.

[LW] stands for the authors' post "Showing SAE latents are not atomic using meta-SAEs" (Bussmann,
Pearce, Leask et al., 2024), which came before Leask et al. (ICLR 2025).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array, diags_array, triu
from torch import Tensor

from saekit.activations import ActivationStore, random_stream
from saekit.analysis.labels import Labels
from saekit.analysis.meta import MetaSAE
from saekit.analysis.similarity import CHUNK_ELEMENTS, best_matches, nearest
from saekit.analysis.splitting import SplittingTree
from saekit.analysis.uniqueness import null_dictionary
from saekit.dictionary import Dictionary, fold
from saekit.metrics import CEDegradation, ce_degradation, evaluate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BLOCK = 1024  # latents whose neighbours in a graph are held at once, and that are tested at once
FLOOR_STEP = 0.1  # by which the floor of the cosines is lowered until there are edges enough


# ---------------------------------------------------------------------- a latent and its meta-latents


@dataclass(frozen=True, eq=False)
class Decomposition:
    """What a latent is made of.

    Attributes
    ----------
    dictionary : str
        The base dictionary's name.
    latent : int
        Which latent.
    frame : DataFrame
        One row an active meta-latent, strongest first: `meta_latent`, `label` (empty without
        labels), `activation`, `share` (of the sum of the activations), `n_latents` (of all bases,
        that it is active on), `cosine` (of its direction with the latent's), `rebuilt_cosine`
        (of the latent's direction with what this and the stronger ones rebuild).
    """

    dictionary: str
    latent: int
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `latent`, `n_meta_latents`, `rebuilt_cosine` (of all; NaN without any)."""
        cosines = self.frame["rebuilt_cosine"]
        return {
            "dictionary": self.dictionary,
            "latent": self.latent,
            "n_meta_latents": len(self.frame),
            "rebuilt_cosine": float(cosines.iat[-1]) if len(cosines) else float("nan"),
        }


def decomposition(
    meta: MetaSAE, latent: int, *, base: int = -1, labels: Labels | None = None
) -> Decomposition:
    """Take a latent apart into meta-latents.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    latent, base : int
        A latent of one of its bases.
    labels : Labels, optional
        Of the meta-latents.

    Raises
    ------
    IndexError
        If there is no such base or latent.

    Notes
    -----
    The case studies of Leask et al. (ICLR 2025, figure 1) and [LW]; the columns after the
    activation are ours.
    """
    own = meta.of(latent, base)
    place, found = range(len(meta.bases))[base], own["meta_latent"].tolist()
    direction, parts = meta.sources[place].W_dec[latent], meta.dictionary.W_dec[found]
    rebuilt = (torch.tensor(own["activation"].tolist(), dtype=parts.dtype)[:, None] * parts).cumsum(0)
    frame = own.assign(
        label=_texts(labels, found),
        share=own["activation"] / own["activation"].sum(),
        n_latents=meta.frame["n_latents"].iloc[found].to_numpy(),
        cosine=F.cosine_similarity(parts, direction[None]).numpy(),
        rebuilt_cosine=F.cosine_similarity(rebuilt + meta.dictionary.b_dec, direction[None]).numpy(),
    )
    order = ["meta_latent", "label", "activation", "share", "n_latents", "cosine", "rebuilt_cosine"]
    return Decomposition(meta.bases[place], latent, frame[order])


@dataclass(frozen=True, eq=False)
class Members:
    """The latents that a meta-latent is part of.

    Attributes
    ----------
    meta_latent : int
        Which meta-latent.
    label : str
        What it is about; empty without labels.
    n_latents : int
        Latents of all bases that it is active on.
    frame : DataFrame
        One row a latent, that with the greatest activation first: `base`, `width`, `latent`,
        `label` (empty without labels), `activation`, `share` (of the sum of the activations of
        the latent's meta-latents).
    """

    meta_latent: int
    label: str
    n_latents: int
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`meta_latent`, `label`, `n_latents`."""
        return {"meta_latent": self.meta_latent, "label": self.label, "n_latents": self.n_latents}


def members(
    meta: MetaSAE,
    meta_latent: int,
    n: int = 10,
    *,
    base: int | None = None,
    labels: Sequence[Labels] | None = None,
    meta_labels: Labels | None = None,
) -> Members:
    """The latents that a meta-latent is most active on: the reverse of `decomposition`.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    meta_latent : int
        The meta-latent.
    n : int
        At most so many.
    base : int, optional
        Place in `meta.bases` of the only dictionary to look in.
    labels : sequence of Labels, optional
        Of the latents of each base.
    meta_labels : Labels, optional
        Of the meta-latents.

    Raises
    ------
    IndexError
        If there is no such meta-latent or base.
    """
    frame = meta.members(meta_latent, n, base)
    totals = _decompositions(meta).sum(1)
    rows = np.cumsum([0, *meta.widths])[frame["base"]] + frame["latent"]
    frame = frame.assign(
        label=[
            labels[of].of(latent) if labels else ""
            for of, latent in zip(frame["base"], frame["latent"], strict=True)
        ],
        share=frame["activation"] / totals[rows],
    )
    return Members(
        meta_latent=meta_latent,
        label=_texts(meta_labels, [meta_latent])[0],
        n_latents=int(meta.frame["n_latents"].iat[meta_latent]),
        frame=frame[["base", "width", "latent", "label", "activation", "share"]],
    )


@dataclass(frozen=True, eq=False)
class RelatedLatents:
    """The graph of a latent, its meta-latents and the latents that these are most active on.

    Attributes
    ----------
    nodes : DataFrame
        One row a node: `node` (counted from 0, the latent itself), `role` (`"latent"`,
        `"meta-latent"` or `"related"`), `base` and `width` (-1 and that of the meta-SAE for
        meta-latents), `latent` (or meta-latent), `label`. A latent related in two ways is one node.
    edges : DataFrame
        One row an edge: `meta_node` and `latent_node` (places in `nodes`), `activation`.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The edges."""
        return self.edges

    @property
    def summary(self) -> dict[str, Any]:
        """`latent`, `n_meta_latents`, `n_related`, `n_edges`."""
        roles = self.nodes["role"].value_counts()
        return {
            "latent": int(self.nodes["latent"].iat[0]),
            "n_meta_latents": int(roles.get("meta-latent", 0)),
            "n_related": int(roles.get("related", 0)),
            "n_edges": len(self.edges),
        }


def related_latents(
    meta: MetaSAE,
    latent: int,
    *,
    base: int = -1,
    n_meta: int = 5,
    n_members: int = 5,
    labels: Sequence[Labels] | None = None,
    meta_labels: Labels | None = None,
) -> RelatedLatents:
    """The graph around a latent: its strongest meta-latents, and the strongest latents of each.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    latent, base : int
        A latent of one of its bases.
    n_meta, n_members : int
        At most so many meta-latents, and other latents of each.
    labels : sequence of Labels, optional
        Of the latents of each base.
    meta_labels : Labels, optional
        Of the meta-latents.

    Raises
    ------
    IndexError
        If there is no such base or latent.

    Notes
    -----
    The related-latents graph of [LW] and of the dashboard published with Leask et al. (ICLR 2025).
    """
    own = meta.of(latent, base).head(n_meta)
    place = range(len(meta.bases))[base]
    node = {(place, latent): 0}  # a meta-latent's base is -1
    edges = []
    for part in own.itertuples():
        here = node.setdefault((-1, part.meta_latent), len(node))
        edges.append((here, 0, part.activation))
        found = meta.members(part.meta_latent, n_members + 1)
        others = found[(found["base"] != place) | (found["latent"] != latent)].head(n_members)
        for other in others.itertuples():
            edges.append((here, node.setdefault((other.base, other.latent), len(node)), other.activation))
    nodes = [
        {
            "node": number,
            "role": "meta-latent" if of < 0 else "related" if number else "latent",
            "base": of,
            "width": meta.width if of < 0 else meta.widths[of],
            "latent": which,
            "label": _texts(meta_labels if of < 0 else labels[of] if labels else None, [which])[0],
        }
        for (of, which), number in node.items()
    ]
    return RelatedLatents(
        pd.DataFrame(nodes), pd.DataFrame(edges, columns=["meta_node", "latent_node", "activation"])
    )


# ---------------------------------------------------------------------- beside nearest latents


@dataclass(frozen=True, eq=False)
class SideBySide:
    """A latent's meta-latents beside its nearest latents, in its own and in a smaller dictionary.

    Attributes
    ----------
    dictionary, small : str
        Names of the latent's dictionary and of the smaller one.
    latent : int
        Which latent.
    frame : DataFrame
        One row a rank: `rank`, then for each of the three lists a number, a label (empty without
        labels) and a value: `meta_latent`, `meta_label`, `activation`; `same_latent`,
        `same_label`, `same_cosine`; `small_latent`, `small_label`, `small_cosine`. Missing where
        there are fewer meta-latents.
    cosines : DataFrame
        Cosine of each meta-latent's direction (rows) with that of each of the smaller
        dictionary's latents (columns), as listed.
    """

    dictionary: str
    small: str
    latent: int
    frame: pd.DataFrame
    cosines: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `small`, `latent`, `n_meta_latents` and `n_paired`, those at a cosine of 0.7 or more."""
        paired = (self.cosines >= 0.7).any(axis=1)
        return {
            "dictionary": self.dictionary,
            "small": self.small,
            "latent": self.latent,
            "n_meta_latents": len(paired),
            "n_paired": int(paired.sum()),
        }


def side_by_side(
    meta: MetaSAE,
    latent: int,
    small: Dictionary,
    *,
    base: int = -1,
    n: int = 6,
    labels: Labels | None = None,
    meta_labels: Labels | None = None,
    small_labels: Labels | None = None,
) -> SideBySide:
    """Set a latent's meta-latents beside the latents nearest to it, and compare their directions.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    latent, base : int
        A latent of one of its bases.
    small : Dictionary
        A smaller dictionary.
    n : int
        At most so many of each.
    labels, meta_labels, small_labels : Labels, optional
        Of the base, the meta-latents and the smaller dictionary.

    Raises
    ------
    IndexError
        If there is no such base or latent.
    ValueError
        If `small` is of another dimension or has fewer than `n` latents.

    Notes
    -----
    The table and heat map of [LW].
    """
    own = meta.of(latent, base).head(n)
    place = range(len(meta.bases))[base]
    source = meta.sources[place]
    parts = own["meta_latent"].tolist()
    lists = {
        "same": (labels, *nearest(source, source, n, latents=[latent])),
        "small": (small_labels, *nearest(source, small, n, latents=[latent])),
    }
    columns = {
        "meta_latent": pd.array(parts, dtype="Int64"),
        "meta_label": _texts(meta_labels, parts),
        "activation": own["activation"].to_numpy(),
    }
    frame = pd.DataFrame(columns).reindex(range(n))
    frame.insert(0, "rank", range(1, n + 1))
    for name, (of, cosines, latents) in lists.items():
        found = latents[0].numpy()
        frame = frame.assign(
            **{
                f"{name}_latent": found,
                f"{name}_label": _texts(of, found),
                f"{name}_cosine": cosines[0].numpy(),
            }
        )
    near = frame["small_latent"].tolist()
    cosines = F.normalize(meta.dictionary.W_dec[parts], dim=1) @ F.normalize(small.W_dec[near], dim=1).T
    return SideBySide(
        dictionary=source.name,
        small=small.name,
        latent=latent,
        frame=frame,
        cosines=pd.DataFrame(
            cosines.numpy(),
            index=pd.Index(parts, name="meta_latent"),
            columns=pd.Index(near, name="small_latent"),
        ),
    )


# ---------------------------------------------------------------------- distributions of cosines


@dataclass(frozen=True, eq=False)
class CosineDistributions:
    """Greatest cosines between a meta-SAE, the dictionary it decomposes and smaller ones.

    Attributes
    ----------
    theta : float
        Cosine from which two directions count as the same.
    frame : DataFrame
        One row a direction and comparison: `panel` (`"within"` one dictionary; `"meta-latents"`
        or `"latents"` looked up in others), `of`, `nearest_in` (names of dictionaries), `null`
        (whether the directions looked up are random ones), `latent`, `cosine`.
    """

    theta: float
    frame: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a comparison.

        `panel`, `of`, `nearest_in`, `median` and `share_above_theta`, and `null_median` and
        `null_share_above_theta` of as many random directions.
        """
        keys = ["panel", "of", "nearest_in"]
        grouped = self.frame.groupby([*keys, "null"], sort=False)["cosine"]
        found = grouped.agg(
            median="median", share_above_theta=lambda cosine: (cosine >= self.theta).mean()
        ).reset_index()
        null = found[found["null"]].drop(columns="null")
        null = null.rename(columns={c: f"null_{c}" for c in ("median", "share_above_theta")})
        return found[~found["null"]].drop(columns="null").merge(null, on=keys)

    @property
    def summary(self) -> dict[str, Any]:
        """`theta`, and by comparison (`"<of> → <nearest in>"`) its `median` and `share_above_theta`."""
        rows = {
            f"{row.of} → {row.nearest_in}": {
                "median": float(row.median),
                "share_above_theta": float(row.share_above_theta),
            }
            for row in self.table.itertuples()
        }
        return {"theta": self.theta, **rows}


def cosine_distributions(
    meta: MetaSAE,
    smaller: Dictionary | Sequence[Dictionary],
    *,
    base: int = -1,
    theta: float = 0.7,
    seed: int = 0,
) -> CosineDistributions:
    """How near meta-latents, latents and smaller dictionaries' latents are to each other.

    Within each dictionary: every latent's nearest neighbour. Of every meta-latent: the nearest
    latent, in the base and in smaller dictionaries. Of every latent of the base: the nearest
    meta-latent, and the nearest latent of smaller dictionaries.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    smaller : Dictionary or sequence of Dictionary
        Dictionaries smaller than the base.
    base : int
        Place in `meta.bases` of the dictionary to compare with.
    theta : float
        Cosine from which two directions count as the same.
    seed : int
        Of the random directions that each comparison is repeated with: as many, drawn evenly from
        the sphere, and looked up in the same dictionary (or within themselves).

    Raises
    ------
    ValueError
        If a dictionary is of another dimension.

    Notes
    -----
    The three panels of [LW]; the null is ours. The more directions there are to choose from, the
    greater the greatest cosine: compare with the null of the same row.
    """
    own, source = meta.dictionary, meta.sources[base]
    others = [smaller] if isinstance(smaller, Dictionary) else list(smaller)
    names = {id(own): meta.name} | {id(member): member.name for member in (source, *others)}
    comparisons = [
        *(("within", member, member) for member in (own, *others, source)),
        *(("meta-latents", own, member) for member in (*others, source)),
        *(("latents", source, member) for member in (own, *others)),
    ]
    frames = []
    for panel, of, to in comparisons:
        random = null_dictionary(of, "random directions", seed=seed)
        for null, looked_up, place in ((False, of, to), (True, random, random if of is to else to)):
            found = best_matches(looked_up, place).frame
            frames.append(
                pd.DataFrame(
                    {
                        "panel": panel,
                        "of": names[id(of)],
                        "nearest_in": names[id(to)],
                        "null": null,
                        "latent": found["latent"],
                        "cosine": found["best_cosine"],
                    }
                )
            )
    return CosineDistributions(theta, pd.concat(frames, ignore_index=True))


# ---------------------------------------------------------------------- two graphs


@dataclass(frozen=True, eq=False)
class AdjacencyOverlap:
    """Whether latents that share a meta-latent are those that are near the same smaller latent.

    Attributes
    ----------
    dictionary, small : str
        Names of the dictionary whose latents are joined and of the smaller one.
    n_pairs : int
        Pairs of its latents.
    frame : DataFrame
        One row a graph to compare with, that of the smaller dictionary and that of as many random
        directions: `graph`, `tau` (the cosine to exceed), `n_edges` and `n_edges_meta` (of this
        graph and of that of shared meta-latents), `n_shared`, `overlap` (shared edges over the
        latter's), `chance` (what the overlap is on average if the graph's nodes are shuffled).
    """

    dictionary: str
    small: str
    n_pairs: int
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `small`, `n_edges`, `tau`, `overlap`, `chance`, `overlap_random_directions`."""
        row, random = self.frame.iloc[0], self.frame.iloc[1]
        return {
            "dictionary": self.dictionary,
            "small": self.small,
            "n_edges": int(row["n_edges_meta"]),
            "tau": float(row["tau"]),
            "overlap": float(row["overlap"]),
            "chance": float(row["chance"]),
            "overlap_random_directions": float(random["overlap"]),
        }


def adjacency_overlap(meta: MetaSAE, small: Dictionary, *, base: int = -1, seed: int = 0) -> AdjacencyOverlap:
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

    Raises
    ------
    ValueError
        If `small` is of another dimension, or no two latents share a meta-latent.

    Notes
    -----
    [LW], which reports shared edges over edges. Both controls are ours: chance is the share of all
    pairs that are joined; random directions in place of the smaller dictionary show what comes
    from latents being near each other, whatever they are near to. The graphs are looked through in
    blocks of rows and never held as a whole.
    """
    place = range(len(meta.bases))[base]
    source = meta.sources[place]
    shared = _decompositions(meta, place).astype(bool)
    n_pairs, n_edges = source.width * (source.width - 1) // 2, _n_edges(shared)
    if not n_edges:
        raise ValueError(f"No two latents of {source.name} share a meta-latent.")
    graphs = {small.name: small, "random directions": null_dictionary(small, "random directions", seed=seed)}
    rows = []
    for name, other in graphs.items():
        tau, near = _matched(source, other, n_edges)
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
    return AdjacencyOverlap(source.name, small.name, n_pairs, pd.DataFrame(rows))


def _joined(links: csr_array, start: int) -> csr_array:
    """Pairs of rows that share a column, above the diagonal: a block of rows with all from there on."""
    return triu(links[start : start + BLOCK] @ links[start:].T, k=1, format="csr")


def _n_edges(links: csr_array) -> int:
    """Pairs of rows that share a column."""
    return sum(_joined(links, start).nnz for start in range(0, links.shape[0], BLOCK))


def _matched(source: Dictionary, other: Dictionary, n_edges: int) -> tuple[float, csr_array]:
    """The cosine tau that gives this number of edges, as near as can be, and what exceeds it."""
    floor = 1.0
    while True:
        floor -= FLOOR_STEP
        cosines = _cosines_above(source, other, floor)
        if floor < -1 or _n_edges(cosines.astype(bool)) >= n_edges:
            break

    def above(tau: float) -> csr_array:
        keep = cosines.data > tau
        offsets = np.concatenate([[0], np.cumsum(keep)])[cosines.indptr]
        return csr_array((np.ones(offsets[-1], bool), cosines.indices[keep], offsets), cosines.shape)

    # The number of edges changes only where tau passes a cosine, and falls as tau rises.
    steps = np.unique(np.append(cosines.data, np.float32(floor))).tolist()
    at = bisect_left(range(len(steps)), -n_edges, key=lambda i: -_n_edges(above(steps[i])))
    tau = min(steps[max(at - 1, 0) : at + 1], key=lambda tau: abs(_n_edges(above(tau)) - n_edges))
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


# ---------------------------------------------------------------------- splitting


@dataclass(frozen=True, eq=False)
class MetaSplitting:
    """What children keep of their parent's meta-latents when latents split.

    Attributes
    ----------
    frame : DataFrame
        One row a parent and child: `parent_width`, `parent`, `width`, `latent`, `cosine`,
        `status` (the parent's: split, identical or refined), `n_parent`, `n_child` and `n_shared`
        meta-latents, `kept` (share of the parent's that the child has; NaN if it has none),
        `kept_chance` (what a latent of the child's width drawn at random keeps on average),
        `inherited` (share of the child's activations that is on the parent's meta-latents).
    split : DataFrame
        One row a latent that splits: `width`, `latent`, `children`, `n_meta_latents`, `common`
        (those that all children have too, a tuple), `n_common`.
    counts : DataFrame
        How many meta-latents latents have: `width`, `n_active`, `n_latents`, `share` (of the
        width's latents).
    """

    frame: pd.DataFrame
    split: pd.DataFrame
    counts: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """Means by pair of widths and status.

        `parent_width`, `width`, `status`, `n_edges`, `n_parent`, `n_child`, `kept`,
        `kept_chance`, `inherited`.
        """
        return (
            self.frame.groupby(["parent_width", "width", "status"])
            .agg(
                n_edges=("latent", "size"),
                n_parent=("n_parent", "mean"),
                n_child=("n_child", "mean"),
                kept=("kept", "mean"),
                kept_chance=("kept_chance", "mean"),
                inherited=("inherited", "mean"),
            )
            .reset_index()
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`kept`, `kept_chance` and `inherited` of split latents; by width `mean_active` and `mode_active`.

        `share_with_common`: of the latents that split, those with a meta-latent that all children have.
        """
        edges = self.frame[self.frame["status"] == "split"]
        by_width = self.counts.groupby("width")
        return {
            "kept": float(edges["kept"].mean()),
            "kept_chance": float(edges["kept_chance"].mean()),
            "inherited": float(edges["inherited"].mean()),
            "share_with_common": float((self.split["n_common"] > 0).mean()),
            "mean_active": {
                int(width): float((part["n_active"] * part["share"]).sum()) for width, part in by_width
            },
            "mode_active": {
                int(width): int(part["n_active"].loc[part["share"].idxmax()]) for width, part in by_width
            },
        }


def splitting_through_meta(meta: MetaSAE, tree: SplittingTree) -> MetaSplitting:
    """Follow meta-latents from parents to children where the latents of a family split.

    Parameters
    ----------
    meta : MetaSAE
        Trained on all dictionaries of a family (`meta_sae(family)`).
    tree : SplittingTree
        Of the same family (`splitting_tree(family)`).

    Raises
    ------
    ValueError
        If the meta-SAE and the tree are not of the same widths.

    Notes
    -----
    [LW] shows an example and the distribution of the number of active meta-latents by width;
    counting what is kept, and chance, are ours. That a child is near its parent by definition makes
    it keep more than chance. As the authors say, latents that recur at every width are
    over-represented among the directions that such a meta-SAE is trained on.
    """
    if meta.widths != tree.widths:
        raise ValueError(
            f"The tree must have the widths {list(meta.widths)} of {meta.name}, found {list(tree.widths)}."
        )
    first = dict(zip(meta.widths, np.cumsum([0, *meta.widths]), strict=False))
    activation = _decompositions(meta)
    active = activation.astype(bool)
    n_active = np.diff(active.indptr)
    shares = np.stack([active[first[w] : first[w] + w].sum(0) / w for w in meta.widths])

    edges = tree.frame
    parents = edges["parent_width"].map(first).to_numpy() + edges["parent"].to_numpy()
    children = edges["width"].map(first).to_numpy() + edges["latent"].to_numpy()
    n_shared = active[parents].multiply(active[children]).sum(1)
    place = edges["width"].map(dict(zip(meta.widths, range(len(meta.widths)), strict=True))).to_numpy()
    expected = (active @ shares.T)[parents, place]
    with np.errstate(invalid="ignore"):  # 0 / 0 where a latent has no meta-latents
        frame = edges.assign(
            n_parent=n_active[parents],
            n_child=n_active[children],
            n_shared=n_shared,
            kept=n_shared / n_active[parents],
            kept_chance=expected / n_active[parents],
            inherited=activation[children].multiply(active[parents]).sum(1) / activation[children].sum(1),
        )

    split = []
    for (width, latent), family in frame[frame["status"] == "split"].groupby(["parent_width", "parent"]):
        own = set(active[[first[width] + latent]].indices.tolist())
        for child_width, child in zip(family["width"], family["latent"], strict=True):
            own &= set(active[[first[child_width] + child]].indices.tolist())
        split.append((width, latent, len(family), family["n_parent"].iat[0], tuple(sorted(own)), len(own)))
    columns = ["width", "latent", "children", "n_meta_latents", "common", "n_common"]
    most = int(n_active.max())
    counts = [
        {"width": width, "n_active": n, "n_latents": found, "share": found / width}
        for width in meta.widths
        for n, found in enumerate(
            np.bincount(n_active[first[width] : first[width] + width], minlength=most + 1).tolist()
        )
    ]
    return MetaSplitting(frame, pd.DataFrame(split, columns=columns), pd.DataFrame(counts))


# ---------------------------------------------------------------------- cross-entropy


@dataclass(frozen=True, eq=False)
class CERebuilt:
    """What a decoder rebuilt from meta-latents costs the language model.

    Attributes
    ----------
    frame : DataFrame
        One row a decoder: `decoder` (`"own"`, `"rebuilt"`, or `"turned at random"`: directions of
        the same norm and the same cosine with the own ones), `fvu`, and of `ce_degradation` the
        columns `ce`, `ce_degradation`, `loss_recovered_zero`, `loss_recovered_mean`.
    ce : CEDegradation
        The measurement, with its ablations and number of tokens.
    """

    frame: pd.DataFrame
    ce: CEDegradation

    @property
    def summary(self) -> dict[str, Any]:
        """`ce_degradation` and `fvu` by decoder, and `n_targets`."""
        decoders = self.frame.set_index("decoder")
        return {
            "ce_degradation": {name: float(value) for name, value in decoders["ce_degradation"].items()},
            "fvu": {name: float(value) for name, value in decoders["fvu"].items()},
            "n_targets": self.ce.n_targets,
        }


def ce_rebuilt(
    model: TransformerBridge,
    meta: MetaSAE,
    store: ActivationStore,
    *,
    base: int = -1,
    max_rows: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> CERebuilt:
    """Measure a dictionary with its decoder rebuilt from meta-latents, its encoder as it was.

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    meta : MetaSAE
        The meta-SAE.
    store : ActivationStore
        Held-out tokens: all for the FVU.
    base : int
        Place in `meta.bases` of the dictionary to measure.
    max_rows : int
        Rows of tokens for the cross-entropy, spread evenly over the store.
    seed : int
        Of the random turn.
    progress : bool
        Show progress bars.

    Raises
    ------
    ValueError
        If the base is a TopK dictionary, or does not fit the store.

    Notes
    -----
    In the authors' code only, without published numbers. The control, an error of the same size in
    a random direction, is ours.
    """
    place = range(len(meta.bases))[base]
    source = meta.sources[place]
    rebuilt = meta.reconstruct()[meta.base == place]
    dictionaries = {
        "own": source,
        "rebuilt": meta.rebuilt(place),
        "turned at random": fold(
            W_enc=source.W_enc,
            b_enc=source.b_enc,
            W_dec=_turned(source.W_dec, rebuilt, seed),
            b_dec=source.b_dec,
            threshold=source.threshold,
            info={**source.info, "kind": f"turned {source.kind}"},
        ),
    }
    ce = ce_degradation(model, list(dictionaries.values()), store, max_rows=max_rows, progress=progress)
    columns = ["ce", "ce_degradation", "loss_recovered_zero", "loss_recovered_mean"]
    frame = ce.frame[columns].assign(
        decoder=list(dictionaries),
        fvu=[evaluate(member, store, progress=progress).fvu for member in dictionaries.values()],
    )
    return CERebuilt(frame[["decoder", "fvu", *columns]], ce)


def _turned(rows: Tensor, rebuilt: Tensor, seed: int) -> Tensor:
    """Directions with the norms of the rebuilt ones and their cosines with the rows, else random."""
    rows, rebuilt = F.normalize(rows.double(), dim=1), rebuilt.double()
    random = torch.randn(rows.shape, generator=random_stream(seed), dtype=rows.dtype).to(rows.device)
    along = (rows * rebuilt).sum(1, keepdim=True)
    across = (rebuilt.square().sum(1, keepdim=True) - along**2).clamp(min=0).sqrt()
    aside = F.normalize(random - (random * rows).sum(1, keepdim=True) * rows, dim=1)
    return along * rows + across * aside


# ---------------------------------------------------------------------- multiple choice


@dataclass(frozen=True, eq=False)
class MultipleChoice:
    """Whether a latent's meta-latent can be told from others by what both are about.

    Attributes
    ----------
    n_options : int
        Meta-latents to choose from, one of them the latent's own.
    n_left_out : int
        Latents without a question: dead, without a meta-latent, the only one that has it, or with
        too few distractors.
    frame : DataFrame
        One row a latent asked about: `latent`, `meta_latent` (its strongest), `activation`,
        `n_others` (latents that this is told from), `similarity` (with the latent), `best_other`
        (the greatest similarity with a distractor), `right` (1, or 0, or one over the number of
        options that tie at the top).
    null : DataFrame
        The same with memberships shuffled among the latents.
    """

    n_options: int
    n_left_out: int
    frame: pd.DataFrame
    null: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`accuracy` and `accuracy_null`, `standard_error` and `standard_error_null`, `chance`.

        Also `n_options`, `n_latents` and `n_left_out`. Answers about one meta-latent depend on
        each other, so the standard error is that of a sample of meta-latents, not of latents.
        """
        return {
            "accuracy": float(self.frame["right"].mean()),
            "standard_error": _clustered_error(self.frame),
            "accuracy_null": float(self.null["right"].mean()),
            "standard_error_null": _clustered_error(self.null),
            "chance": 1 / self.n_options,
            "n_options": self.n_options,
            "n_latents": len(self.frame),
            "n_left_out": self.n_left_out,
        }


def multiple_choice(
    meta: MetaSAE, labels: Labels, *, base: int = -1, n_options: int = 5, seed: int = 0
) -> MultipleChoice:
    """Ask for every latent which of some meta-latents is its own, going by tokens alone.

    A latent is what it is about: the distribution of tokens that its label comes from
    (`Labels.tokens`), weighted by inverse document frequency (the logarithm of the number of
    latents over those that have the token) and scaled to norm 1. A meta-latent is the sum of its
    latents' weighted distributions times its activations on them, with the latent in question
    left out. The answer is the option of greatest cosine; ties share the point.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    labels : Labels
        Of the base's latents.
    base : int
        Place in `meta.bases` of the dictionary to ask about; its latents alone describe the
        meta-latents.
    n_options : int
        The latent's strongest meta-latent, and distractors drawn evenly from those that are active
        on other latents but not on it.
    seed : int
        Of the distractors, and of the shuffle in the null.

    Raises
    ------
    ValueError
        If the labels are not of the base, or there are too few meta-latents to draw from.

    Notes
    -----
    That Leask et al. (ICLR 2025) have a language model explain meta-latents is known, their scores
    are not; the test, and its scoring without a network, are ours. Frequent meta-latents are own
    ones more often than distractors, and what they are about is broader: the null, in which each
    latent has another's meta-latents, shows how much that alone helps.
    """
    place = range(len(meta.bases))[base]
    if len(labels) != meta.widths[place]:
        raise ValueError(
            f"The labels must be of the {meta.widths[place]} latents of {meta.bases[place]}, "
            f"found {len(labels)}."
        )
    documents = np.bincount(labels.tokens.indices, minlength=labels.tokens.shape[1])
    weights = np.log(len(labels) / np.maximum(documents, 1))
    about = _unit_rows(labels.tokens @ diags_array(weights, format="csr"))
    activation = _decompositions(meta, place)
    random = np.random.default_rng(seed)
    frame = _answers(activation, about, n_options, random)
    shuffled = activation[random.permutation(len(labels))]
    return MultipleChoice(
        n_options, len(labels) - len(frame), frame, _answers(shuffled, about, n_options, random)
    )


def _answers(
    activation: csr_array, about: csr_array, n_options: int, random: np.random.Generator
) -> pd.DataFrame:
    """Question and answer for every latent that can be asked about.

    `activation` is `[latents, meta-latents]`; `about` has rows of norm 1, or empty ones.
    """
    described = np.diff(about.indptr) > 0
    has = diags_array(described.astype(float), format="csr") @ activation  # latents that say something
    has.eliminate_zeros()
    n_members = np.bincount(has.indices, minlength=activation.shape[1])
    if (n_members > 0).sum() < n_options:
        raise ValueError(
            f"{n_options} options need as many meta-latents, found {int((n_members > 0).sum())}."
        )
    of_meta = (has.T @ about).tocsr()
    norms = np.sqrt(of_meta.multiply(of_meta).sum(1))
    rows = []
    for start in range(0, has.shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        products, amounts = (about[block] @ of_meta.T).toarray(), has[block].toarray()
        for place in np.flatnonzero(described[block]):
            own = int(amounts[place].argmax())
            amount, n_others = amounts[place, own], int(n_members[own]) - 1
            away = np.flatnonzero((amounts[place] == 0) & (n_members > 0))
            if not amount or not n_others or len(away) < n_options - 1:
                continue
            product = products[place, own] - amount  # the latent itself, of norm 1, left out
            norm = np.sqrt(max(norms[own] ** 2 - 2 * amount * products[place, own] + amount**2, 0))
            others = random.choice(away, n_options - 1, replace=False)
            similarity = product / norm if norm > 1e-9 else 0.0
            rivals = products[place, others] / norms[others]
            tied = np.isclose(rivals, similarity, rtol=0, atol=1e-9).sum()
            right = 0.0 if rivals.max() > similarity + 1e-9 else 1 / (1 + tied)
            rows.append((start + place, own, amount, n_others, similarity, rivals.max(), right))
    columns = ["latent", "meta_latent", "activation", "n_others", "similarity", "best_other", "right"]
    return pd.DataFrame(rows, columns=columns)


def _unit_rows(matrix: csr_array) -> csr_array:
    """Rows scaled to norm 1; what is zero is left out."""
    matrix.eliminate_zeros()
    norms = np.sqrt(matrix.multiply(matrix).sum(1))
    matrix.data = matrix.data / np.repeat(norms, np.diff(matrix.indptr))
    return matrix


def _clustered_error(frame: pd.DataFrame) -> float:
    """Standard error of the share of right answers, clustered by meta-latent."""
    deviations = (frame["right"] - frame["right"].mean()).groupby(frame["meta_latent"]).sum()
    return float(np.sqrt((deviations**2).sum()) / len(frame))


# ---------------------------------------------------------------------- helpers


def _decompositions(meta: MetaSAE, place: int | None = None) -> csr_array:
    """Activations of meta-latents on all rows, or on those of one base, float64."""
    found = meta.decomposition
    entries = (found.values.double().numpy(), found.indices.numpy(), found.offsets.numpy())
    matrix = csr_array(entries, (len(found), found.width))
    if place is None:
        return matrix
    start = sum(meta.widths[:place])
    return matrix[start : start + meta.widths[place]]


def _texts(labels: Labels | None, latents: Sequence[int] | np.ndarray) -> list[str]:
    return [labels.of(int(latent)) if labels else "" for latent in latents]
