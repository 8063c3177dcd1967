"""Bars of maps show their table."""

from functools import cache

import pandas as pd
import pytest
import torch
from dictionaries import make
from plot_checks import check_bundle, check_texts

from saekit.analysis.maps import measure_maps
from saekit.figures import render
from saekit.plots import map_pairs


@cache
def result(*, ce):
    """Maps between toy activations; CE degradation is made up, since it is measured elsewhere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator)
    y = x @ torch.randn(12, 12, generator=generator) + torch.randn(400, 12, generator=generator)
    found = measure_maps(x, y, make(d_in=12), native=make(d_in=12, seed=1), ranks=[2, 4])
    if ce:
        for frame in (found.frame, found.carried):
            frame["ce_degradation"] = 0.1 + frame["fvu"] / 2
            frame["ce_degradation_error"] = 0.05
    return found


@pytest.mark.parametrize("ce", [True, False])
def test_figures_are_whole_readable_and_the_same_every_time(ce, tmp_path):
    plot = result(ce=ce).plot()
    check_texts(plot.figure)
    check_bundle(plot, "maps", tmp_path)
    assert render(plot.figure, "svg") == render(result(ce=ce).plot().figure, "svg")


def test_there_is_a_bar_for_every_row():
    plot = result(ce=True).plot()
    assert len(plot.data) == len(result(ce=True).frame) + len(result(ce=True).carried)
    for axes, measure, longest in zip(plot.figure.axes, ("fvu", "ce_degradation"), (1.2, 4.0), strict=True):
        shown = [bar.get_width() for bar in axes.patches]
        assert sorted(shown) == pytest.approx(sorted(plot.data[measure].clip(upper=longest)))


def test_pairs_of_layers_have_a_dot_for_every_map_of_the_table(tmp_path):
    parts = []
    for source, target in ((12, 13), (6, 12)):
        found = result(ce=True)
        maps = found.frame.replace({"map": {"rank 4": "rank 64"}}).assign(points="activations", back="")
        carried = found.carried.assign(points="reconstruction")
        carried = carried[carried["map"] == "native"] if target == 12 else carried[carried["map"] != "native"]
        sizes = {"n_fitted": found.n_fitted, "n_held_out": found.n_held_out}
        parts += [part.assign(source=source, target=target, **sizes) for part in (maps, carried)]
    table = pd.concat(parts, ignore_index=True)
    plot = map_pairs(table)
    check_texts(plot.figure)
    check_bundle(plot, "map_pairs", tmp_path)
    assert plot.data["shown"].value_counts().to_dict() == {
        "affine map": 2,
        "map of rank 64": 2,
        "random rotation": 2,
        "no map": 2,
        "SAE carried by affine maps": 1,
        "SAE trained there": 1,
    }
    for axes, measure in zip(plot.figure.axes, ("fvu", "ce_degradation"), strict=True):
        drawn = [x for dots in axes.containers for x in dots[0].get_xdata()]
        assert sorted(drawn) == pytest.approx(sorted(plot.data[measure]))
