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

    def select(self, sae: SAE, h: Tensor) -> SparseLatents:
        """The `k * batch` largest of all, where positive (and what ties with the last)."""
        threshold = sae.state["threshold"]
        latents = largest(h, self.k * len(h), guess=GUESS * float(threshold))
        if len(latents.values):
            kept = latents.values.min().double()
            threshold.copy_(threshold.lerp(kept, THRESHOLD_RATE) if threshold > 0 else kept)
        return latents

    def folding(self, sae: SAE) -> dict[str, Any]:
        """The running threshold, the same for every latent."""
        return {"threshold": sae.state["threshold"].expand(sae.width)}


def largest(h: Tensor, n: int, *, guess: float = 0.0) -> SparseLatents:
    """The `n` largest positive elements of `h` `[batch, width]`, and what ties with the last.

    Only elements above the `guess`, at least 0, are sorted, unless they are too few: a good guess
    makes the search fast and never changes its result.
    """
    candidates = SparseLatents.from_mask(h > guess, h)
    if len(candidates.values) < n and guess > 0:
        candidates = SparseLatents.from_mask(h > 0, h)
    excess = len(candidates.values) - n
    if excess <= 0:
        return candidates
    return candidates.where(candidates.values >= candidates.values.kthvalue(excess + 1).values)
