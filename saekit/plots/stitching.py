"""Stitching: one dictionary turned into another, a whole family in a chain, latents gathered over it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from saekit.analysis.nulls import require_null
from saekit.charts import stitching as drawing
from saekit.charts.chart import Chart
from saekit.charts.model import linear_range
from saekit.charts.stitching import PHASE_COLOURS, PHASE_NAMES
from saekit.colours import DARK_GREY, INK, NULL, RECONSTRUCTION
from saekit.figures import FULL, Plot, describe, house_style, kind_style, new_figure
from saekit.plots.common import (
    as_list,
    doubling_axis,
    family_names,
    groups_of,
    made_from,
    on_all_tokens,
    pair_name,
    pair_names,
    pair_of,
    shared,
    title_of,
)
from saekit.wording import on_tokens, percent

if TYPE_CHECKING:
    from saekit.analysis.stitching.controls import CECurve, MatchedCurve, RandomOrders
    from saekit.analysis.stitching.frankenstein import Frankenstein
    from saekit.analysis.stitching.path import Stitching, StitchingChain

PHASE_DONE = {
    "insert": "novel latents are inserted",
    "swap": "groups are swapped",
    "remove": "lost latents are removed",
    "bias": "the bias is swapped",
}

DRAWN = 500  # steps of one phase of a chain: a panel of it is about as many pixels wide in print
GATHERED: dict[str, Any] = {"color": INK, "linewidth": 1.0, "markersize": 4}
MATCHED: dict[str, Any] = {
    "color": DARK_GREY,
    "markerfacecolor": "white",
    "linewidth": 0.9,
    "markersize": 3.5,
}
BIAS_WHEN = {"small": "last", "large": "first", "interpolated": "along the way"}
ORDER_STYLES = {  # colour (the kind's if empty) and dashes
    "similarity": ("", "-"),
    "static gain": ("", "--"),
    "greedy gain": (INK, "-"),
    "random": (NULL, "-"),
    "own": (INK, ":"),
}


def stitching_curve(
    result: Stitching,
    null: Stitching | None = None,
    *,
    random: RandomOrders | None = None,
    matched: MatchedCurve | None = None,
    ce: CECurve | None = None,
) -> Plot:
    """FVU and L0 as one dictionary turns into another step by step, beside the control seed.

    Parameters
    ----------
    result : Stitching
        Between two widths.
    null : Stitching, optional
        Between two seeds of one width: a second column.
    random : RandomOrders, optional
        The same moves in random orders (`random_orders`): a grey band from minimum to maximum.
    matched : MatchedCurve, optional
        Points of the curve with one threshold raised until L0 equals that of the small dictionary
        (`matched_curve`).
    ce : CECurve, optional
        CE degradation at some steps (`ce_curve`): a third panel.

    Raises
    ------
    ValueError
        If the null is no null of the result, or another control was measured on another curve.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching: novel latents are inserted and reconstruction
    latents swapped. The order, the groups and the treatment of the bias are ours.

    Examples
    --------
    >>> path, null = saekit.stitch(small, large, x), saekit.stitch(small, other_seed, x)
    >>> plot = stitching_curve(path, null, random=saekit.random_orders(path, n=3))
    >>> plot.data["comparison"].unique().tolist()
    ['ReLU 8 → 12', 'ReLU 8, other seed']
    """
    if null is not None:
        require_null(result, null, "theta", "grouping", "order", "lost", "bias")
    _require_control(result, random, matched, ce)
    results = [result] if null is None else [result, null]
    phases = [r.phases for r in results]
    novel = "" if result.theta is None else f" (best cosine under θ = {result.theta:g})"
    names = pair_names(results)
    numbers = _curve_words(results, names, phases, random, matched, ce)
    curves = [drawing.Curve(result, random, matched, ce)]
    curves += [] if null is None else [drawing.Curve(null)]
    scales = drawing.stitching_scales(curves)
    columns = [
        drawing.stitching_panels(curve, scales, title=title_of(name), named=curve is curves[0])
        for curve, name in zip(curves, names, strict=True)
    ]
    steps = [len(r.frame) for r in results]
    chart = Chart(
        tuple(zip_longest(*columns)),
        alt="",
        height=170 + 54 * (ce is not None),
        heights=drawing.HEIGHTS[: len(scales)],
        widths=tuple(max(n, 0.5 * max(steps)) for n in steps),
        keys=drawing.stitching_keys(curves),
        key_columns=5,
    )
    data = pd.concat(
        [curve.data.assign(comparison=name) for curve, name in zip(curves, names, strict=True)],
        ignore_index=True,
    )
    return Plot(
        chart.figure(),
        data[["comparison", *data.columns.drop("comparison")]],
        caption=f"Stitching one dictionary into another. FVU and L0 after each step from {names[0]}: novel "
        f"latents{novel} are inserted one by one, groups of similar latents are swapped, and small latents "
        f"without a counterpart are removed; the decoder bias is swapped {BIAS_WHEN[result.bias]}. "
        f"{numbers}. {on_tokens(result.n_tokens, result.n_excluded)}.",
        alt=f"Curves of FVU and L0 over the steps of stitching, with the phases shaded. {numbers}.",
        made_from=made_from(*results),
        settings=_settings(result),
    )


def stitching_orders(results: Stitching | Sequence[Stitching], random: Sequence[RandomOrders] = ()) -> Plot:
    """FVU over the steps of stitching, for the same moves in different orders.

    Parameters
    ----------
    results : Stitching or sequence of Stitching
        Paths of one pair or of several: one panel per pair, one line per order.
    random : sequence of RandomOrders
        Random orders (`random_orders`) of the moves of some of the results.

    Raises
    ------
    ValueError
        If there are no results, or random orders are of other moves.

    Examples
    --------
    >>> paths = [saekit.stitch(small, large, x, order=order) for order in ("similarity", "greedy_gain")]
    >>> plot = stitching_orders(paths)
    >>> plot.data["order"].unique().tolist()
    ['similarity', 'greedy gain']
    """
    results = as_list(results)
    if not results:
        raise ValueError("The plot of orders needs at least one stitching, found none.")
    names = pair_names(results)
    pairs = list(dict.fromkeys(names))
    parts = [
        r.frame[["step", "phase", "fvu"]].assign(comparison=name, order=_order(r))
        for r, name in zip(results, names, strict=True)
    ]
    for draws in random:
        moves = _moves(draws.stitching)
        pair = next((name for name, r in zip(names, results, strict=True) if _moves(r) == moves), None)
        if pair is None:
            raise ValueError(f"Random orders of {pair_name(draws.stitching)} belong to none of the results.")
        for end in ("min", "max"):
            band = draws.frame.groupby("step", as_index=False)["fvu"].agg(end)
            parts.append(band.assign(comparison=pair, order=f"random, {end}"))
    data = pd.concat(parts, ignore_index=True)[["comparison", "order", "step", "phase", "fvu"]]
    with house_style():
        figure = new_figure(FULL if len(pairs) > 1 else 0.6 * FULL, 2.3)
        panels = figure.subplots(1, len(pairs), squeeze=False)[0]
        for axes, pair in zip(panels, pairs, strict=True):
            lines = {order: rows for (order,), rows in groups_of(data[data["comparison"] == pair], ["order"])}
            if "random, min" in lines:
                low, high = (lines.pop(f"random, {end}") for end in ("min", "max"))
                axes.fill_between(low["step"], low["fvu"], high["fvu"], color=NULL, alpha=0.55, linewidth=0)
            style = kind_style(results[names.index(pair)].large.kind)
            for order, rows in lines.items():
                colour, dashes = ORDER_STYLES[order]
                axes.plot(rows["step"], rows["fvu"], color=colour or style.colour, linestyle=dashes, zorder=3)
            axes.axhline(rows["fvu"].iloc[0], color=INK, linewidth=0.6, linestyle=":", zorder=1)
            axes.set_title(title_of(pair), fontsize=8)
            axes.set_xlabel("step")
        panels[0].set_ylabel("FVU")
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=colour or DARK_GREY, linestyle=dashes, label=order)
            for order, (colour, dashes) in ORDER_STYLES.items()
            if (data["order"] == order).any()
        ]
        if random:
            handles.append(Patch(color=NULL, alpha=0.55, linewidth=0, label="random"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    peaks = "; ".join(
        f"{name}, {_order(r)}: {r.frame['fvu'].max():.3f}" for r, name in zip(results, names, strict=True)
    )
    return Plot(
        figure,
        data,
        caption="The same moves in other orders. FVU after each step when, phase by phase, novel latents and "
        "groups are moved in the order of their similarity, of the change that each would make alone at the "
        "start (static gain) or of the change that it makes at that point (greedy gain). The grey band "
        "covers random orders; the dotted line marks the small dictionary. "
        f"Highest FVU along the path: {peaks}. "
        f"{on_all_tokens(results)}.",
        alt=f"Curves of FVU over the steps, one line per order. Highest FVU along the path: {peaks}.",
        made_from=made_from(*results),
        settings=_settings(*results),
    )


def stitching_chain(chains: StitchingChain | Sequence[StitchingChain]) -> Plot:
    """FVU and L0 against width as each dictionary of a family turns into the next.

    Parameters
    ----------
    chains : StitchingChain or sequence of StitchingChain
        One column per chain, such as those of a ReLU and a BatchTopK family.

    Raises
    ------
    ValueError
        If there are no chains.

    Examples
    --------
    >>> plot = stitching_chain(saekit.stitch_chain(family, x))
    >>> plot.data.columns.tolist()
    ['kind', 'series', 'pair', 'phase', 'step', 'width', 'fvu', 'l0']
    """
    chains = as_list(chains)
    if not chains:
        raise ValueError("The chain plot needs at least one chain, found none.")
    parts, families = (
        [_chain_data(chain) for chain in chains],
        [c.stitchings[0].small.identity for c in chains],
    )
    data, names = pd.concat(parts, ignore_index=True), family_names(families)
    with house_style():
        figure = new_figure(FULL, 3.3)
        panels = figure.subplots(
            2, len(chains), sharex="col", sharey="row", squeeze=False, height_ratios=(2, 1)
        )
        for column, part, family, name in zip(panels.T, parts, families, names, strict=True):
            style = kind_style(family.kind)
            trained = part[part["series"] == "trained"]
            for axes, measure in zip(column, ("fvu", "l0"), strict=True):
                for (_, phase), rows in groups_of(part[part["series"] == "stitched"], ["pair", "phase"]):
                    axes.plot(rows["width"], rows[measure], color=PHASE_COLOURS[phase], linewidth=1.2)
                axes.plot(
                    trained["width"],
                    trained[measure],
                    color=style.colour,
                    linewidth=0.8,
                    linestyle=":",
                    marker=style.marker,
                    markeredgecolor=INK,
                    markersize=5,
                    zorder=3,
                )
                doubling_axis(axes, trained["width"])
            column[0].set_title(name, fontsize=8)
            column[1].set_xlabel("latents")
        panels[0, 0].set_ylabel("FVU")
        panels[1, 0].set_ylabel("L0")
        figure.align_ylabels(panels[:, 0])
        handles = [
            Line2D([], [], color=PHASE_COLOURS[phase], label=PHASE_NAMES[phase])
            for phase in PHASE_NAMES
            if (data["phase"] == phase).any() and phase != "bias"
        ]
        handles.append(
            Line2D([], [], color=NULL, linestyle=":", marker="o", markeredgecolor=INK, label="trained")
        )
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    numbers = "; ".join(_chain_sentence(chain) for chain in chains)
    first = chains[0].stitchings[0]
    return Plot(
        figure,
        data,
        caption="Stitching a whole family. FVU and L0 against the number of latents as each dictionary turns "
        "into the next, from the smallest to the largest: novel latents are inserted, groups of similar "
        "latents are swapped, and latents without a counterpart are removed. "
        f"{numbers}. {on_tokens(first.n_tokens, first.n_excluded)}.",
        alt=f"Paths of FVU and L0 against width from one trained dictionary to the next. {numbers}.",
        made_from=made_from(*(stitching for chain in chains for stitching in chain.stitchings)),
        settings=_settings(first),
    )


def _chain_data(chain: StitchingChain) -> pd.DataFrame:
    """Each phase with its starting point, so that lines meet, and the trained dictionaries."""
    columns = ["pair", "phase", "step", "width", "fvu", "l0"]
    parts = []
    for r, name in zip(chain.stitchings, pair_names(chain.stitchings), strict=True):
        for row in r.phases.itertuples():
            stretch = _thinned(r.frame.iloc[row.first_step - 1 : row.last_step + 1])
            parts.append(stretch.assign(pair=name, phase=row.phase, series="stitched"))
        for side, dictionary in (("small", r.small), ("large", r.large)):
            if side == "small" and r is not chain.stitchings[0]:
                continue  # the large one of the pair before
            point = {"width": dictionary.width, **r.references[side]}
            parts.append(pd.DataFrame([point]).assign(pair=name, series="trained"))
    data = pd.concat(parts, ignore_index=True)
    return data.assign(kind=chain.stitchings[0].small.kind)[["kind", "series", *columns]]


def _thinned(stretch: pd.DataFrame) -> pd.DataFrame:
    """At most `DRAWN` steps of a phase and its extremes: more than a panel can show apart."""
    if len(stretch) <= DRAWN:
        return stretch
    rows = {*np.linspace(0, len(stretch) - 1, DRAWN).round().astype(int)}
    for measure in ("fvu", "l0"):
        rows |= {int(stretch[measure].argmin()), int(stretch[measure].argmax())}
    return stretch.iloc[sorted(rows)]


def _chain_sentence(chain: StitchingChain) -> str:
    parts = []
    for r, name in zip(chain.stitchings, pair_names(chain.stitchings), strict=True):
        fvu = r.frame["fvu"]
        parts.append(f"{name} from {fvu.iloc[0]:.3f} to {fvu.iloc[-1]:.3f} (highest {fvu.max():.3f})")
    return f"FVU: {', '.join(parts)}"


def frankenstein(results: Frankenstein | Sequence[Frankenstein]) -> Plot:
    """FVU of a gathered dictionary beside the trained ones, against width and against L0.

    Parameters
    ----------
    results : Frankenstein or sequence of Frankenstein
        One column per result, such as those of a ReLU and a BatchTopK family.

    Raises
    ------
    ValueError
        If there are no results.

    Examples
    --------
    >>> plot = frankenstein(saekit.build_frankenstein(family, x))
    >>> plot.data.columns.tolist()
    ['kind', 'series', 'up_to', 'width', 'l0', 'fvu', 'l0_matched', 'fvu_matched']
    """
    results = as_list(results)
    if not results:
        raise ValueError("The Frankenstein plot needs at least one result, found none.")
    theta = shared(results, "theta")
    families = [r.dictionaries[0].identity for r in results]
    names = family_names(families)
    columns = ["kind", "up_to", "width", "l0", "fvu", "l0_matched", "fvu_matched"]
    parts = [
        r.frame[columns].rename(columns={"kind": "series"}).assign(kind=family.kind)
        for r, family in zip(results, families, strict=True)
    ]
    data = pd.concat(parts, ignore_index=True)[["kind", "series", *columns[1:]]]
    data.loc[data["series"] == "trained", ["l0_matched", "fvu_matched"]] = np.nan  # not drawn
    with house_style():
        figure = new_figure(FULL, 3.9)
        panels = figure.subplots(2, len(results), sharey=True, squeeze=False)
        for (by_width, by_l0), part, family, name in zip(panels.T, parts, families, names, strict=True):
            trained, gathered = (part[part["series"] == s] for s in ("trained", "frankenstein"))
            style = {
                "marker": kind_style(family.kind).marker,
                "color": kind_style(family.kind).colour,
                "markeredgecolor": INK,
                "markersize": 5,
            }
            by_width.plot(trained["width"], trained["fvu"], linewidth=0.9, zorder=3, **style)
            by_l0.plot(trained["l0"], trained["fvu"], linestyle="", zorder=3, **style)
            for axes, x, at in ((by_width, "width", "width"), (by_l0, "l0", "l0_matched")):
                axes.plot(gathered[x], gathered["fvu"], "D-", zorder=4, **GATHERED)
                axes.plot(gathered[at], gathered["fvu_matched"], "D--", zorder=2, **MATCHED)
            doubling_axis(by_width, trained["width"])
            widest = max(trained["width"].max(), gathered["width"].max())
            by_width.set_xlim(trained["width"].min() / 1.2, widest * 1.2)
            by_width.set_title(name, fontsize=8)
            by_width.set_xlabel("latents")
            by_l0.set_xlabel("L0")
        for axes in panels[:, 0]:
            axes.set_ylabel("FVU")
        figure.legend(
            handles=[
                Line2D([], [], color=NULL, marker="o", markeredgecolor=INK, label="trained"),
                Line2D([], [], marker="D", label="Frankenstein", **GATHERED),
                Line2D([], [], marker="D", linestyle="--", label="at the L0 of the smallest", **MATCHED),
            ],
            loc="outside lower center",
            ncols=3,
        )
    numbers = "; ".join(
        f"{name}: {s['width']:,} latents, FVU {s['fvu']:.3f} at L0 {s['l0']:.1f}, "
        f"{s['fvu_matched']:.3f} at L0 {s['l0_matched']:.1f}; the trained {s['trained_width']:,} has "
        f"{s['trained_fvu']:.3f} at {s['trained_l0']:.1f}"
        for name, s in zip(names, (r.summary for r in results), strict=True)
    )
    return Plot(
        figure,
        data,
        caption="A dictionary gathered over a family. To the smallest dictionary, each wider one in turn "
        "contributes the latents that are novel relative to those gathered so far (best cosine under "
        f"θ = {theta:g}). FVU beside that of the trained dictionaries, against the number of "
        "latents and against L0; dashed lines show it with one threshold raised until L0 equals that of the "
        f"smallest dictionary. {numbers}. {on_all_tokens(results)}.",
        alt=f"FVU against width and against L0 for trained and gathered dictionaries. {numbers}.",
        made_from=describe(*(d.identity for r in results for d in r.dictionaries)),
        settings={"theta": theta},
    )


def additivity(results: Stitching | Sequence[Stitching]) -> Plot:
    """Change in MSE when a group is swapped, against the sum over its latents moved alone.

    Parameters
    ----------
    results : Stitching or sequence of Stitching
        One panel per result. Steps that move a single latent are left out: there is nothing to add up.

    Raises
    ------
    ValueError
        If there are no results, or one never moves two latents at a time.

    Examples
    --------
    >>> additivity(saekit.stitch(small, large, x)).data.columns.tolist()
    ['comparison', 'step', 'phase', 'n_inserted', 'n_removed', 'sum_of_single_changes', 'mse_change']
    """
    results = as_list(results)
    if not results:
        raise ValueError("The additivity plot needs at least one stitching, found none.")
    columns = ["step", "phase", "n_inserted", "n_removed", "sum_of_single_changes", "mse_change"]
    parts, names = [], pair_names(results)
    for r, name in zip(results, names, strict=True):
        groups = r.frame[r.frame["n_inserted"] + r.frame["n_removed"] > 1]
        if groups.empty:
            raise ValueError(f"{name} has no step that moves more than one latent.")
        parts.append(groups[columns].assign(comparison=name))
    data = pd.concat(parts, ignore_index=True)[["comparison", *columns]]
    changes = data[["sum_of_single_changes", "mse_change"]]
    scale = linear_range(data["mse_change"])
    ends = float(changes.min(axis=None)), float(changes.max(axis=None))
    with house_style():
        figure = new_figure(FULL if len(results) > 1 else 0.6 * FULL, 2.7)
        panels = figure.subplots(1, len(results), sharex=True, sharey=True, squeeze=False)[0]
        for axes, name, part in zip(panels, names, parts, strict=True):
            axes.set_xscale("symlog", linthresh=scale)
            axes.set_yscale("symlog", linthresh=scale)
            axes.margins(0.08)
            larger = part["n_inserted"] + part["n_removed"] > 2
            for several, size, marker in ((False, 5, "o"), (True, 9, "^")):
                points = part[larger == several]
                axes.scatter(
                    points["sum_of_single_changes"],
                    points["mse_change"],
                    s=size,
                    marker=marker,
                    color=INK if several else RECONSTRUCTION,
                    alpha=0.5,
                    linewidth=0,
                    zorder=2 + several,
                    rasterized=True,
                )
            axes.plot(ends, ends, color=NULL, linewidth=0.8, zorder=1)
            axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
            axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
            axes.set_xlabel("sum of its latents alone")
            axes.set_title(title_of(name), fontsize=8)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
        panels[0].set_ylabel("change in MSE by the group")
        figure.legend(
            handles=[
                Line2D([], [], linestyle="", marker="o", color=RECONSTRUCTION, label="one for one"),
                Line2D([], [], linestyle="", marker="^", color=INK, label="more than two latents"),
                Line2D([], [], color=NULL, linewidth=0.8, label="if changes added up"),
            ],
            loc="outside lower center",
            ncols=3,
        )
    numbers = "; ".join(
        f"{name}: {len(part):,} groups, "
        f"together {_whole(part['mse_change'].sum())} where single changes sum to "
        f"{_whole(part['sum_of_single_changes'].sum())}, with the same sign in "
        f"{percent((np.sign(part['mse_change']) == np.sign(part['sum_of_single_changes'])).mean())}"
        for name, part in zip(names, parts, strict=True)
    )
    return Plot(
        figure,
        data,
        caption="Whether single changes add up. Change in MSE when a group of similar latents is swapped in "
        "one step of stitching, against the sum of the changes that its latents would make if each were "
        f"moved alone at that point (the axes are linear within ±{scale:g} and logarithmic beyond). "
        f"{numbers}. {on_all_tokens(results)}.",
        alt=f"Scatter of the change made by a group against the sum of single changes. {numbers}.",
        made_from=made_from(*results),
        settings=_settings(*results),
    )


def _whole(change: float) -> str:
    return f"{change:+.0f}".replace("-", "\u2212")


def _settings(*results: Stitching) -> dict[str, Any]:
    """How the paths were chosen, as far as it is the same for all."""
    first, *others = (result.options for result in results)
    same = {name: value for name, value in first.items() if all(other[name] == value for other in others)}
    return {name: value for name, value in same.items() if value is not None}


def _moves(result: Stitching) -> tuple[Any, ...]:
    """What paths share that differ in their order alone."""
    options = {name: value for name, value in result.options.items() if name not in ("order", "seed")}
    return *pair_of(result), result.n_tokens, result.n_steps, *options.values()


def _require_control(result: Stitching, *controls: RandomOrders | MatchedCurve | CECurve | None) -> None:
    """Refuse controls of another curve than the one that they are drawn on."""
    for control in controls:
        if control is None or (own := control.stitching) is result:
            continue
        if pair_of(own) != pair_of(result) or not own.frame.equals(result.frame):
            raise ValueError(
                f"A control ({type(control).__name__}) must be measured on the curve that is drawn, "
                f"{pair_name(result)} in {result.n_steps} steps, found {pair_name(own)} in {own.n_steps}."
            )


def _order(result: Stitching) -> str:
    return (result.order or "own").replace("_", " ")


def _curve_words(
    results: Sequence[Stitching],
    names: Sequence[str],
    phases_of: Sequence[pd.DataFrame],
    random: RandomOrders | None,
    matched: MatchedCurve | None,
    ce: CECurve | None,
) -> str:
    parts = []
    for r, name, stretches in zip(results, names, phases_of, strict=True):
        phases = ", ".join(
            f"{row.fvu:.3f} once {PHASE_DONE[row.phase]} ({percent(row.share_lowering)} of "
            f"{row.last_step - row.first_step + 1:,} steps lower it)"
            for row in stretches.itertuples()
        )
        parts.append(f"{name}: FVU {r.frame['fvu'].iloc[0]:.3f} alone, {phases}")
    if random is not None:
        peaks = random.frame.groupby("draw")["fvu"].max()
        parts.append(
            f"the highest FVU along the path is {results[0].frame['fvu'].max():.3f}, and in {len(peaks)} "
            f"random orders (band) {peaks.min():.3f} to {peaks.max():.3f}"
        )
    if matched is not None:
        worst = matched.frame.loc[matched.frame["fvu_matched"].idxmax()]
        parts.append(
            "with one threshold raised until L0 equals that of the small dictionary (dashed) it is at most "
            f"{worst['fvu_matched']:.3f}"
        )
    if ce is not None:
        first, last = ce.frame.iloc[0], ce.frame.iloc[-1]
        parts.append(
            f"CE degradation {first['ce_degradation']:.3f} at step {first['step']:.0f}, at most "
            f"{ce.frame['ce_degradation'].max():.3f}, {last['ce_degradation']:.3f} at step {last['step']:.0f}"
        )
    return "; ".join(parts)
