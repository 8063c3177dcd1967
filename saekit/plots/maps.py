"""Maps of activations between layers and models, beside their nulls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from saekit.analysis.maps import FITTED, MEASURES, PSEUDOINVERSE
from saekit.colours import DARK_GREY, GREEN, INK, NOVEL, NULL, RECONSTRUCTION, shade
from saekit.figures import FULL, Plot, describe, house_style, new_figure
from saekit.wording import fixed, number

if TYPE_CHECKING:
    from saekit.analysis.maps import Maps

ACTIVATIONS, NATIVE = "activations", "native"
COLOURS = {
    ACTIVATIONS: INK,
    PSEUDOINVERSE: RECONSTRUCTION,
    FITTED: shade(RECONSTRUCTION, 0.6),
    NATIVE: NULL,
}
LABELS = {
    ACTIVATIONS: "mapped activations",
    PSEUDOINVERSE: "carried SAE, back by the pseudoinverse",
    FITTED: "carried SAE, back by a fitted map",
    NATIVE: "SAE trained there",
}
AFFINE_MAP = "affine map"
SHOWN = {  # in the plot of pairs: rows of the table, colour, marker
    AFFINE_MAP: ("points == 'activations' and map == 'affine'", INK, "o"),
    "map of rank 64": ("points == 'activations' and map == 'rank 64'", DARK_GREY, "s"),
    "random rotation": ("points == 'activations' and map == 'random orthogonal'", NULL, "D"),
    "no map": ("points == 'activations' and map == 'identity'", NOVEL, "X"),
    "SAE carried by affine maps": ("map == 'affine' and back == 'fitted'", RECONSTRUCTION, "^"),
    "SAE trained there": ("map == 'native'", GREEN, "v"),
}
LONGEST = {"fvu": 1.2, "ce_degradation": 4.0}  # a longer bar is cut, with its value written on it


def map_bars(result: Maps) -> Plot:
    """FVU and CE degradation of maps and of a dictionary carried through them.

    Parameters
    ----------
    result : Maps
        CE degradation is drawn if it was measured.

    Examples
    --------
    >>> result = saekit.measure_maps(x, x @ torch.rand(6, 6), small, ranks=[2])
    >>> map_bars(result).data.columns.tolist()
    ['map', 'what', 'fvu', 'fvu_error', 'ce_degradation', 'ce_degradation_error']
    """
    of_maps = result.frame.assign(what=ACTIVATIONS)
    carried = result.carried.assign(what=result.carried["back"].replace("", NATIVE))
    data = pd.concat([of_maps, carried], ignore_index=True)[["map", "what", *MEASURES]]
    maps = list(dict.fromkeys(data["map"]))
    shown = ["fvu", "ce_degradation"] if data["ce_degradation"].notna().any() else ["fvu"]
    with house_style():
        figure = new_figure(FULL, 0.9 + 0.13 * len(data) + 0.1 * len(maps))
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, shown, strict=True):
            _bars(axes, data, maps, measure)
        panels[0].set_xlabel("FVU on held-out tokens")
        if len(panels) > 1:
            panels[1].set_xlabel("CE degradation (nats per token)")
        figure.legend(
            handles=[
                Patch(color=colour, label=LABELS[what])
                for what, colour in COLOURS.items()
                if (data["what"] == what).any()
            ],
            loc="outside lower center",
            ncols=2,
        )
    ends = result.summary
    rows = data[data["what"] == ACTIVATIONS]
    told = ", ".join(f"{row.map} {number(row.fvu)}" for row in rows.itertuples())
    if len(shown) > 1:
        told += "; CE degradation: " + ", ".join(
            f"{r.map} {fixed(r.ce_degradation)}" for r in rows.itertuples()
        )
    place = f"from {ends['source'] or 'the source'} to {ends['target'] or 'the target'}"
    return Plot(
        figure,
        data,
        caption=f"Maps of activations {place}. Fitted on {result.n_fitted:,} tokens and "
        f"measured on {result.n_held_out:,} tokens of other documents. FVU of mapped activations: {told}.",
        alt=f"Horizontal bars for {len(maps)} maps {place}. FVU of mapped activations: {told}.",
        made_from={} if result.dictionary is None else describe(result.dictionary),
    )


def map_pairs(table: pd.DataFrame) -> Plot:
    """FVU and CE degradation of maps between several pairs of layers.

    Parameters
    ----------
    table : DataFrame
        One row per pair, map, and dictionary carried through it, as `lines_table("maps")` of
        `saekit.series.lines_grid`.

    Examples
    --------
    >>> from saekit.series.lines_grid import lines_table
    >>> map_pairs(lines_table("maps")).data.columns.tolist()[:3]
    ['source', 'target', 'shown']
    """
    of = {name: table.query(query).assign(shown=name) for name, (query, _, _) in SHOWN.items()}
    data = pd.concat(of.values(), ignore_index=True)
    data = data[["source", "target", "shown", *MEASURES, "n_fitted", "n_held_out"]]
    pairs = list(table.groupby(["source", "target"], sort=False).groups)
    with house_style():
        figure = new_figure(FULL, 1.1 + 0.26 * len(pairs))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, measure in zip(panels, ("fvu", "ce_degradation"), strict=True):
            for place, (name, part) in enumerate(of.items()):
                _, colour, marker = SHOWN[name]
                rows = [pairs.index(pair) for pair in zip(part["source"], part["target"], strict=True)]
                axes.errorbar(
                    part[measure],
                    np.array(rows) + 0.11 * (place - (len(of) - 1) / 2),
                    xerr=part[f"{measure}_error"],
                    fmt=marker,
                    color=colour,
                    markersize=3.5,
                    linewidth=0.7,
                    label=name,
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(pairs)), [f"{source} → {target}" for source, target in pairs])
        panels[0].set_ylim(len(pairs) - 0.45, -0.55)
        panels[0].set_ylabel("block")
        panels[0].set_xlabel("FVU on held-out tokens")
        panels[1].set_xlabel("CE degradation (nats per token)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    affine = data[data["shown"] == AFFINE_MAP]
    told = "; ".join(
        f"{row.source} to {row.target}: FVU {number(row.fvu)}, CE degradation {fixed(row.ce_degradation)}"
        for row in affine.itertuples()
    )
    return Plot(
        figure,
        data,
        caption="Maps between layers. The residual stream after one block, mapped to that after another, "
        f"measured on {int(data['n_held_out'].max()):,} tokens of other documents than the maps were fitted "
        "on. An SAE of the source is carried by affine maps fitted in both directions; the target's own "
        f"SAE is shown where there is one. Lines are standard errors over rows. Affine maps: {told}.",
        alt=f"Dots of FVU and CE degradation for {len(pairs)} pairs of layers. Affine maps: {told}.",
    )


def _bars(axes: Axes, data: pd.DataFrame, maps: list[str], measure: str) -> None:
    """A group of bars for each map, from the top."""
    longest = min(LONGEST[measure], 1.05 * float(data[measure].max()))
    place, ticks = 0.0, []
    for name in maps:
        part = data[data["map"] == name]
        ticks.append(place + (len(part) - 1) / 2)
        for row in part.to_dict("records"):
            value = float(row[measure])
            axes.barh(place, min(value, longest), 0.8, color=COLOURS[row["what"]])
            if value > longest:
                axes.text(
                    0.98 * longest,
                    place,
                    number(value, 2),
                    ha="right",
                    va="center",
                    fontsize=6,
                    color="white",
                )
            else:
                colour = NULL if row["what"] == ACTIVATIONS else INK
                axes.errorbar(value, place, xerr=row[f"{measure}_error"], color=colour, linewidth=0.6)
            place += 1
        place += 0.7
    axes.set_yticks(ticks, maps)
    axes.set_ylim(place - 1.2, -0.6)
    axes.set_xlim(min(0.0, 1.1 * float(data[measure].min())), longest)
