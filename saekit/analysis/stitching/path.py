"""Stitching: one dictionary turned into another in steps, with the error after every one of them.

Novel latents of the large dictionary are inserted; then its reconstruction latents are swapped, a
group at a time, for the latents of the small one that they resemble (Leask et al., ICLR 2025,
section on SAE stitching). The paper does not say how latents are grouped, in which order they
move, or what becomes of the decoder bias: what is done here is our reconstruction, with the
alternatives as options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import ActivationStore, batches_of
from saekit.analysis.similarity import CHUNK_ELEMENTS
from saekit.analysis.stitching.mixtures import PairStatistics, pair_statistics
from saekit.dictionary import ORIGIN, Dictionary
from saekit.family import Family
from saekit.metrics import Moments, ce_degradation, fvu
from saekit.results import Result
from saekit.sparse import SparseLatents

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

GROUPINGS = ("components", "best_match")
ORDERS = ("similarity", "static_gain", "greedy_gain", "random")
LOST = ("remove", "keep")
BIASES = ("small", "large", "interpolated")
NONE = np.zeros(0, dtype=np.int64)
NEVER = np.iinfo(np.int64).max  # the step of what does not move


# ---------------------------------------------------------------------- what moves


@dataclass(frozen=True, eq=False)
class Move:
    """Latents that move in one step.

    Attributes
    ----------
    phase : str
        `"insert"`, `"swap"` or `"remove"`.
    insert : ndarray
        Latents of the large dictionary that come in, ascending.
    remove : ndarray
        Latents of the small dictionary that go out, ascending.
    group : int
        Number of the group in a swap; -1 elsewhere.
    similarity : float
        Best cosine of the latent that comes in or goes out alone; mean cosine of the pairs of a
        group that reach theta.
    """

    phase: str
    insert: np.ndarray
    remove: np.ndarray
    group: int = -1
    similarity: float = float("nan")


def plan(
    small: Dictionary, large: Dictionary, *, theta: float = 0.7, grouping: str = "components"
) -> list[Move]:
    """The moves that turn the small dictionary into the large one, ordered by similarity.

    Large latents whose best cosine is under theta are novel and come in one by one, the most
    novel first; groups are swapped, the most similar first; small latents in no group are lost,
    and go out one by one, the least similar last.

    Parameters
    ----------
    small, large : Dictionary
        Of equal `d_in`.
    theta : float
        Cosine from which two latents resemble each other.
    grouping : {"components", "best_match"}
        A group is a connected component of the graph that joins every two latents that resemble
        each other, or a small latent with those large ones whose best match it is.

    Raises
    ------
    ValueError
        If there is no such grouping.
    """
    _one_of("grouping", grouping, GROUPINGS)
    graph, best, best_small = _similar_pairs(small, large, theta)
    if grouping == "best_match":
        pairs = graph.tocoo()
        keep = pairs.data == best[pairs.row]
        first = np.unique(pairs.row[keep], return_index=True)[1]  # of equal cosines, the lowest index
        rows, columns, cosines = (part[keep][first] for part in (pairs.row, pairs.col, pairs.data))
    else:
        pairs = graph.tocoo()
        rows, columns, cosines = pairs.row, pairs.col, pairs.data
    n = large.width + small.width
    joined = coo_array((np.ones(len(rows)), (rows, large.width + columns)), shape=(n, n))
    _, label = connected_components(joined, directed=False)
    in_group = np.zeros(n, dtype=bool)
    in_group[rows] = in_group[large.width + columns] = True

    novel = np.flatnonzero(~in_group[: large.width])
    lost = np.flatnonzero(~in_group[large.width :])
    moves = [
        Move("insert", np.array([i]), NONE, similarity=float(best[i]))
        for i in novel[np.lexsort((novel, best[novel]))]
    ]
    members = np.flatnonzero(in_group)
    labels, place = np.unique(label[members], return_inverse=True)
    total = np.bincount(np.searchsorted(labels, label[rows]), cosines, minlength=len(labels))
    similarity = total / np.bincount(np.searchsorted(labels, label[rows]), minlength=len(labels))
    by_group = np.split(members[np.argsort(place, kind="stable")], np.cumsum(np.bincount(place))[:-1])
    for group, which in enumerate(np.lexsort((np.arange(len(labels)), -similarity))):
        found = by_group[which]
        inside = found < large.width
        moves.append(
            Move("swap", found[inside], found[~inside] - large.width, group, float(similarity[which]))
        )
    moves += [
        Move("remove", NONE, np.array([i]), similarity=float(best_small[i]))
        for i in lost[np.lexsort((lost, -best_small[lost]))]
    ]
    return moves


def _similar_pairs(
    small: Dictionary, large: Dictionary, theta: float
) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """Cosines from theta on, `[large.width, small.width]`; the best of each large and small latent."""
    directions = F.normalize(small.W_dec, dim=1).T
    rows, columns, cosines, best = [], [], [], []
    best_small = torch.full((small.width,), -torch.inf, device=small.W_dec.device)
    chunk = max(1, CHUNK_ELEMENTS // small.width)
    for start, part in zip(range(0, large.width, chunk), large.W_dec.split(chunk), strict=True):
        found = F.normalize(part, dim=1) @ directions
        near = (found >= theta).nonzero()
        rows.append(near[:, 0] + start)
        columns.append(near[:, 1])
        cosines.append(found[near[:, 0], near[:, 1]])
        best.append(found.amax(1))
        best_small = torch.maximum(best_small, found.amax(0))
    data, i, j, of_large = (torch.cat(part).cpu().numpy() for part in (cosines, rows, columns, best))
    return csr_array((data, (i, j)), shape=(large.width, small.width)), of_large, best_small.cpu().numpy()


# ---------------------------------------------------------------------- the curve


@dataclass(frozen=True, eq=False, repr=False)
class Stitching(Result):
    """A path from a small dictionary to a large one.

    Attributes
    ----------
    statistics : PairStatistics
        The two dictionaries and what their mixtures' errors depend on.
    moves_made : tuple of Move
        In their order; the bias is not among them.
    bias : str
        When the decoder bias changes to the large dictionary's: `"small"`, in a last step of its
        own; `"large"`, in a first step; `"interpolated"`, with the share of latents that moved.
    frame : DataFrame
        One row a step, from step 0, the small dictionary alone. `step`; `phase` (`"start"`,
        `"insert"`, `"swap"`, `"remove"`, `"bias"`); `group`, `n_inserted`, `n_removed` and
        `similarity` of its `Move`; `n_small`, `n_large` and `width`, the latents of the mixture
        after it; `mse`, `mse_change` (by this step), `sum_of_single_changes` (of the step's latents,
        each moved alone from the state before it), `fvu`, `l0`.
    theta, grouping, order, lost, seed
        As given to `stitch`; None for a path of one's own.
    """

    _plot: ClassVar[str] = "stitching_curve"

    statistics: PairStatistics
    moves_made: tuple[Move, ...]
    bias: str
    frame: pd.DataFrame
    theta: float | None = None
    grouping: str | None = None
    order: str | None = None
    lost: str | None = None
    seed: int | None = None

    @property
    def small(self) -> Dictionary:
        """The dictionary that the path starts from."""
        return self.statistics.small

    @property
    def large(self) -> Dictionary:
        """The dictionary that it leads to."""
        return self.statistics.large

    @property
    def n_tokens(self) -> int:
        """Tokens used."""
        return self.statistics.n_tokens

    @property
    def n_excluded(self) -> int:
        """Positions left out."""
        return self.statistics.n_excluded

    @property
    def options(self) -> dict[str, Any]:
        """How the path was chosen."""
        return {name: getattr(self, name) for name in ("theta", "grouping", "order", "lost", "bias", "seed")}

    @property
    def n_steps(self) -> int:
        """Steps after the first row."""
        return len(self.frame) - 1

    @cached_property
    def _step_of_entry(self) -> np.ndarray:
        return _steps(self.statistics, self.moves_made, self.bias)[0]

    @cached_property
    def moves(self) -> pd.DataFrame:
        """One row a latent that moves: `step`, `side` (`"small"`, `"large"`), `latent`, `density`."""
        step, width = self._step_of_entry[: self.statistics.bias], self.small.width
        moved = np.flatnonzero(step != NEVER)
        moved = moved[np.lexsort((moved, step[moved]))]
        is_small = moved < width
        return pd.DataFrame(
            {
                "step": step[moved],
                "side": np.where(is_small, "small", "large"),
                "latent": np.where(is_small, moved, moved - width),
                "density": self.statistics.density[moved],
            }
        )

    @property
    def phases(self) -> pd.DataFrame:
        """One row a phase.

        `phase`, `first_step`, `last_step`, `n_inserted`, `n_removed`; `mse`, `fvu` and `l0` after it
        with `mse_before`, `fvu_before`, `l0_before`; `sum_of_single_changes` (of all its latents,
        each moved alone from the state before the phase) and `additivity` (the real change as a
        share of that sum: 1 if changes add up); `share_lowering` (of its steps that lower the
        error) and `monotone` (whether all do).
        """
        rows = []
        frame = self.frame
        for phase, part in frame[frame["phase"] != "start"].groupby("phase", sort=False):
            first, last = int(part["step"].iloc[0]), int(part["step"].iloc[-1])
            before, after = frame.iloc[first - 1], frame.iloc[last]
            single = self._single_changes(first, last)
            change = after["mse"] - before["mse"]
            rows.append(
                {
                    "phase": phase,
                    "first_step": first,
                    "last_step": last,
                    "n_inserted": int(part["n_inserted"].sum()),
                    "n_removed": int(part["n_removed"].sum()),
                    **{f"{name}_before": before[name] for name in ("mse", "fvu", "l0")},
                    **{name: after[name] for name in ("mse", "fvu", "l0")},
                    "sum_of_single_changes": single,
                    "additivity": change / single if single else float("nan"),
                    "share_lowering": float((part["mse_change"] < 0).mean()),
                    "monotone": bool((part["mse_change"] <= 0).all()),
                }
            )
        return pd.DataFrame(rows)

    def _single_changes(self, first: int, last: int) -> float:
        """Sum of the changes in MSE of all that moves in these steps, each alone before them."""
        s, step = self.statistics, self._step_of_entry
        inside = torch.from_numpy((step >= first) & (step <= last))
        both = inside.index_select(0, s.rows) & inside.index_select(0, s.columns)
        cross = float(s.weights[both].sum())
        change = self.frame["mse"].iloc[last] - self.frame["mse"].iloc[first - 1]
        return float(change - cross / s.n_tokens)

    @property
    def giant_share(self) -> float:
        """Share of the latents that are swapped in that come in with the largest group; NaN if none are."""
        sizes = [len(move.insert) for move in self.moves_made if move.phase == "swap"]
        return max(sizes) / sum(sizes) if sizes else float("nan")

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers.

        `small`, `large`, the options, `bias`, `n_tokens`, `n_excluded`, `n_steps`, `giant_share`;
        `n_novel`, `n_groups` and `n_lost`; `fvu_small`, `fvu_large`, `l0_small`, `l0_large`; FVU and L0
        after each phase as `fvu_<phase>` and `l0_<phase>`, with `share_lowering_<phase>`;
        `share_lowering` and `monotone` over all steps.
        """
        frame, phases = self.frame, self.phases
        changes = frame["mse_change"].iloc[1:]
        counts = frame["phase"].value_counts()
        return {
            "small": self.small.name,
            "large": self.large.name,
            **self.options,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "n_steps": self.n_steps,
            "giant_share": self.giant_share,
            "n_novel": int(counts.get("insert", 0)),
            "n_groups": int(counts.get("swap", 0)),
            "n_lost": int(counts.get("remove", 0)),
            **{
                f"{name}_{side}": self.references[side][name]
                for side in ("small", "large")
                for name in ("fvu", "l0")
            },
            **{
                f"{name}_{row['phase']}": row[name]
                for row in phases.to_dict("records")
                for name in ("fvu", "l0", "share_lowering")
            },
            "share_lowering": float((changes < 0).mean()),
            "monotone": bool((changes <= 0).all()),
        }

    @cached_property
    def references(self) -> dict[str, dict[str, float]]:
        """`mse`, `fvu` and `l0` of the `"small"` and the `"large"` dictionary alone."""
        s = self.statistics
        everything = _curve(
            s, [Move("swap", np.arange(s.large.width), np.arange(s.small.width))], "interpolated"
        )
        return {
            side: {name: float(everything[name].iloc[row]) for name in ("mse", "fvu", "l0")}
            for side, row in (("small", 0), ("large", -1))
        }

    def at(self, step: int) -> dict[str, Any]:
        """The row of a step as a dictionary, with the latents `inserted` and `removed` in it.

        Raises
        ------
        IndexError
            If there is no such step.
        """
        self._check(step)
        here = self._step_of_entry[: self.statistics.bias] == step
        moved, width = np.flatnonzero(here), self.small.width
        return {
            **self.frame.iloc[step].to_dict(),
            "inserted": (moved[moved >= width] - width).tolist(),
            "removed": moved[moved < width].tolist(),
        }

    def dictionary(self, step: int) -> Dictionary:
        """The stitched dictionary after a step: to evaluate, save and use like any other.

        The small dictionary's latents that are left, then the large one's that came in, both in
        their own order; so what has been swapped altogether is the large dictionary.

        Raises
        ------
        IndexError
            If there is no such step.
        """
        self._check(step)
        moved = self._step_of_entry <= step
        width, end = self.small.width, self.statistics.bias
        kept = self.small.gather(np.flatnonzero(~moved[:width]).tolist())
        come = self.large.gather(np.flatnonzero(moved[width:end]).tolist())
        alpha = _alpha(self.statistics, self.frame, self.bias)[step]
        b_dec = torch.lerp(self.small.b_dec, self.large.b_dec, float(alpha))
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(kept, name), getattr(come, name)])
            for name in ("b_enc", "W_dec", "threshold")
        }
        tensors["W_enc"] = torch.cat([kept.W_enc, come.W_enc], dim=1)
        origin = {
            name: value
            for name, value in self.small.info.items()
            if name in ORIGIN and self.large.info.get(name) == value
        }
        parents = {"small": self.small.content_hash, "large": self.large.content_hash}
        made_by = {**self.options, "step": int(step), **parents}
        return replace(come, **tensors, b_dec=b_dec, info={**origin, "kind": "stitched", "stitched": made_by})

    def _check(self, step: int) -> None:
        if not 0 <= step <= self.n_steps:
            raise IndexError(f"The curve has steps 0 to {self.n_steps}, found {step}.")


