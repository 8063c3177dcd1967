"""The differentiable products against dense autograd in float64."""

import pytest
import torch

import saekit.sparse
from saekit.sparse import SparseLatents, decode_active, encode_active, stable_order

BATCH, D_IN, WIDTH = 7, 5, 23


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["sparse", "dense"])
def path(request, monkeypatch):
    """Both ways of computing every product, whatever the density."""
    monkeypatch.setattr(saekit.sparse, "DENSE_ABOVE", {"sparse": 2.0, "dense": -1.0}[request.param])


@pytest.fixture(params=[-0.3, 0.8, 9.0], ids=["many active", "few active", "none active"])
def problem(request):
    """Inputs, parameters that require gradients, a mask of active latents, and weights of an output."""
    x, weights = normal(BATCH, D_IN, seed=0), normal(BATCH, D_IN, seed=1)
    parameters = [normal(WIDTH, D_IN, seed=2), normal(WIDTH, seed=3), normal(WIDTH, D_IN, seed=4)]
    active = x @ parameters[0].T + parameters[1] > request.param
    active[2] = False  # a token without active latents
    active[:, 5] = False  # a latent that is never active
    return x, [p.requires_grad_() for p in parameters], active, weights


def test_values_and_gradients_are_those_of_dense_autograd(problem, path):
    x, (W_enc, b_enc, W_dec), active, weights = problem

    h = x @ W_enc.T + b_enc
    z = torch.where(active, h, 0.0)
    expected = ((z @ W_dec) * weights).sum() + (z**3).sum()  # z**3: a penalty on the values as well
    expected_gradients = torch.autograd.grad(expected, (W_enc, b_enc, W_dec))

    latents = SparseLatents.from_mask(active, h.detach())
    values = encode_active(x, W_enc, b_enc, latents)
    found = (decode_active(values, W_dec, latents) * weights).sum() + (values**3).sum()
    gradients = torch.autograd.grad(found, (W_enc, b_enc, W_dec))

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.float64
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


def test_latents_that_are_not_active_get_exactly_no_gradient(problem, path):
    x, (W_enc, b_enc, W_dec), active, weights = problem
    latents = SparseLatents.from_mask(active, (x @ W_enc.T + b_enc).detach())
    values = encode_active(x, W_enc, b_enc, latents)
    (decode_active(values, W_dec, latents) * weights).sum().backward()
    silent = ~active.any(dim=0)
    assert silent[5]
    for parameter in (W_enc, b_enc, W_dec):
        assert (parameter.grad[silent] == 0).all()


def test_the_dense_path_is_taken_above_its_density_only():
    h = torch.ones(10, 10)
    for n_active, expected in ((39, False), (41, True)):
        active = torch.arange(100).view(10, 10) < n_active
        assert SparseLatents.from_mask(active, h).mostly_active is expected


@pytest.mark.parametrize("size", [300, 1 << 16, 1 << 17])
def test_stable_order_sorts_and_keeps_ties_in_order(size):
    indices = torch.randint(size, (4000,), generator=torch.Generator().manual_seed(size))
    indices[::7] = size - 1
    order = stable_order(indices, size).tolist()
    assert order == sorted(range(4000), key=indices.tolist().__getitem__)


def test_where_keeps_the_entries_asked_for():
    h = normal(BATCH, WIDTH, seed=0)
    h[3] = -1
    latents = SparseLatents.from_mask(h > 0, h).where(h[h > 0] > 0.7)
    assert torch.equal(latents.dense(), torch.where(h > 0.7, h, 0.0))
    assert torch.equal(latents.counts, (h > 0.7).sum(1))
