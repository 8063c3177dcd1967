"""Turn a dictionary whose latents depend on each other, or on the row, into a thresholded one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.activations import ActivationStore
from saekit.dictionary import LAYER_NORM_EPS, Dictionary
from saekit.folding import Unfolded
from saekit.moments import fvu
from saekit.passes import Batch, one_pass
from saekit.results import Result
from saekit.sparse import SparseLatents


@dataclass(frozen=True, eq=False, repr=False)
class Conversion(Result):
    """A dictionary with a threshold in place of its competition, and what that changed.

    Attributes
    ----------
    dictionary : Dictionary
        Of kind `"jumprelu"`: independent latents of raw activations.
    frame : DataFrame
        Before and after: `dictionary`, `l0`, `mse`, `fvu`.
    threshold : float or None
        The common threshold, in the units in which latents competed; None if they did not compete.
    share_changed : float
        Share of entries that are active only before or only after, among all that are active in either.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    dictionary: Dictionary
    frame: pd.DataFrame
    threshold: float | None
    share_changed: float
    n_tokens: int
    n_excluded: int

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers.

        `threshold`, `l0_before`, `l0_after`, `fvu_before`, `fvu_after`, `share_changed`,
        `n_tokens`, `n_excluded`.
        """
        before, after = self.frame.to_dict("records")
        return {
            "threshold": self.threshold,
            "l0_before": before["l0"],
            "l0_after": after["l0"],
            "fvu_before": before["fvu"],
            "fvu_after": after["fvu"],
            "share_changed": self.share_changed,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
        }


def as_jumprelu(
    dictionary: Dictionary | Unfolded,
    activations: ActivationStore | Tensor,
    *,
    constant_scale: bool = True,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Conversion:
    """Replace competition between latents, and normalisation of single rows, by constants.

    - The k-largest rule becomes one threshold for all latents and tokens: the mean over tokens of
      the least activation that a token keeps. This is the rule by which BatchTopK gets its inference
      threshold (Bussmann et al. 2024), with each token as a separate batch, because TopK latents
      compete within a token.
    - A BatchTopK SAE that was saved without its threshold gets it by the same rule, from batches of
      `batch_size` tokens.
    - A normalisation of every row becomes one with the mean scale of all rows, which folds into
      weights and biases.

    Parameters
    ----------
    dictionary : Dictionary or Unfolded
        A dictionary whose latents cannot be moved, or a BatchTopK SAE without a threshold
        (`saekit.open_sae`).
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out) or raw activations `[n, d_in]`.
    constant_scale : bool
        Replace the normalisation of rows. Without this, a dictionary that normalises rows keeps doing
        so: its latents no longer compete, but still cannot be moved.
    batch_size : int
        Tokens per batch.
    progress : bool
        Show progress bars in tokens: one for measuring the constants, one for measuring the change.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionary's latents are already independent, or none is ever active; if dictionary and
        activations do not belong together, an activation is not finite, or there are none.

    Examples
    --------
    >>> converted = as_jumprelu(topk, x)
    >>> converted.dictionary
    Dictionary(jumprelu 8 (seed 0), d_in=6, width=8)
    """
    batch_size = settings.whole("batch_size", batch_size)
    batch_k = dictionary.batch_k if isinstance(dictionary, Unfolded) else None
    if isinstance(dictionary, Unfolded):
        # Ranks are kept for TopK SAEs only, so this one is read as a TopK SAE that keeps every latent.
        every = dictionary.k if batch_k is None else dictionary.width
        dictionary = replace(dictionary, batch_k=None, k=every).fold()
    if dictionary.k is None and (dictionary.normalization is None or not constant_scale):
        raise ValueError(f"{dictionary.name} needs no conversion: its latents do not depend on each other.")

    constants = _Constants(dictionary, batch_k)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "progress": progress,
        "allow_mismatch": allow_mismatch,
    }
    one_pass(activations, constants.add, dictionaries=[dictionary], purpose="measuring constants", **options)
    threshold = None if dictionary.k is None else constants.threshold
    converted = _with_threshold(dictionary, threshold)
    if constant_scale and dictionary.normalization is not None:
        converted = _with_constant_scale(converted, *constants.scale)

    errors, active, common = [0.0, 0.0], [0, 0], 0

    def compare(batch: Batch) -> None:
        nonlocal common
        found = _compete(dictionary, batch, batch_k), batch.latents(converted)
        for i, (version, latents) in enumerate(zip((dictionary, converted), found, strict=True)):
            x_hat = version.decode(latents, version.row_scale(batch.x))
            errors[i] += float((batch.target - x_hat).double().square().sum())
            active[i] += len(latents.values)
        entries = (latents.rows * latents.width + latents.indices for latents in found)
        common += int(torch.isin(*entries).sum())

    tokens = one_pass(
        activations, compare, dictionaries=[dictionary, converted], purpose="comparing", **options
    )
    either = sum(active) - common
    return Conversion(
        dictionary=converted,
        frame=pd.DataFrame(
            {
                "dictionary": [dictionary.name, converted.name],
                "l0": [count / tokens.n_tokens for count in active],
                "mse": [error / tokens.n_tokens for error in errors],
                "fvu": [fvu(error, tokens.total_variance) for error in errors],
            }
        ),
        threshold=threshold,
        share_changed=1 - common / either if either else 0.0,
        n_tokens=tokens.n_tokens,
        n_excluded=tokens.n_excluded,
    )


def _compete(dictionary: Dictionary, batch: Batch, batch_k: int | None) -> SparseLatents:
    """The latents of a batch that win the competition, within tokens or within the batch."""
    latents = batch.latents(dictionary)
    if batch_k is None:
        return latents
    return _largest(latents, batch_k * len(batch), _ranks(dictionary, latents))


class _Constants:
    """Means over tokens (or whole batches, for BatchTopK) of the quantities that differ between them."""

    def __init__(self, dictionary: Dictionary, batch_k: int | None) -> None:
        self.dictionary, self.batch_k = dictionary, batch_k
        self._least, self._n_least = 0.0, 0
        self._scale, self._n_scale = torch.zeros(2, dtype=torch.float64), 0

    def add(self, batch: Batch) -> None:
        """Add a batch's lowest ranks that are kept, and the scales of its rows."""
        if self.dictionary.k is not None:
            latents = _compete(self.dictionary, batch, self.batch_k)
            ranks = _ranks(self.dictionary, latents)
            if self.batch_k is not None:
                least = ranks.amin(dim=0, keepdim=True) if len(ranks) else ranks
            else:
                least = torch.segment_reduce(ranks, "min", offsets=latents.offsets)[latents.counts > 0]
            self._least += float(least.double().sum())
            self._n_least += len(least)
        scale = None if self.dictionary.normalization is None else self.dictionary.row_scale(batch.x)
        if scale is not None:
            self._scale += torch.stack([part.double().sum() for part in scale]).cpu()
            self._n_scale += len(batch)

    @property
    def threshold(self) -> float:
        """The mean of the lowest rank that is kept."""
        if not self._n_least:
            raise ValueError(
                f"No latent of {self.dictionary.name} is active, so there is no threshold to find."
            )
        return self._least / self._n_least

    @property
    def scale(self) -> tuple[float, float]:
        """The mean centre and factor of the rows."""
        centre, factor = (self._scale / self._n_scale).tolist()
        return centre, factor


