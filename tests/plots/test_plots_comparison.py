"""The plot of matched groups: its data, its words, what it refuses."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from dictionaries import make
from plot_checks import check_bundle, check_texts

from saekit import plots

NAMES = ["nothing", "a", "b", "c"]


def comparison():
    index = pd.Index(NAMES, name="name")
    frame = pd.DataFrame({"width": [5, 7, 7, 7], "l0": 3.0, "fvu": 0.2, "ce_degradation": 0.1}, index=index)
    against = pd.DataFrame(
        {
            "fvu_difference": [0, -0.01, -0.02, 0.03],
            "fvu_difference_error": 0.001,
            "ce_difference": [0, -0.1, -0.2, 0.05],
            "ce_difference_error": 0.01,
        },
        index=index,
    )
    return SimpleNamespace(
        frame=frame,
        against=lambda name: against,
        evaluations=[SimpleNamespace(n_tokens=1000, n_excluded=10, dictionary=make().identity)],
        summary={"n_rows": 4, "n_targets": 500},
    )


@pytest.fixture
def found():
    return plots.group_comparison(comparison(), "nothing", {"a": "helps", "b": "helps", "c": "hurts"})


def test_bundle(found, tmp_path):
    check_bundle(found, "group_comparison", tmp_path)
    check_texts(found.figure)


def test_it_shows_what_was_asked_for(found):
    assert found.data["name"].tolist() == ["a", "b", "c"]
    assert found.data["group"].tolist() == ["helps", "helps", "hurts"]
    assert "helps: FVU \u22120.0150, cross-entropy \u22120.1500" in found.caption
    points = [line.get_xydata() for line in found.figure.axes[0].get_lines() if len(line.get_xydata())]
    drawn = np.concatenate([p for p in points if p.shape[1] == 2])
    for x, y in found.data[["fvu_difference", "ce_difference"]].to_numpy():
        assert (np.abs(drawn - [x, y]).max(axis=1) < 1e-12).any()


def test_no_groups_are_refused():
    with pytest.raises(ValueError, match="one to 6 cases, found 0"):
        plots.group_comparison(comparison(), "nothing", {})
