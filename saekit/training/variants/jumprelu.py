"""JumpReLU SAE (Rajamanoharan et al. 2024b, "Jumping Ahead")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.settings import normalise, optional, positive, whole
from saekit.sparse import encode_active, gather_active
from saekit.training.variants.base import (
    SAE,
    Variant,
    check_target_l0,
    mean_squared_error,
    quantile,
)

START = 4  # multiple of the target L0 to begin with


@dataclass(frozen=True)
class JumpReLU(Variant):
    """Latents with learnt thresholds and an L0 penalty.

    Neither the jump nor L0 has a useful gradient in the threshold; straight-through estimators
    with a rectangle kernel take its place (equations 11 and 12).

    Parameters
    ----------
    target_l0 : float or None
        Mean number of active latents per token to end with, by a penalty that grows with the squared
        distance from it; None for a penalty that is proportional to L0.
    coefficient : float
        Price of one more active latent, for inputs of norm `sqrt(d_in)` and a squared error summed
        over dimensions; with a target, the price where L0 is twice the target, and 0 on it.
    bandwidth : float
        Width of the kernel: entries this close to their threshold move it. The paper's 0.001
        is for inputs of norm 1, where ours have norm `sqrt(d_in)`.
    threshold : float
        Initial threshold without a target; with one, thresholds begin where a few times as many
        latents are active.
    dead_after : int
        A latent counts as dead in the log once it has been silent for this many tokens.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.JumpReLU(target_l0=32), width=512)
    >>> config.variant.label
    'JumpReLU'
    """

    target_l0: float | None = 36.0
    coefficient: float = 20.0
    bandwidth: float = 0.5
    threshold: float = 0.1
    dead_after: int = 100_000
    kind: ClassVar[str] = "jumprelu"
    label: ClassVar[str] = "JumpReLU"
    colour: ClassVar[str] = "#332288"
    marker: ClassVar[str] = "D"
    line: ClassVar[str] = "-."
    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)

    def __post_init__(self) -> None:
        rules = dict.fromkeys(("coefficient", "bandwidth", "threshold"), positive)
        normalise(self, {**rules, "target_l0": optional(positive), "dead_after": whole})

    def check_width(self, width: int) -> None:
        """Refuse a width that is not above `target_l0`."""
        check_target_l0(self.target_l0, width)

    def phase(self, done: float) -> Any:  # noqa: ARG002 (as in the base)
        """None: the loss does not depend on how far training is."""
        return None

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, with its own random stream, and thresholds that begin a little under the target's."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        start = self.threshold
        if self.target_l0 is not None:
            start = max(start, quantile(START * self.target_l0 / width))
        sae.extra = {"log_threshold": torch.full((width,), math.log(start))}
        return sae

    def loss(self, sae: SAE, x: Tensor, y: Tensor, *, done: float) -> Tensor:  # noqa: ARG002 (as in the base)
        """Mean squared error plus the L0 penalty."""
        log_threshold = sae.extra["log_threshold"]
        # The active latents, and those that the kernel reaches.
        latents = sae.active_above(x, log_threshold.detach().exp() - self.bandwidth / 2)
        h = encode_active(x, sae.W_enc, sae.b_enc, latents)
        threshold = gather_active(log_threshold, latents).exp()
        values, active = _Jump.apply(h, threshold, self.bandwidth)
        sae.count(latents.where(active > 0))
        residual = y - sae.decode(x, values, latents)
        return mean_squared_error(residual) + self.penalty(active.sum() / len(x))

    def penalty(self, l0: Tensor) -> Tensor:
        """The penalty of a mean L0."""
        if self.target_l0 is None:
            return self.coefficient * l0
        return self.coefficient * self.target_l0 / 2 * (l0 / self.target_l0 - 1).square()

    def folding(self, sae: SAE) -> dict[str, Any]:
        """With the learnt thresholds."""
        return super().folding(sae) | {"threshold": sae.extra["log_threshold"].double().exp()}


class _Jump(torch.autograd.Function):
    """`h * H(h - threshold)` and `H(h - threshold)`, with straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        active = (h > threshold).to(h.dtype)
        ctx.save_for_backward(h, threshold, active)
        ctx.bandwidth = bandwidth
        return h * active, active

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, grad_active: Tensor) -> tuple[Tensor, Tensor, None]:
        h, threshold, active = ctx.saved_tensors
        kernel = ((h - threshold).abs() < ctx.bandwidth / 2).to(h.dtype) / ctx.bandwidth
        return grad_values * active, -kernel * (threshold * grad_values + grad_active), None
