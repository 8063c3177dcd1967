"""Folding never changes the function: every kind of SAE, as its authors write it, in float64."""

import pytest
import torch
from dictionaries import parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.dictionary import NORMALIZATIONS, Dictionary
from saekit.folding import Unfolded

D_IN, WIDTH, BATCH = 12, 40, 30
CLEAR = 1e-4  # relative distance from a threshold, or between ranks, below which rounding may decide


def random(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def original(sae: Unfolded, x):
    """The SAE before folding, in its own steps: latents, reconstruction, and which rows are clear."""
    if sae.normalization == "layer_norm":
        centre, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        z = (x - centre) / (std + 1e-5)
    elif sae.normalization == "constant_norm":
        centre, std = 0.0, x.norm(dim=1, keepdim=True) / D_IN**0.5
        z = x / std
    else:
        mean = 0.0 if sae.mean is None else sae.mean
        z = (x - mean) * sae.scale
        if sae.whitening is not None:
            z = z @ sae.whitening[0]
    encoder = sae.W_enc if sae.gain is None else sae.W_enc * sae.gain
    h = (z - (0.0 if sae.pre_bias is None else sae.pre_bias)) @ encoder + sae.b_enc
    rank = h * sae.W_dec.norm(dim=1) if sae.rescaled else h
    threshold = torch.zeros(WIDTH, dtype=torch.float64) if sae.threshold is None else sae.threshold
    on = (rank > threshold) & (h > 0)
    exact = sae.rescaled & (sae.W_dec.norm(dim=1) == 0)  # a product with zero is not rounded
    clear = (((rank - threshold).abs() > CLEAR * (1 + h.abs())) | exact).all(dim=1)
    clear &= (h.abs() > CLEAR).all(dim=1)
    if sae.k is not None:
        ordered = torch.where(on, rank, 0.0).sort(dim=1, descending=True).values
        clear &= ordered[:, sae.k - 1] - ordered[:, sae.k] > CLEAR * (1 + ordered[:, 0])
        on &= rank >= ordered[:, sae.k - 1 : sae.k]
    latents = torch.where(on, h, 0.0)
    z_hat = latents @ sae.W_dec + sae.b_dec
    if sae.normalization is not None:
        return latents, z_hat * std + centre, clear
    if sae.whitening is not None:
        z_hat = z_hat @ sae.whitening[1]
    return latents, z_hat / sae.scale + mean, clear


@st.composite
def saes(draw):
    """Any combination of parts that some library puts together."""
    seed = draw(st.integers(0, 10_000))
    p = parameters(D_IN, WIDTH, seed)
    threshold = p.pop("threshold")
    kind = draw(st.sampled_from(["relu", "jumprelu", "negative", "gated", "topk"]))
    if kind in ("jumprelu", "negative"):
        p["threshold"] = threshold if kind == "jumprelu" else random(seed + 9, WIDTH)
        p["rescaled"] = draw(st.booleans())
    if kind == "gated":
        p["gain"] = (random(seed + 1, WIDTH) / 2).exp()
        p["threshold"] = p["b_enc"] - p["gain"] * random(seed + 2, WIDTH)
    if kind == "topk":
        p |= {"k": draw(st.integers(1, 10)), "rescaled": draw(st.booleans())}
    if draw(st.booleans()):
        p["pre_bias"] = p["b_dec"]
    scaling = draw(st.sampled_from(["none", "scaled", "whitened", *NORMALIZATIONS]))
    if scaling in NORMALIZATIONS:
        p["normalization"] = scaling
    elif scaling != "none":
        p["mean"] = random(seed + 3, D_IN)
        p["scale"] = draw(st.floats(0.01, 50.0))
    if scaling == "whitened":
        matrix = random(seed + 4, D_IN, D_IN) / D_IN**0.5 + 2 * torch.eye(D_IN, dtype=torch.float64)
        p |= {"whitening": (matrix, matrix.inverse()), "scale": 1.0}
    return Unfolded(**p)


@settings(max_examples=200, deadline=None)
@given(sae=saes(), seed=st.integers(0, 10_000))
def test_folding_never_changes_the_function(sae, seed):
    x = random(seed, BATCH, D_IN) * 3
    latents, x_hat, clear = original(sae, x)
    folded = sae.fold().to(dtype=torch.float64)
    torch.testing.assert_close(
        folded.W_dec.norm(dim=1), torch.ones(WIDTH, dtype=torch.float64), atol=1e-6, rtol=0
    )
    decoder = sae.W_dec if sae.whitening is None else sae.W_dec @ sae.whitening[1]
    expected = latents * decoder.norm(dim=1) / sae.scale
    found = folded.encode(x)
    assert torch.equal((found > 0)[clear], (expected > 0)[clear])
    # Rounding the tensors to float32 is all that folding does to an SAE in float64.
    size = x_hat.norm(dim=1, keepdim=True) + expected.norm(dim=1, keepdim=True)
    size = size + x.norm(dim=1, keepdim=True) * (1 + folded.W_enc.norm(dim=0).max())
    assert ((found - expected)[clear].abs() <= 1e-6 * size[clear]).all()
    assert ((folded.reconstruct(x) - x_hat)[clear].abs() <= 1e-5 * size[clear]).all()


@settings(max_examples=30, deadline=None)
@given(sae=saes().filter(lambda sae: sae.k is None), seed=st.integers(0, 10_000))
def test_some_latents_are_those_of_the_whole(sae, seed):
    some = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))[:7]
    part, whole = sae.fold(some), sae.fold()
    for name, tensor in part.tensors().items():
        axis = {"W_enc": 1, "b_dec": None}.get(name, 0)
        expected = getattr(whole, name) if axis is None else getattr(whole, name).index_select(axis, some)
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(sae.fold(slice(3, 9)).W_dec, whole.W_dec[3:9])


