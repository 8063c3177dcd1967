"""Finding active latents: the fast products against brute force in float64."""

from functools import partial

import pytest
import torch

import saekit.sparse
from saekit.sparse import affine, encode_above
from saekit.training.variants.batchtopk import nth_largest

BATCH, D_IN, WIDTH, K = 128, 64, 700, 8


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def problem():
    """Inputs with an outlier dimension, unit encoder rows, biases; exact pre-activations in float64."""
    x, W = normal(BATCH, D_IN, seed=0), normal(WIDTH, D_IN, seed=1)
    x[:, 3] *= 30
    W /= W.norm(dim=1, keepdim=True)
    b = normal(WIDTH, seed=2) - 2
    return x, W, b, x.double() @ W.double().T + b.double()


def test_affine_is_the_product_in_every_dtype_and_layout(problem):
    x, W, b, h = problem
    torch.testing.assert_close(affine(x, W, b).double(), h, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(affine(x, W.T.contiguous().T, b).double(), h, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(affine(x.double(), W.double(), b.double()), h, rtol=1e-12, atol=1e-12)
    assert affine(x[:0], W, b).shape == (0, WIDTH)


def test_affine_has_gradients_where_they_are_wanted(problem):
    x, W, b, _ = problem
    W, x = W.clone().requires_grad_(), x.clone().requires_grad_()
    affine(x, W, b).square().sum().backward()
    h = x.detach() @ W.detach().T + b
    torch.testing.assert_close(W.grad, 2 * h.T @ x.detach(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(x.grad, 2 * h @ W.detach(), rtol=1e-4, atol=1e-2)


def of_all(latents):
    return nth_largest(latents.values, K * BATCH).expand(BATCH)


def floors():
    return {"zero": 0.0, "positive": 3.0, "per latent": 2 + normal(WIDTH, seed=5).abs()}


@pytest.mark.parametrize("bf16_candidates", [False, True])
@pytest.mark.parametrize("floor", floors())
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_latents_above_a_floor(problem, monkeypatch, floor, bf16_candidates, chunk):
    monkeypatch.setattr(saekit.sparse, "CHUNK_ELEMENTS", chunk * WIDTH)
    monkeypatch.setattr(saekit.sparse, "RESCORE_BELOW", 2.0)
    x, W, b, h = problem
    floor = floors()[floor]
    latents = encode_above(x, W, b, floor, bf16_candidates=bf16_candidates)
    clear = (h - floor).abs() > 1e-4  # elsewhere single precision may decide either way
    assert torch.equal((latents.dense() != 0)[clear], (h > floor)[clear])
    torch.testing.assert_close(
        latents.values.double(), h[latents.rows, latents.indices], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("bf16_candidates", [False, True])
@pytest.mark.parametrize("floor", [0.0, 3.0])
def test_the_largest_are_kept(problem, monkeypatch, floor, bf16_candidates):
    monkeypatch.setattr(saekit.sparse, "RESCORE_BELOW", 2.0)
    x, W, b, h = problem
    encode = partial(encode_above, x, W, b, floor, bf16_candidates=bf16_candidates)
    found = encode(cut=of_all).dense() != 0
    smallest = h.flatten().sort(descending=True).values[K * BATCH - 1]
    assert smallest > floor
    assert torch.equal(found, h >= smallest)


@pytest.mark.parametrize("bf16_candidates", [False, True])
@pytest.mark.parametrize("floor", [-20.0, 0.0, 3.0])
@pytest.mark.parametrize("k", [1, K, 3 * K, WIDTH])
def test_the_largest_of_each_row_are_kept(problem, monkeypatch, k, floor, bf16_candidates):
    """From one group of columns for many latents to a group for each."""
    monkeypatch.setattr(saekit.sparse, "RESCORE_BELOW", 2.0)
    x, W, b, h = problem
    found = encode_above(x, W, b, floor, k=k, bf16_candidates=bf16_candidates).dense() != 0
    smallest = h.sort(dim=1, descending=True).values[:, k - 1 : k]
    assert torch.equal(found, (h >= smallest) & (h > floor))


def test_candidates_leave_few_to_rescore(problem, monkeypatch):
    """The margin is a margin, not everything: rescored candidates are a small multiple of the kept."""
    x, W, b, _ = problem
    counted = []
    original = saekit.sparse.SparseLatents.inner_products
    monkeypatch.setattr(
        saekit.sparse.SparseLatents,
        "inner_products",
        lambda self, *args: counted.append(len(self.values)) or original(self, *args),
    )
    for largest in ({"cut": of_all}, {"k": K}):
        kept = encode_above(x, W, b, 3.0, **largest, bf16_candidates=True)
        assert len(kept.values) <= counted.pop() < 1.3 * len(kept.values)
        assert not counted


def test_many_candidates_are_computed_at_once(problem, monkeypatch):
    x, W, b, h = problem
    monkeypatch.setattr(saekit.sparse.SparseLatents, "inner_products", None)
    found = encode_above(x, W, b, -50.0, bf16_candidates=True)
    assert torch.equal(found.dense() != 0, h > -50)
