"""A damaged file is an error that names it: never another dictionary, never code that runs."""

import json
import shutil

import pytest
from loading.formats import damage
from loading.formats.cases import CASES, load, named

from saekit.loading.names import load_sae

# Not part of the function; a ReLU has no settings of its own.
OPTIONAL = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "scaling_factor"}
OPTIONAL |= {"activation.k", "activation.postact_fn"}  # there a second time
FIRST_VERSIONS = ("k missing", "threshold missing")  # of TopK kinds of dictionary_learning
OF_A_RELU = {"activation_state_dict"}


@pytest.fixture(params=CASES, ids=str)
def case(request, tmp_path):
    """A copy of a recorded case, to be damaged."""
    return request.param.copy(tmp_path)


def refused(case, what):
    """Loading fails with one sentence about a file of the case."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(case)
    message = str(caught.value)
    assert str(case.folder) in message, (what, message)
    assert "\n" not in message.strip(), (what, message)


def test_every_damage_to_a_tensor_is_an_error(case):
    weights = case.weights
    whole = weights.read_bytes()
    entries = damage.read(weights)
    inner = entries.get("ae", entries)  # a backup holds the state one level down
    for what, change in damage.damages(inner):
        if what.split()[0] in OPTIONAL | (OF_A_RELU if case.name == "openai/relu" else set()):
            continue
        if what in FIRST_VERSIONS and case.name.startswith("dictionary_learning") and "k" in inner:
            continue
        if what.endswith("transposed") and len({*inner[what.split()[0]].shape}) == 1:
            continue  # a square matrix fits either way
        if what.lower() == "w_enc cut" and "transcoder" in case.name:
            continue  # nothing else in these files has the d_in of a transcoder
        damaged = change(inner)
        damage.write(weights, damaged if inner is entries else entries | {"ae": damaged})
        refused(case, what)
    weights.write_bytes(whole)
    load(case)


def test_a_truncated_file_is_an_error(case):
    whole = case.weights.read_bytes()
    for part in (0, 7, len(whole) // 3, len(whole) // 2, len(whole) - 9):
        case.weights.write_bytes(whole[:part])
        refused(case, f"{part} bytes of {len(whole)}")


def test_code_in_a_file_does_not_run(case, tmp_path):
    marker = tmp_path / "code ran"
    damage.hostile(case.weights, marker)
    refused(case, "hostile")
    assert not marker.exists()


@pytest.mark.parametrize("case", [case for case in CASES if case.config], indirect=True, ids=str)
def test_settings_that_are_not_settings_are_an_error(case):
    text = case.config.read_text()
    for broken in ("", text[: len(text) // 2], "[1, 2]", "null"):
        case.config.write_text(broken)
        refused(case, broken)


def test_a_missing_file_is_an_error(case):
    shutil.move(case.weights, case.weights.with_name("elsewhere"))
    refused(case, "no weights")


@pytest.mark.parametrize(
    ("name", "value"),
    [("d_in", "12"), ("d_sae", 41), ("architecture", "novel"), ("activation_scale", 2.0), ("k", None)],
)
def test_saelens_settings_that_would_change_the_function_are_errors(tmp_path, name, value):
    case = named("saelens/topk").copy(tmp_path)
    settings = json.loads(case.config.read_text())
    case.config.write_text(json.dumps(settings | {name: value}))
    refused(case, name)


def test_nothing_that_is_known_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("no SAE")
    with pytest.raises(FileNotFoundError, match=r"no SAE that saekit recognises, .* one of .*cfg\.json"):
        load_sae(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no"):
        load_sae(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("saelens/standard", {"metadata": [1]}),
        ("saelens/standard", {"metadata": {"sae_lens_version": "new"}, "sparsity_of": 3}),
        ("saelens/standard", {"normalize_activations": "batch"}),
        ("dictionary_learning/gated", {"trainer": ["GatedAutoEncoder"]}),
        ("dictionary_learning/topk", {"trainer": {"dict_class": "AutoEncoderTopK", "k": 7}}),
        ("dictionary_learning/topk", {"trainer": {"dict_class": "AutoEncoderTopK", "dict_size": "40"}}),
        ("sparsify/topk", {"k": "6"}),
        ("sparsify/topk", {"num_latents": 41}),
        ("batchtopk/topk", {"top_k": 0}),
        ("batchtopk/topk", {"tied_weights": True}),
        ("batchtopk/topk", {"dict_size": 41}),
        ("gemma_scope_2/resid_post", {"architecture": "topk"}),
        ("gemma_scope_2/resid_post", {"width": 41}),
    ],
)
def test_settings_that_do_not_fit_are_errors(tmp_path, name, change):
    case = named(name).copy(tmp_path)
    settings = json.loads(case.config.read_text())
    case.config.write_text(json.dumps(settings | change))
    refused(case, change)


@pytest.mark.parametrize("change", [{"norm_factor": 0.0}, {"norm_factor": "2"}, {"ae": [1]}, {"ae": None}])
def test_a_backup_that_does_not_fit_is_an_error(tmp_path, change):
    case = named("dictionary_learning/backup_scaled").copy(tmp_path)
    damage.write(case.weights, damage.read(case.weights) | change)
    refused(case, change)
