"""TopK SAE (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.sparse import SparseLatents
from saekit.variants.common import SAE, TopKVariant

FLOOR_RATE = 0.05  # weight of the newest batch in the running floor
FLOOR_QUANTILE = 0.01  # share of rows whose k-th largest may lie below the floor


@dataclass(frozen=True)
class TopK(TopKVariant):
    """The `k` largest positive pre-activations of each token are its active latents.

    See `TopKVariant` for the settings.
    """

    kind: ClassVar[str] = "topk"

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, in its own random stream, with floor 0."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        sae.state["floor"] = torch.zeros(())
        return sae

    def select(self, sae: SAE, x: Tensor) -> SparseLatents:
        """The `k` largest of each row, where positive (and what ties with the last).

        Latents above a running floor are searched first; rows that have fewer than `k` of them are
        searched whole. This makes the search fast and never changes its result.
        """
        floor = sae.state["floor"]
        latents = sae.active_above(x, floor.item())
        if floor > 0 and (short := latents.counts < self.k).any():
            latents = latents.with_rows(short.nonzero().squeeze(1), sae.active_above(x[short], 0.0))
        smallest = latents.kth_largest(self.k)
        low = smallest.kthvalue(1 + int(FLOOR_QUANTILE * len(x))).values.clamp_min(0)
        floor.lerp_(low.to(floor.dtype), FLOOR_RATE)
        return latents.where(latents.values >= smallest[latents.rows])

    def folding(self, sae: SAE) -> dict[str, Any]:
        """With `k`: the folded latents compete too."""
        return super().folding(sae) | {"k": self.k}
