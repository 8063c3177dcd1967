"""A picture with its alternative text and its numbers, and the two ways to draw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from markupsafe import Markup

from saekit.charts.model import PAGE, Key, Panel
from saekit.charts.svg import draw_svg
from saekit.html import image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Chart:
    """A picture: rows of panels, with its alternative text and the numbers that it shows.

    Attributes
    ----------
    rows : tuple of tuple of Panel
        Panels from top to bottom and left to right; None is an empty place.
    alt : str
        Alternative text.
    width, height : float
        Points, with everything; 396 is the width of a page of text (`PAGE`).
    widths, heights : tuple of float
        Ratios of columns and rows; all alike if empty.
    keys : tuple of Key
        A legend under the panels, in `key_columns` columns.
    caption : str
        For a figure; its first sentence is the title.

    Examples
    --------
    >>> from saekit.charts.model import Line, scale
    >>> line = Line([0, 1, 2], [0, 1, 4], "ink")
    >>> data = pd.DataFrame({"x": [0, 1, 2], "y": [0, 1, 4]})
    >>> chart = Chart(((Panel(scale(0, 2), scale(0, 4), (line,), data=data),),), alt="y over x")
    >>> chart.svg()[:4], chart.data["y"].tolist()
    (Markup('<svg'), [0, 1, 4])
    """

    rows: tuple[tuple[Panel | None, ...], ...]
    alt: str
    width: float = PAGE
    height: float = 158.0
    widths: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()
    keys: tuple[Key, ...] = ()
    key_columns: int = 4
    caption: str = ""

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row if panel is not None]

    @property
    def data(self) -> pd.DataFrame:
        """Exactly what is drawn; of several panels one below the other, with their names in `panel`."""
        found = {panel.name: panel.data for panel in self.panels if len(panel.data.columns)}
        return stacked("panel", found)

    def svg(self, *, stretch: float = 1.0) -> Markup:
        """Draw it for a page, in the page's theme; with `stretch`, larger around texts of the same size."""
        return draw_svg(self, stretch)

    def html(self, *, as_image: bool = False, stretch: float = 1.0) -> Markup:
        """The same for a page; or as an image, whose text stays where drawings are dropped."""
        drawn = self.svg(stretch=stretch)
        return image(drawn, self.alt) if as_image else drawn

    def figure(self) -> Figure:
        """Draw it for a paper, in house style."""
        from saekit.charts.paper import draw_figure

        return draw_figure([self])


def stacked(name: str, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other, with their names in a first column; a single one is itself.

    Examples
    --------
    >>> stacked("panel", {"a": pd.DataFrame({"x": [1]}), "b": pd.DataFrame({"y": [2]})}).columns.tolist()
    ['panel', 'x', 'y']
    """
    if len(frames) == 1:
        return next(iter(frames.values()))
    found = pd.concat(frames, names=[name]).reset_index(name)
    return found.reset_index(drop=True)
