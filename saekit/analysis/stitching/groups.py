"""Dictionaries with different groups of latents inserted, matched and compared with error bars over rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.dictionary import Dictionary, origin_of, require_dictionaries
from saekit.metrics import CEDegradation, Evaluation, ce_degradation, evaluate
from saekit.moments import ratio_of_totals
from saekit.results import Result
from saekit.selection import Latents, select_latents

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False, repr=False)
class DictionaryComparison(Result):
    """Dictionaries measured on the same tokens, so that differences between them have error bars.

    Attributes
    ----------
    names : tuple of str
        Names of the dictionaries.
    evaluations : tuple of Evaluation
        On all tokens of the store.
    ce : CEDegradation
        On the rows that the model was run on.
    """

    names: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    ce: CEDegradation

    @property
    def frame(self) -> pd.DataFrame:
        """One row per dictionary, by `name`.

        `width`, `l0`, `fvu`, `ce_degradation` (nats per token: positive is worse) and
        `ce_degradation_error` (its standard error over rows of tokens).
        """
        columns = ["width", "ce_degradation", "ce_degradation_error"]
        frame = self.ce.frame[columns].set_axis(pd.Index(self.names, name="name"))
        frame.insert(1, "l0", [evaluation.l0 for evaluation in self.evaluations])
        frame.insert(2, "fvu", [evaluation.fvu for evaluation in self.evaluations])
        return frame

    def against(self, name: str) -> pd.DataFrame:
        """Every dictionary minus the one of this name, paired by row of tokens.

        Returns
        -------
        DataFrame
            One row per dictionary, by `name`: `fvu_difference`, `fvu_difference_error`,
            `ce_difference`, `ce_difference_error`; positive is worse, errors are standard errors.

        Raises
        ------
        KeyError
            If no dictionary has this name.
        """
        if name not in self.names:
            raise KeyError(f"No dictionary is called {name!r} here; there are {', '.join(self.names)}.")
        place = self.names.index(name)
        reference = self.evaluations[place]
        variance = reference.mse / reference.fvu  # of a token
        differences = [
            ratio_of_totals(found.row_errors - reference.row_errors, reference.row_tokens)
            for found in self.evaluations
        ]
        frame = pd.DataFrame(differences, columns=["fvu_difference", "fvu_difference_error"]) / variance
        of_ce = self.ce.compare(place)
        frame["ce_difference"] = of_ce["difference"]
        frame["ce_difference_error"] = of_ce["difference_error"]
        return frame.set_axis(pd.Index(self.names, name="name"))

    @property
    def summary(self) -> dict[str, Any]:
        """`n_tokens` for L0 and FVU, `n_rows` and `n_targets` for cross-entropy."""
        return {
            "n_tokens": self.evaluations[0].n_tokens,
            "n_rows": len(self.ce.row_targets),
            "n_targets": self.ce.n_targets,
        }


def compare_dictionaries(
    model: TransformerBridge,
    dictionaries: Mapping[str, Dictionary],
    store: ActivationStore,
    *,
    max_rows: int = 64,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> DictionaryComparison:
    """Measure L0, FVU and CE degradation of several dictionaries on the same tokens.

    A comparison is meaningful if the dictionaries are matched: with equally many latents inserted
    (`insert_latents`), or brought to one L0 (`matched_l0`).

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    dictionaries : mapping of str to Dictionary
        The dictionaries to compare, by name.
    store : ActivationStore
        Held-out tokens.
    max_rows : int
        Rows of tokens to run the model on, spread evenly over the store.
    progress : bool
        Show progress bars.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the inputs do not belong together.

    Examples
    --------
    >>> compared = {"small": saes[16], "large": saes[32]}
    >>> result = saekit.compare_dictionaries(model, compared, harvested, max_rows=4)
    >>> result.frame.columns.tolist()
    ['width', 'l0', 'fvu', 'ce_degradation', 'ce_degradation_error']
    """
    members = list(dictionaries.values())
    ce = ce_degradation(
        model,
        members,
        store,
        max_rows=max_rows,
        everywhere=False,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    evaluations = tuple(
        evaluate(member, store, progress=progress, allow_mismatch=allow_mismatch) for member in members
    )
    return DictionaryComparison(tuple(dictionaries), evaluations, ce)


def insert_latents(dictionary: Dictionary, more: Dictionary, *, allow_mismatch: bool = False) -> Dictionary:
    """Add the latents of another dictionary; the decoder bias stays.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary that the latents are inserted into.
    more : Dictionary
        The dictionary whose latents are added, after the others; `large.gather(latents)` picks some
        of a dictionary.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If latents of either depend on each other, or the two do not belong together.

    Examples
    --------
    >>> saekit.insert_latents(small, large.gather([6, 7])).width
    10
    """
    require_dictionaries(dictionary=dictionary, more=more)
    for part in (dictionary, more):
        part.require_independent("Inserting latents")
    check_agreement(dictionaries=(dictionary, more), allow_mismatch=allow_mismatch)
    joined: dict[str, Any] = {
        name: torch.cat([getattr(dictionary, name), getattr(more, name)])
        for name in ("b_enc", "W_dec", "threshold")
    }
    origin = origin_of(dictionary.info, more.info)
    return replace(
        dictionary,
        **joined,
        W_enc=torch.cat([dictionary.W_enc, more.W_enc], dim=1),
        info={**origin, "kind": "stitched"},
    )


def match_by_density(
    density: np.ndarray, first: Latents, second: Latents, *, tolerance: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Pair latents of two groups that fire about equally often, so that both groups add the same L0.

    Parameters
    ----------
    density : ndarray
        Share of tokens on which each latent of the dictionary is active, `[width]`. Latents that are
        never active are left out.
    first, second : index array, list, Boolean mask or Series
        The two groups; no latent may be in both.
    tolerance : float
        At least 0. Greatest difference of the log densities of a pair.

    Returns
    -------
    ndarray, ndarray
        Latents of each group, paired by place, in order of density: as many pairs as possible.

    Raises
    ------
    ValueError
        If no two latents are within the tolerance, one is given twice, or `tolerance` is negative or not
        finite.

    Examples
    --------
    >>> first, second = saekit.match_by_density(np.array([0.1, 0.3, 0.31, 0.9]), [0, 1], [2, 3])
    >>> first.tolist(), second.tolist()
    ([1], [2])
    """
    tolerance = settings.real("tolerance", tolerance, at_least=0)
    density = np.asarray(density, dtype=float)
    a, b = (select_latents(group, len(density)).numpy() for group in (first, second))
    given, times = np.unique(np.concatenate([a, b]), return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"Each latent can be in one group, and once: latent {given[times > 1][0]} is given "
            f"{times[times > 1][0]} times."
        )
    a, b = (group[density[group] > 0] for group in (a, b))
    a, b = (group[np.argsort(density[group], kind="stable")] for group in (a, b))
    pairs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        apart = np.log(density[a[i]] / density[b[j]])
        if abs(apart) <= tolerance:
            pairs.append((a[i], b[j]))
        # Of two that do not fit, the rarer one fits none of the others either: they are denser still.
        i, j = i + (apart <= tolerance), j + (apart >= -tolerance)
    if not pairs:
        raise ValueError(f"No two latents of the groups have densities within {tolerance:.0%} of each other.")
    matched_a, matched_b = zip(*pairs, strict=True)
    return np.array(matched_a), np.array(matched_b)