def test_blocks_do_not_matter(monkeypatch):
    sae = Unfolded(**parameters(D_IN, WIDTH), mean=random(1, D_IN), scale=0.3)
    whole = sae.fold()
    monkeypatch.setattr("saekit.folding.BLOCK_ELEMENTS", D_IN * 7)
    for name, tensor in sae.fold().tensors().items():
        torch.testing.assert_close(tensor, getattr(whole, name), rtol=1e-6, atol=1e-7)


def test_topk_latents_of_equal_norms_need_no_ranks_of_their_own():
    p = parameters(D_IN, WIDTH)
    p.pop("threshold")
    assert Unfolded(**p, k=3).fold().rank_scale is not None
    assert Unfolded(**p, k=3, rescaled=True).fold().rank_scale is None
    p["W_dec"] = 2 * p["W_dec"] / p["W_dec"].norm(dim=1, keepdim=True)
    assert Unfolded(**p, k=3).fold().rank_scale is None


def test_what_cannot_be_folded_is_refused():
    p = parameters(D_IN, WIDTH)
    with pytest.raises(ValueError, match="scale must be above 0, found 0"):
        Unfolded(**p, scale=0.0).fold()
    with pytest.raises(ValueError, match="Some latents of a TopK SAE"):
        Unfolded(**p, k=3).fold([0, 1])
    with pytest.raises(ValueError, match=r"k=3.*without an inference threshold.*as_jumprelu"):
        Unfolded(**p, batch_k=3).fold()
    with pytest.raises(ValueError, match="scale must be finite"):
        Unfolded(**p, scale=float("inf")).fold()
    with pytest.raises(IndexError, match="latents must be between 0 and 39, found 40"):
        Unfolded(**p).fold([40])


# ------------------------------------------------------------------------------ gates


