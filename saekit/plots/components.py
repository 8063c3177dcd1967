"""Attention heads and what is upstream: shares of heads, and a pre-activation as a sum."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from saekit.analysis.heads import HeadShares
from saekit.charts.paper import fit_text
from saekit.colours import GREEN, INK, NOVEL, NULL, RECONSTRUCTION, shade
from saekit.figures import FULL, Plot, house_style, new_figure
from saekit.html import visible
from saekit.plots.common import as_list, made_from, named
from saekit.wording import fixed, percent

if TYPE_CHECKING:
    from saekit.analysis.heads import SourceAttribution
    from saekit.analysis.upstream import UpstreamAttribution

KINDS = {
    "latent": (RECONSTRUCTION, "upstream latent"),
    "error": (NOVEL, "error"),
    "component": (NULL, "other output"),
    "bias": (GREEN, "bias or skip connection"),
    "skip": (GREEN, "bias or skip connection"),
    "own bias": (GREEN, "bias or skip connection"),
}


def head_shares(results: HeadShares | Sequence[HeadShares]) -> Plot:
    """How much of each latent is in one head, and how many latents each head has.

    Parameters
    ----------
    results : HeadShares or sequence of HeadShares
        One line and one row of points per result.

    Examples
    --------
    >>> eye = torch.eye(6)
    >>> shares = saekit.head_shares(saekit.Dictionary.from_weights(eye[:, :4], eye[:4], d_in=6), 3)
    >>> head_shares(shares).data.columns.tolist()
    ['dictionary', 'latent', 'head', 'decoder_share']
    """
    results = as_list(results)
    n_heads = max(result.n_heads for result in results)
    names = [named(result.dictionary.kind, result.dictionary.width) for result in results]
    parts, lines = [], []
    for name, result in zip(names, results, strict=True):
        top = result.decoder.amax(dim=1).numpy()
        parts.append(
            pd.DataFrame(
                {
                    "dictionary": name,
                    "latent": np.arange(len(top)),
                    "head": result.top_head.numpy(),
                    "decoder_share": top,
                }
            )
        )
        lines.append(np.sort(top))
    data = pd.concat(parts, ignore_index=True)
    with house_style():
        figure = new_figure(FULL, 2.4)
        left, right = figure.subplots(1, 2)
        for place, (name, part, line) in enumerate(zip(names, parts, lines, strict=True)):
            colour = shade(RECONSTRUCTION, 0.6 * (1 - (place + 1) / len(names)))
            style = ("-", "--", ":", "-.")[place % 4]
            left.plot(line, 1 - np.arange(len(line)) / len(line), color=colour, linestyle=style, label=name)
            counts = np.bincount(part["head"], minlength=n_heads) / len(part)
            right.plot(range(n_heads), counts, style, color=colour, marker="os^D"[place % 4], markersize=3.5)
        left.axvline(1 / n_heads, color=INK, linestyle=(0, (1, 2)), linewidth=0.8)
        left.set(
            xlabel="decoder share of the top head", ylabel="latents with more", xlim=(0, 1), ylim=(0, 1.02)
        )
        left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.axhline(1 / n_heads, color=INK, linestyle=(0, (1, 2)), linewidth=0.8)
        right.set(xlabel="head", ylabel="latents that it leads", ylim=(0, None))
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    text = "; ".join(
        f"{name}: median share {fixed(result.summary['median_top_share'])}, "
        f"{percent(result.summary['share_of_one_head'])} at least half in one head"
        for name, result in zip(names, results, strict=True)
    )
    return Plot(
        figure,
        data,
        caption="Latents of attention outputs by head. Left: share of latents of which the top head has more "
        f"than a given part of the squared decoder norm. Right: heads by the latents they lead. Dotted: "
        f"equal shares of {n_heads} heads. {text}.",
        alt=f"Curves of the decoder share of the top head, and latents per head. {text}.",
        made_from=made_from(*results),
    )


def source_attribution(result: SourceAttribution, texts: Sequence[str]) -> Plot:
    """A latent's pre-activation at one token, by source token and head.

    Parameters
    ----------
    result : SourceAttribution
        The attribution.
    texts : sequence of str
        The source tokens as text, one per source.

    Raises
    ------
    ValueError
        If there are not as many texts as sources.

    Examples
    --------
    >>> weights = {"W_enc": torch.rand(16, 8), "W_dec": torch.rand(8, 16), "d_in": 16}
    >>> at_z = saekit.Dictionary.from_weights(**weights, info={"hook_point": "blocks.1.attn.hook_z"})
    >>> found = saekit.attribute_to_sources(model, at_z, rows.tokens[0], latent=3, position=5)
    >>> source_attribution(found, list("abcdef")).data.columns.tolist()
    ['source', 'text', 'head', 'attribution']
    """
    sources, n_heads = result.attribution.shape
    if len(texts) != sources:
        raise ValueError(f"{sources} source tokens need as many texts, found {len(texts)}.")
    data = result.frame.assign(text=np.repeat([visible(text) for text in texts], n_heads))
    data = data[["source", "text", "head", "attribution"]]
    values = result.attribution.numpy()
    limit = float(np.abs(values).max()) or 1.0
    with house_style():
        figure = new_figure(FULL, 1.3 + 0.16 * sources)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        image = left.imshow(
            values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        left.set_yticks(range(sources), [fit_text(visible(text), 1.1) for text in texts], fontsize=6.5)
        left.set_xticks(range(n_heads))
        left.set_xlabel("head")
        # In grey both ends of the colours are dark.
        for source, head in zip(*np.nonzero(values < -0.1 * limit), strict=True):
            colour = "white" if values[source, head] < -0.6 * limit else INK
            left.text(head, source, "\N{MINUS SIGN}", ha="center", va="center", fontsize=7, color=colour)
        left.grid(False)
        figure.colorbar(image, ax=left, label="attribution", aspect=30)
        right.barh(range(sources), result.by_source.numpy(), color=RECONSTRUCTION, height=0.7)
        right.axvline(0, color=INK, linewidth=0.6)
        right.set_xlabel("summed over heads")
    source, head = int(result.by_source.argmax()), int(result.by_head.argmax())
    text = (
        f"Attributions add up to {fixed(float(result.attribution.sum()))}, and with the encoder's bias of "
        f"{fixed(result.bias)} to the pre-activation of {fixed(result.pre_activation)}; the largest source "
        f"is token {source} and the largest head is {head}"
    )
    return Plot(
        figure,
        data,
        caption=f"Where a latent's activation comes from. Latent {result.latent} of {result.dictionary} at "
        f"token {result.position}: attribution to each source token and head, with a minus sign where it "
        f"is negative and at least a tenth of the largest. {text}.",
        alt=f"Heat map of attributions by source token and head, with sums by token. {text}.",
        made_from=made_from(result),
    )


def upstream_attribution(
    result: UpstreamAttribution, labels: Mapping[tuple[str, int], str] | None = None, *, n: int = 12
) -> Plot:
    """The largest terms of a latent's pre-activation.

    Parameters
    ----------
    result : UpstreamAttribution
        The attribution.
    labels : mapping, optional
        Labels of upstream latents, by hook point and latent.
    n : int
        Terms to show, largest in absolute value first.

    Examples
    --------
    >>> at = {"hook_point": "blocks.1.hook_resid_post"}
    >>> weights = {"W_enc": torch.rand(16, 8), "W_dec": torch.rand(8, 16), "d_in": 16}
    >>> sae = saekit.Dictionary.from_weights(**weights, info=at)
    >>> found = saekit.attribute_upstream(model, sae, [], rows.tokens[0], 3, position=5)
    >>> upstream_attribution(found, n=3).data.shape
    (3, 5)
    """
    frame = result.frame
    order = frame["attribution"].abs().sort_values(ascending=False, kind="stable").index[:n]
    data = frame.loc[order].reset_index(drop=True)
    texts = []
    for row in data.itertuples():
        place = _place(row.place)
        if row.kind == "latent":
            label = (labels or {}).get((row.place, row.latent))
            texts.append(fit_text(f"{place}: {row.latent} {visible(label) if label else ''}".strip(), 2.2))
        else:
            texts.append({"own bias": "own bias", "error": f"{place}: error"}.get(row.kind, place))
    data["text"] = texts
    with house_style():
        figure = new_figure(FULL, 0.9 + 0.19 * len(data))
        axes = figure.subplots()
        colours = [KINDS[kind][0] for kind in data["kind"]]
        axes.barh(range(len(data)), data["attribution"], color=colours, height=0.7)
        axes.set_yticks(range(len(data)), texts, fontsize=6.5)
        axes.set_ylim(len(data) - 0.4, -0.6)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_xlabel("attribution")
        shown = {KINDS[kind][1]: KINDS[kind][0] for kind in data["kind"]}
        handles = [Patch(color=colour, label=label) for label, colour in shown.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    rest = float(frame["attribution"].drop(order).sum())
    text = (
        f"The {len(data)} largest of {len(frame)} terms; the others add up to {fixed(rest)}, all of them to "
        f"the pre-activation of {fixed(result.pre_activation)}"
    )
    return Plot(
        figure,
        data.drop(columns="text"),
        caption=f"What was upstream of a latent. Latent {result.latent} of {result.dictionary} at token "
        f"{result.position}, as a sum of what was written to the residual stream before. {text}.",
        alt=f"Bars of the largest attributions to upstream terms. {text}.",
        made_from=made_from(result),
    )


def _place(hook_point: str) -> str:
    """A place that writes to the residual stream, in words."""
    found = re.fullmatch(r"blocks\.(\d+)\.hook_(mlp|attn)_out", hook_point)
    if found is None:
        return "embedding" if hook_point == "blocks.0.hook_resid_pre" else hook_point
    return f"{'MLP' if found[2] == 'mlp' else 'attention'} {found[1]}"
