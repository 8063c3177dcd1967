"""Any number of training runs of one width: which latents the others find again, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import Activations
from saekit.agreement import check_agreement
from saekit.analysis.uniqueness.matching import (
    CANDIDATES,
    EXACT_COSINES,
    MatchedActivations,
    Matching,
    assign,
    match_latents,
)
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity, distinct_names
from saekit.passes import Batch, Tokens, one_pass
from saekit.results import Result

UNKNOWN = "unknown"  # what differed between two runs, where one of them has no record
LEVEL = 0.95  # of the interval of a latent's share


@dataclass(frozen=True, eq=False, repr=False)
class Uniqueness(Result):
    """Which latents of several dictionaries of one width recur in the others.

    Attributes
    ----------
    dictionaries : tuple of Identity
        The dictionaries.
    theta : float
        Cosine from which two matched latents count as the same one.
    matchings : mapping
        The `Matching` of every pair, by the places of its two dictionaries, the lower one first.
    absolute : mapping
        For every pair, the mean absolute cosine of the one-to-one matching that maximises it, and an
        upper bound on how far the optimal one exceeds it.
    differ : mapping
        For every pair, what differed between the two training runs: `"initialisation"`,
        `"data order"`, `"both"`, `"neither"`, or `"unknown"` where a run has no record of its seeds.
    """

    dictionaries: tuple[Identity, ...]
    theta: float
    matchings: dict[tuple[int, int], Matching]
    absolute: dict[tuple[int, int], tuple[float, float]]
    differ: dict[tuple[int, int], str]
    _plot: ClassVar[str] = "recurrence"

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per pair of dictionaries.

        Returns
        -------
        DataFrame
            `a` and `b` (names), `differ`; `pw_mcc_signed` and `pw_mcc_absolute` (mean cosine, or mean
            absolute cosine, of the one-to-one matching that maximises it); `share_shared` (matched
            pairs at theta or more), with activations `mean_correlation`; `gap_signed` and
            `gap_absolute` (see `Matching.gap`; 0 where the matching is known to be optimal).
        """
        names, rows = distinct_names(self.dictionaries), []
        for (i, j), matching in self.matchings.items():
            summary, (absolute, gap) = matching.summary, self.absolute[i, j]
            row: dict[str, Any] = {"a": names[i], "b": names[j], "differ": self.differ[i, j]}
            row |= {"pw_mcc_signed": summary["mean_matched_cosine"], "pw_mcc_absolute": absolute}
            row |= {name: summary[name] for name in ("share_shared", "mean_correlation") if name in summary}
            rows.append(row | {"gap_signed": matching.gap, "gap_absolute": gap})
        return pd.DataFrame(rows)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per latent of every dictionary.

        Returns
        -------
        DataFrame
            `place` and `dictionary` (name); `latent`; `n_others` (other dictionaries), `n_recurring`
            (those with a matched latent at theta or more) and `share_recurring`; `low` and `high`, the
            95% interval (Clopper and Pearson 1934) of the share of all seeds in which the latent would
            recur; `mean_matched_cosine` over the others. With activations also `density`, `dead` and
            `mean_correlation` over the others.
        """
        n, parts = len(self.dictionaries), []
        intervals = np.array([recurrence_interval(k, n - 1) for k in range(n)])
        for place, name in enumerate(distinct_names(self.dictionaries)):
            sides = self._sides(place)
            cosine = np.stack([side["matched_cosine"] for side in sides])
            found = (cosine >= self.theta).sum(0)
            part = pd.DataFrame({"place": place, "dictionary": name, "latent": sides[0]["latent"]})
            part["n_others"], part["n_recurring"] = n - 1, found
            part["share_recurring"] = found / (n - 1)
            part["low"], part["high"] = intervals[found].T
            part["mean_matched_cosine"] = cosine.mean(0)
            if "density" in sides[0]:
                part["density"], part["dead"] = sides[0]["density"], sides[0]["dead"]
                part["mean_correlation"] = pd.concat([s["correlation"] for s in sides], axis=1).mean(axis=1)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _sides(self, place: int) -> list[pd.DataFrame]:
        """A dictionary's frame in its matching with each of the others."""
        return [
            m.frame if i == place else m.frame_b for (i, j), m in self.matchings.items() if place in (i, j)
        ]

    def latents(self, place: int, *, recurring: bool) -> np.ndarray:
        """Latents of a dictionary that recur in all others, or in none.

        Parameters
        ----------
        place : int
            Place of the dictionary.
        recurring : bool
            Those that recur in every other dictionary; if False, those that recur in none.
        """
        cosine = np.stack([side["matched_cosine"] for side in self._sides(place)])
        return np.flatnonzero(np.all(cosine >= self.theta if recurring else cosine < self.theta, axis=0))

    @property
    def by_share(self) -> pd.DataFrame:
        """How latents that recur often differ from those that recur rarely.

        Returns
        -------
        DataFrame
            One row per number of other dictionaries in which latents recur, over all dictionaries:
            `n_recurring`, `share_recurring`, `low`, `high` (as in `frame`), `n_latents` and `share` of
            all latents, `mean_matched_cosine`; with activations `n_dead` and `median_density` (of those
            that are not dead), `mean_correlation`.
        """
        frame, rows = self.frame, []
        n = len(self.dictionaries)
        for found in range(n):
            part = frame[frame["n_recurring"] == found]
            low, high = recurrence_interval(found, n - 1)
            row = {"n_recurring": found, "share_recurring": found / (n - 1), "low": low, "high": high}
            row |= {"n_latents": len(part), "share": len(part) / len(frame)}
            row |= {"mean_matched_cosine": part["mean_matched_cosine"].mean()}
            if "density" in part:
                row |= {"n_dead": int(part["dead"].sum())}
                row |= {"median_density": part.loc[~part["dead"], "density"].median()}
                row |= {"mean_correlation": part["mean_correlation"].mean()}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers.

        `n_dictionaries`, `width`, `theta`; `pw_mcc_signed`, `pw_mcc_absolute` and `share_shared` (mean
        over all pairs; see `pairs`), with activations `mean_correlation`; `share_always` and
        `share_never`, of the latents of all dictionaries, that recur in every other and in no other
        one; `differ` (what differed between the runs, over all pairs); `gap_signed`, `gap_absolute`
        (greatest of all pairs).
        """
        pairs, found = self.pairs, self.frame["share_recurring"]
        means = ("pw_mcc_signed", "pw_mcc_absolute", "share_shared", "mean_correlation")
        return {
            "n_dictionaries": len(self.dictionaries),
            "width": self.dictionaries[0].width,
            "theta": self.theta,
            **{name: float(pairs[name].mean()) for name in means if name in pairs},
            "share_always": float((found == 1).mean()),
            "share_never": float((found == 0).mean()),
            "differ": ", ".join(pairs["differ"].unique()),
            "gap_signed": float(pairs["gap_signed"].max()),
            "gap_absolute": float(pairs["gap_absolute"].max()),
        }


def measure_uniqueness(
    *dictionaries: Dictionary,
    theta: float = 0.7,
    activations: Activations | None = None,
    candidates: int = CANDIDATES,
    exact_cosines: int = EXACT_COSINES,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Uniqueness:
    """Match the latents of every pair of dictionaries one to one, and count how often each recurs.

    Parameters
    ----------
    *dictionaries : Dictionary
        At least two of one width, usually seeds. `match_latents` compares two of any widths.
    theta : float
        Cosine from which two matched latents count as the same one, from 0 to 1.
    activations : ActivationStore, Tensor or array, optional
        Tokens on which the activations of matched latents are compared, in one pass.
    candidates, exact_cosines : int
        As for `match_latents`.
    progress : bool
        Show progress bars in pairs of dictionaries and in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If there are fewer than two dictionaries, their widths differ, the inputs do not belong together,
        an activation is not finite, or a setting is out of its range.

    Notes
    -----
    Uniqueness is the first condition of a canonical set of units in Leask et al. (ICLR 2025). PW-MCC,
    the mean cosine of a one-to-one matching averaged over all pairs of runs, is that of Song et al.
    (2025, arXiv:2505.20254), there with absolute cosines. A latent's activation is never negative, so
    two latents of opposite directions are different latents; only the absolute score ignores that.

    Examples
    --------
    >>> result = measure_uniqueness(small, other_seed, activations=x)
    >>> result.summary["share_always"], round(result.summary["pw_mcc_signed"], 2)
    (1.0, 0.98)
    >>> result.frame[["n_recurring", "low", "high"]].round(3).iloc[0].tolist()
    [1.0, 0.025, 1.0]
    """
    adding = UniquenessPass(
        dictionaries,
        theta=theta,
        candidates=candidates,
        exact_cosines=exact_cosines,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    if activations is None:
        return adding.result
    tokens = one_pass(
        activations,
        adding,
        dictionaries=dictionaries,
        purpose="uniqueness",
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    return adding.finished(tokens)


class UniquenessPass:
    """`measure_uniqueness` as a part of a pass that others share.

    Attributes
    ----------
    result : Uniqueness
        Without activations.
    """

    def __init__(
        self,
        dictionaries: Sequence[Dictionary],
        *,
        theta: float = 0.7,
        candidates: int = CANDIDATES,
        exact_cosines: int = EXACT_COSINES,
        progress: bool = False,
        allow_mismatch: bool = False,
    ) -> None:
        theta = settings.cosine("theta", theta)
        require_dictionaries(**{f"dictionary {i}": d for i, d in enumerate(dictionaries)})
        widths = [dictionary.width for dictionary in dictionaries]
        if len(widths) < 2 or len({*widths}) > 1:
            raise ValueError(
                f"Uniqueness needs at least two dictionaries of one width, found the widths {widths}; "
                "match_latents compares two of different widths."
            )
        check_agreement(dictionaries=dictionaries, allow_mismatch=allow_mismatch)
        options: dict[str, Any] = {"candidates": candidates, "exact_cosines": exact_cosines}
        matchings, absolute, differ = {}, {}, {}
        pairs = [*combinations(range(len(widths)), 2)]
        for i, j in tqdm(pairs, disable=not progress, unit="pair", desc="uniqueness"):
            a, b = dictionaries[i], dictionaries[j]
            matchings[i, j] = match_latents(a, b, theta=theta, allow_mismatch=allow_mismatch, **options)
            absolute[i, j] = _absolute(a, b, **options)
            differ[i, j] = differing(a, b)
        identities = tuple(dictionary.identity for dictionary in dictionaries)
        self.result = Uniqueness(identities, theta, matchings, absolute, differ)
        self._parts = {
            (i, j): MatchedActivations(dictionaries[i], dictionaries[j], matching)
            for (i, j), matching in matchings.items()
        }

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        for part in self._parts.values():
            part(batch)

    def finished(self, tokens: Tokens) -> Uniqueness:
        """The result with the sums, once the pass is over."""
        return replace(
            self.result, matchings={pair: part.finished(tokens) for pair, part in self._parts.items()}
        )


@cached
def _absolute(a: Dictionary, b: Dictionary, candidates: int, exact_cosines: int) -> tuple[float, float]:
    """Mean absolute cosine of the matching that maximises it, and what the optimal one may have more."""
    _, cosine, lost = assign(a.W_dec, b.W_dec, candidates, exact_cosines, absolute=True)
    return float(cosine.mean()), (lost or 0.0) / len(cosine)


def recurrence_interval(n_recurring: int, n_others: int) -> tuple[float, float]:
    """The 95% interval, by Clopper and Pearson (1934), of a latent's probability of recurring.

    It is wide: a latent that recurs in both of two other seeds may recur in 16% of all of them.

    Examples
    --------
    >>> [round(end, 3) for end in recurrence_interval(2, 2)]
    [0.158, 1.0]
    """
    interval = binomtest(n_recurring, n_others).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def differing(a: Dictionary, b: Dictionary) -> str:
    """What differed between the training runs of two dictionaries, by their records.

    Sharing the order of the data makes two runs agree more than independent runs do. Runs on different
    activations differ in data order.

    Returns
    -------
    str
        `"initialisation"`, `"data order"`, `"both"`, `"neither"`, or `"unknown"` where a dictionary was
        not trained here and has no record of its seeds.

    Examples
    --------
    >>> differing(dictionary, other_seed)
    'unknown'
    >>> differing(saes.get(16, 0), saes.get(16, 1))
    'both'
    """
    starts, orders = [], []
    for dictionary in (a, b):
        record = dictionary.info.get("training")
        if not isinstance(record, Mapping) or "seed" not in record:
            return UNKNOWN
        starts.append((dictionary.kind, dictionary.width, record["seed"]))
        orders.append(
            (record.get("data_seed", record["seed"]), record.get("activations"), record.get("batch_size"))
        )
    found = (starts[0] != starts[1], orders[0] != orders[1])
    return {
        (True, True): "both",
        (True, False): "initialisation",
        (False, True): "data order",
        (False, False): "neither",
    }[found]