def stitch(
    small: Dictionary,
    large: Dictionary,
    activations: ActivationStore | Tensor | PairStatistics,
    *,
    theta: float = 0.7,
    grouping: str = "components",
    order: str = "similarity",
    lost: str = "remove",
    bias: str = "small",
    seed: int = 0,
) -> Stitching:
    """Turn a small dictionary into a large one, and measure FVU and L0 after every step.

    Parameters
    ----------
    small, large : Dictionary
        Latents of both must not depend on each other.
    activations : ActivationStore, Tensor or PairStatistics
        A store (its excluded positions are left out and counted), raw activations `[n, d_in]`, or
        what `pair_statistics` made of them for this pair: with these another path costs nothing.
    theta : float
        Cosine from which two latents resemble each other: under it to all small ones, a large
        latent is novel.
    grouping : {"components", "best_match"}
        See `plan`. Single links can join most latents into one component: see `giant_share`.
    order : {"similarity", "static_gain", "greedy_gain", "random"}
        Within a phase: by cosine (see `plan`); by the change in error that each move would make
        at the phase's start, best first; the move that is best at each step; at random.
    lost : {"remove", "keep"}
        Whether small latents that resemble no large one go out in the end, or stay.
    bias : {"small", "large", "interpolated"}
        When the decoder bias becomes the large dictionary's: last, first, or with the share of
        latents that have moved.
    seed : int
        Of the random order.

    Raises
    ------
    ValueError
        If a dictionary is TopK, there are no tokens, the statistics are of other dictionaries, or
        an option does not exist.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching. That latents are inserted and then swapped is
    the paper's; grouping, order, lost latents and bias are our reconstruction. Each is exact: the
    error of every step is that of the dictionary that `Stitching.dictionary` gives.
    """
    _one_of("order", order, ORDERS)
    _one_of("lost", lost, LOST)
    _one_of("bias", bias, BIASES)
    statistics = _statistics(small, large, activations)
    moves = plan(small, large, theta=theta, grouping=grouping)
    if lost == "keep":
        moves = [move for move in moves if move.phase != "remove"]
    if order == "random":
        random = np.random.default_rng(seed)
        moves = _within_phases(moves, lambda part, _: random.permutation(len(part)))
    elif order != "similarity":
        rank = _greedy if order == "greedy_gain" else _by_gain
        moves = _within_phases(moves, lambda part, done: rank(statistics, part, done, bias))
    found = curve(statistics, moves, bias=bias)
    return replace(found, theta=theta, grouping=grouping, order=order, lost=lost, seed=seed)


