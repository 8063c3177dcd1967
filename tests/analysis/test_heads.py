"""Attention-output dictionaries by head: shares, direct feature attribution, families of one head."""

from dataclasses import replace

import pytest
import torch

import saekit
from saekit.agreement import MismatchError
from saekit.analysis.heads import attribute_to_sources, family_of_head, head_shares
from saekit.dictionary import Dictionary, Transcoder
from saekit.models import capture, describe_model, load_model

HEADS = 4


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_z(width, d_in, layer=1, seed=0, **info):
    return Dictionary.from_weights(
        random(d_in, width, seed=seed) / d_in**0.5,
        random(width, d_in, seed=seed + 1),
        random(width, seed=seed + 2) / 4,
        random(d_in, seed=seed + 3),
        d_in=d_in,
        subtract_b_dec=True,
        info={"hook_point": f"blocks.{layer}.attn.hook_z", "kind": "relu", "seed": seed, **info},
    )


def origin(model):
    described = describe_model(model)
    names = {"model": "name", "model_weights": "weights", "model_revision": "revision"}
    return {ours: described[theirs] for ours, theirs in names.items()} | {
        "model_processing": described["processing"]
    }


def test_shares_add_up_and_are_those_of_the_parts():
    dictionary = at_z(10, 16)
    shares = head_shares(dictionary, HEADS)
    for found, rows in ((shares.decoder, dictionary.W_dec), (shares.encoder, dictionary.W_enc.T)):
        assert torch.allclose(found.sum(1), torch.ones(10).double())
        for head in range(HEADS):
            part = rows[:, 4 * head : 4 * head + 4].double().norm(dim=1) / rows.double().norm(dim=1)
            torch.testing.assert_close(found[:, head], part**2)
    frame = shares.frame
    assert len(frame) == 40
    assert frame["decoder_share"][13] == pytest.approx(float(shares.decoder[3, 1]))
    one = frame[frame["head"] == 2].query("decoder_share >= 0.3")["latent"].tolist()
    assert shares.latents(2, at_least=0.3).tolist() == one
    assert shares.summary["n_heads"] == HEADS


def test_a_dead_row_has_no_share():
    dictionary = at_z(3, 16)
    silent = replace(dictionary, W_dec=dictionary.W_dec * torch.tensor([[1.0], [0.0], [1.0]]))
    assert head_shares(silent, HEADS).decoder[1].tolist() == [0.0] * HEADS


@pytest.mark.parametrize("position", [0, 7, 15])
@pytest.mark.parametrize("architecture", ["grouped-query", "gpt2"])
def test_attributions_add_up_to_the_pre_activation(architecture, position, model, gpt2_folder, token_rows):
    """Over sources and heads, with key-value heads that query heads share, and without."""
    model = model if architecture == "grouped-query" else load_model(gpt2_folder)
    tokens = token_rows.tokens[3]
    dictionary = at_z(24, 16)
    z = capture(model, tokens[None], dictionary.hook_point)[0]
    pre_activations = dictionary.pre_activations(z).double()
    for latent in range(0, 24, 5):
        found = attribute_to_sources(model, dictionary, tokens, latent, position, allow_mismatch=True)
        total = float(found.attribution.sum()) + found.bias
        assert total == pytest.approx(float(pre_activations[position, latent]), abs=1e-5)
        assert found.pre_activation == pytest.approx(total, abs=1e-5)
        assert found.activation == pytest.approx(float(dictionary.encode(z)[position, latent]), abs=1e-5)
        assert found.attribution.shape == (position + 1, HEADS)
        # One head alone: its part of z times its part of the encoder.
        parts = z[position].double().view(HEADS, 4) * dictionary.W_enc[:, latent].double().view(HEADS, 4)
        torch.testing.assert_close(found.by_head, parts.sum(1), rtol=1e-4, atol=1e-5)
        assert found.frame["attribution"].sum() == pytest.approx(total - found.bias)


