"""The grid of probes, small: one kind, two widths and toy sets."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from dictionaries import make

from saekit import cli
from saekit.analysis.probing import ACTIVATIONS, LastTokens, probe
from saekit.corpora import KEPT_FOR_PROBING
from saekit.family import Family
from saekit.series import probing_grid as grid
from saekit.series import tables

NAMES = ["a", KEPT_FOR_PROBING[0], "b"]


def toy_set(name):
    generator = torch.Generator().manual_seed(NAMES.index(name))
    x = torch.randn(100, 12, generator=generator)
    y = x[:, 0] + torch.randn(100, generator=generator) > 0
    return LastTokens(name, x, y, kept_out=name in KEPT_FOR_PROBING)


def members():
    first = make(width=40)
    near = replace(make(width=20), **first.gather(slice(20)).tensors())
    return Family([replace(near, info={"kind": "relu", "seed": 0}), first])


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Where the table goes."""
    monkeypatch.setattr(grid, "KINDS", ("relu",))
    monkeypatch.setattr(grid, "PAIR", (20, 40))
    monkeypatch.setattr(grid, "KS", (1, 2))
    monkeypatch.setattr(grid, "BUNDLED", tmp_path)
    monkeypatch.setattr(tables, "BUNDLED", tmp_path)
    monkeypatch.setattr(grid, "load_family", lambda kind: members())
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(9))
    monkeypatch.setattr(grid, "embedded_store", lambda part, progress: x)
    monkeypatch.setattr(
        grid, "harvested", lambda names, progress: [toy_set(name) for name in (names or NAMES)]
    )
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    return tmp_path


def test_the_table_holds_every_dictionary_and_a_rerun_probes_only_what_is_missing(world, monkeypatch):
    probes = []
    monkeypatch.setattr(
        grid, "probe", lambda *args, **options: probes.append(args[1]) or probe(*args, **options)
    )
    grid.write_probing(NAMES[:2], progress=False)
    first = len(probes)
    assert cli.main(["--quiet", "probing"]) == 0
    again = probes[first:]
    assert first == len(again)
    assert all([one.name for one in sets] == ["b"] for sets in again)
    table = tables.probing_table()
    assert set(table["set"]) == set(NAMES)
    names = table["dictionary"].unique().tolist()
    assert names[:3] == [ACTIVATIONS, "relu 20 (seed 0)", "relu 40 (seed 0)"]
    assert {"relu 40, novel latents", "relu 40, reconstruction latents", "relu 20, random at equal L0"} < {
        *names
    }
    direct = probe({"x": members()[40]}, [toy_set("b")], ks=(1, 2), dense=False).frame
    rows = table[(table["dictionary"] == "relu 40 (seed 0)") & (table["set"] == "b")]
    assert rows["auc"].tolist() == direct["auc"].round(4).tolist()
    assert rows["latent"].tolist() == [latents[0] for latents in direct["latents"]]
    monkeypatch.setattr(grid, "probe", None)
    pd.testing.assert_frame_equal(grid.write_probing(progress=False).reset_index(drop=True), table)


def test_the_table_is_a_result_again(world):
    result = grid.as_result(grid.write_probing(progress=False))
    assert result.summary["n_sets"] == 3
    assert result.summary["n_kept_out"] == 1
    compared = result.compare().set_index(["dictionary", "k"])
    assert compared.loc[ACTIVATIONS, 1]["difference"] == 0
    assert len(result.plot().figure.axes) == 2
