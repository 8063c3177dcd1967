"""The grid of edits calls the analysis for every dictionary, keeps what it measured, and writes one table."""

from types import SimpleNamespace

import pandas as pd
import pytest
from toy_edits import make_edits

from saekit import cli
from saekit.loading.names import BUNDLED
from saekit.series import edits_grid as grid
from saekit.series import tables


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Dictionaries by name, and the calls that were made with them."""
    calls = []

    def measure(model, dictionary, facts, templates, store, **settings):
        calls.append((dictionary.content_hash, sorted(facts["kind"].unique()), [*templates], settings))
        assert facts.groupby("entity")["known"].all().all()
        return make_edits()

    facts = tables.facts_table()
    for module in (grid, tables):
        monkeypatch.setattr(module, "BUNDLED", tmp_path)
    monkeypatch.setattr(grid, "facts_table", lambda: facts)
    monkeypatch.setattr(grid, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(grid, "measure_edits", measure)
    monkeypatch.setattr(grid, "load_model", lambda: None)
    monkeypatch.setattr(grid, "embedded_store", lambda part, progress: None)
    widths = (1152, 9216)
    monkeypatch.setattr(
        grid,
        "load_family",
        lambda kind: {width: SimpleNamespace(content_hash=f"{kind} {width}") for width in widths},
    )
    return calls


def test_every_dictionary_edits_what_the_model_knows_and_a_rerun_reads_it(world):
    assert cli.main(["--quiet", "edits"]) == 0
    found = tables.edits_table()
    names = ["relu 1152", "relu 9216", "batchtopk 1152", "batchtopk 9216"]
    assert [call[0] for call in world] == names * 2
    assert [call[1] for call in world] == [["city"]] * 4 + [["country"]] * 4
    assert world[0][2] == ["country", "continent", "language"]
    assert world[4][2] == ["capital", "continent", "language"]
    assert world[0][3] == {"sizes": (2, 8, 32), "n_pairs": 8, "n_text": 4}
    expected = make_edits().table
    assert len(found) == 8 * len(expected)
    part = found.query("entities == 'country' and kind == 'batchtopk' and width == 9216")
    pd.testing.assert_frame_equal(
        part[expected.columns].reset_index(drop=True),
        expected,
        check_exact=False,
        rtol=1e-3,
        check_dtype=False,
    )
    before = len(world)
    pd.testing.assert_frame_equal(grid.write_edits(progress=False), found)
    assert len(world) == before


def test_the_bundled_table_has_its_baselines_beside_every_dictionary():
    table = pd.read_csv(BUNDLED / "edits.csv")
    keys = ["entities", "kind", "width"]
    assert len(table.drop_duplicates(keys)) == 2 * len(grid.KINDS) * len(grid.WIDTHS)
    methods = table.groupby(keys)["method"].agg(set)
    baselines = {"activation patching", "difference of means", "neurons", "principal components"}
    assert all({"latents", "random direction", *baselines} <= found for found in methods)
    for measure in ("cause", "isolation", "disentangle", "damage"):
        assert (table[f"{measure}_low"] <= table[measure] + 1e-9).all()
        assert (table[f"{measure}_high"] >= table[measure] - 1e-9).all()
    # What does not depend on the dictionary is the same beside each.
    for entities, part in table[table["method"] == "neurons"].groupby("entities"):
        assert part.groupby("n")["cause"].nunique().eq(1).all(), entities
