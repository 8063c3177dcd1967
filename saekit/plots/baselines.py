"""Headlines of trained dictionaries beside those of dictionaries that learnt nothing."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from saekit.figures import FULL, Plot, house_style, kind_style, new_figure

LABELS = {
    "": "trained",
    "permuted-decoder": "permuted",
    "soft-frozen-decoder": "soft-frozen",
    "frozen-decoder": "frozen",
    "random-at-equal-l0": "random",
}
TITLES = {
    "fvu": "FVU",
    "ce_degradation": "CE degradation (nats)",
    "share_novel_cos": "novel by cosine",
    "share_novel_gain": "lower the error alone",
    "novel_auc": "AUC, cosine for gain",
    "fvu_after_insertion": "FVU, all novel inserted",
    "share_lowering": "steps lowering the error",
    "meta_explained_held_out": "meta-SAE, held-out rows",
    "share_shared": "found in another run",
    "multiple_choice": "multiple choice",
    "detection_auc": "AUC of labels",
    "probing_auc_1": "AUC of one latent",
}
COLUMNS = 4


def split_kind(kind: str) -> tuple[str, str]:
    """The kind of the trained dictionary and the baseline, `""` for itself.

    Examples
    --------
    >>> split_kind("relu-soft-frozen-decoder"), split_kind("relu")
    (('relu', 'soft-frozen-decoder'), ('relu', ''))
    """
    found = next((name for name in LABELS if name and kind.endswith(f"-{name}")), "")
    return kind.removesuffix(f"-{found}"), found


def baseline_dots(table: pd.DataFrame) -> Plot:
    """One panel per headline: trained dictionaries, and below them the baselines of each.

    Parameters
    ----------
    table : DataFrame
        From `saekit.compare_with_baselines`, several of them put together, or `saekit.baselines_table()`.
        The headlines are its columns of those names that the latter has.

    Raises
    ------
    ValueError
        If there is no such column, or no trained dictionary.

    Examples
    --------
    >>> plot = baseline_dots(saekit.baselines_table())
    >>> plot.data.columns.tolist()
    ['kind', 'baseline', 'headline', 'value']
    """
    shown = [name for name in TITLES if name in table]
    if not shown:
        raise ValueError(f"The table has none of the headlines {', '.join(TITLES)}.")
    kinds, baselines = zip(*map(split_kind, table["kind"]), strict=True)
    data = table.assign(kind=kinds, baseline=baselines).melt(
        ["kind", "baseline"], shown, var_name="headline", value_name="value"
    )
    if "" not in baselines:
        raise ValueError("The table has no trained dictionary to set beside baselines.")
    rows = [name for name in LABELS if name in baselines]
    trained = list(dict.fromkeys(kinds))
    n_rows = -(-len(shown) // COLUMNS)
    with house_style():
        figure = new_figure(FULL, 0.7 + 1.25 * n_rows)
        panels = figure.subplots(n_rows, COLUMNS, sharey=True, squeeze=False).ravel()
        for axes, headline in zip(panels, shown, strict=False):
            for kind in trained:
                style = kind_style(kind)
                part = data[(data["headline"] == headline) & (data["kind"] == kind)].set_index("baseline")
                value = part["value"].reindex(rows)
                axes.axvline(value[""], color=style.colour, linewidth=0.7, linestyle=":")
                axes.plot(
                    value,
                    range(len(rows)),
                    style.marker,
                    color=style.colour,
                    markersize=4,
                    fillstyle="none",
                    label=style.label,
                )
            axes.set_title(TITLES[headline], fontsize=7)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(labelsize=6.5)
        panels[0].set_yticks(range(len(rows)), [LABELS[name] for name in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(trained))
    wide = data.pivot(index=["kind", "headline"], columns="baseline", values="value")
    numbers = "; ".join(
        f"{kind_style(kind).label}, {TITLES[headline]}: "
        + ", ".join(f"{LABELS[name]} {wide.loc[(kind, headline), name]:.3g}" for name in rows)
        for kind in trained
        for headline in shown
    )
    return Plot(
        figure,
        data,
        caption="Headlines beside those of dictionaries that learnt little or nothing. Permuted, soft-frozen "
        "and frozen are decoders; random are directions at equal L0. Dotted lines mark the trained "
        "dictionary; a point is missing where a headline is not defined.",
        alt=f"Dots of every headline for trained dictionaries and their baselines. {numbers}.",
    )
