"""The latents of two dictionaries matched one to one, and how far matched ones agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.analysis.similarity import cosines
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.passes import Batch, Tokens, one_pass
from saekit.results import Result

EXACT_COSINES = 1 << 25  # Up to this many cosines (5,792 squared) are held at once: 256 MB in float64.
CANDIDATES = 32  # best matches of each latent that a matching of wider dictionaries chooses from
TIE = 1e-9  # by how much going without a match is worth less than the last candidate
STATUSES = ("shared", "crowded", "alone")


@dataclass(frozen=True, eq=False, repr=False)
class Matching(Result):
    """A one-to-one matching of the latents of two dictionaries, and each latent's own best match.

    Attributes
    ----------
    a, b : Identity
        The dictionaries.
    theta : float
        Cosine from which two matched latents count as the same one.
    frame : DataFrame
        One row per latent of `a`: `latent`; `match` (its latent of `b`; -1 if `b` is narrower and
        none was left) and `matched_cosine` (NaN then); `best_match`, `best_cosine`; `mutual_best`
        (the two are each other's best match); `encoder_match` and `encoder_cosine` (of the
        matching by encoder directions, made alike); `status`: `"shared"` (matched at theta or
        more), `"crowded"` (not, although its best cosine is at least theta: that latent of `b`
        is matched with another one) or `"alone"`. With activations also `density` (share of
        tokens on which it is active), `dead`, and `correlation` (Pearson, of its activations with
        those of its match over all tokens; NaN where either never fires).
    frame_b : DataFrame
        The same for the latents of `b`.
    exact : bool
        Whether the matching is known to be optimal.
    gap : float
        Upper bound on how far the mean cosine of the optimal matching exceeds this one's; 0 if exact.
    n_tokens, n_excluded : int
        Tokens that activations were compared on and positions left out; 0 without activations.
    """

    a: Identity
    b: Identity
    theta: float
    frame: pd.DataFrame
    frame_b: pd.DataFrame
    exact: bool
    gap: float
    n_tokens: int = 0
    n_excluded: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers; those of the matching are over matched pairs.

        `a`, `b`, `theta`, `n_a`, `n_b`, `n_matched`; `mean_matched_cosine`,
        `median_matched_cosine`, `share_shared` (pairs at theta or more), `share_mutual` (pairs
        that are each other's best match), `share_same_by_encoder` (pairs that the matching by
        encoder directions makes too), `share_shared_both` (the same pair by both, at theta or
        more in both); over all latents of each, `mean_best_cosine` and `share_best` (best cosine
        at theta or more), and for `b` `mean_best_cosine_b` and `share_best_b`; with activations
        `mean_correlation`, `share_correlated` (pairs with a correlation of theta or more, among
        those that fire) and `n_dead` (of `a`). `exact`, `gap`.
        """
        frame, pairs = self.frame, self.pairs
        same = pairs["match"] == pairs["encoder_match"]
        shared = pairs["matched_cosine"] >= self.theta
        summary = {
            "a": str(self.a),
            "b": str(self.b),
            "theta": self.theta,
            "n_a": len(frame),
            "n_b": len(self.frame_b),
            "n_matched": len(pairs),
            "mean_matched_cosine": float(pairs["matched_cosine"].mean()),
            "median_matched_cosine": float(pairs["matched_cosine"].median()),
            "share_shared": float(shared.mean()),
            "share_mutual": float(pairs["mutual_best"].mean()),
            "share_same_by_encoder": float(same.mean()),
            "share_shared_both": float((same & shared & (pairs["encoder_cosine"] >= self.theta)).mean()),
            "mean_best_cosine": float(frame["best_cosine"].mean()),
            "share_best": float((frame["best_cosine"] >= self.theta).mean()),
            "mean_best_cosine_b": float(self.frame_b["best_cosine"].mean()),
            "share_best_b": float((self.frame_b["best_cosine"] >= self.theta).mean()),
            "exact": self.exact,
            "gap": self.gap,
        }
        if "correlation" in frame:
            found = pairs["correlation"].dropna()
            summary["mean_correlation"] = float(found.mean())
            summary["share_correlated"] = float((found >= self.theta).mean())
            summary["n_dead"] = int(frame["dead"].sum())
        return summary

    @property
    def between_seeds(self) -> bool:
        """Whether both dictionaries have one width."""
        return self.a.width == self.b.width

    @property
    def pairs(self) -> pd.DataFrame:
        """The rows of `frame` that have a match."""
        return self.frame[self.frame["match"] >= 0]

    def unmatched(self, thetas: Sequence[float] | np.ndarray) -> pd.DataFrame:
        """Share of matched pairs, and of latents' best cosines, under each theta.

        Returns
        -------
        DataFrame
            `theta`, `share_matched_under`, `share_best_under`.

        Raises
        ------
        TypeError, ValueError
            If a theta is not a number from 0 to 1.
        """
        thetas = [settings.cosine("theta", theta) for theta in thetas]
        columns = {
            "share_matched_under": np.sort(self.pairs["matched_cosine"]),
            "share_best_under": np.sort(self.frame["best_cosine"]),
        }
        # Compared in the cosines' own precision, as theta is everywhere.
        shares = {
            name: np.searchsorted(values, np.asarray(thetas, dtype=values.dtype)) / len(values)
            for name, values in columns.items()
        }
        return pd.DataFrame({"theta": thetas, **shares})

    @property
    def by_status(self) -> pd.DataFrame:
        """How the latents of `a` that the other dictionary lacks differ from the others.

        Returns
        -------
        DataFrame
            One row each for `"shared"`, `"crowded"` and `"alone"`: `status`, `n_latents`, `share`,
            `mean_matched_cosine`, `mean_best_cosine`, and with activations `n_dead`,
            `median_density` (of those that are not dead), `mean_correlation`.
        """
        rows = []
        for status in STATUSES:
            part = self.frame[self.frame["status"] == status]
            row = {
                "status": status,
                "n_latents": len(part),
                "share": len(part) / len(self.frame),
                "mean_matched_cosine": part["matched_cosine"].mean(),
                "mean_best_cosine": part["best_cosine"].mean(),
            }
            if "density" in part:
                row["n_dead"] = int(part["dead"].sum())
                row["median_density"] = part.loc[~part["dead"], "density"].median()
                row["mean_correlation"] = part["correlation"].mean()
            rows.append(row)
        return pd.DataFrame(rows)


