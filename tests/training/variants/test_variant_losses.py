"""Losses and gradients of the kinds, against dense autograd in float64 as their papers write them."""

import pytest
import torch

import saekit.sparse
from saekit.training.variants import Gated, JumpReLU, Matryoshka, ReLU

BATCH, D_IN, WIDTH = 17, 6, 32
COEFFICIENT = 0.7


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["sparse", "dense"], autouse=True)
def path(request, monkeypatch):
    """Both ways of computing every product, whatever the density."""
    monkeypatch.setattr(saekit.sparse, "DENSE_ABOVE", {"sparse": 2.0, "dense": -1.0}[request.param])


@pytest.fixture(params=[0.0, -1.5], ids=["half active", "few active"])
def problem(request):
    """Makes a variant's SAE with random parameters that require gradients, and inputs."""

    def make(variant):
        sae = variant.initialise(width=WIDTH, d_in=D_IN, seed=0).to(dtype=torch.float64)
        parameters = sae.parameters.values()
        for i, parameter in enumerate(parameters):
            parameter += 0.2 * normal(*parameter.shape, seed=i)
        sae.b_enc += request.param
        for parameter in parameters:
            parameter.requires_grad_()
        return sae, normal(BATCH, D_IN, seed=99)

    return make


def assert_same(variant, sae, x, expected):
    parameters = sae.parameters
    wanted = torch.autograd.grad(expected, tuple(parameters.values()))
    loss = variant.loss(sae, x, x, done=1.0)
    found = torch.autograd.grad(loss, tuple(parameters.values()))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for name, gradient, reference in zip(parameters, found, wanted, strict=True):
        assert (reference != 0).any(), name
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12, msg=name)


def squared_error(x, latents, sae):
    return (x - (latents @ sae.W_dec + sae.b_dec)).square().sum(dim=1).mean()


def test_relu_weighted_by_decoder_norms(problem):
    variant = ReLU(target_l0=None, l1=COEFFICIENT, weighted=True)
    sae, x = problem(variant)
    assert not variant.unit_norm
    latents = torch.relu(x @ sae.W_enc.T + sae.b_enc)
    penalty = (latents * sae.W_dec.norm(dim=1)).sum(dim=1).mean()
    assert_same(variant, sae, x, squared_error(x, latents, sae) + COEFFICIENT * penalty)


def test_gated(problem):
    variant = Gated(target_l0=None, l1=COEFFICIENT)
    sae, x = problem(variant)
    product = x @ sae.W_enc.T
    gate = product + sae.b_enc
    magnitude = torch.relu(product * sae.extra["r_mag"].exp() + sae.extra["b_mag"])
    latents = torch.where(gate > 0, magnitude, 0.0)
    opening = torch.relu(gate)
    frozen = x - (opening @ sae.W_dec.detach() + sae.b_dec.detach())
    expected = squared_error(x, latents, sae) + COEFFICIENT * opening.sum(dim=1).mean()
    assert_same(variant, sae, x, expected + frozen.square().sum(dim=1).mean())


class Jump(torch.autograd.Function):
    """JumpReLU with the pseudo-derivative of equation 11, dense."""

    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return h * (h > threshold)

    @staticmethod
    def backward(ctx, grad):
        h, threshold = ctx.saved_tensors
        kernel = (((h - threshold) / ctx.bandwidth).abs() < 0.5).to(h.dtype)
        return grad * (h > threshold), (-(threshold / ctx.bandwidth) * kernel * grad).sum(dim=0), None


class Step(torch.autograd.Function):
    """The Heaviside step with the pseudo-derivative of equation 12, dense."""

    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return (h > threshold).to(h.dtype)

    @staticmethod
    def backward(ctx, grad):
        h, threshold = ctx.saved_tensors
        kernel = (((h - threshold) / ctx.bandwidth).abs() < 0.5).to(h.dtype)
        return torch.zeros_like(h), (-(1 / ctx.bandwidth) * kernel * grad).sum(dim=0), None


@pytest.mark.parametrize("bandwidth", [0.2, 1.5])
@pytest.mark.parametrize("target_l0", [None, 5.0])
def test_jumprelu(problem, bandwidth, target_l0):
    variant = JumpReLU(target_l0=target_l0, coefficient=COEFFICIENT, bandwidth=bandwidth, threshold=0.5)
    sae, x = problem(variant)
    h, threshold = x @ sae.W_enc.T + sae.b_enc, sae.extra["log_threshold"].exp()
    latents, active = Jump.apply(h, threshold, bandwidth), Step.apply(h, threshold, bandwidth)
    l0 = active.sum(dim=1).mean()
    penalty = COEFFICIENT * (l0 if target_l0 is None else 2.5 * (l0 / 5.0 - 1) ** 2)
    assert_same(variant, sae, x, squared_error(x, latents, sae) + penalty)


def test_matryoshka(problem):
    variant = Matryoshka(k=4, prefixes=(1 / 8, 1 / 2, 1.0))
    sae, x = problem(variant)
    h = x @ sae.W_enc.T + sae.b_enc
    smallest = h.detach().flatten().sort(descending=True).values[4 * BATCH - 1].clamp_min(0)
    latents = torch.where((h >= smallest) & (h > 0), h, 0.0)
    errors = []
    for end in (4, 16, 32):
        prefix = torch.zeros(WIDTH, dtype=torch.float64)
        prefix[:end] = 1
        errors.append(squared_error(x, latents * prefix, sae))
    assert_same(variant, sae, x, torch.stack(errors).mean())
