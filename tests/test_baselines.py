"""Dictionaries that learnt nothing: what stays fixed in them, and that they are worse."""

from dataclasses import replace

import pytest
import torch
from dictionaries import make
from toy_world import make_world

import saekit
from saekit.baselines import (
    compare_with_baselines,
    frozen_decoder,
    permuted_decoder,
    random_at_equal_l0,
    soft_frozen_decoder,
)
from saekit.files import read_tensors
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import VARIANTS, BatchTopK, ReLU

D_IN, WIDTH = 16, 24


def activations(n=4000):
    """Sparse mixtures of 24 directions."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(WIDTH, D_IN, generator=generator), dim=1)
    latents = torch.rand(n, WIDTH, generator=generator) * (torch.rand(n, WIDTH, generator=generator) < 0.1)
    return 5 + latents @ directions + 0.02 * torch.randn(n, D_IN, generator=generator)


def config(variant=None, **settings):
    settings = {"width": WIDTH, "steps": 400, "batch_size": 128, "lr": 3e-3, "log_every": 400} | settings
    return TrainingConfig(variant or BatchTopK(k=3), **settings)


def rows_at_every_step(settings, x):
    """Decoder rows of the folded dictionary after every step."""
    rows = []
    train(
        replace(settings, log_every=1, steps=40), x, progress=False,
        on_log=lambda dictionary, step: rows.append(dictionary.W_dec),
    )  # fmt: skip
    return rows


def initial(settings):
    return settings.variant.initialise(width=settings.width, d_in=D_IN, seed=settings.initial_seed).W_dec


@pytest.mark.parametrize("kind", [kind for kind in VARIANTS if kind != "topk"])
def test_a_frozen_decoder_keeps_its_bits(kind, tmp_path):
    settings = {VARIANTS[kind].sparsity: 3}
    frozen = config(VARIANTS[kind](**settings), decoder_cosine=1.0, steps=30)
    train(frozen, activations(), checkpoint=tmp_path / "run.safetensors", progress=False)
    saved = read_tensors(tmp_path / "run.safetensors")
    assert torch.equal(saved["W_dec"], initial(frozen))
    assert not torch.equal(saved["W_enc"], initial(frozen))


def test_a_soft_frozen_decoder_keeps_the_cosine_at_every_step_and_reaches_it():
    soft = config(decoder_cosine=0.8, lr=0.05)
    start = initial(soft).double()
    cosines = torch.stack(
        [(rows.double() * start).sum(1) for rows in rows_at_every_step(soft, activations())]
    )
    assert (cosines >= 0.8).all()
    assert (cosines[-1] < 0.8001).any(), "the bound never mattered"
    free = torch.stack(
        [
            (rows.double() * initial(config()).double()).sum(1)
            for rows in rows_at_every_step(config(lr=0.05), activations())
        ]
    )
    assert (free[-1] < 0.7).any(), "without a bound rows would not have moved further"


def test_an_interrupted_baseline_ends_with_the_same_bits(tmp_path):
    soft, x = config(decoder_cosine=0.8, steps=60, lr=0.05), activations()
    whole = train(soft, x, progress=False).dictionary

    def stop(dictionary, step):
        if step == 30:
            raise KeyboardInterrupt

    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(replace(soft, log_every=30), x, checkpoint=file, on_log=stop, progress=False)
    resumed = train(replace(soft, log_every=30), x, checkpoint=file, progress=False).dictionary
    assert all(
        torch.equal(a, b) for a, b in zip(whole.tensors().values(), resumed.tensors().values(), strict=True)
    )


def test_held_decoders_share_no_initial_rows_with_trained_ones_and_are_recorded():
    settings = config()
    starts = [
        initial(one) for one in (settings, replace(settings, decoder_cosine=1.0), replace(settings, seed=1))
    ]
    for i, one in enumerate(starts):
        for other in starts[i + 1 :]:
            assert (one * other).sum(1).abs().max() < 0.99
    dictionary = soft_frozen_decoder(config(steps=10), activations(), progress=False)
    assert dictionary.identity.kind == "batchtopk-soft-frozen-decoder"
    assert dictionary.info["training"]["decoder_cosine"] == 0.8
    assert "decoder_cosine" not in settings.describe()


def test_decoder_rows_of_free_norm_cannot_be_held():
    with pytest.raises(ValueError, match="norm 1"):
        config(ReLU(target_l0=3, weighted=True), decoder_cosine=1.0)
    with pytest.raises(ValueError, match="decoder_cosine must be"):
        config(decoder_cosine=1.2)


def test_a_permuted_decoder_moves_every_direction_and_nothing_else():
    dictionary = make(width=40)
    permuted = permuted_decoder(dictionary, seed=5)
    assert torch.equal(permuted.W_enc, dictionary.W_enc)
    assert torch.equal(permuted.threshold, dictionary.threshold)
    cosines = permuted.W_dec @ dictionary.W_dec.T
    source = cosines.argmax(1)
    assert torch.allclose(cosines.max(1).values, torch.ones(40))
    assert sorted(source.tolist()) == list(range(40))
    assert not (source == torch.arange(40)).any()
    assert permuted.identity != permuted_decoder(dictionary, seed=6).identity
    assert permuted.info["baseline_of"] == dictionary.content_hash
    with pytest.raises(ValueError, match="at least two"):
        permuted_decoder(dictionary.gather([0]))


@pytest.mark.parametrize("match", ["density", "l0"])
def test_random_directions_fire_as_often(match):
    world = make_world()
    dictionary = world.family[48]
    random = random_at_equal_l0(dictionary, world.x, match=match, seed=2)
    counts = [(d.encode(world.x) > 0).sum(0) for d in (dictionary, random)]
    assert counts[0].sum() == counts[1].sum() > 0
    if match == "density":
        assert torch.equal(counts[0], counts[1])
    else:
        assert counts[1].max() - counts[1].min() <= 1
    assert random.identity.kind == "relu-random-at-equal-l0"
    assert (random.W_dec @ dictionary.W_dec.T).abs().max() < 0.95


def test_latents_that_are_always_or_never_active_are_matched_too():
    x = activations(500)
    dictionary = replace(make(d_in=D_IN, width=5), b_enc=torch.tensor([1e4, -1e4, 0, 0, 1e4]))
    random = random_at_equal_l0(dictionary, x)
    counts = [(d.encode(x) > 0).sum(0).tolist() for d in (dictionary, random)]
    assert counts[0] == counts[1]
    assert counts[0][0] == 500
    assert counts[0][1] == 0


def test_a_store_is_read_and_the_wrong_one_refused(tmp_path):
    x, dictionary = activations(500), make(d_in=D_IN)
    store = saekit.ActivationStore.from_array(tmp_path / "store", x, hook_point="here")
    dictionary = replace(dictionary, info={**dictionary.info, "hook_point": "here"})
    assert torch.equal(
        random_at_equal_l0(dictionary, store).threshold, random_at_equal_l0(dictionary, x).threshold
    )
    elsewhere = replace(dictionary, info={**dictionary.info, "hook_point": "there"})
    with pytest.raises(saekit.agreement.MismatchError):
        random_at_equal_l0(elsewhere, store)
    with pytest.raises(ValueError, match="match must be one of"):
        random_at_equal_l0(dictionary, x, match="width")


def test_the_less_was_learnt_the_worse_it_reconstructs():
    x, settings = activations(), config()
    trained = train(settings, x, progress=False).dictionary
    baselines = [
        soft_frozen_decoder(settings, x, progress=False),
        frozen_decoder(settings, x, progress=False),
        permuted_decoder(trained),
        random_at_equal_l0(trained, x),
    ]
    table = compare_with_baselines(trained, baselines, lambda sae: {"fvu": saekit.evaluate(sae, x).fvu})
    fvu = table["fvu"].tolist()
    assert fvu[0] < fvu[1] < fvu[2] < fvu[4] < 1 < fvu[3]
    assert fvu[0] < 0.6 * fvu[2]
    assert table["kind"].tolist()[1:] == [
        f"batchtopk-{name}"
        for name in ("soft-frozen-decoder", "frozen-decoder", "permuted-decoder", "random-at-equal-l0")
    ]
    with pytest.raises(ValueError, match="has width 24"):
        compare_with_baselines(trained, [make(d_in=D_IN, width=9)], dict)
