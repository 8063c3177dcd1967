"""Activations, training and the trained dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator, PercentFormatter

from saekit.colours import INK, NOVEL, NULL, RECONSTRUCTION
from saekit.figures import FULL, Plot, house_style, kind_style, new_figure, width_colours
from saekit.plots.common import as_list, doubling_axis, groups_of, made_from, named, rows_of
from saekit.wording import listed, on_tokens, percent

if TYPE_CHECKING:
    from saekit.activations import ActivationStore
    from saekit.metrics import CEDegradation, Evaluation
    from saekit.training.trainer import TrainingResult


_REASONS = {"special": "special tokens", "first": "first position of a row", "norm": "beyond the norm limit"}


def activation_norms(store: ActivationStore) -> Plot:
    """Distribution of activation norms, with the limit beyond which positions are excluded.

    Parameters
    ----------
    store : ActivationStore
        Complete; excluded positions are drawn separately.

    Examples
    --------
    >>> activation_norms(harvested).data.columns.tolist()
    ['norm_from', 'norm_to', 'used', 'excluded']
    """
    norms, excluded = store.norms.flatten().double().numpy(), store.excluded.flatten().numpy()
    limit, counts = store.manifest["exclusion"]["norm_limit"], store.excluded_counts
    limit = limit[-1] if isinstance(limit, list) else limit  # of the targets, as their norms are shown
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
        styles: dict[str, dict[str, Any]] = {
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
        caption=f"Activation norms at {store.hook_point}. Number of positions per tenth of a decade. "
        f"The median norm of the positions used is {median:.1f}. Of {counts['positions']:,} positions, "
        f"{counts['total']:,} are excluded ({reasons}; several reasons may apply to one position). The "
        f"dashed line marks the limit, {limit:,.0f}.",
        alt="Histogram of activation norms on logarithmic axes. The positions used centre on "
        f"{median:.0f}; {counts['total']:,} of {counts['positions']:,} are excluded; the largest norm is "
        f"{norms.max():,.0f}.",
    )


def training_curves(
    results: TrainingResult | Sequence[TrainingResult], *, target_l0: float | None = None
) -> Plot:
    """FVU and L0 on held-out tokens over the steps of training.

    Parameters
    ----------
    results : TrainingResult or sequence of TrainingResult
        One line per result.
    target_l0 : float, optional
        Marked by a line.

    Raises
    ------
    ValueError
        If there are no results.

    Examples
    --------
    >>> variant = saekit.ReLU(target_l0=2)
    >>> config = saekit.TrainingConfig(variant, width=8, steps=40, batch_size=64, log_every=20)
    >>> result = saekit.train(config, x, progress=False)
    >>> training_curves(result, target_l0=2).data["step"].tolist()
    [20, 40]
    """
    results = as_list(results)
    if not results:
        raise ValueError("Training curves need at least one result, found none.")
    members = rows_of([result.dictionary.identity for result in results])
    logs = [
        result.log[["step", "fvu", "l0"]].dropna().assign(**member)
        for result, member in zip(results, members.to_dict("records"), strict=True)
    ]
    data = pd.concat(logs, ignore_index=True)[["dictionary", "kind", "width", "seed", "step", "fvu", "l0"]]
    colours = width_colours(sorted(data["width"].unique()))
    with house_style():
        figure = new_figure(FULL, 2.0)
        panels = figure.subplots(1, 2)
        for log, member in zip(logs, members.itertuples(), strict=True):
            for axes, column in zip(panels, ("fvu", "l0"), strict=True):
                axes.plot(
                    log["step"],
                    log[column],
                    color=colours[member.width],
                    linestyle=kind_style(member.kind).line,
                    linewidth=1.2 if member.first else 0.7,
                    label=member.label,
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
        f"(L0) on held-out tokens over {int(data['step'].max()):,} training steps"
        + (f"; the grey line marks the target L0 of {target_l0:g}" if target_l0 is not None else "")
        + f". FVU at the end: {ends}.",
        alt=f"Two line charts over training steps, FVU and L0, for {listed(members['dictionary'])}. "
        f"FVU at the end: {ends}.",
        made_from=made_from(*results),
        settings={} if target_l0 is None else {"target_l0": target_l0},
    )


def frontier(evaluations: Evaluation | Sequence[Evaluation], ce: CEDegradation | None = None) -> Plot:
    """FVU, L0 and CE degradation against width, for each kind.

    Parameters
    ----------
    evaluations : Evaluation or sequence of Evaluation
        Dictionaries of any kinds, widths and seeds. The line of a kind follows the lowest seed of
        each width; other seeds are open markers.
    ce : CEDegradation, optional
        CE degradation of the same dictionaries.

    Raises
    ------
    ValueError
        If there are no evaluations, or `ce` lacks one of the dictionaries.

    Examples
    --------
    >>> frontier([saekit.evaluate(sae, x) for sae in family]).data.columns.tolist()
    ['dictionary', 'kind', 'width', 'seed', 'fvu', 'l0']
    """
    evaluations = as_list(evaluations)
    if not evaluations:
        raise ValueError("The frontier needs at least one evaluation, found none.")
    data = rows_of([e.dictionary for e in evaluations])
    data = data.assign(fvu=[e.fvu for e in evaluations], l0=[e.l0 for e in evaluations])
    columns = {"fvu": "FVU", "l0": "L0"}
    if ce is not None:
        data["ce_degradation"] = _ce_of(evaluations, ce)
        columns = {"fvu": "FVU", "ce_degradation": "CE degradation (nats)", "l0": "L0"}
    data = data.sort_values(["width", "seed"], ignore_index=True)
    first = data.pop("first")
    del data["label"]
    with house_style():
        figure = new_figure(FULL, 2.0)
        panels = figure.subplots(1, len(columns))
        for axes, (column, label) in zip(panels, columns.items(), strict=True):
            for (kind,), part in groups_of(data, ["kind"]):
                style = {"color": kind_style(kind).colour, "marker": kind_style(kind).marker}
                line, others = part[first[part.index]], part[~first[part.index]]
                dashes = kind_style(kind).line
                axes.plot(
                    line["width"], line[column], linestyle=dashes, label=kind_style(kind).label, **style
                )
                axes.plot(others["width"], others[column], linestyle="", markerfacecolor="white", **style)
            axes.set(xlabel="width", ylabel=label)
            doubling_axis(axes, data["width"].unique())
            axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        handles, _ = panels[0].get_legend_handles_labels()
        if not first.all():
            handles.append(
                Line2D(
                    [], [], color=INK, marker="o", markerfacecolor="white", linestyle="", label="other seed"
                )
            )
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    ranges = "; ".join(
        f"{kind_style(kind).label} {part['fvu'].iat[0]:.3f} to {part['fvu'].iat[-1]:.3f} "
        f"at L0 {part['l0'].min():.1f} to {part['l0'].max():.1f}"
        for (kind,), part in groups_of(data[first], ["kind"])
    )
    return Plot(
        figure,
        data,
        caption="Reconstruction against width. Fraction of variance unexplained (FVU)"
        + (", increase in cross-entropy when activations are replaced (CE degradation)" if ce else "")
        + " and mean number of active latents (L0) of each dictionary. FVU from the narrowest to the widest: "
        f"{ranges}. {on_tokens(evaluations[0].n_tokens, evaluations[0].n_excluded)}.",
        alt=f"Line charts against width for {data['kind'].nunique()} kinds of dictionary. FVU: {ranges}.",
        made_from=made_from(*evaluations),
    )


def _ce_of(evaluations: Sequence[Evaluation], ce: CEDegradation) -> list[float]:
    """CE degradation of the evaluated dictionaries, which are told apart by content."""
    found = dict(zip(ce.dictionaries, ce.frame["ce_degradation"], strict=True))
    missing = [e.dictionary.described for e in evaluations if e.dictionary not in found]
    if missing:
        raise ValueError(f"The CE degradation lacks {', '.join(missing)}.")
    return [float(found[evaluation.dictionary]) for evaluation in evaluations]


def kinds_frontier(table: pd.DataFrame) -> Plot:
    """FVU and CE degradation against L0, one line per kind and one column per width.

    Parameters
    ----------
    table : DataFrame
        `kind`, `width`, `target_l0`, `l0`, `fvu` and `ce_degradation` of each dictionary, such as
        `saekit.kinds_table()`.

    Raises
    ------
    ValueError
        If the table is empty.

    Examples
    --------
    >>> kinds_frontier(saekit.kinds_table()).data.columns.tolist()
    ['kind', 'width', 'target_l0', 'l0', 'fvu', 'ce_degradation']
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
                for (kind,), part in groups_of(data[data["width"] == width], ["kind"]):
                    axes.plot(
                        part["l0"],
                        part[column],
                        color=kind_style(kind).colour,
                        marker=kind_style(kind).marker,
                        markersize=5,
                        markeredgecolor="white",  # tells markers apart where they overlap
                        markeredgewidth=0.3,
                        label=kind_style(kind).label,
                    )
                axes.set_title(f"width {width}" if column == "fvu" else "")
            panels[0].set_ylabel(label)
        for axes in grid[1]:
            axes.set_xlabel("active latents per token (L0)")
        doubling_axis(grid[0, 0], targets)
        reached = [*targets, *data["l0"]]
        grid[0, 0].set_xlim(min(reached) / 1.3, max(reached) * 1.3)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    width, target = widths[-1], targets[len(targets) // 2]
    compared = data[(data["width"] == width) & (data["target_l0"] == target)].sort_values("fvu")
    numbers = "; ".join(
        f"{kind_style(row.kind).label} {row.fvu:.3f} and {row.ce_degradation:.3f} at L0 {row.l0:.1f}"
        for row in compared.itertuples()
    )
    return Plot(
        figure,
        data,
        caption="The cost of sparsity for each kind. Fraction of variance unexplained (FVU) and increase in "
        "cross-entropy when activations are replaced (CE degradation) against the mean number of active "
        "latents per token (L0) on held-out tokens, for dictionaries trained in the same way to "
        f"{listed(targets)} active latents per token. FVU and CE degradation at width {width}, trained to "
        f"{target}: {numbers}.",
        alt=f"Line charts of FVU and CE degradation against L0 for {data['kind'].nunique()} kinds of "
        f"dictionary, one column for each of the widths {listed(widths)}. FVU and CE degradation at width "
        f"{width}, trained to {target}: {numbers}.",
    )


def active_histogram(table: pd.DataFrame) -> Plot:
    """Distribution of the number of active latents per token, one panel per kind.

    Parameters
    ----------
    table : DataFrame
        `kind`, `width`, `active` (latents) and `tokens` with exactly that many, such as
        `saekit.kinds_l0_table()`.

    Raises
    ------
    ValueError
        If the table is empty.

    Examples
    --------
    >>> active_histogram(saekit.kinds_l0_table()).data.columns.tolist()
    ['kind', 'width', 'active', 'tokens']
    """
    if table.empty:
        raise ValueError("The histogram of active latents needs at least one dictionary, found none.")
    members = dict(iter(groups_of(table, ["kind", "width"])))
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
            axes.stairs(heights, edges, baseline=0.5, fill=True, color=kind_style(member[0]).colour)
            axes.plot(count["mean"], 1.0, "v", color=INK, transform=axes.get_xaxis_transform(), clip_on=False)
            axes.set_title(named(*member))
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
    numbers = "; ".join(
        f"{named(*member)} {count['mean']:.1f}, {count['low']} to {count['high']}, at most {count['most']}"
        for member, count in counts.items()
    )
    return Plot(
        figure,
        table,
        caption="Active latents per token. Held-out tokens by their number of active latents, with counts on "
        "a logarithmic axis; the triangle marks the mean (L0). Mean, middle 90% of the tokens and maximum "
        f"(the axis omits at most one token in 10,000 of each dictionary): {numbers}.",
        alt=f"Histograms of the number of active latents per token for {len(members)} dictionaries. Mean and "
        f"middle 90% of the tokens: {numbers}.",
    )


def convergence(table: pd.DataFrame) -> Plot:
    """Seed overlap and FVU over the steps of training, for every kind and width with two seeds.

    Parameters
    ----------
    table : DataFrame
        `kind`, `width`, `step`, `tokens`, `fvu`, `median_cosine` and `share_under_0.7`, such as
        `saekit.convergence_table()`.

    Raises
    ------
    ValueError
        If the table is empty.

    Examples
    --------
    >>> convergence(saekit.convergence_table()).data.columns.tolist()
    ['kind', 'width', 'step', 'tokens', 'median_cosine', 'share_under_0.7', 'fvu']
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
            for (kind, width), part in groups_of(data, ["kind", "width"]):
                axes.plot(
                    part["step"] / 1000,
                    part[column],
                    color=kind_style(kind).colour,
                    linestyle=dashes[width],
                    marker=kind_style(kind).marker,
                    markersize=2.5,
                    label=named(kind, width),
                )
            axes.set(xlabel="thousands of steps", ylabel=label, xlim=(0, None))
        panels[0].set_ylim(None, 1)
        panels[1].set_ylim(0, None)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), handlelength=3)
    half = data["step"].max() / 2
    ends = [
        (named(kind, width), part[part["step"] <= half].iloc[-1], part.iloc[-1])
        for (kind, width), part in groups_of(data, ["kind", "width"])
    ]
    numbers = "; ".join(
        f"{name} cosine {middle['median_cosine']:.3f} and {last['median_cosine']:.3f}, under 0.7 "
        f"{percent(middle['share_under_0.7'])} and {percent(last['share_under_0.7'])}, "
        f"FVU {middle['fvu']:.3f} and {last['fvu']:.3f}"
        for name, middle, last in ends
    )
    return Plot(
        figure,
        data,
        caption="Convergence of training. Greatest cosine of each latent of one seed with any latent of the "
        "other, by decoder direction: the median and the share of latents under 0.7; and fraction of "
        "variance unexplained (FVU) on held-out tokens. Half-way and after "
        f"{int(data['step'].max()):,} steps: {numbers}.",
        alt=f"Line charts over training steps for {len(ends)} pairs of seeds: median best cosine, share of "
        f"latents under cosine 0.7, and FVU. Half-way and at the end: {numbers}.",
    )


def density_histogram(evaluations: Evaluation | Sequence[Evaluation]) -> Plot:
    """How often latents are active: log10 density, one line per dictionary.

    Parameters
    ----------
    evaluations : Evaluation or sequence of Evaluation
        Dictionaries of any kinds and widths; one panel per kind.

    Raises
    ------
    ValueError
        If there are no evaluations, or all latents of all dictionaries are dead.

    Examples
    --------
    >>> density_histogram([saekit.evaluate(sae, x) for sae in (small, large)]).data.columns.tolist()
    ['dictionary', 'kind', 'width', 'seed', 'log10_density_from', 'log10_density_to', 'share',
     'dead_fraction']
    """
    evaluations = as_list(evaluations)
    if not evaluations:
        raise ValueError("The density histogram needs at least one evaluation, found none.")
    alive = [e.density[e.density > 0].log10().numpy() for e in evaluations]
    if not any(map(len, alive)):
        raise ValueError("The density histogram has nothing to show: every latent is dead.")
    lowest = np.floor(min(logs.min() for logs in alive if len(logs)) * 4) / 4
    edges = np.arange(min(lowest, -0.25), 0.01, 0.25)  # one bin at least, where latents are always active
    parts, members = [], rows_of([e.dictionary for e in evaluations])
    records = members.drop(columns=["first", "label"]).to_dict("records")
    for evaluation, member, logs in zip(evaluations, records, alive, strict=True):
        counts = np.histogram(logs, edges)[0]
        parts.append(
            pd.DataFrame(
                {
                    **member,
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
            for part, member in zip(parts, members.itertuples(), strict=True):
                if member.kind != kind:
                    continue
                axes.stairs(
                    part["share"],
                    edges,
                    color=colours[member.width],
                    linestyle="-" if member.first else ":",
                    linewidth=1.2,
                    label=f"{member.label} ({percent(part['dead_fraction'].iat[0])} dead)",
                )
            axes.set(title=kind_style(kind).label, xlabel="log$_{10}$ density")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylabel("share of latents")
        figure.legend(loc="outside right center")
    dead = "; ".join(
        f"{name} {percent(e.dead_fraction)}"
        for name, e in zip(members["dictionary"], evaluations, strict=True)
    )
    return Plot(
        figure,
        data,
        caption="How often latents are active. Density is the share of tokens on which a latent is active; "
        f"bins span a quarter of a decade, and shares are of all latents. Dead (never active): {dead}. "
        f"{on_tokens(evaluations[0].n_tokens, evaluations[0].n_excluded)}.",
        alt=f"Histograms of log10 density for {len(evaluations)} dictionaries. Dead latents: {dead}.",
        made_from=made_from(*evaluations),
    )


def _summary_of_counts(part: pd.DataFrame) -> dict[str, Any]:
    """Mean, 5% and 95% quantiles, end of the axis and maximum of the number of active latents per token."""
    active, tokens = part["active"].to_numpy(), part["tokens"].to_numpy()
    below = np.cumsum(tokens) / tokens.sum()
    low, high, end = (int(active[np.searchsorted(below, share)]) for share in (0.05, 0.95, 0.9999))
    mean = float(np.average(active, weights=tokens))
    return {"mean": mean, "low": low, "high": high, "end": end, "most": int(active.max())}
