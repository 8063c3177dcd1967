"""Histograms: activations of a latent, and its effect on the logits of the whole vocabulary."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from saekit.charts.chart import Chart
from saekit.charts.model import HALF_PAGE, Bars, Mark, Panel, Rule, round_ticks, scale
from saekit.colours import BLUE, ORANGE, VERMILION, shade
from saekit.wording import counted, number

HEIGHT = 90.0


def histogram(
    counts: ArrayLike,
    edges: ArrayLike,
    *,
    label: str = "activation",
    of: str = "token",
    at: float | None = None,
) -> Chart:
    """Draw how often a latent is how active, in deeper orange to the right.

    Parameters
    ----------
    counts : array_like
        In each bin, `[n]`.
    edges : array_like
        Of the bins, ascending, `[n + 1]`.
    label : str
        What the horizontal axis shows.
    of : str
        What is counted, in the singular.
    at : float, optional
        A value to mark, such as the activation on a text of one's own.

    Raises
    ------
    ValueError
        If there is not one edge more than there are bins, the edges do not ascend, or a value is not finite.

    Examples
    --------
    >>> histogram([3, 0, 1], [0, 1, 2, 3]).data["count"].tolist()
    [3, 0, 1]
    """
    n = np.size(counts)
    colours = [shade(ORANGE, 0.65 * (1 - (place + 1) / n)) for place in range(n)]
    return _histogram(counts, edges, label, at, colours, of, "linear")


def logit_histogram(
    counts: ArrayLike, edges: ArrayLike, *, label: str = "effect on the logit", at: float | None = None
) -> Chart:
    """Draw a latent's effects on the logits of the whole vocabulary, on a square-root scale.

    Parameters
    ----------
    counts, edges, label, at
        As for `histogram`; suppressed tokens lie left of the line at zero, promoted ones right.

    Examples
    --------
    >>> logit_histogram([2, 5, 1], [-1, 0, 1, 2]).panels[0].y.kind
    'sqrt'
    """
    edges = np.asarray(edges, dtype=float)
    middles = (edges[1:] + edges[:-1]) / 2
    colours = [VERMILION if middle < 0 else BLUE for middle in middles]
    return _histogram(counts, edges, label, at, colours, "token", "sqrt", Rule("x", 0, width=0.8))


def _histogram(
    counts: ArrayLike,
    edges: ArrayLike,
    label: str,
    at: float | None,
    colours: list[str],
    what: str,
    kind: Literal["linear", "sqrt"],
    *more: Mark,
) -> Chart:
    counts, edges = np.asarray(counts), np.asarray(edges, dtype=float)
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"A histogram needs the counts of its bins, found shape {list(counts.shape)}.")
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(counts)} bins have {len(counts) + 1} edges, found {len(edges)}.")
    if not (np.isfinite(counts).all() and np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError("A histogram needs finite counts and finite edges that ascend.")
    high = max(1, int(counts.max(initial=0)))
    titles = [
        f"{number(low)} to {number(top)}: {counted(int(count), what)}"
        for low, top, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    data = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})
    marks: tuple[Mark, ...] = (Bars(edges[:-1], edges[1:], counts, colours, titles), *more)
    powers = [10.0**n for n in range(9) if 0.02 * high <= 10**n <= high]
    ticks = round_ticks(0, high, 3) if kind == "linear" else [0, *powers]
    axis = f"{what}s" if kind == "linear" else f"{what}s (√ scale)"
    y = scale(0, 1.05 * high, kind, ticks=ticks, label=axis)
    moving = () if at is None else (Rule("x", at, width=1.2, dash="--"),)
    return Chart(
        ((Panel(scale(edges[0], edges[-1], label=label), y, marks, moving, data),),),
        alt=f"Histogram of {counted(int(counts.sum()), what)} from {number(edges[0])} to {number(edges[-1])}",
        width=HALF_PAGE,
        height=HEIGHT,
    )
