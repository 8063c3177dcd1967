"""One function a figure: results in, a figure with its numbers, caption and alt text out.

Nothing is computed here that a result does not say, except for histograms. Captions and alt texts
state the numbers of the data that they are given.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MultipleLocator, NullLocator, PercentFormatter

from saekit.analysis.splitting import STATUSES
from saekit.figures import (
    FONTS,
    FULL,
    HALF,
    INK,
    KIND_COLOURS,
    KIND_MARKERS,
    KIND_NAMES,
    NOVEL,
    NULL,
    RECONSTRUCTION,
    Plot,
    house_style,
    new_figure,
    width_colours,
)

if TYPE_CHECKING:
    from saekit.activations import ActivationStore
    from saekit.analysis.novelty import CEInsertion, GroupInsertion, Insertion
    from saekit.analysis.similarity import FamilySimilarity
    from saekit.analysis.splitting import Splitting, SplittingTree
    from saekit.metrics import CEDegradation, Evaluation

KIND_LINES = {"relu": "-", "batchtopk": "--", "topk": ":"}
NULL_LINES = ("-", ":")  # second seed of the small and of the large width
_EDGE = "#7a8b99"
_REASONS = {"special": "special tokens", "first": "first of a row", "norm": "beyond the norm limit"}
STATUS_COLOURS = {"split": "#cc78bc", "identical": "#0173b2", "refined": "#8cc4e0", "lost": "#e4e4e4"}
STATUS_MARKERS = {"split": "o", "identical": "s", "refined": "^", "lost": "X", "leaf": "o"}


# ---------------------------------------------------------------------- activations and training


def activation_norms(store: ActivationStore) -> Plot:
    """Distribution of activation norms, with the limit beyond which positions are excluded.

    Parameters
    ----------
    store : ActivationStore
        Complete; excluded positions are shown apart.
    """
    norms, excluded = store.norms.flatten().double().numpy(), store.excluded.flatten().numpy()
    limit, counts = store.manifest["exclusion"]["norm_limit"], store.excluded_counts
    median = float(np.median(norms[~excluded]))
    # Bins of a tenth of a decade, with an edge at the limit.
    tenths = np.log10(norms[norms > 0] / limit) * 10
    edges = limit * 10 ** (np.arange(np.floor(tenths.min()), np.floor(tenths.max()) + 2) / 10)
    data = pd.DataFrame({"norm_from": edges[:-1], "norm_to": edges[1:]})
    data["used"] = np.histogram(norms[~excluded], edges)[0]
    data["excluded"] = np.histogram(norms[excluded], edges)[0]
    with house_style():
        figure = new_figure(0.6 * FULL, 2.0)
        axes = figure.subplots()
        styles = {
            "used": {"facecolor": RECONSTRUCTION},
            "excluded": {"facecolor": "none", "edgecolor": NOVEL, "hatch": "////", "linewidth": 0.9},
        }
        for column, style in styles.items():
            label = f"{column} ({data[column].sum():,})"
            axes.stairs(data[column], edges, baseline=0.5, fill=True, label=label, **style)
        axes.axvline(limit, color=INK, linestyle="--", linewidth=0.8, label=f"limit {limit:,.0f}")
        axes.set(xscale="log", yscale="log", xlabel="norm of the activation", ylabel="positions")
        axes.set_ylim(0.7, None)
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2)
    reasons = ", ".join(f"{counts[reason]:,} {text}" for reason, text in _REASONS.items())
    return Plot(
        figure,
        data,
        caption=f"Activation norms at {store.hook_point}. Positions in bins of a tenth of a decade; the "
        f"median norm of the positions used is {median:.1f}. Of {counts['positions']:,} positions "
        f"{counts['total']:,} are excluded ({reasons}; a position may have several reasons); the dashed line "
        f"is the limit, {limit:,.0f}.",
        alt="Histogram of activation norms on logarithmic axes. Positions that are used centre on "
        f"{median:.0f}; {counts['total']:,} of {counts['positions']:,} are excluded; the largest norm is "
        f"{norms.max():,.0f}.",
    )


def training_curves(logs: Mapping[str, pd.DataFrame], *, target_l0: float | None = None) -> Plot:
    """FVU and L0 on held-out tokens over the steps of training.

    Parameters
    ----------
    logs : mapping of str to DataFrame
        By `Dictionary.name`, logs with the columns `step`, `fvu` and `l0`
        (`TrainingResult.log`).
    target_l0 : float, optional
        Marked by a line.

    Raises
    ------
    ValueError
        If there are no logs, or a name is not that of a dictionary.
    """
    if not logs:
        raise ValueError("Training curves need at least one log, found none.")
    data = pd.concat(
        [
            log[["step", "fvu", "l0"]].dropna().assign(**_identity(name), dictionary=name)
            for name, log in logs.items()
        ],
        ignore_index=True,
    )[["dictionary", "kind", "width", "seed", "step", "fvu", "l0"]]
    colours = width_colours(sorted(data["width"].unique()))
    with house_style():
        figure = new_figure(FULL, 2.0)
        panels = figure.subplots(1, 2)
        for (_, kind, width, seed), log in _groups(data, ["dictionary", "kind", "width", "seed"]):
            first = seed == data.loc[(data["kind"] == kind) & (data["width"] == width), "seed"].min()
            for axes, column in zip(panels, ("fvu", "l0"), strict=True):
                axes.plot(
                    log["step"],
                    log[column],
                    color=colours[width],
                    linestyle=KIND_LINES.get(kind, "-."),
                    linewidth=1.2 if first else 0.7,
                    label=_name(kind, width) if first else f"{_name(kind, width)}, seed {seed}",
                )
        if target_l0 is not None:
            panels[1].axhline(
                target_l0, color=NULL, linewidth=0.8, zorder=0, label=f"target L0 {target_l0:g}"
            )
        panels[0].set(xlabel="training step", ylabel="FVU (held-out)", ylim=(0, None))
        panels[1].set(xlabel="training step", ylabel="L0 (held-out)")
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
    last = data.groupby("dictionary", sort=False).last()
    ends = ", ".join(f"{name} {row.fvu:.3f} at L0 {row.l0:.1f}" for name, row in last.iterrows())
    return Plot(
        figure,
        data,
        caption="Training curves. Fraction of variance unexplained (FVU) and mean number of active latents "
        f"(L0) on held-out tokens over {int(data['step'].max()):,} steps, for {len(logs)} dictionaries"
        + (f"; the grey line is the target L0 of {target_l0:g}" if target_l0 is not None else "")
        + f". FVU at the end: {ends}.",
        alt="Two line charts over training steps, FVU and L0, one line for each of "
        f"{len(logs)} dictionaries. FVU ends between {last['fvu'].min():.3f} and {last['fvu'].max():.3f}.",
    )


def frontier(evaluations: Sequence[Evaluation], ce: CEDegradation | None = None) -> Plot:
    """FVU, L0 and CE degradation against width, for each kind.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        Of dictionaries of any kinds, widths and seeds. The line of a kind follows the lowest
        seed of each width; other seeds are open markers.
    ce : CEDegradation, optional
        Of the same dictionaries.

    Raises
    ------
    ValueError
        If there are no evaluations, or `ce` lacks one of the dictionaries.
    """
    if not evaluations:
        raise ValueError("The frontier needs at least one evaluation, found none.")
    data = pd.DataFrame([{**_identity(e.name), **e.summary} for e in evaluations])
    data = data[["dictionary", "kind", "width", "seed", "fvu", "l0"]].sort_values(["width", "seed"])
    columns = {"fvu": "FVU", "l0": "L0"}
    if ce is not None:
        missing = sorted(set(data["dictionary"]) - set(ce.frame["dictionary"]))
        if missing:
            raise ValueError(f"The CE degradation lacks {', '.join(missing)}.")
        data = data.merge(ce.frame[["dictionary", "ce_degradation"]], on="dictionary")
        columns = {"fvu": "FVU", "ce_degradation": "CE degradation (nats)", "l0": "L0"}
    lowest = data.groupby(["kind", "width"])["seed"].transform("min")
    with house_style():
        figure = new_figure(FULL, 2.0)
        panels = figure.subplots(1, len(columns))
        for axes, (column, label) in zip(panels, columns.items(), strict=True):
            for (kind,), part in _groups(data, ["kind"]):
                style = {"color": _kind_colour(kind), "marker": KIND_MARKERS.get(kind, "D")}
                line, others = (
                    part[part["seed"] == lowest[part.index]],
                    part[part["seed"] != lowest[part.index]],
                )
                dashes = KIND_LINES.get(kind, "-.")
                axes.plot(
                    line["width"], line[column], linestyle=dashes, label=KIND_NAMES.get(kind, kind), **style
                )
                axes.plot(others["width"], others[column], linestyle="", markerfacecolor="white", **style)
            axes.set(xlabel="width", ylabel=label)
            _doubling_axis(axes, data["width"].unique())
            axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        handles, _ = panels[0].get_legend_handles_labels()
        if (data["seed"] != lowest).any():
            handles.append(
                Line2D(
                    [], [], color=INK, marker="o", markerfacecolor="white", linestyle="", label="second seed"
                )
            )
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    ranges = "; ".join(
        f"{KIND_NAMES.get(kind, kind)} {part['fvu'].iat[0]:.3f} to {part['fvu'].iat[-1]:.3f} "
        f"at L0 {part['l0'].min():.1f} to {part['l0'].max():.1f}"
        for (kind,), part in _groups(data[data["seed"] == lowest], ["kind"])
    )
    return Plot(
        figure,
        data,
        caption="Reconstruction against width. Fraction of variance unexplained (FVU)"
        + (", increase in cross-entropy when activations are replaced (CE degradation)" if ce else "")
        + " and mean number of active latents (L0) of each dictionary. FVU from the narrowest to the widest: "
        f"{ranges}. {_tokens(evaluations[0].n_tokens, evaluations[0].n_excluded)}.",
        alt=f"Line charts against width for {data['kind'].nunique()} kinds of dictionary. FVU: {ranges}.",
    )


def kinds_frontier(table: pd.DataFrame) -> Plot:
    """FVU and CE degradation against L0, a line a kind and a column a width.

    Parameters
    ----------
    table : DataFrame
        `kind`, `width`, `target_l0`, `l0`, `fvu` and `ce_degradation` of each dictionary, such as
        `saekit.families.kinds_table()`.

    Raises
    ------
    ValueError
        If the table is empty.
    """
    if table.empty:
        raise ValueError("The frontier over kinds needs at least one dictionary, found none.")
    rows = {"fvu": "FVU", "ce_degradation": "CE degradation (nats)"}
    data = table[["kind", "width", "target_l0", "l0", *rows]]
    widths, targets = sorted(data["width"].unique()), sorted(data["target_l0"].unique())
    with house_style():
        figure = new_figure(FULL, 4.1)
        grid = figure.subplots(2, len(widths), sharex=True, sharey="row", squeeze=False)
        for panels, (column, label) in zip(grid, rows.items(), strict=True):
            for axes, width in zip(panels, widths, strict=True):
                for (kind,), part in _groups(data[data["width"] == width], ["kind"]):
                    axes.plot(
                        part["l0"],
                        part[column],
                        color=_kind_colour(kind),
                        marker=KIND_MARKERS.get(kind, "D"),
                        markersize=5,
                        markeredgecolor="white",  # tells markers apart where they overlap
                        markeredgewidth=0.3,
                        label=KIND_NAMES.get(kind, kind),
                    )
                axes.set_title(f"width {width}" if column == "fvu" else "")
            panels[0].set_ylabel(label)
        for axes in grid[1]:
            axes.set_xlabel("active latents a token (L0)")
        _doubling_axis(grid[0, 0], targets)
        reached = [*targets, *data["l0"]]
        grid[0, 0].set_xlim(min(reached) / 1.3, max(reached) * 1.3)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    width, target = widths[-1], targets[len(targets) // 2]
    compared = data[(data["width"] == width) & (data["target_l0"] == target)].sort_values("fvu")
    said = "; ".join(
        f"{KIND_NAMES.get(row.kind, row.kind)} {row.fvu:.3f} and {row.ce_degradation:.3f} at L0 {row.l0:.1f}"
        for row in compared.itertuples()
    )
    return Plot(
        figure,
        data,
        caption="What sparsity costs each kind. Fraction of variance unexplained (FVU) and increase in "
        "cross-entropy when activations are replaced (CE degradation) against the mean number of active "
        f"latents (L0) on held-out tokens, for dictionaries trained alike to {_listed(targets)} active "
        f"latents a token. FVU and CE degradation at width {width}, trained to {target}: {said}.",
        alt=f"Line charts of FVU and CE degradation against L0 for {data['kind'].nunique()} kinds of "
        f"dictionary, a column for each of the widths {_listed(widths)}. FVU and CE degradation at width "
        f"{width}, trained to {target}: {said}.",
    )


def active_histogram(table: pd.DataFrame) -> Plot:
    """How many tokens have how many active latents, a panel a kind.

    Parameters
    ----------
    table : DataFrame
        `kind`, `width`, `active` (latents) and `tokens` that have exactly so many, such as
        `saekit.families.kinds_l0_table()`.

    Raises
    ------
    ValueError
        If the table is empty.
    """
    if table.empty:
        raise ValueError("The histogram of active latents needs at least one dictionary, found none.")
    members = dict(iter(_groups(table, ["kind", "width"])))
    counts = {member: _summary_of_counts(part) for member, part in members.items()}
    end = max(count["end"] for count in counts.values())
    columns = min(3, len(members))
    rows = -(-len(members) // columns)
    with house_style():
        figure = new_figure(FULL, 0.35 + 1.3 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(members) :]:
            axes.remove()
        for axes, (member, part) in zip(grid.flat, members.items(), strict=False):
            count = counts[member]
            heights = np.bincount(part["active"], part["tokens"])
            edges = np.arange(len(heights) + 1) - 0.5
            axes.stairs(heights, edges, baseline=0.5, fill=True, color=_kind_colour(member[0]))
            axes.plot(count["mean"], 1.0, "v", color=INK, transform=axes.get_xaxis_transform(), clip_on=False)
            axes.set_title(_name(*member))
            axes.text(
                0.99,
                0.94,
                f"L0 {count['mean']:.1f}\n90% of tokens: {count['low']} to {count['high']}",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=7,
            )
        grid[0, 0].set(yscale="log", ylim=(0.7, 8 * table["tokens"].max()), xlim=(-1, end + 1))
        grid[0, 0].xaxis.set_major_locator(MultipleLocator(32 if end > 64 else 8))
        figure.supxlabel("active latents", fontsize=8)
        figure.supylabel("tokens", fontsize=8)
    said = "; ".join(
        f"{_name(*member)} {count['mean']:.1f}, {count['low']} to {count['high']}, at most {count['most']}"
        for member, count in counts.items()
    )
    return Plot(
        figure,
        table,
        caption="Active latents a token. Held-out tokens by their number of active latents, on a logarithmic "
        "axis of counts; the triangle is the mean (L0). Mean, middle 90% of the tokens, and greatest number "
        f"(the axis leaves out at most one token in 10,000 of each dictionary): {said}.",
        alt=f"Histograms of the number of active latents a token for {len(members)} dictionaries. Mean and "
        f"middle 90% of the tokens: {said}.",
    )


def convergence(table: pd.DataFrame) -> Plot:
    """Seed overlap and FVU over the steps of training, for every kind and width with two seeds.

    Parameters
    ----------
    table : DataFrame
        `kind`, `width`, `step`, `tokens`, `fvu`, `median_cosine` and `share_under_0.7`, such as
        `saekit.families.convergence_table()`.

    Raises
    ------
    ValueError
        If the table is empty.
    """
    if table.empty:
        raise ValueError("The convergence plot needs at least one pair of seeds, found none.")
    columns = {
        "median_cosine": "median best cosine",
        "share_under_0.7": "latents under cosine 0.7",
        "fvu": "FVU (held-out)",
    }
    data = table[["kind", "width", "step", "tokens", *columns]]
    # The widest is drawn in full.
    dashes = dict(zip(sorted(data["width"].unique(), reverse=True), cycle(("-", "--", ":", "-."))))
    with house_style():
        figure = new_figure(FULL, 2.0)
        panels = figure.subplots(1, len(columns))
        for axes, (column, label) in zip(panels, columns.items(), strict=True):
            for (kind, width), part in _groups(data, ["kind", "width"]):
                axes.plot(
                    part["step"] / 1000,
                    part[column],
                    color=_kind_colour(kind),
                    linestyle=dashes[width],
                    marker=KIND_MARKERS.get(kind, "D"),
                    markersize=2.5,
                    label=_name(kind, width),
                )
            axes.set(xlabel="thousands of steps", ylabel=label, xlim=(0, None))
        panels[0].set_ylim(None, 1)
        panels[1].set_ylim(0, None)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), handlelength=3)
    half = data["step"].max() / 2
    ends = [
        (_name(kind, width), part[part["step"] <= half].iloc[-1], part.iloc[-1])
        for (kind, width), part in _groups(data, ["kind", "width"])
    ]
    said = "; ".join(
        f"{name} cosine {middle['median_cosine']:.3f} and {last['median_cosine']:.3f}, under 0.7 "
        f"{_percent(middle['share_under_0.7'])} and {_percent(last['share_under_0.7'])}, "
        f"FVU {middle['fvu']:.3f} and {last['fvu']:.3f}"
        for name, middle, last in ends
    )
    return Plot(
        figure,
        data,
        caption="How far training has converged. For every latent of one seed, the greatest cosine of its "
        "decoder direction with one of the other seed: the median, and the share of latents under 0.7; and "
        "the fraction of variance unexplained (FVU) on held-out tokens. Half-way and after "
        f"{int(data['step'].max()):,} steps: {said}.",
        alt=f"Line charts over training steps for {len(ends)} pairs of seeds: median best cosine, share of "
        f"latents under cosine 0.7, and FVU. Half-way and at the end: {said}.",
    )


def density_histogram(evaluations: Sequence[Evaluation]) -> Plot:
    """How often latents are active: log10 density, one line a dictionary.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        Of dictionaries of any kinds and widths; a panel a kind.

    Raises
    ------
    ValueError
        If there are no evaluations, or all latents of all dictionaries are dead.
    """
    if not evaluations:
        raise ValueError("The density histogram needs at least one evaluation, found none.")
    alive = [e.density[e.density > 0].log10().numpy() for e in evaluations]
    if not any(map(len, alive)):
        raise ValueError("The density histogram has nothing to show: every latent is dead.")
    edges = np.arange(np.floor(min(logs.min() for logs in alive if len(logs)) * 4) / 4, 0.01, 0.25)
    parts = []
    for evaluation, logs in zip(evaluations, alive, strict=True):
        counts = np.histogram(logs, edges)[0]
        parts.append(
            pd.DataFrame(
                {
                    "dictionary": evaluation.name,
                    **_identity(evaluation.name),
                    "log10_density_from": edges[:-1],
                    "log10_density_to": edges[1:],
                    "share": counts / len(evaluation.density),
                    "dead_fraction": evaluation.dead_fraction,
                }
            )
        )
    data = pd.concat(parts, ignore_index=True)
    colours = width_colours(sorted(data["width"].unique()))
    with house_style():
        kinds = list(dict.fromkeys(data["kind"]))
        figure = new_figure(FULL, 2.0)
        panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for (_, width, seed), part in _groups(
                data[data["kind"] == kind], ["dictionary", "width", "seed"]
            ):
                dead = part["dead_fraction"].iat[0]
                first = seed == data.loc[(data["kind"] == kind) & (data["width"] == width), "seed"].min()
                axes.stairs(
                    part["share"],
                    edges,
                    color=colours[width],
                    linestyle="-" if first else ":",
                    linewidth=1.2,
                    label=f"{_name(kind, width)}{'' if first else f', seed {seed}'} ({_percent(dead)} dead)",
                )
            axes.set(title=KIND_NAMES.get(kind, kind), xlabel="log$_{10}$ density")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylabel("share of latents")
        figure.legend(loc="outside right center")
    dead = "; ".join(f"{e.name} {_percent(e.dead_fraction)}" for e in evaluations)
    return Plot(
        figure,
        data,
        caption="How often latents are active. Density is the share of tokens on which a latent is active; "
        f"bins of a quarter of a decade, shares of all latents. Dead (never active): {dead}. "
        f"{_tokens(evaluations[0].n_tokens, evaluations[0].n_excluded)}.",
        alt=f"Histograms of log10 density for {len(evaluations)} dictionaries. Dead latents: {dead}.",
    )


# ---------------------------------------------------------------------- similarity and splitting


def max_cosine_distribution(similarity: FamilySimilarity) -> Plot:
    """Greatest decoder cosine of every latent with the next smaller width, beside the seed nulls.

    Parameters
    ----------
    similarity : FamilySimilarity
        Of a family; a panel a pair of neighbouring widths.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching: similarity of latents across widths.
    """
    theta, table = similarity.theta, similarity.table
    lowest = min(0, int(np.floor(similarity.frame["best_cosine"].min() * 40)))
    edges = np.arange(lowest, 41) / 40
    parts = []
    keys = ["comparison", "null", "small_width", "large_width"]
    for key, rows in _groups(similarity.frame, keys):
        counts = np.histogram(rows["best_cosine"].clip(upper=1), edges)[0]
        identity = dict(zip(keys, key, strict=True))
        bins = {"cosine_from": edges[:-1], "cosine_to": edges[1:], "share": counts / len(rows)}
        parts.append(pd.DataFrame({**identity, **bins}))
    data = pd.concat(parts, ignore_index=True)
    pairs = table[~table["null"]]
    under = table[table["note"] == ""].set_index("comparison")["share_under_theta"]
    nulls = {
        row.small_width: row.comparison for row in table[table["null"] & (table["note"] == "")].itertuples()
    }
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
                if width in nulls:
                    null = data.loc[data["comparison"] == nulls[width], "share"]
                    axes.stairs(null, edges, color=INK, linestyle=dashes, linewidth=0.9)
                    found.append(f"{_percent(under[nulls[width]])}")
            axes.axvline(theta, color=INK, linestyle="--", linewidth=0.8)
            axes.set_title(
                f"{pair.comparison}\nunder $\\theta$: {_percent(under[pair.comparison])} "
                f"(two seeds: {', '.join(found) or 'none'})",
                fontsize=8,
            )
            axes.set_xlabel("greatest cosine")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
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
    shares = "; ".join(f"{name} {_percent(share)}" for name, share in under.items())
    missing = table.loc[table["note"] != "", "small_width"].astype(str).tolist()
    return Plot(
        figure,
        data,
        caption="Similarity across widths. For every latent of the larger dictionary, the greatest cosine of "
        "its decoder direction with one of the smaller dictionary; outlines are the same between two seeds "
        f"of one width (the null). Share of latents under θ = {theta:g}: {shares}."
        + (f" No second seed at width {', '.join(missing)}." if missing else ""),
        alt=f"Histograms of the best decoder cosine for {len(pairs)} pairs of widths, with theta = {theta:g} "
        f"marked. Share under theta: {shares}.",
    )


def splitting_flow(tree: SplittingTree) -> Plot:
    """Show what becomes of small latents and where large ones come from, beside the nulls.

    Parameters
    ----------
    tree : SplittingTree
        A pair of neighbouring widths a row, and a row for each width with two seeds.
    """
    comparisons: list[tuple[str, bool, Splitting]] = []
    for width in tree.widths:
        if (seeds := tree.nulls[width]) is not None:
            comparisons.append((f"{width}, other seed", True, seeds))
        if width in tree.pairs:
            comparisons.append((f"{width} → {tree.pairs[width].large_width}", False, tree.pairs[width]))
    rows = []
    for name, null, result in comparisons:
        shares = {status: result.summary[f"share_{status}"] for status in STATUSES}
        novel = result.summary["share_novel"]
        for side, part in (("small", shares), ("large", {"with parent": 1 - novel, "novel": novel})):
            width = result.small_width if side == "small" else result.large_width
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
        titles = {"small": "what becomes of the small latents", "large": "where the large latents come from"}
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
                        edgecolor="#c4c4c4" if lost else "white",
                        linewidth=0.5,
                        label=row.status if place == 0 else None,
                    )
                    if row.share >= 0.06:
                        _share_text(axes, left + row.share / 2, place, row.share, colour)
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
            label.set(color="#6e6e6e" if null else INK, style="italic" if null else "normal")
    said = "; ".join(
        f"{name} {_percent(result.summary['share_split'])} split, "
        f"{_percent(result.summary['share_novel'])} novel"
        for name, _, result in comparisons
    )
    missing = [str(width) for width in tree.widths if tree.nulls[width] is None]
    return Plot(
        figure,
        data,
        caption=f"Splitting from one width to the next at θ = {tree.theta:g}. A large latent's parent is its "
        "most similar small latent if their cosine is at least θ; without one it is novel. A small latent "
        "with several children is split, with one it is identical (mutual best matches, cosine at least 0.9) "
        f"or refined, with none lost. Thin bars compare two seeds of one width (the null). {said}."
        + (f" No second seed at width {', '.join(missing)}." if missing else ""),
        alt=f"Stacked bars of the fate of small latents and the origin of large latents. {said}.",
    )


def splitting_tree_plot(
    tree: SplittingTree, width: int, latent: int, labels: Mapping[tuple[int, int], str] | None = None
) -> Plot:
    """One latent with all its descendants, a column a width.

    Parameters
    ----------
    tree : SplittingTree
        Of a family.
    width, latent : int
        The root.
    labels : mapping, optional
        Text for latents by `(width, latent)`, such as their top tokens; it is cut to the room
        there is.

    Raises
    ------
    ValueError
        If the latent has no children.
    """
    root = tree.subtree(width, latent)
    if not root["children"]:
        raise ValueError(f"Latent {latent} of width {width} has no children at theta {tree.theta:g}.")
    nodes = _place(root)
    columns = [w for w in tree.widths if width <= w <= max(node["width"] for node in nodes)]
    data = pd.DataFrame(nodes)
    labels = labels or {}
    data["label"] = [labels.get((node["width"], node["latent"]), "") for node in nodes]
    n_leaves = int(data["row"].max()) + 1
    leaf_room, stub = 1.45, 0.12  # inches right of the last column; share of a column before edges part
    step = (FULL - leaf_room - 0.1) / len(columns)
    with house_style():
        figure = new_figure(FULL, 0.62 + 0.175 * n_leaves)
        axes = figure.subplots()
        axes.set_xlim(-1.0, len(columns) - 1 + leaf_room / step)
        axes.set_ylim(n_leaves - 0.4, -1.0)
        axes.axis("off")
        for place, column in enumerate(columns):
            axes.annotate(
                f"width {column}",
                (place, -1.0),
                ha="center",
                va="bottom",
                color="#6e6e6e",
                fontsize=7,
            )
        for node in nodes:
            x, y = columns.index(node["width"]), node["row"]
            start = x - 1 + stub
            if node is not nodes[0]:
                thickness = _thickness(node["cosine"], tree.theta)
                axes.plot(
                    [start, x], [y, y], color=_EDGE, linewidth=thickness, solid_capstyle="butt", zorder=1
                )
            if node["n_children"]:
                rows = [child["row"] for child in nodes if child["parent_place"] == node["place"]]
                axes.plot([x, x + stub], [y, y], color=_EDGE, linewidth=0.8, zorder=1)
                axes.plot([x + stub] * 2, [min(rows), max(rows)], color=_EDGE, linewidth=0.8, zorder=1)
            axes.plot(
                x,
                y,
                STATUS_MARKERS[node["status"]],
                color=STATUS_COLOURS.get(node["status"], "white"),
                markeredgecolor=INK,
                markeredgewidth=0.6,
                markersize=4.5,
                zorder=3,
            )
            label = labels.get((node["width"], node["latent"]), "")
            room = (1 - stub) * step - 0.14 if node["n_children"] else leaf_room - 0.1
            text = _fit(f"{node['latent']}  {label}".rstrip(), room)
            if node["n_children"]:
                offset, align = (-4, 2.2), ("right", "bottom")
            else:
                offset, align = (5, 0), ("left", "center_baseline")
            axes.annotate(
                text,
                (x, y),
                offset,
                textcoords="offset points",
                ha=align[0],
                va=align[1],
                fontsize=6.5,
                zorder=4,
            )
        present = [s for s in (*STATUSES, "leaf") if s in set(data["status"])]
        handles = [
            Line2D(
                [],
                [],
                linestyle="",
                marker=STATUS_MARKERS[status],
                color=STATUS_COLOURS.get(status, "white"),
                markeredgecolor=INK,
                markeredgewidth=0.6,
                label="at the greatest width" if status == "leaf" else status,
            )
            for status in present
        ]
        for cosine in (tree.theta, 1.0):
            thickness = _thickness(cosine, tree.theta)
            handles.append(Line2D([], [], color=_EDGE, linewidth=thickness, label=f"cosine {cosine:g}"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)
    data = data.drop(columns=["place", "parent_place"])
    leaves = int((data["n_children"] == 0).sum())
    return Plot(
        figure,
        data,
        caption=f"How one latent splits. Latent {latent} of width {width} and its descendants at θ = "
        f"{tree.theta:g} up to width {columns[-1]}: {len(data) - 1} latents, {leaves} of them without "
        "children. Thickness is the cosine of the decoder directions of parent and child; markers say what "
        "becomes of a latent at the next width.",
        alt=f"Tree of latent {latent} of width {width} with {len(data) - 1} descendants and {leaves} leaves.",
    )


# ---------------------------------------------------------------------- novelty


def insertion_scatter(result: Insertion, null: Insertion | None = None) -> Plot:
    """Change in MSE when a latent is inserted alone, against its best cosine; the null beside it.

    Parameters
    ----------
    result : Insertion
        Between two widths.
    null : Insertion, optional
        Between two seeds of one of the widths.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching: cosine as a sign of the functional label.
    """
    panels_of = [result] if null is None else [result, null]
    columns = ["latent", "best_cosine", "mse_change", "novel_cos", "novel_gain"]
    data = pd.concat(
        [
            r.frame.loc[~r.frame["dead"], columns].assign(comparison=_comparison(r), null=r is null)
            for r in panels_of
        ],
        ignore_index=True,
    )[["comparison", "null", *columns]]
    scale = _linear_range(data["mse_change"])
    with house_style():
        figure = new_figure(FULL if null else 0.6 * FULL, 2.6)
        panels = figure.subplots(1, len(panels_of), sharex=True, sharey=True, squeeze=False)[0]
        for axes, r in zip(panels, panels_of, strict=True):
            part = data[data["comparison"] == _comparison(r)]
            axes.set_yscale("symlog", linthresh=scale)
            axes.margins(y=0.12)  # room for the shares in the corners
            for novel, colour, marker in ((True, NOVEL, "o"), (False, RECONSTRUCTION, "^")):
                points = part[part["novel_cos"] == novel]
                axes.scatter(
                    points["best_cosine"],
                    points["mse_change"],
                    s=5,
                    marker=marker,
                    color=colour,
                    alpha=0.45,
                    linewidth=0,
                    rasterized=True,
                )
            axes.axhline(0, color=INK, linewidth=0.6)
            axes.axvline(r.theta, color=INK, linestyle="--", linewidth=0.8)
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("best cosine with a small latent")
            summary = r.summary
            axes.set_title(
                f"{_comparison(r)}\nAUC {summary['auc']:.2f}, {summary['n_dead']} dead left out", fontsize=8
            )
            for x, novel, align in ((0.02, True, "left"), (0.98, False, "right")):
                for y, gain, vertical in ((0.98, False, "top"), (0.02, True, "bottom")):
                    share = ((part["novel_cos"] == novel) & (part["novel_gain"] == gain)).mean()
                    axes.text(
                        x,
                        y,
                        f"{_percent(share)} {'help' if gain else 'hurt'}",
                        transform=axes.transAxes,
                        ha=align,
                        va=vertical,
                        fontsize=7,
                        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
                    )
        panels[0].set_ylabel("change in MSE when inserted")
        handles = [
            Line2D([], [], linestyle="", marker="o", color=NOVEL, label=f"novel (cosine < {result.theta:g})"),
            Line2D([], [], linestyle="", marker="^", color=RECONSTRUCTION, label="reconstruction"),
            Line2D([], [], color=INK, linestyle="--", linewidth=0.8, label=f"$\\theta$ = {result.theta:g}"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    said = "; ".join(
        f"{_comparison(r)} AUC {r.summary['auc']:.3f}, {_percent(r.summary['share_novel_gain'])} help, "
        f"{_percent(r.summary['share_novel_cos'])} under θ, balanced accuracy at θ "
        f"{r.summary['balanced_accuracy']:.2f}"
        for r in panels_of
    )
    return Plot(
        figure,
        data,
        caption="Inserting single latents. Change in the small dictionary's MSE when one latent of the large "
        "one is added to it (negative helps; linear within "
        f"±{scale:g}, logarithmic beyond) against the latent's best cosine. {said}. Dead latents are left "
        f"out ({', '.join(str(r.summary['n_dead']) for r in panels_of)}). "
        f"{_tokens(result.n_tokens, result.n_excluded)}.",
        alt=f"Scatter of the change in MSE against best cosine, theta = {result.theta:g} marked. {said}.",
    )


def roc(results: Sequence[Insertion], nulls: Sequence[Insertion] = ()) -> Plot:
    """ROC curves of the cosine as a sign of the gain, with theta marked and the nulls in grey.

    Parameters
    ----------
    results : sequence of Insertion
        Between widths.
    nulls : sequence of Insertion
        Between seeds.

    Raises
    ------
    ValueError
        If there are no results, or a curve is not defined since all latents help or none does.
    """
    if not results:
        raise ValueError("A ROC plot needs at least one insertion, found none.")
    parts, said = [], []
    with house_style():
        figure = new_figure(HALF, HALF + 0.1)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#c8c8c8", linewidth=0.8, zorder=0)
        pairs = [*((r, False) for r in results), *((r, True) for r in nulls)]
        for (r, null), dashes in zip(pairs, cycle(("-", "--", ":", "-."))):
            curve, at = r.roc(), r.at(r.theta)
            kind = _identity(r.large)["kind"]
            colour = NULL if null else _kind_colour(kind)
            name = f"{_comparison(r)} ({r.auc:.2f})"
            axes.plot(curve["fpr"], curve["tpr"], color=colour, linestyle=dashes, label=name, zorder=2 - null)
            point = (at["false_positive_rate"], at["true_positive_rate"])
            axes.plot(
                *point,
                KIND_MARKERS.get(kind, "D"),
                color=colour,
                markeredgecolor=INK,
                markeredgewidth=0.6,
                markersize=5,
                zorder=3,
            )
            parts.append(curve.assign(comparison=_comparison(r), null=null, point="curve"))
            marked = {"theta": r.theta, "fpr": point[0], "tpr": point[1]}
            parts.append(pd.DataFrame([marked]).assign(comparison=_comparison(r), null=null, point="theta"))
            said.append(f"{_comparison(r)} {r.auc:.3f}{' (null)' if null else ''}")
        axes.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            xlabel="share of the latents that hurt",
            ylabel="share of the latents that help",
        )
        axes.set_aspect("equal")
        axes.legend(
            loc="lower right", title=f"AUC; marker: $\\theta$ = {results[0].theta:g}", alignment="left"
        )
    data = pd.concat(parts, ignore_index=True)[["comparison", "null", "point", "theta", "fpr", "tpr"]]
    aucs = ", ".join(said)
    return Plot(
        figure,
        data,
        caption="The cosine as a sign of which latents help. Share of the latents that lower the MSE, and "
        "of those that raise it, whose best cosine is under a threshold, over all thresholds; markers at "
        f"θ = {results[0].theta:g}. Area under the curve (AUC): {aucs}. Dead latents are left out. "
        f"{_tokens(results[0].n_tokens, results[0].n_excluded)}.",
        alt=f"ROC curves of the best cosine as a sign of the gain. AUC: {aucs}.",
    )


def group_insertion_bars(results: Sequence[GroupInsertion]) -> Plot:
    """FVU after inserting whole groups of latents, a panel a result.

    Parameters
    ----------
    results : sequence of GroupInsertion
        Such as a ReLU and a BatchTopK pair.

    Raises
    ------
    ValueError
        If there are no results.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching. A diamond is the FVU that a group would
    reach if the changes of its latents alone added up.
    """
    if not results:
        raise ValueError("The group insertion plot needs at least one result, found none.")
    bars = {
        "novel_cos": ("novel\n", NOVEL, ""),
        "reconstruction_cos": ("recon-\nstruction", RECONSTRUCTION, ""),
        "novel_gain": ("help\nalone", NOVEL, "////"),
        "not novel_gain": ("hurt\nalone", RECONSTRUCTION, "////"),
        "all": ("all\n", "#b5b5b5", ""),
    }
    parts = []
    for r in results:
        small = r.frame.set_index("group").loc["small"]
        expected = small["fvu"] * (1 + r.frame["sum_of_single_changes"] / small["mse"])
        frame = r.frame[["group", "n_latents", "fvu", "l0"]].assign(fvu_if_additive=expected)
        frame.insert(0, "comparison", _comparison(r))
        parts.append(frame)
    data = pd.concat(parts, ignore_index=True)
    with house_style():
        figure = new_figure(FULL, 2.5)
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        top = data["fvu"].max()
        for axes, r, frame in zip(panels, results, parts, strict=True):
            rows = frame.set_index("group")
            places = [0, 1, 2.4, 3.4, 4.8]
            for place, (group, (_, colour, hatch)) in zip(places, bars.items(), strict=True):
                fvu, expected = rows.loc[group, "fvu"], rows.loc[group, "fvu_if_additive"]
                axes.bar(place, fvu, 0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
                axes.plot(place, expected, "D", color="white", markeredgecolor=INK, markersize=4, zorder=4)
                above = max(fvu, expected) if abs(expected - fvu) < 0.1 * top else fvu  # clear of the marker
                axes.annotate(
                    f"{fvu:.3f}",
                    (place, above),
                    (0, 6 if above > fvu or fvu - expected < 0.03 * top else 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6.5,
                    zorder=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
                )
            axes.axhline(rows.loc["small", "fvu"], color=INK, linewidth=0.9, zorder=3)
            axes.axhline(rows.loc["large", "fvu"], color=INK, linewidth=0.9, linestyle="--", zorder=3)
            axes.axhline(0, color=INK, linewidth=0.6)
            axes.set_title(_comparison(r))
            counts = [f"{rows.loc[group, 'n_latents']:,}" for group in bars]
            axes.set_xticks(
                places, [f"{text}\n({n})" for (text, _, _), n in zip(bars.values(), counts, strict=True)]
            )
            axes.tick_params(axis="x", length=0)
        panels[0].set_ylabel("FVU after insertion")
        figure.legend(
            handles=[
                Patch(facecolor="#8c8c8c", label="by cosine"),
                Patch(facecolor="#8c8c8c", hatch="////", edgecolor="white", label="by gain"),
                Line2D([], [], color=INK, linewidth=0.9, label="small alone"),
                Line2D([], [], color=INK, linewidth=0.9, linestyle="--", label="large alone"),
                Line2D(
                    [],
                    [],
                    linestyle="",
                    marker="D",
                    color="white",
                    markeredgecolor=INK,
                    label="if gains added up",
                ),
            ],
            loc="outside lower center",
            ncols=5,
            columnspacing=1.4,
        )
    said = "; ".join(
        f"{_comparison(r)} from {f['small']:.3f} to {f['novel_cos']:.3f} with all novel latents, "
        f"{f['reconstruction_cos']:.3f} with all others, {f['novel_gain']:.3f} with all that help alone"
        for r in results
        for f in [r.summary["fvu"]]
    )
    return Plot(
        figure,
        data,
        caption="Inserting groups of latents. FVU of the small dictionary after adding all novel latents or "
        "all others, by cosine and by their gain alone, with the number of latents in brackets; diamonds are "
        "what the groups would reach if single changes added up, lines the small and the large dictionary "
        "alone. "
        f"FVU: {said}. {_tokens(results[0].n_tokens, results[0].n_excluded)}.",
        alt=f"Bars of FVU after inserting groups of latents. {said}.",
    )


def ce_insertion_scatter(result: CEInsertion) -> Plot:
    """Change in cross-entropy against change in MSE for the sampled latents.

    Parameters
    ----------
    result : CEInsertion
        Its `ce_change` is the mean over all targets of the store, estimated from the rows run.
    """
    columns = ["latent", "sample", "best_cosine", "mse_change", "ce_change", "ce_change_error"]
    data = result.frame[columns].reset_index(drop=True)
    summary = result.summary
    with house_style():
        figure = new_figure(0.6 * FULL, 2.4)
        axes = figure.subplots()
        axes.set_xscale("symlog", linthresh=_linear_range(data["mse_change"]))
        axes.set_yscale("symlog", linthresh=_linear_range(data["ce_change"]))
        styles = {"helps": (NOVEL, "o"), "hurts": (RECONSTRUCTION, "^")}
        for sample, (colour, marker) in styles.items():
            part = data[data["sample"] == sample]
            axes.vlines(
                part["mse_change"],
                part["ce_change"] - part["ce_change_error"],
                part["ce_change"] + part["ce_change_error"],
                color=colour,
                linewidth=0.8,
                zorder=1,
            )
            axes.scatter(
                part["mse_change"],
                part["ce_change"],
                s=16,
                color=colour,
                marker=marker,
                edgecolor=INK,
                linewidth=0.4,
                label=f"{sample} by MSE ({len(part)})",
                zorder=2,
            )
        axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
        axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.set(xlabel="change in MSE", ylabel="change in CE (nats a token)", title=_comparison(result))
        figure.legend(loc="outside lower center", ncols=2)
    said = (
        f"{_percent(summary['sign_agreement'])} of the {summary['n_latents']} sampled latents change both in "
        f"the same direction; rank correlation {summary['spearman_mse']:.2f}"
    )
    return Plot(
        figure,
        data,
        caption="Cross-entropy and MSE of single insertions. Change when one latent is added to the small "
        f"dictionary ({_comparison(result)}; negative helps; axes linear near zero, logarithmic beyond). "
        f"{said}. Averages over {result.n_targets:,} targets, estimated from a sample of rows: bars are one "
        "standard error.",
        alt=f"Scatter of the change in cross-entropy against the change in MSE. {said}.",
    )


# ---------------------------------------------------------------------- helpers


def _identity(name: str) -> dict[str, Any]:
    """Kind, width and seed out of `Dictionary.name`."""
    match = re.fullmatch(r"(\S+) (\d+)(?: \(seed (\d+)\))?", name)
    if match is None:
        raise ValueError(f'A dictionary is named like "relu 1152 (seed 0)", found {name!r}.')
    return {"kind": match[1], "width": int(match[2]), "seed": int(match[3] or 0)}


def _name(kind: str, width: int) -> str:
    return f"{KIND_NAMES.get(kind, kind)} {width}"


def _comparison(result: Insertion | GroupInsertion | CEInsertion) -> str:
    """Such as "ReLU 1152 → 2304", or "ReLU 1152, other seed"."""
    small, large = _identity(result.small), _identity(result.large)
    name = _name(small["kind"], small["width"])
    return f"{name}, other seed" if small["width"] == large["width"] else f"{name} → {large['width']}"


def _kind_colour(kind: str) -> str:
    return KIND_COLOURS.get(kind, "#cc78bc")


def _groups(frame: pd.DataFrame, by: list[str]) -> Iterable[tuple[tuple[Any, ...], pd.DataFrame]]:
    return frame.groupby(by, sort=False)


def _listed(values: Sequence[Any]) -> str:
    """Such as "16, 32 and 64"."""
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def _summary_of_counts(part: pd.DataFrame) -> dict[str, Any]:
    """Of tokens by their active latents: the mean, the middle nine tenths, and the most."""
    active, tokens = part["active"].to_numpy(), part["tokens"].to_numpy()
    below = np.cumsum(tokens) / tokens.sum()
    low, high, end = (int(active[np.searchsorted(below, share)]) for share in (0.05, 0.95, 0.9999))
    mean = float(np.average(active, weights=tokens))
    return {"mean": mean, "low": low, "high": high, "end": end, "most": int(active.max())}


def _percent(share: float) -> str:
    """Write a share as a percentage that does not round something to nothing."""
    return "<1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"


def _tokens(n_tokens: int, n_excluded: int) -> str:
    return f"On {n_tokens:,} tokens, with {n_excluded:,} positions excluded"


def _doubling_axis(axes: Axes, ticks: Iterable[int]) -> None:
    """A logarithmic axis with these ticks, such as the widths of a family."""
    ticks = sorted(ticks)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)


def _share_text(axes: Axes, x: float, y: float, share: float, background: str) -> None:
    dark = np.dot(to_rgb(background), [0.299, 0.587, 0.114]) < 0.5
    axes.text(
        x,
        y,
        _percent(share),
        ha="center",
        va="center_baseline",
        fontsize=6.5,
        color="white" if dark else INK,
        bbox={"facecolor": background, "edgecolor": "none", "pad": 0.8},
    )


def _linear_range(values: pd.Series) -> float:
    """Where a symmetric log axis starts to be logarithmic: the decade of the median magnitude."""
    sizes = values.abs()[values != 0]
    return float(10 ** np.floor(np.log10(sizes.median()))) if len(sizes) else 1.0


def _thickness(cosine: float, theta: float) -> float:
    """Width of an edge in points, from theta (thin) to 1 (thick)."""
    return 0.6 + 2.4 * max(0.0, (cosine - theta) / max(1 - theta, 1e-9))


def _fit(text: str, inches: float, size: float = 6.5) -> str:
    """Cut a text with an ellipsis to the given length, safe from math mode."""
    font, renderer = FontProperties(family=FONTS, size=size), RendererAgg(1, 1, 720)

    def too_long(text: str) -> bool:
        return renderer.get_text_width_height_descent(text, font, ismath=False)[0] > inches * 720

    if too_long(text):
        room = bisect_left(range(len(text)), True, key=lambda n: too_long(f"{text[:n]}…")) - 1
        text = f"{text[: max(room, 0)].rstrip()}…"
    return text.replace("$", r"\$")


def _place(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Nodes of a tree, parents first, each with its row: leaves count, parents are in the middle."""
    nodes: list[dict[str, Any]] = []
    next_row = 0

    def visit(node: dict[str, Any], parent: dict[str, Any] | None) -> float:
        nonlocal next_row
        placed = {
            "place": len(nodes),
            "parent_place": -1 if parent is None else parent["place"],
            "parent_width": 0 if parent is None else parent["width"],
            "parent": -1 if parent is None else parent["latent"],
            "width": node["width"],
            "latent": node["latent"],
            "cosine": node["cosine"],
            "status": node["status"],
            "n_children": len(node["children"]),
        }
        nodes.append(placed)
        if node["children"]:
            rows = [visit(child, placed) for child in node["children"]]
            placed["row"] = (rows[0] + rows[-1]) / 2
        else:
            placed["row"] = float(next_row)
            next_row += 1
        return placed["row"]

    visit(root, None)
    return nodes
