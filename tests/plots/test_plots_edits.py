"""The plot of edits shows every method of the table, with its intervals."""

import numpy as np
from plot_checks import check_bundle, check_texts
from toy_edits import METHODS, make_edits

from saekit.figures import render


def test_the_figure_is_whole_readable_and_the_same_every_time(tmp_path):
    plot = make_edits().plot()
    check_texts(plot.figure)
    check_bundle(plot, "edits", tmp_path)
    assert render(plot.figure, "svg") == render(make_edits().plot().figure, "svg")


def test_there_is_a_mark_for_every_method():
    edits = make_edits()
    plot = edits.plot()
    assert len(plot.data) == len(METHODS)
    plane, damage = plot.figure.axes
    for axes, x in ((plane, "isolation"), (damage, "damage")):
        shown = [tuple(marker.get_offsets()[0]) for marker in axes.collections]
        expected = plot.data[[x, "cause"]].itertuples(index=False, name=None)
        np.testing.assert_allclose(sorted(shown), sorted(expected))
    for name in dict(METHODS):
        assert name in plot.alt
