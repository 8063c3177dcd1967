"""TopK SAE (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.distributed import all_gather
from saekit.sparse import SparseLatents, kth_smallest
from saekit.variants.common import SAE, TopKVariant

FLOOR_QUANTILE = 0.03  # share of a batch whose k-th largest lie below the floor for the next


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

        Latents above a floor, from the last batch, are searched first; rows that have fewer than
        `k` of them are searched whole. This makes the search fast and never changes its result.
        """
        floor = sae.state["floor"]

        def cut(latents: SparseLatents) -> Tensor:
            return latents.kth_largest(self.k)

        latents = sae.active_above(x, floor.item(), cut)
        if floor > 0 and (short := latents.counts < self.k).any():
            latents = latents.with_rows(short.nonzero().squeeze(1), sae.active_above(x[short], 0.0, cut))
        smallest = torch.cat(all_gather(cut(latents)))
        floor.copy_(kth_smallest(smallest, int(FLOOR_QUANTILE * len(smallest))).clamp_min(0))
        return latents

    def folding(self, sae: SAE) -> dict[str, Any]:
        """With `k`: the folded latents compete too."""
        return super().folding(sae) | {"k": self.k}
