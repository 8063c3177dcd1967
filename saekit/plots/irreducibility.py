"""Features that are not lines: clusters of latents in their planes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import MaxNLocator

from saekit.charts.paper import fit_text
from saekit.colours import LIGHT_GREY, NULL, PALETTE, RECONSTRUCTION
from saekit.figures import FULL, Plot, house_style, kind_style, new_figure
from saekit.plots.common import made_from, spread_labels
from saekit.wording import fixed, listed

if TYPE_CHECKING:
    from saekit.analysis.irreducibility.panels import ClusterPanels
    from saekit.analysis.irreducibility.words import CircularOrder

PER_ROW = 3
COLOURED = 6  # tokens of each panel that have a colour of their own
TOKEN_WIDTH = 0.45  # inches in a legend
MARKERS = "os^DvP"  # of the coloured tokens
PANEL = 1.55  # inches of a panel of words


def cluster_panels(result: ClusterPanels) -> Plot:
    """Clusters of latents in their planes, a point per token, coloured by the token.

    Parameters
    ----------
    result : ClusterPanels
        One panel per cluster.

    Examples
    --------
    >>> clusters = saekit.cluster_latents(large, method="graph", theta=0.7)
    >>> of_large = saekit.collect(large, store)
    >>> scored = saekit.measure_irreducibility(large, of_large, clusters, min_tokens=20)
    >>> cluster_panels(saekit.show_clusters(scored, large, of_large, store, vocabulary)).data.columns.tolist()
    ['cluster', 'plane', 'position', 'token', 'x', 'y']
    """
    scores = result.scores
    n = len(scores)
    columns = min(n, PER_ROW)
    rows = -(-n // PER_ROW)
    commonest = []
    with house_style():
        figure = new_figure(FULL * columns / PER_ROW, 2.3 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, row in zip(panels, scores.itertuples(), strict=False):
            part = result.frame[result.frame["cluster"] == row.cluster]
            words = part["token"].str.strip().where(lambda word: word != "", "(space)")
            named = words.value_counts().index[:COLOURED]
            commonest.append(str(named[0]))
            rest = part[~words.isin(named)]
            axes.scatter(rest["x"], rest["y"], s=2, color=NULL, alpha=0.4, linewidths=0, rasterized=True)
            for colour, marker, word in zip(PALETTE, MARKERS, named, strict=False):
                here = part[words == word]
                axes.scatter(
                    here["x"],
                    here["y"],
                    s=5,
                    marker=marker,
                    color=colour,
                    alpha=0.7,
                    linewidths=0,
                    rasterized=True,
                    label=fit_text(word, TOKEN_WIDTH, 6),
                )
            axes.set_title(f"{row.cluster}: {row.n_latents} latents, score {fixed(row.score)}", fontsize=7)
            axes.set_xlabel(f"component {row.plane + 1}", fontsize=7)
            axes.set_ylabel(f"component {row.plane + 2}", fontsize=7)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.28),
                ncols=3,
                fontsize=6,
                handlelength=0.6,
                handletextpad=0.3,
                columnspacing=0.8,
                markerscale=1.8,
            )
        for axes in panels[n:]:
            axes.axis("off")
    kind = f"{kind_style(result.dictionary.kind).label} {result.dictionary.width}"
    told = ", ".join(
        f"{row.cluster} ({row.n_latents} latents, separability {fixed(row.separability)} bits beside "
        f"{fixed(row.separability_null)} for independent coordinates, mixture {fixed(row.mixture)})"
        for row in scores.itertuples()
    )
    return Plot(
        figure,
        result.frame,
        caption=f"Joint reconstructions of clusters of {kind} latents. Each point is a token on which a "
        "latent of the cluster is active, in the plane of two principal components of that reconstruction; "
        f"the {COLOURED} commonest tokens have colours. Clusters: {told}.",
        alt=f"{n} scatter plots of tokens in planes, coloured by token. The commonest tokens are "
        f"{listed(commonest)}.",
        made_from=made_from(result),
    )


def word_circles(results: CircularOrder | Mapping[str, CircularOrder]) -> Plot:
    """The mean point of each word in the plane of a test of circular order, joined in the order of the words.

    Parameters
    ----------
    results : CircularOrder or mapping
        One panel per result, by its title.

    Examples
    --------
    >>> turn = torch.arange(7) * 2 * torch.pi / 7
    >>> week = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    >>> points = torch.stack([turn.cos(), turn.sin()], dim=1)
    >>> found = saekit.analysis.measure_circular_order(points, range(7), week)
    >>> word_circles({"days": found}).data.columns.tolist()
    ['panel', 'word', 'n_points', 'x', 'y']
    """
    results = results if isinstance(results, Mapping) else {"words": results}
    data = pd.concat([found.frame.assign(panel=name) for name, found in results.items()], ignore_index=True)
    data = data[["panel", "word", "n_points", "x", "y"]]
    columns = min(len(results), PER_ROW)
    rows = -(-len(results) // PER_ROW)
    with house_style():
        figure = new_figure(FULL * max(columns, 2) / PER_ROW, 2.0 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, found) in zip(panels, results.items(), strict=False):
            part = found.frame.dropna(subset=["x", "y"])
            around = pd.concat([part, part.iloc[:1]])
            axes.plot(around["x"], around["y"], color=RECONSTRUCTION, linewidth=0.6)
            axes.plot(part["x"], part["y"], "o", color=RECONSTRUCTION, markersize=2.5, zorder=4)
            size = 1.35 * float(part[["x", "y"]].abs().max(axis=None))
            inch = 2 * size / PANEL
            places = spread_labels(part[["x", "y"]].to_numpy(), (0.24 * inch, 0.11 * inch))
            for row, (x, y) in zip(part.itertuples(), places, strict=True):
                axes.plot([row.x, x], [row.y, y], color=NULL, linewidth=0.4, zorder=1)
                text = axes.text(x, y, str(row.word)[:3], ha="center", va="center_baseline", fontsize=6.5)
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3})
            axes.axhline(0, color=LIGHT_GREY, linewidth=0.6, zorder=0)
            axes.axvline(0, color=LIGHT_GREY, linewidth=0.6, zorder=0)
            axes.set(xlim=(-size, size), ylim=(-size, size), aspect="equal", xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_title(f"{name}\norder {fixed(found.order)}, p = {found.p_value:.2g}", fontsize=7)
        for axes in panels[len(results) :]:
            axes.axis("off")
    told = "; ".join(
        f"{name}: order {fixed(found.order)} beside {fixed(found.order_null)} for words in random order "
        f"(p = {found.p_value:.2g}, {int(found.frame['n_points'].sum()):,} tokens)"
        for name, found in results.items()
    )
    return Plot(
        figure,
        data,
        caption="Words around a circle. Mean points of words in the plane of two principal components of "
        f"these means where their angles agree best with their order, joined in that order. {told}.",
        alt=f"{len(results)} panels of words joined by lines. {told}.",
    )
