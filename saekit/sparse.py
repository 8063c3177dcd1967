"""Sparse latents and the kernels that make training and decoding fast.

After the encoder's matrix product almost nothing is dense: a token has tens of active latents
out of thousands. Active latents are kept in compressed rows, and every product with them is an
`embedding_bag` or its mirror image, which touches active entries only and adds in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
    """

    offsets: Tensor
    indices: Tensor
    values: Tensor
    width: int

    @classmethod
    def from_mask(cls, active: Tensor, values: Tensor) -> SparseLatents:
        """Latents where the Boolean `active` `[batch, width]` holds, with their dense `values`."""
        rows, indices = active.nonzero(as_tuple=True)
        return cls(_starts(rows, len(active)), indices, values[rows, indices], active.shape[1])

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

    @property
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
        return order, self.rows[order], _starts(self.indices, self.width)

    @property
    def mostly_active(self) -> bool:
        """Whether dense products are faster than sparse ones."""
        return len(self.indices) > DENSE_ABOVE * len(self) * self.width

    def where(self, keep: Tensor) -> SparseLatents:
        """The entries for which the Boolean `keep` `[active]` holds."""
        offsets = F.pad(keep.cumsum(0), (1, 0))[self.offsets]
        return SparseLatents(offsets, self.indices[keep], self.values[keep], self.width)

    def with_values(self, values: Tensor) -> SparseLatents:
        """The same active latents with other values."""
        return replace(self, values=values)

    def with_rows(self, rows: Tensor, other: SparseLatents) -> SparseLatents:
        """The same batch with some `rows`, ascending, int64, replaced by the rows of `other`."""
        replaced = torch.zeros(len(self), dtype=torch.bool, device=rows.device)
        replaced[rows] = True
        kept = self.where(~replaced[self.rows])
        owner = torch.cat([kept.rows, rows[other.rows]])
        order = stable_order(owner, len(self))
        return SparseLatents(
            _starts(owner, len(self)),
            torch.cat([kept.indices, other.indices])[order],
            torch.cat([kept.values, other.values])[order],
            self.width,
        )

    def kth_largest(self, k: int) -> Tensor:
        """The `k`-th largest value of each row, minus infinity for rows of fewer, `[batch]`."""
        counts, rows = self.counts, self.rows
        longest = max(k, int(counts.max())) if len(self) else k
        padded = self.values.new_full((len(self), longest), -torch.inf)
        place = torch.arange(len(rows), device=rows.device) - self.offsets[rows]
        padded[rows, place] = self.values
        return padded.topk(k, dim=1).values[:, -1]

    def matmul(self, matrix: Tensor) -> Tensor:
        """`latents @ matrix` for a `[width, d]` matrix: `[batch, d]`."""
        return F.embedding_bag(
            self.indices, matrix, self.offsets[:-1], mode="sum", per_sample_weights=self.values
        )

    def transpose(self) -> SparseLatents:
        """The same entries by latent: row `i` lists the batch rows where latent `i` is active."""
        order, rows, offsets = self.by_latent
        return SparseLatents(offsets, rows, self.values[order], len(self))

    def transposed_matmul(self, values: Tensor, matrix: Tensor) -> Tensor:
        """`latents.T @ matrix` with other `values`, for a `[batch, d]` matrix: `[width, d]`."""
        if self.mostly_active:
            return self.with_values(values).dense().T @ matrix
        order, rows, offsets = self.by_latent
        return SparseLatents(offsets, rows, values[order], len(self)).matmul(matrix)


def _starts(indices: Tensor, size: int) -> Tensor:
    """Offsets of the groups of equal `indices`, `[size + 1]`."""
    return F.pad(torch.bincount(indices, minlength=size).cumsum(0), (1, 0))


def stable_order(indices: Tensor, size: int) -> Tensor:
    """Stable argsort of integers below `size`."""
    if indices.device.type == "cpu" and size <= 1 << 16:
        # NumPy sorts 16-bit integers by radix, ten times faster than torch sorts any.
        return torch.from_numpy(np.argsort(indices.numpy().astype(np.uint16), kind="stable"))
    return indices.argsort(stable=True)


# ---------------------------------------------------------------------- differentiable products
#
# Both functions take the active latents as given: which latents are active is piecewise constant
# in the parameters. Their gradients touch active entries only, and are sums in a fixed order.


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W_enc: Tensor, b_enc: Tensor, x: Tensor, active: SparseLatents) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x)
        ctx.active = active
        return active.values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x,), active = ctx.saved_tensors, ctx.active
        bias = torch.bincount(active.indices, weights=grad, minlength=active.width).to(grad.dtype)
        return active.transposed_matmul(grad, x), bias, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, active: SparseLatents) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.active = active
        if active.mostly_active:
            return active.with_values(values).dense() @ W_dec
        with torch.enable_grad():  # keeps what the gradient of the values needs, for backward
            ctx.values = values.detach().requires_grad_()
            ctx.output = active.with_values(ctx.values).matmul(W_dec.detach())
        return ctx.output.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (values, W_dec), active = ctx.saved_tensors, ctx.active
        if active.mostly_active:
            grad_values = (grad @ W_dec.T)[active.rows, active.indices]
        else:
            (grad_values,) = torch.autograd.grad(ctx.output, ctx.values, grad)
        return grad_values, active.transposed_matmul(values, grad), None


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
    return _Encode.apply(W_enc, b_enc, x, active)


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
    return _Decode.apply(values, W_dec, active)
