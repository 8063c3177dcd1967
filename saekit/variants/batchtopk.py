"""BatchTopK SAE (Bussmann et al. 2024; Leask et al. 2025, appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.sparse import SparseLatents
from saekit.variants.common import SAE, TopKVariant

THRESHOLD_RATE = 0.01  # weight of the newest batch in the running average
GUESS = 0.9  # share of the running threshold above which the largest are looked for first


@dataclass(frozen=True)
class BatchTopK(TopKVariant):
    """The `k * batch` largest positive pre-activations of a batch are its active latents.

    At inference a latent is active above a threshold that does not depend on the batch: the
    running average of the smallest activation that a training batch kept. See `TopKVariant`
    for the settings.
    """

    kind: ClassVar[str] = "batchtopk"

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, in its own random stream, with threshold 0."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        sae.state["threshold"] = torch.zeros((), dtype=torch.float64)
        return sae

    def select(self, sae: SAE, x: Tensor) -> SparseLatents:
        """The `k * batch` largest of all, where positive (and what ties with the last).

        Only latents above a little less than the running threshold are searched, unless they are
        too few: this makes the search fast and never changes its result.
        """
        threshold, n = sae.state["threshold"], self.k * len(x)
        latents = sae.active_above(x, GUESS * float(threshold))
        if len(latents.values) < n and threshold > 0:
            latents = sae.active_above(x, 0.0)
        latents = largest(latents, n)
        if len(latents.values):
            kept = latents.values.min().double()
            threshold.copy_(threshold.lerp(kept, THRESHOLD_RATE) if threshold > 0 else kept)
        return latents

    def folding(self, sae: SAE) -> dict[str, Any]:
        """With the running threshold, the same for every latent."""
        return super().folding(sae) | {"threshold": sae.state["threshold"].expand(sae.width)}


def largest(latents: SparseLatents, n: int) -> SparseLatents:
    """The `n` largest entries of a batch, and what ties with the last."""
    excess = len(latents.values) - n
    if excess <= 0:
        return latents
    return latents.where(latents.values >= latents.values.kthvalue(excess + 1).values)
