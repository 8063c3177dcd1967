"""Pure functions from numbers to inline SVG charts in the page's theme.

Each is drawn in a few milliseconds without matplotlib and takes its colours from JupyterLab's
theme variables; as an image (`html.image`) it falls back to a light card.
"""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saekit.colours import BLUE, LATENT, META, NULL, ORANGE, VERMILION
from saekit.html import escape, visible
from saekit.wording import number

STYLE = """<style>
.sk-card{fill:var(--jp-layout-color0,#fff)}
.sk-text{font:11px var(--jp-ui-font-family,system-ui,sans-serif);fill:var(--jp-content-font-color1,#212121)}
.sk-quiet{font:11px var(--jp-ui-font-family,system-ui,sans-serif);fill:var(--jp-content-font-color2,#616161)}
.sk-axis{stroke:var(--jp-content-font-color2,#616161);stroke-width:1;fill:none}
.sk-grid{stroke:var(--jp-border-color2,#e0e0e0);stroke-width:1;fill:none}
.sk-theta{stroke:var(--jp-content-font-color1,#212121);stroke-width:1.5;stroke-dasharray:5 3;fill:none}
.sk-band{fill:var(--jp-layout-color2,#f5f5f5)}
.sk-box{fill:var(--jp-layout-color2,#f5f5f5);stroke:var(--jp-border-color1,#bdbdbd);stroke-width:1}
.sk-here{fill:var(--jp-layout-color0,#fff);stroke:ORANGE;stroke-width:2.5}
.sk-ring{fill:none;stroke:var(--jp-content-font-color1,#212121);stroke-width:2}
</style>""".replace("ORANGE", ORANGE)
MAX_POINTS = 5000


