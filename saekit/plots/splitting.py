"""Similarity across widths and feature splitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from saekit.analysis.splitting import STATUSES
from saekit.charts import trees
from saekit.charts.trees import STATUS_COLOURS
from saekit.colours import DARK_GREY, GREY, INK, NOVEL, RECONSTRUCTION, shade
from saekit.figures import FULL, Plot, house_style, new_figure
from saekit.plots.common import groups_of, made_from, root_scale
from saekit.wording import listed, percent

if TYPE_CHECKING:
    from saekit.analysis.similarity import FamilySimilarity
    from saekit.analysis.splitting import Splitting, SplittingTree


NULL_LINES = ("-", ":")  # second seed of the small and of the large width


def max_cosine_distribution(similarity: FamilySimilarity) -> Plot:
    """Greatest decoder cosine of every latent with the next smaller width, beside the seed nulls.

    Parameters
    ----------
    similarity : FamilySimilarity
        Similarity within a family; one panel per pair of neighbouring widths.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching: similarity of latents across widths.

    Examples
    --------
    >>> similarity = saekit.analysis.family_similarity(family)
    >>> max_cosine_distribution(similarity).data.columns.tolist()
    ['comparison', 'null', 'small_width', 'large_width', 'cosine_from', 'cosine_to', 'share']
    """
    theta, table = similarity.theta, similarity.table
    lowest = min(0, int(np.floor(similarity.frame["best_cosine"].min() * 40)))
    edges = np.arange(lowest, 41) / 40
    parts = []
    keys = ["comparison", "null", "small_width", "large_width"]
    for key, rows in groups_of(similarity.frame, keys):
        counts = np.histogram(rows["best_cosine"].clip(upper=1), edges)[0]
        identity = dict(zip(keys, key, strict=True))
        bins = {"cosine_from": edges[:-1], "cosine_to": edges[1:], "share": counts / len(rows)}
        parts.append(pd.DataFrame({**identity, **bins}))
    data = pd.concat(parts, ignore_index=True)
    pairs = table[~table["null"]]
    under = table[table["note"] == ""].set_index("comparison")["share_under_theta"]
    nulls = table[table["null"] & (table["note"] == "")].groupby("small_width")["comparison"].agg(list)
    novel = (edges[:-1] + edges[1:]) / 2 < theta
    with house_style():
        figure = new_figure(FULL, 2.3)
        panels = figure.subplots(1, len(pairs), sharex=True, sharey=True, squeeze=False)[0]
        for axes, pair in zip(panels, pairs.itertuples(), strict=True):
            share = data.loc[data["comparison"] == pair.comparison, "share"].to_numpy()
            for which, colour in ((novel, NOVEL), (~novel, RECONSTRUCTION)):
                axes.bar(edges[:-1][which], share[which], np.diff(edges)[which], align="edge", color=colour)
            found = []
            for width, dashes in zip((pair.small_width, pair.large_width), NULL_LINES, strict=True):
                for name in nulls.get(width, ()):
                    null = data.loc[data["comparison"] == name, "share"]
                    axes.stairs(null, edges, color=INK, linestyle=dashes, linewidth=0.9)
                    found.append(percent(under[name]))
            axes.axvline(theta, color=INK, linestyle="--", linewidth=0.8)
            seeds = f"seeds: {', '.join(found)}" if found else "no second seed"
            axes.set_title(
                f"{pair.comparison}\n{percent(under[pair.comparison])} under $\\theta$\n{seeds}", fontsize=7.5
            )
            axes.set_xlabel("greatest cosine")
            root_scale(axes, data["share"].max())
        panels[0].set_ylabel("share of latents")
        figure.legend(
            handles=[
                Patch(color=NOVEL, label=f"novel (cosine < {theta:g})"),
                Patch(color=RECONSTRUCTION, label="reconstruction"),
                Line2D([], [], color=INK, linewidth=0.9, label="two seeds, small width"),
                Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label="two seeds, large width"),
            ],
            loc="outside lower center",
            ncols=4,
        )
    shares = "; ".join(f"{name} {percent(share)}" for name, share in under.items())
    missing = table.loc[table["note"] != "", "small_width"].astype(str).tolist()
    return Plot(
        figure,
        data,
        caption="Similarity across widths. Greatest cosine of each latent of the larger dictionary with any "
        "latent of the smaller one, by decoder direction, on a square-root scale. Outlines show the same "
        "distribution between two seeds of one width (the null). Share of latents under "
        f"θ = {theta:g}: {shares}."
        + (f" There is no second seed of width {listed(missing)}." if missing else ""),
        alt=f"Histograms of the best decoder cosine for {len(pairs)} pairs of widths, with theta = {theta:g} "
        f"marked. Share under theta: {shares}.",
        made_from=made_from(similarity),
        settings={"theta": theta},
    )


def splitting_flow(tree: SplittingTree) -> Plot:
    """The fate of small latents and the origin of large ones, beside the nulls.

    Parameters
    ----------
    tree : SplittingTree
        One row per pair of neighbouring widths, and one per other seed of a width.

    Examples
    --------
    >>> plot = splitting_flow(saekit.splitting_tree(family))
    >>> plot.data.columns.tolist()
    ['comparison', 'null', 'latents_of', 'n_latents', 'status', 'share']
    """
    comparisons: list[tuple[str, bool, Splitting]] = []
    for width in tree.widths:
        for found in (seeds := tree.nulls[width]):
            other = "other seed" if len(seeds) == 1 else f"seed {found.large.seed}"
            comparisons.append((f"{width}, {other}", True, found))
        if width in tree.pairs:
            comparisons.append((f"{width} → {tree.pairs[width].large.width}", False, tree.pairs[width]))
    rows = []
    for name, null, result in comparisons:
        shares = {status: result.summary[f"share_{status}"] for status in STATUSES}
        novel = result.summary["share_novel"]
        for side, part in (("small", shares), ("large", {"with parent": 1 - novel, "novel": novel})):
            width = result.small.width if side == "small" else result.large.width
            for status, share in part.items():
                rows.append(
                    {
                        "comparison": name,
                        "null": null,
                        "latents_of": side,
                        "n_latents": width,
                        "status": status,
                        "share": share,
                    }
                )
    data = pd.DataFrame(rows)
    colours = {**STATUS_COLOURS, "with parent": RECONSTRUCTION, "novel": NOVEL}
    with house_style():
        figure = new_figure(FULL, 0.75 + 0.27 * len(comparisons))
        panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        titles = {"small": "fate of the small latents", "large": "origin of the large latents"}
        for axes, (side, title) in zip(panels, titles.items(), strict=True):
            for place, (name, null, _) in enumerate(comparisons):
                left = 0.0
                part = data[(data["comparison"] == name) & (data["latents_of"] == side)]
                for row in part.itertuples():
                    colour = colours[row.status]
                    lost = row.status == "lost"
                    axes.barh(
                        place,
                        row.share,
                        0.5 if null else 0.82,
                        left,
                        color=colour,
                        hatch="////" if lost else None,
                        edgecolor=shade(GREY, 0.5) if lost else "white",
                        linewidth=0.5,
                        label=row.status if place == 0 else None,
                    )
                    if row.share >= 0.06:
                        _share_text(axes, left + row.share / 2, place, row.share, colour, hatched=lost)
                    left += row.share
            axes.set(xlim=(0, 1), xlabel=f"share of the {side} latents")
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_title(title, pad=16, fontsize=8)
            axes.legend(
                loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4, columnspacing=1.0, handlelength=1.0
            )
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(range(len(comparisons)), [name for name, _, _ in comparisons])
        panels[0].invert_yaxis()
        for label, (_, null, _) in zip(panels[0].get_yticklabels(), comparisons, strict=True):
            label.set(color=DARK_GREY if null else INK, style="italic" if null else "normal")
    numbers = "; ".join(
        f"{name} {percent(result.summary['share_split'])} split, "
        f"{percent(result.summary['share_novel'])} novel"
        for name, _, result in comparisons
    )
    missing = [str(width) for width in tree.widths if not tree.nulls[width]]
    return Plot(
        figure,
        data,
        caption=f"Splitting from one width to the next at θ = {tree.theta:g}. A large latent's parent is its "
        "most similar small latent, provided that their cosine is at least θ; a latent without a parent is "
        "novel. A small latent with several children is split; one with a single child is identical (each "
        "is the other's best match, at a cosine of at least 0.9) or refined; one without children is lost. "
        f"Thin bars compare two seeds of one width (the null). {numbers}."
        + (f" There is no second seed of width {listed(missing)}." if missing else ""),
        alt=f"Stacked bars of the fate of small latents and the origin of large latents. {numbers}.",
        made_from=made_from(*(result for _, _, result in comparisons)),
        settings={"theta": tree.theta},
    )


def splitting_tree_plot(
    tree: SplittingTree, width: int, latent: int, labels: Mapping[tuple[int, int], str] | None = None
) -> Plot:
    """One latent with all its descendants, one column per width.

    Parameters
    ----------
    tree : SplittingTree
        Of a family.
    width, latent : int
        The root.
    labels : mapping, optional
        Text for latents by `(width, latent)`, such as their top tokens, cut to the space available.

    Raises
    ------
    ValueError
        If the latent has no children.

    Examples
    --------
    >>> plot = splitting_tree_plot(saekit.splitting_tree(family), 8, 2)
    >>> plot.data[["width", "latent", "parent"]]
       width  latent  parent
    0      8       2      -1
    1     12       2       2
    2     12       8       2
    """
    root = tree.subtree(width, latent)
    if not root["children"]:
        raise ValueError(f"Latent {latent} of width {width} has no children at theta = {tree.theta:g}.")
    labels = labels or {}
    chart = trees.splitting_tree(tree, width, latent, lambda w, i: labels.get((w, i), ""))
    return Plot(
        chart.figure(),
        chart.data,
        caption=f"{chart.caption}."
        + (" Labels that are too long have lost their last words (…)." if labels else ""),
        alt=f"{chart.alt}.",
        made_from=made_from(*(pair for above, pair in tree.pairs.items() if above >= width)),
        settings={"theta": tree.theta, "width": width, "latent": latent},
    )


def _share_text(axes: Axes, x: float, y: float, share: float, background: str, *, hatched: bool) -> None:
    dark = np.dot(to_rgb(background), [0.299, 0.587, 0.114]) < 0.5
    axes.text(
        x,
        y,
        percent(share),
        ha="center",
        va="center_baseline",
        fontsize=6.5,
        color="white" if dark else INK,
        # Only a hatch needs a plain ground, which would stand out of the thin bars.
        bbox={"facecolor": background, "edgecolor": "none", "pad": 0.0} if hatched else None,
    )