def curve(statistics: PairStatistics, moves: Sequence[Move], *, bias: str = "small") -> Stitching:
    """FVU and L0 along a path of your own.

    Parameters
    ----------
    statistics : PairStatistics
        Of the two dictionaries.
    moves : sequence of Move
        One a step.
    bias : {"small", "large", "interpolated"}
        See `stitch`.

    Raises
    ------
    ValueError
        If a move inserts a latent that is in already, removes one that is not there, or names one
        that does not exist.
    """
    _one_of("bias", bias, BIASES)
    return Stitching(statistics, tuple(moves), bias, _curve(statistics, moves, bias))


def _statistics(
    small: Dictionary, large: Dictionary, activations: ActivationStore | Tensor | PairStatistics
) -> PairStatistics:
    if not isinstance(activations, PairStatistics):
        return pair_statistics(small, large, activations)
    activations.small.identity.require(small.identity, "The statistics' small dictionary")
    activations.large.identity.require(large.identity, "The statistics' large dictionary")
    return activations


def _steps(s: PairStatistics, moves: Sequence[Move], bias: str) -> tuple[np.ndarray, int]:
    """The step at which each entry moves, int64 `[entries]`, and the last step."""
    first = 2 if bias == "large" else 1
    step = np.full(s.n_entries, NEVER, dtype=np.int64)
    for number, move in enumerate(moves, start=first):
        for what, latents, side, start in (
            ("removes", move.remove, s.small, 0),
            ("inserts", move.insert, s.large, s.small.width),
        ):
            latents = np.asarray(latents, dtype=np.int64)
            unknown = latents[(latents < 0) | (latents >= side.width)]
            if len(unknown):
                raise ValueError(
                    f"Step {number} {what} latent {unknown[0]}, which {side.name} does not have."
                )
            again = latents[step[start + latents] != NEVER]
            twice = again if len(again) else latents[np.bincount(latents, minlength=1)[latents] > 1]
            if len(twice):
                found = "is in already" if what == "inserts" else "is no longer there"
                raise ValueError(f"Step {number} {what} latent {twice[0]} of {side.name}, which {found}.")
            step[start + latents] = number
    last = first - 1 + len(moves)
    if bias == "large":
        step[s.bias] = 1
    elif bias == "small":
        last += 1
        step[s.bias] = last
    return step, last