def _ranks(dictionary: Dictionary, latents: SparseLatents) -> Tensor:
    """The values by which active latents compete, `[active]`."""
    if dictionary.rank_scale is None:
        return latents.values
    return latents.values * dictionary.rank_scale[latents.indices]


def _largest(latents: SparseLatents, n: int, ranks: Tensor) -> SparseLatents:
    """The `n` entries of a batch that rank highest."""
    kept = torch.zeros(len(ranks), dtype=torch.bool, device=ranks.device)
    kept[ranks.topk(min(n, len(ranks))).indices] = True
    return latents.where(kept)


def _with_threshold(dictionary: Dictionary, threshold: float | None) -> Dictionary:
    info = {**dictionary.info, "kind": "jumprelu", "converted_from": dictionary.kind}
    if threshold is None:
        return replace(dictionary, info=info)
    scale = 1.0 if dictionary.rank_scale is None else dictionary.rank_scale
    common = torch.full_like(dictionary.threshold, threshold) / scale
    return replace(
        dictionary,
        threshold=torch.maximum(dictionary.threshold, common),
        k=None,
        rank_scale=None,
        info=info,
    )


def _with_constant_scale(dictionary: Dictionary, centre: float, factor: float) -> Dictionary:
    """A dictionary that normalises rows by one centre and factor instead of each row's own.

    Subtracting a row's mean is linear, so on the input side it stays exact: it moves into the encoder.
    """
    W_enc, shrink = dictionary.W_enc.double(), 1.0
    if dictionary.normalization == "layer_norm":
        W_enc = W_enc - W_enc.mean(dim=0)
        shrink = factor / (factor + LAYER_NORM_EPS)
    return replace(
        dictionary,
        W_enc=(W_enc * shrink).to(dictionary.W_enc.dtype),
        b_enc=dictionary.b_enc * factor,
        b_dec=dictionary.b_dec * factor + centre,
        threshold=dictionary.threshold * factor,
        normalization=None,
    )
