"""The error of every mixture of two dictionaries, out of one pass over the tokens.

With the small dictionary's residual `r`, moving latents changes the squared error by a quadratic
form in which ones have moved. What it needs are the sums of products of activations, which are
sparse, and inner products of decoder directions. Any path from one dictionary to the other, and
any number of them, then costs no further look at the tokens.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import ActivationStore, batches_of
from saekit.dictionary import Dictionary
from saekit.metrics import Moments, n_excluded
from saekit.sparse import SparseLatents, affine

BLOCK = 512  # rows of the interaction computed at a time


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """What the error of any mixture of two dictionaries depends on.

    Entries are the small dictionary's latents, then the large one's, then the decoder bias, which
    is one more latent that is always active with the difference of the biases as its direction.
    With `z` 1 for a latent of the large dictionary that has moved in, -1 for one of the small
    that has moved out, and the share of the bias that has been swapped, the squared error summed
    over tokens is `sse_small - 2 z @ linear + z @ interaction @ z`.

    Attributes
    ----------
    small, large : Dictionary
        The pair.
    linear : ndarray
        Sum over tokens of `f_i <v_i, r>`, float64 `[entries]`.
    diagonal : ndarray
        Sum over tokens of `f_i^2 <v_i, v_i>`, float64 `[entries]`.
    rows, columns, values : Tensor
        Above the diagonal, where it is not zero, the interaction `sum f_i f_j <v_i, v_j>`: int32,
        int32, float64 `[pairs]`.
    latents : SparseLatents
        Active latents of both on every token, `[n_tokens]` rows; the large ones after the small.
    sse_small, total_variance : float
        Squared error of the small dictionary, and squared deviations of the activations, summed.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    small: Dictionary
    large: Dictionary
    linear: np.ndarray
    diagonal: np.ndarray
    rows: Tensor
    columns: Tensor
    values: Tensor
    latents: SparseLatents
    sse_small: float
    total_variance: float
    n_tokens: int
    n_excluded: int

    @property
    def n_entries(self) -> int:
        """Latents of both, and the bias."""
        return len(self.linear)

    @property
    def bias(self) -> int:
        """Entry of the decoder bias: the last."""
        return len(self.linear) - 1

    @cached_property
    def density(self) -> np.ndarray:
        """Share of tokens on which each latent is active, float64; the bias, which is none, 0."""
        counts = torch.bincount(self.latents.indices, minlength=self.n_entries)
        return counts.double().numpy() / self.n_tokens

    @cached_property
    def sign(self) -> np.ndarray:
        """What moving changes each entry's coefficient by: -1 for small latents, else 1."""
        return np.where(np.arange(self.n_entries) < self.small.width, -1.0, 1.0)

    @cached_property
    def weights(self) -> Tensor:
        """What each pair adds to the squared error once both have moved, float64 `[pairs]`."""
        sign = torch.from_numpy(self.sign)
        return 2 * self.values * sign.index_select(0, self.rows) * sign.index_select(0, self.columns)

    @cached_property
    def symmetric(self) -> csr_array:
        """The whole interaction, float64 `[entries, entries]`."""
        shape = (self.n_entries, self.n_entries)
        upper = csr_array((self.values.numpy(), (self.rows.numpy(), self.columns.numpy())), shape=shape)
        place = np.arange(self.n_entries)
        return (upper + upper.T + csr_array((self.diagonal, (place, place)), shape=shape)).tocsr()


