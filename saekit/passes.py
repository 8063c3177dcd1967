"""One pass over activations: batches encoded once for all additions, and the sums they all need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Activations, ActivationStore, as_activations, batches_of
from saekit.agreement import check_agreement, refuse
from saekit.dictionary import Dictionary
from saekit.encodings import Encoder
from saekit.moments import Moments
from saekit.sparse import SparseLatents


@dataclass(eq=False)
class Batch:
    """Some tokens of a pass; their latents and residuals are computed once, when they are asked for.

    Attributes
    ----------
    positions : Tensor
        Positions in the store (or rows of the tensor), int64 `[n]`, on the CPU.
    x : Tensor
        Raw activations, float32 `[n, d_in]`, on the dictionaries' device.
    target : Tensor
        The activations to be predicted, float32 `[n, d_out]`: `x` itself, except for transcoders.
    first : int
        Tokens of the pass before these.
    encoders : mapping
        By the `id` of a dictionary, what encodes in its place.
    """

    positions: Tensor
    x: Tensor
    target: Tensor
    first: int = 0
    encoders: Mapping[int, Encoder] = field(default_factory=dict)
    _latents: dict[int, SparseLatents] = field(default_factory=dict)
    _residuals: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def latents(self, dictionary: Dictionary) -> SparseLatents:
        """Active latents of the tokens."""
        if id(dictionary) not in self._latents:
            encoder = self.encoders.get(id(dictionary))
            found = encoder(self.x, self.first) if encoder else dictionary.encode_sparse(self.x)
            self._latents[id(dictionary)] = found
        return self._latents[id(dictionary)]

    def residual(self, dictionary: Dictionary) -> Tensor:
        """The residual of the tokens, the target minus its prediction `x_hat`, `[n, d_out]`."""
        if id(dictionary) not in self._residuals:
            x_hat = dictionary.decode(self.latents(dictionary), dictionary.row_scale(self.x))
            self._residuals[id(dictionary)] = self.target - x_hat
        return self._residuals[id(dictionary)]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a pass.

    Attributes
    ----------
    moments : Moments
        Number, mean and total variance of the activations, of a transcoder's the targets.
    n_excluded : int
        Positions of the store that were left out; 0 for a plain tensor.
    """

    moments: Moments
    n_excluded: int

    @property
    def n_tokens(self) -> int:
        """Tokens used."""
        return self.moments.n

    @property
    def total_variance(self) -> float:
        """Sum of squared deviations from the mean: the denominator of FVU."""
        return self.moments.total_variance

    def require(self, found: Tokens, role: str, *, allow_mismatch: bool = False) -> None:
        """Refuse other tokens in place of these, told apart by number, mean and total variance.

        Parameters
        ----------
        found : Tokens
            The tokens that were given.
        role : str
            The result that was measured on these, such as `"The insertion"`.
        allow_mismatch : bool
            Warn instead of raising.

        Raises
        ------
        MismatchError
            If the two differ.
        """
        # Sums over the same tokens differ by rounding where batches or devices do.
        same = self.n_tokens == found.n_tokens and math.isclose(
            self.total_variance, found.total_variance, rel_tol=1e-6
        )
        spread = math.sqrt(self.total_variance / self.n_tokens)
        if same and torch.allclose(self.moments.mean, found.moments.mean, rtol=1e-6, atol=1e-5 * spread):
            return
        refuse(
            f"{role} was measured on {self._described}, but {found._described} were given in their place.",
            allow_mismatch=allow_mismatch,
        )

    @property
    def _described(self) -> str:
        mean = float(self.moments.mean.mean())
        return f"{self.n_tokens} tokens (mean {mean:.6g}, total variance {self.total_variance:.6g})"


class HasTokens(Protocol):
    """A result that holds the tokens it was measured on."""

    @property
    def tokens(self) -> Tokens:
        """The tokens."""


class Measured:
    """The counts of a result that holds its `tokens`."""

    @property
    def n_tokens(self: HasTokens) -> int:
        """Tokens used."""
        return self.tokens.n_tokens

    @property
    def n_excluded(self: HasTokens) -> int:
        """Positions left out."""
        return self.tokens.n_excluded


@torch.no_grad()
def one_pass(
    activations: Activations,
    *additions: Callable[[Batch], None],
    dictionaries: Sequence[Dictionary] = (),
    purpose: str,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Tokens:
    """Go over activations once and hand every batch to all additions.

    Store and dictionaries are compared first (`check_agreement`).

    Parameters
    ----------
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`; for
        transcoders, inputs beside targets `[n, d_in + d_out]`.
    *additions : callable
        Each is called with every `Batch`, in order. Tokens are encoded once, even if several of them
        ask the same dictionary.
    dictionaries : sequence of Dictionary
        The dictionaries that will be asked; batches are put on the first one's device. None if only the
        moments of the activations are wanted.
    purpose : str
        Purpose of the pass, as a noun for progress bar and errors, such as `"insertion"`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the inputs do not agree, an activation is not finite, or there are no tokens.
    """
    activations = as_activations(activations)
    check_agreement(activations=activations, dictionaries=dictionaries, allow_mismatch=allow_mismatch)
    device = dictionaries[0].W_enc.device if dictionaries else None
    d_in, d_out = _sides(activations, dictionaries)
    moments = Moments(d_out or d_in)
    encoders = {id(one): Encoder(one, activations, batch_size) for one in dictionaries}
    with tqdm(disable=not progress, unit="token", unit_scale=True, desc=purpose) as bar:
        if not isinstance(activations, Tensor):
            bar.total = len(activations.positions)
        for positions, x in batches_of(activations, batch_size, device=device):
            target = x
            if d_out:
                x, target = (part.contiguous() for part in x.split([d_in, d_out], dim=1))
            batch = Batch(positions, x, target, moments.n, encoders)
            for add in additions:
                add(batch)
            moments.update(target)
            bar.update(len(x))
    if moments.n == 0:
        raise ValueError(f"There are no activations for {purpose}: every position is excluded.")
    for encoder in encoders.values():
        encoder.finish(moments.n)
    excluded = 0 if isinstance(activations, Tensor) else int(activations.excluded.sum())
    return Tokens(moments, excluded)


def _sides(activations: ActivationStore | Tensor, dictionaries: Sequence[Dictionary]) -> tuple[int, int]:
    """Columns of inputs, and of targets beside them: none if the dictionaries predict their input."""
    if not isinstance(activations, Tensor):
        return activations.d_in, activations.d_out
    d_out = dictionaries[0].d_out if dictionaries and dictionaries[0].transcoder else 0
    return activations.shape[1] - d_out, d_out
