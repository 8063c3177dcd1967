"""The door: model, store and dictionaries that belong together, and every way in which they may not."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import HOOK_POINT
from dictionaries import make

from saekit.activations import ActivationStore
from saekit.agreement import MismatchError, MismatchWarning, UnrecordedWarning, check_agreement
from saekit.analysis import best_matches, insert_latents, insertion, nearest, stitch
from saekit.family import Family
from saekit.files import read_json
from saekit.loading.names import BUNDLED
from saekit.metrics import ce_degradation, evaluate
from saekit.models import describe_model, load_model
from saekit.passes import one_pass
from saekit.streaming import StreamedActivations
from saekit.training.trainer import TrainingConfig, train
from saekit.training.variants import BatchTopK


@pytest.fixture(scope="module")
def dictionary(store):
    """Trained on the store, so that it records everything."""
    config = TrainingConfig(variant=BatchTopK(k=4), width=24, steps=2, batch_size=8, warmup=1)
    return train(config, store, progress=False).dictionary


def but(dictionary, **info):
    return replace(dictionary, info={**dictionary.info, **info})


def unknown(dictionary, *keys):
    return replace(dictionary, info={k: v for k, v in dictionary.info.items() if k not in keys})


def store_of(store, **model):
    return ActivationStore(store.path, store.manifest | {"model": store.manifest["model"] | model})


def found(**inputs):
    """What the door has to say: its error, or its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_agreement(**inputs)
        except MismatchError as error:
            return [str(error)]
    return [f"{warning.category.__name__}: {warning.message}" for warning in caught]


def test_what_belongs_together_passes_in_silence(model, model_folder, store, token_rows, dictionary):
    half = load_model(model_folder, dtype=torch.bfloat16)
    stream = StreamedActivations(model, token_rows, HOOK_POINT)
    for given in (model, half):
        for activations in (store, stream):
            assert not found(model=given, activations=activations, dictionaries=[dictionary, dictionary])
    # A plain tensor and an array record nothing, and neither do dictionaries among themselves.
    for activations in (torch.zeros(3, 16), np.zeros((3, 16))):
        assert not found(activations=activations, dictionaries=[dictionary, make(d_in=16)][:1])
    assert not found(dictionaries=[make(d_in=16), make(d_in=16, width=8)])


def test_a_dictionary_records_its_model(store, model, dictionary):
    described = describe_model(model)
    assert dictionary.info["model_weights"] == described["weights"]
    assert dictionary.info["model_processing"] == described["processing"]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"hook_point": "blocks.2.hook_resid_post"}, "the first has hook point blocks.2.hook_resid_post"),
        ({"model_weights": "0" * 64}, "the first has model weights 000000000000, the second"),
        ({"model_weights": None, "model": "gpt2"}, "the first has model gpt2, the second tiny-llama"),
        ({"model_processing": {"fold_ln": True}}, "the first has weight processing fold_ln, the second none"),
    ],
)  # fmt: skip
def test_a_contradiction_is_an_error_that_names_both(store, dictionary, info, message):
    other = but(dictionary, **info)
    (error,) = found(activations=store, dictionaries=[other])
    assert error.startswith(f"{other.identity.described} and the store tiny do not belong together")
    assert message in error
    (among_themselves,) = found(dictionaries=[other, dictionary])
    assert message in among_themselves
    (warning,) = found(activations=store, dictionaries=[other], allow_mismatch=True)
    assert warning.startswith(f"MismatchWarning: {other.identity.described} and the store tiny do not belong")


def test_a_recorded_false_is_compared(store, dictionary):
    off = but(dictionary, model_processing={"center_writing_weights": False})
    assert not found(activations=store, dictionaries=[off])
    centred = store_of(store, processing={"center_writing_weights": True})
    (error,) = found(activations=centred, dictionaries=[off])
    assert "weight processing none, the second center_writing_weights" in error


def test_a_model_is_told_by_its_weights(model, gpt2_folder, model_folder, store, dictionary):
    (error,) = found(model=load_model(gpt2_folder), activations=store)
    assert "the store tiny and the model do not belong together: the first has model weights" in error
    changed = load_model(model_folder)
    with torch.no_grad():
        changed.blocks[1].mlp.out.weight[0, 0] += 1
    assert "model weights" in found(model=changed, dictionaries=[dictionary])[0]
    renamed = store_of(store, name="another name", revision="abc")
    assert not found(model=model, activations=renamed, dictionaries=[dictionary])


def test_names_and_revisions_decide_where_weights_are_not_recorded(store, dictionary):
    old = store_of(store, weights=None, name="org/tiny-llama", revision="abc")
    for public in (dictionary, but(dictionary, model_revision="abc")):
        assert not found(activations=old, dictionaries=[public])
    (error,) = found(activations=old, dictionaries=[but(dictionary, model_revision="def")])
    assert "model revision def, the second abc" in error


