"""Uniqueness: to what extent two training runs find the same latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from saekit.analysis.nulls import NULLS
from saekit.analysis.uniqueness.matching import STATUSES
from saekit.colours import INK, NOVEL, NULL, RECONSTRUCTION, shade
from saekit.figures import FULL, Plot, house_style, kind_style, new_figure, width_colours
from saekit.plots.common import as_list, groups_of, made_from, named, root_scale, shared
from saekit.wording import listed, on_tokens, percent

if TYPE_CHECKING:
    from saekit.analysis.uniqueness.families import FamilyUniqueness

NULL_DASHES = dict(zip(NULLS, ("-.", ":"), strict=True))
SEEDS, NEXT_WIDTH = RECONSTRUCTION, INK
STATUS_COLOURS = dict(zip(STATUSES, (RECONSTRUCTION, shade(NOVEL, 0.65), NOVEL), strict=True))
BINS = 40
FEWEST = 5  # latents that a share is shown for
Z = 1.96  # of a 95% interval


def uniqueness_distributions(result: FamilyUniqueness) -> Plot:
    """Cosine with the matched and with the best latent: other seed, next width and nulls.

    Parameters
    ----------
    result : FamilyUniqueness
        One column per width that is compared with another dictionary.

    Examples
    --------
    >>> uniqueness_distributions(saekit.family_uniqueness(family)).data.columns.tolist()
    ['measure', 'width', 'other', 'null', 'comparison', 'cosine_from', 'cosine_to', 'share']
    """
    compared = result.compared
    widths = sorted(compared["width"].unique())
    measures = {"matched_cosine": "one-to-one match", "best_cosine": "best match"}
    values = result.frame.merge(compared, on=["comparison", "null"])
    lowest = min(0, int(np.floor(values[[*measures]].min(axis=None) * BINS)))
    edges = np.arange(lowest, BINS + 1) / BINS
    parts = []
    for measure in measures:
        for key, rows in groups_of(values, ["width", "other", "null", "comparison"]):
            cosine = rows[measure].dropna().clip(upper=1)
            counts = np.histogram(cosine, edges)[0]
            bins = {"cosine_from": edges[:-1], "cosine_to": edges[1:], "share": counts / len(cosine)}
            identity = dict(zip(("width", "other", "null", "comparison"), key, strict=True))
            parts.append(pd.DataFrame({"measure": measure, **identity, **bins}))
    data = pd.concat(parts, ignore_index=True)
    first = data.groupby(["measure", "width"])["comparison"].transform("first")
    data = data[(data["null"] == "") | (data["comparison"] == first)].reset_index(drop=True)
    with house_style():
        figure = new_figure(FULL, 3.1)
        panels = figure.subplots(2, len(widths), sharex=True, sharey=True, squeeze=False)
        for row, (measure, title) in zip(panels, measures.items(), strict=True):
            for axes, width in zip(row, widths, strict=True):
                part = data[(data["measure"] == measure) & (data["width"] == width)]
                for (_, other, null), bins in groups_of(part, ["comparison", "other", "null"]):
                    share = bins["share"].to_numpy()
                    if null:  # those of the first comparison of a width
                        axes.stairs(share, edges, color=NULL, linestyle=NULL_DASHES[null], linewidth=0.9)
                    elif other == "other seed":  # the first one filled, further ones as outlines
                        axes.stairs(share, edges, color=SEEDS, fill=not axes.patches, linewidth=0.9)
                    else:
                        axes.stairs(share, edges, color=NEXT_WIDTH, linewidth=1.0)
                axes.axvline(result.theta, color=INK, linestyle="--", linewidth=0.8)
                root_scale(axes, data["share"].max())
            row[0].set_ylabel(f"share of latents\n({title})")
        for axes, width in zip(panels[0], widths, strict=True):
            axes.set_title(named(result.kind, width), fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("cosine")
        figure.legend(
            handles=[
                Patch(color=SEEDS, label="other seed"),
                Line2D([], [], color=NEXT_WIDTH, linewidth=1.0, label="next width"),
                *(
                    Line2D([], [], color=NULL, linewidth=0.9, linestyle=dashes, label=null)
                    for null, dashes in NULL_DASHES.items()
                ),
                Line2D(
                    [], [], color=INK, linewidth=0.8, linestyle="--", label=f"$\\theta$ = {result.theta:g}"
                ),
            ],
            loc="outside lower center",
            ncols=5,
        )
    shares = _shares(result)
    missing = [str(width) for width in result.missing]
    return Plot(
        figure,
        data,
        caption=f"Whether other runs find the same latents. For each latent of the "
        f"{kind_style(result.kind).label} dictionaries of width {listed(widths)}, the cosine of its decoder "
        "direction with its partner in the one-to-one matching of greatest sum (top) and with its best match "
        f"(bottom), on a square-root scale. Share of matched pairs at θ = {result.theta:g} or more: {shares}."
        + (f" There is no second seed of width {listed(missing)}." if missing else ""),
        alt=f"Histograms of matched and best decoder cosines at {len(widths)} widths beside two nulls. Share "
        f"of pairs at theta or more: {shares}.",
        made_from=_made_from(result),
        settings={"theta": result.theta},
    )


def unmatched_curve(results: FamilyUniqueness | Sequence[FamilyUniqueness]) -> Plot:
    """Share of matched pairs whose cosine is under theta, for every theta from 0 to 1.

    Parameters
    ----------
    results : FamilyUniqueness or sequence of FamilyUniqueness
        One panel per result.

    Examples
    --------
    >>> unmatched_curve(saekit.family_uniqueness(family)).data.columns.tolist()
    ['theta', 'share_matched_under', 'share_best_under', 'kind', 'comparison', 'null', 'width', 'other']
    """
    results = as_list(results)
    theta = shared(results, "theta")
    thetas = np.round(np.linspace(0, 1, 101), 2)
    per_result = []
    for result in results:
        parts = []
        for row in result.compared.itertuples():
            curve = result.results[row.comparison, row.null].unmatched(thetas)
            identity = {"kind": result.kind, "comparison": row.comparison, "null": row.null}
            parts.append(curve.assign(**identity, width=row.width, other=row.other))
        per_result.append(pd.concat(parts, ignore_index=True))
    data = pd.concat(per_result, ignore_index=True)
    colours = width_colours(sorted(data["width"].unique()))
    with house_style():
        figure = new_figure(FULL, 2.6)
        panels = figure.subplots(1, len(results), sharex=True, sharey=True, squeeze=False)[0]
        for axes, result, part in zip(panels, results, per_result, strict=True):
            for (null, other, width, _), curve in groups_of(part, ["null", "other", "width", "comparison"]):
                dashes = NULL_DASHES[null] if null else ("-" if other == "other seed" else "--")
                axes.plot(
                    curve["theta"],
                    curve["share_matched_under"],
                    color=NULL if null else colours[width],
                    linestyle=dashes,
                    linewidth=0.7 if null else 1.2,
                    zorder=1 if null else 2,
                )
            axes.axvline(result.theta, color=INK, linestyle=(0, (1, 2)), linewidth=0.8)
            axes.set_title(kind_style(result.kind).label, fontsize=8)
            axes.set_xlabel("$\\theta$")
            axes.set(xlim=(0, 1), ylim=(0, 1.03))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylabel("share of pairs under $\\theta$")
        figure.legend(
            handles=[
                *(Line2D([], [], color=colour, label=str(width)) for width, colour in colours.items()),
                Line2D([], [], color=INK, label="other seed"),
                Line2D([], [], color=INK, linestyle="--", label="next width"),
                *(
                    Line2D([], [], color=NULL, linewidth=0.9, linestyle=dashes, label=null)
                    for null, dashes in NULL_DASHES.items()
                ),
            ],
            loc="outside lower center",
            ncols=4,
        )
    shares = "; ".join(f"{kind_style(result.kind).label}: {_shares(result)}" for result in results)
    return Plot(
        figure,
        data,
        caption="How the share of latents without a counterpart depends on the threshold. Share of pairs in "
        "the one-to-one matching whose cosine is under θ, for two seeds of one width (solid), for a width "
        f"and the next (dashed) and for the nulls (grey). Share at θ = {theta:g} or more: "
        f"{shares}.",
        alt=f"Curves of the share of pairs under theta against theta, one panel per kind. {shares}.",
        made_from=_made_from(*results),
        settings={"theta": theta},
    )


def uniqueness_by_density(results: FamilyUniqueness | Sequence[FamilyUniqueness]) -> Plot:
    """Share of latents that another seed lacks, against how often they fire.

    Parameters
    ----------
    results : FamilyUniqueness or sequence of FamilyUniqueness
        Measured with activations; one column per width with a second seed.

    Raises
    ------
    ValueError
        If there are no second seeds, or no activations.

    Examples
    --------
    >>> result = saekit.family_uniqueness(family, activations=x)
    >>> uniqueness_by_density(result).data.columns.tolist()
    ['dictionary', 'density_from', 'density_to', 'shared', 'crowded', 'alone', 'share_lacking',
     'low', 'high']
    """
    results = as_list(results)
    theta = shared(results, "theta")
    found = [
        (named(result.kind, row.width), result.results[row.comparison, ""])
        for result in results
        for row in result.compared.itertuples()
        if not row.null and row.other == "other seed"
    ]
    titles = [name for name, _ in found]
    pairs = [
        (name if titles.count(name) == 1 else f"{name}, seed {result.b.seed}", result)
        for name, result in found
    ]
    if not pairs or any("density" not in result.frame for _, result in pairs):
        raise ValueError("Uniqueness by density needs second seeds, compared with activations.")
    alive = [result.frame[~result.frame["dead"]] for _, result in pairs]
    lowest = np.floor(4 * np.log10(min(frame["density"].min() for frame in alive))) / 4
    edges = 10 ** np.arange(lowest, 0.01, 0.25)
    parts = []
    for (name, _), frame in zip(pairs, alive, strict=True):
        place = np.clip(np.searchsorted(edges, frame["density"], side="right") - 1, 0, len(edges) - 2)
        counts = {
            status: np.bincount(place[frame["status"] == status], minlength=len(edges) - 1)
            for status in STATUSES
        }
        total = np.sum(list(counts.values()), axis=0)
        lacking = total - counts["shared"]
        low, high = _wilson(lacking, total)
        bins = {"density_from": edges[:-1], "density_to": edges[1:], **counts}
        shares = {"share_lacking": _ratio(lacking, total), "low": low, "high": high}
        shares = {name: np.where(total >= FEWEST, share, np.nan) for name, share in shares.items()}
        parts.append(pd.DataFrame({"dictionary": name, **bins, **shares}))
    data = pd.concat(parts, ignore_index=True)
    with house_style():
        figure = new_figure(FULL, 2.9)
        panels = figure.subplots(
            2, len(pairs), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2)
        )
        for place, (name, result) in enumerate(pairs):
            part = data[data["dictionary"] == name]
            upper, lower = panels[:, place]
            middle = np.sqrt(part["density_from"] * part["density_to"])
            seen = part["share_lacking"].notna()
            upper.vlines(middle[seen], part["low"][seen], part["high"][seen], color=NOVEL, linewidth=0.8)
            upper.plot(
                middle[seen], part["share_lacking"][seen], "o", color=NOVEL, markersize=3, clip_on=False
            )
            overall = (result.frame["status"] != "shared").mean()
            upper.axhline(overall, color=NULL, linewidth=0.8)
            upper.set_title(f"{name.replace(', ', chr(10))}\n{percent(overall)} lacking", fontsize=7.5)
            upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            upper.set_ylim(0, 1)
            bottom = np.zeros(len(part))
            for status in STATUSES:
                lower.bar(
                    part["density_from"],
                    part[status],
                    part["density_to"] - part["density_from"],
                    bottom,
                    align="edge",
                    color=STATUS_COLOURS[status],
                    edgecolor="white",
                    linewidth=0.3,
                )
                bottom += part[status].to_numpy()
            lower.set_xscale("log")
            lower.set_xlabel("density")
            lower.xaxis.set_major_locator(LogLocator(numticks=4))
            lower.xaxis.set_minor_locator(NullLocator())
            lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        panels[0, 0].set_ylabel("share lacking")
        panels[1, 0].set_ylabel("latents")
        labels = {
            "shared": "shared",
            "crowded": "crowded (its best match is taken)",
            "alone": f"alone (best cosine < {theta:g})",
        }
        figure.legend(
            handles=[
                *(Patch(color=STATUS_COLOURS[status], label=label) for status, label in labels.items()),
                Line2D([], [], color=NULL, linewidth=0.8, label="all latents"),
            ],
            loc="outside lower center",
            ncols=4,
        )
    numbers = "; ".join(_density_sentence(name, result.by_status) for name, result in pairs)
    first = pairs[0][1]
    return Plot(
        figure,
        data,
        caption="Which latents the other seed lacks. Top: share of latents whose partner in the one-to-one "
        f"matching has a cosine under θ = {theta:g}, by density (share of tokens), with 95% intervals "
        f"(where there are at least {FEWEST} latents). Bottom: number of latents. {numbers}. "
        f"{on_tokens(first.n_tokens, first.n_excluded)}; dead latents are left out.",
        alt=f"Share of latents that the other seed lacks against density, above stacked histograms. "
        f"{numbers}.",
        made_from=_made_from(*results),
        settings={"theta": theta},
    )


def _shares(result: FamilyUniqueness) -> str:
    """Share of pairs at theta or more of every comparison, with the greatest of all nulls."""
    table = result.table[result.table["note"] == ""]
    measured, nulls = table[table["null"] == ""], table[table["null"] != ""]
    shares = ", ".join(f"{row.comparison} {percent(row.share_shared)}" for row in measured.itertuples())
    return f"{shares} (nulls at most {percent(nulls['share_shared'].max())})"


def _density_sentence(name: str, by_status: pd.DataFrame) -> str:
    frame = by_status.set_index("status")
    shared, alone = (frame.loc[status, "median_density"] for status in ("shared", "alone"))
    sentence = f"{name}: {percent(1 - frame.loc['shared', 'share'])} lacking"
    if np.isnan(shared) or np.isnan(alone):
        return sentence
    return f"{sentence}, median density {alone:.2g} for latents that are alone, {shared:.2g} for shared ones"


def _made_from(*results: FamilyUniqueness) -> dict[str, Any]:
    """The dictionaries themselves, without those of the nulls."""
    return made_from(*(r for result in results for (_, null), r in result.results.items() if not null))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _wilson(found: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of a share, NaN where there is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = found / n
        centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return centre - half, centre + half
