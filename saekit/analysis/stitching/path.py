"""Stitching: one dictionary turned into another in steps, with the error after every one of them.

Novel latents of the large dictionary are inserted; then its reconstruction latents are swapped, a
group at a time, for the latents of the small one that they resemble (Leask et al., ICLR 2025,
section on SAE stitching). The paper does not specify how latents are grouped, in which order they
move, or what becomes of the decoder bias: this is our reconstruction, with the alternatives as
options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from saekit import settings
from saekit.activations import Activations
from saekit.analysis.similarity import check_order, cosines
from saekit.analysis.stitching.mixtures import (
    NEVER,
    Floats,
    Following,
    Integers,
    Mixtures,
    PairStatistics,
    Path,
    PathErrors,
    Streamed,
    pair_statistics,
)
from saekit.cache import cached
from saekit.dictionary import Dictionary, origin_of, require_dictionaries
from saekit.family import Family
from saekit.moments import fvu
from saekit.passes import Batch, Measured, Tokens, one_pass
from saekit.results import Result
from saekit.selection import select_latents

GROUPINGS = ("components", "best_match")
ORDERS = ("similarity", "static_gain", "greedy_gain", "random")
LOST = ("remove", "keep")
BIASES = ("small", "large", "interpolated")
NONE = np.zeros(0, dtype=np.int64)


# ---------------------------------------------------------------------- what moves


@dataclass(frozen=True, eq=False)
class Move:
    """Latents that move in one step.

    Attributes
    ----------
    phase : str
        `"insert"`, `"swap"` or `"remove"`.
    insert : ndarray
        Latents of the large dictionary that come in, int64.
    remove : ndarray
        Latents of the small dictionary that go out, int64.
    group : int
        Number of the group in a swap; -1 elsewhere.
    similarity : float
        Best cosine of the latent that comes in or goes out alone; mean cosine of the pairs of a
        group that reach theta.
    """

    phase: str
    insert: Integers
    remove: Integers
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
        If `small` is wider than `large`, theta is not a cosine from 0 to 1, or there is no such
        grouping.

    Examples
    --------
    >>> first = plan(small, large)[0]
    >>> first.phase, first.insert, first.remove
    ('swap', array([2, 8]), array([2]))
    >>> phases = [move.phase for move in plan(small, large, theta=0.99)]
    >>> [phases.count(phase) for phase in ("insert", "swap", "remove")]
    [5, 7, 1]
    """
    theta = settings.cosine("theta", theta)
    grouping = settings.choice("grouping", grouping, GROUPINGS)
    check_order(small, large)
    if not small.width:
        raise ValueError(f"{small.name} holds no latents to compare directions with.")
    floor = theta if grouping == "components" else math.inf
    found = cosines(large.W_dec, small.W_dec, floor=floor)
    best, match, best_small = (part[:, 0].cpu().numpy() for part in (*found.up, found.down[0]))
    if grouping == "best_match":
        rows = np.flatnonzero(best >= theta)
        columns, similarities = match[rows], best[rows]
    else:
        pairs = found.above.tocoo()
        near = pairs.data >= theta
        rows, columns, similarities = pairs.row[near], pairs.col[near], pairs.data[near]
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
    total = np.bincount(np.searchsorted(labels, label[rows]), similarities, minlength=len(labels))
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


# ---------------------------------------------------------------------- the curve


