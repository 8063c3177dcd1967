"""Every public function has an example, and examples show what they claim on toys made on the spot."""

import doctest
import importlib
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import sentences
from toy_stores import in_memory

import saekit
from saekit.analysis.labels import label_latents
from saekit.analysis.latents import collect
from saekit.analysis.meta.sae import MetaSAE
from saekit.corpora import Document
from saekit.dictionary import Dictionary
from saekit.family import Family

API = Path(__file__).resolve().parents[1] / "docs/api.md"
WITHOUT_EXAMPLE = {  # public, and not to be run here
    "saekit.analysis.explain.explain_latents": "needs a language model behind an endpoint",
    "saekit.analysis.explain.score_explanations": "needs a language model behind an endpoint",
    "saekit.corpora.embedded_corpus": "needs the embedded packages",
    "saekit.corpora.further_prompts": "needs the embedded packages",
    "saekit.corpora.presidential_addresses": "needs the embedded packages",
    "saekit.corpora.probe_prompts": "needs the embedded packages",
    "saekit.corpora.probing_sets": "needs the embedded packages",
    "saekit.corpora.wikipedia_leads": "needs the embedded packages",
    "saekit.loading.neuronpedia.fetch_feature": "needs Neuronpedia",
    "saekit.loading.publishing.push_to_hub": "needs a hub",
    "saekit.report.report.write_report": "takes several seconds; docs/command_line.md runs it",
    "saekit.series.embedded.embedded_rows": "needs the embedded packages",
    "saekit.series.embedded.embedded_store": "needs the embedded packages",
    "saekit.series.profiles.store_for": "needs the embedded packages",
    "saekit.training.loggers.TensorBoardLogger": "needs TensorBoard",
    "saekit.training.loggers.WandbLogger": "needs Weights & Biases",
}

VOCABULARY = [" king", " queen", " river", " stone", " moon", " the"]
D_IN = len(VOCABULARY)


RECIPE = {"name": "toy", "lr": 3e-3, "steps": 2, "batch": 8}
INFO = {"model": "toy", "hook_point": "blocks.0.hook_resid_post"}


def made(rows, threshold, info, **settings):
    """A dictionary whose encoder is its decoder."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    zeros, thresholds = torch.zeros(len(rows)), torch.full((len(rows),), threshold)
    info = INFO | info
    return Dictionary(rows.T.contiguous(), zeros, rows, torch.zeros(D_IN), thresholds, info=info, **settings)


def dictionary(width, seed, kind="relu", **settings):
    """Latent i reads the direction of word i, and from the sixth on half of the next word's, with noise."""
    words = torch.arange(width) % D_IN
    rows = torch.eye(D_IN)[words]
    rows[D_IN:] += 0.5 * torch.eye(D_IN)[(words[D_IN:] + 1) % D_IN]
    noise = torch.randn(width, D_IN, generator=torch.Generator().manual_seed(width + seed))
    return made(rows + 0.04 * (1 + seed) * noise, 0.2, {"kind": kind, "seed": seed}, **settings)


def meta_of(*sources):
    """A meta-SAE by hand, whose meta-latents are the words."""
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}, "meta": {"recipe": RECIPE}}
    held_out = torch.zeros(sum(source.width for source in sources), dtype=torch.bool)
    return MetaSAE(made(torch.eye(D_IN), 0.25, info), sources, held_out)


@cache
def world():
    """The names that examples may use besides those of their own module."""
    tokens = torch.randint(D_IN, (10, 20), generator=torch.Generator().manual_seed(0))
    amounts = 1 + torch.rand(200, 1, generator=torch.Generator().manual_seed(1))
    x = torch.eye(D_IN)[tokens.flatten()] * amounts
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    documents = [{"source": "toy", "title": "a toy document"}]
    store = in_memory(
        x.view(10, 20, D_IN), tokens=tokens, special=nowhere, excluded=nowhere, documents=documents
    )
    store.manifest["hook_point"] = "blocks.0.hook_resid_post"
    large = dictionary(12, 0)
    small, other_seed = dictionary(8, 0), dictionary(8, 1)
    return {
        "torch": torch,
        "np": np,
        "pd": pd,
        "saekit": saekit,
        "x": x,
        "store": store,
        "vocabulary": VOCABULARY,
        "unembedding": torch.eye(D_IN),
        "dictionary": small,
        "small": small,
        "other_seed": other_seed,
        "large": large,
        "topk": dictionary(8, 0, kind="topk", k=1),
        "family": Family([small, other_seed, large]),
        "collected": collect(small, store),
        "meta": meta_of(large),
        "family_meta": meta_of(small, large),
        "labels": label_latents(large, collect(large, store), store, VOCABULARY),
    }


def examples():
    """Every docstring of the package that has an example."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(saekit.__path__, "saekit."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        yield from (test for test in finder.find(module, found.name) if test.examples)


# Names of examples that need a language model, with the fixtures that make them.
FIXTURES = {
    "model": "model",
    "rows": "token_rows",
    "harvested": "store",
    "saes": "saes",
    "evidence": "evidence",
    "documents": "documents",
    "model_folder": "model_folder",
}


@pytest.fixture(scope="session")
def documents():
    """Eighty short documents."""
    return [Document(text, "Sentences", f"sentence {i}") for i, text in enumerate(sentences(80))]


@pytest.fixture(scope="session")
def saes(store):
    """Three SAEs trained on the tiny model's store, two of them of one width."""
    return Family(
        saekit.train(
            saekit.TrainingConfig(saekit.ReLU(target_l0=4), width=width, seed=seed, steps=200, batch_size=64),
            store,
            progress=False,
        ).dictionary
        for width, seed in [(16, 0), (16, 1), (32, 0)]
    )


@pytest.fixture(scope="session")
def evidence(saes, store, model):
    """What the explorers show of them."""
    return saekit.collect_evidence(saes, store, model)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of an example, with the files that it may read."""
    (tmp_path / "notes.txt").write_text("The river runs under a stone.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def public():
    """What `saekit` exports, and every function of the modules on the API page, by full name."""
    found = {}
    exported = [getattr(saekit, name) for name in saekit._HOMES]
    for name in re.findall(r"^::: (\S+)", API.read_text(encoding="utf-8"), re.MULTILINE):
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        functions = [getattr(module, key) for key in names if inspect.isfunction(getattr(module, key))]
        exported += [one for one in functions if hasattr(module, "__all__") or one.__module__ == name]
    for one in exported:
        found[f"{one.__module__}.{one.__qualname__}"] = one
    return found


def test_every_public_function_has_an_example():
    found = public()
    without = {name for name, one in found.items() if ">>> " not in (one.__doc__ or "")}
    assert len(found) > 150
    assert without == set(WITHOUT_EXAMPLE)


def names_for(source, request):
    """What an example may use besides the names of its own module."""
    used = {name for name in FIXTURES if re.search(rf"\b{name}\b", source)}
    return world() | {name: request.getfixturevalue(FIXTURES[name]) for name in used}


@pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("test", list(examples()), ids=lambda test: test.name)
def test_examples_show_what_they_claim(test, request):
    source = "".join(example.source for example in test.examples)
    given = names_for(source, request)
    test.globs.update({name: value for name, value in given.items() if name not in test.globs})
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, shown = doctest.DocTestRunner(optionflags=flags, verbose=False), SimpleNamespace(text="")
    runner.run(test, out=lambda text: setattr(shown, "text", shown.text + text), clear_globs=False)
    assert not runner.failures, shown.text