@cached
def match_latents(
    a: Dictionary,
    b: Dictionary,
    *,
    theta: float = 0.7,
    activations: ActivationStore | Tensor | None = None,
    candidates: int = CANDIDATES,
    exact_cosines: int = EXACT_COSINES,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Matching:
    """Match the latents of two dictionaries one to one, so that the sum of their cosines is greatest.

    Every latent of the narrower dictionary gets a distinct partner in the other one. Up to
    `exact_cosines` cosines the matching is optimal (Hungarian algorithm). Beyond that, pairs are
    chosen only from the best matches of each latent in both directions; a latent may also go
    unmatched, at the value of its last candidate. If none does, the matching is still optimal, since
    no pair left out could be worth more. Unmatched latents are matched among themselves in the same
    way, and `gap` bounds the loss.

    Parameters
    ----------
    a, b : Dictionary
        Usually two seeds of one width. Widths may differ, kinds too.
    theta : float
        Cosine from which two matched latents count as the same one, from 0 to 1.
    activations : ActivationStore or Tensor, optional
        Tokens on which the activations of matched latents are compared: directions may agree where
        functions do not.
    candidates : int
        Best matches of each latent, beyond `exact_cosines`.
    exact_cosines : int
        Greatest number of cosines (width times width) that are held at once.
    progress : bool
        Show progress bars in matchings (by decoder, by encoder) and in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionaries and the activations do not belong together, an activation is not
        finite, or a setting is out of its range.

    Notes
    -----
    Matching by the Hungarian algorithm, by decoder and by encoder directions, and the cosine of 0.7
    from which a pair is shared, follow Paulo & Belrose (2025, arXiv:2501.16615). Dead latents are
    matched like all others. `measure_uniqueness` takes any number of seeds of one width.

    Examples
    --------
    >>> result = match_latents(dictionary, other_seed, activations=x)
    >>> result.summary["share_shared"], round(result.summary["mean_correlation"], 2)
    (1.0, 0.99)
    """
    require_dictionaries(a=a, b=b)
    theta = settings.cosine("theta", theta)
    candidates = settings.whole("candidates", candidates)
    exact_cosines = settings.whole("exact_cosines", exact_cosines, at_least=0)
    check_agreement(activations=activations, dictionaries=[a, b], allow_mismatch=allow_mismatch)
    with tqdm(total=2, disable=not progress, unit="matching", desc="matching") as bar:
        matchings = []
        for directions in ((a.W_dec, b.W_dec), (a.W_enc.T, b.W_enc.T)):
            matchings.append(_match(*directions, candidates, exact_cosines))
            bar.update()
    decoder, encoder = matchings
    frame, frame_b = (_frame(*sides, theta) for sides in zip(decoder.sides, encoder.sides, strict=True))
    result = Matching(a.identity, b.identity, theta, frame, frame_b, decoder.exact, decoder.gap)
    if activations is None:
        return result
    adding = MatchedActivations(a, b, result)
    tokens = one_pass(
        activations,
        adding,
        dictionaries=[a, b],
        purpose="matching",
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    return adding.finished(tokens)


# ---------------------------------------------------------------------- matching


@dataclass(frozen=True, eq=False)
class _Side:
    """Matches of one dictionary's latents: the assigned one (-1: none) and the best one."""

    match: np.ndarray
    cosine: np.ndarray
    best: np.ndarray
    best_cosine: np.ndarray
    mutual: np.ndarray


@dataclass(frozen=True, eq=False)
class _Assigned:
    sides: tuple[_Side, _Side]
    exact: bool
    gap: float


def _match(a: Tensor, b: Tensor, candidates: int, exact_cosines: int) -> _Assigned:
    """Match directions `[n, d]` and `[m, d]` of any norm one to one."""
    if not (len(a) and len(b)):
        raise ValueError("A dictionary holds no latents, so there are none to match.")
    if len(a) > len(b):
        turned = _match(b, a, candidates, exact_cosines)
        return _Assigned(turned.sides[::-1], turned.exact, turned.gap)
    match, cosine, lost = assign(a, b, candidates, exact_cosines)
    back, back_cosine = np.full(len(b), -1), np.full(len(b), np.nan, dtype=cosine.dtype)
    back[match], back_cosine[match] = np.arange(len(a)), cosine
    found = cosines(a, b)
    best_cosine, best, back_best_cosine, back_best = (
        tensor[:, 0].cpu().numpy() for tensor in (*found.up, *found.down)
    )
    return _Assigned(
        sides=(
            _Side(match, cosine, best, best_cosine, back_best[best] == np.arange(len(a))),
            _Side(back, back_cosine, back_best, back_best_cosine, best[back_best] == np.arange(len(b))),
        ),
        exact=lost is None,
        gap=(lost or 0.0) / len(a),
    )


def assign(
    a: Tensor, b: Tensor, candidates: int, exact_cosines: int, *, absolute: bool = False
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """The one-to-one matching of directions whose sum of cosines, or of absolute ones, is greatest.

    Parameters
    ----------
    a, b : Tensor
        Directions of any norm, `[n, d]` and `[m, d]` with `n` at most `m`.
    candidates, exact_cosines : int
        As for `match_latents`.
    absolute : bool
        Maximise absolute cosines.

    Returns
    -------
    match : ndarray
        A distinct row of `b` for each row of `a`.
    cosine : ndarray
        Their cosines, or absolute cosines.
    lost : float or None
        Upper bound on what their sum lacks; None if it is certainly the greatest.

    Examples
    --------
    >>> assign(torch.eye(3), -torch.eye(3)[[1, 0, 2]], 3, 9, absolute=True)
    (array([1, 0, 2]), array([1., 1., 1.], dtype=float32), None)
    """
    if len(a) * len(b) <= exact_cosines:
        products = (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).cpu().numpy()
        products = np.abs(products) if absolute else products
        rows, match = linear_sum_assignment(products, maximize=True)
        return match, products[rows, match], None

    graph, alone = _candidate_graph(a, b, min(candidates, len(a)), absolute)
    rows, match = min_weight_full_bipartite_matching(graph)
    cosine = (2 - graph[rows, match]).astype(np.float32)
    left = np.flatnonzero(match >= len(b))
    if not len(left):
        return match, cosine, None
    free = np.setdiff1d(np.arange(len(b)), match)
    places, cosine[left], _ = assign(a[left], b[free], candidates, exact_cosines, absolute=absolute)
    match[left] = free[places]
    return match, cosine, max(0.0, float((alone[left] - cosine[left]).sum()))


def _candidate_graph(a: Tensor, b: Tensor, k: int, absolute: bool) -> tuple[csr_array, np.ndarray]:
    """Costs (2 minus cosine) of the `k` best pairs of each row of both, and what going alone is worth.

    A row of `a` that stays alone has a separate column after those of `b`, worth its last candidate:
    at least as much as any pair that is not in the graph. Absolute cosines are those with `b` and with
    its opposite, whichever is greater, so the graph has the `k` best pairs of both.
    """
    n, m = len(a), len(b)
    keys, values, last = [], [], []
    for other in (b, -b) if absolute else (b,):
        found = cosines(a, other, k=k)
        up, up_index, down, down_index = (tensor[:, :k].cpu().numpy() for tensor in (*found.up, *found.down))
        keys += [
            np.arange(n).repeat(k) * m + up_index.ravel(),
            down_index.ravel() * m + np.arange(m).repeat(k),
        ]
        values += [up.ravel(), down.ravel()]
        last.append(up[:, -1].astype(np.float64))
    key, value = np.concatenate(keys), np.concatenate(values).astype(np.float64)
    best_first = np.argsort(-value, kind="stable")  # a pair that is there with both signs counts once
    pairs, first = np.unique(key[best_first], return_index=True)
    alone = np.maximum.reduce(last) - TIE
    # No cost is zero: in a sparse graph that would be no edge.
    costs = 2 - np.concatenate([value[best_first][first], alone])
    rows = np.concatenate([pairs // m, np.arange(n)])
    columns = np.concatenate([pairs % m, m + np.arange(n)])
    return csr_array((costs, (rows, columns)), shape=(n, m + n)), alone


def _frame(decoder: _Side, encoder: _Side, theta: float) -> pd.DataFrame:
    """Columns of `Matching.frame` that need no activations."""
    shared, near = decoder.cosine >= theta, decoder.best_cosine >= theta
    return pd.DataFrame(
        {
            "latent": range(len(decoder.match)),
            "match": decoder.match,
            "matched_cosine": decoder.cosine,
            "best_match": decoder.best,
            "best_cosine": decoder.best_cosine,
            "mutual_best": decoder.mutual,
            "encoder_match": encoder.match,
            "encoder_cosine": encoder.cosine,
            "status": np.select([shared, near], STATUSES[:2], default=STATUSES[2]),
        }
    )


# ---------------------------------------------------------------------- activations


class Products:
    """Sum over tokens of the activation of each latent times that of its partner, as part of a pass.

    Parameters
    ----------
    a, b : Dictionary
        The dictionaries.
    partner : Tensor
        Latent of `b` for each latent of `a`, -1 for none, int64 `[width of a]`.

    Attributes
    ----------
    total : Tensor
        Float64 `[width of a]`.
    """

    def __init__(self, a: Dictionary, b: Dictionary, partner: Tensor) -> None:
        self.a, self.b, self.partner = a, b, partner
        self.total = torch.zeros(a.width, dtype=torch.float64)

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        of_a, of_b = batch.latents(self.a), batch.latents(self.b)
        partner = self.partner.to(of_a.indices.device).index_select(0, of_a.indices)
        # Entries of a batch are in order of row and latent, so that a partner is looked up by bisection.
        there, wanted = of_b.rows * of_b.width + of_b.indices, of_a.rows * of_b.width + partner
        place = torch.searchsorted(there, wanted)
        both = F.pad(there, (0, 1), value=-1).index_select(0, place) == wanted
        both &= partner >= 0
        products = of_a.values[both].double() * of_b.values[place[both]].double()
        self.total += torch.bincount(of_a.indices[both], products, minlength=of_a.width).cpu()


class MatchedActivations:
    """Whether matched latents are active on the same tokens, as part of a pass that others share."""

    def __init__(self, a: Dictionary, b: Dictionary, result: Matching) -> None:
        self.a, self.b, self.result = a, b, result
        self._match = torch.from_numpy(result.frame["match"].to_numpy().copy())
        self._sides, self._products = (_Sums(a), _Sums(b)), Products(a, b, self._match)

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        for part in (*self._sides, self._products):
            part(batch)

    def finished(self, tokens: Tokens) -> Matching:
        """The matching with the sums, once the pass is over."""
        correlation, match = self._correlation(tokens.n_tokens), self._match.numpy()
        back = np.full(self.b.width, np.nan)
        back[match[match >= 0]] = correlation[match >= 0]
        frames = (
            frame.assign(density=density, dead=density == 0, correlation=values)
            for frame, density, values in zip(
                (self.result.frame, self.result.frame_b),
                (side.active.numpy() / tokens.n_tokens for side in self._sides),
                (correlation, back),
                strict=True,
            )
        )
        return replace(
            self.result,
            **dict(zip(("frame", "frame_b"), frames, strict=True)),
            n_tokens=tokens.n_tokens,
            n_excluded=tokens.n_excluded,
        )

    def _correlation(self, n: int) -> np.ndarray:
        """Pearson correlation of each latent's activations with those of its match, over all tokens.

        From the active entries alone: a token on which both are silent adds only to the number of
        tokens. NaN without a match, or where a latent does not vary.
        """
        match = self._match.numpy()
        matched = match >= 0
        means, spreads = [], []
        for side, which in zip(self._sides, (np.flatnonzero(matched), match[matched]), strict=True):
            means.append(side.values.numpy()[which] / n)
            spreads.append(side.squares.numpy()[which] / n - means[-1] ** 2)
        covariance = self._products.total.numpy()[matched] / n - means[0] * means[1]
        varies = (spreads[0] > 0) & (spreads[1] > 0)
        correlation = np.full(len(match), np.nan)
        correlation[np.flatnonzero(matched)[varies]] = covariance[varies] / np.sqrt(
            spreads[0][varies] * spreads[1][varies]
        )
        return correlation


class _Sums:
    """Each latent's active tokens, and the sums of its activations and of their squares, `[width]`."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.active = torch.zeros(dictionary.width, dtype=torch.long)
        self.values, self.squares = torch.zeros(2, dictionary.width, dtype=torch.float64)

    def __call__(self, batch: Batch) -> None:
        latents, width = batch.latents(self.dictionary), self.dictionary.width
        values = latents.values.double()
        self.active += torch.bincount(latents.indices, minlength=width).cpu()
        self.values += torch.bincount(latents.indices, values, minlength=width).cpu()
        self.squares += torch.bincount(latents.indices, values.square(), minlength=width).cpu()
