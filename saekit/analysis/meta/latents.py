"""Meta-latents as parts of latents, and beside the latents of smaller dictionaries.

[LW] is the LessWrong post "Showing SAE Latents Are Not Atomic Using Meta-SAEs" (Bussmann, Pearce,
Leask et al., 2024), which preceded Leask et al. (ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from tqdm.auto import tqdm

from saekit import settings
from saekit.agreement import check_agreement
from saekit.analysis.labels import Labels, require_labels
from saekit.analysis.meta.sae import MetaSAE
from saekit.analysis.nulls import null_dictionary
from saekit.analysis.similarity import nearest
from saekit.analysis.splitting import SplittingTree
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity, distinct_names, require_distinct
from saekit.results import Result
from saekit.selection import select_latent

PAIRED = 0.7  # cosine from which a meta-latent and a latent count as the same direction

# ---------------------------------------------------------------------- a latent and its meta-latents


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition(Result):
    """A latent as a sum of meta-latents.

    Attributes
    ----------
    dictionary : Identity
        The base dictionary.
    latent : int
        Which latent.
    frame : DataFrame
        One row per active meta-latent, strongest first: `meta_latent`, `label` (empty without
        labels), `activation`, `share` (of the sum of the activations), `n_latents` (of all bases,
        that it is active on), `cosine` (of its direction with the latent's), `rebuilt_cosine`
        (of the latent's direction with what this and the stronger ones rebuild).
    """

    dictionary: Identity
    latent: int
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `latent`, `n_meta_latents`, `rebuilt_cosine` (of all; NaN without any)."""
        cosines = self.frame["rebuilt_cosine"]
        return {
            "dictionary": str(self.dictionary),
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
    TypeError, IndexError
        If there is no such base or latent.
    ValueError
        If labels are those of another dictionary.

    Notes
    -----
    The case studies of Leask et al. (ICLR 2025, figure 1) and [LW]; the columns after the
    activation are ours.

    Examples
    --------
    >>> decomposition(meta, 6).frame[["meta_latent", "activation", "share"]].round(2)
       meta_latent  activation  share
    0            0        0.89   0.67
    1            1        0.44   0.33
    """
    _require(labels, meta.identity, "meta-latents")
    own = meta.of(latent, base)
    latent = int(latent)
    place, found = meta.place(base), own["meta_latent"].tolist()
    direction, parts = meta.source(place).W_dec[latent], meta.dictionary.W_dec[found]
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


@dataclass(frozen=True, eq=False, repr=False)
class Members(Result):
    """The latents that a meta-latent is part of.

    Attributes
    ----------
    meta_latent : int
        Which meta-latent.
    label : str
        Its label; empty without labels.
    n_latents : int
        Number of latents, over all bases, that it is active on.
    frame : DataFrame
        One row per latent, in order of activation: `base`, `width`, `latent`,
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
    TypeError, IndexError
        If there is no such meta-latent or base.
    ValueError
        If labels are those of another dictionary.

    Examples
    --------
    >>> members(meta, 1).frame[["latent", "activation"]].round(2)
       latent  activation
    0       1        1.00
    1       7        0.91
    2       6        0.44
    """
    if labels is not None:
        require_labels(meta, labels)
    _require(meta_labels, meta.identity, "meta-latents")
    frame = meta.members(meta_latent, n, base)
    meta_latent = int(meta_latent)
    totals = decomposition_matrix(meta).sum(1)
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


@dataclass(frozen=True, eq=False, repr=False)
class RelatedLatents(Result):
    """The graph of a latent, its meta-latents and the latents that these are most active on.

    Attributes
    ----------
    nodes : DataFrame
        One row per node: `node` (counted from 0, the latent itself), `role` (`"latent"`,
        `"meta-latent"` or `"related"`), `base` and `width` (-1 and that of the meta-SAE for
        meta-latents), `latent` (or meta-latent), `label`. A latent related in two ways is one node.
    edges : DataFrame
        One row per edge: `meta_node` and `latent_node` (places in `nodes`), `activation`.
    dictionaries : tuple of Identity
        The meta-SAE and its bases.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    dictionaries: tuple[Identity, ...]
    _plot: ClassVar[str] = "related_latents"

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
        Greatest number of meta-latents, and of other latents of each.
    labels : sequence of Labels, optional
        Of the latents of each base.
    meta_labels : Labels, optional
        Of the meta-latents.

    Raises
    ------
    TypeError, IndexError
        If there is no such base or latent.
    ValueError
        If labels are those of another dictionary.

    Notes
    -----
    The related-latents graph of [LW] and of the dashboard published with Leask et al. (ICLR 2025).

    Examples
    --------
    >>> related_latents(meta, 6).summary
    {'latent': 6, 'n_meta_latents': 2, 'n_related': 4, 'n_edges': 6}
    """
    n_meta, n_members = (
        settings.whole(name, value) for name, value in (("n_meta", n_meta), ("n_members", n_members))
    )
    if labels is not None:
        require_labels(meta, labels)
    _require(meta_labels, meta.identity, "meta-latents")
    own = meta.of(latent, base).head(n_meta)
    place, latent = meta.place(base), int(latent)
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
        pd.DataFrame(nodes),
        pd.DataFrame(edges, columns=["meta_node", "latent_node", "activation"]),
        (meta.identity, *meta.bases),
    )


# ---------------------------------------------------------------------- beside nearest latents


@dataclass(frozen=True, eq=False, repr=False)
class SideBySide(Result):
    """A latent's meta-latents beside its nearest latents, in its own and in a smaller dictionary.

    Attributes
    ----------
    dictionary, small : Identity
        The latent's dictionary and the smaller one.
    latent : int
        Which latent.
    frame : DataFrame
        One row per rank: `rank`, then for each of the three lists a number, a label (empty without
        labels) and a value: `meta_latent`, `meta_label`, `activation`; `same_latent`,
        `same_label`, `same_cosine`; `small_latent`, `small_label`, `small_cosine`. Missing where
        there are fewer meta-latents.
    cosines : DataFrame
        Cosine of each meta-latent's direction (rows) with that of each of the smaller
        dictionary's latents (columns), as listed.
    """

    dictionary: Identity
    small: Identity
    latent: int
    frame: pd.DataFrame
    cosines: pd.DataFrame
    _plot: ClassVar[str] = "side_by_side"

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `small`, `latent`, `n_meta_latents`, and `n_paired` of them at a cosine of 0.7."""
        paired = (self.cosines >= PAIRED).any(axis=1)
        return {
            "dictionary": str(self.dictionary),
            "small": str(self.small),
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
    allow_mismatch: bool = False,
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
        Greatest number of each.
    labels, meta_labels, small_labels : Labels, optional
        Labels of the base, the meta-latents and the smaller dictionary.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    TypeError, IndexError
        If there is no such base or latent.
    ValueError
        If `small` does not belong together with the base, has fewer than `n` latents, or labels
        are those of another dictionary.

    Notes
    -----
    The table and heat map of [LW].

    Examples
    --------
    >>> result = side_by_side(meta, 6, small, n=2)
    >>> result.frame[["meta_latent", "small_latent", "small_cosine"]].round(2)
       meta_latent  small_latent  small_cosine
    0            0             6          1.00
    1            1             0          0.91
    """
    require_dictionaries(small=small)
    n = settings.whole("n", n)
    source = meta.source(base)
    latent = select_latent(latent, source.width)
    check_agreement(dictionaries=[source, small], allow_mismatch=allow_mismatch)
    _require(labels, source.identity, "latents")
    _require(meta_labels, meta.identity, "meta-latents")
    _require(small_labels, small.identity, "small latents")
    own = meta.of(latent, base).head(n)
    parts = own["meta_latent"].tolist()
    lists = {
        "same": (labels, *nearest(source, source, n, latents=[latent])),
        "small": (small_labels, *nearest(source, small, n, latents=[latent], allow_mismatch=allow_mismatch)),
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
        dictionary=source.identity,
        small=small.identity,
        latent=latent,
        frame=frame,
        cosines=pd.DataFrame(
            cosines.numpy(),
            index=pd.Index(parts, name="meta_latent"),
            columns=pd.Index(near, name="small_latent"),
        ),
    )


# ---------------------------------------------------------------------- distributions of cosines


@dataclass(frozen=True, eq=False, repr=False)
class CosineDistributions(Result):
    """Greatest cosines between a meta-SAE, the dictionary it decomposes and smaller ones.

    Attributes
    ----------
    theta : float
        Cosine from which two directions count as the same.
    dictionaries : mapping
        `Identity` of each dictionary by its name in the frame; the meta-SAE's is the first.
    frame : DataFrame
        One row per direction and comparison: `panel` (`"within"` one dictionary; `"meta-latents"`
        or `"latents"` looked up in others), `of`, `nearest_in` (names of dictionaries), `null`
        (whether the directions looked up are random ones), `latent`, `cosine`.
    """

    theta: float
    dictionaries: dict[str, Identity]
    frame: pd.DataFrame
    _plot: ClassVar[str] = "meta_cosines"

    @property
    def table(self) -> pd.DataFrame:
        """One row per comparison.

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
    progress: bool = False,
    allow_mismatch: bool = False,
) -> CosineDistributions:
    """Cosines between meta-latents, latents and the latents of smaller dictionaries.

    Within each dictionary, the nearest neighbour of every latent; for every meta-latent, the nearest
    latent in the base and in smaller dictionaries; for every latent of the base, the nearest
    meta-latent and the nearest latent in smaller dictionaries.

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
        Seed of the random directions with which each comparison is repeated: as many of them, drawn
        uniformly from the sphere, and looked up in the same dictionary (or within themselves).
    progress : bool
        Show a progress bar in comparisons.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionaries do not belong together, one is given twice, or a setting is out of its range.
    TypeError, IndexError
        If there is no such base.

    Notes
    -----
    The three panels of [LW]; the null is ours. The more directions there are to choose from, the
    greater the greatest cosine: compare with the null of the same row.

    Examples
    --------
    >>> table = cosine_distributions(meta, small).table
    >>> table.loc[table["panel"] == "latents", ["nearest_in", "share_above_theta"]]
                             nearest_in  share_above_theta
    5  meta 6 (k 2) of relu 12 (seed 0)                1.0
    6                   relu 8 (seed 0)                1.0
    """
    theta, seed = settings.cosine("theta", theta), settings.whole("seed", seed, at_least=0)
    own, source = meta.dictionary, meta.source(base)
    others = [smaller] if isinstance(smaller, Dictionary) else list(smaller)
    check_agreement(dictionaries=[source, *others], allow_mismatch=allow_mismatch)
    identities = [meta.identity, *(member.identity for member in (source, *others))]
    require_distinct(identities, "The comparison of cosines")
    names = distinct_names(identities)
    name_of = dict(zip(map(id, (own, source, *others)), names, strict=True))
    comparisons = [
        *(("within", member, member) for member in (own, *others, source)),
        *(("meta-latents", own, member) for member in (*others, source)),
        *(("latents", source, member) for member in (own, *others)),
    ]
    frames = []
    for panel, of, to in tqdm(comparisons, disable=not progress, unit="comparison", desc="cosines"):
        random = null_dictionary(of, "random directions", seed=seed)
        for null, looked_up, place in ((False, of, to), (True, random, random if of is to else to)):
            cosines, _ = nearest(looked_up, place, k=1, allow_mismatch=allow_mismatch)
            frames.append(
                pd.DataFrame(
                    {
                        "panel": panel,
                        "of": name_of[id(of)],
                        "nearest_in": name_of[id(to)],
                        "null": null,
                        "latent": range(len(cosines)),
                        "cosine": cosines[:, 0].cpu().numpy(),
                    }
                )
            )
    dictionaries = dict(zip(names, identities, strict=True))
    return CosineDistributions(theta, dictionaries, pd.concat(frames, ignore_index=True))


# ---------------------------------------------------------------------- splitting


@dataclass(frozen=True, eq=False, repr=False)
class MetaSplitting(Result):
    """The meta-latents that children share with their parent when latents split.

    Attributes
    ----------
    frame : DataFrame
        One row per parent and child: `parent_width`, `parent`, `width`, `latent`, `cosine`,
        `status` (the parent's: split, identical or refined), `n_parent`, `n_child` and `n_shared`
        meta-latents, `kept` (share of the parent's that the child has; NaN if it has none),
        `kept_chance` (the average for a random latent of the child's width),
        `inherited` (share of the child's activations that is on the parent's meta-latents).
    split : DataFrame
        One row per latent that splits: `width`, `latent`, `children`, `n_meta_latents`, `common`
        (those that all children have too, a tuple), `n_common`.
    counts : DataFrame
        Number of meta-latents per latent: `width`, `n_active`, `n_latents`, `share` (of the
        width's latents).
    dictionaries : tuple of Identity
        The meta-SAE and its bases.
    """

    frame: pd.DataFrame
    split: pd.DataFrame
    counts: pd.DataFrame
    dictionaries: tuple[Identity, ...]
    _plot: ClassVar[str] = "active_meta_latents"

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


def require_tree(meta: MetaSAE, tree: SplittingTree) -> None:
    """Refuse a splitting tree of dictionaries other than a meta-SAE's bases.

    Raises
    ------
    ValueError
        If the two differ in widths, or in the content of a dictionary.

    Examples
    --------
    >>> require_tree(family_meta, saekit.splitting_tree(family))
    >>> require_tree(meta, saekit.splitting_tree(family))
    Traceback (most recent call last):
        ...
    ValueError: The tree must have the widths [12] of ...
    """
    if meta.widths != tree.widths:
        raise ValueError(
            f"The tree must have the widths {list(meta.widths)} of {meta.name}, found {list(tree.widths)}."
        )
    in_tree = {side.width: side for pair in tree.pairs.values() for side in (pair.small, pair.large)}
    for base in meta.bases:
        in_tree.get(base.width, base).require(base, f"The tree's dictionary of width {base.width}")


def splitting_through_meta(meta: MetaSAE, tree: SplittingTree) -> MetaSplitting:
    """Follow meta-latents from parents to children where the latents of a family split.

    Parameters
    ----------
    meta : MetaSAE
        Trained on all dictionaries of a family (`meta_sae(family)`).
    tree : SplittingTree
        Tree of the same family (`splitting_tree(family)`).

    Raises
    ------
    ValueError
        If the meta-SAE and the tree are not of the same dictionaries.

    Notes
    -----
    [LW] shows an example and the distribution of the number of active meta-latents by width; the
    shares that are kept, and chance, are ours. A child is close to its parent by definition, so it
    keeps more than chance. As the authors note, latents that recur at every width are
    over-represented among the directions that such a meta-SAE is trained on.

    Examples
    --------
    >>> tree = saekit.splitting_tree(family)
    >>> splitting_through_meta(family_meta, tree).table["status"].tolist()
    ['identical', 'split']
    """
    require_tree(meta, tree)
    first = dict(zip(meta.widths, np.cumsum([0, *meta.widths]), strict=False))
    activation = decomposition_matrix(meta)
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
    return MetaSplitting(
        frame,
        pd.DataFrame(split, columns=columns),
        pd.DataFrame(counts),
        (meta.identity, *meta.bases),
    )


# ---------------------------------------------------------------------- helpers


def decomposition_matrix(meta: MetaSAE, place: int | None = None) -> csr_array:
    """Activations of meta-latents on the rows of all bases, or of that at a place in `meta.bases`.

    Float64 `[rows, meta.width]`.

    Examples
    --------
    >>> decomposition_matrix(meta).shape
    (12, 6)
    """
    found = meta.decomposition
    entries = (found.values.double().numpy(), found.indices.numpy(), found.offsets.numpy())
    matrix = csr_array(entries, (len(found), found.width))
    if place is None:
        return matrix
    start = sum(meta.widths[:place])
    return matrix[start : start + meta.widths[place]]


def _texts(labels: Labels | None, latents: Sequence[int] | np.ndarray) -> list[str]:
    return [labels.of(int(latent)) if labels else "" for latent in latents]


def _require(labels: Labels | None, identity: Identity, what: str) -> None:
    """Refuse labels of a dictionary other than the one whose latents they are to name."""
    if labels is not None:
        labels.dictionary.require(identity, f"The dictionary of the {what}' labels")
