"""Turn a TopK dictionary into a thresholded one, whose latents can be moved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from saekit.activations import ActivationStore, batches_of
from saekit.dictionary import Dictionary
from saekit.metrics import Moments, fvu, n_excluded


@dataclass(frozen=True, eq=False)
class Conversion:
    """A TopK dictionary with a threshold in place of its competition, and what that changed.

    Attributes
    ----------
    dictionary : Dictionary
        Of kind `"jumprelu"`: independent latents with one common threshold.
    frame : DataFrame
        Before and after: `dictionary`, `l0`, `mse`, `fvu`.
    threshold : float
        The common threshold.
    share_changed : float
        Of all entries active before or after, the share active in only one of the two.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    dictionary: Dictionary
    frame: pd.DataFrame
    threshold: float
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
    dictionary: Dictionary, activations: ActivationStore | Tensor, *, batch_size: int = 4096
) -> Conversion:
    """Replace the k-largest rule by one threshold for all latents and tokens.

    The threshold is the mean over tokens of the least activation that a token keeps: the rule
    by which BatchTopK gets its inference threshold, with each token a batch of its own, because
    TopK latents compete within a token.

    Parameters
    ----------
    dictionary : Dictionary
        A TopK dictionary.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.

    Raises
    ------
    ValueError
        If the dictionary's latents are already independent, or none is ever active.
    """
    if dictionary.k is None:
        raise ValueError(f"{dictionary.name} needs no conversion: its latents do not depend on each other.")
    total, n = 0.0, 0
    for _, x in batches_of(activations, batch_size, device=dictionary.W_enc.device):
        latents = dictionary.encode_sparse(x)
        least = torch.segment_reduce(latents.values, "min", offsets=latents.offsets)
        least = least[latents.counts > 0].double()
        total, n = total + float(least.sum()), n + len(least)
    if not n:
        raise ValueError(f"No latent of {dictionary.name} is active, so there is no threshold to find.")
    threshold = total / n
    converted = replace(
        dictionary,
        threshold=dictionary.threshold.clamp(min=threshold),
        k=None,
        info={**dictionary.info, "kind": "jumprelu", "converted_from": dictionary.kind},
    )

    moments = Moments(dictionary.d_in)
    errors, active, common = [0.0, 0.0], [0, 0], 0
    for _, x in batches_of(activations, batch_size, device=dictionary.W_enc.device):
        for i, version in enumerate((dictionary, converted)):
            latents = version.encode_sparse(x)
            errors[i] += float((x - version.decode(latents)).double().square().sum())
            active[i] += len(latents.values)
            if version is dictionary:
                common += int((latents.values > converted.threshold[latents.indices]).sum())
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
