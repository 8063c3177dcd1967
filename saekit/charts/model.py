"""A picture as data: panels with scales, ticks and marks, which every renderer draws alike.

Lengths are in points (1/72 inch) as they are printed; text is 7 points unless it states another size. Colours
are hex, or one of the roles in `ROLES`, which a page draws in its theme.
"""

# ruff: noqa: RUF001 - a true minus sign is meant

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from saekit.colours import DARK_GREY, INK

PAGE, HALF_PAGE = 396.0, 194.4  # points: 5.5 and 2.7 inches
ROLES = {"ink": INK, "quiet": DARK_GREY, "grid": "#d8d8d8", "paper": "#ffffff", "band": "#f3f3f3"}

Floats = NDArray[np.float64]
_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# ---------------------------------------------------------------------- scales


@dataclass(frozen=True)
class Scale:
    """An axis: how values become places, and the ticks that every renderer shows.

    Attributes
    ----------
    low, high : float
        The ends of the axis.
    kind : str
        `"linear"`, `"log"`, `"symlog"` (linear within `unit` of zero) or `"sqrt"`.
    unit : float
        The linear range of a symmetric logarithm.
    ticks : tuple of float
        Values with a tick, or with a line across if `grid`.
    texts : tuple of str
        Their texts; empty for an axis that shares those of its neighbour.
    label : str
        What the axis shows.
    """

    low: float
    high: float
    kind: Literal["linear", "log", "symlog", "sqrt"] = "linear"
    unit: float = 1.0
    ticks: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    label: str = ""
    grid: bool = False

    def _bent(self, values: ArrayLike) -> Floats:
        x = np.asarray(values, dtype=float)
        if self.kind == "log":
            return np.log10(x)
        if self.kind == "sqrt":
            return np.sqrt(x)
        if self.kind == "symlog":
            # The transform of matplotlib's symlog scale, so that both renderers agree.
            beyond = np.log10(np.maximum(np.abs(x), self.unit) / self.unit)
            return np.where(np.abs(x) <= self.unit, x / 0.9, np.sign(x) * self.unit * (1 / 0.9 + beyond))
        return x

    def share(self, values: ArrayLike) -> Floats:
        """Places along the axis, from 0 at its low end to 1 at its high end.

        Examples
        --------
        >>> scale(0, 10).share([0, 5, 10]).tolist()
        [0.0, 0.5, 1.0]
        """
        low, high = self._bent([self.low, self.high])
        return (self._bent(values) - low) / (high - low)


def scale(
    low: float,
    high: float,
    kind: Literal["linear", "log", "symlog", "sqrt"] = "linear",
    *,
    label: str = "",
    unit: float = 1.0,
    n: int = 5,
    ticks: Sequence[float] | None = None,
    write: Callable[[float], str] | None = None,
    grid: bool = False,
) -> Scale:
    """Make a scale with about `n` round ticks.

    Parameters
    ----------
    low, high : float
        The ends.
    kind : str
        As in `Scale`.
    label : str
        What the axis shows.
    unit : float
        The linear range of a symmetric logarithm.
    n : int
        About how many ticks; of a symmetric logarithm, at most this many on each side of zero.
    ticks : sequence of float, optional
        Other ticks; those outside the ends are dropped.
    write : callable, optional
        How a tick is written.
    grid : bool
        Draw a line across at each tick.

    Raises
    ------
    ValueError
        If an end is not finite.

    Examples
    --------
    >>> scale(0, 1, n=2).texts
    ('0', '0.5', '1')

    Where all values are the same, they are in the middle:

    >>> scale(3, 3).low, scale(3, 3).high
    (2.5, 3.5)
    """
    low, high = float(low), float(high)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"A scale needs finite ends, found {low} and {high}.")
    if low == high:
        low, high = (low / 2, high * 2) if kind == "log" else (low - 0.5, high + 0.5)
    if ticks is None:
        ticks = _powers(low, high, unit, n) if kind in ("log", "symlog") else round_ticks(low, high, n)
    shown = tuple(float(tick) for tick in ticks if low - 1e-12 <= tick <= high + 1e-12)
    return Scale(low, high, kind, unit, shown, tuple(map(write or tick_text, shown)), label, grid)


def symmetric(values: ArrayLike, *, label: str, margin: float = 0.12) -> Scale:
    """Make a scale for changes of both signs over many orders of magnitude: linear near zero, log beyond.

    Examples
    --------
    >>> symmetric([-300.0, -2.0, 5.0, 40.0], label="change").ticks
    (-100.0, -10.0, 0.0, 10.0, 100.0)
    """
    values = np.asarray(values, dtype=float)
    unit = linear_range(values)
    bare = Scale(0, 1, "symlog", unit)
    ends = bare._bent([values.min(initial=0.0), values.max(initial=0.0)])
    low, high = ends + margin * max(float(np.ptp(ends)), unit) * np.array([-1, 1])
    return scale(_unbent(low, unit), _unbent(high, unit), "symlog", unit=unit, label=label, n=3)


def linear_range(values: ArrayLike) -> float:
    """Where a symmetric logarithm starts to be logarithmic: the decade of the median magnitude.

    Examples
    --------
    >>> linear_range([0.0, -20.0, 30.0, 5.0])
    10.0
    """
    sizes = np.abs(np.asarray(values, dtype=float))
    sizes = sizes[sizes > 0]
    return float(10 ** np.floor(np.log10(np.median(sizes)))) if len(sizes) else 1.0


def _unbent(place: float, unit: float) -> float:
    """The value at a place of a symmetric logarithm."""
    beyond = abs(place) / unit - 1 / 0.9
    return 0.9 * place if beyond <= 0 else float(np.sign(place)) * unit * 10**beyond


