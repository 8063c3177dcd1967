"""Turn a dictionary whose latents depend on each other, or on the row, into a thresholded one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from saekit.activations import ActivationStore, batches_of
from saekit.dictionary import LAYER_NORM_EPS, Dictionary
from saekit.folding import Unfolded
from saekit.metrics import Moments, fvu, n_excluded
from saekit.sparse import SparseLatents


@dataclass(frozen=True, eq=False)
class Conversion:
    """A dictionary with a threshold in place of its competition, and what that changed.

    Attributes
    ----------
    dictionary : Dictionary
        Of kind `"jumprelu"`: independent latents of raw activations.
    frame : DataFrame
        Before and after: `dictionary`, `l0`, `mse`, `fvu`.
    threshold : float or None
        The common threshold, in the units that latents competed in; None if they did not compete.
    share_changed : float
        Of all entries active before or after, the share active in only one of the two.
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
) -> Conversion:
    """Replace competition between latents, and normalisation of single rows, by constants.

    - The k-largest rule becomes one threshold for all latents and tokens: the mean over tokens of
      the least activation that a token keeps. This is the rule by which BatchTopK gets its
      inference threshold (Bussmann et al. 2024), with each token a batch of its own, because
      TopK latents compete within a token.
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
        Replace the normalisation of rows. Without this a dictionary that normalises rows goes on
        doing so: its latents no longer compete, but still cannot be moved.
    batch_size : int
        Tokens at a time.

    Raises
    ------
    ValueError
        If the dictionary's latents are already independent, or none is ever active.
    """
    batch_k = dictionary.batch_k if isinstance(dictionary, Unfolded) else None
    if isinstance(dictionary, Unfolded):
        # Ranks are kept for TopK SAEs only, so this one is read as a TopK SAE that keeps every latent.
        every = dictionary.k if batch_k is None else dictionary.width
        dictionary = replace(dictionary, batch_k=None, k=every).fold()
    if dictionary.k is None and (dictionary.normalization is None or not constant_scale):
        raise ValueError(f"{dictionary.name} needs no conversion: its latents do not depend on each other.")

    def compete(x: Tensor) -> SparseLatents:
        latents = dictionary.encode_sparse(x)
        if batch_k is None:
            return latents
        return _largest(latents, batch_k * len(x), _ranks(dictionary, latents))

    batches = _Batches(activations, batch_size, dictionary)
    threshold = None
    if dictionary.k is not None:
        threshold = _least_kept(dictionary, compete, batches, whole_batch=batch_k is not None)
    converted = _with_threshold(dictionary, threshold)
    if constant_scale:
        converted = _with_constant_scale(converted, batches)

    moments = Moments(dictionary.d_in)
    errors, active, common = [0.0, 0.0], [0, 0], 0
    for x in batches:
        found = compete(x), converted.encode_sparse(x)
        for i, (version, latents) in enumerate(zip((dictionary, converted), found, strict=True)):
            x_hat = version.decode(latents, version.row_scale(x))
            errors[i] += float((x - x_hat).double().square().sum())
            active[i] += len(latents.values)
        entries = (latents.rows * latents.width + latents.indices for latents in found)
        common += int(torch.isin(*entries).sum())
        moments.update(x)
    return Conversion(
        dictionary=converted,
        frame=pd.DataFrame(
            {
                "dictionary": [dictionary.name, converted.name],
                "l0": [count / moments.n for count in active],
                "mse": [error / moments.n for error in errors],
                "fvu": [fvu(error, moments.total_variance) for error in errors],
            }
        ),
        threshold=threshold,
        share_changed=1 - common / (sum(active) - common),
        n_tokens=moments.n,
        n_excluded=n_excluded(activations),
    )


@dataclass(frozen=True)
class _Batches:
    """The activations, to be gone through more than once."""

    activations: ActivationStore | Tensor
    size: int
    dictionary: Dictionary

    def __iter__(self) -> Any:
        device = self.dictionary.W_enc.device
        return (x for _, x in batches_of(self.activations, self.size, device=device))


def _ranks(dictionary: Dictionary, latents: SparseLatents) -> Tensor:
    """What active latents compete by, `[active]`."""
    if dictionary.rank_scale is None:
        return latents.values
    return latents.values * dictionary.rank_scale[latents.indices]


def _largest(latents: SparseLatents, n: int, ranks: Tensor) -> SparseLatents:
    """The `n` entries of a batch that rank highest."""
    kept = torch.zeros(len(ranks), dtype=torch.bool, device=ranks.device)
    kept[ranks.topk(min(n, len(ranks))).indices] = True
    return latents.where(kept)


def _least_kept(
    dictionary: Dictionary,
    compete: Callable[[Tensor], SparseLatents],
    batches: _Batches,
    *,
    whole_batch: bool,
) -> float:
    """The mean, over tokens or over whole batches, of the lowest rank that is kept."""
    total, n = 0.0, 0
    for x in batches:
        latents = compete(x)
        ranks = _ranks(dictionary, latents)
        if whole_batch:
            least = ranks.amin(dim=0, keepdim=True) if len(ranks) else ranks
        else:
            least = torch.segment_reduce(ranks, "min", offsets=latents.offsets)[latents.counts > 0]
        total, n = total + float(least.double().sum()), n + len(least)
    if not n:
        raise ValueError(f"No latent of {dictionary.name} is active, so there is no threshold to find.")
    return total / n


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


def _with_constant_scale(dictionary: Dictionary, batches: _Batches) -> Dictionary:
    """A dictionary that normalises rows by their mean centre and factor instead of each row's own.

    Subtracting a row's mean is linear, so on the way in it stays exact: it moves into the encoder.
    """
    if dictionary.normalization is None:
        return dictionary
    total, n = torch.zeros(2, dtype=torch.float64), 0
    for x in batches:
        scale = dictionary.row_scale(x)
        assert scale is not None
        total += torch.stack([part.double().sum() for part in scale]).cpu()
        n += len(x)
    centre, factor = (total / n).tolist()
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
