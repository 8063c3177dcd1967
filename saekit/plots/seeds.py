"""Uniqueness over any number of seeds: recurrence, subspaces, substitution, fingerprints and codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from saekit.analysis.uniqueness.matching import STATUSES
from saekit.analysis.uniqueness.subspaces import GROUPS
from saekit.colours import INK, NOVEL, NULL, RECONSTRUCTION, shade
from saekit.figures import FULL, Plot, house_style, kind_style, new_figure
from saekit.plots.common import as_list, doubling_axis, groups_of, made_from, named, rows_of, shared
from saekit.wording import fixed, listed, on_tokens, percent

if TYPE_CHECKING:
    from saekit.analysis.uniqueness.codes import CodeUniqueness
    from saekit.analysis.uniqueness.effects import Effects
    from saekit.analysis.uniqueness.seeds import Uniqueness
    from saekit.analysis.uniqueness.subspaces import SharedSubspace
    from saekit.analysis.uniqueness.substitution import Substitution

MATCH, CONTROL = RECONSTRUCTION, NULL
GROUP_STYLES = dict(zip(GROUPS, ((NOVEL, "-"), (RECONSTRUCTION, "--"), (NULL, ":")), strict=True))
COSINE_BINS = np.round(np.linspace(0, 1, 11), 1)
FEWEST = 5  # latents that a share is shown for


def recurrence(results: Uniqueness | Sequence[Uniqueness]) -> Plot:
    """Share of latents by the number of other seeds in which they recur, beside PW-MCC of each pair.

    Parameters
    ----------
    results : Uniqueness or sequence of Uniqueness
        One group of bars and one row of points per result.

    Examples
    --------
    >>> recurrence(saekit.measure_uniqueness(small, other_seed)).data.columns.tolist()
    ['dictionaries', 'n_seeds', 'n_recurring', 'share_recurring', 'low', 'high', 'n_latents', 'share',
     'mean_matched_cosine']
    """
    results = as_list(results)
    theta = shared(results, "theta")
    names = [named(result.dictionaries[0].kind, result.dictionaries[0].width) for result in results]
    tables = [
        result.by_share.assign(dictionaries=name, n_seeds=len(result.dictionaries))
        for name, result in zip(names, results, strict=True)
    ]
    data = pd.concat(tables, ignore_index=True)
    data = data[["dictionaries", "n_seeds", *data.columns.drop(["dictionaries", "n_seeds"])]]
    with house_style():
        figure = new_figure(FULL, 1.5 + 0.35 * len(results))
        left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        for place, (result, table) in enumerate(zip(results, tables, strict=True)):
            start = 0.0
            for row in table.itertuples():
                colour = shade(RECONSTRUCTION, 0.75 * (1 - row.share_recurring)) if row.n_recurring else NOVEL
                left.barh(place, row.share, 0.6, start, color=colour, edgecolor="white", linewidth=0.4)
                if row.share > 0.08:
                    text = f"{row.n_recurring} of {len(table) - 1}"
                    left.text(start + row.share / 2, place, text, ha="center", va="center", fontsize=6.5)
                start += row.share
            for column, marker in (("pw_mcc_signed", "o"), ("pw_mcc_absolute", "x")):
                places = np.full(len(result.pairs), place) + (0.12 if column == "pw_mcc_absolute" else -0.12)
                right.plot(result.pairs[column], places, marker, color=INK, markersize=3.5, clip_on=False)
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        left.set_xlim(0, 1)
        left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        left.set_xlabel("share of latents, by other seeds they recur in")
        right.set_xlim(0, 1)
        right.set_xlabel("PW-MCC of each pair of seeds")
        figure.legend(
            handles=[
                Line2D([], [], color=INK, marker=marker, linestyle="", markersize=3.5, label=label)
                for marker, label in (("o", "signed"), ("x", "absolute"))
            ],
            loc="outside lower right",
            ncols=2,
        )
    sentences = []
    for name, result in zip(names, results, strict=True):
        found = result.summary
        sentences.append(
            f"{name} ({len(result.dictionaries)} seeds, differing in: {found['differ']}): "
            f"{percent(found['share_always'])} recur in every other seed, {percent(found['share_never'])} in "
            f"none; PW-MCC {fixed(found['pw_mcc_signed'])} signed, {fixed(found['pw_mcc_absolute'])} absolute"
        )
    text = "; ".join(sentences)
    return Plot(
        figure,
        data,
        caption="How many seeds find a latent again. Left: latents by the number of other seeds in which "
        "their "
        f"partner in the one-to-one matching has a cosine of at least θ = {theta:g}. Right: mean cosine of "
        f"the matching that maximises it, signed and absolute, for each pair of seeds. {text}.",
        alt=f"Stacked bars of the share of latents by recurrence, and points of PW-MCC. {text}.",
        made_from=made_from(*results),
        settings={"theta": theta},
    )


def shared_subspace(result: SharedSubspace) -> Plot:
    """Overlap of the subspaces of two seeds' latents against their dimension, beside both nulls.

    Parameters
    ----------
    result : SharedSubspace
        Overlap and its spread are means over all pairs of dictionaries.

    Examples
    --------
    >>> unique = saekit.measure_uniqueness(small, other_seed, theta=0.979, activations=x)
    >>> result = saekit.measure_shared_subspace(unique, [small, other_seed], dimensions=[1, 2])
    >>> shared_subspace(result).data.columns.tolist()
    ['dimension', 'group', 'overlap', 'overlap_sd', 'chance', 'explained', 'explained_own']
    """
    columns = ["overlap", "overlap_sd", "chance", "explained", "explained_own"]
    data = result.frame.groupby(["dimension", "group"], sort=False)[columns].mean().reset_index()
    first = result.dictionaries[0]
    with house_style():
        figure = new_figure(0.6 * FULL, 2.6)
        axes = figure.subplots()
        for (group,), part in groups_of(data, ["group"]):
            colour, dashes = GROUP_STYLES[group]
            spread = part["overlap_sd"].fillna(0)
            axes.plot(
                part["dimension"],
                part["overlap"],
                dashes,
                color=colour,
                marker="o",
                markersize=3,
                label=group,
            )
            if group != GROUPS[0]:
                low, high = part["overlap"] - 2 * spread, part["overlap"] + 2 * spread
                axes.fill_between(part["dimension"], low, high, color=colour, alpha=0.2, linewidth=0)
        doubling_axis(axes, data["dimension"].unique())
        axes.set(xlabel="dimension of the subspace", ylabel="mean squared cosine", ylim=(0, 1))
        figure.legend(loc="outside lower center", ncols=3)
    summary = result.summary
    numbers = listed([f"{group} {fixed(value)}" for group, value in summary["overlap"].items()])
    text = f"At dimension {summary['dimension']}: {numbers}"
    return Plot(
        figure,
        data,
        caption="Subspaces of latents that never recur. Mean squared cosine of the "
        "principal "
        "angles between the leading subspaces of the latents of two seeds of "
        f"{named(first.kind, first.width)} that have no partner at θ = {result.theta:g}, each weighted by "
        "its density, beside as many latents that always recur (in disjoint sets) and random directions; "
        f"bands are two standard deviations over {result.draws} draws. {text}.",
        alt="Curves of subspace overlap against dimension for latents that never recur and two nulls. "
        f"{text}.",
        made_from=made_from(result),
        settings={"theta": result.theta, "draws": result.draws},
    )


def substitution_curve(result: Substitution) -> Plot:
    """How well the match, and a control, take a latent's place, against the cosine of the match.

    Parameters
    ----------
    result : Substitution
        Latents are binned by matched cosine.

    Examples
    --------
    >>> matching = saekit.match_latents(small, other_seed, activations=x)
    >>> plot = substitution_curve(saekit.measure_substitution(small, other_seed, matching, x))
    >>> plot.data.columns.tolist()
    ['cosine_from', 'cosine_to', 'n_latents', 'quality', 'quality_control']
    """
    frame, rows = result.frame, []
    place = np.clip(np.searchsorted(COSINE_BINS, frame["matched_cosine"], side="right") - 1, 0, None)
    place = np.minimum(place, len(COSINE_BINS) - 2)
    for index in np.unique(place):
        part = frame[place == index]
        removed = part["removed"].sum()
        row = {"cosine_from": COSINE_BINS[index], "cosine_to": COSINE_BINS[index + 1], "n_latents": len(part)}
        for name, column in (("quality", "substituted"), ("quality_control", "substituted_control")):
            seen = len(part) >= FEWEST and removed > 0
            row[name] = 1 - part[column].sum() / removed if seen else np.nan
        rows.append(row)
    data = pd.DataFrame(rows)
    shown = data.dropna(subset=["quality"])
    summary = result.summary
    with house_style():
        figure = new_figure(0.6 * FULL, 2.6)
        axes = figure.subplots()
        middle = (shown["cosine_from"] + shown["cosine_to"]) / 2
        axes.plot(middle, shown["quality"], "o-", color=MATCH, markersize=3, label="matched latent")
        axes.plot(middle, shown["quality_control"], "s--", color=CONTROL, markersize=3, label="control")
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.axvline(result.theta, color=INK, linestyle=(0, (1, 2)), linewidth=0.8)
        axes.set(xlabel="cosine with the matched latent", xlim=(0, 1))
        axes.set_ylabel("share of error saved")
        figure.legend(loc="outside lower center", ncols=2)
    text = (
        f"Over all {summary['n_latents']:,} latents the match saves {percent(summary['quality'])} of the "
        f"error and the control {percent(summary['quality_control'])}; pairs at θ or more save "
        f"{percent(summary['quality_shared'])}, latents that are alone {percent(summary['quality_alone'])}"
    )
    return Plot(
        figure,
        data,
        caption="Latents of another seed in a latent's place. Share of the squared error added by taking a "
        "latent out of "
        f"{result.a}, one at a time, that its match in {result.b} saves in its place, by the cosine of the "
        f"two (bins of at least {FEWEST} latents), beside a random latent of the match's density; 1 is as "
        f"good as the latent, 0 as bad as nothing. {text}. {on_tokens(result.n_tokens, result.n_excluded)}.",
        alt="Curves of the share of error saved against matched cosine, for the match and a control. "
        f"{text}.",
        made_from=made_from(result),
        settings={"theta": result.theta},
    )


def fingerprints(result: Effects) -> Plot:
    """Correlation of ablation effects on the language model, against the cosine of the match.

    Parameters
    ----------
    result : Effects
        One point per sampled latent for its match and one for its control.

    Examples
    --------
    >>> a, b = saes.get(16, 0), saes.get(16, 1)
    >>> matching = saekit.match_latents(a, b, activations=harvested)
    >>> plot = fingerprints(saekit.measure_effects(model, a, b, matching, harvested, n_latents=2))
    >>> plot.data.columns.tolist()[:3]
    ['latent', 'match', 'control']
    """
    data = result.frame
    with house_style():
        figure = new_figure(0.6 * FULL, 2.6)
        axes = figure.subplots()
        for column, colour, marker, label in (
            ("correlation_control", CONTROL, "s", "control"),
            ("correlation", MATCH, "o", "matched latent"),
        ):
            axes.plot(data["matched_cosine"], data[column], marker, color=colour, markersize=3.5, label=label)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.axvline(result.theta, color=INK, linestyle=(0, (1, 2)), linewidth=0.8)
        axes.set(xlabel="cosine with the matched latent", ylabel="correlation of effects", ylim=(-1.05, 1.05))
        axes.set_xlim(0, 1.02)
        figure.legend(loc="outside lower center", ncols=2)
    words = {STATUSES[0]: "at θ or more", "lacking": "under θ"}
    parts = [
        f"{words[row['status']]} {fixed(row['correlation'])} (control {fixed(row['correlation_control'])}), "
        f"and the match saves {percent(row['quality'])} of the change (control "
        f"{percent(row['quality_control'])})"
        for row in result.by_status.to_dict("records")
    ]
    text = f"Median correlation of pairs {'; '.join(parts)}"
    return Plot(
        figure,
        data,
        caption="Effects of matched latents on the language model. Pearson correlation between the changes "
        "in loss, target by "
        f"target, from ablating a latent of {result.a} and from ablating its match in {result.b}, or a "
        f"random latent of the match's density. {text}. Sample of {len(data)} pairs, "
        f"{data['n_targets'].sum():,} targets.",
        alt=f"Scatter of the correlation of ablation effects against matched cosine. {text}.",
        made_from=made_from(result),
        settings={"theta": result.theta, "n_rows": result.n_rows},
    )


def code_uniqueness(results: CodeUniqueness | Sequence[CodeUniqueness]) -> Plot:
    """Jaccard index of the supports of each two coders, and what differs between them.

    On the right, the error of each coder, or its L0 where codes were compared at equal error.

    Parameters
    ----------
    results : CodeUniqueness or sequence of CodeUniqueness
        One colour per dictionary; all at equal latents, or all at equal error.

    Raises
    ------
    ValueError
        If there is no result, or they are of both sorts.

    Examples
    --------
    >>> code_uniqueness(saekit.compare_codes(small, x, n_tokens=20)).data.columns.tolist()
    ['dictionary', 'a', 'b', 'jaccard', 'chance', 'identical', 'coder', 'l0', 'fvu']
    """
    results = as_list(results)
    if not results:
        raise ValueError("A figure needs at least one result, found none.")
    equal = {result.equal for result in results}
    if len(equal) > 1:
        raise ValueError("Codes compared at equal latents and at equal error need a figure each.")
    shown, label = ("l0", "L0") if equal == {"error"} else ("fvu", "FVU")
    data = pd.concat(
        [
            table.assign(dictionary=str(result.dictionary))
            for result in results
            for table in (result.jaccard, result.frame)
        ],
        ignore_index=True,
    )
    data = data[["dictionary", "a", "b", "jaccard", "chance", "identical", "coder", "l0", "fvu"]]
    height = 0.8 / len(results)
    with house_style():
        figure = new_figure(FULL, 2.6)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        members = rows_of([result.dictionary for result in results])
        of_its_kind = members.groupby("kind").cumcount()  # the second of a kind is lighter
        for place, result in enumerate(results):
            colour = shade(kind_style(result.dictionary.kind).colour, 1 - 0.6 ** int(of_its_kind[place]))
            offset = (place - (len(results) - 1) / 2) * height
            pairs, coders = result.jaccard, result.frame
            at = np.arange(len(pairs)) + offset
            left.barh(at, pairs["jaccard"], height, color=colour, label=members["label"][place])
            left.plot(pairs["chance"], at, "|", color=INK, markersize=7)
            right.barh(np.arange(len(coders)) + offset, coders[shown], height, color=colour)
        first = results[0]
        left.set_yticks(
            range(len(first.jaccard)), first.jaccard["a"] + " and\n" + first.jaccard["b"], fontsize=6
        )
        right.set_yticks(range(len(first.frame)), first.frame["coder"], fontsize=6.5)
        for axes in (left, right):
            axes.invert_yaxis()
        left.set(xlabel="Jaccard index of supports (line: chance)", xlim=(0, 1))
        right.set(xlabel=label)
        right.xaxis.set_major_locator(MaxNLocator(4))
        figure.legend(loc="outside lower center", ncols=min(len(results), 3))
    sentences = []
    for result in results:
        found = result.summary
        digits = {"fvu": 3, "l0": 1}[shown]
        each = ", ".join(f"{coder} {fixed(value, digits)}" for coder, value in found[shown].items())
        sentences.append(
            f"{result.dictionary}: encoder and matching pursuit share {fixed(found['jaccard'])} of their "
            f"supports (chance {fixed(found['jaccard_chance'])}); {label}: {each}"
        )
    text = "; ".join(sentences)
    rules = {
        "fvu": "as many latents on each token as the encoder",
        "l0": "as few latents on each token as reach the error of the encoder's support, refit",
    }
    return Plot(
        figure,
        data,
        caption="Codes of one dictionary by different solvers. Jaccard index of the active latents that each "
        f"two coders choose, with {rules[shown]}, and the {label} of each. {text}. Measured on "
        f"{first.n_tokens:,} tokens.",
        alt=f"Bars of the Jaccard index of supports and of {label} by coder. {text}.",
        made_from=made_from(*results),
    )