def round_ticks(low: float, high: float, n: int) -> list[float]:
    """About `n` round numbers from low to high.

    Examples
    --------
    >>> round_ticks(0, 7, 4)
    [0.0, 2.0, 4.0, 6.0]
    """
    rough = (high - low) / n or 1.0
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= 0.75 * rough)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [float(f"{step * k:.12g}") for k in range(first, last + 1)]


def _powers(low: float, high: float, unit: float, n: int) -> list[float]:
    """Powers of ten between the ends, at most `n` on each side; zero is a tick where it lies between."""

    def side(top: float, bottom: float) -> list[float]:
        if top < bottom:
            return []
        first, last = int(np.ceil(np.log10(bottom) - 1e-9)), int(np.floor(np.log10(top) + 1e-9))
        step = max(1, -(-(last - first + 1) // n))
        return [10.0**power for power in range(last, first - 1, -step)]

    if low > 0:
        return side(high, low)[::-1]
    return [*(-tick for tick in side(-low, unit)), 0.0, *side(high, unit)[::-1]]


def tick_text(value: float) -> str:
    """A round number with a true minus sign; a power of ten where it is very small or large.

    Examples
    --------
    >>> tick_text(-0.2), tick_text(1000), tick_text(1e-05)
    ('−0.2', '1,000', '10⁻⁵')
    """
    size = abs(value)
    sign = "−" if value < 0 else ""
    if size and not 1e-3 <= size < 1e5:
        mantissa, power = f"{size:.2e}".split("e")
        shown = mantissa.rstrip("0").rstrip(".")
        return f"{sign}{'' if shown == '1' else f'{shown}·'}10{str(int(power)).translate(_POWERS)}"
    return f"{sign}{size:,.10g}"


# ---------------------------------------------------------------------- marks


@dataclass(frozen=True, eq=False)
class Dots:
    """One marker per point; `size` is its diameter. `titles` show under the pointer."""

    x: ArrayLike
    y: ArrayLike
    colour: str
    marker: str = "o"
    size: float = 4.0
    alpha: float = 1.0
    edge: str = ""
    edge_width: float = 0.6
    titles: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Line:
    """A line through points; `dash` as in matplotlib."""

    x: ArrayLike
    y: ArrayLike
    colour: str
    width: float = 1.2
    dash: str = "-"
    alpha: float = 1.0


@dataclass(frozen=True, eq=False)
class Rule:
    """A line across the panel at one value of the axis."""

    axis: Literal["x", "y"]
    at: float
    colour: str = "ink"
    width: float = 0.6
    dash: str = "-"


@dataclass(frozen=True, eq=False)
class Band:
    """A stretch of the horizontal axis, shaded over the whole height."""

    start: float
    end: float
    colour: str
    alpha: float = 1.0


@dataclass(frozen=True, eq=False)
class Area:
    """The area between two lines over the same points."""

    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    colour: str
    alpha: float = 0.55


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars from zero, each over a stretch of the horizontal axis; what is not zero can be seen."""

    low: ArrayLike
    high: ArrayLike
    values: ArrayLike
    colours: Sequence[str]
    titles: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Text:
    """A text at a place, moved by points right and up; cut to `room` points if there is a limit.

    With `over`, coordinates named in it (`"x"`, `"y"`) are shares of the panel instead of values. In a live
    explorer a click on a text opens `goto`, the (width, latent) that it names.
    """

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "middle"
    line: Literal["top", "middle", "bottom"] = "middle"
    colour: str = "ink"
    size: float = 7.0
    move: tuple[float, float] = (0.0, 0.0)
    room: float | None = None
    over: str = ""
    ground: bool = False
    bold: bool = False
    goto: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Box:
    """A rectangle with rounded corners."""

    x0: float
    y0: float
    x1: float
    y1: float
    edge: str = ""
    fill: str = "paper"


@dataclass(frozen=True, eq=False)
class Link:
    """A curve from one place to another that leaves and arrives horizontally."""

    start: tuple[float, float]
    end: tuple[float, float]
    colour: str
    width: float
    alpha: float = 0.45
    dash: str = "-"


Mark = Dots | Line | Rule | Band | Area | Bars | Text | Box | Link


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a marker, a line, both, or a patch."""

    text: str
    colour: str
    marker: str = ""
    dash: str = ""
    edge: str = ""
    patch: bool = False
    width: float = 1.2
    size: float = 4.0
    alpha: float = 1.0


# ---------------------------------------------------------------------- panels


@dataclass(frozen=True, eq=False)
class Panel:
    """Two axes and the marks between them, drawn in order.

    Attributes
    ----------
    x, y : Scale
        The axes; a `y` of descending ends counts downwards.
    marks : tuple of mark
        What stays the same.
    moving : tuple of mark
        What changes with a selection, drawn on top.
    data : DataFrame
        Exactly what is drawn; empty if another panel of the chart holds it.
    name, title : str
        Its name in the chart's data, and the heading above it in a figure.
    bare : bool
        Without axes.
    square : bool
        As wide as high.
    keys : tuple of Key
        A legend in the lower right corner, under `key_title`.
    """

    x: Scale
    y: Scale
    marks: tuple[Mark, ...]
    moving: tuple[Mark, ...] = ()
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    name: str = ""
    title: str = ""
    bare: bool = False
    square: bool = False
    keys: tuple[Key, ...] = ()
    key_title: str = ""
    drawn: dict[Any, str] = field(default_factory=dict, repr=False)  # static marks, shared by copies

    @property
    def is_named_above(self) -> bool:
        """Whether a text stands above the panel, such as the name of a stretch."""
        return any(isinstance(mark, Text) and "y" in mark.over and mark.y > 1 for mark in self.marks)
