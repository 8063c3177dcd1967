"""Attribution of a latent to upstream latents along the residual stream, with the norm frozen."""

from dataclasses import replace

import pytest
import torch

from saekit.analysis.upstream import attribute_upstream
from saekit.dictionary import Dictionary, Transcoder
from saekit.models import capture, load_model

POSITION = 6


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transcoder(layer, *, reads="mlp.hook_in", skip=True, width=24, seed=0):
    return Transcoder.from_weights(
        random(16, width, seed=seed + layer) / 4,
        random(width, 16, seed=seed + layer + 10),
        random(width, seed=seed + layer + 20) / 4,
        random(16, seed=seed + layer + 30) / 4,
        W_skip=random(16, 16, seed=seed + layer + 40) / 8 if skip else None,
        info={"hook_point": f"blocks.{layer}.{reads}", "target": f"blocks.{layer}.hook_mlp_out"},
    )


def attribute(model, *arguments):
    return attribute_upstream(model, *arguments, allow_mismatch=True)


@pytest.mark.parametrize("reads", ["mlp.hook_in", "ln2.hook_normalized", "ln2.hook_out"])
def test_terms_add_up_to_the_pre_activation(reads, model, token_rows):
    tokens, down = token_rows.tokens[2], transcoder(2, reads=reads)
    upstream = [transcoder(0), transcoder(1, skip=False)]
    x = capture(model, tokens[None], down.hook_point)[0]
    for latent in (0, 5, 11):
        found = attribute(model, down, upstream, tokens, latent, POSITION)
        expected = float(down.pre_activations(x)[POSITION, latent])
        assert found.pre_activation == pytest.approx(expected, abs=1e-5)
        assert found.frame["attribution"].sum() == pytest.approx(expected, abs=1e-4)
        for up in upstream:
            active = up.encode(capture(model, tokens[None], up.hook_point)[0])[POSITION]
            rows = found.latents[found.latents["place"] == up.target].set_index("latent")
            assert sorted(rows.index) == active.nonzero().flatten().tolist()
            for index, value in rows["activation"].items():
                assert value == pytest.approx(float(active[index]), abs=1e-5)


def frozen(model, tokens, down, latent):
    """The stream before the MLP, and a latent as a function of it with the norm at its scale there."""
    layer = int(down.hook_point.split(".")[1])
    stream = capture(model, tokens[None], f"blocks.{layer}.hook_resid_mid")[0, POSITION].double()
    norm = model.blocks[layer].ln2.original_component
    weight = norm.weight.double()
    bias = getattr(norm, "bias", None)
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0))
    centred = bias is not None
    u = stream - stream.mean() if centred else stream
    scale = (u.square().mean() + eps).sqrt()  # a constant of the gradient

    def pre_activation(r):
        r = r - r.mean() if centred else r
        z = r / scale * weight + (bias.double() if centred else 0)
        return z @ down.W_enc[:, latent].double() + down.b_enc[latent].double()

    return stream, pre_activation


@pytest.mark.parametrize("architecture", ["rms", "layer norm"])
def test_each_latent_equals_brute_force_with_the_norm_frozen(architecture, model, gpt2_folder, token_rows):
    """Taking one latent out of the stream, and the derivative along what it wrote, give its attribution."""
    rms = architecture == "rms"
    model = model if rms else load_model(gpt2_folder)
    tokens, down = token_rows.tokens[4], transcoder(2 if rms else 1)
    up = transcoder(0)
    found = attribute(model, down, [up], tokens, 3, POSITION)
    stream, pre_activation = frozen(model, tokens, down, 3)
    assert float(pre_activation(stream)) == pytest.approx(found.pre_activation, abs=1e-4)
    assert len(found.latents) > 3
    for _, row in found.latents.iterrows():
        written = row["activation"] * up.W_dec[int(row["latent"])].double()
        removed = float(pre_activation(stream) - pre_activation(stream - written))
        assert row["attribution"] == pytest.approx(removed, abs=1e-5)
        _, derivative = torch.func.jvp(pre_activation, (stream,), (written,))
        assert row["attribution"] == pytest.approx(float(derivative), abs=1e-5)


def test_a_stream_orthogonal_to_the_encoder_is_no_pitfall(model, token_rows):
    """The published ratio <w, norm(x)> / <w, x> is 0/0 there, and explodes near it."""
    tokens, down, up = token_rows.tokens[1], transcoder(2), transcoder(0)
    stream = capture(model, tokens[None], "blocks.2.hook_resid_mid")[0, POSITION].double()
    plain = attribute(model, down, [up], tokens, 0, POSITION)
    for nearly in (0.0, 1e-7):
        w = down.W_enc[:, 0].double()
        w = w - (1 - nearly) * (w @ stream) / (stream @ stream) * stream
        turned = replace(down, W_enc=down.W_enc.index_copy(1, torch.tensor([0]), w.float()[:, None]))
        found = attribute(model, turned, [up], tokens, 0, POSITION)
        assert found.frozen_scale == pytest.approx(plain.frozen_scale, rel=1e-6)
        value, expected = (f.latents["attribution"].abs().max() for f in (found, plain))
        assert 0.01 * expected < value < 100 * expected
        assert found.frame["attribution"].sum() == pytest.approx(found.pre_activation, abs=1e-4)


def test_an_sae_on_the_stream_needs_no_norm(model, token_rows):
    tokens = token_rows.tokens[7]
    down = Dictionary.from_weights(
        random(16, 24), random(24, 16, seed=1), d_in=16, info={"hook_point": "blocks.1.hook_resid_post"}
    )
    up = Dictionary.from_weights(
        random(16, 24, seed=2), random(24, 16, seed=3), d_in=16, info={"hook_point": "blocks.1.hook_attn_out"}
    )
    found = attribute(model, down, [up, transcoder(1)], tokens, 4, POSITION)
    assert found.frozen_scale == 1
    x = capture(model, tokens[None], down.hook_point)[0]
    assert found.frame["attribution"].sum() == pytest.approx(
        float(down.pre_activations(x)[POSITION, 4]), abs=1e-4
    )
    assert set(found.frame["kind"]) == {"component", "latent", "bias", "skip", "error", "own bias"}
    assert found.summary["from_error"] == pytest.approx(
        found.frame[found.frame["kind"] == "error"]["attribution"].sum()
    )


def test_what_is_not_upstream_is_refused(model, token_rows):
    tokens, down = token_rows.tokens[0], transcoder(1)
    for upstream, message in (
        ([transcoder(1)], "not before blocks.1.mlp.hook_in"),
        ([transcoder(0), transcoder(0, seed=5)], "Two upstream dictionaries explain"),
        ([replace(transcoder(0), info={"hook_point": "blocks.0.mlp.hook_in"})], "an unknown hook point"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute(model, down, upstream, tokens, 0, 3)
    head = replace(down, info={"hook_point": "blocks.1.attn.hook_z"})
    with pytest.raises(ValueError, match=r"reads blocks.1.attn.hook_z"):
        attribute(model, head, [], tokens, 0, 3)
    with pytest.raises(ValueError, match="position must be"):
        attribute(model, down, [], tokens, 0, 99)
