"""The error of every mixture of two dictionaries: the one mechanism of insertion and stitching.

With the small dictionary's residual `r` on a token, moving latents with activations `f` and
directions `v` takes `delta = sum(c * v)` from it, where `c` is `f` for a latent of the large
dictionary that comes in and `-f` for one of the small that goes out. The squared error changes by
`|delta|^2 - 2 <delta, r>`, and only tokens on which something that moves is active count.

`Streamed` sums this token by token along any paths, one residual per token at a time, in the memory
of a batch. `PairStatistics` keeps the sums over tokens of all products of two latents instead, so
that many paths, and those whose next step depends on the last, cost no further look at the tokens;
its memory grows with the pairs of latents that are ever active together. Both are exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from saekit.activations import Activations, as_activations
from saekit.agreement import check_agreement
from saekit.analysis.similarity import check_order
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.moments import squared_norms
from saekit.passes import Batch, Tokens, one_pass
from saekit.sparse import SparseLatents, affine

Integers: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

BLOCK = 512  # latents whose products are computed at a time
FOLLOWED = 1 << 17  # elements of residuals that are followed at a time: they stay in cache
SEGMENTS = 1 << 9  # sums of several latents on one token held at a time
HALF_BLOCK = 1024  # positions: the two halves of the tokens alternate in blocks, so both see all sources
NEVER = int(np.iinfo(np.int64).max)  # the step of latents that do not move


# ---------------------------------------------------------------------- sums over one batch


@dataclass(frozen=True, eq=False)
class Directions:
    """The change that each of some latents makes to the residual as it moves.

    Attributes
    ----------
    rows : Tensor
        Decoder directions `v`, `[n, d_out]`.
    squares : Tensor
        `|v|^2`, float64 `[n]`.
    sign : Tensor
        1 for latents that come in, -1 for those that go out, `[n]`.
    """

    rows: Tensor
    squares: Tensor
    sign: Tensor

    @classmethod
    def coming_in(cls, dictionary: Dictionary) -> Directions:
        """Those of a dictionary's latents."""
        return cls.of(dictionary.W_dec, n_going_out=0)

    @classmethod
    def of(cls, rows: Tensor, *, n_going_out: int) -> Directions:
        """Directions of which the first few belong to latents that go out."""
        # Half precision is for storage: inner products are float32, or float64 if the rows are.
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        sign = torch.ones_like(rows[:, 0])
        sign[:n_going_out] = -1
        return cls(rows, squared_norms(rows), sign)

    def moved(self, latents: SparseLatents) -> SparseLatents:
        """The latents, with their change of the residual, `-c`, in place of their values."""
        sign = self.sign.index_select(0, latents.indices)
        return latents.with_values(-latents.values.to(sign.dtype) * sign)

    def powers(self, latents: SparseLatents) -> Tensor:
        """`f^2 |v|^2` of each active entry, float64 `[active]`."""
        return latents.values.double().square() * self.squares.index_select(0, latents.indices)

    def alone(self, latents: SparseLatents, residual: Tensor) -> Tensor:
        """Change in the token's squared error from moving each active entry alone, float64 `[active]`."""
        inner = latents.inner_products(residual.to(self.rows.dtype), self.rows)
        return self.powers(latents) + 2 * self.moved(latents).values.double() * inner.double()

    def one_by_one(self, latents: SparseLatents, residual: Tensor) -> Tensor:
        """Change from moving each entry after those before it in its row have moved, `[active]`."""
        if not len(latents.indices):
            return torch.zeros(0, dtype=torch.float64, device=residual.device)
        # Rows are followed a few at a time, those with most entries first, and their entries taken by
        # rank in the row: the rows that still have one are then always the first ones.
        n_rows = max(1, FOLLOWED // residual.shape[1])
        by_count = latents.counts.argsort(descending=True, stable=True)
        place = torch.empty_like(by_count)
        place[by_count] = torch.arange(len(by_count), device=place.device)
        place = place.index_select(0, latents.rows)
        every = torch.arange(len(place), device=place.device)
        rank = every - latents.offsets.index_select(0, latents.rows)
        longest = int(rank.max()) + 1
        group = place.div(n_rows, rounding_mode="floor") * longest + rank
        sizes = torch.bincount(group)
        order = torch.empty_like(every)
        order[(sizes.cumsum(0) - sizes).index_select(0, group) + place % n_rows] = every

        moved = self.moved(latents).values
        weights, indices = moved.index_select(0, order)[:, None], latents.indices.index_select(0, order)
        inner, stop = torch.empty_like(moved), 0
        for number, size in enumerate(sizes.tolist()):
            if number % longest == 0:
                first = number // longest * n_rows
                rows = residual.index_select(0, by_count[first : first + n_rows]).to(self.rows.dtype)
            if size:
                here = slice(stop, stop := stop + size)
                v, left = self.rows.index_select(0, indices[here]), rows[:size]
                torch.linalg.vecdot(left, v, out=inner[here])
                left.addcmul_(v, weights[here])
        changes = torch.empty(len(moved), dtype=torch.float64, device=residual.device)
        changes[order] = 2 * weights[:, 0].double() * inner.double()
        return changes + self.powers(latents)

    def together(self, latents: SparseLatents, group: Tensor, n_groups: int) -> Tensor:
        """Change from moving whole groups, beyond that of each latent alone, float64 `[n_groups]`.

        `group` is that of each active entry, ascending within a row.
        """
        total = torch.zeros(n_groups, dtype=torch.float64, device=group.device)
        key, counts = torch.unique_consecutive(latents.rows * n_groups + group, return_counts=True)
        several = (counts > 1).repeat_interleave(counts)
        entries = latents.where(several)
        moved, powers = self.moved(entries).values, self.powers(entries)
        groups, counts = key[counts > 1] % n_groups, counts[counts > 1]
        starts = F.pad(counts.cumsum(0), (1, 0))
        for lowest in range(0, len(counts), SEGMENTS):
            here = starts[lowest : lowest + SEGMENTS + 1]
            first, end = int(here[0]), int(here[-1])
            segments = SparseLatents(
                here - first,
                entries.indices[first:end],
                moved[first:end],
                latents.width,
            )
            delta = segments.matmul(self.rows)
            extra = torch.linalg.vecdot(delta, delta).double()
            extra -= torch.zeros_like(extra).index_add_(0, segments.rows, powers[first:end])
            total += torch.bincount(groups[lowest : lowest + SEGMENTS], extra, minlength=n_groups)
        return total


class SquaredError:
    """The squared error of a dictionary, summed over dimensions and tokens, and its active latents.

    Attributes
    ----------
    value : float
        The squared error.
    n_active : int
        Active latents, summed over tokens.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.value, self.n_active = 0.0, 0

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        self.value += float(squared_norms(batch.residual(self.dictionary)).sum())
        self.n_active += len(batch.latents(self.dictionary).indices)


class LatentSums:
    """The effect of each latent of a dictionary, alone, on the error of another, by half of the tokens.

    Attributes
    ----------
    active : Tensor
        Tokens on which each latent is active, int64 `[2, width]`.
    power : Tensor
        Sum of `f^2 |v|^2`, float64 `[2, width]`.
    overlap : Tensor
        Sum of `f <v, r>` with the other dictionary's residual `r`, float64 `[2, width]`.
    tokens : Tensor
        Of each half, int64 `[2]`.
    """

    def __init__(self, dictionary: Dictionary, residual_of: Dictionary) -> None:
        self.dictionary, self.residual_of = dictionary, residual_of
        self.directions = Directions.coming_in(dictionary)
        self.active = torch.zeros(2, dictionary.width, dtype=torch.long)
        self.power, self.overlap = torch.zeros(2, 2, dictionary.width, dtype=torch.float64)
        self.tokens = torch.zeros(2, dtype=torch.long)

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        latents, width = batch.latents(self.dictionary), self.dictionary.width
        rows = self.directions.rows
        inner = latents.inner_products(batch.residual(self.residual_of).to(rows.dtype), rows)
        half = batch.positions.to(latents.indices.device) // HALF_BLOCK % 2
        self.tokens += torch.bincount(half, minlength=2).cpu()
        group = half[latents.rows] * width + latents.indices

        def by_latent(weights: Tensor | None) -> Tensor:
            return torch.bincount(group, weights, minlength=2 * width).view(2, width).cpu()

        self.active += by_latent(None)
        self.power += by_latent(self.directions.powers(latents))
        self.overlap += by_latent(latents.values.double() * inner.double())


class GroupGains:
    """Change in the summed squared error from moving whole groups, each from its phase's start.

    Attributes
    ----------
    gain : Tensor
        Float64 `[n]`, by step of the path: negative helps.
    """

    def __init__(self, path: Path, directions: Directions) -> None:
        self.path, self.directions = path, directions
        self.gain = torch.zeros(path.n, dtype=torch.float64)

    def add(self, latents: SparseLatents, residual: Tensor) -> None:
        """Add tokens, given the latents that are active on them and the small dictionary's residual."""
        v, moving = self.directions, self.path.sort(latents)
        step = self.path.of(moving)
        phase = self.path.phases(step)
        self.gain += v.together(moving, step, self.path.n).cpu()
        for number in range(self.path.n_phases):
            part, inside = moving.where(phase == number), step[phase == number]
            change = v.alone(part, residual)
            self.gain += torch.bincount(inside, change, minlength=self.path.n).cpu()
            if number + 1 < self.path.n_phases:
                residual = residual + v.moved(part).matmul(v.rows)


class PathSums:
    """The summed squared error along a path, in which each step starts where the last one ended.

    Attributes
    ----------
    change : Tensor
        By step, float64 `[n]`.
    within_steps, within_phases : Tensor
        How far it is from the sum of what each latent of the step, or of the phase, would do alone
        at its start, float64 `[n]` and `[n_phases]`.
    """

    def __init__(self, path: Path, directions: Directions) -> None:
        self.path, self.directions = path, directions
        self.change = torch.zeros(path.n, dtype=torch.float64)
        self.within_steps = torch.zeros(path.n, dtype=torch.float64)
        self.within_phases = torch.zeros(path.n_phases, dtype=torch.float64)

    def add(self, latents: SparseLatents, residual: Tensor) -> None:
        """Add tokens, given the latents that are active on them and the small dictionary's residual."""
        v, moving = self.directions, self.path.sort(latents)
        step = self.path.of(moving)
        phase = self.path.phases(step)
        change = v.one_by_one(moving, residual)
        self.change += torch.bincount(step, change, minlength=self.path.n).cpu()
        self.within_steps += v.together(moving, step, self.path.n).cpu()
        self.within_phases += v.together(moving, phase, self.path.n_phases).cpu()

    def errors(self, sse_small: float) -> PathErrors:
        """The sums, given the squared error of the small dictionary."""
        return PathErrors(
            sse_small + self.change.cumsum(0).numpy(),
            self.within_steps.numpy(),
            self.within_phases.numpy(),
        )


# ---------------------------------------------------------------------- paths


@dataclass(frozen=True, eq=False)
class Path:
    """An order in which latents move.

    Attributes
    ----------
    step : ndarray
        The step at which each latent moves, int64 `[latents]`; `NEVER` if it stays.
    phase : ndarray
        The phase that each step belongs to, from 0 and never falling, int64 `[n]`.
    """

    step: Integers
    phase: Integers

    @property
    def n(self) -> int:
        """Number of steps, the start (step 0) among them."""
        return len(self.phase)

    @property
    def n_phases(self) -> int:
        """Number of phases."""
        return int(self.phase[-1]) + 1

    @cached_property
    def _step(self) -> Tensor:
        return torch.from_numpy(self.step)

    @cached_property
    def _phase(self) -> Tensor:
        return torch.from_numpy(self.phase)

    def of(self, latents: SparseLatents) -> Tensor:
        """The step at which each active entry moves, `[active]`."""
        return self._step.to(latents.indices.device).index_select(0, latents.indices)

    def phases(self, steps: Tensor) -> Tensor:
        """The phase of each of some steps."""
        return self._phase.to(steps.device).index_select(0, steps)

    def sort(self, latents: SparseLatents) -> SparseLatents:
        """The active entries that move, by step within each row."""
        moving = latents.where(self.of(latents) < self.n)
        order = (moving.rows * self.n + self.of(moving)).argsort(stable=True)
        return SparseLatents(moving.offsets, moving.indices[order], moving.values[order], moving.width)


@dataclass(frozen=True, eq=False)
class PathErrors:
    """The effect of a path on the squared error, summed over tokens, with the small dictionary's bias.

    Attributes
    ----------
    sse : ndarray
        Squared error after each step, float64 `[n]`.
    within_steps, within_phases : ndarray
        How far the change in a step, or a phase, is from the sum of what each of its latents would
        do alone at its start, float64 `[n]` and `[n_phases]`.
    """

    sse: Floats
    within_steps: Floats
    within_phases: Floats


@dataclass(frozen=True, eq=False)
class PairTotals:
    """Sums over tokens that every path of a pair needs.

    Attributes
    ----------
    active : ndarray
        Tokens on which each latent is active, the small dictionary's first, int64 `[latents]`.
    values : ndarray
        Sum of each latent's activations `f`, float64 `[latents]`.
    residual : Tensor
        Sum of `r`, float64 `[d_out]`.
    skip : Skipped
        Of transcoders, the sums about the change of the skip connection.
    sse_small, sse_large : float
        Squared error of the two dictionaries.
    tokens : Tokens
        Number and moments of the tokens.
    """

    active: Integers
    values: Floats
    residual: Tensor
    skip: Skipped
    sse_small: float
    sse_large: float
    tokens: Tokens


@dataclass(eq=False)
class Skipped:
    """Sums over tokens of `s = x @ (W_skip of the large - W_skip of the small)`: zero where there are none.

    Swapping the connection, with the decoder bias, takes `s` from a token's residual.

    Attributes
    ----------
    total : Tensor
        Sum of `s`, float64 `[d_out]`.
    power, overlap : float
        Sums of `|s|^2`, and of `<s, r>` with the small dictionary's residual.
    along : Tensor
        Sum of each latent's `f <v, s>`, float64 `[latents]`.
    """

    total: Tensor
    along: Tensor
    power: float = 0.0
    overlap: float = 0.0

    def add(self, s: Tensor, residual: Tensor, latents: SparseLatents, directions: Tensor) -> None:
        """Add tokens: their `s` and residuals, `[n, d_out]`, and the latents of both that are active."""
        self.total += s.sum(0, dtype=torch.float64).cpu()
        self.power += float(squared_norms(s).sum())
        self.overlap += float((s.double() * residual.double()).sum())
        inner = latents.inner_products(s.to(directions.dtype), directions).double()
        weights = latents.values.double() * inner
        self.along += torch.bincount(latents.indices, weights, minlength=len(self.along)).cpu()


# ---------------------------------------------------------------------- the two ways


class Mixtures(ABC):
    """The errors of all mixtures of two dictionaries.

    Latents are numbered from the small dictionary's first to the large one's last.

    Attributes
    ----------
    small, large : Dictionary
        The pair.
    identities : tuple of Identity
        Identities of the two when the mixtures were made.
    """

    def __init__(self, small: Dictionary, large: Dictionary) -> None:
        self.small, self.large = small, large
        self.identities: tuple[Identity, Identity] = (small.identity, large.identity)

    def require(self, small: Dictionary, large: Dictionary) -> None:
        """Refuse other dictionaries in place of the pair, and the pair itself if its tensors have changed.

        Raises
        ------
        ValueError
            If either differs in content from what it was when the mixtures were made.
        """
        for identity, role, *found in zip(
            self.identities, ("small", "large"), (small, large), (self.small, self.large), strict=True
        ):
            for dictionary in found:
                identity.require(dictionary.identity, f"The mixtures' {role} dictionary")

    def require_unchanged(self) -> None:
        """Refuse to continue if the tensors of the pair have changed since the mixtures were made."""
        self.require(self.small, self.large)

    @property
    @abstractmethod
    def totals(self) -> PairTotals:
        """Sums over tokens that every path needs."""

    @abstractmethod
    def along(self, *paths: Path) -> list[PathErrors]:
        """The squared error along each of some paths."""

    @abstractmethod
    def gains(self, path: Path) -> Floats:
        """Change in the squared error by each step from its phase's start, float64 `[n]`."""

    @property
    def n_latents(self) -> int:
        """Latents of both."""
        return self.small.width + self.large.width

    @property
    def directions(self) -> Directions:
        """What moving each latent adds to the reconstruction; made anew, as it copies both decoders."""
        rows = torch.cat([self.small.W_dec, self.large.W_dec.to(self.small.W_dec.device)])
        return Directions.of(rows, n_going_out=self.small.width)

    @property
    def skips(self) -> tuple[Dictionary, Dictionary] | None:
        """The pair, if either has a skip connection."""
        pair = self.small, self.large
        return pair if any("W_skip" in dictionary.tensors() for dictionary in pair) else None

    @cached_property
    def sign(self) -> Floats:
        """1 for latents of the large dictionary, -1 for those of the small."""
        return np.repeat([-1.0, 1.0], [self.small.width, self.large.width])

    @cached_property
    def density(self) -> Floats:
        """Share of tokens on which each latent is active."""
        density: Floats = self.totals.active / self.totals.tokens.n_tokens
        return density

    def side_by_side(self, batch: Batch) -> SparseLatents:
        """The active latents of both in one row each, the large ones after the small."""
        small, large = batch.latents(self.small), batch.latents(self.large)
        device = small.indices.device
        # An entry moves behind all that the other dictionary has in earlier rows (and, of the large
        # one, in the same row).
        place_small = torch.arange(len(small.indices), device=device)
        place_small += large.offsets[:-1].index_select(0, small.rows)
        place_large = torch.arange(len(large.indices), device=device)
        place_large += small.offsets[1:].index_select(0, large.rows)
        indices = torch.empty(len(place_small) + len(place_large), dtype=torch.long, device=device)
        dtype = torch.promote_types(small.values.dtype, large.values.dtype)
        values = torch.empty(len(indices), dtype=dtype, device=device)
        indices[place_small], indices[place_large] = small.indices, large.indices + self.small.width
        values[place_small], values[place_large] = (s.values.to(values.dtype) for s in (small, large))
        return SparseLatents(small.offsets + large.offsets, indices, values, self.n_latents)

    def with_bias(self, sse: Floats, path: Path, share: Floats) -> Floats:
        """The squared error after each step with a share of the bias (and skip) swapped, float64 `[n]`."""
        change, skip = (self.large.b_dec - self.small.b_dec).double(), self.totals.skip
        along = self._along(change)
        moved = path.step < path.n
        crossing = np.cumsum(np.bincount(path.step[moved], along[moved], minlength=path.n))
        left = float(self.totals.residual @ change.cpu()) + skip.overlap - crossing
        power = float(change.square().sum()) * self.totals.tokens.n_tokens
        power += 2 * float(skip.total @ change.cpu()) + skip.power
        with_bias: Floats = sse - 2 * share * left + share**2 * power
        return with_bias

    def bias_gains(self, path: Path) -> Floats:
        """The additional change of each step once the bias has been swapped, float64 `[n]`."""
        change = (self.large.b_dec - self.small.b_dec).double()
        moved = path.step < path.n
        return np.bincount(path.step[moved], 2 * self._along(change)[moved], minlength=path.n).astype(float)

    def _along(self, direction: Tensor) -> Floats:
        """Sum over tokens of the contribution of each latent's move, along a change of bias (and skip)."""
        decoders = (dictionary.W_dec.to(direction.device) for dictionary in (self.small, self.large))
        inner = [part.double() @ direction for decoder in decoders for part in decoder.split(BLOCK)]
        along: Floats = self.totals.values * torch.cat(inner).cpu().numpy() + self.totals.skip.along.numpy()
        signed: Floats = self.sign * along
        return signed


class _Totals:
    """Adds up a `PairTotals`."""

    def __init__(self, mixtures: Mixtures) -> None:
        self.small = mixtures.small
        self.errors = SquaredError(mixtures.small), SquaredError(mixtures.large)
        self.active = torch.zeros(mixtures.n_latents, dtype=torch.long)
        self.values = torch.zeros(mixtures.n_latents, dtype=torch.float64)
        self.residual = torch.zeros(mixtures.small.d_out, dtype=torch.float64)
        along = torch.zeros(mixtures.n_latents, dtype=torch.float64)
        self.skip = Skipped(torch.zeros_like(self.residual), along)
        self._skips, self._directions = mixtures.skips, mixtures.directions.rows if mixtures.skips else None

    def add(self, batch: Batch, latents: SparseLatents) -> None:
        """Add a batch, given the latents of both that are active on it."""
        for error in self.errors:
            error(batch)
        n = latents.width
        self.active += torch.bincount(latents.indices, minlength=n).cpu()
        self.values += torch.bincount(latents.indices, latents.values.double(), minlength=n).cpu()
        residual = batch.residual(self.small)
        self.residual += residual.sum(0, dtype=torch.float64).cpu()
        if self._skips is not None:
            small, large = (dictionary.row_scale(batch.x) for dictionary in self._skips)
            change = torch.zeros_like(residual) if large is None else large.centre
            change = change if small is None else change - small.centre
            assert self._directions is not None
            self.skip.add(change, residual, latents, self._directions)

    def finished(self, tokens: Tokens) -> PairTotals:
        return PairTotals(
            active=self.active.numpy(),
            values=self.values.numpy(),
            residual=self.residual,
            skip=self.skip,
            sse_small=self.errors[0].value,
            sse_large=self.errors[1].value,
            tokens=tokens,
        )


class Streamed(Mixtures):
    """The errors of mixtures, summed in a pass over the tokens whenever they are asked for.

    Memory is that of a batch, at any width and number of tokens.

    Parameters
    ----------
    small, large : Dictionary
        Latents of both must not depend on each other.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If a dictionary is TopK, `small` is wider than `large`, the inputs contradict each other,
        or there are no tokens.
    """

    def __init__(
        self,
        small: Dictionary,
        large: Dictionary,
        activations: Activations,
        *,
        batch_size: int = 4096,
        progress: bool = False,
        allow_mismatch: bool = False,
    ) -> None:
        for dictionary in (small, large):
            dictionary.require_independent("Stitching")
        check_order(small, large)
        check_agreement(activations=activations, dictionaries=(small, large), allow_mismatch=allow_mismatch)
        super().__init__(small, large)
        self.activations = as_activations(activations)
        self._options: dict[str, Any] = {
            "dictionaries": (small, large),
            "purpose": "stitching",
            "batch_size": batch_size,
            "progress": progress,
            "allow_mismatch": allow_mismatch,
        }
        self._totals: PairTotals | None = None

    @property
    def totals(self) -> PairTotals:
        """Sums over tokens that every path needs, from the first pass."""
        if self._totals is None:
            self._pass(Following(self))
        assert self._totals is not None
        return self._totals

    def along(self, *paths: Path) -> list[PathErrors]:
        """The squared error along each of some paths, in one pass."""
        following = Following(self, *paths)
        self._pass(following)
        return following.errors

    def gains(self, path: Path) -> Floats:
        """Change in the squared error by each step from its phase's start, in one pass."""
        sums = GroupGains(path, self.directions)

        def add(batch: Batch) -> None:
            sums.add(self.side_by_side(batch), batch.residual(self.small))

        self._pass(Following(self), add)
        return sums.gain.numpy()

    def _pass(self, following: Following, *others: Callable[[Batch], None]) -> None:
        self.require_unchanged()
        following.finished(one_pass(self.activations, following, *others, **self._options))


class Following:
    """A part of a pass: the errors along paths of a pair, and its totals if they are not there yet.

    Parameters
    ----------
    streamed : Streamed
        The pair; it gets the totals.
    *paths : Path
        What to follow.
    """

    def __init__(self, streamed: Streamed, *paths: Path) -> None:
        self.streamed, self._sums = streamed, list[PathSums]()
        if paths:
            directions = streamed.directions  # one copy for all
            self._sums = [PathSums(path, directions) for path in paths]
        self._totals = _Totals(streamed) if streamed._totals is None else None

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        latents = self.streamed.side_by_side(batch)
        if self._totals is not None:
            self._totals.add(batch, latents)
        for sums in self._sums:
            sums.add(latents, batch.residual(self.streamed.small))

    def finished(self, tokens: Tokens) -> None:
        """Hand over the totals, once the pass is over."""
        if self._totals is not None:
            self.streamed._totals = self._totals.finished(tokens)

    @property
    def errors(self) -> list[PathErrors]:
        """Along each path, once the pass is over."""
        return [sums.errors(self.streamed.totals.sse_small) for sums in self._sums]


class PairStatistics(Mixtures):
    """Everything that the error of any mixture of two dictionaries depends on, kept in memory.

    With `z` 1 for a latent of the large dictionary that has moved in and -1 for one of the small
    that has moved out, the squared error summed over tokens is
    `sse_small - 2 z @ overlap + z @ interaction @ z`.

    Parameters
    ----------
    small, large : Dictionary
        The pair.
    totals : PairTotals
        Sums over tokens that every path needs.
    power, overlap : ndarray
        Sums of each latent's `f^2 |v|^2` and `f <v, r>`, float64 `[latents]`.
    rows, columns, values : Tensor
        Above the diagonal, where it is not zero, the interaction `sum f_i f_j <v_i, v_j>`: int32,
        int32, float64 `[pairs]`.
    """

    def __init__(
        self,
        small: Dictionary,
        large: Dictionary,
        totals: PairTotals,
        power: Floats,
        overlap: Floats,
        rows: Tensor,
        columns: Tensor,
        values: Tensor,
    ) -> None:
        super().__init__(small, large)
        self._totals, self.power, self.overlap = totals, power, overlap
        self.rows, self.columns, self.values = rows, columns, values

    @property
    def totals(self) -> PairTotals:
        """Sums over tokens that every path needs."""
        return self._totals

    def __repr__(self) -> str:
        return f"PairStatistics(small={self.small.name!r}, large={self.large.name!r}, pairs={len(self.rows)})"

    @cached_property
    def weights(self) -> Tensor:
        """The contribution of each pair to the squared error once both have moved, float64 `[pairs]`."""
        sign = torch.from_numpy(self.sign)
        return 2 * self.values * sign.index_select(0, self.rows) * sign.index_select(0, self.columns)

    @cached_property
    def symmetric(self) -> Any:
        """The whole interaction, a SciPy sparse array, float64 `[latents, latents]`."""
        shape = (self.n_latents, self.n_latents)
        upper = csr_array((self.values.numpy(), (self.rows.numpy(), self.columns.numpy())), shape=shape)
        place = np.arange(self.n_latents)
        return (upper + upper.T + csr_array((self.power, (place, place)), shape=shape)).tocsr()

    def along(self, *paths: Path) -> list[PathErrors]:
        """The squared error along each of some paths."""
        return [self._path(path) for path in paths]

    def _path(self, path: Path) -> PathErrors:
        n, moved = path.n, path.step < path.n
        alone = (self.power - 2 * self.sign * self.overlap)[moved]
        # A pair counts from the step on at which the second of the two has moved.
        at = torch.from_numpy(np.minimum(path.step, n).astype(np.int32))
        of_rows, of_columns = at.index_select(0, self.rows), at.index_select(0, self.columns)
        pairs = torch.bincount(torch.maximum(of_rows, of_columns), self.weights, minlength=n + 1)[:n]
        change = pairs.numpy() + np.bincount(path.step[moved], alone, minlength=n)

        def within(group: Tensor, size: int) -> Floats:
            rows, columns = (group.index_select(0, of) for of in (of_rows, of_columns))
            same = rows == columns
            found: Floats = torch.bincount(rows[same], self.weights[same], minlength=size + 1)[:size].numpy()
            return found

        phase = np.append(path.phase, path.n_phases)  # latents that stay form one more phase, not counted
        return PathErrors(
            (self.totals.sse_small + np.cumsum(change)).astype(float),
            within(torch.arange(n + 1), n),
            within(torch.from_numpy(phase), path.n_phases),
        )

    def gains(self, path: Path) -> Floats:
        """Change in the squared error by each step from its phase's start."""
        total = np.zeros(path.n)
        for phase in range(path.n_phases):
            gains, _ = self.gains_and_interaction(path, phase)
            total += gains
        return total

    def gains_and_interaction(self, path: Path, phase: int) -> tuple[Floats, Any]:
        """The change of each step of a phase from its start, and the steps' interaction with each other."""
        moved = np.flatnonzero(path.step < path.n)
        of = path.phase[path.step[moved]]
        inside, before = moved[of == phase], moved[of < phase]
        shape = (self.n_latents, path.n)
        incidence = csr_array((self.sign[inside], (inside, path.step[inside])), shape=shape)
        state = np.zeros(self.n_latents)
        state[before] = self.sign[before]
        slope = 2 * (self.symmetric @ state - self.overlap)
        between = (incidence.T @ self.symmetric @ incidence).tocsr()
        return incidence.T @ slope + between.diagonal(), between


def pair_statistics(
    small: Dictionary,
    large: Dictionary,
    activations: Activations,
    *,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> PairStatistics:
    """Encode a set of tokens with both dictionaries once, and keep the sums that any path between them needs.

    For many paths through one pair of small dictionaries. Memory grows with the active entries (16
    bytes each, while they are collected) and with the pairs of latents that are ever active together
    (24 bytes each): `stitch` on the activations themselves needs none of it.

    Parameters
    ----------
    small, large : Dictionary
        Latents of both must not depend on each other.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If a dictionary is TopK, `small` is wider than `large`, the inputs contradict each other, or
        there are no tokens.

    Examples
    --------
    >>> pair = saekit.pair_statistics(small, large, x)
    >>> orders = [saekit.stitch(small, large, pair, order=order) for order in ("similarity", "greedy_gain")]
    >>> [order.n_steps for order in orders]
    [7, 7]
    """
    require_dictionaries(small=small, large=large)
    streamed = Streamed(small, large, activations, allow_mismatch=allow_mismatch)
    totals, parts = _Totals(streamed), list[SparseLatents]()
    sums = LatentSums(small, small), LatentSums(large, small)

    def collect(batch: Batch) -> None:
        latents = streamed.side_by_side(batch)
        totals.add(batch, latents)
        offsets, indices, values = (t.cpu() for t in (latents.offsets, latents.indices, latents.values))
        parts.append(SparseLatents(offsets, indices, values, latents.width))

    tokens = one_pass(
        activations,
        *sums,
        collect,
        dictionaries=(small, large),
        purpose="stitching",
        batch_size=batch_size,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    interaction = _interaction(SparseLatents.concatenate(parts), streamed.directions.rows.cpu())
    power, overlap = (
        torch.cat([getattr(part, name).sum(0) for part in sums]).numpy() for name in ("power", "overlap")
    )
    return PairStatistics(small, large, totals.finished(tokens), power, overlap, *interaction)


def _interaction(latents: SparseLatents, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_t f_i f_j <v_i, v_j>` above the diagonal where it is not zero: row, column, value."""
    by_token = csr_array(
        (latents.values.numpy(), latents.indices.int().numpy(), latents.offsets.int().numpy()),
        shape=(len(latents), latents.width),
    )
    by_latent = by_token.T.tocsr()

    def block(start: int) -> tuple[Tensor, ...]:
        stop = min(start + BLOCK, latents.width)
        products = (by_latent[start:stop] @ by_token[:, start:]).tocoo()
        above = products.col > products.row
        rows, columns = products.row[above], products.col[above]
        gram = affine(directions[start:stop], directions[start:], directions.new_zeros(latents.width - start))
        values = products.data[above] * gram.numpy()[rows, columns].astype(np.float64)
        places = (torch.from_numpy(place + np.int32(start)) for place in (rows, columns))
        return *places, torch.from_numpy(values)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # sparse products release the lock
        parts = list(pool.map(block, range(0, latents.width, BLOCK)))
    rows, columns, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return rows, columns, values
