"""Worlds with known features: how well they were recovered, and why inserted latents overshoot."""

from __future__ import annotations

import pandas as pd

from saekit.colours import INK, NOVEL, NULL, RECONSTRUCTION
from saekit.figures import FULL, Plot, house_style, new_figure
from saekit.training.variants import VARIANTS

CLASSIC = {  # label and marker of methods without latents
    "pca": ("PCA", "+"),
    "fastica": ("FastICA", "x"),
    "minibatch_dictionary_learning": ("dictionary learning", "1"),
}
TITLES = {"nabeshima_tree": "Nabeshima's tree", "synth_sae_bench": "SynthSAEBench, small"}
LOWEST = -1.5  # relative change that is still drawn
GROUPS = {"novel_cos": "novel latents", "novel_gain": "latents that help alone"}
PARTS = {
    "ideal": ("if nothing were carried or shared", RECONSTRUCTION, ""),
    "carried": ("already carried by the small SAE", NOVEL, ""),
    "interaction": ("inserted latents overlap", NULL, "////"),
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
    groups = table.groupby(["world", "kind", "width"], sort=False)
    data = groups[score].agg(["mean", "min", "max"]).reset_index()
    worlds = list(dict.fromkeys(data["world"]))
    name = score.replace("_", " ") if "_" in score else score.upper()
    columns = min(2, len(worlds))
    rows = -(-len(worlds) // columns)
    with house_style():
        figure = new_figure(FULL, 0.6 + 1.7 * rows)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for axes in panels[len(worlds) :]:
            axes.set_axis_off()
        for axes, world in zip(panels, worlds, strict=False):
            here = data[data["world"] == world]
            for kind, part in here.groupby("kind", sort=False):
                colour, marker, line = NULL, CLASSIC.get(kind, ("", ""))[1], ":"
                if known := VARIANTS.get(kind):
                    colour, marker, line = known.colour, known.marker, known.line
                look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4}
                axes.plot(part["width"], part["mean"], label=_label(kind), **look)
                axes.fill_between(
                    part["width"], part["min"], part["max"], color=colour, alpha=0.15, linewidth=0
                )
            axes.set(title=_title(world), xlabel="width")
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(here["width"])))
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.minorticks_off()
        for axes in panels[::columns]:
            axes.set_ylabel(name)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    best = data.loc[data.groupby("world")["mean"].idxmax()]
    told = "; ".join(
        f"{_title(r.world)}: {_label(r.kind)} {r.width} at {r.mean:.2f}" for r in best.itertuples()
    )
    return Plot(
        figure,
        data,
        caption=f"Recovery of the true features. {name} against width in worlds whose features are known; "
        f"bands are the range over seeds. Best: {told}.",
        alt=f"Lines of {score} over widths. Best: {told}.",
    )


def hedging_scatter(table: pd.DataFrame, by_hand: pd.DataFrame) -> Plot:
    """What inserting all novel latents changes, against the hedging score of the narrow dictionary.

    The change in MSE is a share of the inserted latents' power: -1 if the narrow dictionary lacked all of it,
    above 0 if inserting them overshoots.

    Parameters
    ----------
    table, by_hand : DataFrame
        `truth_table("hedging")` and `truth_table("hedged_by_hand")`.

    Examples
    --------
    >>> tables = (saekit.truth_table(name) for name in ("hedging", "hedged_by_hand"))
    >>> hedging_scatter(*tables).data["large"].unique().tolist()
    ['true', 'trained', 'by hand']
    """
    data = pd.concat([table, by_hand.assign(large="by hand", kind="by hand")], ignore_index=True)
    data["relative_change"] = -data["change"] / data["ideal"]
    data = data[data["score"].notna() & (data["ideal"] < 0)]
    panels = {"true": "true features inserted", "trained": "latents of a trained SAE inserted"}
    with house_style():
        figure = new_figure(FULL, 2.8)
        for axes, (large, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            for kind, part in data[data["large"] == large].groupby("kind", sort=False):
                look = VARIANTS[kind]
                axes.plot(
                    part["score"], part["relative_change"], look.marker, color=look.colour, label=look.label
                )
            if large == "true":
                line = data[data["large"] == "by hand"]
                axes.plot(line["score"], line["relative_change"], color=INK, label="hedged by hand")
            axes.axhline(0, color=INK, linewidth=0.6)
            axes.set(title=title, xlabel="hedging score of the narrow SAE")
        figure.axes[0].set_ylabel("change in MSE over power inserted")
        figure.axes[0].set_ylim(bottom=LOWEST)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    ranks = {
        large: part["score"].corr(part["relative_change"], method="spearman")
        for large, part in data.groupby("large", sort=False)
    }
    told = "; ".join(f"{large} {rank:.2f}" for large, rank in ranks.items())
    below = int((data["relative_change"] < LOWEST).sum())
    return Plot(
        figure,
        data,
        caption="Hedging and overshoot. Change in MSE when all novel latents are inserted into a narrow "
        "dictionary of the hedging tree, relative to the power that they bring, against its hedging score; "
        "there is one point per kind, seed and rate of the children. Above 0 inserting them overshoots. Rank "
        f"correlation: {told}. Points below the axis: {below}.",
        alt=f"Scatter of the relative change in MSE over the hedging score. Rank correlation: {told}.",
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
            for i, (name, (label, colour, hatch)) in enumerate(PARTS.items()):
                style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
                axes.bar([p + 0.25 * (i - 1) for p in places], part[name], 0.25, label=label, **style)
            axes.plot(places, part["change"], "D", color=INK, markersize=4, label="real change")
            axes.axhline(0, color=INK, linewidth=0.6)
            names = [f"{r.small}, seeds" if r.null else f"{r.small} → {r.large}" for r in part.itertuples()]
            axes.set_xticks(list(places), names, rotation=30, ha="right")
            axes.set_title(VARIANTS[kind].label)
        figure.axes[0].set_ylabel("change in MSE")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    pairs = data[~data["null"]]
    told = ", ".join(
        f"{VARIANTS[k].label} {p['carried_share'].mean():.0%}" for k, p in pairs.groupby("kind", sort=False)
    )
    return Plot(
        figure,
        data,
        caption="Why inserted latents overshoot. Change in MSE when all "
        f"{GROUPS[group]} are inserted, split exactly into what they would gain if the small dictionary "
        "carried nothing of them and none overlapped, what it carries already, and how far they overlap; "
        f"each panel has its own scale. Share carried already, mean over widths: {told}.",
        alt=f"Bars of the three parts of the change in MSE for each pair. Share carried already: {told}.",
    )


def _title(world: str) -> str:
    return TITLES.get(world, world.replace("_", " "))


def _label(kind: str) -> str:
    return VARIANTS[kind].label if kind in VARIANTS else CLASSIC[kind][0]
