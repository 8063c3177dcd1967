"""How similar the latents of two dictionaries are: cosines of decoder directions, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.identity import Identity
from saekit.results import Result

CHUNK_ELEMENTS = 1 << 25  # cosines held at once: 128 MB


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
        The small latent that it is reached with, int64 `[large.width]`.
    same_index_share : float
        Of the large latents whose index exists in the small dictionary, the share whose best
        match has the same index. Far above `chance` it betrays shared initial rows.
    chance : float
        What `same_index_share` would be if every match were equally likely: one over the
        small width.
    """

    small: Identity
    large: Identity
    cosine: Tensor
    index: Tensor
    same_index_share: float
    chance: float

    @property
    def frame(self) -> pd.DataFrame:
        """One row a large latent: `latent`, `best_match`, `best_cosine`."""
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


def best_matches(large: Dictionary, small: Dictionary, *, chunk: int | None = None) -> BestMatches:
    """The latent of `small` with the most similar decoder direction, for each latent of `large`.

    The seed null is the same call with two seeds of one width. If both are the same object, a
    latent is not matched with itself.

    Parameters
    ----------
    large, small : Dictionary
        Of equal `d_in`.
    chunk : int, optional
        Latents of `large` at a time; by default as many as keep the cosines within 128 MB.

    Raises
    ------
    ValueError
        If the dictionaries differ in `d_in`.

    Notes
    -----
    The similarity by which Leask et al. (ICLR 2025, section on SAE stitching; glossary: novel
    and reconstruction latents) compare dictionaries. Ties go to the lowest index. Dead latents
    are compared like all others.
    """
    cosine, index = nearest(large, small, k=1, chunk=chunk)
    index = index[:, 0]
    common = min(large.width, small.width)
    same = index[:common] == torch.arange(common, device=index.device)
    return BestMatches(
        small=small.identity,
        large=large.identity,
        cosine=cosine[:, 0],
        index=index,
        same_index_share=float(same.double().mean()),
        chance=0.0 if large is small else 1 / small.width,
    )


def nearest(
    dictionary: Dictionary | Tensor,
    other: Dictionary,
    k: int = 10,
    *,
    latents: Sequence[int] | Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The `k` latents of `other` with the most similar decoder directions, most similar first.

    Parameters
    ----------
    dictionary : Dictionary or Tensor
        What to look up: the latents of a dictionary, or directions `[n, d_in]` of any norm.
    other : Dictionary
        Where to look. If it is the same object as `dictionary`, a latent is not its own
        neighbour.
    k : int
        Neighbours of each.
    latents : sequence of int, optional
        Only these latents (rows) of `dictionary`, in this order.
    chunk : int, optional
        Rows at a time; by default as many as keep the cosines within 128 MB.

    Returns
    -------
    cosines, indices : Tensor
        `[n, k]` each. Ties go to the lowest index.

    Raises
    ------
    ValueError
        If the directions differ in `d_in`, or `other` has fewer than `k` candidates.
    """
    rows = dictionary.W_dec if isinstance(dictionary, Dictionary) else dictionary
    if rows.ndim != 2 or rows.shape[1] != other.d_in:
        raise ValueError(
            f"{other.name} can be compared with directions [n, {other.d_in}], found {list(rows.shape)}."
        )
    exclude_self = dictionary is other
    if not 0 < k <= other.width - exclude_self:
        raise ValueError(f"k must be between 1 and {other.width - exclude_self}, found {k}.")
    index = torch.arange(len(rows)) if latents is None else torch.as_tensor(latents, dtype=torch.long)
    index = index.to(rows.device)
    chunk = chunk or max(1, CHUNK_ELEMENTS // other.width)
    directions = F.normalize(other.W_dec, dim=1).T
    found = []
    for part in index.split(chunk):
        cosines = F.normalize(rows[part], dim=1).to(directions.dtype) @ directions
        if exclude_self:
            cosines[torch.arange(len(part), device=part.device), part] = -torch.inf
        found.append(largest(cosines, k))
    if not found:
        return rows.new_zeros(0, k), index.new_zeros(0, k)
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, indices


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k, dim=1)` with ties broken by the lowest index."""
    top, indices = values.topk(k, dim=1)
    # topk picks arbitrarily among equals; only rows with a tie across the k-th place need a sort.
    tied = (values >= top[:, -1:]).sum(1) > k
    if tied.any():
        ordered, places = values[tied].sort(dim=1, descending=True, stable=True)
        top[tied], indices[tied] = ordered[:, :k], places[:, :k]
    indices, order = indices.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, indices.gather(1, order)


@dataclass(frozen=True, eq=False, repr=False)
class FamilySimilarity(Result):
    """Best matches over a family's neighbouring widths, beside their seed nulls.

    Attributes
    ----------
    frame : DataFrame
        One row a latent and comparison: `comparison` (such as `"1152 → 2304"` or
        `"1152, other seed"`), `null` (whether it compares two seeds of one width),
        `small_width`, `large_width`, `latent` (of the larger dictionary, or of the other
        seed), `best_match`, `best_cosine`.
    table : DataFrame
        One row a comparison: `comparison`, `null`, `small_width`, `large_width`,
        `median_cosine`, `share_under_theta`, `same_index_share`, `chance`, `note` (which says
        where there is no second seed).
    theta : float
        The threshold of `share_under_theta`.
    """

    _plot: ClassVar[str] = "max_cosine_distribution"

    frame: pd.DataFrame
    table: pd.DataFrame
    theta: float

    @property
    def summary(self) -> dict[str, Any]:
        """Median best cosine of each comparison, by name, and `theta`."""
        measured = self.table.dropna(subset="median_cosine")
        medians = dict(zip(measured["comparison"], map(float, measured["median_cosine"]), strict=True))
        return {"theta": self.theta, "median_cosine": medians}


def family_similarity(family: Family, *, theta: float = 0.7) -> FamilySimilarity:
    """Distributions of the greatest cosine between neighbouring widths and between seeds.

    Parameters
    ----------
    family : Family
        Dictionaries of several widths.
    theta : float
        Cosine under which a latent counts as novel.
    """
    # Not a list: a family's members may be read one by one, and be more than fit into memory.
    comparisons: Iterator[tuple[str, Dictionary, Dictionary | None]] = chain(
        ((f"{small.width} → {large.width}", small, large) for small, large in family.pairs()),
        ((f"{width}, other seed", family[width], family.second_seed(width)) for width in family.widths),
    )
    frames, rows = [], []
    for name, small, large in comparisons:
        large_width = small.width if large is None else large.width
        row: dict[str, Any] = {
            "comparison": name,
            "null": large_width == small.width,
            "small_width": small.width,
            "large_width": large_width,
        }
        if large is None:
            rows.append(row | {"note": "no second seed"})
            continue
        matches = best_matches(large, small)
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
    return FamilySimilarity(frame, pd.DataFrame(rows).reindex(columns=columns), theta)
