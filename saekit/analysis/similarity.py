"""How similar the latents of two dictionaries are: cosines of their directions, a tile at a time.

All pairs are multiplied once, by `cosines`, which keeps of them what has been asked for: the greatest
ones of each latent in both directions, and those above a floor.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from saekit import settings
from saekit.agreement import check_agreement
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.family import Family
from saekit.identity import Identity, fingerprint
from saekit.results import Result
from saekit.selection import Latents, select_latents
from saekit.sparse import affine

TILE = 4096  # directions of each whose cosines are held at once: 64 MB
KEPT_BYTES = 1 << 28  # that earlier results of `cosines` may take


# ---------------------------------------------------------------------- all pairs


@dataclass(frozen=True, eq=False)
class Cosines:
    """The cosines kept from all those between directions `a`, `[n, d]`, and `b`, `[m, d]`.

    Attributes
    ----------
    up : tuple of Tensor
        The `k` greatest cosines of each row of `a`, greatest first, and the rows of `b` that they are
        with, `[n, min(k, m)]` each. Ties go to the lowest index.
    down : tuple of Tensor
        The same for each row of `b`, `[m, min(k, n)]`.
    above : csr_array
        The cosines from `floor` on, `[n, m]`.
    k : int
        How many of the greatest are kept.
    floor : float
        From which cosine on all are kept; infinity if none are.
    """

    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    above: csr_array
    k: int
    floor: float

    @property
    def turned(self) -> Cosines:
        """The same with `a` and `b` in each other's place."""
        return Cosines(self.down, self.up, self.above.T.tocsr(), self.k, self.floor)

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        arrays = *self.up, *self.down, self.above.data, self.above.indices, self.above.indptr
        return sum(int(array.nbytes) for array in arrays)


_KEPT: OrderedDict[tuple[Any, ...], Cosines] = OrderedDict()  # the one used last at the end


def cosines(
    a: Tensor, b: Tensor, *, k: int = 1, floor: float = math.inf, exclude_self: bool = False
) -> Cosines:
    """The greatest cosines between the rows of `a` and of `b`, in both directions, and those above a floor.

    All pairs are multiplied once, a tile at a time. What was kept is used again for directions of the same
    content; asking for more multiplies them anew. Results used longest ago make room when all take more
    than `KEPT_BYTES`.

    Parameters
    ----------
    a, b : Tensor
        Directions of any norm, `[n, d]` and `[m, d]`.
    k : int
        How many of each row's greatest to keep, at least; all of a row that has fewer.
    floor : float
        From which cosine on to keep all, at most.
    exclude_self : bool
        Leave out the cosine of each row of `a` with the row of `b` of the same index.

    Raises
    ------
    ValueError
        If a direction holds a value that is not finite.

    Examples
    --------
    >>> import torch
    >>> found = cosines(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0]]), floor=0.7)
    >>> found.up[0][:, 0].tolist(), found.down[1].tolist(), found.above.nnz
    ([0.6000000238418579, 0.800000011920929], [[1]], 1)
    """
    for directions in (a, b):
        settings.finite("The directions hold", directions)
    contents = fingerprint((a,)), fingerprint((b,))
    place = str(a.device), exclude_self
    for key, turned in (((contents, *place), False), ((contents[::-1], *place), True)):
        found = _KEPT.pop(key, None)
        if found is None:
            continue
        k, floor = max(k, found.k), min(floor, found.floor)
        if (k, floor) == (found.k, found.floor):
            _KEPT[key] = found
            return found.turned if turned else found
    own = torch.arange(len(a), device=a.device) if exclude_self else None
    found = _multiplied(a, b, k, floor, own=own)
    _KEPT[contents, *place] = found
    while sum(kept.n_bytes for kept in _KEPT.values()) > KEPT_BYTES:
        _KEPT.popitem(last=False)
    return found


