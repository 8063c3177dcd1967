"""TopK SAE (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from saekit.sparse import SparseLatents
from saekit.training.variants.base import SAE, TopKVariant


@dataclass(frozen=True)
class TopK(TopKVariant):
    """The `k` largest positive pre-activations of each token are its active latents.

    See `TopKVariant` for the settings.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.TopK(k=32), width=512)
    >>> config.variant.label
    'TopK'
    """

    kind: ClassVar[str] = "topk"
    label: ClassVar[str] = "TopK"
    colour: ClassVar[str] = "#029e73"
    marker: ClassVar[str] = "^"
    line: ClassVar[str] = ":"

    def select(self, sae: SAE, x: Tensor) -> SparseLatents:
        """The `k` largest of each row, where positive (and ties with the last)."""
        return sae.active_above(x, k=self.k)

    def folding(self, sae: SAE) -> dict[str, Any]:
        """With `k`: the folded latents compete too."""
        return super().folding(sae) | {"k": self.k}
