"""Stitching: FVU and L0 as one dictionary turns into another, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from saekit.charts.model import (
    Area,
    Band,
    Dots,
    Key,
    Line,
    Mark,
    Panel,
    Rule,
    Scale,
    Text,
    round_ticks,
    scale,
)
from saekit.colours import DARK_GREY, INK, NOVEL, NULL, RECONSTRUCTION
from saekit.figures import kind_style

if TYPE_CHECKING:
    from saekit.analysis.stitching.controls import CECurve, MatchedCurve, RandomOrders
    from saekit.analysis.stitching.path import Stitching

PHASE_COLOURS = {"insert": NOVEL, "swap": RECONSTRUCTION, "remove": DARK_GREY, "bias": INK}
PHASE_NAMES = {
    "insert": "insert novel",
    "swap": "swap groups",
    "remove": "remove lost",
    "bias": "swap the bias",
}
MEASURES = {"fvu": "FVU", "l0": "L0", "ce_degradation": "ΔCE"}
HEIGHTS = (2.6, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Curve:
    """A stitching with the controls that are drawn on its curve.

    Attributes
    ----------
    result : Stitching
        The path.
    random : RandomOrders, optional
        The same moves in random orders: a grey band from minimum to maximum.
    matched : MatchedCurve, optional
        Points of the curve at the L0 of the small dictionary.
    ce : CECurve, optional
        CE degradation at some steps: a third panel.
    """

    result: Stitching
    random: RandomOrders | None = None
    matched: MatchedCurve | None = None
    ce: CECurve | None = None

    @property
    def data(self) -> pd.DataFrame:
        """Exactly what is drawn, one row per point: `series`, `step`, `phase`, `width` and the measures."""
        r = self.result
        last = len(r.frame) - 1
        trained = [{"step": 0, **r.references["small"]}, {"step": last, **r.references["large"]}]
        parts = {"stitched": r.frame, "trained": pd.DataFrame(trained)}
        if self.random is not None:
            for end in ("min", "max"):
                band = self.random.frame.groupby("step", as_index=False)[["fvu", "l0"]].agg(end)
                parts[f"random order, {end}"] = band
        if self.matched is not None:
            points = self.matched.frame[["step", "fvu_matched", "l0_matched"]]
            parts["matched L0"] = points.set_axis(["step", "fvu", "l0"], axis=1)
        if self.ce is not None:
            parts["CE"] = self.ce.frame[["step", "phase", "ce_degradation"]]
        columns = ["step", "phase", "width", "fvu", "l0"] + ["ce_degradation"] * (self.ce is not None)
        found = [part.reindex(columns=columns).assign(series=name) for name, part in parts.items()]
        return pd.concat(found, ignore_index=True)[["series", *columns]]


def stitching_scales(curves: Sequence[Curve]) -> dict[str, Scale]:
    """Make the vertical axes of one or more curves, by measure.

    Examples
    --------
    >>> list(stitching_scales([Curve(saekit.stitch(small, large, x))]))
    ['fvu', 'l0']
    """
    data = pd.concat([curve.data for curve in curves])
    found = {}
    for measure in [name for name in MEASURES if name in data]:
        low, high = float(data[measure].min()), float(data[measure].max())
        pad = 0.06 * (high - low or 1.0)
        n = 5 if measure == "fvu" else 2
        found[measure] = scale(low - pad, high + pad, label=MEASURES[measure], n=n)
    return found


def stitching_panels(
    curve: Curve, scales: dict[str, Scale], *, title: str = "", named: bool = True
) -> list[Panel]:
    """Draw FVU, L0 and, where it was measured, CE degradation over the steps, with the phases shaded.

    Parameters
    ----------
    curve : Curve
        What is drawn.
    scales : dict of str to Scale
        From `stitching_scales`.
    title : str
        The heading.
    named : bool
        Whether the vertical axes have labels; they do in the first column of several.

    Returns
    -------
    list of Panel
        One below the other; the first holds the data.

    Examples
    --------
    >>> curve = Curve(saekit.stitch(small, large, x))
    >>> [panel.name for panel in stitching_panels(curve, stitching_scales([curve]))]
    ['fvu', 'l0']
    """
    r, data = curve.result, curve.data
    style, series = kind_style(r.large.kind), dict(iter(data.groupby("series")))
    last = len(r.frame) - 1
    # A number at the very end would reach beyond a narrow panel.
    ticks = [step for step in round_ticks(0, last, 4) if step <= 0.95 * last] if last else None
    x = scale(-0.02 * last, 1.02 * last, label="step", ticks=ticks, write=lambda step: f"{step:,.0f}")
    measures = [name for name in scales if data.get(name) is not None and name in data]
    shading = [
        Band(row.first_step - 1, row.last_step, PHASE_COLOURS[row.phase], 0.11)
        for row in r.phases.itertuples()
    ]
    panels = []
    for measure in measures:
        y = scales[measure] if named else replace(scales[measure], label="", texts=())
        marks: list[Mark] = [*shading]
        if measure == "ce_degradation":
            points = series["CE"]
            at = points["step"].to_numpy(), points[measure].to_numpy()
            marks += [Line(*at, style.colour), Dots(*at, style.colour, "o")]
        else:
            marks.append(Rule("y", r.references["small"][measure], dash=":"))
            if curve.random is not None:
                low, high = (series[f"random order, {end}"] for end in ("min", "max"))
                marks.append(Area(low["step"], low[measure], high[measure], NULL))
            marks.append(Line(r.frame["step"].to_numpy(), r.frame[measure].to_numpy(), style.colour, 1.4))
            if curve.matched is not None:
                points = series["matched L0"]
                at = points["step"].to_numpy(), points[measure].to_numpy()
                marks += [Line(*at, "ink", 0.9, "--"), Dots(*at, "ink", "o", 1.8)]
            ends = series["trained"]
            levels = ends["step"].to_numpy(), ends[measure].to_numpy()
            marks.append(Dots(*levels, style.colour, style.marker, 5, edge="ink"))
        if measure == measures[0]:
            marks += _phase_names(r)
        below = measure == measures[-1]
        panels.append(
            Panel(
                x if below else replace(x, texts=(), label=""),
                y,
                tuple(marks),
                data=data if measure == measures[0] else pd.DataFrame(),
                name=measure,
                title=title if measure == measures[0] else "",
            )
        )
    return panels


def at_step(panels: Sequence[Panel], result: Stitching, step: int) -> list[Panel]:
    """Mark a step in every panel.

    Examples
    --------
    >>> curve = Curve(saekit.stitch(small, large, x))
    >>> panels = at_step(stitching_panels(curve, stitching_scales([curve])), curve.result, 2)
    >>> panels[0].moving[0].at
    2
    """
    row, colour = result.frame.iloc[step], kind_style(result.large.kind).colour
    rule = Rule("x", step, width=0.8)
    dots = [Dots(step, row[panel.name], "paper", size=6, edge=colour, edge_width=1.6) for panel in panels]
    return [replace(panel, moving=(rule, dot)) for panel, dot in zip(panels, dots, strict=True)]


def stitching_keys(curves: Sequence[Curve]) -> tuple[Key, ...]:
    """Make the legend of curves; phases that are too short to be named above their steps are in it.

    Examples
    --------
    >>> [key.text for key in stitching_keys([Curve(saekit.stitch(small, large, x))])][:2]
    ['stitched', 'trained']
    """
    first = curves[0]
    style = kind_style(first.result.large.kind)
    keys = [
        Key("stitched", style.colour, dash="-", width=1.4),
        Key("trained", style.colour, style.marker, edge="ink"),
    ]
    if first.random is not None:
        n = first.random.frame["draw"].nunique()
        keys.append(Key(f"random order ({n} draws)", NULL, patch=True, alpha=0.55))
    if first.matched is not None:
        keys.append(Key("at the small L0", "ink", "o", "--", width=0.9, size=1.8))
    phases = [(row, curve.result) for curve in curves for row in curve.result.phases.itertuples()]
    short = dict.fromkeys(row.phase for row, result in phases if _is_short(row, result))
    for phase in short:
        colour = PHASE_COLOURS[phase]
        keys.append(Key(PHASE_NAMES[phase], colour, edge=colour, patch=True, alpha=0.11))
    return tuple(keys)


def _is_short(row: pd.Series, result: Stitching) -> bool:
    """Whether a phase is too short for its name above its steps."""
    return row.last_step - row.first_step <= 0.16 * (len(result.frame) - 1)


def _phase_names(result: Stitching) -> list[Mark]:
    return [
        Text(
            (row.first_step + row.last_step) / 2,
            1.02,
            PHASE_NAMES[row.phase],
            line="bottom",
            colour=PHASE_COLOURS[row.phase],
            size=6.5,
            over="y",
        )
        for row in result.phases.itertuples()
        if not _is_short(row, result)
    ]
