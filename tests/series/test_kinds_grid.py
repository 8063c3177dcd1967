"""The grid of kinds, small: two kinds and two sparsities on a tiny store."""

from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from dictionaries import make

from saekit import cli
from saekit.metrics import ce_degradation, evaluate
from saekit.series import kinds_grid as kinds
from saekit.series import tables as series_tables
from saekit.training import side_by_side
from saekit.training.variants import VARIANTS

pytestmark = pytest.mark.slow  # one set-up of seconds serves the whole module

GRID = {
    "VARIANTS": {kind: VARIANTS[kind] for kind in ("relu", "topk")},
    "WIDTHS": (24,),
    "ACTIVE": (3, 6),
    "HISTOGRAM": (24, 3),
    "STEPS": 40,
    "BATCH_SIZE": 64,
}


@pytest.fixture(scope="module")
def world(store, model, tmp_path_factory):
    """Tables that the command wrote, and how to run it again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in GRID.items():
            patch.setattr(kinds, name, value)
        tables = tmp_path_factory.mktemp("tables")
        patch.setattr(kinds, "BUNDLED", tables)
        patch.setattr(series_tables, "BUNDLED", tables)
        patch.setattr(kinds, "embedded_store", lambda part, progress: store)
        patch.setattr(side_by_side, "load_model", lambda: model)
        patch.setenv("SAEKIT_HOME", str(tmp_path_factory.mktemp("home")))
        assert cli.main(["--quiet", "kinds"]) == 0
        patch.setattr(side_by_side, "in_processes", None)  # from here on nothing is trained
        yield SimpleNamespace(tables=tables, trained=kinds.train_kinds(progress=False))


def test_the_table_has_a_row_for_every_dictionary(world, store, model):
    table = series_tables.kinds_table()
    assert list(zip(table["kind"], table["width"], table["target_l0"], strict=True)) == [
        ("relu", 24, 3),
        ("relu", 24, 6),
        ("topk", 24, 3),
        ("topk", 24, 6),
    ]
    assert set(table["tokens"]) == {40 * 64}
    assert set(table["steps"]) == {40}
    dictionaries = [dictionary for _, dictionary in world.trained]
    ce = ce_degradation(model, dictionaries, store, max_rows=side_by_side.CE_ROWS).frame
    for row, dictionary, expected in zip(table.itertuples(), dictionaries, ce.itertuples(), strict=True):
        evaluation = evaluate(dictionary, store)
        assert row.kind == dictionary.kind
        assert row.l0 == pytest.approx(evaluation.l0, rel=1e-12)
        assert row.fvu == pytest.approx(evaluation.fvu, rel=1e-12)
        assert row.dead_fraction == evaluation.dead_fraction
        assert row.ce_degradation == pytest.approx(expected.ce_degradation, rel=1e-6, abs=1e-9)
        assert row.loss_recovered_zero == pytest.approx(expected.loss_recovered_zero, rel=1e-6)
    topk = table[table["kind"] == "topk"]
    assert (topk["l0"] <= topk["target_l0"]).all()


def test_a_second_call_trains_nothing_and_writes_the_same(world):
    before = {file.name: file.read_bytes() for file in world.tables.iterdir()}
    assert set(before) == {"kinds.csv", "kinds_l0.csv"}
    again = kinds.write_tables(progress=False)
    assert {file.name: file.read_bytes() for file in world.tables.iterdir()} == before
    pd.testing.assert_frame_equal(again, series_tables.kinds_table())


def test_other_settings_have_another_folder(world, store, monkeypatch):
    first = kinds.trained_folder(kinds.configs()[0], store)
    assert (first / "dictionary.json").exists()
    monkeypatch.setattr(kinds, "STEPS", 44)
    assert kinds.trained_folder(kinds.configs()[0], store) != first


def test_the_histogram_is_of_one_width_and_sparsity(world, store):
    table = series_tables.kinds_l0_table()
    assert list(dict.fromkeys(table["kind"])) == ["relu", "topk"]
    for config, dictionary in world.trained:
        if kinds.target_l0(config) == 3:
            part = table[table["kind"] == dictionary.kind]
            assert part["tokens"].sum() == len(store.positions)
            mean = (part["active"] * part["tokens"]).sum() / part["tokens"].sum()
            assert mean == pytest.approx(evaluate(dictionary, store).l0, rel=1e-12)


def test_histogram_against_brute_force():
    x = torch.randn(700, 12, generator=torch.Generator().manual_seed(1))
    dictionaries = [make(width=40), make(width=20, seed=1)]
    table = kinds.active_histogram(dictionaries, x)
    for dictionary in dictionaries:
        expected = Counter(sum(value > 0 for value in row) for row in dictionary.encode(x).tolist())
        part = table[table["width"] == dictionary.width]
        assert dict(zip(part["active"], part["tokens"], strict=True)) == expected
        assert part["active"].is_monotonic_increasing


def test_every_kind_has_a_setting_for_its_sparsity():
    for variant in VARIANTS.values():
        assert getattr(variant(**{variant.sparsity: 16}), variant.sparsity) == 16


def test_the_learning_rate_falls_with_the_root_of_the_width(world):
    for config, _ in world.trained:
        assert config.lr == pytest.approx(kinds.LEARNING_RATE * (1152 / 24) ** 0.5)
        assert config.seed == 0
