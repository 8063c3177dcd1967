"""Figures of worlds with known features: their numbers are those of the tables, and captions state them."""

import pandas as pd
import pytest

from saekit.plots import hedging_scatter, overshoot_parts_bars, recovery_by_width


def test_recovery_has_the_mean_and_range_over_seeds():
    rows = [
        ("w", kind, width, seed, 0.1 * seed + width / 10 + 0.05 * (kind == "pca"))
        for kind in ("relu", "pca")
        for width in (2, 4)
        for seed in (0, 1, 2)
    ]
    table = pd.DataFrame(rows, columns=["world", "kind", "width", "seed", "mcc"])
    plot = recovery_by_width(table)
    row = plot.data.set_index(["kind", "width"]).loc[("relu", 4)]
    assert row[["mean", "min", "max"]].tolist() == pytest.approx([0.5, 0.4, 0.6])
    assert "w: PCA 4 at 0.55" in plot.caption


def test_bars_are_the_parts_and_the_caption_their_share():
    columns = [
        "kind",
        "small",
        "large",
        "null",
        "group",
        "ideal",
        "carried",
        "interaction",
        "change",
        "carried_share",
    ]
    rows = [
        ("relu", 2, 4, False, "novel_cos", -4.0, 1.0, 5.0, 2.0, 0.125),
        ("relu", 4, 4, True, "novel_cos", -4.0, 1.0, 0.0, -3.0, 0.9),
    ]
    plot = overshoot_parts_bars(pd.DataFrame(rows, columns=columns))
    heights = [bar.get_height() for bar in plot.figure.axes[0].patches]
    assert heights == [-4, -4, 1, 1, 5, 0]
    assert "ReLU 12%" in plot.caption  # of the pairs of widths alone


def test_hedging_is_drawn_as_a_share_of_the_power_inserted():
    columns = ["kind", "seed", "large", "score", "ideal", "change"]
    rows = [
        ("relu", 0, "true", 0.1, -4.0, -3.0),
        ("relu", 1, "true", 0.6, -2.0, 1.0),
        ("batchtopk", 0, "true", float("nan"), -2.0, 1.0),  # no score
        ("relu", 0, "trained", 0.2, 0.0, 0.0),  # nothing was inserted
        ("relu", 1, "trained", 0.2, -1.0, -1.0),
        ("relu", 2, "trained", 0.1, -1.0, 0.5),
    ]
    by_hand = pd.DataFrame({"alpha": [0.0, 0.5], "score": [0.0, 0.5], "ideal": -1.0, "change": [-1.0, 0.2]})
    plot = hedging_scatter(pd.DataFrame(rows, columns=columns), by_hand)
    assert plot.data["relative_change"].tolist() == [-0.75, 0.5, -1.0, 0.5, -1.0, 0.2]
    points = plot.figure.axes[0].lines[0]
    assert points.get_xydata().tolist() == [[0.1, -0.75], [0.6, 0.5]]
    assert "true 1.00; trained -1.00; by hand 1.00" in plot.caption
