"""Novel latents: the change that each makes when inserted, and how well the cosine predicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saekit.charts.model import Dots, Key, Line, Mark, Panel, Rule, Scale, Text, scale, symmetric
from saekit.colours import NOVEL, NULL, RECONSTRUCTION
from saekit.figures import kind_style
from saekit.wording import percent

if TYPE_CHECKING:
    from saekit.analysis.novelty import Insertion

_MARKERS = {True: (NOVEL, "o", 2.2), False: (RECONSTRUCTION, "^", 2.2)}  # by whether a latent is novel


def insertion_axes(results: Sequence[Insertion]) -> tuple[Scale, Scale]:
    """Make axes on which all latents of several insertions find place: cosine, and change in MSE.

    Examples
    --------
    >>> x, y = insertion_axes([saekit.insertion(small, large, x)])
    >>> x.high, y.kind
    (1.02, 'symlog')
    """
    alive = pd.concat([frame[~frame["dead"]] for frame in (result.frame for result in results)])
    low = min(0.0, float(np.floor(10 * alive["best_cosine"].min()) / 10)) if len(alive) else 0.0
    x = scale(low - 0.02 * (1 - low), 1 + 0.02 * (1 - low), label="best cosine with a small latent")
    return x, symmetric(alive["mse_change"], label="change in MSE when inserted")


def insertion_panel(
    result: Insertion,
    theta: float,
    axes: tuple[Scale, Scale],
    *,
    selected: int | None = None,
    title: str = "",
    most: int | None = None,
) -> Panel:
    """Draw the change in MSE on inserting each latent alone, against its best cosine.

    Parameters
    ----------
    result : Insertion
        Its dead latents are left out.
    theta : float
        Latents of a lower cosine are drawn as novel.
    axes : tuple of Scale
        From `insertion_axes`.
    selected : int, optional
        A latent with a ring around it.
    title : str
        The heading.
    most : int, optional
        Draw an even sample of at most this many latents; shares are still those of all.

    Examples
    --------
    >>> result = saekit.insertion(small, large, x)
    >>> insertion_panel(result, 0.7, insertion_axes([result])).data.columns.tolist()
    ['latent', 'best_cosine', 'mse_change', 'novel_cos', 'novel_gain']
    """
    whole = result.frame
    frame = whole[~whole["dead"]]
    novel = frame["best_cosine"].to_numpy() < np.float32(theta)
    helps = frame["novel_gain"].to_numpy()
    data = frame[["latent", "best_cosine", "mse_change"]].assign(novel_cos=novel, novel_gain=helps)
    if most is not None and len(data) > most:
        data = data.iloc[np.unique(np.linspace(0, len(data) - 1, most).astype(int))]
    marks: list[Mark] = []
    for which, (colour, marker, size) in _MARKERS.items():
        part = data[data["novel_cos"] == which]
        x, y = part["best_cosine"].to_numpy(), part["mse_change"].to_numpy()
        marks.append(Dots(x, y, colour, marker, size, alpha=0.45))
    marks.append(Rule("x", theta, dash="--", width=0.8))
    for which, x_at, anchor in ((True, 0.02, "start"), (False, 0.98, "end")):
        for gain, y_at, line in ((False, 0.98, "top"), (True, 0.02, "bottom")):
            share = float(((novel == which) & (helps == gain)).mean()) if len(novel) else float("nan")
            text = f"{percent(share)} {'help' if gain else 'hurt'}"
            marks.append(Text(x_at, y_at, text, anchor, line, over="xy", ground=True))  # type: ignore[arg-type]
    if selected is not None and not whole["dead"].iat[selected]:
        row = whole.iloc[selected]
        ring = Dots(row["best_cosine"], row["mse_change"], "none", "o", 8, edge="ink", edge_width=1.3)
        marks.append(ring)
    rules = (Rule("y", 0),)
    return Panel(*axes, rules, tuple(marks), data.reset_index(drop=True), name="insertion", title=title)


def insertion_keys(theta: float) -> tuple[Key, ...]:
    """Make the legend of `insertion_panel`.

    Examples
    --------
    >>> insertion_keys(0.7)[0].text
    'novel (cosine < 0.7)'
    """
    return (
        Key(f"novel (cosine < {theta:g})", NOVEL, "o"),
        Key("reconstruction", RECONSTRUCTION, "^"),
        Key(f"θ = {theta:g}", "ink", dash="--", width=0.8),
    )


def roc_panel(
    results: Sequence[Insertion], nulls: Sequence[Insertion] = (), names: Sequence[str] = (), title: str = ""
) -> Panel:
    """Draw ROC curves of the cosine as a predictor of the gain, with the nulls in grey.

    Parameters
    ----------
    results, nulls : sequence of Insertion
        Between widths, and between seeds.
    names : sequence of str
        Of all of them, for the legend.
    title : str
        The heading of the legend.

    Raises
    ------
    ValueError
        If a curve is undefined, since all latents help or none does.

    Examples
    --------
    >>> panel = roc_panel([saekit.insertion(saes[16], saes[32], harvested)], names=["16 to 32"])
    >>> panel.data.columns.tolist()
    ['comparison', 'null', 'point', 'theta', 'fpr', 'tpr']
    """
    marks: list[Mark] = [Line([0, 1], [0, 1], "grid", 0.8)]
    keys, curves = [], []
    everything = [*((result, False) for result in results), *((result, True) for result in nulls)]
    for (result, null), name, dash in zip(everything, names, cycle(("-", "--", ":", "-.")), strict=False):
        curve, colour = result.roc(), NULL if null else kind_style(result.large.kind).colour
        marks.append(Line(curve["fpr"].to_numpy(), curve["tpr"].to_numpy(), colour, dash=dash))
        keys.append(Key(f"{name} ({result.auc:.2f})", colour, dash=dash))
        curves.append(curve.assign(comparison=name, null=null, point="curve"))
    data = pd.concat(curves, ignore_index=True)[["comparison", "null", "point", "theta", "fpr", "tpr"]]
    x, y = (scale(-0.02, 1.02, label=f"share of the latents that {label}", n=6) for label in ("hurt", "help"))
    panel = Panel(x, y, tuple(marks), data=data, name="roc", square=True, keys=tuple(keys), key_title=title)
    thetas = {result.theta for result, _ in everything}
    return roc_at(panel, results, nulls, thetas.pop()) if len(thetas) == 1 else panel


def roc_at(panel: Panel, results: Sequence[Insertion], nulls: Sequence[Insertion], theta: float) -> Panel:
    """Mark theta on every curve of a `roc_panel`.

    Examples
    --------
    >>> result = saekit.insertion(saes[16], saes[32], harvested)
    >>> panel = roc_at(roc_panel([result], names=["16 to 32"]), [result], [], 0.5)
    >>> panel.data["theta"].iat[-1]
    np.float64(0.5)
    """
    curves = panel.data[panel.data["point"] == "curve"]
    names = curves["comparison"].unique()
    dots: list[Mark] = []
    rows = []
    for name, result in zip(names, [*results, *nulls], strict=True):
        at, style = result.at(theta), kind_style(result.large.kind)
        x, y = at["false_positive_rate"], at["true_positive_rate"]
        null = any(result is other for other in nulls)
        colour = NULL if null else style.colour
        if x == x and y == y:
            dots.append(Dots(x, y, colour, style.marker, 5, edge="ink"))
        row = {"comparison": name, "null": null, "point": "theta", "theta": theta}
        rows.append(row | {"fpr": x, "tpr": y})
    parts = []
    for name, row in zip(names, rows, strict=True):
        parts += [curves[curves["comparison"] == name], pd.DataFrame([row])]
    return replace(panel, moving=tuple(dots), data=pd.concat(parts, ignore_index=True))
