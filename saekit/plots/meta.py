"""Meta-SAEs: how well they explain decoder directions, and the meta-latents of latents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from saekit.analysis.meta.latents import require_tree
from saekit.charts import trees
from saekit.charts.paper import fit_text
from saekit.colours import DARK_GREY, INK, LIGHT_GREY, META, NULL, PALETTE, shade
from saekit.figures import FULL, HALF, Plot, describe, house_style, kind_style, new_figure, width_colours
from saekit.plots.common import doubling_axis, groups_of, ink_on, made_from, named, rows_of
from saekit.wording import fixed, listed, percent, share

if TYPE_CHECKING:
    from saekit.analysis.labels import Labels
    from saekit.analysis.meta.baselines import MetaBaselines
    from saekit.analysis.meta.latents import CosineDistributions, MetaSplitting, RelatedLatents, SideBySide
    from saekit.analysis.meta.sae import MetaSAE, MetaSweep
    from saekit.analysis.splitting import SplittingTree

BASELINE = shade(NULL, 0.4)
ENCODERS = {
    "own": "",
    "kept": "encoder kept",
    "refit": "encoder refitted",
    "matching pursuit": "matching pursuit",
    "nearest centroid": "nearest one",
    "projection": "projection",
}
BINS = 40
FLOOR = -0.15  # explained variance under which a bar is cut off


def meta_baselines(result: MetaBaselines) -> Plot:
    """Variance of the decoder directions that each dictionary and encoder explains.

    Parameters
    ----------
    result : MetaBaselines
        With its nulls.

    Notes
    -----
    Leask et al., "Showing SAE latents are not atomic using meta-SAEs" (2024), replacement of
    meta-latents; most baselines are ours.

    Examples
    --------
    >>> baselines = saekit.meta_baselines(meta, [small], refit_steps=2)
    >>> meta_baselines(baselines).data.columns.tolist()
    ['variant', 'encoder', 'signed', 'null', 'dictionary_width', 'terms', 'n_terms',
     'explained_variance', 'explained_variance_uncentred', 'explained_variance_held_out']
    """
    data = result.frame.drop(columns=["note", "difference"])
    rows = list(dict.fromkeys(zip(data["variant"], data["encoder"], data["null"], strict=True)))
    kinds = {name: found.kind for name, found in result.dictionaries.items()}
    places = _with_gaps(["null" if null else kinds.get(variant, variant) for variant, _, null in rows])
    own = float(data["explained_variance"].iloc[0])
    highest = float(data["explained_variance"].max())
    some_held_out = bool(data["explained_variance_held_out"].notna().any())
    with house_style():
        figure = new_figure(FULL, 0.85 + 0.155 * (places[-1] + 1))
        panels = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, signed in zip(panels, (False, True), strict=True):
            for bar in data[data["signed"] == signed].itertuples():
                place = places[rows.index((bar.variant, bar.encoder, bar.null))]
                value = bar.explained_variance
                axes.barh(
                    place,
                    value,
                    0.82,
                    color=LIGHT_GREY if bar.null else _bar_colour(result, bar.variant, bar.encoder),
                    hatch="////" if bar.null else None,
                    edgecolor=NULL if bar.null else "white",
                    linewidth=0.4 if bar.null else 0,
                )
                if bar.explained_variance_held_out > FLOOR:
                    axes.plot(
                        bar.explained_variance_held_out,
                        place,
                        "D",
                        color="white",
                        markeredgecolor=INK,
                        markersize=3,
                        markeredgewidth=0.6,
                    )
                ends = [max(value, 0), *([bar.explained_variance_held_out] if some_held_out else [])]
                axes.annotate(
                    fixed(value),
                    (max(ends), place),
                    (4, 0),
                    textcoords="offset points",
                    va="center_baseline",
                    fontsize=6.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )
            axes.axvline(own, color=INK, linestyle="--", linewidth=0.8, zorder=0)
            axes.axvline(0, color=INK, linewidth=0.6)
            axes.set_title("coefficients of any sign" if signed else "non-negative coefficients", fontsize=8)
            axes.set(xlim=(FLOOR, 1.16 * highest), xlabel="explained variance")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(places, [_bar_name(result, *row) for row in rows])
        panels[0].invert_yaxis()
        handles: list[Any] = [
            Line2D([], [], color=INK, linestyle="--", linewidth=0.8, label="the meta-SAE"),
            Patch(
                facecolor=LIGHT_GREY,
                hatch="////",
                edgecolor=NULL,
                linewidth=0.4,
                label="rows without structure",
            ),
        ]
        if some_held_out:
            handles.insert(
                1,
                Line2D(
                    [],
                    [],
                    linestyle="",
                    marker="D",
                    color="white",
                    markeredgecolor=INK,
                    markersize=3,
                    label="on held-out rows",
                ),
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    summary = result.summary
    numbers = (
        f"the meta-SAE {own:.3f}; best baseline with {summary['terms']} non-negative terms "
        f"{summary['best_non_negative']} {summary['best_non_negative_explained_variance']:.3f}, of any sign "
        f"{summary['best_signed']} {summary['best_signed_explained_variance']:.3f}; nulls "
        + ", ".join(f"{name} {value:.3f}" for name, value in summary["nulls"].items())
    )
    return Plot(
        figure,
        data,
        caption=f"Explained variance of decoder directions. Variance explained with {summary['terms']} terms "
        "per row (unless the label gives another number) by the meta-SAE, by other directions in its place "
        "and by matching pursuit on other dictionaries; the number of directions to choose from is in "
        "brackets. "
        + ("Diamonds show held-out rows, on which nothing was trained. " if some_held_out else "")
        + (f"Bars are cut off at {FLOOR:g}. " if data["explained_variance"].min() < FLOOR else "")
        + f"Meta-SAE: {summary['meta']}. Explained variance: {numbers}.",
        alt="Bars of explained variance, with non-negative and with signed coefficients. "
        f"Explained variance: {numbers}.",
        made_from=describe(result.meta, *result.dictionaries.values()),
        settings={"terms": summary["terms"]},
    )


def meta_sweep(result: MetaSweep) -> Plot:
    """Explained variance of meta-SAEs against their width, one line per k.

    Parameters
    ----------
    result : MetaSweep
        Meta-SAEs of several widths and sparsities.

    Raises
    ------
    ValueError
        If it holds none.

    Examples
    --------
    >>> from saekit.analysis import Recipe
    >>> quick = Recipe("quick", lr=3e-3, steps=10, batch=8)
    >>> sweep = saekit.meta_sweep(large, widths=[4, 6], ks=[1, 2], recipe=quick)
    >>> meta_sweep(sweep).data.columns.tolist()
    ['width', 'k', 'explained_variance', 'explained_variance_held_out', 'l0', 'dead_fraction']
    """
    if result.frame.empty:
        raise ValueError("The sweep plot needs at least one meta-SAE, found none.")
    columns = ["width", "k", "explained_variance", "explained_variance_held_out", "l0", "dead_fraction"]
    data = result.frame[columns].reset_index(drop=True)
    held_out = bool(data["explained_variance_held_out"].notna().any())
    ks = sorted(set(data["k"]))
    colours, markers = width_colours(ks), dict(zip(ks, cycle("os^vDpX"), strict=False))
    with house_style():
        figure = new_figure(HALF + 0.7, 2.3)
        axes = figure.subplots()
        for k, part in data.groupby("k"):
            part = part.sort_values("width")
            style: dict[str, Any] = {"color": colours[k], "marker": markers[k], "markersize": 3.5}
            axes.plot(part["width"], part["explained_variance"], label=f"{k}", **style)
            if held_out:
                axes.plot(
                    part["width"],
                    part["explained_variance_held_out"],
                    linestyle="--",
                    markerfacecolor="white",
                    **style,
                )
        doubling_axis(axes, set(data["width"]))
        axes.set(xlabel="meta-latents", ylabel="explained variance")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        handles = [
            Line2D([], [], color=colours[k], marker=markers[k], markersize=3.5, label=f"k = {k}") for k in ks
        ]
        if held_out:
            handles += [
                Line2D([], [], color=DARK_GREY, label="all rows"),
                Line2D([], [], color=DARK_GREY, linestyle="--", label="held-out rows"),
            ]
        figure.legend(handles=handles, loc="outside right center")
    best = data.loc[data["explained_variance"].idxmax()]
    numbers = f"from {data['explained_variance'].min():.3f} to {best['explained_variance']:.3f}"
    if held_out:
        tests = data["explained_variance_held_out"]
        numbers += f", on held-out rows from {tests.min():.3f} to {tests.max():.3f}"
    return Plot(
        figure,
        data,
        caption="Meta-SAEs of several widths and sparsities. Explained variance of the decoder directions "
        f"on all rows{' (solid lines) and on held-out rows alone (dashed lines)' if held_out else ''}, "
        f"with k = {listed(ks)} meta-latents per row on average: {numbers}. At most "
        f"{share(data['dead_fraction'].max())} of the meta-latents are dead.",
        alt=f"Explained variance against the number of meta-latents for k = {listed(ks)}: {numbers}.",
        made_from=describe(*result.bases),
    )


def related_latents(result: RelatedLatents) -> Plot:
    """A latent with its meta-latents, and each meta-latent with the latents it is most active on.

    Parameters
    ----------
    result : RelatedLatents
        The graph; labels, where there are any, are cut to the space available.

    Raises
    ------
    ValueError
        If the latent has no meta-latents.

    Notes
    -----
    Leask et al. (ICLR 2025), figure 1, and the related-latents graph of the LessWrong post "Showing
    SAE Latents Are Not Atomic Using Meta-SAEs", which preceded it.

    Examples
    --------
    >>> related_latents(saekit.related_latents(meta, 6)).data.columns.tolist()
    ['meta_activation', 'activation', 'meta_latent', 'meta_label', 'width', 'latent', 'label']
    """
    nodes = result.nodes.set_index("node")
    centre = nodes.loc[0]
    if not (result.nodes["role"] == "meta-latent").any():
        raise ValueError(f"No meta-latent is active on latent {centre['latent']}.")
    chart = trees.related_latents(result)
    return Plot(
        chart.figure(),
        chart.data,
        caption=f"{chart.caption}.",
        alt=f"{chart.alt}.",
        made_from=made_from(result),
        settings={"latent": int(centre["latent"])},
    )


def meta_cosines(result: CosineDistributions) -> Plot:
    """Greatest cosines of latents and meta-latents with their nearest ones, beside the nulls.

    Parameters
    ----------
    result : CosineDistributions
        Within dictionaries, of meta-latents looked up in others, and of latents.

    Notes
    -----
    Leask et al., "Showing SAE latents are not atomic using meta-SAEs" (2024), distribution of
    maximum cosine similarities.

    Examples
    --------
    >>> meta_cosines(saekit.cosine_distributions(meta, small)).data.columns.tolist()
    ['panel', 'of', 'nearest_in', 'null', 'cosine_from', 'cosine_to', 'share']
    """
    frame, dictionaries = result.frame, result.dictionaries
    meta, base = (frame.loc[frame["panel"] == panel, "of"].iat[0] for panel in ("meta-latents", "latents"))
    lowest = min(0, int(np.floor(frame["cosine"].min() * BINS)))
    edges = np.arange(lowest, BINS + 1) / BINS
    keys = ["panel", "of", "nearest_in", "null"]
    parts = []
    for key, rows in groups_of(frame, keys):
        counts = np.histogram(rows["cosine"].clip(upper=1), edges)[0]
        bins = {"cosine_from": edges[:-1], "cosine_to": edges[1:], "share": counts / len(rows)}
        parts.append(pd.DataFrame({**dict(zip(keys, key, strict=True)), **bins}))
    data = pd.concat(parts, ignore_index=True)
    others = sorted((name for name in dictionaries if name != meta), key=lambda n: dictionaries[n].width)
    colours = {meta: META}
    for name, white in zip(others, np.linspace(0.45, 0, len(others)), strict=True):  # the widest darkest
        colours[name] = shade(kind_style(dictionaries[name].kind).colour, white)
    dashes = dict(zip((meta, *others), cycle(("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))), strict=False))
    labels = rows_of([dictionaries[name] for name in others])["label"]
    names = {meta: "meta-SAE"} | dict(zip(others, labels, strict=True))
    titles = {
        "within": "within one dictionary",
        "meta-latents": "from meta-latents to\nthe nearest latent of",
        "latents": f"from {names[base]} to\nthe nearest direction of",
    }
    with house_style():
        figure = new_figure(FULL, 2.4)
        panels = figure.subplots(1, len(titles), sharey=True)
        for axes, (panel, title) in zip(panels, titles.items(), strict=True):
            for (name, null), bins in groups_of(data[data["panel"] == panel], ["nearest_in", "null"]):
                line = {"linewidth": 0.8 if null else 1.2, "linestyle": ":" if null else dashes[name]}
                axes.stairs(bins["share"], edges, color=colours[name], **line)
            axes.axvline(result.theta, color=INK, linestyle="--", linewidth=0.8, zorder=0)
            axes.set(xlabel="greatest cosine", xlim=(edges[0], 1))
            axes.set_title(title, fontsize=8)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylabel("share of directions")
        panels[0].set_ylim(0, 1.15 * data.loc[~data["null"], "share"].max())  # random ones are far narrower
        handles = [
            Line2D([], [], color=colours[n], linestyle=dashes[n], label=names[n]) for n in (meta, *others)
        ]
        dotted: dict[str, Any] = {"color": DARK_GREY, "linestyle": ":", "linewidth": 0.8}
        handles.append(Line2D([], [], label="random directions", **dotted))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    table = result.table[result.table["panel"] != "within"]
    numbers = "; ".join(
        f"{row.panel} in {names[row.nearest_in]} {percent(row.share_above_theta)} (random "
        f"{percent(row.null_share_above_theta)}), median {row.median:.2f}"
        for row in table.itertuples()
    )
    return Plot(
        figure,
        data,
        caption="Similarity of meta-latents and latents. Greatest cosine of each direction with any other of "
        "its own dictionary (left), of each meta-latent with any latent (middle), and of each latent with "
        "any direction of the meta-SAE or of a smaller dictionary (right). Dotted lines, cut off at the top, "
        "show equally many random directions in their place. Share at "
        f"θ = {result.theta:g} or more: {numbers}.",
        alt=f"Three panels of histograms of greatest cosines. Share at theta or more: {numbers}.",
        made_from=describe(*dictionaries.values()),
        settings={"theta": result.theta},
    )


def side_by_side(result: SideBySide) -> Plot:
    """Cosines of a latent's meta-latents with its nearest latents in a smaller dictionary.

    Parameters
    ----------
    result : SideBySide
        Rows and columns carry labels where the result has them.

    Raises
    ------
    ValueError
        If the latent has no meta-latents.

    Notes
    -----
    Leask et al., "Showing SAE latents are not atomic using meta-SAEs" (2024), heat map.

    Examples
    --------
    >>> side_by_side(saekit.side_by_side(meta, 6, small, n=2)).data.columns.tolist()
    ['meta_latent', 'small_latent', 'cosine']
    """
    cosines, frame = result.cosines, result.frame
    if cosines.empty:
        raise ValueError(f"No meta-latent is active on latent {result.latent} of {result.dictionary}.")
    data = cosines.reset_index().melt(id_vars="meta_latent", value_name="cosine", var_name="small_latent")
    labels = dict(zip(frame["small_latent"], frame["small_label"], strict=True))
    own = frame.dropna(subset=["meta_latent"])
    rows = [
        fit_text(f"{m}  {label}".rstrip(), 1.5, 7)
        for m, label in zip(own["meta_latent"], own["meta_label"], strict=True)
    ]
    columns = [fit_text(f"{latent}  {labels[latent]}".rstrip(), 1.35, 7) for latent in cosines.columns]
    small = named(result.small.kind, result.small.width)
    with house_style():
        figure = new_figure(0.75 * FULL, 1.65 + 0.27 * len(rows))
        axes = figure.subplots()
        values = cosines.to_numpy()
        picture = axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
        axes.invert_yaxis()
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            axes.text(
                column + 0.5,
                row + 0.5,
                fixed(value),
                ha="center",
                va="center_baseline",
                fontsize=6.5,
                color="white" if value > 0.55 else INK,
            )
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(ylabel="its meta-latents", xlabel=f"its nearest latents in {small}")
        bar = figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.02)
        bar.set_label("cosine")
        bar.outline.set_visible(False)
    summary = result.summary
    numbers = (
        f"{summary['n_paired']} of {summary['n_meta_latents']} meta-latents have a cosine of 0.7 or more "
        "with one of them"
    )
    return Plot(
        figure,
        data,
        caption=f"Meta-latents beside nearest latents. Cosines between the meta-latents of latent "
        f"{result.latent} of {result.dictionary} (rows) and the latents of {result.small} nearest to that "
        f"latent (columns), by decoder direction; {numbers}.",
        alt=f"Heat map of cosines of {len(rows)} meta-latents with {len(columns)} latents: {numbers}.",
        made_from=made_from(result),
        settings={"latent": result.latent},
    )


def meta_splitting(
    meta: MetaSAE,
    tree: SplittingTree,
    width: int,
    latent: int,
    *,
    labels: Sequence[Labels] | None = None,
    meta_labels: Labels | None = None,
) -> Plot:
    """A latent that splits, with its descendants and the meta-latents of each.

    Parameters
    ----------
    meta : MetaSAE
        Trained on the family of `tree`.
    tree : SplittingTree
        Tree of the same family.
    width, latent : int
        The root.
    labels : sequence of Labels, optional
        Labels of the latents, one set for each base of the meta-SAE.
    meta_labels : Labels, optional
        Labels of the meta-latents.

    Raises
    ------
    ValueError
        If the tree is of other dictionaries than the meta-SAE's, or the latent has no children.

    Notes
    -----
    Leask et al., "Showing SAE latents are not atomic using meta-SAEs" (2024), feature splitting.

    Examples
    --------
    >>> plot = meta_splitting(family_meta, saekit.splitting_tree(family), 8, 2)
    >>> plot.data.columns.tolist()
    ['depth', 'width', 'latent', 'cosine', 'row', 'meta_latent', 'activation', 'share']
    """
    require_tree(meta, tree)
    nodes = _depth_first(tree.subtree(width, latent))
    if len(nodes) == 1:
        raise ValueError(f"Latent {latent} of width {width} has no children at theta {tree.theta:g}.")
    parts = []
    for row, node in enumerate(nodes):
        own = meta.of(node["latent"], meta.widths.index(node["width"]))
        parts.append(
            own.assign(row=row, share=own["activation"] / max(own["activation"].sum(), 1e-12), **node)
        )
    data = pd.concat(parts, ignore_index=True)
    data = data[[*nodes[0], "row", "meta_latent", "activation", "share"]]
    coloured = _most_shared(data)
    with house_style():
        figure = new_figure(FULL, 0.75 + 0.17 * len(nodes) + 0.16 * ((len(coloured) + 2) // 2))
        names, bars = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
        names.axis("off")
        names.set_xlim(0, 2.75)
        for row, node in enumerate(nodes):
            x = 0.02 + 0.17 * node["depth"]
            if node["depth"]:
                parent = max(r for r in range(row) if nodes[r]["depth"] == node["depth"] - 1)
                thickness = 0.6 + 2.4 * max(0.0, (node["cosine"] - tree.theta) / (1 - tree.theta))
                names.plot([x - 0.11, x - 0.11], [parent + 0.35, row], color=DARK_GREY, linewidth=0.6)
                line = names.plot([x - 0.11, x - 0.03], [row, row], color=DARK_GREY, linewidth=thickness)
                line[0].set_solid_capstyle("butt")
            about = labels[meta.widths.index(node["width"])].of(node["latent"]) if labels else ""
            text = fit_text(f"{node['width']}/{node['latent']}  {about}".rstrip(), 2.72 - x)
            names.text(x, row, text, va="center_baseline", fontsize=6.5)
            left = 0.0
            for part in data[data["row"] == row].itertuples():
                colour = coloured.get(part.meta_latent, LIGHT_GREY)
                bars.barh(row, part.share, 0.78, left, color=colour, edgecolor="white", linewidth=0.5)
                if part.meta_latent in coloured and part.share > 0.09:
                    middle, text = left + part.share / 2, str(part.meta_latent)
                    style = {"ha": "center", "va": "center_baseline", "fontsize": 6.5}
                    bars.text(middle, row, text, color=ink_on(colour), **style)
                left += part.share
        bars.set(xlim=(0, 1), ylim=(len(nodes) - 0.4, -0.6), xlabel="share of the meta-latents' activation")
        bars.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        bars.spines["left"].set_visible(False)
        bars.tick_params(axis="y", length=0, labelleft=False)
        handles = [
            Patch(
                color=colour,
                label=fit_text(f"{m}  {meta_labels.of(m) if meta_labels else ''}".rstrip(), 2.3, 7),
            )
            for m, colour in coloured.items()
        ]
        handles.append(Patch(color=LIGHT_GREY, label="others"))
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    mean = data.groupby(["width", "latent"]).size().groupby("width").mean()
    numbers = ", ".join(f"{value:.1f} at width {w}" for w, value in mean.items())
    return Plot(
        figure,
        data,
        caption=f"Splitting seen through meta-latents. Latent {latent} of width {width} and its "
        f"{len(nodes) - 1} descendants at θ = {tree.theta:g}. Each bar divides the activation of one latent "
        f"among its meta-latents, of which there are on average {numbers}. Meta-SAE: {meta.name}.",
        alt=f"Tree of latent {latent} of width {width} with {len(nodes) - 1} descendants, and bars of the "
        f"meta-latents of each: on average {numbers}.",
        made_from=describe(meta.dictionary.identity, *(source.identity for source in meta.sources)),
        settings={"theta": tree.theta, "width": width, "latent": latent},
    )


def active_meta_latents(result: MetaSplitting) -> Plot:
    """Number of active meta-latents per latent, by width.

    Parameters
    ----------
    result : MetaSplitting
        Splitting through a meta-SAE trained on a family.

    Notes
    -----
    Leask et al., "Showing SAE latents are not atomic using meta-SAEs" (2024), feature splitting.

    Examples
    --------
    >>> result = saekit.splitting_through_meta(family_meta, saekit.splitting_tree(family))
    >>> active_meta_latents(result).data.columns.tolist()
    ['width', 'n_active', 'n_latents', 'share']
    """
    data = result.counts
    means = result.summary["mean_active"]
    colours = width_colours(list(means))
    with house_style():
        figure = new_figure(HALF + 0.7, 2.1)
        axes = figure.subplots()
        for (width, part), marker in zip(data.groupby("width", sort=False), cycle("os^vDpX"), strict=False):
            axes.plot(
                part["n_active"],
                part["share"],
                marker=marker,
                markersize=3.5,
                color=colours[width],
                label=f"{width}: {means[width]:.1f}",
            )
        axes.set(xlabel="active meta-latents", ylabel="share of the latents", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(title="width: mean", alignment="left")
    numbers = ", ".join(f"{mean:.2f} at width {width}" for width, mean in means.items())
    return Plot(
        figure,
        data,
        caption="Active meta-latents per latent, by width. Share of the latents of each dictionary by the "
        "number of meta-latents that are active on them, for one meta-SAE trained on all dictionaries: on "
        f"average {numbers}.",
        alt=f"Lines of the number of active meta-latents for {len(means)} widths: on average {numbers}.",
        made_from=made_from(result),
    )


# ---------------------------------------------------------------------- helpers


def _depth_first(node: dict[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    """The nodes of a splitting tree, a parent before its children."""
    here = {"depth": depth, "width": node["width"], "latent": node["latent"], "cosine": node["cosine"]}
    return [here, *(below for child in node["children"] for below in _depth_first(child, depth + 1))]


def _most_shared(data: pd.DataFrame) -> dict[int, str]:
    """Colours for the meta-latents that most of the latents share: as they come up, the largest first."""
    uses = data.groupby("meta_latent").agg(first=("row", "min"), n=("row", "size"), sum=("share", "sum"))
    often = uses[uses["n"] > 1].sort_values(["n", "sum"], ascending=False).index[: len(PALETTE)]
    order = sorted(often, key=lambda m: (uses.loc[m, "first"], -uses.loc[m, "sum"]))
    return dict(zip(order, PALETTE, strict=False))


def _with_gaps(groups: list[str]) -> list[float]:
    """Places of bars below each other, with a small gap where the group changes."""
    changes = [0.0] + [0.45 * (a != b) for a, b in pairwise(groups)]
    return (np.arange(len(groups)) + np.cumsum(changes)).tolist()


def _bar_colour(result: MetaBaselines, variant: str, encoder: str) -> str:
    if variant == "meta-SAE":
        return META if encoder == "own" else shade(META, 0.5)
    found = result.dictionaries.get(variant)
    return BASELINE if found is None else kind_style(found.kind).colour


def _bar_name(result: MetaBaselines, variant: str, encoder: str, null: bool) -> str:
    data, found = result.frame, result.dictionaries.get(variant)
    rows = data[(data["variant"] == variant) & (data["encoder"] == encoder) & (data["null"] == null)]
    if found is None:
        name = f"{variant} ({rows['dictionary_width'].iat[0]})"
    else:
        labels = rows_of(list(result.dictionaries.values()))["label"]
        name = dict(zip(result.dictionaries, labels, strict=True))[variant]
    return f"{name}, {ENCODERS[encoder]}" if ENCODERS[encoder] else name
