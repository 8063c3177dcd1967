"""Sparse latents and the kernels that make training and decoding fast.

After the encoder's matrix product almost nothing is dense: a token has tens of active latents
out of thousands. Active latents are kept in compressed rows, and every product with them is an
`embedding_bag` or its mirror image, which touches active entries only and adds in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Products of a batch with a wide encoder are taken a few rows at a time, so that the part searched is
# still in cache: at most this many elements, 16 MiB in single precision.
CHUNK_ELEMENTS = 1 << 22

# A latent can be active if its half-precision pre-activation falls short of the floor by less than
# this many times the root mean square of the rounding error.
MARGIN = 8.0
MARGIN_ROWS = 16  # rows that the rounding error is measured on
GROUPS = 8  # groups of columns per wanted latent, in the search for a row's largest
RESCORE_BELOW = 0.03  # share of candidates up to which rescoring them is faster than a full product

# Above this share of active latents dense matrix products are faster than gathering rows: one
# training step's products (encoder and decoder gradients, decoding) break even near 0.4 on a CPU.
DENSE_ABOVE = 0.4


@dataclass(frozen=True, eq=False)
class SparseLatents:
    """Active latents of a batch in compressed sparse rows.

    Parameters
    ----------
    offsets : Tensor
        Start of each row in `indices`, int64 `[batch + 1]`.
    indices : Tensor
        Active latents, row after row, ascending within a row, int64 `[active]`.
    values : Tensor
        Their values, `[active]`.
    width : int
        Number of latents, active or not.

    Examples
    --------
    >>> h = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    >>> latents = SparseLatents.from_mask(h > 0, h)
    >>> latents.counts, latents.indices
    (tensor([2, 1]), tensor([0, 2, 1]))
    >>> latents.dense()
    tensor([[1.0000, 0.0000, 0.5000],
            [0.0000, 3.0000, 0.0000]])
    """

    offsets: Tensor
    indices: Tensor
    values: Tensor
    width: int

    @classmethod
    def from_mask(cls, active: Tensor, values: Tensor) -> SparseLatents:
        """Latents where the Boolean `active` `[batch, width]` holds, with their dense `values`."""
        width = active.shape[1]
        entries = _true_positions(active)
        rows = entries.div(width, rounding_mode="floor")
        found = values.reshape(-1).index_select(0, entries)
        return cls(_starts(rows, len(active)), entries - rows * width, found, width)

    @classmethod
    def empty(cls, width: int, like: Tensor) -> SparseLatents:
        """A batch of no rows, with the dtype and device of `like`."""
        none = torch.zeros(0, dtype=torch.long, device=like.device)
        return cls(torch.zeros(1, dtype=torch.long, device=like.device), none, like.new_zeros(0), width)

    @classmethod
    def concatenate(cls, parts: Sequence[SparseLatents]) -> SparseLatents:
        """The rows of several batches, one after the other."""
        counts = torch.cat([part.counts for part in parts])
        return cls(
            F.pad(counts.cumsum(0), (1, 0)),
            torch.cat([part.indices for part in parts]),
            torch.cat([part.values for part in parts]),
            parts[0].width,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """Number of active latents of each row (its L0), `[batch]`."""
        return self.offsets.diff()

    @cached_property
    def rows(self) -> Tensor:
        """Row of each active entry, `[active]`."""
        return torch.arange(len(self), device=self.offsets.device).repeat_interleave(self.counts)

    def dense(self) -> Tensor:
        """The same latents as a dense `[batch, width]`."""
        dense = self.values.new_zeros(len(self), self.width)
        dense[self.rows, self.indices] = self.values
        return dense

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries ordered by latent: their order and rows, `[active]`, and where each latent starts."""
        order = stable_order(self.indices, self.width)
        return order, self.rows.index_select(0, order), _starts(self.indices, self.width)

    @property
    def mostly_active(self) -> bool:
        """Whether dense products are faster than sparse ones."""
        return len(self.indices) > DENSE_ABOVE * len(self) * self.width

    def where(self, keep: Tensor) -> SparseLatents:
        """The entries for which the Boolean `keep` `[active]` holds."""
        kept = _true_positions(keep)
        return SparseLatents(
            torch.searchsorted(kept, self.offsets),
            self.indices.index_select(0, kept),
            self.values.index_select(0, kept),
            self.width,
        )

    def slice(self, start: int, stop: int) -> SparseLatents:
        """The latents of some neighbouring rows."""
        offsets = self.offsets[start : stop + 1]
        first, end = int(offsets[0]), int(offsets[-1])
        return SparseLatents(offsets - first, self.indices[first:end], self.values[first:end], self.width)

    def with_values(self, values: Tensor) -> SparseLatents:
        """The same active latents with other values."""
        return replace(self, values=values)

    def regroup(self, rows: Tensor, batch: int) -> SparseLatents:
        """The same entries in other rows, `[active]`, ascending, of a batch of another size."""
        return SparseLatents(_starts(rows, batch), self.indices, self.values, self.width)

    def kth_largest(self, k: int) -> Tensor:
        """The `k`-th largest value of each row, minus infinity for rows of fewer, `[batch]`."""
        longest = max(k, int(self.counts.max()))
        padded = self.values.new_full((len(self), longest), -torch.inf)
        place = torch.arange(len(self.rows), device=self.rows.device)
        place += (
            torch.arange(len(self), device=place.device)
            .mul_(longest)
            .sub_(self.offsets[:-1])
            .index_select(0, self.rows)
        )
        padded.view(-1).scatter_(0, place, self.values)
        return kth_smallest(padded, longest - k)

    def matmul(self, matrix: Tensor) -> Tensor:
        """`latents @ matrix` for a `[width, d]` matrix: `[batch, d]`."""
        return F.embedding_bag(
            self.indices, matrix, self.offsets[:-1], mode="sum", per_sample_weights=self.values
        )

    def inner_products(self, x: Tensor, matrix: Tensor) -> Tensor:
        """`<x[i], matrix[j]>` for each active entry (i, j), `[active]`."""
        found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x, matrix, self.indices, self.offsets[:-1], self.rows, 0
        )
        return found

    def sum_by_latent(self, values: Tensor) -> Tensor:
        """Sums of other values `[active]` by latent, `[width]`."""
        return torch.bincount(self.indices, weights=values, minlength=self.width).to(values.dtype)

    def transpose(self) -> SparseLatents:
        """The same entries by latent: row `i` lists the batch rows where latent `i` is active."""
        order, rows, offsets = self.by_latent
        return SparseLatents(offsets, rows, self.values[order], len(self))

    def transposed_matmul(self, values: Tensor, matrix: Tensor) -> Tensor:
        """`latents.T @ matrix` with other `values`, for a `[batch, d]` matrix: `[width, d]`."""
        if self.mostly_active:
            return self.with_values(values).dense().T @ matrix
        order, rows, offsets = self.by_latent
        return SparseLatents(offsets, rows, values.index_select(0, order), len(self)).matmul(matrix)


