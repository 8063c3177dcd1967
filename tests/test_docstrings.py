"""The examples in docstrings run, and show what they say, on a small family made on the spot."""

import doctest
import importlib
import pkgutil
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_stores import in_memory

import saekit
from saekit.analysis.labels import label_latents
from saekit.analysis.latents import collect
from saekit.analysis.meta.sae import MetaSAE
from saekit.dictionary import Dictionary
from saekit.family import Family

VOCABULARY = [" king", " queen", " river", " stone", " moon", " the"]
D_IN = len(VOCABULARY)


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


def meta_of(source):
    """A meta-SAE by hand, whose meta-latents are the words."""
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}, "meta": {"recipe": {"name": "toy"}}}
    return MetaSAE(made(torch.eye(D_IN), 0.25, info), (source,), torch.zeros(source.width, dtype=torch.bool))


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


@pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")
@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_examples_show_what_they_say(test):
    test.globs.update({name: value for name, value in world().items() if name not in test.globs})
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, said = doctest.DocTestRunner(optionflags=flags, verbose=False), SimpleNamespace(text="")
    runner.run(test, out=lambda text: setattr(said, "text", said.text + text), clear_globs=False)
    assert not runner.failures, said.text
