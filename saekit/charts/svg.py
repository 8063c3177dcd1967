"""Charts as inline SVG in the page's theme: drawn in a few milliseconds, and a light card as an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from saekit.charts.model import (
    Area,
    Band,
    Bars,
    Box,
    Dots,
    Floats,
    Key,
    Line,
    Link,
    Mark,
    Panel,
    Rule,
    Text,
)
from saekit.html import visible

if TYPE_CHECKING:
    from saekit.charts.chart import Chart

PX = 11 / 7  # pixels per point: text of 7 points is 11 pixels high
LETTER = 5.7  # average width of a letter of that height, in pixels
_THEME = {
    "ink": "var(--jp-content-font-color1,#212121)",
    "quiet": "var(--jp-content-font-color2,#616161)",
    "grid": "var(--jp-border-color2,#e0e0e0)",
    "paper": "var(--jp-layout-color0,#fff)",
    "band": "var(--jp-layout-color2,#f5f5f5)",
}
_FONT = "var(--jp-ui-font-family,system-ui,sans-serif)"
_DASHES = {"-": "", "--": "5 3", ":": "1.5 2.5", "-.": "6 3 1.5 3"}
_STYLE = (
    f"<style>.sk-chart text{{font:11px {_FONT}}}"
    f".sk-halo{{paint-order:stroke;stroke:{_THEME['paper']};stroke-width:4px;stroke-linejoin:round}}</style>"
)


def draw_svg(chart: Chart, stretch: float = 1.0) -> Markup:
    """Draw a chart; see `Chart.svg`.

    Examples
    --------
    >>> from saekit.charts import histogram
    >>> "aria-label" in draw_svg(histogram([3, 1], [0, 1, 2]))
    True
    """
    width, height = PX * stretch * chart.width, PX * stretch * chart.height
    keys, keys_height = _keys(chart.keys, chart.key_columns, width)
    parts, n_columns = [], len(chart.rows[0])
    lefts = [max(_left(panel) for panel in column if panel) for column in zip(*chart.rows, strict=True)]
    inner = width - sum(lefts) - 12 * n_columns
    ratios = chart.widths or (1,) * n_columns
    tops = [max(_top(panel) for panel in row if panel) for row in chart.rows]
    bottoms = [max(_bottom(panel) for panel in row if panel) for row in chart.rows]
    tall = height - sum(tops) - sum(bottoms)
    shares = chart.heights or (1,) * len(chart.rows)
    y = 0.0
    for row, top, bottom, share in zip(chart.rows, tops, bottoms, shares, strict=True):
        x, high = 0.0, tall * share / sum(shares)
        for panel, left, ratio in zip(row, lefts, ratios, strict=True):
            wide = inner * ratio / sum(ratios)
            if panel:
                side = min(wide, high)
                size = (side, side) if panel.square else (wide, high)
                parts.append(_Drawing(panel, x + left, y + top, *size, stretch).text())
            x += left + wide + 12
        y += top + high + bottom
    whole = height + keys_height
    return Markup(  # noqa: S704 - every text in it went through `escape`
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sk-chart" width="{width:.0f}" height="{whole:.0f}" '
        f'viewBox="0 0 {width:.0f} {whole:.0f}" role="img" aria-label="{escape(visible(chart.alt))}">{_STYLE}'
        f'<rect width="100%" height="100%" style="fill:{_THEME["paper"]}"/>{"".join(parts)}'
        f'<g transform="translate(0 {height:.0f})">{keys}</g></svg>'
    )


def _left(panel: Panel) -> float:
    longest = max((len(text) for text in panel.y.texts), default=0)
    return 4 if panel.bare else 10 + 6 * longest + 16 * bool(panel.y.label)


def _bottom(panel: Panel) -> float:
    return 4 if panel.bare else 6 + 14 * bool(panel.x.texts) + 16 * bool(panel.x.label)


def _top(panel: Panel) -> float:
    above = 12 * (panel.title.count("\n") + panel.is_named_above) + 14 * bool(panel.title)
    return 4 if panel.bare else 8 + above


def _colour(name: str) -> str:
    return _THEME.get(name, name)


def _on_dark(alpha: float) -> float:
    """More of a translucent mark, which would vanish on a dark page."""
    return alpha**0.5


def _fill(colour: str, alpha: float = 1.0) -> str:
    return f"fill:{_colour(colour)}" + (f";fill-opacity:{alpha:g}" if alpha < 1 else "")


def _stroke(colour: str, points: float, dash: str = "-", alpha: float = 1.0) -> str:
    dashes = f";stroke-dasharray:{_DASHES[dash]}" if _DASHES[dash] else ""
    faint = f";stroke-opacity:{alpha:g}" if alpha < 1 else ""
    return f"fill:none;stroke:{_colour(colour)};stroke-width:{max(1.0, PX * points):.2g}{dashes}{faint}"


def _edge(colour: str, points: float) -> str:
    return f";stroke:{_colour(colour)};stroke-width:{max(1.0, PX * points):.2g}"


def _title(titles: Sequence[str], place: int) -> str:
    return f"<title>{escape(visible(titles[place]))}</title>" if titles else ""


def _write(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = "quiet",
    size: float = 7.0,
    extra: str = "",
) -> str:
    font = f";font-size:{PX * size:.3g}px" if size != 7 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{_fill(colour)}{font}" {extra}>'
        f"{escape(visible(text) if text else text)}</text>"
    )


@cache
def _marker(marker: str, pixels: float) -> str:
    """The outline of a marker, as moves from its centre."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    open_ended = not style.is_filled()
    parts = []
    here = np.zeros(2)
    for vertices in path.to_polygons(closed_only=False):
        corners = pixels * np.asarray(vertices) * (1, -1)
        start = corners[0] - here
        steps = np.diff(corners, axis=0)
        moves = " ".join(f"{dx:.1f} {dy:.1f}" for dx, dy in steps)
        parts.append(f"m{start[0]:.1f} {start[1]:.1f}l{moves}{'' if open_ended else 'z'}")
        here = corners[-1] if open_ended else corners[0]
    return "".join(parts)


