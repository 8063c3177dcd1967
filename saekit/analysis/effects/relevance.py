"""RelP: relevance patching, attribution with the coefficients of layer-wise relevance propagation.

The rules (Jafari et al. 2025, arXiv:2508.21258) make the model linear around a prompt: norms keep the scale
that they have there, attention keeps its pattern, an activation function keeps its ratio of output to input,
and of a product of two (a gate and what it gates) each factor gets half. The gradient of that linear model is
what is propagated, so one backward pass with the hooks of this module gives the coefficients. Linear layers
and the metric keep their own gradients, and biases get no relevance.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.models import Hook, norm_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NORM = re.compile(r"(blocks\.\d+\.ln\w*|ln_final)\.hook_in")


def relevance_hooks(model: TransformerBridge) -> list[Hook]:
    """Hooks with which every value of a forward pass stays, and its gradient follows the rules of RelP.

    Raises
    ------
    ValueError
        If a block's MLP is neither a plain nor a gated one, as in mixtures of experts.

    Examples
    --------
    >>> len(relevance_hooks(model))  # of three blocks: per block two norms, a pattern and a gated MLP
    26
    """
    names = model.hook_dict
    hooks: list[Hook] = []
    for norm in [found[1] for name in names if (found := NORM.fullmatch(name))]:
        hooks += _frozen_norm(model, norm)
    for layer in range(len(model.blocks)):
        hooks.append((f"blocks.{layer}.attn.hook_pattern", lambda pattern, **_: pattern.detach()))
        inside, gate, outside = (f"blocks.{layer}.mlp.{part}" for part in ("in", "gate", "out"))
        if f"{inside}.hook_out" not in names or f"{outside}.hook_in" not in names:
            raise ValueError(
                f"RelP has no rule for the MLP of block {layer}: it needs a plain or a gated one."
            )
        factors = [f"{part}.hook_out" for part in (inside, gate) if f"{part}.hook_out" in names]
        hooks += _shared(factors, f"{outside}.hook_in")
    return hooks


def _frozen_norm(model: TransformerBridge, name: str) -> list[Hook]:
    """A norm as a linear function, with the scale that it has there."""
    gain, bias = norm_weights(model, name)
    centred = str(model.cfg.normalization_type).startswith("LN")
    entered: list[Tensor] = []

    def centre(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if centred else x

    def enter(x: Tensor, **_: Any) -> None:
        entered[:] = [x]

    def leave(y: Tensor, **_: Any) -> Tensor:
        x = entered.pop()
        wide = torch.promote_types(x.dtype, torch.float32)
        scaled, given = centre(x.detach().to(wide)) * gain, y.detach().to(wide) - bias
        scale = (scaled * given).sum(-1, keepdim=True) / (scaled * scaled).sum(-1, keepdim=True)
        change = centre(x - x.detach())  # zero, with a gradient
        return y.detach() + (scale * gain).to(y.dtype) * change

    return [(f"{name}.hook_in", enter), (f"{name}.hook_out", leave)]


def _shared(factors: list[str], product: str) -> list[Hook]:
    """A product (or a function of one) as the mean of each factor times a constant ratio."""
    entered: dict[str, Tensor] = {}

    def enter(name: str) -> Hook:
        return name, lambda x, **_: entered.__setitem__(name, x)

    def leave(y: Tensor, **_: Any) -> Tensor:
        y = linear = y.detach()
        for x in (entered.pop(name) for name in factors):
            ratio = y / torch.where(x == 0, 1, x).detach() / len(factors)
            linear = linear + ratio * (x - x.detach())
        return linear

    return [*map(enter, factors), (product, leave)]
