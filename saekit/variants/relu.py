"""ReLU SAE with an L1 penalty, steered to a given L0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.sparse import SparseLatents, decode_active, encode_active
from saekit.variants.common import SAE, Loss, Variant, mean_squared_error, require_positive


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
    steering: float = 0.8
    dead_after: int = 100_000
    kind: ClassVar[str] = "relu"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def __post_init__(self) -> None:
        require_positive("l1", self.l1)
        if self.target_l0 is not None:
            require_positive("target_l0", self.target_l0)
        if not 0 < self.steering <= 1:
            raise ValueError(f"steering must be above 0 and at most 1, found {self.steering}.")

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE with the coefficient to start from."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        if self.target_l0 is not None and START*self.target_l0 < width:
            from scipy.stats import norm
            sae.b_enc.fill_(-norm.isf(START * self.target_l0 / width))
        sae.state["log_l1"] = torch.tensor(math.log(self.l1), dtype=torch.float64)
        return sae

    def loss(self, sae: SAE, x: Tensor, *, progress: float) -> Loss:
        """Squared error plus the steered L1 penalty."""
        h = sae.pre_activations(x)
        latents = SparseLatents.from_mask(h > 0, h)
        if self.target_l0 is not None and progress < self.steering:
            l0 = max(len(latents.indices) / len(x), 1.0)
            sae.state["log_l1"] += GAIN * math.log(l0 / self.target_l0)
        sae.count(latents)
        values = encode_active(x, sae.W_enc, sae.b_enc, latents)
        residual = x - (decode_active(values, sae.W_dec, latents) + sae.b_dec)
        l1 = math.exp(sae.state["log_l1"].item())
        return Loss(mean_squared_error(residual) + l1 * (values.sum() / len(x)), latents)

    def folding(self, sae: SAE) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: the threshold is 0."""
        return {}

    def log(self, sae: SAE) -> dict[str, float]:
        """The L1 coefficient and the dead latents."""
        return {"l1": math.exp(sae.state["log_l1"].item()), **super().log(sae)}


import os
GAIN = float(os.environ.get('GAIN','0.003'))
START=float(os.environ.get('START','1'))
