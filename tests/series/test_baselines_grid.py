"""Headlines beside baselines, on a tiny family."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import saekit
from saekit import cli
from saekit.analysis.probing import LastTokens
from saekit.family import Family
from saekit.series import baselines_grid as grid
from saekit.series import tables as series_tables
from saekit.series.bundling import config
from saekit.training import side_by_side

WIDTHS = (48, 128, 144)


def test_baselines_are_trained_as_the_bundled_dictionaries_are():
    found = grid.configs()
    assert [(one.decoder_cosine, one.variant.kind) for one in found] == [
        (1.0, "relu"),
        (1.0, "batchtopk"),
        (0.8, "relu"),
        (0.8, "batchtopk"),
    ]
    for one in found:
        assert replace(one, decoder_cosine=None) == config(one.variant.kind, 1152, 0)


@pytest.mark.slow
def test_every_headline_is_measured_once_on_dictionary_and_baselines(store, model, tmp_path, monkeypatch):
    def trained(width, **settings):
        variant = saekit.ReLU(target_l0=5)
        settings = saekit.TrainingConfig(variant, width=width, steps=60, batch_size=64, **settings)
        return saekit.train(settings, store, progress=False).dictionary

    family = Family(trained(width) for width in WIDTHS)
    held = trained(WIDTHS[1], decoder_cosine=1.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 16, generator=generator)
    sets = [LastTokens("toy", x, x[:, 0] > 0, kept_out=True)]
    for name, value in {
        "KINDS": ("relu",),
        "SMALLER": WIDTHS[0],
        "WIDTH": WIDTHS[1],
        "LARGER": WIDTHS[2],
        "META_STEPS": 5,
        "WINDOW": 4,
        "BUNDLED": tmp_path,
        "load_family": lambda kind: family,
        "load_model": lambda: model,
        "embedded_store": lambda part, progress: store,
        "harvested": lambda kept_out, progress: sets,
        "train_baselines": lambda progress: [held],
    }.items():
        monkeypatch.setattr(grid, name, value)
    monkeypatch.setattr(side_by_side, "load_model", lambda: model)
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    assert cli.main(["--quiet", "baselines"]) == 0
    monkeypatch.setattr(series_tables, "BUNDLED", tmp_path)
    table = series_tables.baselines_table()
    assert table["kind"].tolist() == [
        "relu",
        "relu-frozen-decoder",
        "relu-permuted-decoder",
        "relu-random-at-equal-l0",
    ]
    trained_row, held_row = table.iloc[0], table.iloc[1]
    assert trained_row["fvu"] == pytest.approx(saekit.evaluate(family[128], store).fvu)
    assert held_row["fvu"] == pytest.approx(saekit.evaluate(held, store).fvu)
    assert trained_row["fvu"] < held_row["fvu"]
    assert table["probing_auc_1"].iloc[2] == trained_row["probing_auc_1"]  # a probe sees no decoder
    measured = (
        "l0 fvu ce_degradation share_novel_cos share_novel_gain novel_auc fvu_after_insertion meta_explained "
        "share_shared multiple_choice detection_auc probing_auc_1 probing_auc_5"
    )
    assert set(measured.split()) <= set(table.columns)
    monkeypatch.setattr(grid, "headlines", lambda *args: None)  # nothing is measured again
    pd.testing.assert_frame_equal(grid.write_baselines(progress=False), table, check_dtype=False)
    monkeypatch.undo()  # from here on the table of the package
    assert series_tables.baselines_table().columns.tolist() == table.columns.tolist()
