"""Scores of named things, one row each."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saekit.charts.chart import Chart
from saekit.charts.model import Dots, Key, Mark, Panel, Scale, scale
from saekit.colours import BLUE, GREEN, ORANGE, VERMILION
from saekit.html import cut, harmless

_LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILION, "D"))
LETTERS = 36  # of a name that are shown


def scores(
    data: pd.DataFrame, measures: Sequence[str], *, label: str, alt: str, selected: int | None = None
) -> Chart:
    """Draw up to four scores of each row, from 0 or below to 1.

    Parameters
    ----------
    data : DataFrame
        `name`, and a column for each measure.
    measures : sequence of str
        The columns to draw.
    label : str
        What the scores are.
    alt : str
        Alternative text.
    selected : int, optional
        The place of a row with a ring around its marks.

    Examples
    --------
    >>> frame = pd.DataFrame({"name": ["a", "b"], "AUC": [0.9, 0.7]})
    >>> scores(frame, ["AUC"], label="AUC", alt="AUC of two sets").data["AUC"].tolist()
    [0.9, 0.7]
    """
    data = data.reset_index(drop=True)
    low = min(0.0, float(data[list(measures)].min().min())) if len(data) else 0.0
    x = scale(low - 0.02, 1.02, label=label, grid=True)
    rows = range(len(data))
    names = tuple(cut(harmless(name), LETTERS) for name in data["name"])
    y = Scale(max(len(data), 1) - 0.5, -0.5, ticks=tuple(map(float, rows)), texts=names)
    marks: list[Mark] = []
    for measure, (colour, marker) in zip(measures, _LOOKS, strict=False):
        told = [
            f"{name}: {measure} {value:.3f}" for name, value in zip(data["name"], data[measure], strict=True)
        ]
        marks.append(Dots(data[measure].to_numpy(), list(rows), colour, marker, 4, titles=told))
    if selected is not None:
        for measure in measures:
            ring = Dots(data[measure].iat[selected], selected, "none", "o", 8, edge="ink", edge_width=1.2)
            marks.append(ring)
    keys = [Key(name, colour, marker) for name, (colour, marker) in zip(measures, _LOOKS, strict=False)]
    return Chart(
        ((Panel(x, y, tuple(marks), data=data),),),
        alt,
        height=34 + 11 * max(len(data), 1),
        keys=tuple(keys) if len(keys) > 1 else (),
    )
