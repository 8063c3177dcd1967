"""Worlds with known features: how well they were recovered, and why inserted latents overshoot."""

from __future__ import annotations

import pandas as pd

from saekit.colours import INK, NOVEL, NULL, RECONSTRUCTION
from saekit.figures import FULL, Plot, house_style, new_figure
from saekit.training.variants import VARIANTS

PARTS = {
    "ideal": ("if nothing were carried or shared", RECONSTRUCTION),
    "carried": ("already carried by the small SAE", NOVEL),
    "interaction": ("inserted latents overlap", NULL),
}


def recovery_by_width(table: pd.DataFrame, score: str = "mcc") -> Plot:
    """A score against the truth over widths, one panel per world, with the range over seeds.

    Parameters
    ----------
    table : DataFrame
        `truth_table("recovery")`.
    score : str
        A column of it.

    Examples
    --------
    >>> rows = [("a world", "relu", width, seed, 0.9) for width in (4, 8) for seed in (0, 1)]
    >>> plot = recovery_by_width(pd.DataFrame(rows, columns=["world", "kind", "width", "seed", "mcc"]))
    >>> plot.data.columns.tolist()
    ['world', 'kind', 'width', 'mean', 'min', 'max']
    """
    data = table.groupby(["world", "kind", "width"])[score].agg(["mean", "min", "max"]).reset_index()
    worlds = list(dict.fromkeys(data["world"]))
    with house_style():
        figure = new_figure(FULL, 2.4)
        for axes, world in zip(figure.subplots(1, len(worlds), squeeze=False)[0], worlds, strict=True):
            for kind, part in data[data["world"] == world].groupby("kind", sort=False):
                known = VARIANTS.get(kind)
                look = (
                    {"color": known.colour, "marker": known.marker, "linestyle": known.line} if known else {}
                )
                label = known.label if known else kind.replace("_", " ")
                drawn = axes.plot(part["width"], part["mean"], label=label, markersize=4, **look)
                axes.fill_between(
                    part["width"],
                    part["min"],
                    part["max"],
                    color=drawn[0].get_color(),
                    alpha=0.15,
                    linewidth=0,
                )
            axes.set(title=world.replace("_", " "), xlabel="width", ylabel=score.upper())
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    best = data.loc[data.groupby("world")["mean"].idxmax()]
    told = "; ".join(f"{r.world}: {r.kind} {r.width} at {r.mean:.2f}" for r in best.itertuples())
    return Plot(
        figure,
        data,
        caption=f"{score.upper()} with the true features over widths; bands are the range over seeds. "
        f"Best: {told}.",
        alt=f"Lines of {score} over widths. Best: {told}.",
    )


def overshoot_parts_bars(table: pd.DataFrame, group: str = "novel_cos") -> Plot:
    """The exact parts of the change in MSE when all novel latents are inserted, pair by pair.

    Parameters
    ----------
    table : DataFrame
        `truth_table("family")`.
    group : str
        `"novel_cos"` or `"novel_gain"`.

    Examples
    --------
    >>> overshoot_parts_bars(saekit.truth_table("family")).data["group"].unique().tolist()
    ['novel_cos']
    """
    data = table[table["group"] == group].reset_index(drop=True)
    kinds = list(dict.fromkeys(data["kind"]))
    with house_style():
        figure = new_figure(FULL, 2.8)
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            part = data[data["kind"] == kind]
            places = range(len(part))
            for i, (name, (label, colour)) in enumerate(PARTS.items()):
                axes.bar([p + 0.25 * (i - 1) for p in places], part[name], 0.25, color=colour, label=label)
            axes.plot(places, part["change"], "D", color=INK, markersize=4, label="real change")
            axes.axhline(0, color=INK, linewidth=0.6)
            names = [f"{r.small}, seeds" if r.null else f"{r.small} → {r.large}" for r in part.itertuples()]
            axes.set_xticks(list(places), names, rotation=30, ha="right")
            axes.set(title=VARIANTS[kind].label, ylabel="change in MSE")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    pairs = data[~data["null"]]
    told = ", ".join(
        f"{VARIANTS[k].label} {p['carried_share'].mean():.0%}" for k, p in pairs.groupby("kind", sort=False)
    )
    return Plot(
        figure,
        data,
        caption=f"Change in MSE when all {group} latents are inserted, split exactly: what they would gain "
        "if the small dictionary carried nothing of them and none overlapped, what it carries already, and "
        f"how far they overlap. Share carried already, mean over widths: {told}.",
        alt=f"Bars of the three parts of the change in MSE for each pair. Share carried already: {told}.",
    )
