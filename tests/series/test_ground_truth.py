"""The grid of toy worlds, shrunk: it resumes, and its rows are counted by hand."""

import pandas as pd
import pytest

from saekit.series import ground_truth
from saekit.synthetic import nabeshima_tree, shapes_and_colours

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    worlds = {
        "nabeshima_tree": (nabeshima_tree, (4, 8), (1, 1)),
        "shapes_and_colours": (shapes_and_colours, (6, 9), (2, 1)),
    }
    changes = {"WORLDS": worlds, "STEPS": 15, "BATCH_SIZE": 64, "N_SAMPLES": 1500, "SEEDS": (0, 1)}
    for name, value in changes.items():
        monkeypatch.setattr(ground_truth, name, value)
    monkeypatch.setattr(ground_truth, "BUNDLED", tmp_path)
    monkeypatch.setattr(ground_truth, "META", ground_truth.Recipe("toy", lr=1e-3, steps=3, batch=1e6))
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    return tmp_path


def test_tables_are_written_and_training_resumes(tiny, monkeypatch):
    ground_truth.write_truth(progress=False)
    recovery, novelty = ground_truth.truth_table("recovery"), ground_truth.truth_table("novelty")
    saes = recovery[recovery["kind"].isin(["relu", "batchtopk", "matryoshka"])]
    assert len(saes) == 2 * 3 * 2 * 2  # worlds, kinds, widths, seeds
    assert saes["mcc"].between(0, 1).all()
    assert set(novelty["depth"]) == {-1, 0, 1}
    whole = novelty[novelty["depth"] == -1]
    assert len(whole) == 2 * 3 * 2
    assert (whole["n_new"] <= whole["n"]).all()
    monkeypatch.setattr(ground_truth, "train", None)  # nothing is trained again
    ground_truth.write_truth(progress=False)
    pd.testing.assert_frame_equal(ground_truth.truth_table("recovery"), recovery)
