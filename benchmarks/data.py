"""Activations that the benchmarks train on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.files import home, read_json
from saekit.training.sources import as_source, normalisation

N_SYNTHETIC = 65_536
HELD_OUT = 0.1  # share at the end


def activations(d_in: int) -> tuple[Tensor, Tensor, str]:
    """Centred and scaled activations to train on and held out, `[n, d_in]`, and what they are.

    Held-out activations of the embedded model, if they have been harvested in this dimension (the
    last documents are held out here); synthetic ones otherwise.
    """
    found = _embedded(d_in)
    x, description = (synthetic(N_SYNTHETIC, d_in), "synthetic") if found is None else found
    ((mean, scale),) = normalisation(as_source(x))
    z = (x - mean) * scale
    n = int((1 - HELD_OUT) * len(z))
    return z[:n], z[n:], f"{description}, {n:,} to train on and {len(z) - n:,} held out"


def _embedded(d_in: int) -> tuple[Tensor, str] | None:
    for manifest in sorted((home() / "stores").glob("held-out-*/manifest.json")):
        described = read_json(manifest)
        if described["complete"] and described["d_in"] == d_in:
            store = ActivationStore.open(manifest.parent)
            return store.read(store.positions), f"{described['model']['name']}, {store.hook_point}"
    return None


def synthetic(n: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Sums of 16 out of 4 `d_in` random directions with exponential weights, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * d_in, d_in, generator=generator) / math.sqrt(d_in)
    chosen = torch.randint(4 * d_in, (n, 16), generator=generator)
    weights = torch.empty(n, 16).exponential_(generator=generator)
    x = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
    return x + 0.01 * torch.randn(n, d_in, generator=generator)