def test_one_source_is_what_removing_its_value_changes(model, token_rows):
    """Brute force: zero the values of one source in one key-value head, with patterns as they are."""
    tokens, position, source = token_rows.tokens[5], 9, 4
    dictionary = at_z(24, 16)
    found = attribute_to_sources(model, dictionary, tokens, 2, position, allow_mismatch=True)
    seen = {}

    def zeroed(v, hook):
        v = v.clone()
        v[0, source, 1] = 0  # of heads 2 and 3
        return v

    def keep(z, hook):
        seen["z"] = z[0, position].flatten().clone()

    with torch.no_grad():
        model.run_with_hooks(
            tokens[None],
            fwd_hooks=[("blocks.1.attn.hook_v", zeroed), ("blocks.1.attn.hook_z", keep)],
        )
    changed = float(dictionary.pre_activations(seen["z"][None])[0, 2])
    expected = found.pre_activation - changed
    assert float(found.attribution[source, 2:].sum()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.embedded
def test_on_the_embedded_model_they_add_up_too():
    """Three key-value heads for nine heads."""
    model = load_model()
    tokens = model.tokenizer("The capital of France is Paris, and its river", return_tensors="pt")
    tokens = tokens["input_ids"][0]
    dictionary = at_z(16, 576, layer=12, **origin(model))
    z = capture(model, tokens[None], dictionary.hook_point)[0]
    for position in (1, len(tokens) - 1):
        for latent in (0, 7):
            found = attribute_to_sources(model, dictionary, tokens, latent, position)
            assert found.attribution.shape == (position + 1, 9)
            total = float(found.attribution.sum()) + found.bias
            size = float(found.attribution.abs().sum())
            expected = float(dictionary.pre_activations(z)[position, latent])
            assert abs(total - expected) <= 1e-5 * max(1.0, size)


def test_a_family_of_one_head_is_analysed_as_any_other():
    family = saekit.Family(at_z(width, 16, seed=10 * seed) for width in (24, 40) for seed in (0, 1))
    inside = family_of_head(family, HEADS, 2, at_least=0.4)
    assert all((head_shares(member, HEADS).decoder[:, 2] >= 0.4).all() for member in inside)
    expected = [len(head_shares(whole, HEADS).latents(2, at_least=0.4)) for whole in family]
    assert sorted(member.width for member in inside) == sorted(expected)
    small, large = inside[inside.widths[0]], inside[inside.widths[-1]]
    z = random(60, 16, seed=5)
    path = saekit.stitch(small, large, z, theta=0.3)
    assert path.frame["fvu"].iloc[-1] == pytest.approx(saekit.evaluate(large, z).fvu, rel=1e-5)


def test_what_has_no_heads_is_refused(model, token_rows):
    dictionary, tokens = at_z(8, 16), token_rows.tokens[0]
    elsewhere = replace(dictionary, info=dictionary.info | {"hook_point": "blocks.1.hook_resid_post"})
    transcoder = Transcoder.from_weights(random(16, 8), random(8, 16))
    with pytest.raises(ValueError, match=r"is at blocks.1.hook_resid_post: heads are those of"):
        head_shares(elsewhere, HEADS)
    with pytest.raises(ValueError, match="heads need an SAE"):
        head_shares(transcoder, HEADS)
    with pytest.raises(ValueError, match="3 heads do not divide the 16"):
        head_shares(dictionary, 3)
    with pytest.raises(ValueError, match="an unknown hook point"):
        attribute_to_sources(model, replace(dictionary, info={}), tokens, 0, 3)
    with pytest.raises(ValueError, match="position must be"):
        attribute_to_sources(model, dictionary, tokens, 0, 16, allow_mismatch=True)
    with pytest.raises(IndexError):
        attribute_to_sources(model, dictionary, tokens, 8, 3, allow_mismatch=True)
    with pytest.raises(ValueError, match="ids of one text"):
        attribute_to_sources(model, dictionary, tokens[None], 0, 3, allow_mismatch=True)
    other = replace(dictionary, info=dictionary.info | {"model": "gpt2", "model_weights": "0" * 64})
    with pytest.raises(MismatchError):
        attribute_to_sources(model, other, tokens, 0, 3)
    with pytest.raises(ValueError, match="No latent of"):
        family_of_head(saekit.Family([dictionary]), HEADS, 0, at_least=1.0)
