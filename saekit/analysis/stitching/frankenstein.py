"""Frankenstein's SAE: the latents of a family that are novel to those gathered before, in one dictionary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from saekit import settings
from saekit.activations import Activations
from saekit.analysis.similarity import nearest
from saekit.analysis.stitching.controls import matched_l0
from saekit.analysis.stitching.groups import insert_latents
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.metrics import evaluate
from saekit.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Frankenstein(Result):
    """A dictionary gathered over the widths of a family, beside the trained ones.

    Attributes
    ----------
    dictionaries : tuple of Dictionary
        The smallest of the family, then one after each further width.
    theta : float
        Cosine under which a latent is novel.
    frame : DataFrame
        One row per dictionary: `kind` (`"trained"` or `"frankenstein"`), `up_to` (the greatest width
        that gave latents), `n_novel` (that it gave), `width`, `fvu`, `l0`; `l0_target` (the smallest
        dictionary's), `fvu_matched`, `l0_matched` (with one more threshold for all latents, raised
        until L0 is at most the target, see `saekit.analysis.matched_l0`).
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    _plot: ClassVar[str] = "frankenstein"

    dictionaries: tuple[Dictionary, ...]
    theta: float
    frame: pd.DataFrame
    n_tokens: int
    n_excluded: int

    @property
    def summary(self) -> dict[str, Any]:
        """Width, FVU and L0 of the last one, also at the smallest's L0, and of the widest trained one."""
        rows = self.frame.set_index(["kind", "up_to"])
        widest = self.frame["up_to"].max()
        last, trained = rows.loc["frankenstein", widest], rows.loc["trained", widest]
        return {
            "theta": self.theta,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "width": int(last["width"]),
            **{name: float(last[name]) for name in ("fvu", "l0", "fvu_matched", "l0_matched")},
            "trained_width": int(trained["width"]),
            **{f"trained_{name}": float(trained[name]) for name in ("fvu", "l0", "fvu_matched")},
        }


@cached
def build_frankenstein(
    family: Family,
    activations: Activations,
    *,
    theta: float = 0.7,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Frankenstein:
    """Gather latents over a family: from each wider dictionary, those novel to all gathered before.

    Parameters
    ----------
    family : Family
        At least two widths; latents must not depend on each other.
    activations : ActivationStore, Tensor or array
        Tokens to measure on.
    theta : float
        Cosine under which a latent is novel to all gathered before it.
    progress : bool
        Show progress bars in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the family has fewer than two widths or is TopK, theta is not a cosine from 0 to 1, or the
        inputs do not belong together.

    Notes
    -----
    "Frankenstein's SAE" of the LessWrong post "Stitching SAEs of different sizes" (Bussmann, Leask et
    al., 2024), which reports that it outperforms SAEs of its size at a higher L0. The procedure is
    not published: this one is ours. The decoder bias stays the smallest dictionary's.

    Examples
    --------
    >>> frankenstein = saekit.build_frankenstein(family, x, theta=0.99)
    >>> frankenstein.frame[["kind", "up_to", "n_novel"]]
               kind  up_to  n_novel
    0       trained      8        8
    1       trained     12       12
    2  frankenstein      8        8
    3  frankenstein     12        5
    """
    theta = settings.cosine("theta", theta)
    if len(family.widths) < 2:
        raise ValueError(f"Frankenstein's SAE needs at least two widths, found {family.widths}.")
    gathered = [family[family.widths[0]]]
    gathered[0].require_independent("Gathering latents")
    n_novel = [gathered[0].width]
    for width in family.widths[1:]:
        cosines, _ = nearest(family[width], gathered[-1], k=1, allow_mismatch=allow_mismatch)
        novel = cosines[:, 0] < theta
        together = insert_latents(gathered[-1], family[width].gather(novel))
        gathered.append(replace(together, info={**together.info, "kind": "frankenstein"}))
        n_novel.append(int(novel.sum()))
    target = evaluate(gathered[0], activations, allow_mismatch=allow_mismatch).l0
    rows = []
    for kind, members in (
        ("trained", [family[width] for width in family.widths]),
        ("frankenstein", gathered),
    ):
        for up_to, member, new in zip(family.widths, members, n_novel, strict=True):
            found = evaluate(member, activations, progress=progress, allow_mismatch=allow_mismatch)
            raised = matched_l0(member, activations, target, progress=progress, allow_mismatch=allow_mismatch)
            matched = evaluate(
                raised.dictionary, activations, progress=progress, allow_mismatch=allow_mismatch
            )
            rows.append(
                {
                    "kind": kind,
                    "up_to": up_to,
                    "n_novel": new if kind == "frankenstein" else member.width,
                    "width": member.width,
                    "fvu": found.fvu,
                    "l0": found.l0,
                    "l0_target": target,
                    "fvu_matched": matched.fvu,
                    "l0_matched": matched.l0,
                }
            )
    return Frankenstein(tuple(gathered), theta, pd.DataFrame(rows), found.n_tokens, found.n_excluded)
