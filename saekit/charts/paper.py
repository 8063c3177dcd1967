"""Charts as matplotlib draws them, in house style, for papers."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, NullLocator

from saekit.charts.model import (
    ROLES,
    Area,
    Band,
    Bars,
    Box,
    Dots,
    Key,
    Line,
    Link,
    Mark,
    Panel,
    Rule,
    Scale,
    Text,
)
from saekit.figures import STYLE, house_style, new_figure
from saekit.html import harmless
from saekit.wording import SEPARATOR

if TYPE_CHECKING:
    from saekit.charts.chart import Chart

MANY = 300  # dots from which they are drawn as pixels
_POWER = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def draw_figure(charts: Sequence[Chart]) -> Figure:
    """Draw charts below each other.

    Examples
    --------
    >>> from saekit.charts import histogram
    >>> draw_figure([histogram([3, 1], [0, 1, 2])]).get_size_inches().round(2).tolist()
    [2.7, 1.25]
    """
    with house_style():
        heights = [chart.height + 13 * _n_key_rows(chart) for chart in charts]
        figure = new_figure(max(chart.width for chart in charts) / 72, sum(heights) / 72)
        if len(charts) == 1:
            _draw_chart(figure, charts[0])
        else:
            parts: Any = figure.subfigures(len(charts), 1, height_ratios=heights)
            for part, chart in zip(parts, charts, strict=True):
                _draw_chart(part, chart)
    return figure


def _n_key_rows(chart: Chart) -> int:
    return -(-len(chart.keys) // chart.key_columns)


def _draw_chart(figure: Any, chart: Chart) -> None:
    n_rows, n_columns = len(chart.rows), len(chart.rows[0])
    axes = figure.subplots(
        n_rows,
        n_columns,
        squeeze=False,
        height_ratios=chart.heights or None,
        width_ratios=chart.widths or None,
    )
    if all(panel.bare for panel in chart.panels) and isinstance(figure, Figure):
        figure.set_layout_engine("constrained", w_pad=0, h_pad=0)  # coordinates are points
    for places, column in zip(axes.T, zip(*chart.rows, strict=True), strict=True):
        for place, panel in zip(places, column, strict=True):
            if panel is None:
                place.remove()
            else:
                draw(place, panel)
                place.xaxis.set_in_layout(column[-1] is not None)  # otherwise it hangs below an empty place
    if n_rows > 1:
        figure.align_ylabels(axes[:, 0])
    if chart.keys:
        columns = min(chart.key_columns, len(chart.keys))
        handles = [handle(key) for key in chart.keys]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2)


def draw(axes: Axes, panel: Panel) -> None:
    """Draw one panel on axes, within `saekit.figures.house_style`.

    Examples
    --------
    >>> from saekit.charts import histogram
    >>> from saekit.figures import house_style, new_figure
    >>> with house_style():
    ...     axes = new_figure(2.7, 1.5).subplots()
    ...     draw(axes, histogram([3, 1], [0, 1, 2]).panels[0])
    >>> len(axes.patches)
    2
    """
    for axis, scale in (("x", panel.x), ("y", panel.y)):
        _set_scale(axes, axis, scale)
    if panel.bare:
        axes.axis("off")
    if panel.square:
        axes.set_box_aspect(1)
    if panel.title:
        axes.set_title(plain(panel.title), fontsize=8, pad=13 if panel.is_named_above else None)
    for place, mark in enumerate([*panel.marks, *panel.moving]):
        _MARKS[type(mark)](axes, mark, 1 + place / 1000)
    if panel.keys:
        axes.legend(
            handles=[handle(key) for key in panel.keys],
            loc="lower right",
            title=plain(panel.key_title),
            alignment="left",
        )


def _set_scale(axes: Axes, name: str, scale: Scale) -> None:
    axis, set_scale = getattr(axes, f"{name}axis"), getattr(axes, f"set_{name}scale")
    if scale.kind == "symlog":
        set_scale("symlog", linthresh=scale.unit)
    elif scale.kind == "sqrt":
        set_scale("function", functions=(np.sqrt, np.square))
    elif scale.kind == "log":
        set_scale("log")
    getattr(axes, f"set_{name}lim")(scale.low, scale.high)
    axis.set_major_locator(FixedLocator(scale.ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_ticklabels([plain(text) for text in scale.texts] or [""] * len(scale.ticks))
    if scale.grid:
        axis.grid(True, color=ROLES["grid"], linewidth=0.5)
        axes.set_axisbelow(True)
    if scale.label:
        getattr(axes, f"set_{name}label")(plain(scale.label))


def plain(text: str) -> str:
    r"""A text as matplotlib shall read it: harmless, and no math mode but for powers.

    The font has no signs for powers, and matplotlib would follow directional marks.

    Examples
    --------
    >>> plain("$5"), plain("10⁴")
    ('\\$5', '10$^{4}$')
    """
    text = "\n".join(harmless(line) for line in text.split("\n")).replace("$", r"\$")
    return _POWER.sub(lambda found: f"$^{{{found[0].translate(_DIGITS)}}}$", text)


def handle(key: Key) -> Line2D | Patch:
    """The entry of a legend.

    Examples
    --------
    >>> handle(Key("chance", "quiet", dash="--")).get_linestyle()
    '--'
    """
    colour, edge = _colour(key.colour), _colour(key.edge)
    if key.patch:
        face, rim = (colour, key.alpha), edge or "none"
        return Patch(facecolor=face, edgecolor=rim, linewidth=0.6 if edge else 0, label=plain(key.text))
    outline: dict[str, Any] = {"markeredgecolor": edge, "markeredgewidth": 0.6} if edge else {}
    return Line2D(
        [],
        [],
        linestyle=key.dash,
        color=colour,
        linewidth=key.width,
        marker=key.marker,
        markersize=key.size,
        label=plain(key.text),
        **outline,
    )


@lru_cache(maxsize=4096)
def fit_text(text: str, inches: float, size: float = 6.5) -> str:
    """Cut a text to the given length, safe from math mode; what is cut ends with an ellipsis.

    A label loses its last words, which matter least, before any letters.

    Examples
    --------
    >>> fit_text("4371  mathematician · philosopher", 1.2)
    '4371  mathematician …'
    """
    text = harmless(text)
    font, renderer = FontProperties(family=STYLE["font.family"], size=size), RendererAgg(1, 1, 720)

    def too_long(text: str) -> bool:
        return renderer.get_text_width_height_descent(text, font, ismath=False)[0] > inches * 720

    words = text.split(SEPARATOR)
    shorter = (f"{SEPARATOR.join(words[:n])} …" for n in range(len(words) - 1, 0, -1))
    text = next((found for found in (text, *shorter) if not too_long(found)), words[0])
    if too_long(text):
        room = bisect_left(range(len(text)), True, key=lambda n: too_long(f"{text[:n]}…")) - 1
        text = f"{text[: max(room, 0)].rstrip()}…"
    return plain(text)


def _colour(name: str) -> str:
    return ROLES.get(name, name)


# ---------------------------------------------------------------------- marks


def _dots(axes: Axes, dots: Dots, order: float) -> None:
    edge = _colour(dots.edge)
    open_ended = dots.marker in ("x", "+")
    axes.scatter(
        np.atleast_1d(dots.x),
        np.atleast_1d(dots.y),
        s=dots.size**2,
        marker=dots.marker,
        facecolor=None if open_ended else _colour(dots.colour) if dots.colour != "none" else "none",
        edgecolor=None if open_ended else edge or "none",
        color=_colour(dots.colour) if open_ended else None,
        linewidth=0.8 if open_ended else dots.edge_width if edge else 0,
        alpha=dots.alpha if dots.alpha < 1 else None,
        zorder=order,
        clip_on=False,
        rasterized=np.size(dots.x) > MANY,
    )


def _line(axes: Axes, line: Line, order: float) -> None:
    axes.plot(
        line.x,
        line.y,
        color=_colour(line.colour),
        linewidth=line.width,
        linestyle=line.dash,
        alpha=line.alpha,
        solid_capstyle="butt",
        zorder=order,
    )


def _rule(axes: Axes, rule: Rule, order: float) -> None:
    across = axes.axvline if rule.axis == "x" else axes.axhline
    across(rule.at, color=_colour(rule.colour), linewidth=rule.width, linestyle=rule.dash, zorder=order)


def _band(axes: Axes, band: Band, order: float) -> None:
    axes.axvspan(
        band.start, band.end, facecolor=_colour(band.colour), alpha=band.alpha, linewidth=0, zorder=order
    )


def _area(axes: Axes, area: Area, order: float) -> None:
    axes.fill_between(
        area.x, area.low, area.high, color=_colour(area.colour), alpha=area.alpha, linewidth=0, zorder=order
    )


def _bars(axes: Axes, bars: Bars, order: float) -> None:
    low, high = np.asarray(bars.low, dtype=float), np.asarray(bars.high, dtype=float)
    axes.bar(
        low,
        np.asarray(bars.values, dtype=float),
        high - low,
        align="edge",
        color=list(bars.colours),
        edgecolor="white",
        linewidth=0.3,
        zorder=order,
    )


def _text(axes: Axes, text: Text, order: float) -> None:
    transform = {
        "": axes.transData,
        "x": axes.get_yaxis_transform(),
        "y": axes.get_xaxis_transform(),
        "xy": axes.transAxes,
    }[text.over]
    shown = plain(text.text) if text.room is None else fit_text(text.text, text.room / 72, text.size)
    axes.annotate(
        shown,
        (text.x, text.y),
        text.move,
        xycoords=transform,
        textcoords="offset points",
        ha={"start": "left", "middle": "center", "end": "right"}[text.anchor],
        va={"top": "top", "middle": "center_baseline", "bottom": "bottom"}[text.line],
        fontsize=text.size,
        color=_colour(text.colour),
        fontweight="bold" if text.bold else "normal",
        zorder=order,
        annotation_clip=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1} if text.ground else None,
    )


def _box(axes: Axes, box: Box, order: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (min(box.x0, box.x1), min(box.y0, box.y1)),
            abs(box.x1 - box.x0),
            abs(box.y1 - box.y0),
            boxstyle="round,pad=0,rounding_size=2.9",
            facecolor=_colour(box.fill),
            edgecolor=_colour(box.edge) or "none",
            linewidth=1.0 if box.edge else 0,
            zorder=order,
        )
    )


def _link(axes: Axes, link: Link, order: float) -> None:
    (x0, y0), (x1, y1) = link.start, link.end
    middle = (x0 + x1) / 2
    path = Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [Path.MOVETO, *[Path.CURVE4] * 3])
    axes.add_patch(
        PathPatch(
            path,
            facecolor="none",
            edgecolor=_colour(link.colour),
            linewidth=link.width,
            linestyle=link.dash,
            alpha=link.alpha,
            capstyle="butt",
            zorder=order,
        )
    )


_MARKS: dict[type[Mark], Any] = {
    Dots: _dots,
    Line: _line,
    Rule: _rule,
    Band: _band,
    Area: _area,
    Bars: _bars,
    Text: _text,
    Box: _box,
    Link: _link,
}
