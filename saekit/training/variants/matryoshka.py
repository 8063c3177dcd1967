"""Matryoshka BatchTopK SAE (Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka SAEs")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saekit.settings import normalise, real, several
from saekit.sparse import SparseLatents, decode_active
from saekit.training.variants.base import SAE, mean_squared_error
from saekit.training.variants.batchtopk import BatchTopK


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """Nested dictionaries: each prefix of the latents must reconstruct the input by itself.

    Latents are selected once, over the whole width, and the error is averaged over prefixes, so
    the first latents learn general features. See `TopKVariant` for the other settings.

    Parameters
    ----------
    prefixes : tuple of float
        Ends of the nested dictionaries as shares of the width, ascending to 1.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.Matryoshka(k=32), width=512)
    >>> config.variant.label
    'Matryoshka'
    """

    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    kind: ClassVar[str] = "matryoshka"
    label: ClassVar[str] = "Matryoshka"
    colour: ClassVar[str] = "#74441c"
    marker: ClassVar[str] = "p"
    line: ClassVar[str] = "-."

    def __post_init__(self) -> None:
        super().__post_init__()
        normalise(self, {"prefixes": several(real)})
        rising = all(a < b for a, b in zip((0.0, *self.prefixes), self.prefixes, strict=False))
        if not (rising and self.prefixes and self.prefixes[-1] == 1):
            raise ValueError(f"prefixes must ascend from above 0 to 1, found {self.prefixes}.")

    def check_width(self, width: int) -> None:
        """Refuse a width that would leave a nested dictionary without additional latents."""
        super().check_width(width)
        ends = self.ends(width)
        if len({0, *ends}) != len(ends) + 1:
            raise ValueError(f"Every prefix must add a latent, but at width {width} they end at {ends}.")

    def ends(self, width: int) -> list[int]:
        """Widths of the nested dictionaries."""
        return [round(share * width) for share in self.prefixes]

    def reconstruction_loss(
        self, sae: SAE, x: Tensor, y: Tensor, values: Tensor, latents: SparseLatents
    ) -> tuple[Tensor, Tensor]:
        """Squared error averaged over tokens and prefixes, and the whole dictionary's residual."""
        n, groups = len(self.prefixes), torch.tensor(self.ends(sae.width), device=x.device)
        # Each token's latents, cut at the ends of the prefixes, become separate rows: the
        # contribution of every group to the reconstruction is decoded once.
        rows = latents.rows * n + torch.searchsorted(groups, latents.indices, right=True)
        added = decode_active(values, sae.W_dec, latents.regroup(rows, len(x) * n))
        y = y if sae.W_skip is None else y - x @ sae.W_skip
        residuals = y[:, None] - (added.view(len(x), n, -1).cumsum(dim=1) + sae.b_dec)
        return mean_squared_error(residuals.flatten(0, 1)), residuals[:, -1]
