import json
from pathlib import Path

import pytest
import torch
from fake_hub import commit_of, running
from huggingface_hub import constants
from safetensors.torch import save

import saekit
from saekit.loading import releases
from saekit.loading.formats import FORMATS
from saekit.loading.names import open_sae
from saekit.models import PROCESSING

SPLITTING = "gpt2-small-res-jb-feature-splitting"
WIDTHS = [768, 1536, 3072, 6144, 12288, 24576, 49152, 98304]


def legacy_folder(folder, width, d_in=768):
    """As the repository has them: settings of SAELens before version 6, in bfloat16 to be small."""
    generator = torch.Generator().manual_seed(width)
    W_dec = torch.randn(width, d_in, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    b_enc, b_dec = -torch.rand(width, generator=generator), torch.randn(d_in, generator=generator)
    tensors = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    config = {"d_in": d_in, "d_sae": width, "hook_point": "blocks.8.hook_resid_pre"}
    config |= {"model_name": "gpt2-small", "dtype": "torch.float32", "activation_fn_str": "relu"}
    return {
        f"{folder}/cfg.json": json.dumps(config).encode(),
        f"{folder}/sae_weights.safetensors": save(
            {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
        ),
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        files = {}
        for width in WIDTHS[:2]:
            files |= legacy_folder(f"blocks.8.hook_resid_pre_{width}", width)
        hub.add("jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8", files)
        yield hub


def test_a_family_downloads_only_what_is_asked_for_and_is_there_offline(hub):
    family = saekit.load_family(SPLITTING)
    assert family.widths == WIDTHS
    assert (family.kind, family.hook_point) == ("relu", "blocks.8.hook_resid_pre")
    assert hub.requests == []

    sae = family[1536]
    assert sae.width == 1536
    asked = [path for _, path in hub.requests]
    assert not [path for path in asked if "hook_resid_pre_768" in path]
    assert {Path(path).parent.name for path in hub.downloads} == {"blocks.8.hook_resid_pre_1536"}

    hub.status = 503
    again = saekit.load_family(SPLITTING)[1536]
    assert again.content_hash == sae.content_hash
    with pytest.raises(ConnectionError, match="hook_resid_pre_768 could not be fetched"):
        family[768]


def test_a_loaded_member_says_what_the_release_is(hub):
    sae = saekit.load_sae(f"{SPLITTING}/blocks.8.hook_resid_pre_768")
    repo = "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8"
    expected = {
        "release": f"{SPLITTING}/blocks.8.hook_resid_pre_768",
        "kind": "relu",
        "model": "gpt2",
        "model_processing": {"center_writing_weights": True},
        "hook_point": "blocks.8.hook_resid_pre",
        "neuronpedia_id": "gpt2-small/8-res_fs768-jb",
        "expected_l0": 36,
        "expected_explained_variance": 0.61,
        "repo": repo,
        "commit": commit_of(hub.repos[repo]),
        "format": "SAELens",
    }
    assert {key: sae.info[key] for key in expected} == expected
    assert list(sae.info["sha256"]) == ["blocks.8.hook_resid_pre_768/sae_weights.safetensors"]


def test_some_latents_of_a_published_sae(hub):
    name = f"{SPLITTING}/blocks.8.hook_resid_pre_768"
    whole, some = saekit.load_sae(name), saekit.load_sae(name, latents=[5, 700, 2])
    assert torch.equal(some.W_dec, whole.W_dec[[5, 700, 2]])


@pytest.mark.parametrize(
    ("change", "says"),
    [({"width": 1536}, "width 768, but .* has 1536"), ({"d_in": 24}, "d_in 768, but .* 24")],
)
def test_what_is_not_as_the_table_says_is_refused(hub, change, says):
    repo = "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8"
    hub.add(repo, legacy_folder("blocks.8.hook_resid_pre_768", **({"width": 768} | change)))
    with pytest.raises(ValueError, match=says):
        saekit.load_sae(f"{SPLITTING}/blocks.8.hook_resid_pre_768")


def test_a_release_of_several_saes_is_not_one(hub):
    with pytest.raises(ValueError, match="holds 8 SAEs, of which one can be loaded: gpt2-small-res-jb-f"):
        open_sae(SPLITTING)
    with pytest.raises(ValueError, match="shares one hook point"):
        saekit.load_family("gpt2-small-res-jb")
    assert hub.requests == []


def test_a_list_may_name_members_of_several_releases(hub):
    layer = "blocks.8.hook_resid_post"
    family = saekit.load_family(
        [f"gpt2-small-resid-post-v5-32k/{layer}", f"gpt2-small-resid-post-v5-128k/{layer}"]
    )
    assert (family.widths, family.kind, family.hook_point) == ([32768, 131072], "topk", layer)
    assert hub.requests == []


def test_names_of_parts():
    assert len(releases.find("gpt2-small-res-jb")) == 13  # not those of the longer name
    assert len(releases.find("gemma-scope-2b-pt-res/layer_12")) == 7
    assert len(releases.find("gemma-scope-2b-pt-res/layer_12/width_16k")) == 1
    assert releases.find("gemma-scope-2b-pt-res/layer_1") == []
    assert releases.find("") == []


def test_the_table_holds_together():
    table = saekit.releases_table()
    assert table.index.is_unique
    assert not table.duplicated(["repo", "path", "revision"]).any()
    assert not table["neuronpedia_id"].dropna().duplicated().any()
    assert set(table["format"]) <= {format.name for format in FORMATS}
    assert all(set(flags) <= set(PROCESSING) for flags in table["processing"])
    assert list(table.loc[SPLITTING, "width"]) == WIDTHS
    gemma = table.loc["gemma-scope-2b-pt-res"]
    assert list(gemma["width"]) == [2**n for n in range(14, 21)]
    assert gemma["expected_l0"].between(40 / 1.5, 40 * 1.5).all()