def _svg(width: float, height: float, label: str, *parts: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">{STYLE}'
        f'<rect class="sk-card" width="100%" height="100%"/>{"".join(parts)}</svg>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", kind: str = "sk-quiet", extra: str = ""
) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _tick(value: float) -> str:
    """A round number, with a power of ten where it is very small or large."""
    size = abs(value)
    if size and not 1e-3 <= size < 1e4:
        power = str(round(np.log10(size))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{'−' if value < 0 else ''}10{power}"
    return f"{value:g}".replace("-", "−")


def roc(curve: pd.DataFrame, null: pd.DataFrame | None, point: tuple[float, float], *, label: str) -> str:
    """Draw the ROC curve with the point of the chosen theta, and the null's curve in grey.

    Parameters
    ----------
    curve, null : DataFrame
        With columns `fpr` and `tpr`.
    point : tuple of float
        False and true positive rate; not drawn if NaN.
    label : str
        Alternative text.
    """
    side, left, bottom, top = 190, 44, 36, 10
    floor = top + side

    def place(fpr: Any, tpr: Any) -> tuple[Any, Any]:
        return left + side * fpr, floor - side * tpr

    def path(frame: pd.DataFrame, colour: str, width: float) -> str:
        keep = np.unique(np.linspace(0, len(frame) - 1, 300).round().astype(int))
        x, y = place(frame["fpr"].to_numpy()[keep], frame["tpr"].to_numpy()[keep])
        points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
        return f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'

    parts = [
        _line(left, floor, left + side, top, "sk-grid"),
        f'<rect class="sk-axis" x="{left}" y="{top}" width="{side}" height="{side}"/>',
    ]
    for value in (0, 0.5, 1):
        x, y = place(value, value)
        parts += [
            _text(x, floor + 14, f"{value:g}", anchor="middle"),
            _text(left - 6, y + 4, f"{value:g}", anchor="end"),
        ]
    if null is not None:
        parts.append(path(null, NULL, 1.5))
        parts.append(_text(left + side - 6, floor - 22, "grey: other seed", anchor="end"))
    parts.append(path(curve, BLUE, 2))
    x, y = place(*point)
    if x == x and y == y:
        parts.append(f'<circle class="sk-ring" cx="{x:.1f}" cy="{y:.1f}" r="5.5" style="fill:{BLUE}"/>')
    parts += [
        _text(left + side / 2, floor + 30, "false positive rate", anchor="middle"),
        _text(
            12, top + side / 2, "true positive rate", anchor="middle",
            extra=f'transform="rotate(-90 12 {top + side / 2:.0f})"',
        ),
    ]  # fmt: skip
    return _svg(left + side + 12, floor + bottom, label, *parts)


class Scatter:
    """MSE change against best cosine, with a line at theta that is cheap to move.

    The points are turned into two SVG paths once; of more than 5,000 latents an even sample is drawn,
    as the caption states.

    Parameters
    ----------
    cosine, change : ndarray
        Values of the latents that are not dead, `[n]`.
    """

    width, height, left, right, top, bottom = 410, 290, 58, 12, 26, 36

    def __init__(self, cosine: np.ndarray, change: np.ndarray) -> None:
        self.low = min(0.0, float(np.floor(10 * cosine.min(initial=0.0)) / 10))
        nonzero = np.abs(change[change != 0])
        # Changes span many orders of magnitude on both sides of zero: linear near zero, log beyond.
        self.unit = float(np.quantile(nonzero, 0.25)) if len(nonzero) else 1.0
        scaled = np.arcsinh(change / self.unit)
        self.high = float(np.abs(scaled).max(initial=1.0)) * 1.05
        keep = np.unique(np.linspace(0, len(cosine) - 1, MAX_POINTS).astype(int))[: len(cosine)]
        x, y = self._x(cosine[keep]), self._y(change[keep])
        helps = change[keep] < 0
        self.n_drawn = len(x)
        self._points = self._path(x[~helps], y[~helps], VERMILION) + self._path(x[helps], y[helps], BLUE)
        self._frame = self._axes(nonzero)

    def _x(self, cosine: Any) -> Any:
        return self.left + (self.width - self.left - self.right) * (cosine - self.low) / (1 - self.low)

    def _y(self, change: Any) -> Any:
        middle, half = (self.top + self.height - self.bottom) / 2, (self.height - self.bottom - self.top) / 2
        return middle - half * np.arcsinh(change / self.unit) / self.high

    @staticmethod
    def _path(x: np.ndarray, y: np.ndarray, colour: str) -> str:
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True))
        return (
            f'<path d="{dots}" fill="none" stroke="{colour}" stroke-opacity="0.7" stroke-width="3" '
            'stroke-linecap="round"/>'
        )

    def _axes(self, nonzero: np.ndarray) -> str:
        floor, wall = self.height - self.bottom, self.width - self.right
        parts = [
            _line(self.left, floor, wall, floor, "sk-axis"),
            _line(self.left, self.top, self.left, floor, "sk-axis"),
            _line(self.left, self._y(0), wall, self._y(0), "sk-axis"),
        ]
        for value in np.arange(np.ceil(5 * self.low) / 5, 1.01, 0.2):
            parts.append(_text(self._x(value), floor + 14, _tick(round(value, 1) + 0.0), anchor="middle"))
        top = np.floor(np.log10(nonzero.max())) if len(nonzero) else 0
        ticks = [10.0 ** (top - step) for step in range(3) if 10.0 ** (top - step) > self.unit]
        for tick in [0.0, *ticks, *(-tick for tick in ticks)]:
            parts.append(_text(self.left - 5, self._y(tick) + 4, _tick(tick), anchor="end"))
            if tick:
                parts.append(_line(self.left, self._y(tick), wall, self._y(tick), "sk-grid"))
        middle = (self.top + floor) / 2
        turned = f'transform="rotate(-90 11 {middle:.0f})"'
        across = (self.left + wall) / 2
        parts += [
            _text(across, self.height - 6, "best cosine with a small latent", anchor="middle"),
            _text(11, middle, "MSE change when inserted", anchor="middle", extra=turned),
            _text(self.left + 6, self.top + 14, "↑ hurts"),
            _text(self.left + 6, floor - 8, "↓ helps"),
        ]
        return "".join(parts)

    def draw(self, theta: float, selected: tuple[float, float] | None, *, label: str) -> str:
        """Draw the chart with its line at theta and a ring around the selected (cosine, change)."""
        x = float(self._x(min(max(theta, self.low), 1.0)))
        ring = ""
        if selected is not None:
            at = self._x(selected[0]), self._y(selected[1])
            ring = f'<circle class="sk-ring" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="6"/>'
        return _svg(
            self.width,
            self.height,
            label,
            self._frame,
            self._points,
            _line(x, self.top - 6, x, self.height - self.bottom, "sk-theta"),
            _text(x - 6, 14, "← novel by cosine", anchor="end"),
            _text(x + 6, 14, f"θ = {theta:.2f}", kind="sk-text"),
            ring,
        )


