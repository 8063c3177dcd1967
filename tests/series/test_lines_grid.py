"""The grid of words and maps, small: toy text in which days lie around a circle, and the tiny model."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from dictionaries import make
from toy_stores import in_memory

from saekit import cli
from saekit.dictionary import Dictionary
from saekit.series import lines_grid as grid

VOCABULARY = [*(f" {day}" for day in grid.WORDS["days"]), " the", " may", " of"]
D_IN = 6


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Where the tables go; days around a circle, each with a latent of its own."""
    generator = torch.Generator().manual_seed(0)
    turn = 2 * math.pi * torch.arange(7) / 7
    rows = torch.zeros(len(VOCABULARY), D_IN)
    rows[:7, 0], rows[:7, 1], rows[:7, 2] = turn.cos(), turn.sin(), 2.0
    rows[7, 3] = rows[8, 4] = rows[9, 5] = 1.0
    rows = torch.nn.functional.normalize(rows, dim=1)
    tokens = torch.randint(len(VOCABULARY), (40, 32), generator=generator)
    x = rows[tokens.flatten()] * (1 + 0.04 * torch.rand(tokens.numel(), 1, generator=generator))
    x = x + 0.01 * torch.randn(x.shape, generator=generator)
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    store = in_memory(x.view(40, 32, D_IN), tokens=tokens, special=nowhere, excluded=nowhere)
    info = {"kind": "relu", "hook_point": "toy"}
    n = len(VOCABULARY)
    dictionary = Dictionary(
        rows.T, torch.zeros(n), rows, torch.zeros(D_IN), torch.full((n,), 0.97), info=info
    )
    tokenizer = range(n)
    monkeypatch.setattr(grid, "BUNDLED", tmp_path)
    monkeypatch.setattr(grid, "KINDS", ("relu",))
    monkeypatch.setattr(grid, "WIDTHS", (n,))
    monkeypatch.setattr(grid, "SAMPLED", 500)
    monkeypatch.setattr(grid, "load_family", lambda kind: {n: dictionary})
    monkeypatch.setattr(grid, "embedded_store", lambda part, progress: store)
    monkeypatch.setattr(grid, "load_model", lambda **options: SimpleNamespace(tokenizer=tokenizer))
    monkeypatch.setattr(grid, "maps_rows", lambda *, progress: pd.DataFrame({"source": [12]}))
    monkeypatch.setattr(grid, "token_strings", lambda tokenizer, ids: [VOCABULARY[i] for i in ids])
    return store


def test_days_in_a_circle_are_found_in_activations_and_in_the_latents_about_them(world):
    assert cli.main(["--quiet", "lines"]) == 0
    words = grid.lines_table("words").set_index(["words", "points"])
    days = words.loc["days"]
    assert days.index.tolist() == ["activations", "reconstruction", "its latents"]
    assert (days["order"] > 0.99).all()
    assert (days["p_value"] < 0.02).all()
    assert days.at["its latents", "n_latents"] == 7
    cosines = [(math.cos(2 * math.pi * i / 7) + 4) / 5 for i in range(1, 7)]
    assert days.at["its latents", "mean_cosine"] == pytest.approx(sum(cosines) / 6, rel=1e-4)
    assert days.at["activations", "n_points"] == int((world.tokens < 7).sum())
    # " may" is a verb, and no month is one token of this vocabulary.
    for name in ("months", "years"):
        assert words.loc[name]["n_points"].tolist() == [0]
    circle = grid.circle_of("days", "its latents", "relu", len(VOCABULARY))
    assert circle.order == pytest.approx(days.at["its latents", "order"])
    assert circle.frame["word"].tolist() == list(grid.WORDS["days"])
    with pytest.raises(ValueError, match="hold no circle of months"):
        grid.circle_of("months", "activations")
    with pytest.raises(ValueError, match="name must be one of"):
        grid.lines_table("circle")


def test_maps_are_measured_in_the_model_with_a_dictionary(model, store, monkeypatch, tmp_path):
    manifest = store.manifest["model"]
    info = {"kind": "relu", "hook_point": store.hook_point, "model": manifest["name"]}
    info |= {f"model_{name}": manifest[name] for name in ("weights", "revision", "processing")}
    dictionary = replace(make(d_in=16), info=info)
    monkeypatch.setattr(grid, "CARRIED", ("relu", 40))
    monkeypatch.setattr(grid, "MAP_ROWS", 2)
    monkeypatch.setattr(grid, "RANKS", (2,))
    monkeypatch.setattr(grid, "load_family", lambda kind: {40: dictionary})
    monkeypatch.setattr(grid, "load_model", lambda: model)
    monkeypatch.setattr(grid, "layer_store", lambda layer, model, progress: store)
    result = grid.mapped(grid.OF_SAES, 13)
    assert list(result.maps) == ["affine", "rank 2", "mean", "random orthogonal", "identity"]
    assert result.frame.set_index("map")["fvu"]["identity"] == 0  # the two stores are one
    assert result.carried["back"].value_counts().to_dict() == {"pseudoinverse": 4, "fitted": 1}
    assert result.frame["ce_degradation"].notna().all()
    # In the table: carried from its layer, native at it, and the numbers of each pair.
    monkeypatch.setattr(grid, "PAIRS", ((grid.OF_SAES, 13), (13, grid.OF_SAES)))
    monkeypatch.setattr(grid, "BUNDLED", tmp_path)
    grid._write("maps", grid.maps_rows())
    table = grid.lines_table("maps")
    there, back = (part for _, part in table.groupby("source", sort=True))
    assert there["points"].tolist() == 5 * ["activations"] + 5 * ["reconstruction"]
    assert there["fvu"].tolist() == pytest.approx(
        [*result.frame["fvu"], *result.carried["fvu"]], rel=1e-5, abs=1e-12
    )
    assert back["map"].tolist() == [*result.frame["map"], "native"]
    assert (table["n_held_out"] == result.n_held_out).all()
