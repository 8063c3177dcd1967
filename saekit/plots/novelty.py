"""Novel and reconstruction latents: insertion alone, in groups, in cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from saekit.analysis.nulls import require_null
from saekit.charts import novelty as drawing
from saekit.charts.chart import Chart
from saekit.charts.model import HALF_PAGE, PAGE
from saekit.colours import INK, LIGHT_GREY, NOVEL, NULL, RECONSTRUCTION
from saekit.figures import FULL, Plot, house_style, new_figure
from saekit.plots.common import as_list, made_from, on_all_tokens, pair_names, shared, title_of
from saekit.wording import on_tokens, percent

if TYPE_CHECKING:
    from saekit.analysis.novelty import GroupInsertion, Insertion


def insertion_scatter(result: Insertion, null: Insertion | None = None) -> Plot:
    """Change in MSE on inserting each latent alone against its best cosine, beside the null.

    Parameters
    ----------
    result : Insertion
        Between two widths.
    null : Insertion, optional
        Between two seeds of one of the widths.

    Raises
    ------
    ValueError
        If the null is no null of the result.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching: how well the cosine predicts which latents help.

    Examples
    --------
    >>> result, null = saekit.insertion(small, large, x), saekit.insertion(small, other_seed, x)
    >>> insertion_scatter(result, null).data["comparison"].unique().tolist()
    ['ReLU 8 → 12', 'ReLU 8, other seed']
    """
    if null is not None:
        require_null(result, null, "theta")
    panels_of = [result] if null is None else [result, null]
    names = pair_names(panels_of)
    axes = drawing.insertion_axes(panels_of)
    panels = []
    for r, name in zip(panels_of, names, strict=True):
        title = f"{title_of(name)}\n{_auc(r, 2)}, {r.summary['n_dead']} dead left out"
        panels.append(drawing.insertion_panel(r, r.theta, axes, title=title))
        axes = axes[0], replace(axes[1], texts=(), label="")  # shared by all panels
    data = pd.concat(
        [
            panel.data.assign(comparison=name, null=r is null)
            for panel, r, name in zip(panels, panels_of, names, strict=True)
        ],
        ignore_index=True,
    )
    data = data[["comparison", "null", *data.columns.drop(["comparison", "null"])]]
    chart = Chart(
        (tuple(panels),),
        alt="",
        width=(1 if null else 0.6) * PAGE,
        height=175,
        keys=drawing.insertion_keys(result.theta),
        key_columns=3,
    )
    numbers = "; ".join(
        f"{name}: {_auc(r, 3)}, {percent(r.summary['share_novel_gain'])} help, "
        f"{percent(r.summary['share_novel_cos'])} lie under θ"
        + ("" if r.without_auc else f", balanced accuracy at θ {r.summary['balanced_accuracy']:.2f}")
        for r, name in zip(panels_of, names, strict=True)
    )
    return Plot(
        chart.figure(),
        data,
        caption="Inserting single latents. Each point is one latent of the large dictionary: the change in "
        "the small dictionary's MSE when that latent alone is added (negative values help; the axis is "
        f"linear within ±{axes[1].unit:g} and logarithmic beyond) against its best cosine with a small one. "
        f"{numbers}. Dead latents are left out ({', '.join(str(r.summary['n_dead']) for r in panels_of)}). "
        f"{on_tokens(result.n_tokens, result.n_excluded)}.",
        alt=f"Scatter of the change in MSE against the best cosine, with theta = {result.theta:g} marked. "
        f"{numbers}.",
        made_from=made_from(*panels_of),
        settings={"theta": result.theta},
    )


def _auc(result: Insertion, decimals: int) -> str:
    """The area under the ROC curve, or why there is none."""
    return f"no AUC ({result.without_auc})" if result.without_auc else f"AUC {result.auc:.{decimals}f}"


def roc(results: Insertion | Sequence[Insertion], nulls: Insertion | Sequence[Insertion] = ()) -> Plot:
    """ROC curves of the cosine as a predictor of the gain, with theta marked and the nulls in grey.

    Parameters
    ----------
    results : Insertion or sequence of Insertion
        Between widths.
    nulls : Insertion or sequence of Insertion
        Between seeds.

    Raises
    ------
    ValueError
        If there are no results, thetas differ, a null is a null of none of them, or a curve is undefined
        because all latents help or none does.

    Examples
    --------
    >>> roc(saekit.insertion(saes[16], saes[32], harvested)).data.columns.tolist()
    ['comparison', 'null', 'point', 'theta', 'fpr', 'tpr']
    """
    results, nulls = as_list(results), as_list(nulls)
    if not results:
        raise ValueError("A ROC plot needs at least one insertion, found none.")
    theta = shared([*results, *nulls], "theta")
    for other in nulls:
        about = [r for r in results if other.small in (r.small, r.large)]
        require_null((about or results)[0], other)
    names = pair_names([*results, *nulls])
    panel = drawing.roc_panel(
        results, nulls, [title_of(name) for name in names], f"AUC; marker: θ = {theta:g}"
    )
    data = panel.data.replace({"comparison": dict(zip(map(title_of, names), names, strict=True))})
    aucs = [f"{name} {r.auc:.3f}" for r, name in zip(results, names, strict=False)]
    aucs += [f"{name} {r.auc:.3f} (null)" for r, name in zip(nulls, names[len(results) :], strict=True)]
    listed = ", ".join(aucs)
    return Plot(
        Chart(((panel,),), alt="", width=HALF_PAGE, height=HALF_PAGE + 8).figure(),
        data,
        caption="How well the cosine predicts which latents help. For every threshold, the share of the "
        "latents that lower the MSE and of those that raise it whose best cosine lies under the threshold; "
        f"markers are at θ = {theta:g}. Area under the curve (AUC): {listed}. Dead latents are "
        f"left out. {on_all_tokens(results)}.",
        alt=f"ROC curves of the best cosine as a predictor of the gain. AUC: {listed}.",
        made_from=made_from(*results, *nulls),
        settings={"theta": theta},
    )


def group_insertion_bars(results: GroupInsertion | Sequence[GroupInsertion]) -> Plot:
    """FVU after inserting whole groups of latents, one panel per result.

    Parameters
    ----------
    results : GroupInsertion or sequence of GroupInsertion
        Such as a ReLU pair and a BatchTopK pair.

    Raises
    ------
    ValueError
        If there are no results.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching. A diamond marks the FVU that a group would
    reach if the changes made by its latents alone added up.

    Examples
    --------
    >>> groups = saekit.group_insertion(small, large, saekit.insertion(small, large, x), x)
    >>> group_insertion_bars(groups).data.columns.tolist()
    ['comparison', 'group', 'n_latents', 'fvu', 'l0', 'fvu_if_additive']
    """
    results = as_list(results)
    if not results:
        raise ValueError("The group insertion plot needs at least one result, found none.")
    bars = {
        "novel_cos": ("novel\n", NOVEL, ""),
        "reconstruction_cos": ("recon-\nstruction", RECONSTRUCTION, ""),
        "novel_gain": ("help\nalone", NOVEL, "////"),
        "not novel_gain": ("hurt\nalone", RECONSTRUCTION, "////"),
        "all": ("all\n", LIGHT_GREY, ""),
    }
    parts, names = [], pair_names(results)
    for r, name in zip(results, names, strict=True):
        small = r.frame.set_index("group").loc["small"]
        expected = small["fvu"] * (1 + r.frame["sum_of_single_changes"] / small["mse"])
        frame = r.frame[["group", "n_latents", "fvu", "l0"]].assign(fvu_if_additive=expected)
        frame.insert(0, "comparison", name)
        parts.append(frame)
    data = pd.concat(parts, ignore_index=True)
    with house_style():
        figure = new_figure(FULL, 2.5)
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        top = data["fvu"].max()
        for axes, name, frame in zip(panels, names, parts, strict=True):
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
            axes.set_title(title_of(name))
            counts = [f"{rows.loc[group, 'n_latents']:,}" for group in bars]
            axes.set_xticks(
                places, [f"{text}\n({n})" for (text, _, _), n in zip(bars.values(), counts, strict=True)]
            )
            axes.tick_params(axis="x", length=0)
        panels[0].set_ylabel("FVU after insertion")
        figure.legend(
            handles=[
                Patch(facecolor=NULL, label="by cosine"),
                Patch(facecolor=NULL, hatch="////", edgecolor="white", label="by gain"),
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
    numbers = "; ".join(
        f"{name} from {f['small']:.3f} to {f['novel_cos']:.3f} with all novel latents, "
        f"{f['reconstruction_cos']:.3f} with all others, {f['novel_gain']:.3f} with all that help alone"
        for name, f in zip(names, (r.summary["fvu"] for r in results), strict=True)
    )
    return Plot(
        figure,
        data,
        caption="Inserting groups of latents. FVU of the small dictionary after all novel latents or all "
        "others are added, as told apart by cosine and by the gain of each alone; the number of latents is "
        "in brackets. Diamonds mark the FVU if single changes added up; lines mark the small and the large "
        f"dictionary alone. FVU: {numbers}. {on_all_tokens(results)}.",
        alt=f"Bars of FVU after inserting groups of latents. {numbers}.",
        made_from=made_from(*results),
    )
