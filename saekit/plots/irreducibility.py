"""Features that are not lines: clusters of latents in their planes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from saekit.colours import NULL, PALETTE
from saekit.figures import FULL, Plot, house_style, kind_style, new_figure
from saekit.plots.common import fit_text, made_from
from saekit.wording import fixed, listed

if TYPE_CHECKING:
    from saekit.analysis.irreducibility import ClusterPanels

PER_ROW = 3
COLOURED = 6  # tokens of each panel that have a colour of their own
TOKEN_WIDTH = 0.45  # inches in a legend


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
            for colour, word in zip(PALETTE, named, strict=False):
                here = part[words == word]
                axes.scatter(
                    here["x"],
                    here["y"],
                    s=4,
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
        caption=f"What clusters of {kind} latents reconstruct. Each point is a token on which a latent of "
        "the cluster is active, in the plane of two principal components of the cluster's reconstruction; "
        f"the {COLOURED} commonest tokens have colours. Clusters: {told}.",
        alt=f"{n} scatter plots of tokens in planes, coloured by token. The commonest tokens are "
        f"{listed(commonest)}.",
        made_from=made_from(result),
    )
