"""ReLU SAE with an L1 penalty (Bricken et al. 2023; Cunningham et al. 2023).

The kind of SAE that Leask et al. (2025) study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from saekit.settings import flag, normalise
from saekit.sparse import encode_active, gather_active
from saekit.training.variants.base import SAE, SteeredVariant, mean_squared_error


@dataclass(frozen=True)
class ReLU(SteeredVariant):
    """ReLU latents, squared error plus L1 penalty.

    See `SteeredVariant` for the other settings.

    Parameters
    ----------
    l1 : float
        L1 coefficient to start from, for inputs of norm `sqrt(d_in)` and a squared error summed
        over dimensions.
    weighted : bool
        Leave the norms of decoder rows free and weigh each latent's penalty with its own (Conerly
        et al. 2024), rather than keep them at 1.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.ReLU(target_l0=36), width=512)
    >>> config.variant.label
    'ReLU'
    """

    l1: float = 1.0
    weighted: bool = False
    kind: ClassVar[str] = "relu"
    label: ClassVar[str] = "ReLU"
    colour: ClassVar[str] = "#0173b2"
    marker: ClassVar[str] = "o"
    line: ClassVar[str] = "-"
    penalty: ClassVar[str] = "l1"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        normalise(self, {"weighted": flag})

    @property
    def unit_norm(self) -> bool:
        """Whether the trainer keeps decoder rows at unit norm."""
        return not self.weighted

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, with its own random stream, and biases that begin near the target L0."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        self.start_near_target(sae.b_enc)
        return sae

    def loss(self, sae: SAE, x: Tensor, y: Tensor, *, done: float) -> Tensor:
        """Mean squared error plus the L1 penalty, whose coefficient takes a step towards the target."""
        latents = sae.active_above(x)
        self.steer(sae, latents, done)
        values = encode_active(x, sae.W_enc, sae.b_enc, latents)
        residual = y - sae.decode(x, values, latents)
        sizes = values * gather_active(sae.W_dec.norm(dim=1), latents) if self.weighted else values
        return mean_squared_error(residual) + self.coefficient(sae) * (sizes.sum() / len(x))