def _curve(s: PairStatistics, moves: Sequence[Move], bias: str) -> pd.DataFrame:
    """The `frame` of a `Stitching`."""
    step, last = _steps(s, moves, bias)
    n, moved = last + 1, step <= last

    # A pair counts from the step on at which the second of the two has moved.
    at = torch.from_numpy(np.minimum(step, n).astype(np.int32))
    of_rows, of_columns = at.index_select(0, s.rows), at.index_select(0, s.columns)
    pairs = torch.bincount(torch.maximum(of_rows, of_columns), s.weights, minlength=n + 1)[:n].numpy()
    alone = np.bincount(step[moved], (s.diagonal - 2 * s.sign * s.linear)[moved], minlength=n)
    together = of_rows == of_columns
    within = torch.bincount(of_rows[together], s.weights[together], minlength=n + 1)[:n].numpy()
    l0 = np.bincount(step[moved], (s.sign * s.density)[moved], minlength=n)
    l0[0] = s.density[: s.small.width].sum()

    every = [Move("start", NONE, NONE), *moves]
    bias_move = Move("bias", NONE, NONE)
    if bias == "large":
        every.insert(1, bias_move)
    elif bias == "small":
        every.append(bias_move)
    frame = pd.DataFrame(
        {
            "step": range(n),
            "phase": [move.phase for move in every],
            "group": [move.group for move in every],
            "n_inserted": [len(move.insert) for move in every],
            "n_removed": [len(move.remove) for move in every],
            "similarity": [move.similarity for move in every],
        }
    )
    frame["n_small"] = s.small.width - frame["n_removed"].cumsum()
    frame["n_large"] = frame["n_inserted"].cumsum()
    frame["width"] = frame["n_small"] + frame["n_large"]
    sse = s.sse_small + np.cumsum(pairs + alone)
    if bias == "interpolated":
        sse += _interpolation(s, step, _alpha(s, frame, bias))
    frame["mse"] = sse / s.n_tokens
    frame["mse_change"] = frame["mse"].diff().fillna(0.0)
    frame["sum_of_single_changes"] = frame["mse_change"] - within / s.n_tokens
    frame["fvu"] = sse / s.total_variance
    frame["l0"] = np.cumsum(l0)
    return frame


