"""Settings of a run: types that notebooks have, schedules, seeds, and configs by name."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from saekit.training.config import TrainingConfig, configure
from saekit.training.trainer import train
from saekit.training.variants import VARIANTS, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK

X = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
CONFIG = TrainingConfig(TopK(k=4), width=24, steps=20, batch_size=32, log_every=10)


def result(config, x=X, **options):
    return train(config, x, progress=False, **options)


def same(a, b):
    return a.dictionary.content_hash == b.dictionary.content_hash and a.log.equals(b.log)


# ---------------------------------------------------------------------- types


def test_numbers_of_numpy_and_torch_train_and_save_what_plain_ones_do(tmp_path):
    numpy = TrainingConfig(
        TopK(k=np.int32(4), aux_coefficient=np.float64(1 / 32)),
        width=np.int64(24),
        seed=np.uint8(0),
        steps=torch.tensor(20),
        batch_size=np.array(32),
        lr=torch.tensor(1e-3, dtype=torch.float64),
        decay=np.float64(0.2),
        log_every=np.int16(10),
        bf16_candidates=np.False_,
    )
    assert numpy == CONFIG
    assert json.loads(json.dumps(numpy.describe())) == CONFIG.describe()
    dictionary = result(numpy, checkpoint=tmp_path / "c.safetensors").dictionary
    assert dictionary.content_hash == result(CONFIG).dictionary.content_hash
    dictionary.save(tmp_path / "saved")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TrainingConfig("relu", width=8),
            "must be a kind of SAE with its settings, such as ReLU",
        ),
        (lambda: TrainingConfig(ReLU, width=8), "variant must be a kind of SAE with its settings"),
        (lambda: TopK(k=2.5), "k must be a whole number, found 2.5"),
        (lambda: BatchTopK(k="4"), "k must be a whole number, found '4'"),
        (lambda: BatchTopK(k_aux=1.0), "k_aux must be a whole number, found 1.0"),
        (lambda: Matryoshka(prefixes=1.0), "prefixes must be a sequence, found 1.0"),
        (lambda: ReLU(target_l0="36"), "target_l0 must be a number, found '36'"),
        (lambda: ReLU(weighted=1), "weighted must be True or False, found 1"),
        (lambda: Gated(dead_after=1e5), "dead_after must be a whole number, found 100000.0"),
        (lambda: JumpReLU(bandwidth=None), "bandwidth must be a number, found None"),
        (lambda: replace(CONFIG, width=24.0), "width must be a whole number, found 24.0"),
        (lambda: replace(CONFIG, steps=True), "steps must be a whole number, found True"),
        (lambda: replace(CONFIG, seed="0"), "seed must be a whole number, found '0'"),
        (lambda: replace(CONFIG, lr="1e-3"), "lr must be a number, found '1e-3'"),
        (lambda: replace(CONFIG, bf16_candidates="no"), "bf16_candidates must be True or False, found 'no'"),
        (lambda: result("relu"), "config must be a TrainingConfig, found 'relu'"),
        (
            lambda: result(CONFIG, "a/store"),
            "must be an ActivationStore, a tensor or a NumPy array, found str",
        ),
        (lambda: result(CONFIG, X > 0), "must be dense real numbers, found torch.bool"),
        (lambda: result(CONFIG, X.to_sparse()), "must be dense real numbers"),
        (lambda: result(CONFIG, np.array([["a"]])), "must be real numbers, found an array of <U1"),
        (lambda: result(CONFIG, checkpoint_every=0.5), "checkpoint_every must be a whole number, found 0.5"),
    ],
)
def test_settings_of_another_type_are_named(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(CONFIG, variant=TopK(k=25)), "k must be at most the width 24, found 25"),
        (lambda: replace(CONFIG, variant=ReLU()), "target_l0 must be below the width 24, found 36.0"),
        (lambda: replace(CONFIG, variant=JumpReLU(target_l0=24)), "target_l0 must be below the width 24"),
        (lambda: replace(CONFIG, lr=float("nan")), "lr must be finite, found nan"),
        (lambda: ReLU(steering=0), "steering must be above 0, found 0"),
        (lambda: BatchTopK(aux_coefficient=-1), "aux_coefficient must be at least 0, found -1"),
        (lambda: Matryoshka(prefixes=(0.5, 0.25)), "prefixes must ascend from above 0 to 1"),
        (
            lambda: replace(CONFIG, variant=Matryoshka(k=2), width=8),
            "Every prefix must add a latent, but at width 8 they end at [0, 1, 2, 4, 8]",
        ),
        (lambda: result(CONFIG, device="cuda:99"), "There is no device 'cuda:99'"),
        (lambda: result(CONFIG, device="gpu"), "There is no device 'gpu'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_work(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# ---------------------------------------------------------------------- activations of any type


@pytest.mark.parametrize(
    "given",
    [
        X.numpy(),
        X.double().numpy(),
        np.lib.stride_tricks.as_strided(X.numpy(), writeable=False),
        X.numpy()[::-1][::-1],
        X.clone().requires_grad_(),
        (X.clone().requires_grad_() * 2) / 2,
    ],
    ids=["float32", "float64", "read-only", "reversed twice", "leaf", "with a graph"],
)
def test_arrays_and_tensors_with_gradients_are_activations_too(given, recwarn):
    expected = result(CONFIG)
    found = result(CONFIG, given, held_out=given)
    torch.testing.assert_close(found.dictionary.W_dec, expected.dictionary.W_dec, rtol=0, atol=0)
    assert found.summary["fvu"] == expected.summary["fvu"]
    assert not recwarn.list
    assert getattr(given, "grad", None) is None


def test_reversed_arrays_are_read_in_their_order():
    flipped = result(CONFIG, X.numpy()[::-1])
    torch.testing.assert_close(flipped.dictionary.W_dec, result(CONFIG, X.flip(0)).dictionary.W_dec)


# ---------------------------------------------------------------------- what a notebook has switched


def gradients_off():
    torch.set_grad_enabled(False)
    return lambda: torch.set_grad_enabled(True)


def double_by_default():
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


def meta_by_default():
    torch.set_default_device("meta")
    return lambda: torch.set_default_device(None)


def context(manager):
    def switch():
        manager.__enter__()
        return lambda: manager.__exit__(None, None, None)

    return switch


@pytest.mark.parametrize(
    "switch",
    [
        gradients_off,
        double_by_default,
        meta_by_default,
        context(torch.inference_mode()),
        context(torch.autocast("cpu", torch.bfloat16)),
    ],
    ids=["gradients off", "float64", "another device", "inference mode", "autocast"],
)
def test_what_a_notebook_has_switched_changes_nothing_and_stays_switched(switch):
    expected, before = result(CONFIG), (torch.is_grad_enabled(), torch.get_default_dtype())
    back = switch()
    try:
        during = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
        found = result(CONFIG, X.detach().clone() if during[2].type == "cpu" else X)
        assert during == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())
    finally:
        back()
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == before
    assert same(found, expected)
    assert not found.dictionary.W_dec.requires_grad


# ---------------------------------------------------------------------- schedules and seeds


def test_warm_up_is_200_steps_but_at_most_a_tenth_of_the_run():
    for steps, expected in ((30_000, 200), (2_500, 200), (2_000, 200), (1_000, 100), (60, 6), (9, 0)):
        config = replace(CONFIG, steps=steps, lr=1.0)
        assert config.warmup_steps == config.describe()["warmup"] == expected
        assert config.lr_at(expected) == 1.0
        assert config.lr_at(0) == (1.0 if expected == 0 else 1 / expected)
    assert replace(CONFIG, warmup=7).warmup_steps == 7
    assert replace(CONFIG, warmup=0).lr_at(0) == CONFIG.lr


def test_a_data_seed_changes_the_order_alone_and_is_recorded():
    first, other = result(CONFIG), result(replace(CONFIG, data_seed=1))
    assert "data_seed" not in first.dictionary.info["training"]
    assert other.dictionary.info["training"]["data_seed"] == 1
    assert other.dictionary.info["training"]["seed"] == other.dictionary.seed == 0
    named = result(replace(CONFIG, data_seed=0))
    assert torch.equal(named.dictionary.W_dec, first.dictionary.W_dec)
    assert not torch.equal(other.dictionary.W_dec, first.dictionary.W_dec)
    # One step on one batch of everything: only the initialisation is left to differ.
    whole = replace(CONFIG, steps=1, batch_size=600, log_every=1)
    seeds = ((0, 0), (0, 1), (1, 0))
    starts = [result(replace(whole, seed=s, data_seed=d)).dictionary.W_dec for s, d in seeds]
    torch.testing.assert_close(starts[0], starts[1], rtol=0, atol=1e-5)
    assert not torch.allclose(starts[0], starts[2], atol=0.1)


# ---------------------------------------------------------------------- by name


def test_configs_by_name_are_those_by_hand():
    found = configure("topk", {"k": 4, "width": 24, "steps": 20, "batch_size": 32, "log_every": 10})
    assert found == CONFIG
    assert configure("relu", {"width": 512}) == TrainingConfig(ReLU(), 512)
    for kind, variant in VARIANTS.items():
        assert configure(kind, {"width": 512, "dead_after": 7}) == TrainingConfig(variant(dead_after=7), 512)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "topk",
            {"target_l0": 20.0},
            "target_l0 does not apply to topk, only to relu, gated, jumprelu; ",
        ),
        ("relu", {"k": 20}, "k does not apply to relu, only to topk, batchtopk, matryoshka; relu takes"),
        ("topk", {"prefixes": [1.0]}, "prefixes does not apply to topk, only to matryoshka"),
        ("relu", {"depth": 3}, "There is no setting depth: training takes batch_size, bf16_candidates,"),
        ("tanh", {}, "kind must be one of 'relu', 'gated', 'jumprelu', 'topk', 'batchtopk', 'matryoshka'"),
        ("relu", {"lr": 1e-3}, "The width of the relu dictionary to train must be given"),
    ],
)
def test_settings_that_do_not_apply_are_refused(kind, settings, message):
    width = {} if settings == {"lr": 1e-3} else {"width": 64}
    with pytest.raises(ValueError, match=re.escape(message)):
        configure(kind, settings | width)
