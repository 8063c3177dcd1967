"""The pure functions that turn tokens and numbers into HTML and SVG."""

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from saekit import html
from saekit.widgets import svg


@pytest.mark.parametrize(
    ("token", "running", "alone"),
    [
        (" king", " king", "␣king"),
        ("\n\n", "↵↵", "↵↵"),
        ("\r\n", "↵", "↵"),
        ("a\tb", "a⇥b", "a⇥b"),
        ("   ", "␣␣␣", "␣␣␣"),
        (" ", "␣", "␣"),
        ("New York ", "New York␣", "New York␣"),
        ("7\u00a0km", "7 km", "7 km"),
        ("\u202eevil", "⟨U+202E⟩evil", "⟨U+202E⟩evil"),
        ("\x00\x7f", "␀␡", "␀␡"),
        ("a\u200bb", "a⟨U+200B⟩b", "a⟨U+200B⟩b"),
        ("\u2800", "⟨U+2800⟩", "⟨U+2800⟩"),
        ("\ud83d", "⟨U+D83D⟩", "⟨U+D83D⟩"),
        ("\U0001f469\u200d\U0001f469", "\U0001f469\u200d\U0001f469", "\U0001f469\u200d\U0001f469"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("a\u200db", "a⟨U+200D⟩b", "a⟨U+200D⟩b"),
        ("", "∅", "∅"),
    ],
)
def test_whitespace_can_be_seen(token, running, alone):
    assert html.visible(token) == running
    assert html.visible(token, leading_space=True) == alone


def test_context_marks_active_tokens_and_the_peak_by_more_than_colour():
    text = html.context(["<a>", " &b", " ", " c"], [0.0, 2.0, 0.0, 4.0], peak=3, maximum=4.0)
    marks = re.findall(
        r'<mark tabindex="0" data-told="([^"]+)" style="background-color:rgba\(255,140,0,([\d.]+)\)', text
    )
    assert [(float(value), float(alpha)) for value, alpha in marks] == [
        (2.0, pytest.approx(0.315, abs=0.006)),
        (4.0, html.MAX_ALPHA),
    ]
    assert re.findall(r"<b><u>(.*?)</u></b>", text) == ["c"]
    # With every tag taken away the text reads as it is; every token tells its activation.
    assert re.sub(r"<[^>]+>", "", text) == "&lt;a&gt; &amp;b  c"
    assert re.findall(r'data-told="([^"]+)"', text) == ["0", "2", "0", "4"]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(
    ("text", "paper"),
    [((33, 33, 33), (255, 255, 255)), ((255, 255, 255), (17, 17, 17))],
    ids=["light", "dark"],
)
def test_the_deepest_colour_keeps_text_readable(text, paper):
    blend = [html.MAX_ALPHA * o + (1 - html.MAX_ALPHA) * p for o, p in zip(html.ORANGE, paper, strict=True)]
    low, high = sorted((luminance(text), luminance(blend)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_bars_grow_with_the_share_and_something_is_never_nothing():
    assert html.bar(0) == ""
    assert html.bar(1e-6) == "▏"
    assert html.bar(1) == "█" * 12
    assert html.bar(0.5) == "█" * 6


def test_charts_are_well_formed_and_say_what_they_show():
    cosine, change = np.linspace(-0.2, 1, 40), np.linspace(-1e-6, 30, 40)
    curve = pd.DataFrame({"fpr": [0, 0.2, 1], "tpr": [0, 0.7, 1]})
    node = {"width": 8, "latent": 1, "cosine": 0.9, "status": "split"}
    child = {"width": 16, "latent": 3, "cosine": 0.8, "status": "leaf", "children": []}
    charts = [
        svg.roc(curve, curve, (0.2, 0.7), label="a <b>"),
        svg.Scatter(cosine, change).draw(0.7, (0.5, 1.0), label="a <b>"),
        svg.tree((8, 16), [], {**node, "children": [child]}, lambda w, i: ["<x>", "\x00&"], label="a <b>"),
    ]
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-label") == "a <b>"
        assert root.get("role") == "img"


def test_a_theta_line_stands_at_its_cosine():
    scatter = svg.Scatter(np.array([0.0, 1.0]), np.array([-1.0, 1.0]))
    inside = scatter.width - scatter.left - scatter.right
    for theta in (0.0, 0.25, 1.0):
        chart = scatter.draw(theta, None, label="")
        x = float(re.search(r'class="sk-theta" d="M([\d.]+) ', chart)[1])
        assert x == pytest.approx(scatter.left + theta * inside, abs=0.06)


def test_a_large_tree_is_cut_and_says_by_how_much():
    children = [
        {"width": 16, "latent": i, "cosine": 0.8, "status": "leaf", "children": []}
        for i in range(svg.MAX_CHILDREN + 5)
    ]
    root = {"width": 8, "latent": 1, "cosine": 0.9, "status": "split", "children": children}
    chart = svg.tree((8, 16), [], root, lambda w, i: [f"word{i}"], label="")
    assert "+ 5 more" in chart
    assert chart.count(">word") == svg.MAX_CHILDREN + 1
