"""From an SAE as it was trained or published to the one folded `Dictionary`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.dictionary import Described, Dictionary

BLOCK_ELEMENTS = 1 << 18  # of a matrix, held in float64 at once: 2 MB


@dataclass(frozen=True, eq=False)
class Unfolded(Described):
    """An SAE as it was trained or published.

    It computes, of raw activations `x`,

    - `z = ((x - mean) * scale) @ whitening`, or `x` normalised token by token;
    - `h = (z - pre_bias) @ (W_enc * gain) + b_enc`, and latent `i` is `h[i]` where `h[i] > 0` and
      `h[i] > threshold[i]`, else 0;
    - `z_hat = latents @ W_dec + b_dec`, and `x_hat` from `z_hat` as `x` from `z`.

    Its tensors may be views of files: `fold` reads them a block of latents at a time, so an
    `Unfolded` costs no memory until then.

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
        A normalisation of every token on its own, one of `saekit.dictionary.NORMALIZATIONS`.
    k : int, optional
        Of a TopK SAE: how many latents of a token are active at most.
    rank_scale : Tensor, optional
        `[d_sae]`: TopK latents compete by `h` times this.
    batch_k : int, optional
        Of a BatchTopK SAE that was saved without the threshold it should be used with.
    rescaled : bool
        The threshold, and the competition of TopK latents, are about `h` times the norm of the
        decoder row.
    info : mapping
        Kept with the dictionary.
    origin : Path, optional
        The file or folder that it was read from, to be named where it cannot be folded.
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
    info: Mapping[str, Any] = field(default_factory=dict)
    origin: Path | None = None

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def fold(self, latents: Sequence[int] | slice | Tensor | None = None) -> Dictionary:
        """The same function as a `Dictionary`, computed in float64 and kept in float32.

        Input normalisation and decoder norms move into encoder, biases and thresholds, so that
        decoder rows have unit norm; latents are rescaled by the norm of what they add to `x_hat`.

        Parameters
        ----------
        latents : sequence of int, slice or Tensor, optional
            Only these latents, in this order; all if left out.

        Raises
        ------
        ValueError
            If a decoder row is zero, if `scale` is not positive, if only some latents are asked
            for of a TopK SAE, or if this is a BatchTopK SAE without a threshold.
        """
        try:
            return self._fold(latents)
        except ValueError as error:
            if self.origin is None:
                raise
            raise ValueError(f"{self.origin}: {error}") from error

    def _fold(self, latents: Sequence[int] | slice | Tensor | None) -> Dictionary:
        if self.batch_k is not None:
            raise ValueError(
                f"This BatchTopK SAE (k={self.batch_k}) was saved without an inference threshold, so what a "
                "token activates depends on the batch it is in: saekit.as_jumprelu(saekit.open_sae(...), "
                "activations) measures a threshold."
            )
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, found {self.scale}.")
        index = torch.arange(self.width)
        if latents is not None:
            if self.k is not None:
                raise ValueError(
                    f"Some latents of a TopK SAE are not an SAE: its {self.k} active ones are chosen of all."
                )
            index = index[latents]
        width, device = len(index), self.W_enc.device
        W_enc = torch.empty(self.d_in, width, device=device)
        W_dec = torch.empty(width, self.d_in, device=device)
        b_enc, threshold, rank_scale = (torch.empty(width, device=device) for _ in range(3))

        start = 0
        for block in index.to(device).split(max(1, BLOCK_ELEMENTS // self.d_in)):
            here = slice(start, start := start + len(block))
            encoder, bias, decoder, own_norm = self._block(block)
            norm = decoder.norm(dim=1)
            if (norm == 0).any():
                raise ValueError(
                    f"Decoder rows of norm zero cannot be folded: {int((norm == 0).sum())} found."
                )
            own = own_norm if self.rescaled else torch.ones_like(norm)
            W_enc[:, here] = encoder * norm
            b_enc[here] = bias * norm
            W_dec[here] = decoder / norm[:, None]
            rank_scale[here] = own / norm
            if self.rank_scale is not None:
                rank_scale[here] *= self.rank_scale[block]
            if self.threshold is None:
                threshold[here] = 0
            else:
                threshold[here] = (self.threshold[block].double() / own * norm).clamp(min=0)

        competes = self.k is not None and not torch.allclose(
            rank_scale, rank_scale[:1].expand_as(rank_scale), rtol=1e-6, atol=0
        )
        return Dictionary(
            W_enc=W_enc,
            b_enc=b_enc,
            W_dec=W_dec,
            b_dec=self._output_bias().float(),
            threshold=threshold,
            k=self.k,
            rank_scale=rank_scale if competes else None,
            normalization=self.normalization,
            info=self.info,
        )

    def _block(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some latents' encoder and bias on raw `x`, what they add to `x_hat`, and their own decoder norm."""
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
            encoder, decoder = encoder * self.scale, decoder / self.scale
        if self.mean is not None:
            bias = bias - self.mean.double() @ encoder
        return encoder, bias, decoder, own_norm

    def _output_bias(self) -> Tensor:
        bias = self.b_dec.double()
        if self.whitening is not None:
            bias = bias @ self.whitening[1].double()
        bias = bias / self.scale
        return bias if self.mean is None else bias + self.mean.double()


def with_directions(dictionary: Dictionary, W_dec: Tensor, *, kind: str) -> Dictionary:
    """A dictionary with other decoder rows, of any norm, its encoder as it was.

    The rows' norms are folded, so the same latents are active, with activations rescaled.

    Parameters
    ----------
    dictionary : Dictionary
        Whose latents these are.
    W_dec : Tensor
        `[width, d_in]`.
    kind : str
        Of the result.
    """
    tensors: dict[str, Any] = {**dictionary.tensors(), "W_dec": W_dec}
    return Unfolded(
        **tensors,
        k=dictionary.k,
        normalization=dictionary.normalization,
        info={**dictionary.info, "kind": kind},
    ).fold()
