"""Plots of stitching show their data, and their data the results."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from plot_checks import check_bundle, check_texts
from plots.test_plots import THETA, results

from saekit import plots
from saekit.analysis import build_frankenstein
from saekit.analysis.stitching.controls import CECurve, matched_curve, random_orders
from saekit.analysis.stitching.path import stitch, stitch_chain
from saekit.figures import render
from saekit.plots import stitching as stitching_plots
from saekit.plots.stitching import PHASE_NAMES


@cache
def stitchings():
    family, x = results().family, results().x
    return [stitch(family[12], family[24], x, theta=THETA), stitch(family[24], family[48], x, theta=THETA)]


@cache
def orders():
    family, x = results().family, results().x
    return [
        stitch(family[12], family[24], x, theta=THETA, order=order)
        for order in ("similarity", "static_gain", "greedy_gain")
    ]


@cache
def null():
    family, x = results().family, results().x
    return stitch(family.get(24, 0), family.get(24, 1), x, theta=THETA)


@cache
def controls():
    first = stitchings()[0]
    return random_orders(first, n=4), matched_curve(first, results().x, n_points=6)


@cache
def ce():
    steps = stitchings()[0].frame.iloc[::10]
    frame = steps[["step", "phase", "fvu", "l0"]].assign(ce_degradation=np.linspace(0.4, 0.2, len(steps)))
    return CECurve(stitchings()[0], frame, n_targets=1, n_passed_through=0)


@cache
def chain():
    return stitch_chain(results().family, results().x, theta=THETA)


@cache
def gathered():
    return build_frankenstein(results().family, results().x, theta=THETA)


BUILD = {
    "stitching_curve": lambda: plots.stitching_curve(
        stitchings()[0], null(), random=controls()[0], matched=controls()[1], ce=ce()
    ),
    "stitching_orders": lambda: plots.stitching_orders([*orders(), stitchings()[1]], [controls()[0]]),
    "stitching_chain": lambda: plots.stitching_chain([chain()]),
    "additivity": lambda: plots.additivity(stitchings()),
    "frankenstein": lambda: plots.frankenstein([gathered()]),
}


@cache
def plot(name):
    return BUILD[name]()


@pytest.mark.parametrize("name", BUILD)
def test_bundle(name, tmp_path):
    check_bundle(plot(name), name, tmp_path)


@pytest.mark.parametrize("name", BUILD)
def test_no_text_overlaps_or_leaves_the_figure(name):
    check_texts(plot(name).figure)


def lines_of(axes, n):
    """Lines of `n` points."""
    return [line for line in axes.lines if len(line.get_xdata()) == n]


def test_curve_draws_every_step_with_its_controls():
    found, frame = plot("stitching_curve"), stitchings()[0].frame
    main = found.figure.axes[::2]
    random, matched = controls()
    for axes, measure in zip(main, ("fvu", "l0"), strict=False):
        (curve,) = lines_of(axes, len(frame))
        np.testing.assert_array_equal(curve.get_xdata(), frame["step"])
        np.testing.assert_array_equal(curve.get_ydata(), frame[measure])
        (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
        np.testing.assert_array_equal(dashed.get_ydata(), matched.frame[f"{measure}_matched"])
        (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
        vertices = band.get_paths()[0].vertices
        for step, draws in random.frame.groupby("step")[measure]:
            at = vertices[vertices[:, 0] == step, 1]
            assert (at.min(), at.max()) == pytest.approx((draws.min(), draws.max()), abs=1e-12)
    (points,) = lines_of(main[2], len(ce().frame))
    np.testing.assert_array_equal(points.get_ydata(), ce().frame["ce_degradation"])


def test_curve_shades_each_phase_over_its_own_steps():
    phases = stitchings()[0].phases
    axes = plot("stitching_curve").figure.axes[0]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert spans == [(row.first_step - 1, row.last_step) for row in phases.itertuples()]


def test_curve_says_its_numbers():
    caption, frame = plot("stitching_curve").caption, stitchings()[0].frame
    for row in stitchings()[0].phases.itertuples():
        changes = np.diff(frame["fvu"])[row.first_step - 1 : row.last_step]
        assert f"{frame['fvu'][row.last_step]:.3f} once" in caption
        if (changes < 0).mean() > 0.005:
            assert f"({100 * (changes < 0).mean():.0f}% of {len(changes)} steps lower it)" in caption
    assert f"highest FVU along the path is {frame['fvu'].max():.3f}" in caption


def test_long_phases_of_a_chain_are_drawn_with_their_ends_and_extremes(monkeypatch):
    monkeypatch.setattr(stitching_plots, "DRAWN", 3)
    whole, found = plot("stitching_chain").data, plots.stitching_chain([chain()]).data
    assert len(found) < len(whole)
    keys, measures = ["kind", "series", "pair", "phase"], ["fvu", "l0"]
    for by in (lambda table: table.min(), lambda table: table.max()):
        pd.testing.assert_frame_equal(
            by(found.groupby(keys, dropna=False)[["step", *measures]]),
            by(whole.groupby(keys, dropna=False)[["step", *measures]]),
        )
    assert len(found.merge(whole)) == len(found)  # every row is one of the whole


def test_chain_goes_through_the_trained_dictionaries():
    found, frame = plot("stitching_chain"), chain().frame
    axes = found.figure.axes[0]
    trained = found.data[found.data["series"] == "trained"]
    assert list(trained["width"]) == results().family.widths
    by_width = {
        len(e.density): e
        for e in results().evaluations
        if (e.dictionary.kind, e.dictionary.seed) == ("relu", 0)
    }
    for row in trained.itertuples():
        assert row.fvu == pytest.approx(by_width[row.width].fvu, rel=1e-5)
        assert row.l0 == pytest.approx(by_width[row.width].l0, rel=1e-5)
    drawn = {
        point
        for line in axes.lines
        if line.get_linestyle() == "-"
        for point in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert drawn == set(zip(frame["width"], frame["fvu"], strict=True))


def test_additivity_shows_each_group_once():
    found = plot("additivity")
    for axes, result in zip(found.figure.axes, stitchings(), strict=True):
        groups = result.frame[result.frame["n_inserted"] + result.frame["n_removed"] > 1]
        drawn = np.concatenate(
            [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]
        )
        expected = groups[["sum_of_single_changes", "mse_change"]].to_numpy()
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
        assert (
            f"{len(groups)} groups, together {groups['mse_change'].sum():+.0f}".replace("-", "\u2212")
            in found.caption
        )


def test_frankenstein_draws_width_and_l0():
    found, frame = plot("frankenstein"), gathered().frame
    by_width, by_l0 = found.figure.axes
    trained, made = (frame[frame["kind"] == kind] for kind in ("trained", "frankenstein"))
    expected = [
        [
            (trained["width"], trained["fvu"]),
            (made["width"], made["fvu"]),
            (made["width"], made["fvu_matched"]),
        ],
        [
            (trained["l0"], trained["fvu"]),
            (made["l0"], made["fvu"]),
            (made["l0_matched"], made["fvu_matched"]),
        ],
    ]
    for axes, lines in zip((by_width, by_l0), expected, strict=True):
        for line, (x, y) in zip(axes.lines, lines, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), x)
            np.testing.assert_array_equal(line.get_ydata(), y)
    assert f"{gathered().summary['width']:,} latents, FVU {gathered().summary['fvu']:.3f}" in found.caption


def test_orders_are_a_line_each():
    found = plot("stitching_orders")
    axes = found.figure.axes[0]
    for result in orders():
        assert any(
            np.array_equal(line.get_ydata(), result.frame["fvu"])
            for line in lines_of(axes, len(result.frame))
        )
    assert len(found.figure.axes) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.stitching_chain([]), "at least one chain"),
        (lambda: plots.stitching_orders([]), "at least one stitching"),
        (lambda: plots.additivity([]), "at least one stitching"),
        (lambda: plots.frankenstein([]), "at least one result"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_controls_of_another_curve_are_not_drawn():
    family, x, first = results().family, results().x, stitchings()[0]
    seeds = family.get(24, 0), family.get(24, 1)
    for wrong, null in {
        r"theta 0\.7, found 0\.5": stitch(*seeds, x, theta=0.5),
        "order similarity, found static_gain": stitch(*seeds, x, theta=THETA, order="static_gain"),
        "3000 tokens": stitch(*seeds, x[:-1], theta=THETA),
        "A null is between relu 12": stitchings()[1],
    }.items():
        with pytest.raises(ValueError, match=wrong):
            plots.stitching_curve(first, null)
    greedy = stitch(family[12], family[24], x, theta=THETA, order="greedy_gain")
    strict = stitch(family[12], family[24], x, theta=0.9)
    for wrong in (
        {"random": random_orders(stitchings()[1], n=2)},
        {"random": random_orders(strict, n=2)},
        {"matched": matched_curve(greedy, x, n_points=3)},
        {"ce": CECurve(greedy, ce().frame, n_targets=1, n_passed_through=0)},
    ):
        with pytest.raises(ValueError, match="must be measured on the curve that is drawn"):
            plots.stitching_curve(first, **wrong)
    with pytest.raises(ValueError, match=r"Random orders of ReLU 12 → 24 belong to none"):
        plots.stitching_orders(orders(), [random_orders(strict, n=2)])
    again = stitch(family[12], family[24], x, theta=THETA)
    assert len(plots.stitching_curve(again, random=controls()[0], matched=controls()[1], ce=ce()).data)


def test_settings_that_differ_between_curves_are_not_recorded_as_one():
    assert "order" not in plots.stitching_orders(orders()).settings
    assert plots.stitching_orders(orders()).settings["theta"] == THETA
    loose = build_frankenstein(results().family, results().x, theta=0.5)
    with pytest.raises(ValueError, match=r"one theta, found 0\.7 and 0\.5"):
        plots.frankenstein([gathered(), loose])


def test_random_orders_stand_with_their_own_pair():
    second = random_orders(stitchings()[1], n=3)
    data = plots.stitching_orders([*orders(), stitchings()[1]], [second]).data
    assert set(data.loc[data["order"] == "random, min", "comparison"]) == {"ReLU 24 → 48"}


def test_curve_without_its_controls():
    single = plots.stitching_curve(stitchings()[0])
    assert len(single.figure.axes) == 2
    assert set(single.data["series"]) == {"stitched", "trained"}
    assert render(single.figure, "png").startswith(b"\x89PNG")


def test_every_phase_is_named_and_no_marker_of_the_ce_is_cut():
    figure = plot("stitching_curve").figure
    named = {text.get_text() for axes in figure.axes for text in axes.texts}
    named |= {text.get_text() for text in figure.legends[0].texts}
    phases = {phase for r in (stitchings()[0], null()) for phase in r.phases["phase"]}
    assert {PHASE_NAMES[phase] for phase in phases} <= named
    assert "bias" in phases, "a single step, too narrow for a name above it"
    (markers,) = (c for c in figure.axes[4].collections if isinstance(c, PathCollection))
    assert not markers.get_clip_on()
