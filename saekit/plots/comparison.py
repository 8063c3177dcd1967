"""Dictionaries compared on the same tokens, with error bars over rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from saekit.colours import GREEN, INK, NOVEL, NULL, PINK, RECONSTRUCTION
from saekit.figures import FULL, Plot, house_style, new_figure
from saekit.plots.common import made_from
from saekit.wording import on_tokens

if TYPE_CHECKING:
    from saekit.analysis.stitching.groups import DictionaryComparison

STYLES = ((NOVEL, "o"), (RECONSTRUCTION, "^"), (NULL, "s"), (INK, "D"), (GREEN, "v"), (PINK, "P"))


def group_comparison(result: DictionaryComparison, reference: str, groups: Mapping[str, str]) -> Plot:
    """Difference in cross-entropy against difference in FVU, each with two standard errors over rows.

    Parameters
    ----------
    result : DictionaryComparison
        Comparison of matched dictionaries.
    reference : str
        The one that all others are compared with.
    groups : mapping of str to str
        The dictionaries to show, by name, with the case that each belongs to, such as `"helps"`; at most
        six cases.

    Raises
    ------
    ValueError
        If there are no dictionaries to show, or more cases than can be told apart.

    Examples
    --------
    >>> compared = {"small": saes[16], "large": saes[32], "seed 1": saes.second_seed(16)}
    >>> result = saekit.compare_dictionaries(model, compared, harvested, max_rows=4)
    >>> plot = group_comparison(result, "small", {"large": "wider", "seed 1": "another seed"})
    >>> plot.data.columns.tolist()
    ['name', 'width', 'l0', 'fvu', 'ce_degradation', 'ce_degradation_error', 'fvu_difference',
     'fvu_difference_error', 'ce_difference', 'ce_difference_error', 'group']
    """
    cases = list(dict.fromkeys(groups.values()))
    if not 0 < len(cases) <= len(STYLES):
        raise ValueError(f"The plot shows one to {len(STYLES)} cases, found {len(cases)}.")
    data = result.frame.join(result.against(reference)).loc[list(groups)]
    data = data.assign(group=list(groups.values())).reset_index()
    with house_style():
        figure = new_figure(0.6 * FULL, 2.4)
        axes = figure.subplots()
        for case, (colour, marker) in zip(cases, STYLES, strict=False):
            part = data[data["group"] == case]
            axes.errorbar(
                part["fvu_difference"],
                part["ce_difference"],
                xerr=2 * part["fvu_difference_error"],
                yerr=2 * part["ce_difference_error"],
                fmt=marker,
                color=colour,
                markeredgecolor=INK,
                markeredgewidth=0.4,
                markersize=4.5,
                elinewidth=0.8,
                label=case,
            )
        axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
        axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel="change in FVU", ylabel="change in CE (nats per token)")
        figure.legend(loc="outside lower center", ncols=len(cases) if len(cases) <= 3 else 2)
    means = "; ".join(
        f"{case}: FVU {part['fvu_difference'].mean():+.4f}, cross-entropy {part['ce_difference'].mean():+.4f}"
        for case, part in data.groupby("group", sort=False)
    ).replace(" -", " \u2212")
    first = result.evaluations[0]
    return Plot(
        figure,
        data,
        caption="Groups of latents compared. Change in FVU and in cross-entropy (nats per token) against "
        f"{reference}; negative values help. Bars are two standard errors, paired over rows of tokens. Means "
        f"of the groups: {means}. FVU: {on_tokens(first.n_tokens, first.n_excluded).lower()}. "
        f"Cross-entropy: on {result.summary['n_rows']} rows with {result.summary['n_targets']:,} targets.",
        alt="Scatter of the change in cross-entropy against the change in FVU. Means of the groups: "
        f"{means}.",
        made_from=made_from(*result.evaluations),
    )
