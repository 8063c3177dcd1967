"""Whether latents of a larger dictionary are more specific than the small latents that they resemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.analysis.splitting import measure_splitting
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.moments import ratio_of_totals
from saekit.passes import Batch, one_pass
from saekit.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Specificity(Result):
    """When children fire, and when their parents do.

    Attributes
    ----------
    frame : DataFrame
        One row per large latent that has a parent and is active: `latent`, `parent`, `status` (the
        parent's, see `measure_splitting`), `cosine`, `density` and `parent_density` (shares of tokens
        on which each is active), `density_ratio` (of the two: under 1 if the child is rarer), `inside`
        (share of the child's tokens on which the parent is active too) and `lift` (`inside` over
        `parent_density`: 1 if they were independent).
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    frame: pd.DataFrame
    n_tokens: int
    n_excluded: int

    @property
    def table(self) -> pd.DataFrame:
        """One row per status of the parent.

        `n_latents`; `share_rarer` (of children that fire on fewer tokens than their parent) and
        `share_rarer_error` (its standard error over parents); medians of `density_ratio`, `inside` and
        `lift`.
        """
        rows = {}
        for status, part in self.frame.groupby("status"):
            by_parent = part.assign(rarer=part["density_ratio"] < 1).groupby("parent")["rarer"]
            rarer, children = by_parent.sum().to_numpy(float), by_parent.size().to_numpy(float)
            share, error = ratio_of_totals(torch.from_numpy(rarer), torch.from_numpy(children))
            rows[status] = {
                "n_latents": len(part),
                "share_rarer": share,
                "share_rarer_error": error,
                **part[["density_ratio", "inside", "lift"]].median().to_dict(),
            }
        return pd.DataFrame(rows).T.astype({"n_latents": int}).rename_axis("status")

    @property
    def summary(self) -> dict[str, Any]:
        """`n_tokens`, `n_excluded`, and `share_rarer` by status."""
        return {
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "share_rarer": self.table["share_rarer"].to_dict(),
        }


@cached
def measure_specificity(
    small: Dictionary,
    large: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    theta: float = 0.7,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Specificity:
    """Compare when each large latent fires with when its parent in the small dictionary does.

    Parameters
    ----------
    small, large : Dictionary
        Neighbouring widths, or two seeds of one width for the null.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    theta : float
        Cosine from which a small latent is a parent, see `measure_splitting`.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the inputs do not belong together, or there are no tokens.

    Examples
    --------
    >>> result = saekit.measure_specificity(small, large, x)
    >>> result.frame.loc[[0, 6], ["latent", "parent", "status", "density_ratio"]].round(2)
       latent  parent     status  density_ratio
    0       0       0  identical            1.0
    6       6       6  identical            1.0
    """
    edges = measure_splitting(small, large, theta=theta, allow_mismatch=allow_mismatch).frame
    parent = torch.from_numpy(edges["parent"].to_numpy().copy())
    n_small, n_large, n_both = (
        torch.zeros(n, dtype=torch.long) for n in (small.width, large.width, large.width)
    )

    def add(batch: Batch) -> None:
        of_small, of_large = batch.latents(small), batch.latents(large)
        counts = torch.bincount(of_small.indices, minlength=small.width).cpu()
        n_small.add_(counts)
        n_large.add_(torch.bincount(of_large.indices, minlength=large.width).cpu())
        wanted = parent[of_large.indices.cpu()]
        key = of_large.rows.cpu() * small.width + wanted
        there = of_small.rows.cpu() * small.width + of_small.indices.cpu()
        both = torch.isin(key, there) & (wanted >= 0)
        n_both.add_(torch.bincount(of_large.indices.cpu()[both], minlength=large.width))

    tokens = one_pass(
        activations,
        add,
        dictionaries=[small, large],
        purpose="specificity",
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    frame = edges[["latent", "parent", "status", "cosine"]].assign(density=n_large.numpy() / tokens.n_tokens)
    frame["parent_density"] = n_small.numpy()[parent] / tokens.n_tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["density_ratio"] = frame["density"] / frame["parent_density"]
        frame["inside"] = n_both.numpy() / n_large.numpy()
        frame["lift"] = frame["inside"] / frame["parent_density"]
    frame = frame[(frame["parent"] >= 0) & (frame["density"] > 0)].reset_index(drop=True)
    return Specificity(frame, tokens.n_tokens, tokens.n_excluded)
