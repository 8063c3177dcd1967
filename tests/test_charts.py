"""A chart is drawn alike by both renderers: the same ticks, the same places, the same numbers."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from saekit import charts
from saekit.charts.chart import Chart
from saekit.charts.model import Dots, Key, Line, Panel, Scale, Text, scale, symmetric
from saekit.charts.svg import cut

HOSTILE = "<script>alert('&\")</script>\u202e\x00\n"


@pytest.mark.parametrize(
    "axis",
    [
        scale(-3, 40),
        scale(0.01, 2e4, "log"),
        scale(0, 0.6, "sqrt"),
        symmetric([-3e5, -2, 0.0, 7, 40, 9e3], label="change"),
        scale(-5, 5, "symlog", unit=0.1),
    ],
    ids=lambda axis: axis.kind,
)
def test_places_are_those_of_matplotlib(axis):
    """Of the transform that matplotlib itself applies, at any value between the ends."""
    panel = Panel(axis, scale(0, 1), ())
    figure = Chart(((panel,),), alt="").figure()
    axes = figure.axes[0]
    values = (
        np.geomspace(max(axis.low, 1e-9), axis.high, 30)
        if axis.low > 0
        else np.linspace(axis.low, axis.high, 31)
    )
    values = np.append(values, axis.ticks)
    there = axes.transData.transform(np.stack([values, np.zeros_like(values)], 1))[:, 0]
    ends = axes.transAxes.transform([(0, 0), (1, 0)])[:, 0]
    np.testing.assert_allclose(axis.share(values), (there - ends[0]) / (ends[1] - ends[0]), atol=1e-9)
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert axes.get_xticks().tolist() == list(axis.ticks)
    assert len(shown) == len(axis.texts) >= 3
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert len(axis.ticks) <= 7


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.31, 0.07), (0, 9999), (3, 4), (1e-7, 2e-7), (-1e6, 5)])
def test_ticks_are_round_few_and_inside(low, high):
    axis = scale(low, high)
    assert 2 <= len(axis.ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in axis.ticks)
    steps = np.diff(axis.ticks)
    np.testing.assert_allclose(steps, steps[0])
    assert float(f"{steps[0]:e}"[0]) in (1, 2, 5)
    assert len(set(axis.texts)) == len(axis.texts)


def test_a_histogram_draws_every_bin():
    counts = np.array([70, 0, 1, 4])
    chart = charts.histogram(counts, [0, 1, 2, 3, 4.0], at=2.5)
    assert chart.data["count"].tolist() == counts.tolist()
    bars = chart.figure().axes[0].patches
    assert [bar.get_height() for bar in bars] == counts.tolist()
    drawn = re.findall(r'<rect x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart.svg())
    tall = np.array([float(height) for _, height in drawn])
    np.testing.assert_allclose(tall, tall[0] * counts[counts > 0] / 70, atol=1)  # at least a pixel
    assert tall.min() >= 1
    assert "2.00 to 3.00: 1 token" in chart.svg()
    for wrong, edges in (
        ([1, 2], [0, float("nan"), 1]),
        ([1, float("nan")], [0, 1, 2]),
        ([1, 2], [0, 1, float("inf")]),
        ([1, 2], [1, 1, 1]),
    ):
        with pytest.raises(ValueError, match="finite counts and finite edges that ascend"):
            charts.histogram(wrong, edges)
    for none in ([], [[1, 2]]):
        with pytest.raises(ValueError, match="needs the counts of its bins"):
            charts.histogram(none, [0, 1])
    with pytest.raises(ValueError, match="4 bins have 5 edges, found 4"):
        charts.histogram(counts, [0, 1, 2, 3])


def test_suppressed_and_promoted_tokens_lie_on_two_sides_of_a_line():
    chart = charts.logit_histogram([3, 9, 100, 4], [-2, -1, 0, 1, 2])
    bars = chart.figure().axes[0].patches
    left, right = (
        {bar.get_facecolor() for bar in bars if (bar.get_x() < 0) == side} for side in (True, False)
    )
    assert len(left) == len(right) == 1
    assert left != right
    assert chart.panels[0].y.ticks == (0, 10, 100)


def test_what_stays_is_drawn_once(monkeypatch):
    drawn = []
    from saekit.charts.svg import _Drawing

    whole = _Drawing._line
    monkeypatch.setattr(_Drawing, "_line", lambda self, line: drawn.append(line) or whole(self, line))
    stays, moves = Line([0, 1], [0, 1], "ink"), Line([0, 1], [1, 0], "quiet")
    panel = Panel(scale(0, 1), scale(0, 1), (stays,))
    first = Chart(((panel,),), alt="a").svg()
    other = str(Chart(((replace(panel, moving=(moves,)),),), alt="b").svg())
    assert drawn == [stays, moves]
    assert str(first) == other.replace('aria-label="b"', 'aria-label="a"').replace(
        other[other.index('<g class="sk-moving">') : other.index("</g>") + 4], ""
    )


def test_any_text_is_literal():
    marks = (
        Text(0.5, 0.5, HOSTILE, room=500),
        Dots([0.5], [0.5], "ink", titles=[HOSTILE]),
    )
    panel = Panel(scale(0, 1, label=HOSTILE), scale(0, 1), marks, title=HOSTILE)
    svg = Chart(((panel,),), alt=HOSTILE, keys=(Key(HOSTILE, "ink", marker="o"),)).svg()
    ElementTree.fromstring(svg)  # well formed
    assert "<script" not in svg
    assert "\u202e" not in svg
    assert "\x00" not in svg
    assert svg.count("&lt;script&gt;") == 6


def test_a_figure_shows_directional_marks_and_does_not_follow_them():
    """matplotlib would turn the text around."""
    marks = (Text(0.5, 0.5, "\u202eevil"), Text(0.5, 0.2, "\u202eevil", room=300))
    axes = (
        Chart(((Panel(scale(0, 1), scale(0, 1), marks, title="\u202eevil\nand $5"),),), alt="")
        .figure()
        .axes[0]
    )
    for text in axes.texts:
        assert text.get_text() == "⟨U+202E⟩evil"
    assert axes.get_title("left") == "⟨U+202E⟩evil\nand \\$5"


def test_a_cut_text_loses_whole_words():
    assert cut("king · queen · river", 14) == "king · queen …"
    assert cut("incomprehensible", 8) == "incompr…"
    assert cut("short", 5) == "short"


def test_data_of_several_panels_name_their_panel():
    frames = [pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"y": [3]})]
    panels = [Panel(scale(0, 1), scale(0, 1), (), data=frame, name=f"p{n}") for n, frame in enumerate(frames)]
    chart = Chart((tuple(panels),), alt="two")
    assert chart.data["panel"].tolist() == ["p0", "p0", "p1"]
    assert isinstance(chart.figure(), Figure)
    assert Scale(0, 1).share(0.25) == 0.25


@pytest.mark.parametrize("kind", ["linear", "log", "symlog", "sqrt"])
def test_values_that_are_all_the_same_have_a_place(kind):
    one = scale(3.0, 3.0, kind)
    assert one.low < 3.0 < one.high
    panel = Panel(one, scale(0, 1), (Line([3.0, 3.0], [0, 1], "ink"),))
    assert "nan" not in Chart(((panel,),), alt="a line").svg()
    with pytest.raises(ValueError, match="A scale needs finite ends, found nan and 1"):
        scale(float("nan"), 1.0, kind)
