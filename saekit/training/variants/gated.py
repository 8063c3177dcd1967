"""Gated SAE (Rajamanoharan et al. 2024a, "Improving Dictionary Learning with Gated Sparse Autoencoders")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.sparse import encode_active, gather_active
from saekit.training.variants.base import SAE, SteeredVariant, mean_squared_error


@dataclass(frozen=True)
class Gated(SteeredVariant):
    """A gate decides which latents are active, independently of their size.

    With shared weights the gate is `x @ W_enc + b_enc > 0` and the magnitude
    `ReLU(exp(r_mag) * (x @ W_enc) + b_mag)`. The penalty applies to the gate's pre-activations only,
    so magnitudes do not shrink; an auxiliary reconstruction from the gate, through a decoder held
    constant, teaches it to detect (equation 8). See `SteeredVariant` for the other settings.

    Parameters
    ----------
    l1 : float
        L1 coefficient to start from, for inputs of norm `sqrt(d_in)` and a squared error summed
        over dimensions.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.Gated(target_l0=32), width=512)
    >>> config.variant.label
    'Gated'
    """

    l1: float = 1.0
    kind: ClassVar[str] = "gated"
    label: ClassVar[str] = "Gated"
    colour: ClassVar[str] = "#70c0ea"
    marker: ClassVar[str] = "v"
    line: ClassVar[str] = "-."
    penalty: ClassVar[str] = "l1"
    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, with its own random stream, and gates that begin near the target L0."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        self.start_near_target(sae.b_enc)
        sae.extra = {"r_mag": torch.zeros(width), "b_mag": torch.zeros(width)}
        return sae

    def loss(self, sae: SAE, x: Tensor, y: Tensor, *, done: float) -> Tensor:
        """Mean squared error, plus the gate's L1 penalty, plus its auxiliary reconstruction error."""
        gates = sae.active_above(x)
        opening = encode_active(x, sae.W_enc, sae.b_enc, gates)
        r_mag, b_mag = (gather_active(sae.extra[name], gates) for name in ("r_mag", "b_mag"))
        magnitudes = torch.relu(r_mag.exp() * (opening - gather_active(sae.b_enc, gates)) + b_mag)
        self.steer(sae, gates.where(magnitudes > 0), done)
        residual = y - sae.decode(x, magnitudes, gates)
        from_gates = sae.detached().decode(x, opening, gates)
        return (
            mean_squared_error(residual)
            + self.coefficient(sae) * (opening.sum() / len(x))
            + mean_squared_error(y - from_gates)
        )

    def folding(self, sae: SAE) -> dict[str, Any]:
        """The magnitude's encoder; the gate is a threshold on it."""
        gain, b_mag = sae.extra["r_mag"].double().exp(), sae.extra["b_mag"].double()
        return super().folding(sae) | {
            "W_enc": sae.W_enc.T.double() * gain,
            "b_enc": b_mag,
            "threshold": (b_mag - gain * sae.b_enc.double()).clamp_min(0),
        }
