"""Effects of nodes and circuits: estimates against exact effects, faithfulness, and dictionaries compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from saekit import settings
from saekit.charts.model import linear_range
from saekit.colours import BLUE, GREEN, INK, ORANGE, PINK
from saekit.figures import FULL, Plot, house_style, kind_style, new_figure, width_colours
from saekit.plots.common import as_list, made_from, shared
from saekit.wording import fixed, listed, number, percent

if TYPE_CHECKING:
    from saekit.analysis.effects.circuits import Circuit, CircuitComparison
    from saekit.analysis.effects.nodes import NodeEffects

METHOD_NAMES = {
    "attribution": "attribution patching",
    "integrated": "integrated gradients",
    "relp": "RelP",
}
KIND_STYLES = {"latent": (BLUE, "o"), "error": (ORANGE, "s")}
ERROR_STYLES = {
    "nodes": ("errors are nodes", BLUE, "o"),
    "keep": ("errors kept", GREEN, "s"),
    "mean": ("errors at their mean", ORANGE, "^"),
    "remove": ("errors removed", PINK, "D"),
}


def effects_agreement(result: NodeEffects, place: str | None = None) -> Plot:
    """Every estimate against the exact effect, over the nodes of the sample.

    Parameters
    ----------
    result : NodeEffects
        With exact effects and at least one estimate.
    place : str, optional
        The hook point to show; the first if left out.

    Raises
    ------
    ValueError
        If there are no exact effects to compare with, or no such hook point.

    Notes
    -----
    Axes are linear around zero and logarithmic beyond, since most nodes do next to nothing.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> effects_agreement(saekit.measure_node_effects(model, saes[16], pairs)).data.columns.tolist()
    ['kind', 'method', 'exact', 'estimate']
    """
    place = result.places[0] if place is None else settings.choice("place", place, result.places)
    methods = [method for method in METHOD_NAMES if method in result.methods]
    if "exact" not in result.methods or not methods:
        raise ValueError(f"The plot needs exact effects and an estimate, found {', '.join(result.methods)}.")
    sample = result.frame[(result.frame["place"] == place) & result.frame["exact"].notna()]
    data = sample.melt(["kind", "exact"], methods, var_name="method", value_name="estimate")
    data = data[["kind", "method", "exact", "estimate"]]
    table = result.agreement
    table = table[table["place"] == place].set_index(["kind", "method"])
    threshold = linear_range(data["exact"])
    bound = 1.3 * max(data["exact"].abs().max(), data["estimate"].abs().max())
    with house_style():
        figure = new_figure(FULL, 2.5)
        panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        for axes, method in zip(panels, methods, strict=True):
            axes.plot([-bound, bound], [-bound, bound], color=INK, linewidth=0.6, zorder=1)
            for kind, (colour, marker) in KIND_STYLES.items():
                part = data[(data["kind"] == kind) & (data["method"] == method)]
                axes.scatter(
                    part["exact"], part["estimate"], s=7, marker=marker, color=colour, alpha=0.6, linewidth=0
                )
            axes.set_xscale("symlog", linthresh=threshold)
            axes.set_yscale("symlog", linthresh=threshold)
            # A tick between too, or the scale would look linear throughout.
            powers = 10.0 ** np.unique(np.floor(np.log10([np.sqrt(threshold * bound), bound])))
            ticks = [*-powers[::-1], 0, *powers]
            axes.set(xlim=(-bound, bound), ylim=(-bound, bound), xticks=ticks, yticks=ticks)
            names = [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
            axes.set(xticklabels=names, yticklabels=names)
            axes.minorticks_off()
            found = [
                f"{kind}s: r = {fixed(table.loc[(kind, method), 'correlation'])}"
                for kind in KIND_STYLES
                if (kind, method) in table.index
            ]
            axes.set_title("\n".join([METHOD_NAMES[method], *found]), fontsize=8)
        panels[0].set_ylabel("estimated effect")
        panels[len(panels) // 2].set_xlabel("exact effect")
        handles = [
            Line2D([], [], linestyle="", marker=marker, color=colour, label=f"{kind}s")
            for kind, (colour, marker) in KIND_STYLES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    numbers = "; ".join(
        f"{METHOD_NAMES[method]}, {kind}s {fixed(row.correlation, 3)} "
        f"[{fixed(row.low, 3)}, {fixed(row.high, 3)}]"
        for (kind, method), row in zip(table.index, table.itertuples(), strict=True)
    )
    counts = " and ".join(f"{n:,} {kind}s" for kind, n in sample["kind"].value_counts().items())
    return Plot(
        figure,
        data,
        caption=f"Estimated against exact effects. Change of the {result.metric.replace('_', ' ')} when a "
        f"node at {place} is set to its baseline ({result.baseline}), for {counts} drawn from "
        f"{len(result.prompts)} prompts ({result.prompts.name}). Pearson correlation with its 95% bootstrap "
        f"interval over prompts: {numbers}. The line is equality; axes are linear within "
        f"{number(threshold, 1)} of zero and logarithmic beyond.",
        alt=f"Scatter plots of estimated against exact effects of nodes. Correlations: {numbers}.",
        made_from=made_from(result),
        settings={"metric": result.metric, "baseline": result.baseline, "integration": result.integration},
    )


def faithfulness_curves(circuits: Circuit | Sequence[Circuit]) -> Plot:
    """Faithfulness and completeness against the number of nodes, one panel per treatment of errors.

    Parameters
    ----------
    circuits : Circuit or sequence of Circuit
        Of one task and metric; dictionaries share a panel.

    Raises
    ------
    ValueError
        If the circuits are of different tasks, or there are none.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> effects = saekit.measure_node_effects(model, saes[16], pairs, methods=["attribution"])
    >>> faithfulness_curves(saekit.measure_circuit(model, saes[16], effects, sizes=[1, 2])).data.columns[:3]
    Index(['dictionary', 'errors', 'n_nodes'], dtype=...)
    """
    circuits = as_list(circuits)
    for setting in ("prompts", "metric", "baseline"):
        shared(circuits, setting)
    names = [" and ".join(map(str, circuit.dictionaries)) for circuit in circuits]
    data = pd.concat(
        [
            circuit.frame.drop(columns=["n_latents", "n_errors", "metric", "metric_without"]).assign(
                dictionary=name, errors=circuit.errors
            )
            for circuit, name in zip(circuits, names, strict=True)
        ],
        ignore_index=True,
    )
    data = data[["dictionary", "errors", *data.columns.drop(["dictionary", "errors"])]]
    treatments = [errors for errors in ERROR_STYLES if (data["errors"] == errors).any()]
    colours = dict(zip(dict.fromkeys(names), (BLUE, ORANGE, GREEN, PINK, INK) * len(names), strict=False))
    with house_style():
        figure = new_figure(FULL, 2.5)
        panels = figure.subplots(1, len(treatments), sharey=True, squeeze=False)[0]
        for axes, errors in zip(panels, treatments, strict=True):
            for value in (0, 1):
                axes.axhline(value, color=INK, linewidth=0.6)
            for name, colour in colours.items():
                part = data[(data["errors"] == errors) & (data["dictionary"] == name)]
                for column, line in (("faithfulness", "-"), ("completeness", "--")):
                    axes.plot(part["n_nodes"], part[column], line, color=colour)
                    if f"random_{column}" in part:
                        axes.plot(part["n_nodes"], part[f"random_{column}"], ":", color=colour)
                    bounds = part[f"{column}_low"], part[f"{column}_high"]
                    axes.fill_between(part["n_nodes"], *bounds, color=colour, alpha=0.15, linewidth=0)
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(0, data["n_nodes"].max() * 1.2)
            axes.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
            axes.set_xlim(0, data["n_nodes"].max() * 1.2)
            axes.minorticks_off()
            axes.set_title(ERROR_STYLES[errors][0])
            axes.set_xlabel("nodes in the circuit")
        panels[0].set_ylabel("share of the model's effect")
        low, high = data[["faithfulness", "completeness"]].min().min(), data["faithfulness"].max()
        panels[0].set_ylim(min(-0.1, 1.1 * max(low, -1)), max(1.15, 1.1 * min(high, 2)))
        handles = [
            *(Line2D([], [], color=colour, label=name) for name, colour in colours.items()),
            Line2D([], [], color=INK, label="circuit alone (faithfulness)"),
            Line2D([], [], color=INK, linestyle="--", label="model without it (completeness)"),
        ]
        if "random_faithfulness" in data:
            handles.append(Line2D([], [], color=INK, linestyle=":", label="as many random nodes"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    parts = [
        f"{name}, {ERROR_STYLES[circuit.errors][0]}: "
        f"{_needed(circuit.nodes_for(0.8))} of {len(circuit.nodes):,} nodes"
        for circuit, name in zip(circuits, names, strict=True)
    ]
    first = circuits[0]
    return Plot(
        figure,
        data,
        caption=f"Faithfulness of circuits. Share of the model's {first.metric.replace('_', ' ')} "
        f"({first.prompts}) that the strongest nodes alone restore, and that is left without them, with all "
        f"other nodes at their baseline ({first.baseline}); bands are 95% bootstrap intervals over prompts. "
        f"Needed for a faithfulness of 0.8: {'; '.join(parts)}.",
        alt=f"Curves of faithfulness and completeness against circuit size. For 0.8: {'; '.join(parts)}.",
        made_from=made_from(*circuits),
        settings={"metric": first.metric, "baseline": first.baseline, "method": first.method},
    )


def circuits_by_width(curves: pd.DataFrame, errors: str = "nodes") -> Plot:
    """Faithfulness against the number of nodes, for every width of each task and kind, with random nodes.

    Parameters
    ----------
    curves : DataFrame
        From `saekit.circuits_table("curves")`.
    errors : {"nodes", "keep", "mean", "remove"}
        What becomes of SAE errors.

    Raises
    ------
    ValueError
        If the table has no such treatment of errors.

    Examples
    --------
    >>> plot = circuits_by_width(saekit.circuits_table("curves"), "mean")
    >>> plot.data["errors"].unique().tolist()
    ['mean']
    """
    errors = settings.choice("errors", errors, curves["errors"].unique())
    data = curves[(curves["errors"] == errors) & (curves["stage"] == "trained")].reset_index(drop=True)
    tasks, kinds, widths = (data[name].unique().tolist() for name in ("task", "kind", "width"))
    middle = _middle(data)
    colours = width_colours(sorted(widths))
    markers = dict(zip(sorted(widths), cycle("osD^vPX"), strict=False))  # shades alone are hard to tell apart
    with house_style():
        figure = new_figure(FULL, 0.9 + 1.7 * len(kinds))
        panels = figure.subplots(len(kinds), len(tasks), sharex=True, sharey=True, squeeze=False)
        for line, kind in zip(panels, kinds, strict=True):
            for axes, task in zip(line, tasks, strict=True):
                for value in (0, 1):
                    axes.axhline(value, color=INK, linewidth=0.6)
                here = data[(data["kind"] == kind) & (data["task"] == task)]
                for (width, seed), part in here.groupby(["width", "seed"]):
                    first = seed == here.loc[here["width"] == width, "seed"].min()
                    inside = part[part["n_nodes"] > 0]
                    style = {"color": colours[width], "linewidth": 1.0 if first else 0.5}
                    marks = {"marker": markers[width], "markersize": 3.5 if first else 0}
                    axes.plot(inside["n_nodes"], inside["faithfulness"], "-", **style, **marks)
                    axes.plot(inside["n_nodes"], inside["random_faithfulness"], ":", **style)
                axes.set_xscale("log")
                axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
                axes.minorticks_off()
                axes.set_title(f"{kind_style(kind).label}, {task.replace('_', ' ')}")
            line[0].set_ylabel("faithfulness")
        for axes in panels[-1]:
            axes.set_xlabel("nodes in the circuit")
        panels[0, 0].set_ylim(-0.15, 1.2)
        handles = [
            *(
                Line2D([], [], color=colours[width], marker=markers[width], label=f"width {width}")
                for width in widths
            ),
            Line2D([], [], color=INK, linestyle=":", label="as many random nodes"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // 2))
    found = "; ".join(
        f"{kind_style(kind).label} {width} {fixed(part['faithfulness'].median())}"
        for (kind, width), part in data[data["n_nodes"] == middle].groupby(["kind", "width"], sort=False)
    )
    random = data.loc[data["n_nodes"] == middle, "random_faithfulness"]
    return Plot(
        figure,
        data,
        caption=f"Circuits by width. Share of the model's effect that the strongest nodes alone restore "
        f"({ERROR_STYLES[errors][0]}), and as many random nodes (dotted); thin lines are further seeds. With "
        f"{middle} nodes, the median over tasks and seeds: {found}; of random nodes at most "
        f"{fixed(random.max())}.",
        alt=f"Curves of faithfulness by circuit size, one panel per kind and task. With {middle} nodes: "
        f"{found}.",
    )


def _middle(data: pd.DataFrame) -> int:
    """The measured size in the middle, of those that every curve has."""
    shared = data["n_nodes"].value_counts()
    sizes = sorted(size for size, n in shared.items() if n == shared.max() and size > 0)
    return int(sizes[len(sizes) // 2])


def circuits_by_dictionary(result: CircuitComparison) -> Plot:
    """Nodes that a circuit needs in each dictionary, beside the share of effects that its error has.

    Parameters
    ----------
    result : CircuitComparison
        Several widths, or steps of a stitching curve.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> members = {"small": saes[16], "large": saes[32]}
    >>> plot = circuits_by_dictionary(saekit.compare_circuits(model, members, pairs, sizes=[1, 4]))
    >>> plot.data["name"].tolist()
    ['small', 'large']
    """
    treatments = [name for name in ERROR_STYLES if f"nodes_{name}" in result.frame]
    columns = [f"{what}_{name}" for name in treatments for what in ("nodes", "faithfulness")]
    data = result.frame[["name", "width", "active", "error_share", *columns]].copy()
    places = np.arange(len(data))[::-1]
    with house_style():
        figure = new_figure(FULL, 1.1 + 0.22 * len(data))
        left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        most = max([1.0, *(data[f"nodes_{n}"].replace(np.inf, np.nan).max() for n in treatments)])
        beyond = 4 * most
        for shift, name in zip(np.linspace(0.12, -0.12, len(treatments)), treatments, strict=True):
            label, colour, marker = ERROR_STYLES[name]
            needed = data[f"nodes_{name}"].to_numpy()
            reached = np.isfinite(needed)
            at = np.where(reached, needed, beyond)
            left.plot(at[reached], (places + shift)[reached], marker, color=colour, label=label)
            left.plot(at[~reached], (places + shift)[~reached], marker, color=colour, markerfacecolor="white")
        left.set_xscale("log")
        left.axvline(2 * most, color=INK, linewidth=0.6, linestyle=":")
        left.set_xlim(0.7, 8 * most)
        ticks = [tick for tick in (1, 10, 100, 1000) if tick <= 1.5 * most]
        left.set_xticks([*ticks, beyond], [*(f"{tick:,}" for tick in ticks), "never"])
        left.minorticks_off()
        left.set_yticks(places, data["name"])
        left.set_ylim(-0.6, len(data) - 0.4)
        left.set_xlabel(f"nodes for a faithfulness of {result.target:g}")
        right.barh(places, data["error_share"], 0.6, color=ORANGE)
        right.tick_params(labelleft=False)
        right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set_xlabel("share of SAE errors in all effects")
        figure.legend(loc="outside lower center", ncols=len(treatments))
    parts = [
        f"{row['name']} {listed([_needed(row[f'nodes_{name}']) for name in treatments])} nodes, "
        f"errors {percent(row['error_share'])}"
        for row in data.to_dict("records")
    ]
    which = listed([ERROR_STYLES[name][0] for name in treatments])
    return Plot(
        figure,
        data,
        caption=f"Circuits of {result.prompts} by dictionary. Nodes that restore {percent(result.target)} of "
        f"the model's {result.metric.replace('_', ' ')} ({which}; open markers: no circuit does), and the "
        f"share of SAE errors in the sum of absolute effects. {'; '.join(parts)}.",
        alt=f"Points of circuit sizes and bars of the errors' share by dictionary. {'; '.join(parts)}.",
        made_from=made_from(result),
        settings={"metric": result.metric, "baseline": result.baseline, "method": result.method},
    )


def _needed(n: float) -> str:
    return f"{n:,.0f}" if np.isfinite(n) else "never"
