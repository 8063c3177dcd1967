"""Causal edits: what each method causes, what it leaves, and what it damages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from saekit.analysis.edits import PATCHING, RANDOM
from saekit.colours import DARK_GREY, INK, LATENT, META, NULL
from saekit.figures import FULL, Plot, house_style, new_figure
from saekit.plots.common import made_from

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
SMALL, LARGE = 4.0, 8.0  # size of a mark: more components, larger


def edits_by_method(result: Edits) -> Plot:
    """Cause against isolation, and against the damage to unrelated text, by method.

    Parameters
    ----------
    result : Edits
        The edits.

    Examples
    --------
    >>> saekit.measure_edits(model, sae, facts, templates, store).plot()  # doctest: +SKIP
    """
    data = result.table
    methods = [name for name in MARKS if name in set(data["method"])]
    with house_style():
        figure = new_figure(FULL, 3.6)
        plane, damage = figure.subplots(1, 2, width_ratios=[1.25, 1], sharey=True)
        for method in methods:
            part = data[data["method"] == method].sort_values("n")
            marker, colour = MARKS[method]
            for place, row in enumerate(part.to_dict("records")):
                size = LARGE if len(part) == 1 else SMALL + (LARGE - SMALL) * place / (len(part) - 1)
                for axes, x in ((plane, "isolation"), (damage, "damage")):
                    xerr, yerr = (
                        [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]]
                        for name in (x, "cause")
                    )
                    axes.errorbar(
                        [row[x]],
                        [row["cause"]],
                        xerr=xerr,
                        yerr=yerr,
                        marker=marker,
                        markersize=size,
                        color=colour,
                        elinewidth=0.5,
                    )
        plane.set(
            xlabel="isolation: other attributes that stay",
            ylabel="cause: edits that take",
            xlim=(-0.05, 1.05),
            ylim=(-0.05, 1.05),
        )
        damage.set_xscale("symlog", linthresh=0.1)
        plane.plot([0, 1], [1, 0], color=NULL, linewidth=0.8, linestyle=":", zorder=0)
        damage.set(xlabel="damage (nats per token)")
        marks = [
            Line2D(
                [], [], linestyle="", marker=MARKS[name][0], color=MARKS[name][1], markersize=5, label=name
            )
            for name in methods
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=3)
    best = data.sort_values("disentangle", ascending=False)
    found = "; ".join(
        f"{row.method} ({row.n}) cause {row.cause:.2f}, isolation {row.isolation:.2f}, "
        f"damage {row.damage:.2f}"
        for row in best.itertuples()
    )
    first, n_pairs = best.iloc[0], result.summary["n_pairs"]
    return Plot(
        figure,
        data,
        caption=f"Edits of facts about {len(result.entities)} entities. Over {n_pairs} pairs of base and "
        "source, cause is the share of edits after which the edited attribute is the source's, isolation "
        "the share of other attributes that stay the base's; on the dotted line their mean is 0.5, as if "
        "everything were left as it is. Damage is the increase in loss on unrelated text with the change "
        "added at every position. Larger marks swap more components; bars are 95% bootstrap intervals, over "
        f"pairs or rows of text. Greatest mean: {first['method']} ({first['n']}), "
        f"{first['disentangle']:.2f}.",
        alt="Scatter of cause against isolation, and against damage. By the mean of cause and isolation: "
        f"{found}.",
        made_from=made_from(result),
    )
