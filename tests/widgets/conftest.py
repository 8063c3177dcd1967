from dataclasses import replace

import pytest
import torch
from toy_world import make_world

from saekit.family import Family


@pytest.fixture(scope="session")
def world():
    return make_world()


@pytest.fixture(scope="session")
def wide_atlas(world):
    """The atlas of a dictionary of 49,152 random latents on the same tokens."""
    from saekit.widgets import build_atlas

    width = 49_152
    noise = torch.randn(width, 12, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(noise, dim=1)
    wide = replace(
        world.family[8], W_enc=rows.T.contiguous(), b_enc=torch.zeros(width), W_dec=rows,
        threshold=torch.full((width,), 1.5), info={"kind": "relu", "seed": 0, "hook_point": "toy"},
    )  # fmt: skip
    vocabulary = world.evidence[8].vocabulary
    return build_atlas(Family([wide]), world.store, vocabulary=vocabulary, keep=False, progress=False)


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Errors of callbacks are raised, and no widget outlives its test."""
    from ipywidgets import Widget

    monkeypatch.setenv("SAEKIT_STRICT", "1")
    monkeypatch.delenv("SAEKIT_STATIC", raising=False)
    yield
    Widget.close_all()