def gated(seed, r_mag):
    """A gated SAE whose gains are `exp(r_mag)`, and its two tests by their definition in float64."""
    p = parameters(D_IN, WIDTH, seed)
    gain = torch.full((WIDTH,), r_mag, dtype=torch.float64).exp()
    b_gate, b_mag = random(seed + 1, WIDTH), random(seed + 2, WIDTH)
    p |= {"b_enc": b_mag, "gain": gain, "threshold": b_mag - gain * b_gate}

    def encode(x):
        gate = x @ p["W_enc"] + b_gate
        magnitude = gain * (x @ p["W_enc"]) + b_mag
        latents = torch.where(gate > 0, magnitude.relu(), 0.0) * p["W_dec"].norm(dim=1)
        return latents, gate, magnitude

    return Unfolded(**p), encode


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), r_mag=st.floats(-22.0, 2.0))
def test_gates_are_not_lost_however_small_their_gain(seed, r_mag):
    sae, encode = gated(seed, r_mag)
    x = random(seed + 3, BATCH, D_IN) * 3
    expected, gate, magnitude = encode(x)
    folded = sae.fold()
    found = folded.encode(x if folded.W_enc.dtype == torch.float64 else x.float()).double()
    # Outside the proved margin: |w| of a row of unit norm, so times the row's norm, and the gate's bias.
    margin = 2e-5 * (1 + x.norm(dim=1, keepdim=True)) * (1 + sae.W_enc.norm(dim=0))
    clear = (gate.abs() > margin) & (magnitude.abs() > 1e-5 * (1 + magnitude.abs()))
    assert clear.double().mean() > 0.99
    assert torch.equal((found > 0)[clear], (expected > 0)[clear])
    same = (found > 0) == (expected > 0)
    torch.testing.assert_close(found[same], expected[same], rtol=1e-5, atol=1e-5)


def test_single_precision_is_kept_where_it_keeps_the_gates():
    assert gated(0, 0.0)[0].fold().W_enc.dtype == torch.float32
    assert gated(0, -16.0)[0].fold().W_enc.dtype == torch.float64
    sae, _ = gated(0, -60.0)
    with pytest.raises(ValueError, match=r"latents have so small a gain exp\(r_mag\)"):
        sae.fold()


# ------------------------------------------------------------------------------ latents that add nothing


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_zero_decoder_row_adds_nothing_and_changes_nothing(kind, rescaled):
    p = parameters(D_IN, WIDTH)
    p["W_dec"] = p["W_dec"].clone()
    p["W_dec"][[3, 5]] = 0
    threshold = p.pop("threshold")
    if kind == "jumprelu":
        p["threshold"] = threshold
    sae = Unfolded(**p, k=4 if kind == "topk" else None, rescaled=rescaled, mean=random(1, D_IN), scale=0.7)
    x = random(2, 300, D_IN) * 3
    latents, x_hat, clear = original(sae, x)
    folded = sae.fold().to(dtype=torch.float64)
    assert clear.sum() > 200
    torch.testing.assert_close(folded.reconstruct(x)[clear], x_hat[clear], rtol=1e-5, atol=1e-4)
    expected = latents > 0
    if rescaled:  # such a library shows h times the norm
        expected &= sae.W_dec.norm(dim=1) > 0
    assert torch.equal((folded.encode(x) > 0)[clear], expected[clear])
    assert torch.equal(folded.W_dec[[3, 5]], torch.zeros(2, D_IN, dtype=torch.float64))
    others = [latent for latent in range(WIDTH) if latent not in (3, 5)]
    torch.testing.assert_close(folded.W_dec[others].norm(dim=1), torch.ones(WIDTH - 2).double())


def test_a_latent_with_an_infinite_threshold_is_never_active(tmp_path):
    p = parameters(D_IN, WIDTH)
    p["threshold"] = p["threshold"].clone()
    p["threshold"][7], p["threshold"][8] = torch.inf, -torch.inf
    folded = Unfolded(**p, scale=2.0).fold()
    x = random(1, 200, D_IN).float() * 10
    active = folded.encode(x) > 0
    assert not active[:, 7].any()
    assert torch.equal(active[:, 8], folded.pre_activations(x)[:, 8] > 0)
    again = Dictionary.load(folded.save(tmp_path))
    assert again.content_hash == folded.content_hash
    p["threshold"][7] = torch.nan
    with pytest.raises(ValueError, match="Thresholds must be at least 0"):
        Unfolded(**p).fold()