def _multiplied(
    a: Tensor,
    b: Tensor,
    k: int = 1,
    floor: float = math.inf,
    *,
    own: Tensor | None = None,
    down: bool = True,
) -> Cosines:
    """Multiply all pairs; `own[i]` is the row of `b` that row `i` of `a` is not compared with."""
    of_a = _Greatest(len(a), len(b), k, like=b)
    of_b = _Greatest(len(b), len(a) if down else 0, k, like=b)
    rows, columns, kept = ([np.zeros(0, kind)] for kind in (np.int32, np.int32, np.float32))
    for top in range(0, len(a), TILE):
        part = F.normalize(a[top : top + TILE], dim=1).to(b.dtype)
        for left in range(0, len(b), TILE):
            others = F.normalize(b[left : left + TILE], dim=1)
            tile = affine(part, others, others.new_zeros(len(others)))
            if own is not None:
                column = own[top : top + TILE] - left
                inside = (column >= 0) & (column < len(others))
                tile[inside, column[inside]] = -torch.inf
            of_a.add(tile, top, left)
            if down:
                of_b.add(tile.T, left, top)
            if floor < math.inf:
                near = tile >= floor
                i, j = near.nonzero(as_tuple=True)
                rows.append((i + top).int().cpu().numpy())
                columns.append((j + left).int().cpu().numpy())
                kept.append(tile[near].float().cpu().numpy())
    entries = np.concatenate(kept), (np.concatenate(rows), np.concatenate(columns))
    return Cosines(of_a.found, of_b.found, csr_array(entries, shape=(len(a), len(b))), k, floor)