@dataclass(frozen=True, eq=False, repr=False)
class Stitching(Measured, Result):
    """A path from a small dictionary to a large one.

    Attributes
    ----------
    mixtures : Mixtures
        The two dictionaries and what their mixtures' errors depend on.
    moves_made : tuple of Move
        The moves, in order; the bias is not among them.
    bias : str
        When the decoder bias changes to the large dictionary's: `"small"`, in a separate last step;
        `"large"`, in a first step; `"interpolated"`, with the share of latents that moved.
    frame : DataFrame
        One row per step, from step 0, the small dictionary alone. `step`; `phase` (`"start"`,
        `"insert"`, `"swap"`, `"remove"`, `"bias"`); `group`, `n_inserted`, `n_removed` and
        `similarity` of its `Move`; `n_small`, `n_large` and `width`, the latents of the mixture
        after it; `mse`, `mse_change` (by this step), `sum_of_single_changes` (of the step's latents,
        each moved alone from the state before it), `fvu`, `l0`.
    within_phases : mapping
        By phase, how far its change in MSE is from the sum of what each of its latents would do
        alone at its start.
    theta, grouping, order, lost, seed
        As given to `stitch`; None for a path of your own.
    """

    _plot: ClassVar[str] = "stitching_curve"

    mixtures: Mixtures
    moves_made: tuple[Move, ...]
    bias: str
    frame: pd.DataFrame
    within_phases: dict[str, float]
    theta: float | None = None
    grouping: str | None = None
    order: str | None = None
    lost: str | None = None
    seed: int | None = None

    @property
    def small(self) -> Dictionary:
        """The dictionary that the path starts from."""
        return self.mixtures.small

    @property
    def large(self) -> Dictionary:
        """The dictionary that it leads to."""
        return self.mixtures.large

    @property
    def tokens(self) -> Tokens:
        """The tokens that it is measured on."""
        return self.mixtures.totals.tokens

    @property
    def options(self) -> dict[str, Any]:
        """How the path was chosen."""
        return {name: getattr(self, name) for name in ("theta", "grouping", "order", "lost", "bias", "seed")}

    @property
    def n_steps(self) -> int:
        """Steps after the first row."""
        return len(self.frame) - 1

    @cached_property
    def _path(self) -> Path:
        return _path(self.mixtures, self.moves_made, self.bias)

    @cached_property
    def moves(self) -> pd.DataFrame:
        """One row per latent that moves: `step`, `side` (`"small"`, `"large"`), `latent`, `density`."""
        step, width = self._path.step, self.small.width
        moved = np.flatnonzero(step != NEVER)
        moved = moved[np.lexsort((moved, step[moved]))]
        is_small = moved < width
        return pd.DataFrame(
            {
                "step": step[moved],
                "side": np.where(is_small, "small", "large"),
                "latent": np.where(is_small, moved, moved - width),
                "density": self.mixtures.density[moved],
            }
        )

    @property
    def phases(self) -> pd.DataFrame:
        """One row per phase.

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
            change = after["mse"] - before["mse"]
            single = change - self.within_phases.get(str(phase), 0.0)
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

    @property
    def giant_share(self) -> float:
        """Share of the latents swapped in that belong to the largest group; NaN if there are none."""
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
            **dict(zip(("small", "large"), map(str, self.mixtures.identities), strict=True)),
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
        totals, density = self.mixtures.totals, self.mixtures.density
        width = self.small.width
        sides = (("small", totals.sse_small, density[:width]), ("large", totals.sse_large, density[width:]))
        return {
            side: {
                "mse": sse / self.n_tokens,
                "fvu": fvu(sse, totals.tokens.total_variance),
                "l0": float(active.sum()),
            }
            for side, sse, active in sides
        }

    def at(self, step: int) -> dict[str, Any]:
        """The row of a step as a dictionary, with the latents `inserted` and `removed` in it.

        Raises
        ------
        ValueError
            If there is no such step.
        """
        step = self._check(step)
        moved, width = np.flatnonzero(self._path.step == step), self.small.width
        return {
            **self.frame.iloc[step].to_dict(),
            "inserted": (moved[moved >= width] - width).tolist(),
            "removed": moved[moved < width].tolist(),
        }

    def dictionary(self, step: int) -> Dictionary:
        """The stitched dictionary after a step: to evaluate, save and use like any other.

        The small dictionary's latents that are left, then the large one's that came in, both in
        their own order; so once everything has been swapped it is the large dictionary.

        Raises
        ------
        ValueError
            If there is no such step, or the tensors of the two have changed since they were stitched.
        """
        step = self._check(step)
        self.mixtures.require_unchanged()
        moved, width = self._path.step <= step, self.small.width
        kept, come = self.small.gather(~moved[:width]), self.large.gather(moved[width:])
        b_dec = self.bias_at(step)
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(kept, name), getattr(come, name)])
            for name in ("b_enc", "W_dec", "threshold")
        }
        tensors["W_enc"] = torch.cat([kept.W_enc, come.W_enc], dim=1)
        origin = origin_of(self.small.info, self.large.info)
        parents = {"small": self.small.content_hash, "large": self.large.content_hash}
        made_by = {**self.options, "step": step, **parents}
        skip = self.skip_at(step)
        tensors |= {"b_dec": b_dec, **({} if skip is None else {"W_skip": skip})}
        return replace(come, **tensors, info={**origin, "kind": "stitched", "stitched": made_by})

    def bias_at(self, step: int) -> Tensor:
        """The decoder bias of the mixture after a step, `[d_in]`."""
        share = _bias_share(self.mixtures, self.frame, self.bias)[self._check(step)]
        return torch.lerp(self.small.b_dec, self.large.b_dec, float(share))

    def skip_at(self, step: int) -> Tensor | None:
        """The skip connection of the mixture after a step, which changes with the bias; None without one."""
        if self.mixtures.skips is None:
            return None
        share = float(_bias_share(self.mixtures, self.frame, self.bias)[self._check(step)])
        empty = self.small.W_enc.new_zeros(self.small.d_in, self.small.d_out)
        before, after = (d.tensors().get("W_skip", empty) for d in self.mixtures.skips)
        return torch.lerp(before, after, share)

    def inside(self, step: int) -> Tensor:
        """Which latents the mixture holds after a step, the small ones first, Boolean `[latents]`."""
        moved = torch.from_numpy(self._path.step <= self._check(step))
        return moved ^ (torch.arange(len(moved)) < self.small.width)

    def _check(self, step: int) -> int:
        return settings.whole("step", step, at_least=0, at_most=self.n_steps)


@cached
def stitch(
    small: Dictionary,
    large: Dictionary,
    activations: Activations | PairStatistics,
    *,
    theta: float = 0.7,
    grouping: str = "components",
    order: str = "similarity",
    lost: str = "remove",
    bias: str = "small",
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Stitching:
    """Turn a small dictionary into a large one, and measure FVU and L0 after every step.

    Parameters
    ----------
    small, large : Dictionary
        Latents of both must not depend on each other.
    activations : ActivationStore, Tensor, array or PairStatistics
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`,
        which are summed in the memory of a batch; or what `pair_statistics` made of them for this
        pair, so that another path costs no further pass.
    theta : float
        Cosine from which two latents resemble each other: under it to all small ones, a large
        latent is novel.
    grouping : {"components", "best_match"}
        See `plan`. Single links can join most latents into one component: see `giant_share`.
    order : {"similarity", "static_gain", "greedy_gain", "random"}
        Within a phase: by cosine (see `plan`); by the change in error that each move would make
        at the phase's start, best first; the move that is best at each step, which needs
        `pair_statistics` and makes them; at random.
    lost : {"remove", "keep"}
        Whether small latents that resemble no large one go out in the end, or stay.
    bias : {"small", "large", "interpolated"}
        When the decoder bias becomes the large dictionary's: last, first, or with the share of
        latents that have moved.
    seed : int
        Seed of the random order.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If a dictionary is TopK, `small` is wider than `large`, the inputs do not belong together,
        there are no tokens or they do not vary, the statistics are of other dictionaries, or an option
        does not exist.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching. Inserting and then swapping is the paper's
    procedure; grouping, order, lost latents and bias are our reconstruction. Each is exact: the error
    of every step is that of the dictionary that `Stitching.dictionary` gives.

    Examples
    --------
    >>> result = saekit.stitch(small, large, x)
    >>> result.frame.groupby("phase", sort=False).size().to_dict()
    {'start': 1, 'swap': 6, 'bias': 1}
    >>> result.dictionary(result.n_steps).width
    12
    """
    return StitchingPass(
        small,
        large,
        activations,
        theta=theta,
        grouping=grouping,
        order=order,
        lost=lost,
        bias=bias,
        seed=seed,
        progress=progress,
        allow_mismatch=allow_mismatch,
    ).measured()


class StitchingPass:
    """`stitch` as a part of a pass that others share: its plan is made, its curve to be added up.

    Takes what `stitch` takes, and refuses what it refuses. The order by static gain goes over the
    tokens to be made, and the greedy one makes `pair_statistics`, which are dropped after it.
    """

    def __init__(
        self,
        small: Dictionary,
        large: Dictionary,
        activations: Activations | PairStatistics,
        *,
        theta: float = 0.7,
        grouping: str = "components",
        order: str = "similarity",
        lost: str = "remove",
        bias: str = "small",
        seed: int = 0,
        progress: bool = False,
        allow_mismatch: bool = False,
    ) -> None:
        require_dictionaries(small=small, large=large)
        self.chosen: dict[str, Any] = {
            "theta": settings.cosine("theta", theta),
            "grouping": settings.choice("grouping", grouping, GROUPINGS),
            "order": settings.choice("order", order, ORDERS),
            "lost": settings.choice("lost", lost, LOST),
            "seed": settings.whole("seed", seed, at_least=0),
        }
        self.bias = settings.choice("bias", bias, BIASES)
        options: dict[str, Any] = {"progress": progress, "allow_mismatch": allow_mismatch}
        self.mixtures: Mixtures
        if isinstance(activations, PairStatistics):
            activations.require(small, large)
            self.mixtures = activations
        else:
            self.mixtures = Streamed(small, large, activations, **options)
        moves = plan(small, large, theta=theta, grouping=grouping)
        if lost == "keep":
            moves = [move for move in moves if move.phase != "remove"]
        if order == "random":
            moves = shuffled(moves, np.random.default_rng(seed))
        elif order == "static_gain":
            moves = _by_gain(self.mixtures, moves, bias)
        elif order == "greedy_gain":  # every step depends on how it interacts with those before it
            statistics = (
                activations
                if isinstance(activations, PairStatistics)
                else pair_statistics(small, large, activations, **options)
            )
            moves = _greedily(statistics, moves, bias)
        self.moves = moves
        self._path = _path(self.mixtures, moves, self.bias)

    @cached_property
    def _following(self) -> Following:
        assert isinstance(self.mixtures, Streamed)
        return Following(self.mixtures, self._path)

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        self._following(batch)

    def finished(self, tokens: Tokens) -> Stitching:
        """The curve, once the pass is over."""
        self._following.finished(tokens)
        return self._stitching(*self._following.errors)

    def measured(self) -> Stitching:
        """The curve, from a separate pass, or from the given statistics."""
        return self._stitching(*self.mixtures.along(self._path))

    def _stitching(self, errors: PathErrors) -> Stitching:
        found = _stitching(self.mixtures, self.moves, self.bias, self._path, errors)
        return replace(found, **self.chosen)


def curve(mixtures: Mixtures, moves: Sequence[Move], *, bias: str = "small") -> Stitching:
    """FVU and L0 along a path of your own.

    Parameters
    ----------
    mixtures : Mixtures
        Mixtures of the two dictionaries: `Streamed` or `pair_statistics`.
    moves : sequence of Move
        One per step; their latents may be given in any way that
        `saekit.selection.select_latents` takes.
    bias : {"small", "large", "interpolated"}
        See `stitch`.

    Raises
    ------
    IndexError, TypeError, ValueError
        If a move inserts a latent that is in already, removes one that is not there, or names one
        that does not exist.

    Examples
    --------
    >>> pair = saekit.pair_statistics(small, large, x)
    >>> insert_two = [Move("insert", insert=[latent], remove=[]) for latent in (6, 7)]
    >>> curve(pair, insert_two).frame
       step   phase  group  ...  sum_of_single_changes       fvu     l0
    0     0   start     -1  ...               0.000000  0.594922  1.795
    1     1  insert     -1  ...               1.412270  1.308469  2.170
    2     2  insert     -1  ...               1.914425  2.275729  2.590
    3     3    bias     -1  ...               0.000000  2.275729  2.590
    <BLANKLINE>
    [4 rows x 14 columns]
    """
    bias = settings.choice("bias", bias, BIASES)
    selected = []
    for step, move in enumerate(moves, start=2 if bias == "large" else 1):
        come = select_latents(move.insert, mixtures.large.width, what=f"The latents that step {step} inserts")
        go = select_latents(move.remove, mixtures.small.width, what=f"The latents that step {step} removes")
        selected.append(replace(move, insert=come.numpy(), remove=go.numpy()))
    return curves(mixtures, [selected], bias)[0]


def curves(mixtures: Mixtures, orders: Sequence[Sequence[Move]], bias: str) -> list[Stitching]:
    """FVU and L0 along several paths, in one pass over the tokens where they are streamed.

    Examples
    --------
    >>> moves = plan(small, large)
    >>> first, second = curves(saekit.pair_statistics(small, large, x), [moves, moves[::-1]], "small")
    >>> first.n_steps == second.n_steps
    True
    """
    mixtures.require_unchanged()
    paths = [_path(mixtures, moves, bias) for moves in orders]
    return [
        _stitching(mixtures, moves, bias, path, errors)
        for moves, path, errors in zip(orders, paths, mixtures.along(*paths), strict=True)
    ]


def _stitching(
    mixtures: Mixtures, moves: Sequence[Move], bias: str, path: Path, errors: PathErrors
) -> Stitching:
    n_tokens = mixtures.totals.tokens.n_tokens
    within = {phase: float(errors.within_phases[n]) / n_tokens for n, phase in enumerate(_phases(moves))}
    return Stitching(mixtures, tuple(moves), bias, _frame(mixtures, moves, bias, path, errors), within)


def _phases(moves: Sequence[Move]) -> list[str]:
    """Their phases, in order."""
    return list(dict.fromkeys(move.phase for move in moves))


def _path(mixtures: Mixtures, moves: Sequence[Move], bias: str) -> Path:
    """The step at which each latent moves, and each step's phase."""
    first = 2 if bias == "large" else 1
    step = np.full(mixtures.n_latents, NEVER, dtype=np.int64)
    width = mixtures.small.width
    for verb, dictionary, of, latents, why in (
        ("inserts", mixtures.large, step[width:], [move.insert for move in moves], "is in already"),
        ("removes", mixtures.small, step[:width], [move.remove for move in moves], "is no longer there"),
    ):
        at = np.repeat(np.arange(first, first + len(moves)), [len(part) for part in latents])
        every = np.concatenate([NONE, *latents])
        again = np.ones(len(every), dtype=bool)
        again[np.unique(every, return_index=True)[1]] = False
        if again.any():
            place = int(np.argmax(again))
            raise ValueError(
                f"Step {at[place]} {verb} latent {every[place]} of {dictionary.name}, which {why}."
            )
        of[every] = at
    number = {phase: place for place, phase in enumerate(_phases(moves))}
    phases = [number[move.phase] for move in moves]
    if phases != sorted(phases):
        raise ValueError("The moves of a phase must follow each other.")
    phase = [0] * first + phases + [max(len(number) - 1, 0)] * (bias == "small")
    return Path(step, np.array(phase, dtype=np.int64))


def _frame(
    mixtures: Mixtures, moves: Sequence[Move], bias: str, path: Path, errors: PathErrors
) -> pd.DataFrame:
    """The `frame` of a `Stitching`."""
    every = [Move("start", NONE, NONE), *moves]
    bias_move = Move("bias", NONE, NONE)
    if bias == "large":
        every.insert(1, bias_move)
    elif bias == "small":
        every.append(bias_move)
    frame = pd.DataFrame(
        {
            "step": range(path.n),
            "phase": [move.phase for move in every],
            "group": [move.group for move in every],
            "n_inserted": [len(move.insert) for move in every],
            "n_removed": [len(move.remove) for move in every],
            "similarity": [move.similarity for move in every],
        }
    )
    frame["n_small"] = mixtures.small.width - frame["n_removed"].cumsum()
    frame["n_large"] = frame["n_inserted"].cumsum()
    frame["width"] = frame["n_small"] + frame["n_large"]
    totals = mixtures.totals
    sse = mixtures.with_bias(errors.sse, path, _bias_share(mixtures, frame, bias))
    frame["mse"] = sse / totals.tokens.n_tokens
    frame["mse_change"] = frame["mse"].diff().fillna(0.0)
    frame["sum_of_single_changes"] = frame["mse_change"] - errors.within_steps / totals.tokens.n_tokens
    variance = totals.tokens.total_variance
    frame["fvu"] = [fvu(error, variance) for error in sse.tolist()]
    moved = path.step < path.n
    l0 = np.bincount(path.step[moved], (mixtures.sign * mixtures.density)[moved], minlength=path.n)
    l0[0] = mixtures.density[: mixtures.small.width].sum()
    frame["l0"] = np.cumsum(l0)
    return frame


def _bias_share(mixtures: Mixtures, frame: pd.DataFrame, bias: str) -> Floats:
    """Share of the decoder bias that is the large dictionary's after each step."""
    if bias == "interpolated":
        moved: Floats = (frame["n_inserted"] + frame["n_removed"]).cumsum().to_numpy() / mixtures.n_latents
        return moved
    swapped: Floats = (frame["phase"] == "bias").cumsum().to_numpy().astype(float)
    return swapped


# ---------------------------------------------------------------------- orders


def _by_phase(moves: Sequence[Move]) -> Iterator[list[Move]]:
    for phase in _phases(moves):
        yield [move for move in moves if move.phase == phase]


def shuffled(moves: Sequence[Move], random: np.random.Generator) -> list[Move]:
    """The moves in a random order within their phases.

    Examples
    --------
    >>> moves = plan(small, large)
    >>> len(shuffled(moves, np.random.default_rng(0))) == len(moves)
    True
    """
    return [part[place] for part in _by_phase(moves) for place in random.permutation(len(part))]


def _by_gain(mixtures: Mixtures, moves: Sequence[Move], bias: str) -> list[Move]:
    """The moves ordered by their change from their phase's start, best first."""
    # As a path without a step for the bias: a move's step is its place plus one.
    path = _path(mixtures, moves, "interpolated")
    gains = mixtures.gains(path) + _bias_gains(mixtures, path, bias)
    ordered: list[Move] = []
    for part in _by_phase(moves):
        first = len(ordered) + 1
        ordered += [part[place] for place in np.argsort(gains[first : first + len(part)], kind="stable")]
    return ordered


def _greedily(statistics: PairStatistics, moves: Sequence[Move], bias: str) -> list[Move]:
    """The moves in the order in which each is the best that is left in its phase."""
    path = _path(statistics, moves, "interpolated")
    extra = _bias_gains(statistics, path, bias)
    ordered: list[Move] = []
    for phase, part in enumerate(_by_phase(moves)):
        here = slice(len(ordered) + 1, len(ordered) + 1 + len(part))
        gains, between = statistics.gains_and_interaction(path, phase)
        ordered += [part[place] for place in _greedy((gains + extra)[here], between[here, here].tocsr())]
    return ordered


def _bias_gains(mixtures: Mixtures, path: Path, bias: str) -> Floats:
    return mixtures.bias_gains(path) if bias == "large" else np.zeros(path.n)


def _greedy(gains: Floats, between: Any) -> Integers:
    """The order in which the best move comes first, given how each changes the effect of the others."""
    order = np.empty(len(gains), dtype=np.int64)
    for place in range(len(gains)):
        best = order[place] = int(np.argmin(gains))
        row = slice(between.indptr[best], between.indptr[best + 1])
        gains[between.indices[row]] += 2 * between.data[row]
        gains[best] = np.inf
    return order


# ---------------------------------------------------------------------- a whole family


@dataclass(frozen=True, eq=False, repr=False)
class StitchingChain(Result):
    """A whole family stitched together, each width into the next.

    Attributes
    ----------
    stitchings : tuple of Stitching
        Stitchings of neighbouring widths, smallest first.
    """

    _plot: ClassVar[str] = "stitching_chain"

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
        """The summary of each pair, one row per pair."""
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


@cached
def stitch_chain(
    family: Family,
    activations: Activations,
    *,
    progress: bool = False,
    allow_mismatch: bool = False,
    **options: Any,
) -> StitchingChain:
    """Stitch each width of a family into the next one, in one pass over the tokens.

    Parameters
    ----------
    family : Family
        At least two widths.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    progress : bool
        Show progress bars in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).
    **options
        Of `stitch`, such as `theta` and `order`. The orders by gain take further passes, pair by pair.

    Raises
    ------
    ValueError
        If the family has fewer than two widths, or as `stitch`.

    Examples
    --------
    >>> chain = saekit.stitch_chain(family, x)
    >>> chain.frame[["pair", "step", "phase", "l0"]].head(2)
         pair  step  phase     l0
    0  8 → 12     0  start  1.795
    1  8 → 12     1   swap  2.105
    """
    if len(family.widths) < 2:
        raise ValueError(f"A chain needs at least two widths, found {family.widths}.")
    options |= {"progress": progress, "allow_mismatch": allow_mismatch}
    passes = [
        StitchingPass(pair.small, pair.large, activations, **options)
        for pair in family.comparisons(null=False)
    ]
    tokens = one_pass(
        activations,
        *passes,
        dictionaries=[family[width] for width in family.widths],
        purpose="stitching",
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    return StitchingChain(tuple(part.finished(tokens) for part in passes))
