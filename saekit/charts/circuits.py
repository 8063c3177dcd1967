"""Circuits: the nodes that carry a task, by position and hook point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from saekit.charts.chart import Chart
from saekit.charts.model import PAGE, Box, Dots, Key, Mark, Panel, Scale, Text
from saekit.colours import BLUE, VERMILION
from saekit.wording import number

LANE, NARROW = 19.0, 40.0  # points: height of a node's lane; cells under this width have names below discs
MOST = 10  # nodes of a cell that are drawn


def circuit(
    tokens: Sequence[str],
    places: Sequence[str],
    nodes: pd.DataFrame,
    selected: tuple[int, str, int] | None = None,
) -> Chart:
    """Draw nodes by position and hook point, sized by their effects.

    A disc is a latent, a square an error; filled if it supports the metric, hollow if it opposes it. Where
    there are too many positions for the width of a page, those without nodes are left out.

    Parameters
    ----------
    tokens : sequence of str
        Token of each position.
    places : sequence of str
        Hook points, the earliest first (drawn lowest).
    nodes : DataFrame
        `position`, `place`, `latent` (-1 for an error) and `effect`, greatest first.
    selected : tuple, optional
        Position, hook point and latent of a node with a ring.

    Examples
    --------
    >>> nodes = pd.DataFrame({"position": [1], "place": ["mlp"], "latent": [7], "effect": [-0.5]})
    >>> circuit(["the", " king"], ["mlp"], nodes).data["token"].tolist()
    [' king']
    """
    data = nodes[["position", "place", "latent", "effect"]].reset_index(drop=True)
    data.insert(1, "token", [tokens[position] for position in data["position"]])
    columns = list(range(len(tokens)))
    if (PAGE - 10) / max(len(columns), 1) < NARROW and len(data):
        columns = sorted(set(data["position"]))
    cell = min(56.0, (PAGE - 10) / max(len(columns), 1))
    narrow = cell < NARROW
    lane = LANE + 6 * narrow
    most = float(data["effect"].abs().max()) if len(data) else 1.0
    marks: list[Mark] = []
    over: list[Mark] = []
    y = 4.0
    width = 5 + cell * len(columns)
    for place in reversed(places):
        here = data[data["place"] == place]
        cells = dict(iter(here.groupby("position")))
        tall = 10 + lane * max([1, *(min(len(part), MOST) for part in cells.values())])
        marks.append(Box(2.5, y, max(width, 60.0), y + tall - 2.5, fill="band"))
        marks.append(Text(5, y + 6, place, "start", colour="quiet", size=6.5))
        for position, part in cells.items():
            left = 5 + cell * columns.index(position)
            for row, node in enumerate(part.head(MOST).itertuples()):
                at = left + (cell / 2 if narrow else 10), y + tall - 2.5 - lane * (row + 0.5) - 3 * narrow
                size = 4 + 11 * float(np.sqrt(abs(node.effect) / (most or 1.0)))
                over += _node(node, at, size, cell, narrow)
                if (position, place, node.latent) == selected:
                    over.append(Dots(*at, "none", "o", 18, edge="ink", edge_width=1.3))
            if len(part) > MOST:
                more = f"+ {len(part) - MOST} more"
                over.append(Text(left + cell - 3, y + 6, more, "end", colour="quiet", size=6.5))
        y += tall
    for n, position in enumerate(columns):
        middle = 5 + cell * (n + 0.5)
        over.append(Text(middle, y + 5, tokens[position], room=cell - 2))
        over.append(Text(middle, y + 14, str(position), colour="quiet", size=6.5))
    height = y + 20
    panel = Panel(Scale(0, PAGE), Scale(height, 0), (*marks, *over), data=data, bare=True)
    alt = "Nodes of the circuit by position and hook point"
    if len(data):
        alt += f"; the greatest effect is {number(float(data['effect'].iloc[0]))}"
    return Chart(
        ((panel,),),
        alt,
        height=height,
        keys=(
            Key("latent that supports the metric", BLUE, "o", size=6),
            Key("latent that opposes it", "none", "o", edge=VERMILION, size=6),
            Key("SAE error", BLUE, "s", size=6),
        ),
        key_columns=3,
        caption="Nodes of a circuit. Each disc is a latent and each square an SAE error, at its position "
        "(columns) and hook point (rows); areas are effects on the metric, filled where the node supports it "
        "and hollow where it opposes it",
    )


def _node(node: object, at: tuple[float, float], size: float, cell: float, narrow: bool) -> list[Mark]:
    name = "error" if node.latent < 0 else str(node.latent)  # type: ignore[attr-defined]
    effect = node.effect  # type: ignore[attr-defined]
    fill, edge = (BLUE, "") if effect < 0 else ("none", VERMILION)
    shape = "s" if name == "error" else "o"
    disc = Dots(*at, fill, shape, size, edge=edge, edge_width=1.3, titles=[f"{name}: {number(effect)}"])
    if narrow:
        return [disc, Text(at[0], at[1] + size / 2 + 4, name, size=6)]
    return [disc, Text(at[0] + 10, at[1], name, "start", colour="quiet", size=6.5, room=cell - 20)]