class _Greatest:
    """The `k` greatest of `n_others` cosines for each of `n` rows, as they come in."""

    def __init__(self, n: int, n_others: int, k: int, *, like: Tensor) -> None:
        shape = n, min(k, n_others)
        self.found = like.new_full(shape, -torch.inf), like.new_zeros(shape, dtype=torch.long)

    def add(self, tile: Tensor, top: int, left: int) -> None:
        """Take in the cosines of some rows, from `top` on, with some others, from `left` on.

        Those of a row come in by ascending index, so that of equals the earlier one stays.
        """
        values, indices = self.found
        better = top + (tile.amax(1) > values[top : top + len(tile), -1]).nonzero()[:, 0]
        if not len(better):
            return
        new, places = largest(tile[better - top], min(values.shape[1], tile.shape[1]))
        both, which = torch.cat([values[better], new], 1), torch.cat([indices[better], places + left], 1)
        values[better], chosen = largest(both, values.shape[1])
        indices[better] = which.gather(1, chosen)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k, dim=1)` with ties broken by the lowest index.

    Examples
    --------
    >>> values, indices = largest(torch.tensor([[1.0, 3.0, 3.0]]), k=2)
    >>> indices.tolist()
    [[1, 2]]
    """
    if k == 1:
        greatest, index = values.max(dim=1, keepdim=True)  # of equals, the first
        return greatest, index
    top, indices = values.topk(min(k + 1, values.shape[1]), dim=1)
    # topk picks arbitrarily among equals; only rows with a tie across the k-th place need a sort.
    tied = (top[:, k - 1 :] == top[:, k - 1 : k]).sum(1) > 1
    top, indices = top[:, :k], indices[:, :k]
    if tied.any():
        ordered, places = values[tied].sort(dim=1, descending=True, stable=True)
        top[tied], indices[tied] = ordered[:, :k], places[:, :k]
    indices, order = indices.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, indices.gather(1, order)


# ---------------------------------------------------------------------- best matches


@dataclass(frozen=True, eq=False, repr=False)
class BestMatches(Result):
    """The most similar latent of a small dictionary for every latent of a large one.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    cosine : Tensor
        Greatest cosine of each large latent's decoder direction, `[large.width]`.
    index : Tensor
        The small latent that reaches it, int64 `[large.width]`.
    same_index_share : float
        Of the large latents whose index exists in the small dictionary, the share whose best
        match has the same index. A value far above `chance` betrays shared initial rows.
    chance : float
        The value of `same_index_share` if every match were equally likely: one over the small width.
    """

    small: Identity
    large: Identity
    cosine: Tensor
    index: Tensor
    same_index_share: float
    chance: float

    @property
    def frame(self) -> pd.DataFrame:
        """One row per large latent: `latent`, `best_match`, `best_cosine`."""
        return pd.DataFrame(
            {
                "latent": range(len(self.cosine)),
                "best_match": self.index.cpu().numpy(),
                "best_cosine": self.cosine.cpu().numpy(),
            }
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`small`, `large`, `median_cosine`, `mean_cosine`, `same_index_share`, `chance`."""
        cosine = self.cosine.double()
        return {
            "small": str(self.small),
            "large": str(self.large),
            "median_cosine": float(cosine.quantile(0.5)),
            "mean_cosine": float(cosine.mean()),
            "same_index_share": self.same_index_share,
            "chance": self.chance,
        }


def best_matches(small: Dictionary, large: Dictionary, *, allow_mismatch: bool = False) -> BestMatches:
    """The latent of `small` with the most similar decoder direction, for each latent of `large`.

    The seed null is the same call with two seeds of one width. If both have the same content, a
    latent is not matched with itself.

    Parameters
    ----------
    small, large : Dictionary
        Of equal `d_in`; `small` no wider than `large`. `nearest` looks up in either direction.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If `small` is wider than `large`, or the two do not belong together.

    Notes
    -----
    The similarity by which Leask et al. (ICLR 2025, section on SAE stitching; glossary: novel
    and reconstruction latents) compare dictionaries. Ties go to the lowest index. Dead latents
    are compared like all others.

    Examples
    --------
    >>> import torch
    >>> from saekit import Dictionary, best_matches
    >>> rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1]]), dim=1)
    >>> def toy(rows):
    ...     n, d = rows.shape
    ...     return Dictionary(rows.T, torch.zeros(n), rows, torch.zeros(d), torch.zeros(n))
    >>> best_matches(toy(rows[:2]), toy(rows)).frame.round(3)
       latent  best_match  best_cosine
    0       0           0        1.000
    1       1           1        1.000
    2       2           0        0.707
    """
    require_dictionaries(small=small, large=large)
    check_order(small, large)
    cosine, index = nearest(large, small, k=1, allow_mismatch=allow_mismatch)
    index = index[:, 0]
    same = index[: small.width] == torch.arange(small.width, device=index.device)
    return BestMatches(
        small=small.identity,
        large=large.identity,
        cosine=cosine[:, 0],
        index=index,
        same_index_share=float(same.double().mean()),
        chance=0.0 if _same(large, small) else 1 / small.width,
    )


def _same(dictionary: Dictionary | Tensor, other: Dictionary) -> bool:
    return isinstance(dictionary, Dictionary) and (
        dictionary is other or (dictionary.width == other.width and dictionary.identity == other.identity)
    )


def check_order(small: Dictionary, large: Dictionary) -> None:
    """Refuse two dictionaries in the wrong order.

    Raises
    ------
    ValueError
        If `small` is wider than `large`.

    Examples
    --------
    >>> check_order(small, large)
    >>> check_order(large, small)
    Traceback (most recent call last):
        ...
    ValueError: The order is (small, large), but small is relu 12 (seed 0) at ...
    """
    if small.width > large.width:
        raise ValueError(
            f"The order is (small, large), but small is {small.identity.described} and large the narrower "
            f"{large.identity.described}: swap them."
        )


def nearest(
    dictionary: Dictionary | Tensor,
    other: Dictionary,
    k: int = 10,
    *,
    latents: Latents | None = None,
    allow_mismatch: bool = False,
) -> tuple[Tensor, Tensor]:
    """The `k` latents of `other` with the most similar decoder directions, most similar first.

    Parameters
    ----------
    dictionary : Dictionary or Tensor
        The directions to look up: the latents of a dictionary, or directions `[n, d_in]` of any norm.
    other : Dictionary
        Where to look. If its content is that of `dictionary`, a latent is not its own
        neighbour.
    k : int
        Number of neighbours of each.
    latents : tensor, array, Series, slice or list, optional
        Only these latents (rows) of `dictionary`, in this order, see
        `saekit.selection.select_latents`.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Returns
    -------
    cosines, indices : Tensor
        `[n, k]` each. Ties go to the lowest index.

    Raises
    ------
    ValueError
        If the two do not belong together, a value is not finite, or `other` has fewer than `k` candidates.
    TypeError, IndexError, ValueError
        As `select_latents`.

    Examples
    --------
    >>> import torch
    >>> from saekit import Dictionary
    >>> from saekit.analysis import nearest
    >>> rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1]]), dim=1)
    >>> toy = Dictionary(rows.T, torch.zeros(3), rows, torch.zeros(2), torch.zeros(3))
    >>> cosines, indices = nearest(torch.tensor([[2.0, 1.0]]), toy, k=2)
    >>> indices.tolist(), [round(cosine, 3) for cosine in cosines[0].tolist()]
    ([[2, 0]], [0.949, 0.894])
    """
    require_dictionaries(other=other)
    if not isinstance(dictionary, Tensor):
        require_dictionaries(dictionary=dictionary)
    if not other.width:
        raise ValueError(f"{other.name} holds no latents to compare directions with.")
    exclude_self = _same(dictionary, other)
    k = settings.whole("k", k, at_most=other.width - exclude_self)
    if isinstance(dictionary, Dictionary):
        check_agreement(dictionaries=(dictionary, other), allow_mismatch=allow_mismatch)
        rows = dictionary.W_dec
    else:
        rows = dictionary
        if rows.ndim != 2 or rows.shape[1] != other.d_out:
            raise ValueError(
                f"{other.name} can be compared with directions [n, {other.d_out}], found {list(rows.shape)}."
            )
        settings.finite("The directions hold", rows)
        other.require_finite()
    if latents is None and isinstance(dictionary, Dictionary):
        found = cosines(rows, other.W_dec, k=k, exclude_self=exclude_self).up
    else:
        index = select_latents(slice(None) if latents is None else latents, len(rows)).to(rows.device)
        own = index if exclude_self else None
        found = _multiplied(rows[index], other.W_dec, k, own=own, down=False).up
    values, indices = found
    return values[:, :k].clone(), indices[:, :k].clone()


# ---------------------------------------------------------------------- families


@dataclass(frozen=True, eq=False, repr=False)
class FamilySimilarity(Result):
    """Best matches over a family's neighbouring widths, beside their seed nulls.

    Attributes
    ----------
    frame : DataFrame
        One row per latent and comparison: `comparison` (such as `"1152 → 2304"` or
        `"1152, other seed"`), `null` (whether it compares two seeds of one width),
        `small_width`, `large_width`, `latent` (of the larger dictionary, or of the other
        seed), `best_match`, `best_cosine`.
    table : DataFrame
        One row per comparison: `comparison`, `null`, `small_width`, `large_width`,
        `median_cosine`, `share_under_theta`, `same_index_share`, `chance`, `note` (on
        widths without a second seed).
    theta : float
        The threshold of `share_under_theta`.
    dictionaries : tuple of Identity
        All that were compared.
    """

    _plot: ClassVar[str] = "max_cosine_distribution"

    frame: pd.DataFrame
    table: pd.DataFrame
    theta: float
    dictionaries: tuple[Identity, ...]

    @property
    def summary(self) -> dict[str, Any]:
        """Median best cosine of each comparison, by name, and `theta`."""
        measured = self.table.dropna(subset="median_cosine")
        medians = dict(zip(measured["comparison"], map(float, measured["median_cosine"]), strict=True))
        return {"theta": self.theta, "median_cosine": medians}


def family_similarity(
    family: Family, *, theta: float = 0.7, allow_mismatch: bool = False
) -> FamilySimilarity:
    """Distributions of the greatest cosine between neighbouring widths and between seeds.

    Parameters
    ----------
    family : Family
        Dictionaries of several widths.
    theta : float
        Cosine under which a latent counts as novel.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If theta is not a cosine from 0 to 1, or two members do not belong together.

    Examples
    --------
    >>> family_similarity(family).table.columns.tolist()
    ['comparison', 'null', 'small_width', 'large_width', 'median_cosine', 'share_under_theta',
     'same_index_share', 'chance', 'note']
    """
    theta = settings.cosine("theta", theta)
    # One comparison at a time: a family's members may be more than fit into memory.
    frames, rows = [], []
    compared: dict[Identity, None] = {}
    for comparison in family.comparisons():
        matches = best_matches(comparison.small, comparison.large, allow_mismatch=allow_mismatch)
        row = {
            "comparison": comparison.label,
            "null": comparison.null,
            "small_width": comparison.small_width,
            "large_width": comparison.large_width,
        }
        compared |= dict.fromkeys((matches.small, matches.large))
        frames.append(matches.frame.assign(**row))
        rows.append(
            row
            | {
                "median_cosine": matches.summary["median_cosine"],
                "share_under_theta": float((matches.cosine < theta).double().mean()),
                "same_index_share": matches.same_index_share,
                "chance": matches.chance,
                "note": "",
            }
        )
    for width in family.without_null:
        label = f"{width}, other seed"
        row = {"comparison": label, "null": True, "small_width": width, "large_width": width}
        rows.append(row | {"note": "no second seed"})
    columns = [
        "comparison",
        "null",
        "small_width",
        "large_width",
        "median_cosine",
        "share_under_theta",
        "same_index_share",
        "chance",
        "note",
    ]
    order = [*columns[:4], "latent", "best_match", "best_cosine"]
    frame = pd.concat(frames, ignore_index=True)[order] if frames else pd.DataFrame(columns=order)
    return FamilySimilarity(frame, pd.DataFrame(rows).reindex(columns=columns), theta, tuple(compared))
