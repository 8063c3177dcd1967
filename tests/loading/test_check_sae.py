import warnings
from dataclasses import replace

import pytest
import torch
from dictionaries import make
from toy_stores import in_memory

from saekit.loading.check_sae import check_sae
from saekit.metrics import evaluate

X = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) * 2


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
    assert check.summary == {"agrees": True, "n_recorded": 2, "n_tokens": 600, "n_excluded": 0}
    assert check.frame.loc["l0", "found"] == check.frame.loc["l0", "recorded"]


def test_an_encoder_without_its_bias_is_noticed():
    dictionary = recorded(**truth())
    broken = replace(dictionary, b_enc=torch.zeros_like(dictionary.b_enc) + 2)
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


def test_another_model_or_hook_point_is_noticed():
    """Flags that are not named are off; another hook point is one warning."""
    rows = X.view(60, 10, 12)
    none = torch.zeros(60, 10, dtype=torch.bool)
    store = in_memory(rows, tokens=torch.zeros(60, 10, dtype=torch.long), special=none, excluded=none)
    store.manifest["model"] = {
        "name": "gpt2",
        "processing": {"fold_ln": False, "center_writing_weights": True},
    }
    processing = {"center_writing_weights": True}
    assert check_sae(recorded(hook_point="toy", model_processing=processing), store).summary["agrees"]
    with pytest.warns(UserWarning, match="is recorded as") as caught:
        check_sae(recorded(hook_point="elsewhere", model="gpt2", model_processing={}), store)
    assert [str(warning.message).split(": ")[1].split(" is ")[0] for warning in caught] == [
        "hook_point",
        "model_processing",
    ]


def test_nothing_recorded_is_said():
    with pytest.raises(ValueError, match=r"Nothing is recorded of relu 40 \(seed 0\).*found kind, seed"):
        check_sae(make(), X)