def _true_positions(mask: Tensor) -> Tensor:
    """Flat positions where a Boolean tensor holds, ascending, int64."""
    if mask.device.type == "cpu":  # NumPy finds them four times faster
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero().squeeze(1)


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The `k`-th smallest value along the last dimension, counted from 0."""
    if values.device.type == "cpu":  # NumPy selects twenty times faster
        return torch.from_numpy(np.partition(values.numpy(), k))[..., k]
    return values.kthvalue(k + 1).values


def _starts(indices: Tensor, size: int) -> Tensor:
    """Offsets of the groups of equal `indices`, `[size + 1]`."""
    return F.pad(torch.bincount(indices, minlength=size).cumsum(0), (1, 0))


def stable_order(indices: Tensor, size: int) -> Tensor:
    """Stable argsort of integers below `size`."""
    if indices.device.type == "cpu" and size <= 1 << 16:
        # NumPy sorts 16-bit integers by radix, ten times faster than torch sorts any.
        return torch.from_numpy(np.argsort(indices.numpy().astype(np.uint16), kind="stable"))
    return indices.argsort(stable=True)


# ---------------------------------------------------------------------- encoding


# The smallest value to keep in each row of a batch, `[batch]`.
Cut = Callable[["SparseLatents"], Tensor]


def affine(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """`x @ W.T + b` for `W` by rows, `[n, d]`: `[..., d]` to `[..., n]`.

    On a CPU through oneDNN where it can, which on many CPUs takes less than half the time of the BLAS
    that torch would call.
    """
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, W, b))
    if (
        x.device.type == "cpu"
        and x.ndim > 1
        and x.dtype in (torch.float32, torch.bfloat16)
        and not wants_gradient  # this operator of torch's has none
        and torch.backends.mkldnn.is_available()
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
        return product
    return F.linear(x, W, b)


def encode_above(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    floor: float | Tensor,
    *,
    k: int | None = None,
    cut: Cut | None = None,
    bf16_candidates: bool = False,
) -> SparseLatents:
    """Latents whose pre-activation `x @ W_enc.T + b_enc` exceeds a floor, without a graph.

    Parameters
    ----------
    x : Tensor
        Inputs, `[batch, d_in]`.
    W_enc, b_enc : Tensor
        Encoder by rows, `[width, d_in]`, and bias, `[width]`.
    floor : float or Tensor
        One number, or one for each latent, `[width]`.
    k : int, optional
        Keep the `k` largest of each row (and ties with the last of them); for a floor that is one number.
    cut : callable, optional
        Gives the smallest value to keep in each row, from all those above the floor.
    bf16_candidates : bool
        Search for them in a bfloat16 product, with a margin of several times its rounding error,
        and compute the values of those found in full precision: the product takes half the time,
        and a latent is missed only where rounding exceeds the margin.

    Examples
    --------
    >>> W_enc, b_enc = torch.eye(2), torch.zeros(2)
    >>> encode_above(torch.tensor([[0.3, 2.0]]), W_enc, b_enc, 0.5).dense()
    tensor([[0., 2.]])
    """
    if k is not None:
        cut = partial(SparseLatents.kth_largest, k=k)
    with torch.no_grad():
        if bf16_candidates:
            candidates = _candidates(x, W_enc, b_enc, floor, k, cut)
            if len(candidates.values) < RESCORE_BELOW * len(x) * len(W_enc):
                h = candidates.inner_products(x, W_enc) + b_enc.index_select(0, candidates.indices)
                least = floor if isinstance(floor, float) else floor.index_select(0, candidates.indices)
                found = candidates.with_values(h).where(h > least)
                return found if cut is None else _keep(found, cut)
        found = _in_chunks(x, len(W_enc), lambda rows: _above(affine(rows, W_enc, b_enc), floor, k))
        return found if cut is None else _keep(found, cut)


def _keep(latents: SparseLatents, cut: Cut, error: float | Tensor = 0.0) -> SparseLatents:
    """The entries that may be kept if values can be off by an error, `[active]`."""
    smallest = cut(latents.with_values(latents.values - error))
    return latents.where(latents.values + error >= smallest.index_select(0, latents.rows))


def _candidates(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: float | Tensor, k: int | None, cut: Cut | None
) -> SparseLatents:
    """Latents that may be above the floor and kept, from a product in bfloat16."""
    W_half = W_enc.bfloat16()
    # With the floor in the bias, a candidate is any positive entry, and the product's own rounding
    # vanishes near zero, where that is decided; only the bias is off, by up to a part in 256.
    shifted = b_enc - floor
    margin = MARGIN * _rounding_error(x, W_enc, W_half)
    bias = (shifted + shifted.abs() / 256 + margin).bfloat16()
    largest_bias = shifted.abs().max()

    def error(values: Tensor) -> Tensor:
        return margin + (values.abs() + largest_bias) / 128

    def encode(rows: Tensor) -> SparseLatents:
        return _positive(affine(rows.bfloat16(), W_half, bias), k, error)

    found = _in_chunks(x, len(W_enc), encode)
    values = found.values.float()
    if cut is None:
        return found
    shift = floor if isinstance(floor, float) else floor.index_select(0, found.indices)
    return _keep(found.with_values(values + shift), cut, error(values))


def _in_chunks(x: Tensor, width: int, encode: Callable[[Tensor], SparseLatents]) -> SparseLatents:
    """Encode a few rows at a time."""
    parts = [encode(rows) for rows in x.split(max(1, CHUNK_ELEMENTS // width))]
    return parts[0] if len(parts) == 1 else SparseLatents.concatenate(parts)


def _above(h: Tensor, floor: float | Tensor, k: int | None) -> SparseLatents:
    """Entries above the floor; with `k`, little more than the `k` largest of each row."""
    active = h > floor
    if k is not None:
        active &= h >= _below_kth_largest(h, k)
    return SparseLatents.from_mask(active, h)


def _positive(h: Tensor, k: int | None, error: Callable[[Tensor], Tensor]) -> SparseLatents:
    """Entries of a bfloat16 tensor above zero; with `k`, those that may be among a row's largest.

    They are compared as integers, which is faster and equivalent for positive values.
    """
    integers = h.view(torch.int16)
    if k is None:
        return SparseLatents.from_mask(integers > 0, h)
    bound = _below_kth_largest(integers, k).view(torch.bfloat16).float().clamp_min(0)
    least = (bound - 2 * error(bound)).clamp_min(0).bfloat16().view(torch.int16)
    return SparseLatents.from_mask((integers > 0) & (integers >= least), h)


def _below_kth_largest(h: Tensor, k: int) -> Tensor:
    """A lower bound on the `k`-th largest of each row, usually close to it, `[batch, 1]`.

    The maxima of groups of columns are among the row's values, so their `k`-th largest is no larger
    than the row's; there are far fewer of them to search.
    """
    batch, width = h.shape
    size = max(1, width // (GROUPS * k))
    groups = width // size
    maxima = h[:, : groups * size].view(batch, size, groups).amax(1)
    return kth_smallest(maxima, groups - k)[:, None]


def _rounding_error(x: Tensor, W_enc: Tensor, W_half: Tensor) -> Tensor:
    """Root mean square of the error of inner products in bfloat16, measured on a few rows."""
    x = x[:: max(1, len(x) // MARGIN_ROWS)]
    zero = W_enc.new_zeros(len(W_enc))
    rounded = affine(x.bfloat16().float(), W_half.float(), zero)
    return (rounded - affine(x, W_enc, zero)).square().mean().sqrt()


# ---------------------------------------------------------------------- differentiable products
#
# Both functions take the active latents as given: which latents are active is piecewise constant
# in the parameters. Their gradients touch active entries only, and are sums in a fixed order.
# `_Encode` is given its parameters (unused: ARG004) so that their gradients have somewhere to go.


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W_enc: Tensor, b_enc: Tensor, x: Tensor, active: SparseLatents) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x)
        ctx.active = active
        return active.values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x,), active = ctx.saved_tensors, ctx.active
        return active.transposed_matmul(grad, x), active.sum_by_latent(grad), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, active: SparseLatents) -> Tensor:
        ctx.active = active
        return values.index_select(0, active.indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.active.sum_by_latent(grad), None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, active: SparseLatents) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.active = active
        latents = active.with_values(values)
        return latents.dense() @ W_dec if active.mostly_active else latents.matmul(W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (values, W_dec), active = ctx.saved_tensors, ctx.active
        if active.mostly_active:
            grad_values = (grad @ W_dec.T)[active.rows, active.indices]
        else:
            grad_values = active.inner_products(grad, W_dec)
        frozen = not ctx.needs_input_grad[1]
        return grad_values, None if frozen else active.transposed_matmul(values, grad), None


def encode_active(x: Tensor, W_enc: Tensor, b_enc: Tensor, active: SparseLatents) -> Tensor:
    """Values of active latents, differentiable in the encoder.

    Parameters
    ----------
    x : Tensor
        Inputs, `[batch, d_in]`; they get no gradient.
    W_enc, b_enc : Tensor
        Encoder by rows, `[width, d_in]`, and bias, `[width]`.
    active : SparseLatents
        The active latents, whose values are already `x @ W_enc.T + b_enc`.

    Returns
    -------
    Tensor
        The values of `active`, `[active]`.
    """
    values: Tensor = _Encode.apply(W_enc, b_enc, x, active)  # type: ignore[no-untyped-call]  # of torch
    return values


def gather_active(values: Tensor, active: SparseLatents) -> Tensor:
    """One of the values `[width]` for each active entry, `[active]`, differentiable."""
    gathered: Tensor = _Gather.apply(values, active)  # type: ignore[no-untyped-call]  # of torch
    return gathered


def decode_active(values: Tensor, W_dec: Tensor, active: SparseLatents) -> Tensor:
    """`latents @ W_dec` for the latents `active` with other `values`, differentiable in both.

    Parameters
    ----------
    values : Tensor
        `[active]`.
    W_dec : Tensor
        `[width, d_in]`.
    active : SparseLatents
        Which latents are active; its own values are not used.

    Returns
    -------
    Tensor
        `[batch, d_in]`.
    """
    decoded: Tensor = _Decode.apply(values, W_dec, active)  # type: ignore[no-untyped-call]  # of torch
    return decoded