def _alpha(s: PairStatistics, frame: pd.DataFrame, bias: str) -> np.ndarray:
    """Share of the decoder bias that is the large dictionary's after each step."""
    if bias == "interpolated":
        moved = (frame["n_inserted"] + frame["n_removed"]).cumsum().to_numpy()
        return moved / (s.small.width + s.large.width)
    return (frame["phase"] == "bias").cumsum().to_numpy().astype(float)


def _interpolation(s: PairStatistics, step: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What a share `alpha` of the bias adds to the squared error after each step."""
    row, with_bias = np.zeros(s.n_entries), s.columns == s.bias
    row[s.rows[with_bias].numpy()] = s.weights[with_bias].numpy()
    moved = step < len(alpha)
    crossing = np.cumsum(np.bincount(step[moved], row[moved], minlength=len(alpha)))
    return alpha * (crossing - 2 * s.linear[s.bias]) + alpha**2 * s.diagonal[s.bias]


# ---------------------------------------------------------------------- orders


def _within_phases(
    moves: Sequence[Move], rank: Callable[[list[Move], list[Move]], Sequence[int] | np.ndarray]
) -> list[Move]:
    """The moves with each phase's reordered, given what was done before it."""
    done: list[Move] = []
    for phase in dict.fromkeys(move.phase for move in moves):
        part = [move for move in moves if move.phase == phase]
        done += [part[place] for place in rank(part, done)]
    return done


def _gains(
    s: PairStatistics, part: Sequence[Move], done: Sequence[Move], bias: str
) -> tuple[np.ndarray, csr_array]:
    """What each move would do to the squared error now, and how much each changes the others' doing."""
    shape = (s.n_entries, len(part))
    entries = [np.concatenate([move.remove, s.small.width + move.insert]) for move in part]
    of = np.repeat(np.arange(len(part)), [len(found) for found in entries])
    entry = np.concatenate(entries) if entries else np.zeros(0, dtype=np.int64)
    incidence = csr_array((s.sign[entry], (entry, of)), shape=shape)
    state = np.zeros(s.n_entries)
    for move in done:
        state[move.remove], state[s.small.width + move.insert] = -1.0, 1.0
    state[s.bias] = float(bias == "large")
    slope = 2 * (s.symmetric @ state - s.linear)
    between = (incidence.T @ s.symmetric @ incidence).tocsr()
    return incidence.T @ slope + between.diagonal(), between


def _by_gain(s: PairStatistics, part: Sequence[Move], done: Sequence[Move], bias: str) -> np.ndarray:
    gains, _ = _gains(s, part, done, bias)
    return np.argsort(gains, kind="stable")


def _greedy(s: PairStatistics, part: Sequence[Move], done: Sequence[Move], bias: str) -> list[int]:
    gains, between = _gains(s, part, done, bias)
    order: list[int] = []
    for _ in part:
        best = int(np.argmin(gains))
        order.append(best)
        row = slice(between.indptr[best], between.indptr[best + 1])
        gains[between.indices[row]] += 2 * between.data[row]
        gains[best] = np.inf
    return order


def random_orders(stitching: Stitching, *, n: int = 10, seed: int = 0) -> pd.DataFrame:
    """The same moves in random orders within their phases: a control.

    Returns
    -------
    DataFrame
        `draw`, `step`, `phase`, `width`, `fvu`, `l0`.
    """
    random = np.random.default_rng(seed)
    parts = []
    for draw in range(n):
        moves = _within_phases(stitching.moves_made, lambda part, _: random.permutation(len(part)))
        frame = _curve(stitching.statistics, moves, stitching.bias)
        parts.append(frame[["step", "phase", "width", "fvu", "l0"]].assign(draw=draw))
    return pd.concat(parts, ignore_index=True)[["draw", "step", "phase", "width", "fvu", "l0"]]


# ---------------------------------------------------------------------- at equal sparsity, in cross-entropy


def matched_l0(
    dictionary: Dictionary, activations: ActivationStore | Tensor, l0: float
) -> tuple[Dictionary, float]:
    """The dictionary with one more threshold for all its latents, raised until L0 is at most `l0`.

    Parameters
    ----------
    dictionary : Dictionary
        Its latents must not depend on each other.
    activations : ActivationStore or Tensor
        Tokens to match on.
    l0 : float
        Mean number of active latents a token to come down to.

    Returns
    -------
    Dictionary, float
        Each latent's threshold is at least the second value, which is the least that does; 0 if L0 is
        low enough as it is.

    Raises
    ------
    ValueError
        If the dictionary is TopK or there are no tokens.
    """
    dictionary.require_independent("Raising thresholds")
    values, n_tokens = [], 0
    for _, x in batches_of(activations, 4096, device=dictionary.W_enc.device):
        values.append(dictionary.encode_sparse(x).values)
        n_tokens += len(x)
    if not n_tokens:
        raise ValueError("There are no activations to match L0 on: every position is excluded.")
    threshold = _global_threshold(torch.cat(values), round(l0 * n_tokens))
    return replace(dictionary, threshold=dictionary.threshold.clamp(min=threshold)), threshold


def _global_threshold(values: Tensor, n: int) -> float:
    """The least value that at most `n` of the values exceed; 0 if no more than `n` are there."""
    if len(values) <= n:
        return 0.0
    return float(values.kthvalue(len(values) - n).values)


def matched_curve(
    stitching: Stitching, activations: ActivationStore | Tensor, *, n_points: int = 12
) -> pd.DataFrame:
    """FVU at the small dictionary's L0, at steps spread evenly over the curve: a control.

    Inserting latents raises L0, and with it alone the error falls: here one more threshold for all
    latents is raised until L0 is the small dictionary's again.

    Parameters
    ----------
    stitching : Stitching
        A curve.
    activations : ActivationStore or Tensor
        The tokens that it was measured on.
    n_points : int
        Steps to look at; the ends of phases are among them.

    Returns
    -------
    DataFrame
        `step`, `phase`, `width`, `l0`, `fvu`, `threshold`, `l0_matched`, `fvu_matched`.
    """
    s = stitching.statistics
    steps = np.linspace(0, stitching.n_steps, n_points).round().astype(int)
    steps = np.unique([*steps, *stitching.phases["last_step"]])
    entries, last = s.latents, stitching._step_of_entry
    is_small = torch.arange(s.n_entries) < s.small.width
    directions = torch.cat([s.small.W_dec, s.large.W_dec, (s.large.b_dec - s.small.b_dec)[None]]).cpu()
    alphas = _alpha(s, stitching.frame, stitching.bias)

    kept = {}
    for step in steps:
        inside = torch.from_numpy(last <= step) ^ is_small
        active = inside[entries.indices]
        threshold = _global_threshold(
            entries.values[active], round(stitching.frame["l0"].iloc[0] * s.n_tokens)
        )
        kept[step] = active & (entries.values > threshold), threshold
    errors, moments, place = dict.fromkeys(steps, 0.0), Moments(s.small.d_in), 0
    for _, x in batches_of(activations, 4096):
        moments.update(x)
        rows = slice(place, place + len(x))
        first, end = (int(entries.offsets[p]) for p in (rows.start, rows.stop))
        batch = SparseLatents(
            entries.offsets[rows.start : rows.stop + 1] - first,
            entries.indices[first:end],
            entries.values[first:end],
            s.n_entries,
        )
        for step, (keep, _) in kept.items():
            b_dec = torch.lerp(s.small.b_dec, s.large.b_dec, float(alphas[step])).cpu()
            residual = x - b_dec - batch.where(keep[first:end]).matmul(directions)
            errors[step] += float(residual.double().square().sum())
        place += len(x)
    if place != s.n_tokens:
        raise ValueError(f"The curve was measured on {s.n_tokens} tokens, found {place}.")
    frame = stitching.frame.iloc[steps][["step", "phase", "width", "l0", "fvu"]].reset_index(drop=True)
    return frame.assign(
        threshold=[kept[step][1] for step in steps],
        l0_matched=[int(kept[step][0].sum()) / s.n_tokens for step in steps],
        fvu_matched=[fvu(errors[step], moments.total_variance) for step in steps],
    )


def ce_curve(
    model: TransformerBridge,
    stitching: Stitching,
    store: ActivationStore,
    *,
    steps: Sequence[int] | None = None,
    max_rows: int = 16,
    progress: bool = False,
) -> pd.DataFrame:
    """CE degradation of the stitched dictionary at chosen steps, by real forward passes.

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    stitching : Stitching
        A curve.
    store : ActivationStore
        Tokens to run.
    steps : sequence of int, optional
        The start and the end of each phase if left out.
    max_rows : int
        Rows of tokens, spread evenly over the store.
    progress : bool
        Show a progress bar in rows.

    Returns
    -------
    DataFrame
        `step`, `phase`, `width`, `fvu`, `l0`, `ce_degradation` (nats per token), `ce_degradation_error` (its
        standard error over rows), `loss_recovered_zero`.
    """
    if steps is None:
        steps = [0, *stitching.phases["last_step"]]
    found = ce_degradation(
        model,
        [stitching.dictionary(int(step)) for step in steps],
        store,
        max_rows=max_rows,
        everywhere=False,
        progress=progress,
    )
    frame = stitching.frame.iloc[list(steps)][["step", "phase", "width", "fvu", "l0"]].reset_index(drop=True)
    columns = ["ce_degradation", "ce_degradation_error", "loss_recovered_zero"]
    return pd.concat([frame, found.frame[columns].reset_index(drop=True)], axis=1)


# ---------------------------------------------------------------------- a whole family


@dataclass(frozen=True, eq=False, repr=False)
class StitchingChain(Result):
    """A whole family stitched together, each width into the next.

    Attributes
    ----------
    stitchings : tuple of Stitching
        Of neighbouring widths, smallest first.
    """

    stitchings: tuple[Stitching, ...]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All steps: `pair`, `small_width`, `large_width`, the columns of `Stitching.frame`.

        `chain_step` counts on from pair to pair; where one pair ends the next one starts.
        """
        parts, start = [], 0
        for stitching in self.stitchings:
            small, large = stitching.small.width, stitching.large.width
            parts.append(
                stitching.frame.assign(
                    pair=f"{small} → {large}",
                    small_width=small,
                    large_width=large,
                    chain_step=stitching.frame["step"] + start,
                )
            )
            start += stitching.n_steps
        frame = pd.concat(parts, ignore_index=True)
        first = ["pair", "small_width", "large_width", "chain_step"]
        return frame[[*first, *frame.columns.drop(first)]]

    @property
    def table(self) -> pd.DataFrame:
        """The summary of each pair, a row each."""
        return pd.DataFrame([stitching.summary for stitching in self.stitchings])

    @property
    def summary(self) -> dict[str, Any]:
        """`widths`, and by pair whether the error falls monotonically and in which share of steps."""
        return {
            "widths": [self.stitchings[0].small.width, *(s.large.width for s in self.stitchings)],
            "share_lowering": {
                f"{s.small.width} → {s.large.width}": s.summary["share_lowering"] for s in self.stitchings
            },
            "monotone": all(s.summary["monotone"] for s in self.stitchings),
        }


def stitch_chain(
    family: Family,
    activations: ActivationStore | Tensor,
    *,
    progress: bool = False,
    **options: Any,
) -> StitchingChain:
    """Stitch each width of a family into the next one.

    Parameters
    ----------
    family : Family
        At least two widths.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    progress : bool
        Show a progress bar in pairs.
    **options
        Of `stitch`.

    Raises
    ------
    ValueError
        If the family has fewer than two widths.
    """
    n_pairs = len(family.widths) - 1
    if not n_pairs:
        raise ValueError(f"A chain needs at least two widths, found {family.widths}.")
    return StitchingChain(
        tuple(
            stitch(small, large, activations, **options)
            for small, large in tqdm(
                family.pairs(), total=n_pairs, disable=not progress, unit="pair", desc="stitching"
            )
        )
    )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}.")
