import warnings
from dataclasses import replace

import pytest
import torch
from toy_stores import in_memory

from saekit.dictionary import Dictionary
from saekit.loading.check_sae import check_sae
from saekit.metrics import evaluate

X = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) * 2


def make():
    """Two latents for every dimension, one for each sign: what lies beyond 2 is reconstructed."""
    both = torch.cat([torch.eye(12), -torch.eye(12)])
    return Dictionary.from_weights(both.T, both, d_in=12, threshold=2.0, info={"kind": "relu", "seed": 0})


def recorded(**info):
    dictionary = make()
    return replace(dictionary, info={**dictionary.info, **info})


def truth():
    measured = evaluate(make(), X)
    return {"expected_l0": measured.l0, "expected_explained_variance": 1 - measured.fvu}


def test_what_agrees_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check = check_sae(recorded(**truth()), X)
    measured = evaluate(make(), X)
    found = {"fvu": measured.fvu, "l0": measured.l0, "dead_fraction": measured.dead_fraction}
    assert check.summary == {"agrees": True, "n_recorded": 2, **found, "n_tokens": 600, "n_excluded": 0}
    assert check.frame.loc["l0", "found"] == check.frame.loc["l0", "recorded"]


def test_an_encoder_without_its_bias_is_noticed():
    dictionary = recorded(**truth())
    broken = replace(dictionary, b_enc=torch.zeros_like(dictionary.b_enc) + 1.5)
    with pytest.warns(UserWarning, match="is recorded as") as caught:
        check = check_sae(broken, X)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "l0 is recorded as" in messages[0]
    assert "explained_variance is recorded as" in messages[1]
    assert not check.summary["agrees"]


def test_tolerances_are_the_callers():
    l0 = truth()["expected_l0"]
    with pytest.warns(UserWarning, match="l0 is recorded"):
        check_sae(recorded(expected_l0=1.2 * l0), X, l0_tolerance=0.1)
    assert check_sae(recorded(expected_l0=1.2 * l0), X, l0_tolerance=0.2).summary["agrees"]


def store_of(processing):
    none = torch.zeros(60, 10, dtype=torch.bool)
    tokens = torch.zeros(60, 10, dtype=torch.long)
    store = in_memory(X.view(60, 10, 12), tokens=tokens, special=none, excluded=none)
    store.manifest["model"] = {"name": "gpt2", "processing": processing}
    return store


def test_another_model_or_hook_point_is_noticed():
    """Flags that are not named are off; each disagreement is one warning."""
    store = store_of({"fold_ln": False, "center_writing_weights": True})
    processing = {"center_writing_weights": True}
    same = recorded(hook_point="toy", model="openai-community/gpt2", model_processing=processing)
    assert check_sae(same, store).summary["agrees"]
    assert check_sae(same, store).frame.loc["weight_processing", "found"] == "center_writing_weights"
    with pytest.warns(UserWarning, match="is recorded as") as caught:
        check_sae(recorded(hook_point="elsewhere", model="pythia-70m", model_processing={}), store)
    assert [str(warning.message).split(": ")[1].split(" is ")[0] for warning in caught] == [
        "hook_point",
        "model",
        "weight_processing",
    ]


def test_a_flag_that_is_recorded_as_off_is_checked():
    off = recorded(model_processing={"center_writing_weights": False})
    assert check_sae(off, store_of({})).summary["agrees"]
    with pytest.warns(UserWarning, match="weight_processing is recorded as none, but here it is center"):
        assert not check_sae(off, store_of({"center_writing_weights": True})).summary["agrees"]


def test_nothing_recorded_is_an_error():
    with pytest.raises(ValueError, match=r"relu 24 \(seed 0\) records nothing.*holds kind, seed"):
        check_sae(make(), X)


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ({"threshold": torch.full((24,), 1e9)}, "no latent is active on any of 600 tokens"),
        ({"b_dec": torch.full((12,), 50.0)}, r"explains no more than the mean of the activations does \(FVU"),
    ],
)
def test_an_sae_that_reconstructs_nothing_does_not_agree(spoilt, why):
    """Also where its hook point, the only record there is, is that of the store."""
    dead = replace(recorded(hook_point="toy"), **spoilt)
    with pytest.warns(UserWarning, match=why):
        check = check_sae(dead, store_of({}))
    assert check.frame["agrees"].all()
    assert not check.summary["agrees"]
    assert check.dead_fraction == (1 if "threshold" in spoilt else check.dead_fraction)
    assert check.fvu >= 1
