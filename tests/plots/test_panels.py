"""Figures composed of figures: each as it is alone, with its letter, numbers and provenance."""

import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from plot_checks import check_texts

import saekit
from saekit import plots
from saekit.figures import HALF, Plot, house_style, new_figure, render
from saekit.plots.panels import GAP, HEAD

DPI = 300


def small(seed, *, width=HALF, name="y", settings=None):
    """Dots that are drawn as pixels, a clipped line and a text."""
    x = np.random.default_rng(seed).normal(size=(200, 2))
    with house_style():
        figure = new_figure(width, 1.6)
        axes = figure.subplots()
        axes.scatter(x[:, 0], x[:, 1], s=5, alpha=0.4, linewidth=0, rasterized=True)
        axes.plot([-9, 9], [-9, 9])
        axes.set(xlim=(-3, 3), ylim=(-3, 3), xlabel="label", title="Title")
    made_from = {f"dictionary {seed}": {"hash": "a" * 64}}
    data = pd.DataFrame(x, columns=["x", name])
    return Plot(figure, data, f"Caption {seed}. More.", f"Alt {seed}.", made_from, settings or {})


def pixels(figure):
    return imread(io.BytesIO(render(figure, "png", dpi=DPI)))


def test_every_panel_is_drawn_as_it_is_alone():
    """Pixel by pixel, and the figures are as they were."""
    found = small(0), small(1), small(2, width=3.3)
    alone = [pixels(plot.figure) for plot in found]
    whole = pixels(plots.compose([found[:2], found[2]], "Title").figure)
    head, gap, height = (round(side * DPI) for side in (HEAD, GAP, 1.6))
    second = 2 * head + height + gap
    for picture, top, left in zip(alone, (head, head, second), (0, 810 + gap, 0), strict=True):
        part = whole[top : top + picture.shape[0], left : left + picture.shape[1]]
        np.testing.assert_array_equal(part, picture)
    assert whole.shape[:2] == (2 * (head + height) + gap, 1650)
    letters = whole[:head, :, :3].min(axis=(0, 2)) < 0.5
    assert letters[:60].any()
    assert letters[840:900].any()
    for plot, picture in zip(found, alone, strict=True):
        np.testing.assert_array_equal(pixels(plot.figure), picture)


def test_numbers_captions_and_provenance_are_those_of_the_panels(tmp_path):
    first = plots.kinds_frontier(saekit.kinds_table())
    other = small(5, name="z", settings={"theta": 0.7})
    found = plots.compose([first, other], "Both")
    assert found.data["letter"].value_counts().to_dict() == {"a": len(first.data), "b": 200}
    for letter, plot in (("a", first), ("b", other)):
        part = found.data[found.data["letter"] == letter][list(plot.data)].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, plot.data.reset_index(drop=True), check_dtype=False)
    assert found.caption == f"Both. (a) {first.caption} (b) Caption 5. More."
    assert found.alt == f"(a) {first.alt} (b) Alt 5."
    assert found.settings == {"b": {"theta": 0.7}}
    manifest = json.loads(found.save("both", folder=tmp_path)[-1].read_text())
    assert manifest["modules"] == ["saekit.plots.panels", "saekit.plots.training"]
    assert list(manifest["inputs"]) == ["dictionary 5"]
    pdf = (tmp_path / "both.pdf").read_bytes()
    assert b"/Type3" not in pdf
    check_texts(found.figure)


SCRIPT = """
import sys
sys.path[:0] = ["tests", "tests/plots"]
from test_panels import plots, small
plots.compose([[small(0), small(1)]], "Title").save("it", folder=sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / name)], check=True, timeout=120)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert first == second
    assert len(first) == 6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: [], "found 0"),
        (lambda: [[]], "found 0"),
        (lambda: [small(0), []], "found 1"),
        (lambda: [small(0)] * 27, "found 27"),
        (lambda: [small(0), [small(0), small(1, width=3.0)]], r"Row 2 is 5\.80 inches wide"),
    ],
)
def test_errors(rows, message):
    with pytest.raises(ValueError, match=message):
        plots.compose(rows(), "Title")


@pytest.mark.parametrize(
    ("rows", "title", "message"),
    [
        (lambda: small(0), "Title", "rows must be a sequence of Plots or of rows of them, found Plot"),
        (lambda: None, "Title", "rows must be a sequence .* found NoneType"),
        (lambda: [small(0).figure], "Title", "composed of Plots, found Figure"),
        (lambda: [[small(0), None]], "Title", "composed of Plots, found NoneType"),
        (lambda: "ab", "Title", "composed of Plots, found str"),
        (lambda: [small(0)], None, "title must be text"),
        (lambda: [small(0)], " ", "title must be text"),
    ],
)
def test_what_is_no_figure(rows, title, message):
    with pytest.raises(TypeError, match=message):
        plots.compose(rows(), title)
