"""BatchTopK SAE (Bussmann et al. 2024; Leask et al. 2025, appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.distributed import all_gather, all_reduce_sum, world_size
from saekit.sparse import SparseLatents, kth_smallest
from saekit.training.variants.base import SAE, TopKVariant

THRESHOLD_RATE = 0.01  # weight of the newest batch in the running average
GUESS = 0.9  # share of the last batch's smallest above which the largest are searched for first


@dataclass(frozen=True)
class BatchTopK(TopKVariant):
    """The `k * batch` largest positive pre-activations of a batch are its active latents.

    At inference a latent is active above a threshold that does not depend on the batch: the
    running average of the smallest activation that a training batch kept. See `TopKVariant`
    for the settings.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.BatchTopK(k=32), width=512)
    >>> config.variant.label
    'BatchTopK'
    """

    kind: ClassVar[str] = "batchtopk"
    label: ClassVar[str] = "BatchTopK"
    colour: ClassVar[str] = "#de8f05"
    marker: ClassVar[str] = "s"
    line: ClassVar[str] = "--"

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, with its own random stream, and threshold and floor 0."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        sae.state["threshold"] = torch.zeros((), dtype=torch.float64)
        sae.state["floor"] = torch.zeros(())
        return sae

    def select(self, sae: SAE, x: Tensor) -> SparseLatents:
        """The `k * batch` largest of all, where positive (and ties with the last).

        Only latents above a floor, a little less than the smallest kept of the last batch, are
        searched, unless they are too few: this makes the search fast and never changes its result.
        """
        threshold, floor = sae.state["threshold"], sae.state["floor"]
        n = self.k * len(x) * world_size()

        def cut(latents: SparseLatents) -> Tensor:
            return nth_largest(latents.values, n).expand(len(latents))

        latents = sae.active_above(x, floor.item(), cut=cut)
        if floor > 0 and all_reduce_sum(torch.tensor(len(latents.values))) < n:
            latents = sae.active_above(x, cut=cut)
        own = latents.values
        smallest = torch.cat(all_gather(own.amin(dim=0, keepdim=True) if len(own) else own))
        if len(smallest):
            kept = smallest.min().double().cpu()
            threshold.copy_(threshold.lerp(kept, THRESHOLD_RATE) if threshold > 0 else kept)
            floor.copy_(GUESS * kept)
        return latents

    def folding(self, sae: SAE) -> dict[str, Any]:
        """With the running threshold, the same for every latent."""
        threshold = sae.state["threshold"].to(sae.W_enc.device)
        return super().folding(sae) | {"threshold": threshold.expand(sae.width)}


def nth_largest(values: Tensor, n: int) -> Tensor:
    """The `n`-th largest value over all processes, minus infinity if there are fewer; a scalar.

    Examples
    --------
    >>> nth_largest(torch.tensor([3.0, 1.0, 2.0]), 2)
    tensor(2.)
    """
    values = torch.cat(all_gather(values))
    excess = len(values) - n
    return kth_smallest(values, excess) if excess >= 0 else values.new_tensor(-torch.inf)
