"""Probing: how well a few latents tell classes apart, beside the activations themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, NullLocator

from saekit import settings
from saekit.analysis.probing import ACTIVATIONS
from saekit.colours import INK
from saekit.figures import FULL, Plot, house_style, new_figure, width_colours
from saekit.plots.common import made_from

if TYPE_CHECKING:
    from saekit.analysis.probing import Probing

MARKERS = "os^Dv<>Ph8p"
LINES = ("-", "--", "-.")
PANELS = {False: "other sets", True: "sets kept out of training text"}


def probing_curves(result: Probing, dictionaries: Sequence[str] | None = None) -> Plot:
    """AUC against the number of latents, in one panel per origin of the sets.

    Parameters
    ----------
    result : Probing
        The probes.
    dictionaries : sequence of str, optional
        Names of those to show, at most eleven; all if left out.

    Raises
    ------
    ValueError
        If a name is not in the result, or there are too many to tell apart.

    Examples
    --------
    >>> y = (x @ small.W_enc[:, 2] + small.b_enc[2]) > 0.3
    >>> plot = probing_curves(saekit.probe(small, [saekit.LastTokens("latent 2", x, y)], ks=(1, 2)))
    >>> plot.data.columns.tolist()
    ['dictionary', 'k', 'kept_out', 'auc', 'auc_error', 'accuracy', 'n_sets']
    """
    names = result.frame["dictionary"].unique().tolist()
    wanted = names if dictionaries is None else list(dictionaries)
    wanted = [settings.choice("dictionaries", name, names) for name in wanted]
    if not 0 < len(wanted) <= len(MARKERS):
        raise ValueError(f"The plot shows one to {len(MARKERS)} dictionaries, found {len(wanted)}.")
    data = result.table[result.table["dictionary"].isin(wanted)].reset_index(drop=True)
    origins = [origin for origin in PANELS if (data["kept_out"] == origin).any()]
    trained = [name for name in wanted if name != ACTIVATIONS]
    colours = dict(zip(trained, width_colours(range(len(trained))).values(), strict=True))
    ks = sorted(data["k"].unique())
    with house_style():
        figure = new_figure(FULL, 2.9)
        panels = figure.subplots(1, len(origins), sharey=True, squeeze=False)[0]
        for axes, origin in zip(panels, origins, strict=True):
            for place, (name, marker) in enumerate(zip(wanted, MARKERS, strict=False)):
                beside = 1.06 ** (place - (len(wanted) - 1) / 2)  # so that bars do not hide each other
                part = data[(data["dictionary"] == name) & (data["kept_out"] == origin)].sort_values("k")
                axes.errorbar(
                    part["k"] * beside,
                    part["auc"],
                    yerr=2 * part["auc_error"].fillna(0),
                    marker=marker,
                    markersize=3,
                    color=colours.get(name, INK),
                    linestyle=LINES[place % len(LINES)] if name in colours else ":",
                    elinewidth=0.7,
                    label=name,
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(ks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticklabels([str(k) for k in ks])
            n_sets = int(data.loc[data["kept_out"] == origin, "n_sets"].max())
            axes.set_title(f"{PANELS[origin]} ({n_sets} sets)", fontsize=8)
            axes.set_xlabel("latents (k)")
        panels[0].set_ylabel("mean AUC")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    fewest = data[data["k"] == ks[0]]
    found = "; ".join(
        f"{PANELS[row.kept_out]}, {row.dictionary} {row.auc:.3f}" for row in fewest.itertuples(index=False)
    )
    return Plot(
        figure,
        data,
        caption="k-sparse probing. Mean AUC of logistic regressions on the k latents that differ most "
        "between two classes of prompts, at their last tokens; bars are two standard errors over sets. The "
        f"dotted line is for dimensions of the activations instead. At k = {ks[0]}: {found}.",
        alt=f"Curves of mean AUC against the number of latents. At k = {ks[0]}: {found}.",
        made_from=made_from(result),
    )