def _is_open(marker: str) -> bool:
    return marker in ("x", "+")


def _keys(keys: Sequence[Key], columns: int, width: float) -> tuple[str, float]:
    """A legend in columns, and its height in pixels."""
    if not keys:
        return "", 0
    columns = min(columns, len(keys))
    widest = max(len(key.text) for key in keys) * LETTER + 44
    columns = max(1, min(columns, int(width // widest)))
    step = min(width / columns, widest + 20)
    left = (width - columns * step) / 2 + 8
    parts = [
        _key(key, left + step * (place % columns), 10 + 16 * (place // columns))
        for place, key in enumerate(keys)
    ]
    return "".join(parts), 16 * -(-len(keys) // columns) + 6


def _key(key: Key, x: float, y: float) -> str:
    parts = []
    if key.patch:
        look = _fill(key.colour, key.alpha) + (_edge(key.edge, 0.6) if key.edge else "")
        parts.append(f'<rect x="{x:.1f}" y="{y - 5:.1f}" width="18" height="9" style="{look}"/>')
    if key.dash:
        parts.append(f'<path d="M{x:.1f} {y:.1f}h18" style="{_stroke(key.colour, key.width, key.dash)}"/>')
    if key.marker:
        parts.append(_dot(x + 9, y, Dots(0, 0, key.colour, key.marker, key.size, edge=key.edge)))
    return "".join(parts) + _write(x + 24, y + 4, key.text)


def _dot(x: float, y: float, dots: Dots, title: str = "") -> str:
    look = _fill(dots.colour, _on_dark(dots.alpha))
    if dots.colour == "none" and title:  # its inside has the title too
        look += ";pointer-events:all"
    if dots.edge or _is_open(dots.marker):
        look += _edge(dots.edge or dots.colour, dots.edge_width)
    if dots.marker == "o":
        radius = PX * dots.size / 2
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" style="{look}">{title}</circle>'
    shape = _marker(dots.marker, PX * dots.size)
    return f'<path d="M{x:.1f} {y:.1f}{shape}" style="{look}">{title}</path>'


class _Drawing:
    """One panel at its place in the picture."""

    def __init__(
        self, panel: Panel, left: float, top: float, width: float, height: float, stretch: float
    ) -> None:
        self.panel, self.left, self.top, self.stretch = panel, left, top, stretch
        self.width, self.height = width, height

    def text(self) -> str:
        panel = self.panel
        place = (self.left, self.top, self.width, self.height)
        if place not in panel.drawn:  # what stays is drawn once
            under, over = self._axes()
            panel.drawn[place] = under + "".join(self._mark(mark) for mark in panel.marks) + over
        moving = "".join(self._mark(mark) for mark in panel.moving)
        return panel.drawn[place] + (f'<g class="sk-moving">{moving}</g>' if moving else "")

    def _x(self, values: Any) -> Any:
        return self.left + self.width * self.panel.x.share(values)

    def _y(self, values: Any) -> Any:
        return self.top + self.height * (1 - self.panel.y.share(values))

    def _axes(self) -> tuple[str, str]:
        panel, floor, wall = self.panel, self.top + self.height, self.left + self.width
        if panel.bare:
            return "", ""
        x, y = self._x(panel.x.ticks).tolist(), self._y(panel.y.ticks).tolist()
        under = "".join(f"M{self.left:.1f} {at:.1f}H{wall:.1f}" for at in y if panel.y.grid)
        under += "".join(f"M{at:.1f} {self.top:.1f}V{floor:.1f}" for at in x if panel.x.grid)
        parts = [f'<path d="{under}" style="{_stroke("grid", 0.6)}"/>' if under else ""]
        lines = f"M{self.left:.1f} {self.top:.1f}V{floor:.1f}H{wall:.1f}"
        lines += "".join(f"M{at:.1f} {floor:.1f}v4" for at in x)
        lines += "".join(f"M{self.left:.1f} {at:.1f}h-4" for at in y)
        over = [f'<path d="{lines}" style="{_stroke("quiet", 0.6)}"/>']
        for at, text in zip(x, panel.x.texts, strict=False):
            over.append(_write(at, floor + 16, text, anchor="middle"))
        for at, text in zip(y, panel.y.texts, strict=False):
            over.append(_write(self.left - 7, at + 4, text, anchor="end"))
        if panel.x.label:
            below = floor + 6 + 14 * bool(panel.x.texts) + 12
            over.append(_write((self.left + wall) / 2, below, panel.x.label, anchor="middle"))
        if panel.y.label:
            at = self.left - _left(panel) + 12
            middle = self.top + self.height / 2
            turned = f'transform="rotate(-90 {at:.0f} {middle:.0f})"'
            over.append(_write(at, middle, panel.y.label, anchor="middle", extra=turned))
        for n, line in enumerate(panel.title.split("\n")[::-1] if panel.title else ()):
            at = self.top - 8 - 12 * (n + panel.is_named_above)
            over.append(_write(self.left, at, line, colour="ink"))
        for n, key in enumerate(panel.keys[::-1]):
            wide = 24 + LETTER * max(len(key.text) for key in panel.keys)
            over.append(_key(key, wall - wide - 4, floor - 12 - 15 * n))
        if panel.key_title:
            at = floor - 8 - 15 * len(panel.keys)
            over.append(_write(wall - 4, at, panel.key_title, anchor="end"))
        return "".join(parts), "".join(over)

    # ------------------------------------------------------------------ marks

    def _mark(self, mark: Mark) -> str:
        return getattr(self, f"_{type(mark).__name__.lower()}")(mark)

    def _dots(self, dots: Dots) -> str:
        x, y = self._x(np.atleast_1d(dots.x)), self._y(np.atleast_1d(dots.y))
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        if dots.titles or dots.edge or len(x) < 20:
            return "".join(_dot(a, b, dots, _title(dots.titles, n)) for n, (a, b) in enumerate(pairs))
        if dots.marker == "o":
            look = _stroke(dots.colour, dots.size, alpha=_on_dark(dots.alpha)) + ";stroke-linecap:round"
            return f'<path d="{"".join([f"M{a:.1f} {b:.1f}h0" for a, b in pairs])}" style="{look}"/>'
        shape = _marker(dots.marker, PX * dots.size)
        look = (
            _stroke(dots.colour, 0.8) if _is_open(dots.marker) else _fill(dots.colour, _on_dark(dots.alpha))
        )
        return f'<path d="{"".join([f"M{a:.1f} {b:.1f}{shape}" for a, b in pairs])}" style="{look}"/>'

    def _line(self, line: Line) -> str:
        look = _stroke(line.colour, line.width, line.dash, line.alpha)
        return (
            f'<path d="{self._path(self._x(line.x), self._y(line.y))}" style="{look};stroke-linejoin:round"/>'
        )

    @staticmethod
    def _path(x: Floats, y: Floats) -> str:
        places = np.round(2 * np.stack([x, y]))  # one point per half pixel is enough
        keep = np.append(True, (np.diff(places, axis=1) != 0).any(0))
        pairs = zip(x[keep].tolist(), y[keep].tolist(), strict=True)
        return "M" + "L".join([f"{a:.1f} {b:.1f}" for a, b in pairs])

    def _rule(self, rule: Rule) -> str:
        if rule.axis == "x":
            path = f"M{float(self._x(rule.at)):.1f} {self.top:.1f}v{self.height:.1f}"
        else:
            path = f"M{self.left:.1f} {float(self._y(rule.at)):.1f}h{self.width:.1f}"
        return f'<path d="{path}" style="{_stroke(rule.colour, rule.width, rule.dash)}"/>'

    def _band(self, band: Band) -> str:
        start, end = self._x([band.start, band.end]).tolist()
        return (
            f'<rect x="{start:.1f}" y="{self.top:.1f}" width="{end - start:.1f}" height="{self.height:.1f}" '
            f'style="{_fill(band.colour, band.alpha)}"/>'
        )

    def _area(self, area: Area) -> str:
        x = self._x(area.x)
        there = self._path(x, self._y(area.low))
        back = self._path(x[::-1], self._y(area.high)[::-1])[1:]
        return f'<path d="{there}L{back}Z" style="{_fill(area.colour, area.alpha)}"/>'

    def _bars(self, bars: Bars) -> str:
        floor = float(self._y(max(self.panel.y.low, 0.0)))
        values = np.asarray(bars.values, dtype=float)
        starts, ends = self._x(bars.low).tolist(), self._x(bars.high).tolist()
        tops = self._y(values).tolist()
        parts = []
        for n, (start, end, top) in enumerate(zip(starts, ends, tops, strict=True)):
            if values[n]:
                tall = max(1.0, floor - top)
                wide = max(0.5, end - start - 0.8)
                parts.append(
                    f'<rect x="{start + 0.4:.1f}" y="{floor - tall:.1f}" width="{wide:.1f}" '
                    f'height="{tall:.1f}" style="{_fill(bars.colours[n])}">{_title(bars.titles, n)}</rect>'
                )
        return "".join(parts)

    def _text(self, text: Text) -> str:
        x = self.left + self.width * text.x if "x" in text.over else float(self._x(text.x))
        y = self.top + self.height * (1 - text.y) if "y" in text.over else float(self._y(text.y))
        down = {"top": 11.0, "middle": 4.0, "bottom": -2.0}[text.line]
        shown = visible(re.sub(" {2,}", "\u2002", text.text)).strip()
        if text.room is not None:
            shown = cut(shown, text.room * PX * self.stretch / (LETTER * text.size / 7))
        extra = ('class="sk-halo" ' if text.ground else "") + ('font-weight="600"' if text.bold else "")
        if text.goto is not None:
            extra += f' data-goto="{text.goto[0]}/{text.goto[1]}"'
        return _write(
            x + PX * text.move[0],
            y + down - PX * text.move[1],
            shown,
            anchor=text.anchor,
            colour=text.colour,
            size=text.size,
            extra=extra,
        )

    def _box(self, box: Box) -> str:
        (x0, x1), (y0, y1) = sorted(self._x([box.x0, box.x1])), sorted(self._y([box.y0, box.y1]))
        look = _fill(box.fill) + (_edge(box.edge, 1.0) if box.edge else "")
        return (
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" rx="4" '
            f'style="{look}"/>'
        )

    def _link(self, link: Link) -> str:
        (x0, x1), (y0, y1) = self._x([link.start[0], link.end[0]]), self._y([link.start[1], link.end[1]])
        middle = (x0 + x1) / 2
        look = _stroke(link.colour, link.width, link.dash, _on_dark(link.alpha))
        path = f"M{x0:.1f} {y0:.1f}C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        return f'<path d="{path}" style="{look}"/>'


def cut(text: str, letters: float) -> str:
    """Cut a text to a number of letters; whole words go first, as they matter least at the end.

    Examples
    --------
    >>> cut("king · queen", 9)
    'king …'
    """
    if len(text) <= letters:
        return text
    kept = text[: max(int(letters) - 1, 0)]
    whole = re.sub(r"( · |\s)\S*$", "", kept) if " · " in kept else kept
    return f"{whole.rstrip(' ·')}{' ' if whole != kept else ''}…"
