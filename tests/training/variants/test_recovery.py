"""Every variant finds the directions that synthetic activations are made of."""

import pytest
import torch

from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import VARIANTS

D_IN, TRUE, ACTIVE = 32, 64, 3


@pytest.fixture(scope="module")
def planted():
    """Sparse sums of known unit directions: the directions, and activations to train on and to judge by."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(TRUE, D_IN, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    active = torch.rand(24_000, TRUE, generator=generator) < ACTIVE / TRUE
    sizes = 1 + torch.rand(24_000, TRUE, generator=generator)
    x = (active * sizes) @ directions
    return directions, x[:20_000], x[20_000:]


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.slow
def test_planted_directions_are_recovered(kind, planted):
    directions, x, held_out = planted
    sparsity = {VARIANTS[kind].sparsity: ACTIVE}
    config = TrainingConfig(
        variant=VARIANTS[kind](dead_after=20_000, **sparsity),
        width=2 * TRUE,
        steps=2500,
        batch_size=256,
        lr=3e-3,
        log_every=2500,
    )
    result = train(config, x, held_out=held_out, progress=False)
    best = (directions @ result.dictionary.W_dec.T).amax(dim=1)
    assert best.mean() > 0.95, best
    assert result.summary["l0"] == pytest.approx(ACTIVE, rel=0.25)
