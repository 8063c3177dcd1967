"""Initialisation, dead latents, folding: what every training variant shares."""

import itertools
import json

import pytest
import torch

from saekit.folding import Unfolded
from saekit.training.variants import VARIANTS, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
from saekit.training.variants.base import auxiliary_loss

D_IN = 6


def make(kind, **settings):
    variant = VARIANTS[kind]
    return variant(**{variant.sparsity: 4} | settings)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def new_sae(variant, *, width=24, seed=0):
    """A new SAE in float64, with biases that are not zero."""
    sae = variant.initialise(width=width, d_in=D_IN, seed=seed).to(dtype=torch.float64)
    for i, extra in enumerate(sae.extra.values()):
        extra += 0.2 * normal(width, seed=10 + i)
    sae.b_enc += 0.3 * normal(width, seed=1)
    sae.b_dec += 0.1 * normal(D_IN, seed=2)
    sae.W_enc += 0.1 * normal(width, D_IN, seed=3)
    for parameter in sae.parameters.values():
        parameter.requires_grad_()
    return sae


def test_no_two_dictionaries_share_initial_rows():
    rows = {
        (kind, width, seed): make(kind).initialise(width=width, d_in=D_IN, seed=seed).W_dec
        for kind in VARIANTS
        for width in (24, 48, 96)
        for seed in (0, 1)
    }
    for a, b in itertools.combinations(rows, 2):
        assert not set(map(tuple, rows[a].tolist())) & set(map(tuple, rows[b].tolist())), (a, b)


@pytest.mark.parametrize("kind", VARIANTS)
def test_initialisation_is_reproducible_and_leaves_the_global_stream_alone(kind):
    state = torch.get_rng_state()
    first, second = (make(kind).initialise(width=24, d_in=D_IN, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in first.parameters.items():
        assert torch.equal(parameter, second.parameters[name])
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(24))
    assert first.W_enc.data_ptr() != first.W_dec.data_ptr()


def test_kinds_are_named_after_their_classes():
    assert {kind: variant.__name__.lower() for kind, variant in VARIANTS.items()} == {k: k for k in VARIANTS}


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_folded_dictionary_is_the_sae_at_inference(kind):
    sae, x = new_sae(make(kind)), normal(50, D_IN, seed=4)
    mean, scale = normal(D_IN, seed=5), 0.3
    variant = make(kind)
    if "threshold" in sae.state:
        sae.state["threshold"].fill_(0.4)
    with torch.no_grad():
        dictionary = Unfolded(mean=mean, scale=scale, **variant.folding(sae)).fold().to(dtype=torch.float64)
        z = (x - mean) * scale
        kept, values = at_inference(kind, sae, z)
    z_hat = (values * kept) @ sae.W_dec + sae.b_dec
    assert kept.any()
    assert not kept.all()
    assert torch.equal(dictionary.encode(x) > 0, kept)
    torch.testing.assert_close(dictionary.reconstruct(x), z_hat / scale + mean, rtol=1e-5, atol=1e-5)


def at_inference(kind, sae, z):
    """Active latents and their values, as the papers write them."""
    product = z @ sae.W_enc.T
    h = product + sae.b_enc
    if kind == "topk":
        return torch.stack([row >= row.sort(descending=True).values[3] for row in h]) & (h > 0), h
    if kind == "gated":
        magnitude = (sae.extra["r_mag"].exp() * product + sae.extra["b_mag"]).relu()
        return (h > 0) & (magnitude > 0), magnitude
    if kind == "jumprelu":
        return h > sae.extra["log_threshold"].exp(), h
    return h > (0.0 if kind == "relu" else 0.4), h


@pytest.mark.parametrize("kind", VARIANTS)
def test_settings_are_json(kind):
    described = json.loads(json.dumps(make(kind).describe()))
    assert described.pop("kind") == kind
    assert VARIANTS[kind](**described) == make(kind)


@pytest.mark.parametrize("kind", VARIANTS)
def test_silent_tokens_are_counted_from_the_last_activation(kind):
    variant = make(kind, dead_after=60)
    sae, last_active, seen = new_sae(variant), torch.zeros(24, dtype=torch.long), 0
    with torch.no_grad():
        sae.b_enc[:3] = -100  # never active
    for step in range(8):
        x = normal(10, D_IN, seed=step)
        with torch.no_grad():
            if VARIANTS[kind].sparsity == "target_l0":
                active, _ = at_inference(kind, sae, x)
            else:
                active = expected_active(kind, x @ sae.W_enc.T + sae.b_enc)
        variant.loss(sae, x, x, done=1.0)
        seen += 10
        last_active[active.any(dim=0)] = seen
    assert torch.equal(sae.state["silent_tokens"], seen - last_active)
    assert sae.dead(60).tolist() == (seen - last_active >= 60).nonzero().flatten().tolist()
    assert variant.log(sae)["dead"] == len(sae.dead(60)) >= 3


def expected_active(kind, h):
    """Active latents in training, by sorting everything."""
    smallest = (
        h.sort(dim=1, descending=True).values[:, 3:4]
        if kind == "topk"
        else h.flatten().sort(descending=True).values[4 * len(h) - 1]
    )
    return (h >= smallest) & (h > 0)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("k_aux", [2, 100])
def test_loss_with_dead_latents_is_that_of_dense_autograd(kind, k_aux):
    variant = make(kind, dead_after=1000, k_aux=k_aux, aux_coefficient=0.5)
    sae, x = new_sae(variant), normal(15, D_IN, seed=4)
    sae.state["silent_tokens"][[2, 5, 11, 20]] = 5000
    with torch.no_grad():
        sae.b_enc[[2, 5, 11, 20]] = -0.4  # some are positive on some tokens, none is selected
        sae.W_enc[[2, 5, 11, 20]] *= 0.5

    h = x @ sae.W_enc.T + sae.b_enc
    active = expected_active(kind, h.detach())
    dead = [i for i in (2, 5, 11, 20) if not active[:, i].any()]
    assert len(dead) >= 3
    residual = x - ((h * active) @ sae.W_dec + sae.b_dec)
    loss = residual.square().sum(1).mean()
    aux = torch.zeros_like(h)
    for row in range(len(x)):
        for i in sorted(dead, key=lambda i, row=row: -h[row, i].item())[:k_aux]:
            aux[row, i] = h[row, i].clamp_min(0)
    loss = loss + 0.5 * (residual.detach() - aux @ sae.W_dec).square().sum(1).mean()
    expected = torch.autograd.grad(loss, tuple(sae.parameters.values()))

    found = variant.loss(sae, x, x, done=0.5)
    gradients = torch.autograd.grad(found, tuple(sae.parameters.values()))
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-11, atol=1e-12)
    assert (gradients[0][dead] != 0).any(dim=1).any(), "dead latents must get a gradient"


