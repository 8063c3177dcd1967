"""Several figures composed into one, with letters for its panels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any

from matplotlib.artist import Artist, allow_rasterization
from matplotlib.figure import Figure

from saekit.charts.chart import stacked
from saekit.figures import FULL, Plot, house_style

LETTERS = "abcdefghijklmnopqrstuvwxyz"
HEAD, GAP = 0.17, 0.1  # inches above a row for its letters, and between panels


class _Sheet(Figure):
    """An empty figure that keeps the resolution of the figures drawn on it at its own."""

    @property
    def dpi(self) -> float:
        return super().dpi

    @dpi.setter
    def dpi(self, value: float) -> None:
        super(_Sheet, type(self)).dpi.__set__(self, value)  # type: ignore[attr-defined]  # a property of the base
        for panel in self.artists:
            if isinstance(panel, _Panel):
                panel.inner.set_dpi(value)


class _Panel(Artist):
    """A finished figure as an artist of another one, `x` and `y` inches from its lower left corner."""

    def __init__(self, inner: Figure, x: float, y: float) -> None:
        super().__init__()
        self.inner, self.place = inner, (x, y)

    @allow_rasterization
    def draw(self, renderer: Any) -> None:
        # All that a figure draws is placed relative to this box: it is moved, and put back for the figure.
        box, dpi = self.inner.bbox_inches, self.inner.dpi
        before = box.get_points().copy()
        try:
            self.inner.set_dpi(self.figure.dpi)
            box.set_points(before + self.place)
            self.inner.draw(renderer)
        finally:
            box.set_points(before)
            self.inner.set_dpi(dpi)


def compose(rows: Sequence[Plot | Sequence[Plot]], title: str) -> Plot:
    """Put figures into one, row by row, with a letter for each.

    Each is drawn as it is, at its own size.

    Parameters
    ----------
    rows : sequence of Plot, or of sequences of Plot
        Each entry is a row, from top to bottom: one figure, or several beside each other.
    title : str
        Begins the caption, which then has those of the panels.

    Returns
    -------
    Plot
        Its numbers are those of all panels, one below the other, with their letters in `letter`; its
        settings are those of each panel by its letter.

    Raises
    ------
    TypeError
        If a figure is not a `Plot`, or the title is not text.
    ValueError
        If there are no figures or more than letters, or a row is wider than the text of a page.

    Examples
    --------
    >>> result = saekit.insertion(saes[16], saes[32], harvested)
    >>> plots = saekit.plots.insertion_scatter(result), saekit.plots.group_insertion_bars(
    ...     saekit.group_insertion(saes[16], saes[32], result, harvested)
    ... )
    >>> compose(plots, "Insertion").data["letter"].unique().tolist()
    ['a', 'b']
    """
    if isinstance(rows, Plot) or not isinstance(rows, Iterable):
        raise TypeError(f"rows must be a sequence of Plots or of rows of them, found {type(rows).__name__}.")
    lines: list[list[Any]] = [list(row) if isinstance(row, list | tuple) else [row] for row in rows]
    found = [plot for line in lines for plot in line]
    for plot in found:
        if not isinstance(plot, Plot):
            raise TypeError(f"A figure is composed of Plots, found {type(plot).__name__}.")
    if not isinstance(title, str) or not title.strip():
        raise TypeError(f"title must be text, which begins the caption, found {title!r}.")
    if not (all(lines) and 0 < len(found) <= len(LETTERS)):
        raise ValueError(f"A figure is composed of 1 to {len(LETTERS)} others, found {len(found)}.")
    sizes = [[plot.figure.get_size_inches() for plot in line] for line in lines]
    for number, line in enumerate(sizes, start=1):
        wide = sum(width for width, _ in line) + GAP * (len(line) - 1)
        if wide > FULL + 0.01:
            raise ValueError(f"Row {number} is {wide:.2f} inches wide, and the text of a page {FULL}.")
    heights = [HEAD + max(height for _, height in line) for line in sizes]
    letters = iter(LETTERS)
    with house_style():
        sheet = _Sheet(figsize=(FULL, sum(heights) + GAP * (len(heights) - 1)))
        top = float(sheet.get_size_inches()[1])
        for plots, size, height in zip(lines, sizes, heights, strict=True):
            left = 0.0
            for plot, (wide, high) in zip(plots, size, strict=True):
                sheet.add_artist(_Panel(plot.figure, left, top - HEAD - high))
                x, y = (left + 0.02) / FULL, (top - 0.03) / float(sheet.get_size_inches()[1])
                sheet.text(x, y, next(letters), va="top", fontsize=9, fontweight="bold")
                left += float(wide) + GAP
            top -= height + GAP
    named = dict(zip(LETTERS, found, strict=False))
    return Plot(
        sheet,
        stacked("letter", {letter: plot.data for letter, plot in named.items()}),
        caption=f"{title}. " + " ".join(f"({letter}) {plot.caption}" for letter, plot in named.items()),
        alt=" ".join(f"({letter}) {plot.alt}" for letter, plot in named.items()),
        made_from=reduce(or_, (dict(plot.made_from) for plot in found)),
        settings={letter: dict(plot.settings) for letter, plot in named.items() if plot.settings},
        modules=tuple(sorted({__name__, *(module for plot in found for module in plot.modules)})),
    )