class Curve:
    """Quantities over the same steps, in panels below each other, with a marker that is cheap to move.

    Parameters
    ----------
    x : ndarray
        Position of each step on the horizontal axis, ascending `[n]`.
    panels : mapping of str to ndarray
        Name and values `[n]` of every panel; the first is the tallest.
    phases : sequence of (str, float, float)
        Name, start and end on the horizontal axis; every other one is shaded.
    levels : mapping of str to sequence of float
        Horizontal lines by panel, such as the values of finished dictionaries.
    xlabel : str
        Label of the horizontal axis.
    """

    width, left, right, top, bottom, gap = 660, 56, 14, 22, 38, 16
    heights = (170, 76)  # of the first panel and of the others

    def __init__(
        self,
        x: np.ndarray,
        panels: Mapping[str, np.ndarray],
        phases: Sequence[tuple[str, float, float]],
        *,
        levels: Mapping[str, Sequence[float]],
        xlabel: str,
    ) -> None:
        self._low, self._high = float(x[0]), max(float(x[-1]), float(x[0]) + 1)
        heights = [self.heights[0], *[self.heights[1]] * (len(panels) - 1)]
        tops = self.top + np.cumsum([0, *(height + self.gap for height in heights[:-1])])
        self._floor = float(tops[-1]) + heights[-1]
        self.height = self._floor + self.bottom
        self._at = self._x(x)
        self._y: list[np.ndarray] = []
        parts = [self._band(*phase, shaded=place % 2 == 0) for place, phase in enumerate(phases)]
        for (name, values), top, height in zip(panels.items(), tops.tolist(), heights, strict=True):
            parts += self._panel(name, values, levels.get(name, ()), top, height)
        wall = self.width - self.right
        parts.append(_line(self.left, self._floor, wall, self._floor, "sk-axis"))
        for tick in _ticks(self._low, self._high, 6):
            parts.append(_text(float(self._x(tick)), self._floor + 14, f"{tick:,.0f}", anchor="middle"))
        parts.append(_text((self.left + wall) / 2, self.height - 6, xlabel, anchor="middle"))
        self._drawn = "".join(parts)

    def _x(self, value: Any) -> Any:
        inside = self.width - self.left - self.right
        return self.left + inside * (value - self._low) / (self._high - self._low)

    def _band(self, name: str, start: float, end: float, *, shaded: bool) -> str:
        x0, x1 = float(self._x(start)), float(self._x(end))
        fits = x1 - x0 > 7 * len(name)
        title = _text((x0 + x1) / 2, self.top - 7, name, anchor="middle", kind="sk-text") if fits else ""
        if not shaded:
            return title
        height = self._floor - self.top
        return (
            f'<rect class="sk-band" x="{x0:.1f}" y="{self.top}" width="{x1 - x0:.1f}" '
            f'height="{height:.1f}"/>{title}'
        )

    def _panel(
        self, name: str, values: np.ndarray, levels: Sequence[float], top: float, height: float
    ) -> list[str]:
        shown = [*values.tolist(), *levels]
        pad = 0.06 * (max(shown) - min(shown) or 1.0)
        low, high = min(shown) - pad, max(shown) + pad
        wall, middle = self.width - self.right, top + height / 2

        def down(value: Any) -> Any:
            return np.interp(value, (low, high), (top + height, top))

        parts = []
        for tick in _ticks(low, high, 4 if height > 100 else 2):
            parts.append(_line(self.left, down(tick), wall, down(tick), "sk-grid"))
            parts.append(_text(self.left - 6, down(tick) + 4, _tick(tick), anchor="end"))
        parts += [_line(self.left, down(level), wall, down(level), "sk-theta") for level in levels]
        self._y.append(down(values))
        turned = f'transform="rotate(-90 11 {middle:.0f})"'
        return [
            *parts,
            self._path(self._y[-1]),
            _line(self.left, top, self.left, top + height, "sk-axis"),
            _text(11, middle, name, anchor="middle", extra=turned),
        ]

    def _path(self, y: np.ndarray) -> str:
        # One point per half pixel is enough.
        places = np.round(2 * np.stack([self._at, y]))
        keep = np.sort(np.unique(places, axis=1, return_index=True)[1])
        points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(self._at[keep], y[keep], strict=True))
        return f'<path d="M{points}" fill="none" stroke="{BLUE}" stroke-width="2" stroke-linejoin="round"/>'

    def draw(self, step: int, *, label: str) -> str:
        """Draw the curve with a line and a dot in every panel at this step."""
        x = float(self._at[step])
        dots = [f'<circle class="sk-here" cx="{x:.1f}" cy="{float(y[step]):.1f}" r="5"/>' for y in self._y]
        line = f'<path class="sk-axis" d="M{x:.1f} {self.top}V{self._floor:.1f}"/>'
        return _svg(self.width, self.height, label, self._drawn, line, *dots)


