"""Plots of uniqueness show their data, and their data the results."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from dictionaries import make
from matplotlib.patches import StepPatch
from plot_checks import check_bundle, check_texts

from saekit import plots
from saekit.analysis import family_uniqueness
from saekit.family import Family
from saekit.figures import render
from saekit.plots.uniqueness import BINS, FEWEST

THETA, TOKENS = 0.6, 500


def second_seed(first, noise):
    generator = torch.Generator().manual_seed(5)
    rows = first.W_dec + noise * torch.rand(first.width, 1, generator=generator) * torch.randn(
        first.W_dec.shape, generator=generator
    )
    rows = torch.nn.functional.normalize(rows, dim=1)
    return replace(first, W_dec=rows, info={"kind": "relu", "seed": 1})


@cache
def result(activations=True):
    first = make(width=60)
    family = Family([first, second_seed(first, 0.8), make(width=90)])
    x = torch.randn(TOKENS, 12, generator=torch.Generator().manual_seed(4))
    return family_uniqueness(family, theta=THETA, activations=x if activations else None)


def test_distributions_are_histograms_of_the_frames():
    plot = plots.uniqueness_distributions(result())
    assert set(plot.data["measure"]) == {"matched_cosine", "best_cosine"}
    for (measure, comparison, null), bins in plot.data.groupby(["measure", "comparison", "null"]):
        values = result().results[comparison, null].frame[measure].dropna()
        assert bins["share"].sum() == pytest.approx(1)
        inside = (values >= 0.5) & (values < 1)
        shown = bins.loc[bins["cosine_from"] >= 0.5 - 1e-9, "share"].sum()
        assert shown == pytest.approx(inside.mean())
    # Other seed, next width and one set of nulls in each panel.
    panels = plot.figure.axes
    assert len(panels) == 2
    for axes, measure in zip(panels, ("matched_cosine", "best_cosine"), strict=True):
        stairs = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        assert len(stairs) == 4
        filled = next(patch for patch in stairs if patch.get_fill())
        seeds = plot.data[(plot.data["measure"] == measure) & (plot.data["other"] == "other seed")]
        seeds = seeds[seeds["null"] == ""]
        np.testing.assert_allclose(filled.get_data().values, seeds["share"])
        assert np.diff(filled.get_data().edges) == pytest.approx(1 / BINS)
    assert "There is no second seed of width 90" in plot.caption


def test_curves_are_the_shares_of_pairs_under_theta():
    plot = plots.unmatched_curve([result()])
    frame = result().results["60, other seed", ""].frame
    rows = plot.data[(plot.data["comparison"] == "60, other seed") & (plot.data["null"] == "")]
    for theta in (0.25, 0.6, 1.0):
        share = rows.loc[rows["theta"] == theta, "share_matched_under"].iloc[0]
        assert share == pytest.approx((frame["matched_cosine"] < np.float32(theta)).mean())
    lines = [line for line in plot.figure.axes[0].get_lines() if len(line.get_xdata()) == 101]
    assert len(lines) == 6
    assert any(np.array_equal(line.get_ydata(), rows["share_matched_under"]) for line in lines)
    shared = 1 - rows.loc[rows["theta"] == THETA, "share_matched_under"].iloc[0]
    assert f"60, other seed {100 * shared:.0f}%" in plot.caption


def test_density_bins_hold_every_living_latent():
    plot = plots.uniqueness_by_density([result()])
    frame = result().results["60, other seed", ""].frame
    alive = frame[~frame["dead"]]
    for status, count in alive["status"].value_counts().items():
        assert plot.data[status].sum() == count
    for row in plot.data.itertuples():
        inside = alive[(alive["density"] >= row.density_from) & (alive["density"] < row.density_to)]
        assert row.shared + row.crowded + row.alone == len(inside)
        if len(inside) < FEWEST:  # not drawn, and so not in the data
            assert np.isnan(row.share_lacking)
        else:
            lacking = (inside["status"] != "shared").mean()
            assert row.share_lacking == pytest.approx(lacking)
            assert row.low - 1e-12 <= lacking <= row.high + 1e-12
    shown = plot.figure.axes[0].get_lines()[0]
    totals = plot.data[["shared", "crowded", "alone"]].sum(axis=1)
    assert len(shown.get_xdata()) == (totals >= FEWEST).sum() > 0
    assert f"{TOKENS:,} tokens" in plot.caption


def test_density_needs_seeds_and_activations():
    with pytest.raises(ValueError, match="compared with activations"):
        plots.uniqueness_by_density([result(activations=False)])
    with pytest.raises(ValueError, match="second seeds"):
        plots.uniqueness_by_density([family_uniqueness(Family([make(width=20), make(width=30)]))])


def test_results_of_two_thetas_are_refused():
    other = family_uniqueness(Family([make(width=20), make(width=30)]), theta=0.5)
    for draw in (plots.unmatched_curve, plots.uniqueness_by_density):
        with pytest.raises(ValueError, match="results of one theta"):
            draw([result(), other])
        with pytest.raises(ValueError, match="at least one result, found none"):
            draw([])


DRAW = {
    "distributions": lambda: plots.uniqueness_distributions(result()),
    "curve": lambda: plots.unmatched_curve([result()]),
    "density": lambda: plots.uniqueness_by_density([result()]),
}


@pytest.mark.parametrize("name", DRAW)
def test_figures_are_whole_readable_and_the_same_every_time(name, tmp_path):
    plot = DRAW[name]()
    check_texts(plot.figure)
    check_bundle(plot, name, tmp_path)
    assert render(plot.figure, "svg") == render(DRAW[name]().figure, "svg")