def test_what_is_not_recorded_is_one_warning(store, dictionary):
    raw = [
        unknown(dictionary, "hook_point", "model", "model_weights", "model_processing", "model_revision")
    ] * 3
    (warning,) = found(activations=store, dictionaries=raw)
    assert warning.startswith(f"UnrecordedWarning: {raw[0].name} [")
    assert "does not record its hook point and model and weight processing" in warning
    (warning,) = found(activations=store, dictionaries=[unknown(dictionary, "model_processing")])
    assert (
        "does not record its weight processing, which could not be compared with that of the store" in warning
    )


def test_a_missing_record_in_between_hides_no_contradiction(store, dictionary):
    """Not neighbours, and not the last one either."""
    here, there = but(dictionary, hook_point="a"), but(dictionary, hook_point="b")
    silent = unknown(dictionary, "hook_point")
    (error,) = found(dictionaries=[here, silent, there, silent])
    assert "hook point a, the second b" in error


def test_a_dimension_is_never_let_pass(store):
    for activations in (store, torch.zeros(2, 16), np.zeros((2, 16))):
        with pytest.raises(MismatchError, match=r"the first has d_in 12, the second 16\.$"):
            check_agreement(activations=activations, dictionaries=[make(d_in=12)], allow_mismatch=True)


def test_families_in_the_package_agree_with_the_embedded_model(store, dictionary):
    """They were trained before processing was recorded, on activations that record it themselves."""
    header = read_json(BUNDLED / "relu" / "576-seed0" / "dictionary.json")
    assert "model_processing" not in header["info"]
    bundled = replace(dictionary, info=header["info"] | {"hook_point": HOOK_POINT})
    more = replace(bundled, W_dec=bundled.W_dec.flip(0))
    embedded = store_of(store, name=bundled.info["model"], revision="b179c9523d0e", weights="1" * 64)
    folded = store_of(embedded, processing={"fold_ln": True})
    for made in (bundled, insert_latents(bundled, more)):
        assert not found(activations=embedded, dictionaries=[made])
        assert "the first has weight processing none" in found(activations=folded, dictionaries=[made])[0]
    # Of what else names this model, nobody knows.
    other = unknown(but(bundled, seed=9), "training")
    assert "does not record its weight processing" in found(activations=embedded, dictionaries=[other])[0]


def test_bundled_members_share_what_they_record_with_ones_that_are_trained_now(dictionary):
    info = read_json(BUNDLED / "relu" / "576-seed0" / "dictionary.json")["info"]
    unprocessed = {"fold_ln": False, "center_writing_weights": False}
    first = replace(dictionary, info=info)
    later = but(unknown(first, "training"), seed=5, model_processing=unprocessed)
    later = replace(later, W_dec=later.W_dec.flip(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Family([first, later])
        assert insert_latents(first, later).info["model_processing"] == {}
    with pytest.raises(ValueError, match="one processing of the model's weights"):
        Family([first, but(later, model_processing={"fold_ln": True})])


def test_analyses_go_through_the_door(model, gpt2_folder, store, dictionary):
    other = but(dictionary, hook_point="blocks.0.hook_resid_post")
    with pytest.raises(MismatchError, match="hook point"):
        ce_degradation(model, other, store)
    with pytest.raises(MismatchError, match="model weights"):
        ce_degradation(load_model(gpt2_folder), dictionary, store)
    with pytest.raises(MismatchError, match="hook point"):
        one_pass(store, dictionaries=[other], purpose="a test")
    with pytest.warns(MismatchWarning, match="hook point"):
        result = ce_degradation(model, other, store, allow_mismatch=True)
    assert result.frame["ce_degradation"].equals(
        ce_degradation(model, dictionary, store).frame["ce_degradation"]
    )
    with pytest.warns(UnrecordedWarning, match="hook point"):
        one_pass(store, dictionaries=[unknown(dictionary, "hook_point")], purpose="a test")


def test_a_model_in_training_mode_is_refused_before_the_work(model_folder, store):
    with pytest.raises(ValueError, match="is in training mode"):
        check_agreement(model=load_model(model_folder).train(), activations=store)


def test_dictionaries_of_two_precisions_are_refused_with_the_remedy():
    small, large = make(6, 8).to(dtype=torch.float64), make(6, 12).to(dtype=torch.float32)
    x = torch.randn(50, 6)
    for analysis in (insertion, stitch):
        with pytest.raises(MismatchError, match=r"is float64, but .* is float32: convert one .*\.to\(dtype="):
            analysis(small, large, x)
        analysis(small.to(dtype=torch.float32), large, x)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_a_dictionary_that_was_spoilt_in_place_is_refused_at_the_door(name):
    """Where nothing compares greater than NaN, its latents would only be silent."""
    small, large = make(width=20), make(width=40)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    getattr(large, name).view(-1)[5] = torch.nan
    sentence = "Thresholds of relu 40" if name == "threshold" else f"{name} of relu 40 .* are not finite"
    for call in (
        lambda: evaluate(large, x),
        lambda: insertion(small, large, x),
        lambda: best_matches(small, large),
        lambda: nearest(small.W_dec, large, k=1),
        lambda: stitch(small, large, x),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