def _ticks(low: float, high: float, n: int) -> list[float]:
    """About `n` round numbers from low to high."""
    rough = (high - low) / n
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    return [float(f"{step * k:.12g}") for k in range(int(np.ceil(low / step)), int(high / step) + 1)]


# ---------------------------------------------------------------------- trees

BOX, GAP, ROW = 172, 44, 46
MAX_CHILDREN, MAX_LEAVES = 8, 16


def tree(
    widths: Sequence[int],
    path: Sequence[dict[str, Any]],
    subtree: dict[str, Any],
    words: Any,
    *,
    label: str,
) -> str:
    """Draw a latent between its ancestors (left) and its descendants (right), one column per width.

    Parameters
    ----------
    widths : sequence of int
        All widths, ascending.
    path : sequence of dict
        Ancestors from the root down to the parent: `width`, `latent`, `cosine`.
    subtree : dict
        The latent with its `children`, recursively.
    words : callable
        `words(width, latent)` gives a few token strings.
    label : str
        Alternative text.
    """
    leaves = 0
    drawn: list[str] = []
    edges: list[str] = []
    used = {node["width"] for node in path}

    def left(width: int) -> float:
        return 4 + list(widths).index(width) * (BOX + GAP)

    def box(node: dict[str, Any], y: float, kind: str, cosine: float | None) -> None:
        x = left(node["width"])
        tokens = " · ".join(
            visible(token, leading_space=False).strip() for token in words(node["width"], node["latent"])
        )
        tokens = tokens if len(tokens) <= 25 else tokens[:24] + "…"
        about = [] if cosine is None or cosine != cosine else [f"cos {cosine:.2f}"]
        about += [node["status"]] if node["status"] != "leaf" else []
        drawn.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y - 18:.1f}" width="{BOX}" height="36" rx="5"/>'
            + _text(
                x + 8,
                y - 4,
                str(node["latent"]),
                kind="sk-text",
                extra='font-weight="bold" style="font-weight:600"',
            )
            + _text(x + BOX - 8, y - 4, " · ".join(about), anchor="end")
            + _text(x + 8, y + 12, tokens or "dead", kind="sk-text")
        )

    def edge(parent_width: int, y_parent: float, width: int, y: float, cosine: float) -> None:
        x0, x1 = left(parent_width) + BOX, left(width)
        middle = (x0 + x1) / 2
        edges.append(
            f'<path class="sk-axis" style="stroke-width:{max(0.5, 4 * (cosine - 0.5)):.1f};opacity:.6" '
            f'd="M{x0:.0f} {y_parent:.0f}'
            f'C{middle:.0f} {y_parent:.0f} {middle:.0f} {y:.0f} {x1:.0f} {y:.0f}"/>'
        )

    def grow(node: dict[str, Any], depth: int) -> float:
        nonlocal leaves
        used.add(node["width"])
        shown, children = [], node["children"]
        for child in children[:MAX_CHILDREN]:
            if leaves >= MAX_LEAVES:
                break
            shown.append((child, grow(child, depth + 1)))
        hidden = len(children) - len(shown)
        if hidden and shown:
            y = 52.0 + leaves * ROW
            drawn.append(_text(left(shown[0][0]["width"]) + 8, y - 12, f"+ {hidden} more"))
        if not shown:
            y = 52.0 + leaves * ROW
            leaves += 1
            if hidden:
                drawn.append(_text(left(node["width"]) + BOX + 8, y + 4, f"+ {hidden} more"))
        else:
            y = (shown[0][1] + shown[-1][1]) / 2
            if hidden:
                leaves += 1
        for child, y_child in shown:
            edge(node["width"], y, child["width"], y_child, child["cosine"])
        cosine = None if depth == 0 and not path else node["cosine"]
        box(node, y, "sk-here" if depth == 0 else "sk-box", cosine)
        return float(y)

    y = grow(subtree, 0)
    chain = [*path, subtree]
    for place, node in enumerate(path):
        box(node, y, "sk-box", path[place - 1]["cosine"] if place else None)
        edge(node["width"], y, chain[place + 1]["width"], y, chain[place + 1]["cosine"])
    heads = [
        _text(
            left(width) + BOX / 2,
            16,
            f"width {width:,}",
            anchor="middle",
            kind="sk-text" if width in used else "sk-quiet",
        )
        for width in widths
    ]
    total = 8 + len(widths) * BOX + (len(widths) - 1) * GAP
    return _svg(total, 52 + max(1, leaves) * ROW - 24, label, *heads, *edges, *drawn)


