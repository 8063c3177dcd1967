"""Every dot is a number of the table."""

import pandas as pd
import pytest
from plot_checks import check_bundle, check_texts

import saekit
from saekit import plots
from saekit.figures import render


def test_dots_are_the_table(tmp_path):
    table = saekit.baselines_table()
    plot = plots.baseline_dots(table)
    panels = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "trained",
        "permuted",
        "soft-frozen",
        "frozen",
        "random",
    ]
    order = ["", "-permuted-decoder", "-soft-frozen-decoder", "-frozen-decoder", "-random-at-equal-l0"]
    for axes, column in ((panels[0], "fvu"), (panels[4], "novel_auc"), (panels[-1], "probing_auc_1")):
        dots = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
        for line, kind in zip(dots, ("relu", "batchtopk"), strict=True):
            expected = table.set_index("kind")[column].loc[[kind + suffix for suffix in order]]
            assert list(line.get_xdata()) == pytest.approx(expected.tolist(), nan_ok=True)
    check_texts(plot.figure)
    check_bundle(plot, "baseline_dots", tmp_path)
    assert render(plot.figure, "svg") == render(plots.baseline_dots(table).figure, "svg")


def test_a_table_of_one_s_own_shows_what_it_has():
    rows = [("relu", 0.2), ("relu-random-at-equal-l0", 0.8)]
    table = pd.DataFrame(rows, columns=["kind", "fvu"])
    plot = plots.baseline_dots(table)
    assert plot.data["value"].tolist() == [0.2, 0.8]
    assert sum(axes.get_visible() for axes in plot.figure.axes) == 1
    with pytest.raises(ValueError, match="no trained dictionary"):
        plots.baseline_dots(table[1:])
    with pytest.raises(ValueError, match="none of the headlines"):
        plots.baseline_dots(table[["kind"]])