def test_auxiliary_loss_leaves_live_latents_and_the_decoder_bias_alone():
    sae, x = new_sae(TopK(k=4)), normal(15, D_IN, seed=4)
    dead = torch.tensor([1, 7, 8])
    live = torch.ones(24, dtype=torch.bool)
    live[dead] = False
    residual = x + sae.b_dec  # has a graph, which must not be followed
    auxiliary_loss(sae, x, residual, dead, k_aux=2).backward()
    assert sae.b_dec.grad is None
    for parameter in (sae.W_enc, sae.b_enc, sae.W_dec):
        assert (parameter.grad[live] == 0).all()
        assert (parameter.grad[dead] != 0).any()


@pytest.mark.parametrize(
    ("make_variant", "message"),
    [
        (lambda: TopK(k=0), "k must be at least 1, found 0"),
        (lambda: BatchTopK(dead_after=0), "dead_after must be at least 1, found 0"),
        (lambda: BatchTopK(k_aux=0), "k_aux must be at least 1, found 0"),
        (lambda: TopK(aux_coefficient=-1.0), "aux_coefficient must be at least 0, found -1"),
        (lambda: ReLU(target_l0=0), "target_l0 must be above 0, found 0"),
        (lambda: ReLU(l1=float("nan")), "l1 must be finite, found nan"),
        (lambda: Gated(l1=-1.0), "l1 must be above 0, found -1"),
        (lambda: JumpReLU(coefficient=0.0), "coefficient must be above 0, found 0"),
        (lambda: JumpReLU(bandwidth=0.0), "bandwidth must be above 0, found 0"),
        (lambda: Matryoshka(prefixes=(0.5, 0.25, 1.0)), "prefixes must ascend from above 0 to 1"),
        (lambda: Matryoshka(prefixes=(0.5,)), "prefixes must ascend from above 0 to 1"),
        (lambda: ReLU(steering=1.5), "steering must be at most 1, found 1.5"),
        (lambda: TopK(k=30).check_width(24), "k must be at most the width 24, found 30"),
        (lambda: ReLU(target_l0=30).check_width(24), "target_l0 must be below the width 24, found 30"),
    ],
)
def test_settings_out_of_range_are_refused(make_variant, message):
    with pytest.raises(ValueError, match=message):
        make_variant()
