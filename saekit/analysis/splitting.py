"""Which latents split, stay, are refined, are lost or are novel from one width to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from saekit import settings
from saekit.analysis.similarity import check_order, nearest
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.family import Family
from saekit.identity import Identity
from saekit.results import Result
from saekit.selection import select_latent

IDENTICAL = 0.9  # cosine from which an only child that is a mutual best match counts as the same latent
STATUSES = ("split", "identical", "refined", "lost")


@dataclass(frozen=True, eq=False, repr=False)
class Splitting(Result):
    """The fate of a small dictionary's latents in a larger one.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    theta : float
        Cosine from which a small latent counts as a parent.
    frame : DataFrame
        One row per large latent: `latent`, `best_match`, `cosine` (with the best match), `parent`
        (the best match, or -1 if the cosine is under theta), `novel`, and `status` (its
        parent's, or `"novel"`).
    frame_small : DataFrame
        One row per small latent: `latent`, `status` (`"split"`, `"identical"`, `"refined"` or
        `"lost"`), `children`, `best_match` (in the large dictionary), `cosine` (with it).
    """

    small: Identity
    large: Identity
    theta: float
    frame: pd.DataFrame
    frame_small: pd.DataFrame

    @property
    def flows(self) -> pd.DataFrame:
        """One row per status: `status`, `small_latents` that have it, `large_latents` they lead to.

        The rows are split, identical, refined, lost (which leads to none) and novel (which
        comes from none).
        """
        small, large = self.frame_small["status"].value_counts(), self.frame["status"].value_counts()
        statuses = [*STATUSES, "novel"]
        return pd.DataFrame(
            {
                "status": statuses,
                "small_latents": [int(small.get(status, 0)) for status in statuses],
                "large_latents": [int(large.get(status, 0)) for status in statuses],
            }
        )

    @property
    def summary(self) -> dict[str, Any]:
        """Counts and shares.

        `small`, `large`, `theta`; `n_split`, `n_identical`, `n_refined`, `n_lost` and
        `share_...` of the small latents; `n_novel` and `share_novel` of the large ones;
        `mean_children` and `max_children` of split latents.
        """
        status = self.frame_small["status"]
        counts = {name: int((status == name).sum()) for name in STATUSES}
        novel = int(self.frame["novel"].sum())
        children = self.frame_small.loc[status == "split", "children"]
        return {
            "small": str(self.small),
            "large": str(self.large),
            "theta": self.theta,
            **{f"n_{name}": count for name, count in counts.items()},
            "n_novel": novel,
            **{f"share_{name}": count / self.small.width for name, count in counts.items()},
            "share_novel": novel / self.large.width,
            "mean_children": float(children.mean()) if len(children) else 0.0,
            "max_children": int(self.frame_small["children"].max()),
        }


@cached
def measure_splitting(
    small: Dictionary, large: Dictionary, *, theta: float = 0.7, allow_mismatch: bool = False
) -> Splitting:
    """Match every latent of the large dictionary to a parent in the small one.

    A large latent's parent is its best small latent if their cosine is at least theta; without
    a parent it is novel. A small latent with two or more children is split; with exactly one it
    is identical if the two are each other's best match at cosine 0.9 or more, and refined
    otherwise; with none it is lost.

    Parameters
    ----------
    small, large : Dictionary
        Usually of neighbouring widths; two seeds of one width give the null.
    theta : float
        Cosine of decoder directions.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If `small` is wider than `large`, theta is not a cosine from 0 to 1, or the two do not belong
        together.

    Notes
    -----
    Novel latents are those of Leask et al. (ICLR 2025), glossary; the names for small latents
    are ours.

    Examples
    --------
    >>> import torch
    >>> from saekit import Dictionary, measure_splitting
    >>> def toy(*degrees):
    ...     angles = torch.deg2rad(torch.tensor(degrees))
    ...     rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    ...     n = len(rows)
    ...     return Dictionary(rows.T, torch.zeros(n), rows, torch.zeros(2), torch.zeros(n))
    >>> result = measure_splitting(toy(0.0, 90.0), toy(-10.0, 10.0, 95.0, 200.0))
    >>> result.frame_small[["latent", "status", "children"]]
       latent     status  children
    0       0      split         2
    1       1  identical         1
    >>> result.frame["parent"].tolist()
    [0, 0, 1, -1]
    """
    require_dictionaries(small=small, large=large)
    theta = settings.cosine("theta", theta)
    check_order(small, large)
    up, parents = (part[:, 0] for part in nearest(large, small, k=1, allow_mismatch=allow_mismatch))
    down, best = (part[:, 0] for part in nearest(small, large, k=1, allow_mismatch=allow_mismatch))
    cosine, parent = up.cpu().numpy(), parents.cpu().numpy()
    # Compared in the cosines' own precision, so that theta = 0.7 means the same everywhere.
    novel = (up < theta).cpu().numpy()
    mutual = (best[parents] == torch.arange(large.width, device=parents.device)).cpu().numpy()
    same = ~novel & mutual & (up >= IDENTICAL).cpu().numpy()

    children = np.bincount(parent[~novel], minlength=small.width)
    has_same = np.bincount(parent[same], minlength=small.width) > 0
    status = np.select(
        [children >= 2, (children == 1) & has_same, children == 1], STATUSES[:3], default=STATUSES[3]
    )
    return Splitting(
        small=small.identity,
        large=large.identity,
        theta=theta,
        frame=pd.DataFrame(
            {
                "latent": range(large.width),
                "best_match": parent,
                "cosine": cosine,
                "parent": np.where(novel, -1, parent),
                "novel": novel,
                "status": np.where(novel, "novel", status[parent]),
            }
        ),
        frame_small=pd.DataFrame(
            {
                "latent": range(small.width),
                "status": status,
                "children": children,
                "best_match": best.cpu().numpy(),
                "cosine": down.cpu().numpy(),
            }
        ),
    )


@dataclass(frozen=True, eq=False, repr=False)
class SplittingTree(Result):
    """How the latents of a family descend from each other, width by width.

    Attributes
    ----------
    widths : tuple of int
        Ascending.
    theta : float
        Cosine from which a latent has a parent.
    pairs : mapping
        `pairs[small_width]`: the `Splitting` from this width to the next one.
    nulls : mapping
        `nulls[width]`: a `Splitting` between the lowest seed of this width and each other one;
        none where the family has no second seed.
    """

    _plot: ClassVar[str] = "splitting_flow"

    widths: tuple[int, ...]
    theta: float
    pairs: dict[int, Splitting]
    nulls: dict[int, tuple[Splitting, ...]]

    # ------------------------------------------------------------------ frames

    @property
    def frame(self) -> pd.DataFrame:
        """One row per edge: `parent_width`, `parent`, `width`, `latent`, `cosine`, `status`.

        `status` is the parent's: split, identical or refined.
        """
        parts = []
        for small, large in pairwise(self.widths):
            edges = self.pairs[small].frame.query("not novel")
            parts.append(edges.assign(parent_width=small, width=large))
        columns = ["parent_width", "parent", "width", "latent", "cosine", "status"]
        return pd.concat(parts, ignore_index=True)[columns]

    @property
    def nodes(self) -> pd.DataFrame:
        """One row per latent: `width`, `latent`, `parent`, `cosine`, `novel`, `children`, `status`.

        `parent` is -1 and `cosine` that of the best match for novel latents; at the smallest width
        `parent` is -1, `cosine` NaN and `novel` False. `status` is the latent's fate at the next
        width, and `"leaf"` at the greatest width.
        """
        parts = []
        for place, width in enumerate(self.widths):
            nodes = pd.DataFrame({"width": width, "latent": range(width)})
            if place:
                up = self.pairs[self.widths[place - 1]].frame
                nodes = nodes.assign(parent=up["parent"], cosine=up["cosine"], novel=up["novel"])
            else:
                nodes = nodes.assign(parent=-1, cosine=np.nan, novel=False)
            if width in self.pairs:
                down = self.pairs[width].frame_small
                nodes = nodes.assign(children=down["children"], status=down["status"])
            else:
                nodes = nodes.assign(children=0, status="leaf")
            parts.append(nodes)
        return pd.concat(parts, ignore_index=True)

    @property
    def flows(self) -> pd.DataFrame:
        """Counts for a flow diagram, five rows per pair of widths.

        `small_width`, `large_width`, and the columns of `Splitting.flows`.
        """
        parts = []
        for small, large in pairwise(self.widths):
            flows = self.pairs[small].flows
            flows.insert(0, "small_width", small)
            flows.insert(1, "large_width", large)
            parts.append(flows)
        return pd.concat(parts, ignore_index=True)

    @property
    def table(self) -> pd.DataFrame:
        """Shares of each pair beside those between seeds, never subtracted.

        Columns: `pair` (such as `"1152 → 2304"`), `small_width`, `large_width`, `measure`
        (`split`, `identical`, `refined`, `lost`: of the small latents; `novel`: of the large
        ones), `share`, `null_small` and `null_large` (the same share between two seeds of the
        small and the large width, averaged where there are several, NaN where there is no second
        seed), `note`.
        """
        rows = []
        for small, large in pairwise(self.widths):
            missing = [str(width) for width in (small, large) if not self.nulls[width]]
            for measure in (*STATUSES, "novel"):
                share = {
                    name: float(np.mean([r.summary[f"share_{measure}"] for r in results]))
                    if results
                    else np.nan
                    for name, results in (
                        ("share", (self.pairs[small],)),
                        ("null_small", self.nulls[small]),
                        ("null_large", self.nulls[large]),
                    )
                }
                rows.append(
                    {
                        "pair": f"{small} → {large}",
                        "small_width": small,
                        "large_width": large,
                        "measure": measure,
                        **share,
                        "note": f"no second seed of {' and '.join(missing)}" if missing else "",
                    }
                )
        return pd.DataFrame(rows)

    @property
    def summary(self) -> dict[str, Any]:
        """`widths`, `theta`, and by pair (`"1152 → 2304"`) the shares of each status."""
        pairs = {
            pair: {row.measure: float(row.share) for row in rows.itertuples()}
            for pair, rows in self.table.groupby("pair", sort=False)
        }
        return {"widths": list(self.widths), "theta": self.theta, "pairs": pairs}

    # ------------------------------------------------------------------ walking

    def parent(self, width: int, latent: int) -> dict[str, Any] | None:
        """The parent as `{"width", "latent", "cosine", "status"}`; None if novel or at a root.

        `cosine` is that between parent and child.
        """
        width, latent = self._check(width, latent)
        place = self.widths.index(width)
        if place == 0 or self._parents[width][latent] < 0:
            return None
        return self._node(
            self.widths[place - 1], int(self._parents[width][latent]), self._cosines[width][latent]
        )

    def children(self, width: int, latent: int) -> list[dict[str, Any]]:
        """The children as `{"width", "latent", "cosine", "status"}`, most similar first.

        `cosine` is that between parent and child.
        """
        width, latent = self._check(width, latent)
        if width == self.widths[-1]:
            return []
        large = self.widths[self.widths.index(width) + 1]
        return [
            self._node(large, int(child), self._cosines[large][child])
            for child in self._children[width][latent]
        ]

    def ancestors(self, width: int, latent: int) -> list[dict[str, Any]]:
        """The path to the root: parent, parent's parent and so on (see `parent`)."""
        path, node = [], self.parent(width, latent)
        while node is not None:
            path.append(node)
            node = self.parent(node["width"], node["latent"])
        return path

    def subtree(self, width: int, latent: int) -> dict[str, Any]:
        """The latent with all its descendants.

        Returns
        -------
        dict
            `{"width", "latent", "cosine", "status", "children"}` with `children` a list of the
            same, most similar first. `cosine` is that with the parent, or with the best match
            if the latent is novel; NaN at the smallest width.
        """
        width, latent = self._check(width, latent)
        cosine = self._cosines[width][latent] if width in self._cosines else np.nan
        return self._grow(self._node(width, latent, cosine))

    def most_split(self, n: int = 10, *, width: int | None = None) -> pd.DataFrame:
        """The latents with the most children: `width`, `latent`, `children`, `descendants`.

        Parameters
        ----------
        n : int
            Number of latents.
        width : int, optional
            Only latents of this width.
        """
        n = settings.whole("n", n)
        # Before rows are selected: assigning a column to a frame without rows would add rows of NaN.
        frame = self.nodes.assign(descendants=self._descendants())
        frame = frame[frame["status"] == "split"]
        if width is not None:
            width, _ = self._check(width, 0)
            frame = frame[frame["width"] == width]
        order = ["children", "descendants", "width", "latent"]
        frame = frame.sort_values(order, ascending=[False, False, True, True]).head(n)
        return frame[["width", "latent", "children", "descendants"]].reset_index(drop=True)

    def most_readable(
        self, scores: Mapping[int, np.ndarray], *, descendants: tuple[int, int] = (6, 16)
    ) -> pd.DataFrame:
        """Latents that split, those whose whole tree is worth showing first.

        Parameters
        ----------
        scores : mapping
            `scores[width]`: a score for every latent of this width, such as `Readability.scores`;
            NaN counts as 0.
        descendants : tuple of int
            Fewest and most descendants of a tree that fits on a page.

        Returns
        -------
        DataFrame
            `width`, `latent`, `children`, `descendants` and `score`, the mean over the latent and all
            of its descendants.

        Raises
        ------
        ValueError
            If scores are missing for a width, or are not one per latent.
        """
        for width in self.widths:
            shape = np.shape(scores[width]) if width in scores else None
            if shape != (width,):
                raise ValueError(
                    f"scores needs one score for each of the {width} latents of width {width}, found "
                    f"{'none' if shape is None else f'shape {shape}'}."
                )
        totals = {width: np.nan_to_num(np.asarray(scores[width], dtype=float)) for width in self.widths}
        for small, large in reversed(list(pairwise(self.widths))):
            has_parent = self._parents[large] >= 0
            np.add.at(totals[small], self._parents[large][has_parent], totals[large][has_parent])
        frame = self.most_split(len(self.nodes))
        frame = frame[frame["descendants"].between(*descendants)]
        total = [totals[width][latent] for width, latent in zip(frame["width"], frame["latent"], strict=True)]
        frame = frame.assign(score=np.array(total, dtype=float) / (1 + frame["descendants"]))
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    @cached_property
    def _parents(self) -> dict[int, np.ndarray]:
        """By width, each latent's parent at the width below, -1 if it is novel."""
        return {large: self.pairs[small].frame["parent"].to_numpy() for small, large in pairwise(self.widths)}

    @cached_property
    def _cosines(self) -> dict[int, np.ndarray]:
        """By width, each latent's cosine with its best match at the width below."""
        return {large: self.pairs[small].frame["cosine"].to_numpy() for small, large in pairwise(self.widths)}

    @cached_property
    def _children(self) -> dict[int, list[np.ndarray]]:
        """By width, each latent's children at the width above, most similar first."""
        children = {}
        for small, large in pairwise(self.widths):
            parents = self._parents[large]
            order = np.lexsort((-self._cosines[large], parents))
            bounds = np.searchsorted(parents[order], np.arange(small + 1))
            children[small] = [order[start:stop] for start, stop in pairwise(bounds)]
        return children

    def _check(self, width: int, latent: int) -> tuple[int, int]:
        if width not in self.widths:
            raise ValueError(f"The family has widths {list(self.widths)}, found {width}.")
        return int(width), select_latent(latent, int(width), what=f"A latent of width {width}")

    def _node(self, width: int, latent: int, cosine: float) -> dict[str, Any]:
        status = self.pairs[width].frame_small["status"].iat[latent] if width in self.pairs else "leaf"
        return {"width": width, "latent": latent, "cosine": float(cosine), "status": status}

    def _grow(self, node: dict[str, Any]) -> dict[str, Any]:
        children = self.children(node["width"], node["latent"])
        return {**node, "children": [self._grow(child) for child in children]}

    def _descendants(self) -> pd.Series:
        """Number of descendants of every latent, in the order of `nodes`."""
        counts = {self.widths[-1]: np.zeros(self.widths[-1], dtype=np.int64)}
        for small, large in reversed(list(pairwise(self.widths))):
            has_parent = self._parents[large] >= 0
            totals = np.zeros(small, dtype=np.int64)
            np.add.at(totals, self._parents[large][has_parent], counts[large][has_parent] + 1)
            counts[small] = totals
        return pd.Series(np.concatenate([counts[width] for width in self.widths]))


def splitting_tree(family: Family, *, theta: float = 0.7, allow_mismatch: bool = False) -> SplittingTree:
    """Splitting between all neighbouring widths of a family, with the seed nulls.

    Parameters
    ----------
    family : Family
        At least two widths.
    theta : float
        Cosine from which a latent has a parent.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the family has fewer than two widths, theta is not a cosine from 0 to 1, or two members do
        not belong together.

    Examples
    --------
    >>> tree = saekit.splitting_tree(family)
    >>> tree.table.columns.tolist()
    ['pair', 'small_width', 'large_width', 'measure', 'share', 'null_small', 'null_large', 'note']
    >>> tree.most_split(1)
       width  latent  children  descendants
    0      8       2         2            2
    """
    theta = settings.cosine("theta", theta)
    widths = family.widths
    if len(widths) < 2:
        raise ValueError(f"A splitting tree needs at least two widths, found {widths}.")
    pairs: dict[int, Splitting] = {}
    nulls: dict[int, tuple[Splitting, ...]] = dict.fromkeys(widths, ())
    for comparison in family.comparisons():
        found = measure_splitting(
            comparison.small, comparison.large, theta=theta, allow_mismatch=allow_mismatch
        )
        if comparison.null:
            nulls[comparison.small_width] += (found,)
        else:
            pairs[comparison.small_width] = found
    return SplittingTree(tuple(widths), theta, pairs, nulls)
