"""Profiles: what they hold, and the whole series run on a small model of GPT-2's architecture."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import save_random, sentences
from dictionaries import make
from safetensors.torch import save_file

from saekit.corpora import Document
from saekit.family import Family
from saekit.loading.check_sae import check_sae
from saekit.series.profiles import DEFAULT, SHIPPED, Profile, Series, load_series, store_for
from saekit.series.published_numbers import expectations
from saekit.series.reproduce import notebooks, prepared_notebook, reproduce_profile

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = {
    "model": {"name": "model"},
    "hook_point": "blocks.8.hook_resid_pre",
    "text": {},
    "families": {"relu": {"sources": ["saes"]}},
    "notebooks": {},
}


def written(folder, **changes):
    """A profile in a file."""
    file = folder / "own.json"
    file.write_text(json.dumps(SMALLEST | changes))
    return file


# ------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_profiles_run_the_series_with_parameters_that_it_has(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    profile = Profile.load(file.stem)
    assert set(profile.families) == {"relu", "batchtopk"}
    assert len(profile.notebooks) == (8 if file.stem == "gpt2" else 6)
    for name in profile.notebooks:
        prepared_notebook(name, profile)
    expectations(profile)


def test_the_default_is_embedded_and_the_environment_names_another(tmp_path, monkeypatch):
    monkeypatch.delenv("SAEKIT_PROFILE", raising=False)
    assert load_series().is_embedded
    assert load_series().shown == ("Wikipedia", "Presidential address")
    monkeypatch.setenv("SAEKIT_PROFILE", str(written(tmp_path)))
    assert not load_series().is_embedded
    assert load_series().profile.name == "own"
    monkeypatch.setenv("SAEKIT_PROFILE", "gpt3")
    with pytest.raises(FileNotFoundError, match=r"no profile 'gpt3': expected embedded, gpt2, or"):
        load_series()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {}}, r"own\.json: unknown key modle; expected model, hook_point"),
        ({"model": {}}, r"own\.json, model: name must be given"),
        (
            {"model": {"name": "gpt2", "device": "cuda"}},
            r"model: unknown key device; expected name, revision",
        ),
        ({"text": "gpt2"}, r"own\.json, text must hold values by name, found str"),
        ({"families": {"relu": {"source": []}}}, r"families, relu: unknown key source; expected sources"),
    ],
)
def test_slips_in_a_profile_are_one_sentence(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Profile.load(written(tmp_path, **changes))
    incomplete = tmp_path / "incomplete.json"
    incomplete.write_text(json.dumps({"text": {}}))
    with pytest.raises(ValueError, match=r"model, hook_point, families, notebooks must be given"):
        Profile.load(incomplete)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"width": 8}, "small, narrow, latent, released must be given"),
        (
            {"expected": [{"measure": "beauty", "what": "", "paper": 1, "source": ""}]},
            "unknown measure beauty",
        ),
        ({"expected": [{"measure": "meta_l0", "lowest": 1}]}, "unknown key lowest"),
    ],
)
def test_slips_in_checks_are_one_sentence(tmp_path, checks, message):
    subject = {"width": 8, "small": 4, "narrow": [4], "latent": 0, "released": "meta"}
    given = checks if "width" in checks else subject | checks
    with pytest.raises(ValueError, match=message):
        expectations(Profile.load(written(tmp_path, checks=given)))


def test_what_is_not_there_is_one_sentence(tmp_path):
    own = Series(Profile.load(written(tmp_path, model={"name": "no/such/model"})))
    with pytest.raises(FileNotFoundError, match=r"no model 'no/such/model'"):
        own.model  # noqa: B018 (reading it fails)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*saes"):
        own.family("relu")
    with pytest.raises(ValueError, match=r"own has no batchtopk family; it has relu"):
        own.family("batchtopk")
    files = Series(Profile.load(written(tmp_path, text={"files": ["*.txt"]})))
    with pytest.raises(FileNotFoundError, match=r"no text files match \*\.txt"):
        files.held_out  # noqa: B018 (reading it fails)


def test_names_of_what_lies_beside_the_profile_are_paths(tmp_path):
    profile = Profile.load(written(tmp_path))
    (tmp_path / "saes").mkdir()
    assert profile.local("saes") == str(tmp_path / "saes")
    assert profile.local("sa*s") == str(tmp_path / "sa*s")
    assert profile.local("gpt2") == "gpt2"


def family_for(**info):
    """Two random dictionaries that say what they are for."""
    return Family(replace(member, info={**member.info, **info}) for member in (make(16, 24), make(16, 48)))


def test_a_family_gets_activations_of_the_model_it_is_for(tmp_path, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=4, n_positions=128)
    folder = save_random(GPT2LMHeadModel(config), tmp_path / "tiny")
    documents = [Document(text * 4, "Sentences", f"sentence {i}") for i, text in enumerate(sentences(200))]
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("saekit.series.profiles.embedded_corpus", lambda: documents)
    processing = {"center_writing_weights": True}
    family = family_for(
        model=str(folder), hook_point="blocks.1.hook_resid_pre", model_processing=processing, prepend_bos=True
    )
    store = store_for(family, n_tokens=512, progress=False)
    assert store.hook_point == "blocks.1.hook_resid_pre"
    assert store.manifest["model"]["processing"]["center_writing_weights"]
    assert store.n_tokens >= 512 - 128
    x = store.read(store.positions)
    assert x.mean(dim=1).abs().max() <= 1e-4 * x.norm(dim=1).max()  # what writes into the stream is centred
    assert check_sae(family[24], store).frame["agrees"].all()
    again = store_for(family, n_tokens=512, progress=False)
    assert (again.path, again.content_hash) == (store.path, store.content_hash)
    trained = GPT2LMHeadModel.from_pretrained(folder)
    trained.transformer.h[0].mlp.c_fc.weight.data[0, 0] += 1
    trained.save_pretrained(folder)  # another checkpoint in the same folder
    later = store_for(family, n_tokens=512, progress=False)
    assert later.path != store.path
    assert later.content_hash != store.content_hash


def test_a_family_of_the_embedded_model_gets_the_embedded_store(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "saekit.series.profiles.embedded_store", lambda *parts, **options: asked.append(parts)
    )
    store_for(family_for(model="smollm2-135m-instruct", hook_point="blocks.12.hook_resid_post"))
    assert asked == [("held-out",)]
    with pytest.raises(ValueError, match="must name its model and hook point, found None and None"):
        store_for(family_for())


# ------------------------------------------------------------------------------ claims and parameters


def test_claims_are_printed_and_required_of_the_embedded_default_alone(tmp_path, capsys):
    claims = {"two is even": True, "two is odd": torch.tensor(False)}
    Series(Profile.load(written(tmp_path))).require(claims)
    assert capsys.readouterr().out == "two is even: True\ntwo is odd: False\n"
    embedded = Series(Profile.load(DEFAULT))
    with pytest.raises(AssertionError, match=r"do not hold: two is odd\."):
        embedded.require(claims)
    embedded.require({"two is even": True})


def test_parameters_are_injected_after_those_of_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = {"SMALL": 8, "OTHER_THETAS": [0.5]}
    profile = Profile.load(written(tmp_path, notebooks={"04_stitching": given}))
    cells = prepared_notebook("04_stitching", profile).cells
    tags = [cell.metadata.get("tags") for cell in cells]
    place = tags.index(["injected-parameters"])
    assert tags[place - 1] == ["parameters"]
    values = {}
    exec(cells[place - 1].source + "\n" + cells[place].source, values)
    assert (values["SMALL"], values["LARGE"], values["OTHER_THETAS"]) == (8, 2304, [0.5])
    assert not any(cell.get("outputs") for cell in cells)
    profile = Profile.load(written(tmp_path, notebooks={"04_stitching": {"MIDDLE": 8}}))
    with pytest.raises(ValueError, match=r"04_stitching has no parameter MIDDLE; it has SMALL, LARGE, THETA"):
        prepared_notebook("04_stitching", profile)
    with pytest.raises(FileNotFoundError, match=r"there is no notebook 99_nothing; there are 00_"):
        prepared_notebook("99_nothing", Profile.load(written(tmp_path, notebooks={"99_nothing": {}})))


def test_the_committed_notebooks_and_figures_are_not_written_over(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="give a separate folder"):
        reproduce_profile(Profile.load("gpt2"), ".", progress=False)


def test_cells_about_the_embedded_default_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    profile = Profile.load(written(tmp_path, notebooks={"01_activations_and_training": {}}))
    own = "".join(cell.source for cell in prepared_notebook("01_activations_and_training", profile).cells)
    assert "kinds_table" not in own
    assert "Run with the profile `own`." in own
    alone = Profile.load(written(tmp_path, notebooks={"12_transcoders_and_heads": {}}))
    with pytest.raises(ValueError, match="12_transcoders_and_heads runs on the embedded default alone"):
        prepared_notebook("12_transcoders_and_heads", alone)
    embedded = prepared_notebook("01_activations_and_training", Profile.load(DEFAULT)).cells
    assert "kinds_table" in "".join(cell.source for cell in embedded)
    assert len(embedded) == len(nbformat.read(notebooks()[1], as_version=4).cells)


# ------------------------------------------------------------------------------ the whole series

WIDTHS = 12, 24, 48, 96, 144, 216, 324, 512
D_IN, L0, HOOK_POINT = 32, 5, "blocks.8.hook_resid_pre"
TRAINING = {"steps": 400, "batch_size": 128, "log_every": 400}
TINY = {
    "model": {"name": "tiny-gpt2", "processing": {"center_writing_weights": True}},
    "hook_point": HOOK_POINT,
    "text": {
        "dataset": "text",
        "context_length": 32,
        "prepend_bos": True,
        "train_tokens": 8192,
        "held_out_tokens": 8192,
    },
    "families": {
        "relu": {
            "sources": ["saes/*"],
            "train": [{"width": width, "seed": 1, "target_l0": L0, **TRAINING} for width in (96, 144)],
        },
        "batchtopk": {
            "train": [
                {"width": width, "seed": seed, "k": L0, **TRAINING}
                for width, seed in ((96, 0), (144, 0), (144, 1))
            ],
        },
    },
    "notebooks": {
        "01_activations_and_training": {
            "TRAIN_TOKENS": 4096,
            "WIDTH": 24,
            "TARGET_L0": L0,
            "STEPS": 100,
            "CE_ROWS": 4,
        },
        "02_feature_splitting": {"DRAWS": 2},
        "03_novel_and_reconstruction_latents": {
            "SMALL": 96,
            "LARGE": 144,
            "GROUP_SIZE": 4,
            "N_GROUPS": 1,
            "CE_ROWS": 2,
        },
        "04_stitching": {
            "SMALL": 96,
            "LARGE": 144,
            "THETA": 0.5,  # so that hardly trained dictionaries have pairs
            "DRAWS": 2,
            "POINTS": 3,
            "CE_ROWS": 2,
            "GROUP_ROWS": 2,
            "GROUP_DRAWS": 2,
            "EVERY": 4,
        },
        "05_meta_sae": {
            "WIDTH": 512,
            "CONTRAST_WIDTH": 144,
            "SMALL": 48,
            "STEPS": 20,
            "FAMILY_STEPS": 40,
            "PLAIN_TOKENS": 4096,
            "PLAIN_L0": L0,
            "PLAIN_STEPS": 40,
            "CE_ROWS": 2,
        },
        "06_uniqueness": {"WIDTHS": [96, 144]},
    },
    "checks": {"width": 512, "small": 48, "narrow": [24, 48], "latent": 7, "released": "meta"},
}


def write_sae(folder, width, x, directions):
    """A ReLU SAE in SAELens' layout, each latent active on about as many tokens."""
    centre = x.mean(0)
    products = (x - centre) @ directions.T
    cut = products.quantile(1 - L0 / width, dim=0)
    x_hat = (products - cut).relu() @ directions
    gain = 1.7 * ((x - centre) * x_hat).sum() / x_hat.square().sum()  # overshoots, as real latents do
    tensors = {"W_enc": gain * directions.T, "b_enc": -gain * cut, "W_dec": directions, "b_dec": centre}
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors"
    )
    config = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.22.1",
            "model_name": "tiny-gpt2",
            "hook_name": HOOK_POINT,
            "context_size": 32,
            "prepend_bos": True,
            "model_from_pretrained_kwargs": {"center_writing_weights": True},
        },
    }
    (folder / "cfg.json").write_text(json.dumps(config))


