import pytest
import torch

from saekit.training.variants import BatchTopK
from saekit.training.variants.batchtopk import THRESHOLD_RATE


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transparent(variant, width):
    """An SAE whose pre-activations are its inputs."""
    sae = variant.initialise(width=width, d_in=width, seed=0)
    sae.W_enc = torch.eye(width)
    return sae


def test_the_largest_of_the_batch_are_active_however_many_a_row_gets():
    variant = BatchTopK(k=3)
    sae = transparent(variant, 20)
    h = normal(12, 20)
    h[4] += 5  # takes much more than its share
    smallest = h.flatten().sort(descending=True).values[35]
    latents = variant.select(sae, h)
    assert torch.equal(latents.dense(), torch.where(h >= smallest, h, 0.0))
    assert len(latents.values) == 36
    assert latents.counts[4] > 15


@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0, 2.2, 50.0])
def test_the_floor_does_not_change_the_selection(floor):
    variant, h = BatchTopK(k=3), normal(30, 40, seed=1)
    sae = transparent(variant, 40)
    sae.state["floor"].fill_(floor)
    smallest = h.flatten().sort(descending=True).values[89]
    assert torch.equal(variant.select(sae, h).dense(), torch.where(h >= smallest, h, 0.0))


def test_fewer_positive_ones_than_wanted_are_all_kept_and_ties_too():
    variant, h = BatchTopK(k=2), -torch.ones(3, 4)
    h[0, 1], h[2, 3] = 2.0, 1.0
    sae = transparent(variant, 4)
    assert variant.select(sae, h).dense().nonzero().tolist() == [[0, 1], [2, 3]]
    assert len(variant.select(sae, torch.ones(3, 4)).values) == 12


def test_the_threshold_is_the_running_average_of_the_smallest_kept():
    variant = BatchTopK(k=2)
    sae = transparent(variant, 10)
    expected = None
    for step in range(5):
        h = normal(8, 10, seed=step)
        variant.select(sae, h)
        smallest = h.flatten().sort(descending=True).values[15].item()
        rate = 1.0 if expected is None else THRESHOLD_RATE
        expected = rate * smallest + (1 - rate) * (expected or 0.0)
    threshold = variant.folding(sae)["threshold"]
    assert threshold.shape == (10,)
    torch.testing.assert_close(
        threshold, torch.full((10,), expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_a_batch_without_positive_activations_leaves_the_threshold():
    variant = BatchTopK(k=2)
    sae = transparent(variant, 10)
    variant.select(sae, normal(8, 10))
    before = sae.state["threshold"].clone()
    assert len(variant.select(sae, -torch.ones(8, 10)).values) == 0
    assert torch.equal(sae.state["threshold"], before)