def pair_statistics(
    small: Dictionary,
    large: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    batch_size: int = 4096,
    progress: bool = False,
) -> PairStatistics:
    """Encode a set of tokens with both dictionaries once, and keep what stitching needs.

    Memory grows with the active entries (16 bytes each) and with the pairs of latents that are
    ever active together (24 bytes each), never with tokens times width.

    Parameters
    ----------
    small, large : Dictionary
        Latents of both must not depend on each other.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.

    Raises
    ------
    ValueError
        If a dictionary is TopK, `d_in` does not fit, or there are no tokens.
    """
    for dictionary in (small, large):
        dictionary.require_independent("Stitching")
    if small.d_in != large.d_in:
        raise ValueError(
            f"Only dictionaries of one d_in can be stitched: {small.name} has {small.d_in}, "
            f"{large.name} has {large.d_in}."
        )
    n_entries = small.width + large.width + 1
    directions = torch.cat([small.W_dec, large.W_dec, (large.b_dec - small.b_dec)[None]]).float().cpu()
    moments, parts = Moments(small.d_in), []
    by_latent = torch.zeros(n_entries, small.d_in, dtype=torch.float64)  # sums of f_i r
    sse = 0.0
    with torch.no_grad(), tqdm(disable=not progress, unit="token", desc="stitching") as bar:
        for _, x in batches_of(activations, batch_size, device=large.W_enc.device):
            of_small, of_large = small.encode_sparse(x), large.encode_sparse(x)
            residual = (x - small.decode(of_small)).cpu()
            latents = _side_by_side(of_small, of_large, n_entries)
            by_latent += latents.transpose().matmul(residual)
            by_latent[-1] += residual.sum(0)
            sse += float(residual.double().square().sum())
            moments.update(x)
            parts.append(latents)
            bar.update(len(x))
    if moments.n == 0:
        raise ValueError("There are no activations to stitch on: every position is excluded.")
    latents = SparseLatents.concatenate(parts)
    squares = latents.sum_by_latent(latents.values.double().square())
    squares[-1] = moments.n
    rows, columns, values = _interaction(latents, directions)
    return PairStatistics(
        small=small,
        large=large,
        linear=(by_latent * directions).sum(1).numpy(),
        diagonal=(squares * directions.double().square().sum(1)).numpy(),
        rows=rows,
        columns=columns,
        values=values,
        latents=latents,
        sse_small=sse,
        total_variance=moments.total_variance,
        n_tokens=moments.n,
        n_excluded=n_excluded(activations),
    )


def _side_by_side(small: SparseLatents, large: SparseLatents, width: int) -> SparseLatents:
    """The active latents of both in one row each, on the CPU, the large ones after the small."""
    small, large = (
        SparseLatents(s.offsets.cpu(), s.indices.cpu(), s.values.float().cpu(), s.width)
        for s in (small, large)
    )
    offsets = small.offsets + large.offsets
    # An entry moves behind all that the other dictionary has in earlier rows (and, of the large
    # one, in the same row).
    place_small = torch.arange(len(small.indices)) + large.offsets[:-1].index_select(0, small.rows)
    place_large = torch.arange(len(large.indices)) + small.offsets[1:].index_select(0, large.rows)
    indices = torch.empty(len(place_small) + len(place_large), dtype=torch.long)
    values = torch.empty(len(indices))
    indices[place_small], indices[place_large] = small.indices, large.indices + small.width
    values[place_small], values[place_large] = small.values, large.values
    return SparseLatents(offsets, indices, values, width)


def _interaction(latents: SparseLatents, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_t f_i f_j <v_i, v_j>` above the diagonal where it is not zero: row, column, value."""
    bias = latents.width - 1
    by_token = csr_array(
        (latents.values.numpy(), latents.indices.int().numpy(), latents.offsets.int().numpy()),
        shape=(len(latents), latents.width),
    )
    by_latent = by_token.T.tocsr()

    def block(start: int) -> tuple[Tensor, ...]:
        stop = min(start + BLOCK, bias)
        products = (by_latent[start:stop] @ by_token[:, start:]).tocoo()
        above = products.col > products.row
        rows, columns = products.row[above], products.col[above]
        gram = affine(directions[start:stop], directions[start:], directions.new_zeros(bias + 1 - start))
        values = products.data[above] * gram.numpy()[rows, columns].astype(np.float64)
        places = (torch.from_numpy(place + np.int32(start)) for place in (rows, columns))
        return *places, torch.from_numpy(values)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # sparse products release the lock
        parts = list(pool.map(block, range(0, bias, BLOCK)))
    # The bias is active everywhere: its products are the latents' sums.
    sums = latents.sum_by_latent(latents.values.double())[:-1]
    inner = directions[:-1].double() @ directions[-1].double()
    parts.append(
        (torch.arange(bias, dtype=torch.int32), torch.full((bias,), bias, dtype=torch.int32), sums * inner)
    )
    rows, columns, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return rows, columns, values
