"""What save_sae writes: by each library's own formula, and read back, the dictionary's function."""

import contextlib
import json
import os
import random
from dataclasses import replace

import pytest
import torch
from dictionaries import make, parameters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading.formats.cases import CASES, named
from safetensors.torch import load_file

from saekit.dictionary import NORMALIZATIONS, Transcoder
from saekit.files import write_json
from saekit.folding import Unfolded
from saekit.loading.formats import is_sae, writing
from saekit.loading.formats.writing import save_sae
from saekit.loading.names import load_sae
from saekit.loading.publishing import convert_sae

D_IN, WIDTH, BATCH = 12, 40, 30
CLEAR = 1e-4  # relative distance from a threshold, or between ranks, below which rounding may decide
INFO = {
    "kind": "batchtopk",
    "seed": 3,
    "model": "gpt2-small",
    "hook_point": "blocks.8.hook_resid_pre",
    "context_length": 128,
    "prepend_bos": True,
    "dataset": "someone/texts",
    "neuronpedia_id": "gpt2-small/8-res",
    "model_processing": {"fold_ln": False, "center_writing_weights": True},
    "training": {"lr": 0.001, "steps": 5000, "l1": None},
}
in_temporary_folders = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def dictionaries(draw, normalizations=(None, *NORMALIZATIONS)):
    """Any function that a dictionary can be and the formats have a place for."""
    p = parameters(D_IN, WIDTH, draw(st.integers(0, 10_000)))
    kind = draw(st.sampled_from(["relu", "jumprelu", "topk", "topk by rank"]))
    if kind != "jumprelu":
        p.pop("threshold")
    if kind.startswith("topk"):
        p |= {"k": draw(st.sampled_from([1, 5, WIDTH])), "rescaled": kind == "topk"}
    dictionary = Unfolded(**p, normalization=draw(st.sampled_from(normalizations)), info=INFO).fold()
    assert (dictionary.rank_scale is not None) == (kind == "topk by rank")
    return dictionary


def activations(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, D_IN, dtype=torch.float64, generator=generator) * 3


def clear_rows(dictionary, x):
    """Rows in which no latent is so near to a threshold, or to the last place, that rounding decides."""
    h = dictionary.pre_activations(x)
    clear = ((h - dictionary.threshold).abs() > CLEAR * (1 + h.abs())).all(dim=1)
    if dictionary.k is not None and dictionary.k < WIDTH:
        rank = h if dictionary.rank_scale is None else h * dictionary.rank_scale
        rank = rank.clamp(min=0).sort(dim=1, descending=True).values
        last, next = rank[:, dictionary.k - 1], rank[:, dictionary.k]
        clear &= (last - next > CLEAR * (1 + rank[:, 0])) | (last == 0)
    return clear


def assert_same(dictionary, latents, x_hat, x):
    """Latents and reconstruction are the dictionary's, to the rounding of its tensors to float32."""
    dictionary = dictionary.to(dtype=torch.float64)
    clear, expected = clear_rows(dictionary, x), dictionary.encode(x)
    size = (1 + x.norm(dim=1, keepdim=True)) * (1 + dictionary.W_enc.norm(dim=0).max())
    assert torch.equal((latents > 0)[clear], (expected > 0)[clear])
    assert ((latents - expected)[clear].abs() <= 1e-6 * size[clear]).all()
    error = (x_hat - dictionary.reconstruct(x))[clear].norm(dim=1)
    assert (error <= 1e-6 * (size[clear][:, 0] + expected[clear].norm(dim=1))).all()


def largest(h, k):
    """All but the k largest of each row set to 0."""
    return torch.where(h >= h.sort(dim=1, descending=True).values[:, k - 1 : k], h, 0.0)


def saelens(folder, x):
    """Latents and reconstruction by the documented formulas of SAELens."""
    config = json.loads((folder / "cfg.json").read_text())
    w = {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(folder / "sae_weights.safetensors").values()
    )
    centre, factor = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    eps = 0.0
    if config["normalize_activations"] == "layer_norm":
        centre, factor, eps = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True), 1e-5
    elif config["normalize_activations"] == "constant_norm_rescale":
        factor = x.norm(dim=1, keepdim=True) / D_IN**0.5
    z = (x - centre) / (factor + eps)
    h = (z - w["b_dec"] * config["apply_b_dec_to_input"]) @ w["W_enc"] + w["b_enc"]
    latents = h.relu()
    if config["architecture"] == "topk":
        assert not config["rescale_acts_by_decoder_norm"]
        latents = largest(latents, config["k"])
    elif config["architecture"] == "jumprelu":
        latents = latents * (h > w["threshold"])
    assert ("threshold" in w) == (config["architecture"] == "jumprelu")
    return latents, (latents @ w["W_dec"] + w["b_dec"]) * factor + centre


