"""ReLU SAE with an L1 penalty, steered to a given L0 (the kind of SAE that Leask et al. 2025 study)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from saekit.sparse import decode_active, encode_active
from saekit.variants.common import SAE, Variant, mean_squared_error, require_positive

GAIN = 0.01  # change of the coefficient's logarithm a step, for an L0 that is off by a factor of e


@dataclass(frozen=True)
class ReLU(Variant):
    """ReLU latents, squared error plus L1 penalty, decoder rows of unit norm.

    Dictionaries of several widths compare at equal sparsity, so the penalty is found rather than
    given: with a `target_l0`, its coefficient is steered towards that L0 during a first part of
    training and then stays as it is.

    Parameters
    ----------
    target_l0 : float or None
        Mean number of active latents a token to end with; None to keep `l1` fixed.
    l1 : float
        L1 coefficient to start from, for inputs of norm `sqrt(d_in)` and a squared error summed
        over dimensions.
    steering : float
        The first part of training in which the coefficient is steered, from 0 to 1.
    dead_after : int
        A latent counts as dead in the log once it has been silent for this many tokens.
    """

    target_l0: float | None = 36.0
    l1: float = 1.0
    steering: float = 0.9
    dead_after: int = 100_000
    kind: ClassVar[str] = "relu"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def __post_init__(self) -> None:
        require_positive("l1", self.l1)
        require_positive("dead_after", self.dead_after)
        if self.target_l0 is not None:
            require_positive("target_l0", self.target_l0)
        if not 0 < self.steering <= 1:
            raise ValueError(f"steering must be above 0 and at most 1, found {self.steering}.")

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, in its own random stream, that begins near its target L0.

        Pre-activations of unit directions are about standard normal, so the bias that leaves the
        target's share of them positive is a normal quantile. Beginning with half of all latents
        active, the penalty that drives L0 down would grow large enough to harm what is learnt.
        """
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        if self.target_l0 is not None:
            if self.target_l0 >= width:
                raise ValueError(f"target_l0 must be below the width {width}, found {self.target_l0}.")
            sae.b_enc.fill_(NormalDist().inv_cdf(self.target_l0 / width))
        sae.state["log_l1"] = torch.tensor(math.log(self.l1), dtype=torch.float64)
        return sae

    def loss(self, sae: SAE, x: Tensor, *, done: float) -> Tensor:
        """Mean squared error plus the L1 penalty, whose coefficient takes a step towards the target."""
        latents = sae.active_above(x, 0.0)
        sae.count(latents)
        if self.target_l0 is not None and done < self.steering:
            l0 = max(len(latents.values), 1) / len(x)
            sae.state["log_l1"] += GAIN * math.log(l0 / self.target_l0)
        values = encode_active(x, sae.W_enc, sae.b_enc, latents)
        residual = x - (decode_active(values, sae.W_dec, latents) + sae.b_dec)
        return mean_squared_error(residual) + self.coefficient(sae) * (values.sum() / len(x))

    @staticmethod
    def coefficient(sae: SAE) -> float:
        """The L1 coefficient that the SAE has come to."""
        return math.exp(sae.state["log_l1"].item())

    def log(self, sae: SAE) -> dict[str, float]:
        """The L1 coefficient and the dead latents."""
        return {"l1": self.coefficient(sae), **super().log(sae)}
