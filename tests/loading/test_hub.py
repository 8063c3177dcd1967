import hashlib
import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from dictionaries import make
from fake_hub import commit_of, running
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import save

from saekit.loading.hub import fetch
from saekit.loading.names import load_family, load_sae, open_sae

REPO = "org/saes"


def files_of(dictionary, folder):
    config = {"architecture": "standard", "d_in": dictionary.d_in, "d_sae": dictionary.width}
    config |= {"apply_b_dec_to_input": False, "dtype": "float32"}
    config |= {"metadata": {"hook_name": "blocks.8.hook_resid_pre", "sae_lens_version": "6.0.0"}}
    tensors = {name: dictionary.tensors()[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return {
        f"{folder}/cfg.json": json.dumps(config).encode(),
        f"{folder}/sae_weights.safetensors": save(tensors),
        f"{folder}/training.log": b"loss 1.0\n",
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add(REPO, files_of(make(d_in=12, width=30), "layer_8/wide") | {"README.md": b"SAEs."})
        yield hub


def test_a_folder_of_a_repository_is_downloaded_checked_and_read(hub, tmp_path):
    sae = load_sae(f"{REPO}/layer_8/wide")
    torch.testing.assert_close(sae.W_enc, make(d_in=12, width=30).W_enc, rtol=1e-6, atol=0)
    assert [Path(path).name for path in hub.downloads] == ["cfg.json", "sae_weights.safetensors"]
    weights = hub.repos[REPO]["layer_8/wide/sae_weights.safetensors"]
    assert sae.info["repo"] == REPO
    assert sae.info["commit"] == commit_of(hub.repos[REPO])
    assert sae.info["sha256"] == {"layer_8/wide/sae_weights.safetensors": hashlib.sha256(weights).hexdigest()}
    assert str(tmp_path) not in json.dumps(dict(sae.info))


def test_what_is_in_the_cache_is_not_downloaded_again_and_a_commit_not_even_asked_for(hub):
    commit = open_sae(f"{REPO}/layer_8/wide").info["commit"]
    hub.requests.clear()
    assert open_sae(f"{REPO}/layer_8/wide").info["commit"] == commit
    assert hub.downloads == []
    open_sae(f"{REPO}/layer_8/wide", revision=commit)
    hub.requests.clear()
    open_sae(f"{REPO}/layer_8/wide", revision=commit)
    assert hub.requests == []


def test_a_branch_that_moved_is_followed(hub):
    old = open_sae(f"{REPO}/layer_8/wide").info["commit"]
    hub.add(REPO, files_of(make(d_in=12, width=20), "layer_8/wide"))
    new = open_sae(f"{REPO}/layer_8/wide")
    assert (new.width, new.info["commit"] != old) == (20, True)


@pytest.mark.parametrize("away", ["status", "offline"])
def test_the_cache_serves_while_the_hub_is_away(hub, monkeypatch, away):
    there = load_sae(f"{REPO}/layer_8/wide")
    if away == "status":
        hub.status = 503
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = load_sae(f"{REPO}/layer_8/wide")
    assert again.content_hash == there.content_hash


@pytest.mark.parametrize("away", ["status", "offline"])
@pytest.mark.parametrize("place", ["layer_8/wide", "layer_8/wide/sae_weights.safetensors"])
def test_what_another_program_downloaded_is_there_offline(hub, monkeypatch, away, place):
    """Complete in the hub's cache, with no record of saekit's own."""
    files = [path for path in hub.repos[REPO] if not path.endswith(".log")]
    for file in files:
        hf_hub_download(REPO, file, endpoint=hub.endpoint)
    if away == "status":
        hub.status = 503
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched = fetch(REPO, place)
    assert (fetched.path.name, fetched.commit) == (Path(place).name, commit_of(hub.repos[REPO]))
    sae = load_sae(f"{REPO}/layer_8/wide")
    torch.testing.assert_close(sae.W_enc, make(d_in=12, width=30).W_enc, rtol=1e-6, atol=0)
    weights = fetched.path if fetched.path.is_file() else fetched.path / "sae_weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.resolve().write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: its checksum should be"):
        load_sae(f"{REPO}/layer_8/wide")


def test_what_the_cache_has_without_weights_is_not_there_offline(hub):
    hf_hub_download(REPO, "layer_8/wide/cfg.json", endpoint=hub.endpoint)
    hub.status = 503
    with pytest.raises(ConnectionError, match="could not be fetched"):
        load_sae(f"{REPO}/layer_8/wide")


def test_a_transfer_that_breaks_is_taken_up_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # bytes that are kept at a time
    file = "layer_8/wide/sae_weights.safetensors"
    hub.broken.add(file)
    open_sae(f"{REPO}/layer_8/wide")
    assert [path.endswith(file) for path in hub.downloads] == [False, True, True]
    assert hub.resumed == [len(hub.repos[REPO][file]) // 2 // 1000 * 1000]
    assert hub.resumed != [0]


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_wrong_bytes_are_refused_and_not_kept(hub, name):
    file = f"layer_8/wide/{name}"
    right = hub.repos[REPO][file]
    hub.served[file] = right[:-2] + bytes([right[-2] ^ 1]) + right[-1:]
    with pytest.raises(
        ValueError, match=rf"{REPO}/{file} is damaged: its checksum should be [0-9a-f]+, found"
    ):
        open_sae(f"{REPO}/layer_8/wide")
    hub.served.clear()
    assert open_sae(f"{REPO}/layer_8/wide").width == 30


def test_a_cached_file_that_changed_is_refused_offline(hub):
    path = fetch(REPO, "layer_8/wide").path / "sae_weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)
    hub.status = 503
    with pytest.raises(ValueError, match="is damaged: its checksum"):
        open_sae(f"{REPO}/layer_8/wide")


def test_a_single_file_comes_with_the_settings_beside_and_above_it(hub):
    files = {"config.json": b"{}", "run/checkpoints/ae_10.pt": b"ten", "run/checkpoints/ae_20.pt": b"twenty"}
    hub.add(REPO, files | {"run/config.json": b'{"trainer": {}}', "run/ae.pt": b"last"})
    fetched = fetch(REPO, "run/checkpoints/ae_10.pt")
    assert sorted(fetched.checksums) == ["run/checkpoints/ae_10.pt", "run/config.json"]
    assert fetched.path.read_bytes() == b"ten"
    assert (fetched.path.parent.parent / "config.json").is_file()


def test_gemma_scope_knows_its_hook_point_by_the_folders_of_the_repository(hub):
    tensors = make(d_in=12, width=30).tensors()
    stream = io.BytesIO()
    np.savez(stream, **{name: tensor.numpy() for name, tensor in tensors.items()})
    folder = "layer_12/width_16k/average_l0_41"
    hub.add("google/gemma-scope-2b-pt-res", {f"{folder}/params.npz": stream.getvalue()})
    sae = load_sae(f"google/gemma-scope-2b-pt-res/{folder}", revision="main")  # not the release: width 30
    assert (sae.hook_point, sae.info["expected_l0"]) == ("blocks.12.hook_resid_post", 41)


def test_a_file_with_its_settings_beside_it_at_the_root(hub):
    tensors, stream = make(d_in=12, width=30).tensors(), io.BytesIO()
    torch.save({name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}, stream)
    config = {"act_size": 12, "dict_size": 30, "act_name": "blocks.5.attn.hook_z"}
    files = {"L5.pt": stream.getvalue(), "L5_cfg.json": json.dumps(config).encode(), "L6.pt": b"another"}
    hub.add("org/attention", files)
    sae = open_sae("org/attention/L5.pt")
    assert (sae.width, sae.hook_point) == (30, "blocks.5.attn.hook_z")
    assert sorted(Path(path).name for path in hub.downloads) == ["L5.pt", "L5_cfg.json"]


def test_a_family_of_places_on_the_hub(hub):
    hub.add("org/narrow", files_of(make(d_in=12, width=20), "x"))
    assert load_family([f"{REPO}/layer_8/wide", "org/narrow/x"]).widths == [20, 30]


# ------------------------------------------------------------------------------ one sentence each


def sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return text


@pytest.mark.parametrize(
    ("name", "revision", "says"),
    [
        ("org/other/layer_8", None, "no repository org/other on http"),
        (f"{REPO}/layer_8/wide", "v2", f"{REPO} on .* has no revision v2"),
        (f"{REPO}/layer_9", None, f"no {REPO}/layer_9 here, and none on http.* at revision main"),
        (f"{REPO}/layer_8", None, "holds no SAE: expected files in .json, .* found layer_8/wide"),
        ("org/no name/x", None, "org/no name is not a repository name"),
    ],
)
def test_what_is_not_there_is_said(hub, name, revision, says):
    with pytest.raises(FileNotFoundError, match=says) as error:
        open_sae(name, revision=revision)
    sentence(error)


def test_a_gated_repository_is_said(hub):
    hub.gated.add(REPO)
    with pytest.raises(PermissionError, match=f"{REPO} on http.* is gated: accept its terms") as error:
        open_sae(f"{REPO}/layer_8/wide")
    sentence(error)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_fails_is_said(hub, status):
    hub.status = status
    with pytest.raises(
        ConnectionError, match=rf"layer_8/wide could not .* answered with status {status}"
    ) as e:
        open_sae(f"{REPO}/layer_8/wide")
    assert "downloaded elsewhere can be given instead" in sentence(e)


def test_a_hub_that_cannot_be_reached_is_said(hub, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ConnectionError, match=r"could not be fetched from http://127\.0") as error:
            open_sae(f"{REPO}/layer_8/wide")
    sentence(error)


def test_offline_without_a_copy_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set") as error:
        open_sae(f"{REPO}/layer_8/wide")
    sentence(error)
    assert hub.requests == []


def test_local_paths_never_ask_the_hub(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_sae(tmp_path / "nothing" / "there")
    with pytest.raises(ValueError, match="Local files have no revision"):
        open_sae(tmp_path, revision="main")
    assert hub.requests == []
