"""The probing curves show the table of their result."""

from functools import cache

import numpy as np
import pytest
import torch
from dictionaries import make
from plot_checks import check_bundle, check_texts

from saekit import plots
from saekit.analysis.probing import LastTokens, probe
from saekit.figures import render


@cache
def result():
    generator = torch.Generator().manual_seed(0)
    sets = []
    for number in range(4):
        x = torch.randn(100, 12, generator=generator)
        y = x[:, number] + torch.randn(100, generator=generator) > 0
        sets.append(LastTokens(f"set {number}", x, y, kept_out=number < 2))
    return probe({"wide": make(), "narrow": make(width=20)}, sets, ks=[1, 4])


def test_curves_are_the_table(tmp_path):
    plot = result().plot()
    assert plot.data.equals(result().table)
    panels = plot.figure.axes
    assert len(panels) == 2
    for axes, kept_out in zip(panels, (False, True), strict=True):
        assert "(2 sets)" in axes.get_title(loc="left")
        for line, name in zip(axes.containers, ("wide", "narrow", "activations"), strict=True):
            table = result().table
            part = table[(table["dictionary"] == name) & (table["kept_out"] == kept_out)]
            x, y = (np.asarray(values, float) for values in line.lines[0].get_data())
            np.testing.assert_allclose(y, part["auc"].to_numpy(float))
            beside = x / part["k"].to_numpy(float)  # moved aside, each dictionary by its own factor
            np.testing.assert_allclose(beside, beside[0])
            assert abs(np.log2(beside[0])) < 0.2
    check_texts(plot.figure)
    check_bundle(plot, "probing_curves", tmp_path)
    assert render(plot.figure, "svg") == render(result().plot().figure, "svg")


def test_some_dictionaries_alone_can_be_shown():
    plot = plots.probing_curves(result(), ["narrow"])
    assert set(plot.data["dictionary"]) == {"narrow"}
    with pytest.raises(ValueError, match="must be one of 'wide'"):
        plots.probing_curves(result(), ["other"])
