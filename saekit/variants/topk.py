"""TopK SAE (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.sparse import SparseLatents
from saekit.variants.common import SAE, TopKVariant


@dataclass(frozen=True)
class TopK(TopKVariant):
    """The `k` largest positive pre-activations of each token are its active latents.

    See `TopKVariant` for the settings.
    """

    kind: ClassVar[str] = "topk"

    def select(self, sae: SAE, h: Tensor) -> SparseLatents:  # noqa: ARG002
        """The `k` largest of each row, where positive."""
        largest = h.topk(self.k, dim=1).indices
        return SparseLatents.from_mask(
            torch.zeros_like(h, dtype=torch.bool).scatter_(1, largest, True) & (h > 0), h
        )

    def folding(self, sae: SAE) -> dict[str, Any]:  # noqa: ARG002
        """`k`: the folded latents compete too."""
        return {"k": self.k}