# ---------------------------------------------------------------------- related latents

RELATED_WIDTH, RELATED_HEIGHT = 860, 540


def related(centre: str, branches: Sequence[dict[str, Any]], *, label: str) -> str:
    """Draw a latent in the centre, its meta-latents around it and their latents around these.

    Parameters
    ----------
    centre : str
        Name of the latent.
    branches : sequence of dict
        One per meta-latent: `name`, `text`, `activation` (on the centre), `off` (drawn as a broken
        line) and `leaves`: (name, text, activation) of further latents.
    label : str
        Alternative text.
    """
    middle, half = (RELATED_WIDTH / 2, RELATED_HEIGHT / 2), (235, RELATED_HEIGHT / 2 - 22)
    places = _around(sum(max(1, len(branch["leaves"])) for branch in branches))
    lines, nodes = [], []

    def line(
        start: tuple[float, float], end: tuple[float, float], colour: str, width: float, off: bool
    ) -> None:
        dashes = ' stroke-dasharray="4 4"' if off else ""
        lines.append(
            f'<path d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}" stroke="{colour}" '
            f'stroke-opacity="0.55" stroke-width="{1.0 if off else width:.1f}" fill="none"{dashes}/>'
        )

    def at(x: float, y: float, scale: float = 1.0) -> tuple[float, float]:
        return middle[0] + scale * half[0] * x, middle[1] + scale * half[1] * y

    for branch in branches:
        here, places = np.split(places, [max(1, len(branch["leaves"]))])
        x, y = here.mean(0) / max(float(np.linalg.norm(here.mean(0))), 1e-9)
        inner = at(x, y, 0.5)
        line(middle, inner, META, min(14 * branch["activation"], 12), branch["off"])
        for place, (name, text, activation) in zip(here, branch["leaves"], strict=False):
            outer, side = at(*place), 1 if place[0] > 0 else -1
            line(inner, outer, LATENT, min(5 * activation, 6), branch["off"])
            nodes.append(f'<circle cx="{outer[0]:.1f}" cy="{outer[1]:.1f}" r="4" fill="{LATENT}"/>')
            anchor = "start" if side > 0 else "end"
            nodes.append(_text(outer[0] + 8 * side, outer[1] + 4, _cut(f"{name} {text}", 28), anchor=anchor))
        nodes.append(f'<circle cx="{inner[0]:.1f}" cy="{inner[1]:.1f}" r="6" fill="{META}"/>')
        nodes.append(_over_lines(inner, f"{branch['name']} {branch['text']}", f"{branch['activation']:.2f}"))
    nodes.append(f'<circle class="sk-here" cx="{middle[0]:.1f}" cy="{middle[1]:.1f}" r="9"/>')
    nodes.append(_over_lines(middle, centre))
    return _svg(RELATED_WIDTH, RELATED_HEIGHT, label, *lines, *nodes)


def _around(n: int) -> np.ndarray:
    """Points on the unit circle, clockwise from the top, at even heights on each side: `[n, 2]`."""
    right = (n + 1) // 2
    heights = [(2 * np.arange(m) + 1) / max(m, 1) - 1 for m in (right, n - right)]
    y = np.concatenate([heights[0], heights[1][::-1]])
    x = np.sqrt(1 - y**2) * np.where(np.arange(n) < right, 1, -1)
    return np.stack([x, y], 1)


