"""From an SAE as it was trained or published to the one folded `Dictionary`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.dictionary import COMPUTED, Described, Dictionary, Transcoder
from saekit.files import Stamp
from saekit.selection import Latents, select_latents
from saekit.settings import real

BLOCK_ELEMENTS = 1 << 18  # of a matrix, held in float64 at once: 2 MB
GATE_TOLERANCE = 1e-5  # by which rounding may move a gate, relative to `|w| + |b_gate|`


@dataclass(frozen=True, eq=False)
class Unfolded(Described):
    """An SAE as it was trained or published.

    It computes, of raw activations `x`,

    - `z = ((x - mean) * scale) @ whitening`, or `x` normalised token by token;
    - `h = (z - pre_bias) @ (W_enc * gain) + b_enc`, and latent `i` is `h[i]` where `h[i] > 0` and
      `h[i] > threshold[i]`, else 0. In a gated SAE the gate is open where `h > b_mag - gain * b_gate`;
    - `z_hat = latents @ W_dec + b_dec`, and `x_hat` from `z_hat` as `x` from `z`.

    A transcoder predicts, of another activation, `(y - target_mean) * target_scale` by `z_hat + z @ W_skip`.

    Its tensors may be views of files: `fold` reads them a block of latents at a time, so an
    `Unfolded` costs no memory until then. A file that has changed by then is refused.

    Parameters
    ----------
    W_enc, b_enc, W_dec, b_dec : Tensor
        `[d_in, d_sae]`, `[d_sae]`, `[d_sae, d_in]`, `[d_in]`.
    threshold : Tensor, optional
        `[d_sae]`; zero (ReLU) if left out.
    gain : Tensor, optional
        `[d_sae]`: the factor `exp(r_mag)` of a gated SAE.
    pre_bias : Tensor, optional
        `[d_in]`: subtracted before encoding and not added again.
    mean : Tensor, optional
        `[d_in]`; zero if left out.
    scale : float
        Positive factor on centred activations.
    whitening : (Tensor, Tensor), optional
        A matrix `[d_in, d_in]` that activations are multiplied with from the right, and its
        inverse.
    normalization : str, optional
        A normalisation of every token by itself, one of `saekit.dictionary.NORMALIZATIONS`.
    k : int, optional
        For a TopK SAE: greatest number of active latents per token.
    rank_scale : Tensor, optional
        `[d_sae]`: TopK latents compete by `h` times this.
    batch_k : int, optional
        For a BatchTopK SAE that was saved without its inference threshold: the k of training.
    rescaled : bool
        The threshold, and the competition of TopK latents, are about `h` times the norm of the
        decoder row.
    transcoder : bool
        It predicts another activation than the one that it encodes; `W_dec` is `[d_sae, d_out]`, and
        `b_dec` `[d_out]`.
    W_skip : Tensor, optional
        Of a transcoder: `[d_in, d_out]`.
    target_mean : Tensor, optional
        Of a transcoder: `[d_out]`; zero if left out.
    target_scale : float
        Of a transcoder: positive factor on centred targets.
    info : mapping
        Kept as the dictionary's `info`.
    origin : Path, optional
        The file or folder that it was read from, named in errors.
    stamps : tuple of Stamp
        Stamps of the files that its tensors are views of.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    gain: Tensor | None = None
    pre_bias: Tensor | None = None
    mean: Tensor | None = None
    scale: float = 1.0
    whitening: tuple[Tensor, Tensor] | None = None
    normalization: str | None = None
    k: int | None = None
    rank_scale: Tensor | None = None
    batch_k: int | None = None
    rescaled: bool = False
    transcoder: bool = False
    W_skip: Tensor | None = None
    target_mean: Tensor | None = None
    target_scale: float = 1.0
    info: Mapping[str, Any] = field(default_factory=dict)
    origin: Path | None = None
    stamps: tuple[Stamp, ...] = ()

    def __repr__(self) -> str:
        source = "" if self.origin is None else f", from {self.origin.name}"
        transcoder = " transcoder" if self.transcoder else ""
        return f"Unfolded({self.kind}{transcoder}, d_in={self.d_in}, width={self.width}{source})"

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def fold(self, latents: Latents | None = None, *, dtype: torch.dtype = torch.float32) -> Dictionary:
        """The same function as a `Dictionary`, computed in float64 and kept in float32.

        Input normalisation and decoder norms move into encoder, biases and thresholds, so that
        decoder rows have unit norm; latents are rescaled by the norm of their contribution to `x_hat`.
        A latent whose decoder row is zero adds nothing: it keeps its unit and its row, and is never
        active where the threshold is about `h` times that norm.

        Parameters
        ----------
        latents : tensor, array, Series, list or slice, optional
            Only these latents, in this order (`saekit.selection.select_latents`); all if left out.
        dtype : torch.dtype
            Precision of the result: float32 or float64.

        Raises
        ------
        ValueError
            If `scale` is not positive, only some latents of a TopK SAE are asked for, this is a
            BatchTopK SAE without a threshold, a gate would be lost to rounding, a value is not finite,
            or a file that the tensors are in has changed.
        TypeError, IndexError
            If the latents are not indices or a mask, or are out of range.

        Notes
        -----
        Folding a gated SAE makes one test of two: with `w`, `b` and `t` a latent's folded encoder
        column, bias and threshold, and `g = (x @ w + b - t) / gain` its gate, the dictionary compares
        `fl(x @ w + b)` with `t`. Let `u` be the unit roundoff. Rounding `b` and `t` moves the
        comparison by at most `u |b| + u t`, and rounding the sum by `u |x @ w + b|`, which at the
        gate is `u t`; the rounding of `w` and of the inner product is relative to `x @ w`, as in the
        SAE itself. In total the gate moves by at most `u (|b| + 2 t)`, to first order, which is
        compared with `|w| + |b - t|`: the gate's input from a row of unit norm, and its bias, in the
        same unit. Where `exp(r_mag)` is small `w` and `b - t` are, and `t` is not. If the share
        exceeds 1e-5 in float32, the dictionary is kept in float64, where `u` is 5e8 times smaller; if
        it does so in float64, folding is refused. Latents with `t = 0` are exempt: theirs is the test
        of the magnitude, which is compared with 0.

        Examples
        --------
        >>> eye = torch.eye(2)
        >>> sae = Unfolded(eye, torch.zeros(2), 3 * eye, torch.ones(2), pre_bias=torch.ones(2))
        >>> dictionary = sae.fold()
        >>> dictionary.encode(torch.tensor([[2.0, 0.0]]))
        tensor([[3., 0.]])
        >>> dictionary.reconstruct(torch.tensor([[2.0, 0.0]]))
        tensor([[4., 1.]])
        """
        try:
            return self._fold(latents, dtype)
        except (ValueError, TypeError) as error:
            if self.origin is None or (isinstance(error, TypeError) and latents is not None):
                raise
            raise ValueError(f"{self.origin}: {error}") from error

    def _fold(self, latents: Latents | None, dtype: torch.dtype) -> Dictionary:
        if self.batch_k is not None:
            raise ValueError(
                f"This BatchTopK SAE (k={self.batch_k}) was saved without an inference threshold, so what a "
                "token activates depends on the batch it is in: saekit.as_jumprelu(saekit.open_sae(...), "
                "activations) measures a threshold."
            )
        if dtype not in COMPUTED:
            raise ValueError(f"A dictionary computes in float32 or float64, found {dtype}.")
        real("scale", self.scale, above=0)
        real("target_scale", self.target_scale, above=0)
        if self.transcoder and self.whitening is not None:
            raise ValueError("The activations of a transcoder cannot be whitened: it predicts other ones.")
        index = torch.arange(self.width)
        if latents is not None:
            if self.k is not None:
                raise ValueError(
                    f"Some latents of a TopK SAE are not an SAE: its {self.k} active ones compete with all."
                )
            index = select_latents(latents, self.width)
        width, device = len(index), self.W_enc.device
        W_enc = torch.empty(self.d_in, width, device=device, dtype=dtype)
        W_dec = torch.empty(width, self.W_dec.shape[1], device=device, dtype=dtype)
        b_enc, threshold, rank_scale = (torch.empty(width, device=device, dtype=dtype) for _ in range(3))

        start = 0
        for block in index.to(device).split(max(1, BLOCK_ELEMENTS // self.d_in)):
            here = slice(start, start := start + len(block))
            for stamp in self.stamps:
                stamp.check()
            encoder, bias, decoder, own_norm = self._block(block)
            norm = decoder.norm(dim=1)
            dead = norm == 0
            norm = norm.where(~dead, 1.0)
            own = own_norm.where(~dead, 1.0) if self.rescaled else torch.ones_like(norm)
            cut = torch.zeros_like(norm)
            if self.threshold is not None:
                cut = (self.threshold[block].double() / own * norm).clamp(min=0)
            if self.rescaled:  # what is compared is then 0, which exceeds no threshold
                cut = cut.where(~dead, torch.inf)
            encoder, bias = encoder * norm, bias * norm
            if self.gain is not None:
                lost = _gate_lost(encoder, bias, cut, torch.finfo(dtype).eps / 2)
                if lost.any() and dtype == torch.float32:
                    return self._fold(latents, torch.float64)
                if lost.any():
                    raise ValueError(
                        f"{int(lost.sum())} latents have so small a gain exp(r_mag) that rounding would "
                        f"decide their gates, the first of them latent {int(block[lost][0])}."
                    )
            W_enc[:, here], b_enc[here], threshold[here] = encoder, bias, cut
            W_dec[here] = decoder / norm[:, None]
            rank_scale[here] = own / norm
            if self.rank_scale is not None:
                rank_scale[here] *= self.rank_scale[block]

        competes = self.k is not None and not torch.allclose(
            rank_scale, rank_scale[:1].expand_as(rank_scale), rtol=1e-6, atol=0
        )
        kind: Callable[..., Dictionary] = Dictionary
        if self.transcoder:
            W_skip = None if self.W_skip is None else self._skip().to(dtype)
            kind = partial(Transcoder, W_skip=W_skip)
        return kind(
            W_enc=W_enc,
            b_enc=b_enc,
            W_dec=W_dec,
            b_dec=self._output_bias().to(dtype),
            threshold=threshold,
            k=self.k,
            rank_scale=rank_scale if competes else None,
            normalization=self.normalization,
            info=self.info,
        )

    def _block(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some latents' encoder and bias on raw `x`, contribution to `x_hat`, and own decoder norm."""
        encoder, decoder = self.W_enc[:, block].double(), self.W_dec[block].double()
        bias, own_norm = self.b_enc[block].double(), decoder.norm(dim=1)
        if self.gain is not None:
            encoder *= self.gain[block].double()
        if self.pre_bias is not None:
            bias = bias - self.pre_bias.double() @ encoder
        if self.whitening is not None:
            matrix, inverse = self.whitening
            encoder, decoder = matrix.double() @ encoder, decoder @ inverse.double()
        if self.scale != 1:
            encoder = encoder * self.scale
        if (out_scale := self.target_scale if self.transcoder else self.scale) != 1:
            decoder = decoder / out_scale
        if self.mean is not None:
            bias = bias - self.mean.double() @ encoder
        return encoder, bias, decoder, own_norm

    def _skip(self) -> Tensor:
        """The skip connection of a transcoder, from raw `x` to raw `y`."""
        assert self.W_skip is not None
        return self.W_skip.double() * (self.scale / self.target_scale)

    def _output_bias(self) -> Tensor:
        bias = self.b_dec.double()
        if self.transcoder:
            bias = bias / self.target_scale
            if self.W_skip is not None and self.mean is not None:
                bias = bias - self.mean.double() @ self._skip()
            return bias if self.target_mean is None else bias + self.target_mean.double()
        if self.whitening is not None:
            bias = bias @ self.whitening[1].double()
        bias = bias / self.scale
        return bias if self.mean is None else bias + self.mean.double()


def _gate_lost(encoder: Tensor, bias: Tensor, threshold: Tensor, roundoff: float) -> Tensor:
    """Latents whose gate rounding would move by more than `GATE_TOLERANCE`: see `Unfolded.fold`, Notes."""
    moved = roundoff * (bias.abs() + 2 * threshold)
    scale = encoder.norm(dim=0) + (bias - threshold).abs()
    lost: Tensor = (threshold > 0) & torch.isfinite(threshold) & (moved > GATE_TOLERANCE * scale)
    return lost


def with_directions(dictionary: Dictionary, W_dec: Tensor, *, kind: str) -> Dictionary:
    """A dictionary with other decoder rows, of any norm, and its encoder unchanged.

    The rows' norms are folded, so the same latents are active, with activations rescaled.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary to change.
    W_dec : Tensor
        `[width, d_out]`.
    kind : str
        Kind of the result.
    """
    tensors: dict[str, Any] = {**dictionary.tensors(), "W_dec": W_dec}
    return Unfolded(
        **tensors,
        k=dictionary.k,
        normalization=dictionary.normalization,
        transcoder=dictionary.transcoder,
        info={**dictionary.info, "kind": kind},
    ).fold(dtype=dictionary.W_enc.dtype)