def dictionary_learning(folder, x):
    """Latents and reconstruction by the formulas of dictionary_learning's classes."""
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    entries = torch.load(folder / "ae.pt", weights_only=True)
    assert all(t.dtype == torch.float32 and t.is_contiguous() for n, t in entries.items() if n != "k")
    w = {name: tensor.double() for name, tensor in entries.items()}
    if trainer["dict_class"] == "AutoEncoderTopK":
        assert (trainer["k"], -1) == (entries["k"], entries["threshold"])
        h = (x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
        latents = largest(h.relu(), trainer["k"])
        return latents, latents @ w["decoder.weight"].T + w["b_dec"]
    assert trainer["dict_class"] == "JumpReluAutoEncoder"
    h = x @ w["W_enc"] + w["b_enc"]
    latents = (h * (h > w["threshold"])).relu()
    return latents, latents @ w["W_dec"] + w["b_dec"]


FORMULAS = {"saelens": saelens, "dictionary_learning": dictionary_learning}
FORMATS_AND_OWN = (*FORMULAS, "saekit")


@in_temporary_folders
@given(data=st.data(), format=st.sampled_from(list(FORMULAS)), seed=st.integers(0, 10_000))
def test_each_library_computes_the_same(data, format, seed, tmp_path):
    dictionary = data.draw(dictionaries() if format == "saelens" else dictionaries(normalizations=(None,)))
    x = activations(seed)
    folder = save_sae(dictionary, tmp_path / format, format=format)
    latents, x_hat = FORMULAS[format](folder, x)
    if dictionary.rank_scale is not None:  # shown in the units in which they compete
        latents = latents / dictionary.rank_scale.double()
    assert_same(dictionary, latents, x_hat, x)


@in_temporary_folders
@given(data=st.data(), format=st.sampled_from(list(FORMULAS)), seed=st.integers(0, 10_000))
def test_a_round_trip_keeps_function_and_info(data, format, seed, tmp_path):
    dictionary = data.draw(dictionaries() if format == "saelens" else dictionaries(normalizations=(None,)))
    loaded = load_sae(save_sae(dictionary, tmp_path / format, format=format))
    x = activations(seed)
    double = loaded.to(dtype=torch.float64)
    assert_same(dictionary, double.encode(x), double.reconstruct(x), x)
    assert loaded.normalization == dictionary.normalization
    assert (loaded.rank_scale is None) == (dictionary.rank_scale is None)
    assert loaded.info.items() >= INFO.items()
    assert (loaded.kind, loaded.hook_point, loaded.seed) == ("batchtopk", INFO["hook_point"], 3)


def test_saelens_is_told_where_the_sae_belongs(tmp_path):
    config = json.loads((save_sae(make(), tmp_path / "a") / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("jumprelu", D_IN, WIDTH)
    assert config["reshape_activations"] == "none"
    assert not {"model_name", "hook_name", "context_size"} & set(config["metadata"])

    dictionary = Unfolded(**parameters(), info=INFO | {"hook_point": "blocks.5.attn.hook_z"}).fold()
    config = json.loads((save_sae(dictionary, tmp_path / "b") / "cfg.json").read_text())
    assert config["reshape_activations"] == "hook_z"
    expected = {
        "model_name": "gpt2-small",
        "hook_name": "blocks.5.attn.hook_z",
        "context_size": 128,
        "prepend_bos": True,
        "dataset_path": "someone/texts",
        "neuronpedia_id": "gpt2-small/8-res",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    assert config["metadata"].items() >= expected.items()


@pytest.mark.parametrize(
    ("hook_point", "layer", "submodule"),
    [
        ("blocks.8.hook_resid_pre", 8, "resid_pre_layer_8"),
        ("blocks.11.attn.hook_z", 11, "z_layer_11"),
        ("decoder directions", None, "decoder directions"),
        (None, None, None),
    ],
)
def test_dictionary_learning_is_told_where_the_sae_belongs(hook_point, layer, submodule, tmp_path):
    dictionary = Unfolded(**parameters(), info=INFO | {"hook_point": hook_point}).fold()
    folder = save_sae(dictionary, tmp_path, format="dictionary_learning")
    config = json.loads((folder / "config.json").read_text())
    trainer = config["trainer"]
    assert (trainer["layer"], trainer["submodule_name"]) == (layer, submodule)
    assert (trainer["lm_name"], trainer["lr"], trainer["steps"], trainer["seed"]) == (
        "gpt2-small",
        0.001,
        5000,
        3,
    )
    assert (trainer["activation_dim"], trainer["dict_size"]) == (D_IN, WIDTH)
    assert trainer["trainer_class"] == "JumpReluTrainer"
    assert "k" not in trainer
    assert config["buffer"] == {"ctx_len": 128}


def test_what_a_format_has_no_place_for_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "sae"
    with pytest.raises(ValueError, match="one of 'saelens', 'dictionary_learning', 'sparsify', found 'onnx'"):
        save_sae(make(), folder, format="onnx")
    for format in FORMULAS:
        with pytest.raises(ValueError, match=rf"thresholds beside k=3.*TopK kinds of {format}.*as_jumprelu"):
            save_sae(make(k=3), folder, format=format)
    with pytest.raises(
        ValueError, match=r"normalises every row .layer_norm.*no class of dictionary_learning"
    ):
        save_sae(make(normalization="layer_norm"), folder, format="dictionary_learning")
    assert not folder.exists()


@pytest.mark.parametrize("format", FORMULAS)
def test_a_folder_is_an_sae_only_once_it_is_whole(format, tmp_path, monkeypatch):
    save_sae(make(seed=1), tmp_path, format=format)

    def full_disk(path, value):
        raise OSError("No space left on device")

    monkeypatch.setattr(writing, "write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_sae(make(seed=2), tmp_path, format=format)  # new weights must not go with old settings
    assert not is_sae(tmp_path)
    monkeypatch.setattr(writing, "write_json", write_json)
    save_sae(make(seed=2), tmp_path, format=format)
    torch.testing.assert_close(load_sae(tmp_path).W_enc, make(seed=2).W_enc, rtol=1e-6, atol=1e-7)


def test_views_are_written_without_what_they_are_views_of(tmp_path):
    whole = make(width=4000)
    part = whole.gather(range(WIDTH))
    axes = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "threshold": 0}
    views = {name: getattr(whole, name).narrow(axis, 0, WIDTH) for name, axis in axes.items()}
    view = replace(whole, **views)
    for dictionary, name in ((part, "part"), (view, "view")):
        save_sae(dictionary, tmp_path / name, format="dictionary_learning")
    sizes = [(tmp_path / name / "ae.pt").stat().st_size for name in ("part", "view")]
    assert sizes[0] == sizes[1] < 20_000


class Stop(BaseException):
    """An interrupt."""


@pytest.mark.parametrize("format", FORMATS_AND_OWN)
@pytest.mark.parametrize("point", range(20))
def test_an_interrupt_at_any_moment_leaves_no_other_sae(format, point, tmp_path, monkeypatch):
    """What is found afterwards is one of the two, or nothing; the next attempt writes the whole."""
    old, new = make(seed=1), make(seed=2)

    def write(dictionary):
        return convert_sae(dictionary.save(tmp_path / f"source {dictionary.seed}"), folder, format=format)

    folder = tmp_path / "folder"
    write(old)
    calls, stop_at = 0, None

    def counted(original):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Stop
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("open", "fsync", "replace", "unlink"):
            patched.setattr(os, name, counted(getattr(os, name)))
        write(new)
        total, calls = calls, 0
        stop_at = random.Random(point).randint(1, total)
        with contextlib.suppress(Stop):
            write(old)
    if is_sae(folder):
        found = load_sae(folder).W_dec
        assert any(torch.allclose(found, dictionary.W_dec, atol=1e-6) for dictionary in (old, new))
    torch.testing.assert_close(load_sae(write(new)).W_dec, new.W_dec, rtol=1e-5, atol=1e-6)


def test_a_gate_that_needs_float64_is_written_in_float64(tmp_path):
    p = parameters(D_IN, WIDTH)
    gain = torch.full((WIDTH,), 1e-6, dtype=torch.float64)
    threshold = p["b_enc"] - gain * p["threshold"]
    dictionary = Unfolded(**p | {"threshold": threshold}, gain=gain).fold()
    assert dictionary.W_enc.dtype == torch.float64
    folder = save_sae(dictionary, tmp_path / "a")
    assert json.loads((folder / "cfg.json").read_text())["dtype"] == "float64"
    stored = load_file(folder / "sae_weights.safetensors")
    assert all(torch.equal(stored[name], getattr(dictionary, name)) for name in stored)
    with pytest.raises(ValueError, match="needs float64, and dictionary_learning computes in float32"):
        save_sae(dictionary, tmp_path / "b", format="dictionary_learning")
    # Float64 that float32 holds exactly is no loss.
    save_sae(make().to(dtype=torch.float64), tmp_path / "b", format="dictionary_learning")


def test_a_saekit_entry_must_hold_settings(tmp_path):
    for format, name in (("saelens", "cfg.json"), ("dictionary_learning", "config.json")):
        file = save_sae(make(), tmp_path / format, format=format) / name
        config = json.loads(file.read_text())
        (config["metadata"] if format == "saelens" else config)["saekit"] = "notes"
        write_json(file, config)
        with pytest.raises(ValueError, match=r"saekit must be of type dict, found 'notes'"):
            load_sae(file.parent)


# ------------------------------------------------------------------------------ transcoders

TRANSCODERS = [case for case in CASES if "transcod" in case.name or "skip_connection" in case.name]


@pytest.mark.parametrize("case", TRANSCODERS, ids=str)
def test_a_transcoder_is_written_back_as_the_librarys_own(case, tmp_path):
    """What the library computed of the first file, its formula gives of the second."""
    first = load_sae(case.source)
    format = "saelens" if first.k is None else "sparsify"
    folder = save_sae(first, tmp_path / "sae", format=format)
    x = case.expected()["x"].double()
    config = json.loads((folder / "cfg.json").read_text())
    name = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}[format]
    w = {key: tensor.double() for key, tensor in load_file(folder / name).items()}
    if format == "saelens":
        h = x @ w["W_enc"] + w["b_enc"]
        latents = h.relu() * (h > w["threshold"]) if "jumprelu" in config["architecture"] else h.relu()
        assert set(w) - {"W_skip", "threshold"} == {"W_enc", "b_enc", "W_dec", "b_dec"}
        assert config["d_out"] == first.d_out
        assert config["metadata"]["hook_name_out"] == first.target
        assert config["apply_b_dec_to_input"] is False
    else:
        h = (x if config["transcode"] else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
        latents = largest(h.relu(), config["k"])
        assert config["transcode"] == ("transcode" in case.name)
    y = latents @ w["W_dec"] + w["b_dec"]
    assert ("W_skip" in w) == (first.W_skip is not None)
    if "W_skip" in w:
        y = y + x @ w["W_skip"].T
    expected = case.expected()["x_hat"].double()
    assert ((y - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-5
    again = load_sae(folder)
    assert isinstance(again, Transcoder)
    assert (again.hook_point, again.target) == (first.hook_point, first.target)
    torch.testing.assert_close(
        again.reconstruct(x.float()), first.reconstruct(x.float()), rtol=1e-4, atol=1e-5
    )


def test_a_sparsify_sae_is_written_back(tmp_path):
    case = named("sparsify/topk")
    first = load_sae(case.source)
    again = load_sae(save_sae(first, tmp_path / "sae", format="sparsify"))
    x = case.expected()["x"]
    torch.testing.assert_close(again.reconstruct(x), case.expected()["x_hat"], rtol=1e-4, atol=1e-5)
    assert again.info["hf_hook_point"] == first.info["hf_hook_point"]


def test_what_no_transcoder_of_a_library_is_is_refused(tmp_path):
    topk, relu = (load_sae(named(name).source) for name in ("sparsify/transcode", "saelens/transcoder"))
    for dictionary, format, message in (
        (topk, "saelens", "no transcoder of SAELens does.*sparsify.*as_jumprelu"),
        (topk, "dictionary_learning", 'no class of dictionary_learning does: format="sparsify"'),
        (relu, "dictionary_learning", 'no class of dictionary_learning does: format="saelens"'),
        (relu, "sparsify", "sparsify knows TopK alone"),
        (replace(relu, k=3), "sparsify", "predicts 10 dimensions from 12"),
    ):
        with pytest.raises(ValueError, match=message):
            save_sae(dictionary, tmp_path / "sae", format=format)
    assert not (tmp_path / "sae").exists() or not list((tmp_path / "sae").iterdir())
