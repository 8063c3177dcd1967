"""Pushed to a hub, and fetched from it again; converted, and read again."""

import json

import pytest
import torch
from dictionaries import make, parameters
from fake_hub import running
from huggingface_hub import constants
from loading.formats.cases import named

from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.folding import Unfolded
from saekit.loading import publishing
from saekit.loading.names import load_family, load_sae
from saekit.loading.publishing import convert_sae, push_to_hub

INFO = {"kind": "relu", "model": "org/model", "hook_point": "blocks.3.hook_resid_post"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def member(width, seed, **change):
    return Unfolded(**parameters(12, width, seed), info=INFO | {"seed": seed} | change).fold()


def test_a_dictionary_is_pushed_and_comes_back(hub):
    dictionary = member(30, 3)
    address = push_to_hub(dictionary, "org/saes", path="layer_3/wide", private=True)
    assert address.startswith(f"{hub.endpoint}/org/saes/commit/")
    assert sorted(hub.repos["org/saes"]) == [
        "README.md",
        "layer_3/wide/cfg.json",
        "layer_3/wide/sae_weights.safetensors",
    ]
    assert hub.private == {"org/saes"}
    assert hub.messages == ["Add relu 30 (seed 3)"]
    again = load_sae("org/saes/layer_3/wide")
    x = torch.randn(50, 12)
    torch.testing.assert_close(again.reconstruct(x), dictionary.reconstruct(x), rtol=1e-5, atol=1e-5)
    assert {**again.info, **INFO, "seed": 3} == again.info


def test_a_family_is_pushed_with_a_card_that_names_its_members(hub):
    family = Family([member(10, 0), member(20, 0), member(20, 1)])
    push_to_hub(family, "org/family", message="Three SAEs")
    assert hub.messages == ["Three SAEs"]
    again = load_family([f"org/family/{place}" for place in ("10-seed0", "20-seed0", "20-seed1")])
    assert (again.widths, again.seeds(20), again.hook_point) == ([10, 20], [0, 1], INFO["hook_point"])
    card = hub.repos["org/family"]["README.md"].decode()
    _, header, text = card.split("---\n", 2)
    assert "library_name: saelens\n" in header
    assert "base_model: org/model\n" in header
    assert "| 20-seed1 | relu | 20 | 12 | 1 | org/model | blocks.3.hook_resid_post |" in text
    assert 'saekit.load_sae("org/family/10-seed0")' in text
    assert 'SAE.from_pretrained("org/family", "10-seed0")' in text


def test_what_is_there_stays_and_the_card_of_the_owner_too(hub):
    hub.add("org/saes", {"README.md": b"Mine.", "other/cfg.json": b"{}"})
    push_to_hub(member(30, 0), "org/saes", path="new")
    assert hub.repos["org/saes"]["README.md"] == b"Mine."
    assert "other/cfg.json" in hub.repos["org/saes"]
    push_to_hub(member(30, 1), "org/saes")  # into the root
    assert load_sae("org/saes").seed == 1


def test_what_cannot_be_written_is_refused_before_anything_is_asked(hub):
    with pytest.raises(ValueError, match="thresholds beside k=3"):
        push_to_hub(make(k=3), "org/saes")
    assert hub.requests == []


def test_a_hub_that_refuses_is_one_sentence(hub, monkeypatch):
    hub.read_only = True
    with pytest.raises(PermissionError, match=r"does not let you write to org/saes \(status 403\): log in"):
        push_to_hub(make(), "org/saes")
    hub.read_only, hub.status = False, 500
    with pytest.raises(ConnectionError, match=r"org/saes could not be written .* with status 500"):
        push_to_hub(make(), "org/saes")
    with pytest.raises(ValueError, match="'no name!' is not a repository name"):
        push_to_hub(make(), "no name!")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(make(), "org/saes")


# ------------------------------------------------------------------------------ conversion


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "saekit"])
@pytest.mark.parametrize("name", ["saelens/topk", "dictionary_learning/gated", "sparsify/topk"])
def test_an_sae_is_converted_from_any_format_into_each(name, format, tmp_path):
    case = named(name)
    out = convert_sae(case.source, tmp_path / "out", format=format)
    assert out == tmp_path / "out"
    before, after = load_sae(case.source), load_sae(out)
    x = case.expected()["x"]
    torch.testing.assert_close(after.reconstruct(x), before.reconstruct(x), rtol=1e-4, atol=1e-4)
    assert ((after.encode(x) > 0) == (before.encode(x) > 0)).float().mean() > 0.999


def test_a_family_is_converted_member_by_member(tmp_path):
    family = Family([member(10, 0), member(20, 0), member(20, 1)])
    out = convert_sae(family.save(tmp_path / "family"), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["10-seed0", "20-seed0", "20-seed1"]
    again = load_family(out)
    x = torch.randn(50, 12)
    for here, there in zip(again, family, strict=True):
        torch.testing.assert_close(here.encode(x), there.encode(x), rtol=1e-4, atol=1e-4)


def test_a_conversion_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path):
    source = make().save(tmp_path / "source")
    with pytest.raises(ValueError, match="one of 'saelens', 'dictionary_learning', 'sparsify', 'saekit'"):
        convert_sae(source, tmp_path / "out", format="onnx")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        convert_sae(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Nothing can be written"):
        convert_sae(source, tmp_path / "file")
    with pytest.raises(ValueError, match="holds an SAE of saekit already: give another folder"):
        convert_sae(source, source)
    convert_sae(source, tmp_path / "out")
    with pytest.raises(ValueError, match="holds an SAE of SAELens already"):
        convert_sae(source, tmp_path / "out", format="dictionary_learning")
    assert Dictionary.load(source).content_hash == make().content_hash


def test_the_card_is_made_of_what_is_recorded():
    card = publishing.model_card({".": make()}, "org/saes")
    assert "base_model" not in card
    assert 'saekit.load_sae("org/saes")' in card
    assert json.dumps("org/saes") in card
