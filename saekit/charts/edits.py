"""Causal edits: what each method causes, what it leaves, and what it damages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from saekit.analysis.edits import PATCHING, RANDOM
from saekit.charts.chart import Chart
from saekit.charts.model import Dots, Key, Line, Mark, Panel, scale
from saekit.colours import DARK_GREY, INK, LATENT, META

if TYPE_CHECKING:
    from saekit.analysis.edits import Edits

# The same mark in every panel; baselines in ink, methods by latents and by meta-latents in their colours.
MARKS = {
    PATCHING: ("D", INK),
    "reconstruction": ("x", INK),
    RANDOM: ("+", DARK_GREY),
    "neurons": ("s", DARK_GREY),
    "principal components": ("^", DARK_GREY),
    "difference of means": ("v", INK),
    "all latents": ("p", LATENT),
    "latents": ("o", LATENT),
    "meta-latents": ("P", META),
    "meta-latents, as in the post": ("*", META),
    "meta-latents, as in the code": ("X", META),
}
STROKES = "x", "+"  # marks without an inside
SMALL, LARGE = 3.5, 7.0  # size of a mark: more components, larger


def edits_by_method(edits: Edits) -> Chart:
    """Draw cause against isolation, and against the damage to unrelated text, by method.

    Parameters
    ----------
    edits : Edits
        The edits.

    Examples
    --------
    >>> edits_by_method(saekit.measure_edits(model, sae, facts, templates, store))  # doctest: +SKIP
    """
    data = edits.table
    methods = [name for name in MARKS if name in set(data["method"])]
    most = float(data["damage_high"].max())
    powers = [value for value in (0.1, 1.0, 10.0) if value <= 1.3 * most]
    panels = {
        "isolation": scale(-0.05, 1.05, label="isolation: other attributes that stay"),
        "damage": scale(
            min(-0.03, 1.1 * float(data["damage_low"].min())),
            1.4 * max(most, 0.1),
            "symlog",
            unit=0.1,
            ticks=[0.0, *powers],
            label="damage (nats per token)",
        ),
    }
    drawn = []
    for measure, x in panels.items():
        marks: list[Mark] = [Line([0, 1], [1, 0], "quiet", 0.8, ":")] if measure == "isolation" else []
        for method in methods:
            part = data[data["method"] == method].sort_values("n")
            marker, colour = MARKS[method]
            for place, row in enumerate(part.to_dict("records")):
                size = LARGE if len(part) == 1 else SMALL + (LARGE - SMALL) * place / (len(part) - 1)
                at = row[measure], row["cause"]
                marks.append(Line([row[f"{measure}_low"], row[f"{measure}_high"]], [at[1]] * 2, colour, 0.5))
                marks.append(Line([at[0]] * 2, [row["cause_low"], row["cause_high"]], colour, 0.5))
                told = [f"{method}, {row['n']}: cause {at[1]:.2f}, {measure} {at[0]:.2f}"]
                fill, edge = _inside_and_edge(marker, colour)
                marks.append(Dots(*at, fill, marker, size, edge=edge, titles=told))
        first = measure == "isolation"
        y = scale(-0.05, 1.05, label="cause: edits that take" if first else "")
        drawn.append(Panel(x, y, tuple(marks), data=data if first else pd.DataFrame(), name=measure))
    n_pairs = edits.summary["n_pairs"]
    keys = []
    for name in methods:
        marker, colour = MARKS[name]
        fill, edge = _inside_and_edge(marker, colour)
        keys.append(Key(name, fill, marker, edge=edge, size=5))
    keys.append(Key("mean of 0.5, as with no edit", "quiet", dash=":", width=0.8))
    return Chart(
        (tuple(drawn),),
        alt=f"Cause against isolation, and against damage, of {len(data)} methods",
        height=205,
        widths=(1.25, 1),
        keys=tuple(keys),
        key_columns=3,
        caption=f"Edits of facts about {len(edits.entities)} entities. Over {n_pairs} pairs of base and "
        "source, cause is the share of edits after which the edited attribute is the source's, isolation "
        "the share of other attributes that stay the base's; on the dotted line their mean is 0.5, as if "
        "everything were left as it is. Damage is the increase in loss on unrelated text with the change "
        "added at every position. Larger marks swap more components; bars are 95% bootstrap intervals, over "
        "pairs or rows of text",
    )


def _inside_and_edge(marker: str, colour: str) -> tuple[str, str]:
    """The colours of a mark: open where it has an inside, so that marks on each other can be told apart."""
    return (colour, "") if marker in STROKES else ("none", colour)


def at_method(chart: Chart, method: str, n: int) -> Chart:
    """Mark a method of a chart of edits.

    Parameters
    ----------
    chart : Chart
        From `edits_by_method`.
    method, n : str and int
        The method and its number of components.

    Examples
    --------
    >>> at_method(edits_by_method(edits), "latents", 16)  # doctest: +SKIP
    """
    data = chart.data
    row = data[(data["method"] == method) & (data["n"] == n)].iloc[0]
    rings = {
        panel.name: Dots(row[panel.name], row["cause"], "none", size=LARGE + 5, edge="ink", edge_width=1.3)
        for panel in chart.panels
    }
    return replace(
        chart, rows=(tuple(replace(panel, moving=(rings[panel.name],)) for panel in chart.panels),)
    )