def _over_lines(place: tuple[float, float], *texts: str) -> str:
    """Lines of text under a node, with an edge in the card's colour that keeps drawn lines out of it."""
    halo = (
        'style="paint-order:stroke;stroke:var(--jp-layout-color0,#fff);stroke-width:4px;'
        'stroke-linejoin:round"'
    )
    return "".join(
        _text(place[0], place[1] + 20 + 13 * n, _cut(text, 26), anchor="middle", kind="sk-text", extra=halo)
        for n, text in enumerate(texts)
    )


def _cut(text: str, length: int) -> str:
    text = visible(text, leading_space=False).strip()
    return text if len(text) <= length else f"{text[: length - 1]}…"


# ---------------------------------------------------------------------- circuits

CELL, LANE = 88, 30
MOST = 10  # nodes of a cell that are drawn


def circuit(
    columns: Sequence[str],
    lanes: Sequence[str],
    nodes: Sequence[Mapping[str, Any]],
    selected: tuple[int, int, int],
    *,
    label: str,
) -> str:
    """Draw the nodes of a circuit by position and hook point, sized by their effects.

    Parameters
    ----------
    columns : sequence of str
        Token of each position.
    lanes : sequence of str
        Hook points, the earliest first (drawn lowest).
    nodes : sequence of mapping
        `column`, `lane`, `latent` (-1 for an error) and `effect`, greatest first.
    selected : tuple of int
        Column, lane and latent of the selected node.
    label : str
        Alternative text.
    """
    cells: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for node in nodes:
        cells.setdefault((node["lane"], node["column"]), []).append(node)
    hidden = {cell: len(found) - MOST for cell, found in cells.items() if len(found) > MOST}
    cells = {cell: found[:MOST] for cell, found in cells.items()}
    tall = [
        max((len(cells.get((lane, c), ())) for c in range(len(columns))), default=0)
        for lane in range(len(lanes))
    ]
    heights = [16 + LANE * max(1, n) for n in tall]
    width, top = 8 + CELL * len(columns), 8
    most = max((abs(node["effect"]) for node in nodes), default=1.0) or 1.0
    parts: list[str] = []
    y = float(top)
    for lane in reversed(range(len(lanes))):
        parts.append(
            f'<rect class="sk-band" x="4" y="{y:.1f}" width="{width - 8}" '
            f'height="{heights[lane] - 4}" rx="4"/>'
        )
        parts.append(_text(8, y + 12, lanes[lane]))
        for column in range(len(columns)):
            for place, node in enumerate(cells.get((lane, column), ())):
                centre = 8 + CELL * column + 15, y + heights[lane] - 4 - LANE * (place + 0.5)
                parts.append(_node(node, centre, abs(node["effect"]) / most))
                if (column, lane, node["latent"]) == selected:
                    parts.append(f'<circle class="sk-ring" cx="{centre[0]}" cy="{centre[1]:.1f}" r="14"/>')
            if (lane, column) in hidden:
                parts.append(_text(8 + CELL * column + 31, y + 12, f"+ {hidden[lane, column]} more"))
        y += heights[lane]
    for column, token in enumerate(columns):
        parts.append(
            _text(8 + CELL * (column + 0.5), y + 12, _cut(token, 11), anchor="middle", kind="sk-text")
        )
        parts.append(_text(8 + CELL * (column + 0.5), y + 26, str(column), anchor="middle"))
    return _svg(width, y + 34, label, *parts)


def _node(node: Mapping[str, Any], centre: tuple[float, float], share: float) -> str:
    """A disc for a latent, a square for an error; filled if it supports the metric, else hollow."""
    x, y = centre
    size = 3 + 9 * float(np.sqrt(share))
    colour = BLUE if node["effect"] < 0 else VERMILION
    look = f'fill="{colour}"' if node["effect"] < 0 else f'fill="none" stroke="{colour}" stroke-width="2"'
    name = "error" if node["latent"] < 0 else str(node["latent"])
    shape = (
        f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" height="{2 * size:.1f}" {look}>'
        if node["latent"] < 0
        else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" {look}>'
    )
    end = "</rect>" if node["latent"] < 0 else "</circle>"
    return f"{shape}<title>{name}: {number(node['effect'])}</title>{end}" + _text(x + 16, y + 4, name)