def write_meta_sae(folder, directions):
    """A meta-SAE as the authors released theirs: BatchTopK, without a threshold."""
    width = len(directions)
    folder.mkdir()
    tensors = {"W_enc": directions.T.contiguous(), "W_dec": directions.contiguous()}
    tensors |= {"b_enc": torch.zeros(width), "b_dec": torch.zeros(D_IN)}
    torch.save(tensors, folder / "SAE.pt")
    config = {
        "act_size": D_IN,
        "dict_size": width,
        "sae_type": "batchtopk",
        "top_k": 4,
        "input_unit_norm": False,
    }
    (folder / "Config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, text, eight SAEs of which wider ones split the narrower one's latents, and a profile."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from saekit.models import capture, load_model

    folder = tmp_path_factory.mktemp("world")
    config = GPT2Config(vocab_size=320, n_embd=D_IN, n_layer=9, n_head=4, n_positions=64)
    save_random(GPT2LMHeadModel(config), folder / "tiny-gpt2")
    (folder / "text").mkdir()
    lines = sentences(6000)
    documents = [" ".join(lines[i : i + 10]) for i in range(0, len(lines), 10)]
    rows = "\n".join(json.dumps({"text": document}) for document in documents)
    (folder / "text" / "train.jsonl").write_text(rows)

    model = load_model(folder / "tiny-gpt2", processing={"center_writing_weights": True})
    ids = model.tokenizer(" ".join(documents[:120]))["input_ids"]
    tokens = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    x = capture(model, tokens, HOOK_POINT)[:, 1:].reshape(-1, D_IN)
    generator = torch.Generator().manual_seed(0)
    directions = torch.zeros(0, D_IN)
    for width in WIDTHS:
        n_split, n_new = len(directions), width - len(directions)
        new = (x - x.mean(0))[torch.randperm(len(x), generator=generator)[:n_new]]
        parents = (
            directions[torch.randint(max(1, n_split), (n_new,), generator=generator)] if n_split else new
        )
        halves = torch.where(
            (torch.rand(n_new, 1, generator=generator) < 0.5), F.normalize(parents, dim=1), new
        )
        directions = torch.cat([directions, F.normalize(halves, dim=1)])
        noise = 0.08 * torch.randn(directions.shape, generator=generator)
        directions = F.normalize(directions + noise, dim=1)
        order = torch.randperm(width, generator=generator)
        write_sae(folder / "saes" / f"{HOOK_POINT}_{width}", width, x, directions[order])
    write_meta_sae(folder / "meta", directions[:24])
    shipped = json.loads((SHIPPED / "gpt2.json").read_text())
    checks = TINY["checks"] | {"expected": shipped["checks"]["expected"]}
    (folder / "tiny.json").write_text(json.dumps(TINY | {"checks": checks}))
    return folder


def reproduce(world):
    command = [sys.executable, "-m", "saekit", "--quiet", "reproduce", "--profile", str(world / "tiny.json")]
    environment = {
        **os.environ,
        "SAEKIT_HOME": str(world / "home"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {"HF_HOME": str(world / "hf")}
    return subprocess.run(
        [*command, "--out", str(world / "out")], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_one_command_runs_the_series_on_local_saes_and_checks_them(world):
    first = reproduce(world)
    assert first.returncode == 0, first.stderr
    out = world / "out"
    checks = pd.read_csv(out / "checks.csv")
    assert f"of {len(checks)} checks hold" in first.stdout

    executed = sorted(path.stem for path in (out / "notebooks").glob("*.ipynb"))
    assert executed == sorted(TINY["notebooks"])
    for path in (out / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
        injected = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
        assert len(injected) == bool(TINY["notebooks"][path.stem])
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    embedded = {"01_convergence", "01_kinds_frontier", "01_active_latents", "01_kinds"}
    of_the_series = {path.stem for path in (ROOT / "figures").glob("*.png")}
    of_others = ("00", "07", "08", "09", "10", "11", "12", "13", "14")  # notebooks that no profile runs
    assert figures == {name for name in of_the_series - embedded if not name.startswith(of_others)}
    assert "05_meta_baselines" in (out / "figures" / "README.md").read_text()

    # Every SAE was read as it was saved, on the model with the processing that it names.
    recorded = checks[checks["source"] == "recorded with the SAE"]
    assert len(recorded) == 3 * len(WIDTHS)
    assert recorded["holds"].all()
    # The numbers of the paper cannot be met here, but each was found.
    measured = checks[checks["source"] != "recorded with the SAE"].set_index("what")
    assert len(measured) == 14
    found = measured["found"].astype(float)
    assert found.notna().all()
    agrees = (found >= measured["low"].fillna(-9)) & (found <= measured["high"].fillna(9))
    assert 0 < agrees.sum() < len(agrees)
    assert (measured["holds"] == agrees).all()

    before = times(out)
    second = reproduce(world)
    assert second.stdout == first.stdout
    assert times(out) == before, "nothing was done again"
