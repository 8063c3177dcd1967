"""Small random dictionaries for tests."""

import torch

from saekit.folding import Unfolded


def parameters(d_in=12, width=40, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "W_enc": normal(d_in, width) / d_in**0.5,
        "b_enc": normal(width) * 0.3 - 0.5,
        "W_dec": normal(width, d_in),
        "b_dec": normal(d_in),
        "threshold": normal(width).abs() * 0.2,
    }


def make(d_in=12, width=40, seed=0, **kwargs):
    return Unfolded(**parameters(d_in, width, seed), info={"kind": "relu", "seed": seed}, **kwargs).fold()
