"""What could be read in two ways, or is no SAE, is refused; what is well defined is read."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from dictionaries import make
from loading.formats import damage
from loading.formats.cases import FIXTURES, named

from saekit.convert import as_jumprelu
from saekit.loading import formats
from saekit.loading.formats import saelens
from saekit.loading.formats.tensor_file import Format, refuse_transcoder
from saekit.loading.names import load_family, load_sae, open_sae


def refused(source, message):
    """One sentence that names the file."""
    with pytest.raises(ValueError, match=message) as caught:
        load_sae(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def change_config(case, **change):
    case.config.write_text(json.dumps(json.loads(case.config.read_text()) | change))
    return case


# ------------------------------------------------------------------------------ versions of SAELens


@pytest.mark.parametrize("version", ["6.1.0", "6.13.0", "6.14.0"])
def test_the_version_decides_what_a_threshold_is_about(version, tmp_path):
    folder = FIXTURES / "saelens_older" / f"{version}_checkpoint_batchtopk"
    config = json.loads((folder / "cfg.json").read_text())
    assert ("rescale_acts_by_decoder_norm" in config) == (version == "6.14.0")
    assert open_sae(folder).rescaled == (version == "6.14.0")
    shutil.copytree(folder, tmp_path / "sae")
    # Written out, the setting decides; without it, the default of the version.
    for value, expected in ((True, True), (False, False), (None, version == "6.14.0")):
        change = config | {"rescale_acts_by_decoder_norm": value}
        (tmp_path / "sae" / "cfg.json").write_text(json.dumps(change))
        assert open_sae(tmp_path / "sae").rescaled == expected


@pytest.mark.parametrize("version", ["new", None])
def test_a_checkpoint_of_no_known_version_is_refused(version, tmp_path):
    case = named("saelens/checkpoint_batchtopk").copy(tmp_path)
    change_config(case, metadata={"sae_lens_version": version}, rescale_acts_by_decoder_norm=None)
    refused(case.source, r"must give rescale_acts_by_decoder_norm, or the version")


# ------------------------------------------------------------------------------ transcoders


INNER = "layer_12/width_16k/average_l0_41"


def test_gemma_scope_transcoders_of_the_first_release_are_known_by_their_repository(tmp_path):
    case = named("gemma_scope/gemma-scope-2b-pt-res")
    for name in (
        "gemma-scope-2b-pt-transcoders",
        "models--google--gemma-scope-2b-pt-transcoders/snapshots/a",
        "Gemma-Scope-2b-PT-Transcoders",
        "google__gemma-scope-2b-pt-transcoders",
        "gemma2_transcoders",
        "transcoders-2b",
    ):
        shutil.copytree(case.source, tmp_path / name / INNER)
        assert open_sae(tmp_path / name / INNER).transcoder
    for name in ("my transcoders and saes", "transcoder-project/gemma-scope-2b-pt-res", "transcoders/a/b"):
        shutil.copytree(case.source, tmp_path / name / INNER)
        assert not open_sae(tmp_path / name / INNER).transcoder


def test_a_link_does_not_hide_a_transcoder(tmp_path):
    place = tmp_path / "gemma-scope-2b-pt-transcoders" / INNER
    shutil.copytree(named("gemma_scope/gemma-scope-2b-pt-res").source, place)
    (tmp_path / "folder").symlink_to(place)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "params.npz").symlink_to(place / "params.npz")
    for link in ("folder", "file"):
        assert open_sae(tmp_path / link).transcoder


def test_gemma_scope_transcoders_of_the_second_release(tmp_path):
    case = named("gemma_scope_2/resid_post").copy(tmp_path)
    change_config(case, type="transcoder")  # with one hook point for both
    assert open_sae(case.source).transcoder
    change_config(case, type="sae", hf_hook_point_out="model.layers.12.mlp.output")
    refused(case.source, r"gives the type 'sae', but hf_hook_point_out is")
    config = json.loads(case.config.read_text())
    del config["type"]
    case.config.write_text(json.dumps(config))
    assert open_sae(case.source).transcoder
    change_config(case, affine_connection=True)
    refused(case.source, r"sets affine_connection, but .* holds no affine_skip_connection")


@pytest.mark.parametrize("kind", ["crosscoder", "clt"])
def test_gemma_scope_crosscoders_are_refused(kind, tmp_path):
    case = named("gemma_scope_2/resid_post").copy(tmp_path)
    change_config(case, type=kind)  # with one hook point for both
    refused(case.source, "describes a crosscoder")
    without = named("gemma_scope_2/without_config")
    place = tmp_path / "again" / f"{kind}_all" / "layer_12_width_16k_l0_medium"
    shutil.copytree(without.source, place)
    refused(place, f"predicts several layers .{kind}")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "saelens/standard",
            {"metadata": {"hook_name": "a", "hook_name_out": "b", "sae_lens_version": "6.2"}},
        ),
        ("saelens/standard", {"d_out": 13}),
        ("saelens/legacy_standard", {"is_transcoder": True}),
        ("dictionary_learning/topk", {"trainer": {"dict_class": "Transcoder"}}),
        ("batchtopk/topk", {"sae_type": "topk-transcoder"}),
        ("connor_rob_hook_z/layer_3", {"is_transcoder": True}),
    ],
)
def test_a_transcoder_in_the_layout_of_an_sae_is_refused(name, change, tmp_path):
    case = change_config(named(name).copy(tmp_path), **change)
    with pytest.raises(ValueError, match="describes a transcoder") as caught:
        load_sae(case.source)
    assert str(case.folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("saelens/standard", {"is_crosscoder": True}),
        ("saelens/transcoder", {"is_crosscoder": True}),
        ("sparsify/transcode", {"architecture": "crosscoder"}),
        ("dictionary_learning/topk", {"trainer": {"dict_class": "CrossCoder"}}),
    ],
)
def test_whatever_says_that_it_is_a_crosscoder_is_refused(name, change, tmp_path):
    case = change_config(named(name).copy(tmp_path), **change)
    with pytest.raises(ValueError, match="describes a crosscoder") as caught:
        load_sae(case.source)
    assert str(case.folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"apply_b_dec_to_input": True}, "sets apply_b_dec_to_input, but b_dec"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations must be one of none"),
        ({"d_out": 11}, r"W_dec must have shape .d_sae=40, d_out=11."),
    ],
)
def test_a_transcoder_of_saelens_that_is_another_function_is_refused(change, message, tmp_path):
    refused(change_config(named("saelens/transcoder").copy(tmp_path), **change).source, message)


def test_a_run_of_an_older_sparsify_says_what_it_trains(tmp_path):
    case = named("sparsify/transcode").copy(tmp_path)
    expected = load_sae(case.source)
    change_config(case, transcode=None)
    (case.source.parent / "config.json").write_text(json.dumps({"transcode": True}))
    found = load_sae(case.source)
    assert torch.equal(found.b_enc, expected.b_enc)
    assert (found.transcoder, found.target) == (True, "blocks.5.hook_mlp_out")


def test_an_sae_is_no_transcoder(tmp_path):
    refuse_transcoder(
        {"hook_name": "a", "hook_name_out": "a", "d_in": 3, "d_out": 3, "type": "sae"}, tmp_path
    )
    refuse_transcoder({"hook_name_out": None, "transcode": False, "skip_connection": None}, tmp_path)


# ------------------------------------------------------------------------------ two readings


def test_two_formats_in_one_folder_are_refused(tmp_path):
    case = named("saelens/standard").copy(tmp_path)
    shutil.copy(named("gemma_scope/gemma-scope-2b-pt-res").weights, case.source)
    refused(case.source, "holds SAEs of 2 formats, SAELens and Gemma Scope: keep each in a separate folder")
    make().save(tmp_path / "both")
    shutil.copytree(named("saelens/standard").source, tmp_path / "both", dirs_exist_ok=True)
    refused(tmp_path / "both", "a dictionary of saekit and an SAE of SAELens")
    with pytest.raises(ValueError, match="a dictionary of saekit and an SAE of SAELens"):
        load_family(tmp_path / "both")


def test_two_files_of_one_format_are_refused(tmp_path):
    gemma = named("gemma_scope/gemma-scope-2b-pt-res").copy(tmp_path)
    shutil.copy(named("gemma_scope_2/resid_post").weights, gemma.source)
    refused(gemma.source, r"holds two SAEs, params\.npz and params\.safetensors")
    batch = named("batchtopk/topk").copy(tmp_path)
    assert batch.weights.name.lower() == "sae.pt"
    for name in ("sae.pt", "SAE.pt"):
        if not (batch.source / name).exists():
            shutil.copy(batch.weights, batch.source / name)
    refused(batch.source, r"holds two SAEs, sae\.pt and SAE\.pt")


def test_an_array_in_a_folder_of_the_archive_is_no_array_of_the_sae(tmp_path):
    case = named("gemma_scope/gemma-scope-2b-pt-res").copy(tmp_path)
    entries = damage.read(case.weights)
    other = {**entries, "sub/W_dec": entries["W_dec"] * 2}
    damage.write(case.weights, other)
    with pytest.raises(ValueError, match="holds sub/W_dec, which has no place"):
        load_sae(case.source)
    del other["W_dec"]
    damage.write(case.weights, other)
    with pytest.raises(ValueError, match="must hold W_dec"):
        load_sae(case.source)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    case = named("gemma_scope/gemma-scope-2b-pt-res").copy(tmp_path)
    with zipfile.ZipFile(case.weights, "a") as archive:
        archive.writestr("W_dec.npy", archive.read("W_dec.npy"))
    with pytest.raises(ValueError, match=r"params\.npz .* two of its arrays have the same name"):
        load_sae(case.source)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("saelens/legacy_topk", {"k": 5, "activation_fn_kwargs": {"k": 6}}),
        ("dictionary_learning/topk", {"trainer": {"dict_class": "AutoEncoderTopK", "k": 7}}),
    ],
)
def test_k_in_two_places_that_disagree_is_refused(name, change, tmp_path):
    case = change_config(named(name).copy(tmp_path), **change)
    with pytest.raises(ValueError, match=r"gives k(=| twice).*6|gives k=7"):
        load_sae(case.source)


def test_k_in_two_places_of_one_file(tmp_path):
    case = named("openai/topk").copy(tmp_path)
    entries = damage.read(case.weights)
    k = entries["activation_state_dict"]["k"]
    damage.write(case.weights, entries | {"activation.k": torch.tensor(k)})
    assert load_sae(case.source).k == k
    damage.write(case.weights, entries | {"activation.k": torch.tensor(k + 1)})
    with pytest.raises(ValueError, match=f"gives k twice: {k} .* and {k + 1} as activation.k"):
        load_sae(case.source)


# ------------------------------------------------------------------------------ well defined


@pytest.mark.parametrize("without", [["k"], ["threshold"], ["k", "threshold"]])
def test_topk_files_of_the_first_versions_have_neither_k_nor_threshold(without, tmp_path):
    case = named("dictionary_learning/topk").copy(tmp_path)
    before = load_sae(case.source)
    entries = damage.read(case.weights)
    damage.write(case.weights, {name: value for name, value in entries.items() if name not in without})
    after = load_sae(case.source)
    assert after.content_hash == before.content_hash
    if "k" in without:
        config = json.loads(case.config.read_text())
        del config["trainer"]["k"]
        case.config.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"config\.json must give k as trainer\.k"):
            load_sae(case.source)


def test_a_batchtopk_file_without_a_threshold_gets_one_from_activations(tmp_path):
    case = named("dictionary_learning/batchtopk").copy(tmp_path)
    entries = damage.read(case.weights)
    damage.write(case.weights, {name: value for name, value in entries.items() if name != "threshold"})
    with pytest.raises(ValueError, match="without an inference threshold"):
        load_sae(case.source)
    sae = open_sae(case.source)
    assert sae.batch_k == 6
    converted = as_jumprelu(sae, case.expected()["x"], constant_scale=False).dictionary
    assert converted.threshold.max() > 0


def test_a_whole_number_is_a_scaling_factor(tmp_path):
    case = named("saelens/checkpoint_standard_scaled").copy(tmp_path)
    scaler = case.source / saelens.SCALER
    for factor, found in ((2, 2.0), (2.5, 2.5)):
        scaler.write_text(json.dumps({"scaling_factor": factor}))
        assert open_sae(case.source).scale == found
        load_sae(case.source)
    for factor, message in (
        ("2", "must be of type"),
        (True, "must be of type"),
        (0, "scale must be above 0"),
    ):
        scaler.write_text(json.dumps({"scaling_factor": factor}))
        with pytest.raises(ValueError, match=message) as caught:
            load_sae(case.source)
        assert str(case.folder) in str(caught.value)
    scaler.write_text('{"scaling_factor": Infinity}')
    with pytest.raises(ValueError, match="scale must be finite"):
        load_sae(case.source)


@pytest.mark.parametrize(
    "name",
    [
        "saelens/jumprelu",
        "dictionary_learning/jumprelu",
        "gemma_scope/gemma-scope-2b-pt-res",
        "batchtopk/jumprelu",
    ],
)
def test_infinite_thresholds_are_latents_that_are_never_active(name, tmp_path):
    case = named(name).copy(tmp_path)
    key = "jumprelu.log_threshold" if name.startswith("batchtopk") else "threshold"
    entries = damage.read(case.weights)
    entries[key][5] = torch.inf
    damage.write(case.weights, entries)
    dictionary, expected = load_sae(case.source), case.expected()
    latents = expected["latents"] * expected["decoder_norm"]
    latents[:, 5] = 0
    torch.testing.assert_close(dictionary.encode(expected["x"]), latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["saelens/standard", "saelens/topk", "saelens/jumprelu", "saelens/gated"])
def test_a_decoder_row_of_zeros_adds_nothing(name, tmp_path):
    case = named(name).copy(tmp_path)
    expected = case.expected()
    row = int((expected["latents"] > 0).sum(0).argmax())
    entries = damage.read(case.weights)
    missing = expected["latents"][:, row, None] * entries["W_dec"][row]
    entries["W_dec"][row] = 0
    damage.write(case.weights, entries)
    found = load_sae(case.source).reconstruct(expected["x"])
    assert missing.norm(dim=1).max() > 0.1
    torch.testing.assert_close(found, expected["x_hat"] - missing, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------ formats from outside


def test_another_package_registers_a_format(tmp_path, monkeypatch):
    def read(path):
        return open_sae(path.parent / "inner")

    mine = Format("mine", "a file .mine", lambda path: path.suffix == ".mine", read)
    known = list(formats.FORMATS)
    registered = [("the point", mine)]
    monkeypatch.setattr(formats, "registered", lambda group: iter(registered))
    formats.formats.cache_clear()
    try:
        shutil.copytree(named("saelens/standard").source, tmp_path / "inner")
        (tmp_path / "sae.mine").write_text("mine")
        assert load_sae(tmp_path / "sae.mine").info["format"] == "mine"
        assert [format.name for format in formats.formats()] == [*(f.name for f in known), "mine"]
        for wrong, error, message in (
            ("text", TypeError, "must be a saekit.loading.formats.Format, found str"),
            (known[0], ValueError, "is called SAELens, like another format"),
        ):
            registered[:] = [("the point", wrong)]
            formats.formats.cache_clear()
            with pytest.raises(error, match=message):
                load_sae(tmp_path / "inner")
    finally:
        formats.formats.cache_clear()


# ------------------------------------------------------------------------------ archives of torch


def test_compressed_arrays_of_other_npy_versions_are_read(tmp_path):
    case = named("gemma_scope/gemma-scope-2b-pt-res").copy(tmp_path)
    before, entries = load_sae(case.source), damage.read(case.weights)
    for version in ((1, 0), (2, 0), (3, 0)):
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(case.weights, "w", compression) as archive:
                for name, tensor in entries.items():
                    with archive.open(f"{name}.npy", "w") as file:
                        np.lib.format.write_array(file, tensor.numpy(), version=version)
            assert load_sae(case.source).content_hash == before.content_hash, (version, compression)
