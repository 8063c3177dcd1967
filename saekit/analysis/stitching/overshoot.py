"""Whether what was added to a dictionary points the right way and only goes too far."""

from __future__ import annotations

from typing import Any

import torch

from saekit.activations import ActivationStore, batches_of
from saekit.dictionary import Dictionary
from saekit.metrics import Moments, fvu, n_excluded


def measure_overshoot(
    before: Dictionary, after: Dictionary, activations: ActivationStore | torch.Tensor
) -> dict[str, Any]:
    """Fit one factor to the difference that a change of the dictionary makes to its reconstructions.

    Latents that fire together and point in similar directions each take their share of the same
    error, and together go beyond it. If the error rises by the change, but falls with a factor
    under 1 on it, then the change points the right way and overshoots; if the best factor is near
    0, it has nothing to add.

    Parameters
    ----------
    before, after : Dictionary
        Such as a small dictionary, and the same with latents of a larger one inserted.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.

    Returns
    -------
    dict
        `scale`, the factor of least squared error; `fvu_before`, `fvu_after`, and `fvu_scaled` with the
        factor; `n_tokens`, `n_excluded`.

    Raises
    ------
    ValueError
        If the two reconstruct every token alike.
    """
    moments = Moments(before.d_in)
    sse, along, size = 0.0, 0.0, 0.0
    with torch.no_grad():
        for _, x in batches_of(activations, device=before.W_enc.device):
            x_hat, changed = (d.decode(d.encode_sparse(x)) for d in (before, after))
            residual, change = (x - x_hat).double(), (changed - x_hat).double()
            sse += float(residual.square().sum())
            along += float((residual * change).sum())
            size += float(change.square().sum())
            moments.update(x)
    if not size:
        raise ValueError(f"{before.name} and {after.name} reconstruct every token alike.")
    variance = moments.total_variance
    return {
        "scale": along / size,
        "fvu_before": fvu(sse, variance),
        "fvu_after": fvu(sse - 2 * along + size, variance),
        "fvu_scaled": fvu(sse - along**2 / size, variance),
        "n_tokens": moments.n,
        "n_excluded": n_excluded(activations),
    }
