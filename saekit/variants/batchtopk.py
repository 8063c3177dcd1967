"""BatchTopK SAE (Bussmann et al. 2024; Leask et al. 2025, appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.sparse import SparseLatents
from saekit.variants.common import SAE, TopKVariant


@dataclass(frozen=True)
class BatchTopK(TopKVariant):
    """The `k * batch` largest positive pre-activations of a batch are its active latents.

    At inference a latent is active above a threshold that does not depend on the batch: the
    running average of the smallest activation that a training batch kept. See `TopKVariant`
    for the settings.
    """

    kind: ClassVar[str] = "batchtopk"

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE without a threshold yet."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        sae.state["threshold"] = torch.tensor(torch.nan, dtype=torch.float64)
        return sae

    def select(self, sae: SAE, h: Tensor) -> SparseLatents:
        """The `k * batch` largest of all, where positive (and what ties with the last)."""
        threshold = sae.state["threshold"]
        smallest = kth_largest(h, self.k * len(h), guess=CANDIDATE_MARGIN * float(threshold))
        latents = SparseLatents.from_mask((h >= smallest) & (h > 0), h)
        if len(latents.values):
            kept = latents.values.min().double()
            threshold.copy_(kept if threshold.isnan() else threshold.lerp(kept, THRESHOLD_RATE))
        return latents

    def folding(self, sae: SAE) -> dict[str, Any]:
        """The running threshold, the same for every latent."""
        return {"threshold": sae.state["threshold"].expand(sae.width)}


THRESHOLD_RATE = 0.01  # weight of the newest batch in the running average
CANDIDATE_MARGIN = 0.9  # share of the running threshold above which to look for the largest first


def kth_largest(h: Tensor, k: int, *, guess: float) -> Tensor:
    """The `k`-th largest element of `h`, a scalar; fast if few more than `k` exceed `guess`.

    The result does not depend on the guess.
    """
    candidates = h[h > guess]
    if len(candidates) < k:
        candidates = h.flatten()
    return candidates.kthvalue(len(candidates) - k + 1).values
