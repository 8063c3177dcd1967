import math

import pytest
import torch

from saekit.training.variants import ReLU
from saekit.training.variants.base import GAIN


def problem(variant, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sae = variant.initialise(width=30, d_in=8, seed=0)
    for name, parameter in sae.parameters.items():
        setattr(sae, name, parameter.to(dtype).requires_grad_())
    return sae, torch.randn(20, 8, generator=generator, dtype=dtype)


def test_loss_and_gradients_are_those_of_dense_autograd():
    variant = ReLU(target_l0=None, l1=0.7)
    sae, x = problem(variant)
    latents = torch.relu(x @ sae.W_enc.T + sae.b_enc)
    error = (x - (latents @ sae.W_dec + sae.b_dec)).square().sum(dim=1)
    expected = (error + 0.7 * latents.sum(dim=1)).mean()
    reference = torch.autograd.grad(expected, tuple(sae.parameters.values()))

    loss = variant.loss(sae, x, x, done=0.0)
    gradients = torch.autograd.grad(loss, tuple(sae.parameters.values()))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients, reference, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_the_bias_begins_near_the_target_l0():
    variant = ReLU(target_l0=6.0)
    sae = variant.initialise(width=400, d_in=64, seed=0)
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    l0 = sae.active_above(x).counts.double().mean()
    assert l0 == pytest.approx(6.0, rel=0.1)


def test_the_coefficient_moves_by_the_logarithm_of_how_far_l0_is_off():
    variant = ReLU(target_l0=5.0, l1=0.5, steering=0.5)
    sae, x = problem(variant)
    l0 = len(sae.active_above(x).values) / 20
    variant.loss(sae, x, x, done=0.0)
    assert math.log(variant.coefficient(sae) / 0.5) == pytest.approx(GAIN * math.log(l0 / 5.0))
    assert variant.log(sae)["l1"] == variant.coefficient(sae)


def test_the_coefficient_is_frozen_after_steering_and_without_a_target():
    for variant, done in ((ReLU(target_l0=5.0, steering=0.5), 0.5), (ReLU(target_l0=None), 0.0)):
        sae, x = problem(variant)
        variant.loss(sae, x, x, done=done)
        assert variant.coefficient(sae) == 1.0


def test_a_batch_without_active_latents_lowers_the_coefficient():
    variant = ReLU(target_l0=5.0)
    sae, x = problem(variant)
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    loss = variant.loss(sae, x, x, done=0.0)
    loss.backward()
    assert 0 < variant.coefficient(sae) < 1
    assert (sae.W_enc.grad == 0).all()
