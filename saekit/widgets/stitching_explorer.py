"""The stitching explorer: walk from a small dictionary to a large one and see the effect of each move."""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import traitlets
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html, settings
from saekit.charts import stitching as drawing
from saekit.charts.chart import Chart
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.widgets.base import Explorer, State, as_trait_error
from saekit.widgets.evidence import Evidence, require_evidence
from saekit.wording import number, share, signed

if TYPE_CHECKING:
    from saekit.analysis.stitching.path import Stitching

N_MOVED = 8  # latents of each side in the tables of moved latents
N_ABOUT = 2  # of these, shown with their contexts
N_JUMPS = 8  # steps in the lists of greatest gains and costs
SIDES = ("small", "large")


class StitchingState(State):
    """A step of the curve; step 0 is the small dictionary."""

    order = ("step",)
    step = traitlets.TraitType(0)

    def __init__(self, last: int, step: int) -> None:
        super().__init__()
        self._last = last
        self.step = step

    @traitlets.validate("step")
    def _known_step(self, proposal: Any) -> int:
        with as_trait_error():
            return settings.whole("step", proposal["value"], at_least=0, at_most=self._last)


class StitchingExplorer(Explorer):
    """Scrub along a stitching curve: the latents moved, the tokens they fire on, and the gain or cost.

    Parameters
    ----------
    stitching : Stitching
        From `saekit.stitch`.
    small_evidence, large_evidence : Evidence
        Evidence about the two dictionaries (`saekit.collect_evidence`).
    step : int, optional
        Where to start; by default at the move with the greatest gain.

    Attributes
    ----------
    state : traitlets.HasTraits
        `step`, from 0 (the small dictionary) to the last.

    Raises
    ------
    TypeError
        If there is no evidence.
    ValueError
        If evidence is about another dictionary.

    Examples
    --------
    >>> path = saekit.stitch(saes[16], saes[32], harvested)
    >>> explorer = saekit.StitchingExplorer(path, evidence[16], evidence[32])
    >>> explorer.state.step = 3
    >>> explorer.state.step
    3
    """

    def __init__(
        self,
        stitching: Stitching,
        small_evidence: Evidence | None = None,
        large_evidence: Evidence | None = None,
        *,
        step: int | None = None,
    ) -> None:
        self.dictionaries: dict[str, Dictionary] = {"small": stitching.small, "large": stitching.large}
        self.evidence = {
            side: require_evidence(given, self.dictionaries[side].identity, "StitchingExplorer")
            for side, given in zip(SIDES, (small_evidence, large_evidence), strict=True)
        }
        self.stitching, self._frame = stitching, stitching.frame
        self._moves = dict(iter(stitching.moves.groupby("step")))
        self._phases = stitching.phases
        curve = drawing.Curve(stitching)
        self._curves = drawing.stitching_panels(curve, drawing.stitching_scales([curve]))
        self._keys = drawing.stitching_keys([curve])
        by_change = self._frame.iloc[1:].sort_values(["mse_change", "step"])
        self._gains = by_change[by_change["mse_change"] < 0].head(N_JUMPS)
        self._costs = by_change[by_change["mse_change"] > 0].iloc[::-1].head(N_JUMPS)
        if step is None:
            step = next((step for step in self._gains["step"].tolist() if step in self._moves), 0)
        super().__init__(StitchingState(len(self._frame) - 1, step))

    def _build(self) -> list[widgets.Widget]:
        last = len(self._frame) - 1
        self._slider = widgets.IntSlider(
            description="Step",
            max=last,
            readout=False,
            tooltip="Position on the path from the small dictionary to the large one",
            layout={"width": "420px", "max_width": "100%"},
        )
        self._number = widgets.BoundedIntText(
            max=last, tooltip="The same, as a number", layout={"width": "90px"}
        )
        self._bind(self._slider, "step")
        self._bind(self._number, "step")
        buttons = [
            self._button("← Previous", "The step before this one", lambda: self._step(-1)),
            self._button("Next →", "The step after this one", lambda: self._step(1)),
            self._button("Next phase", "The first step of the next phase", self._next_phase),
        ]
        self._jumps = []
        for name, rows in (("Gains", self._gains), ("Costs", self._costs)):
            jump = self._list(name, f"Steps with the greatest {name.lower()}", self._targets(rows), rows=5)
            jump.observe(lambda change: self._set("step", change["new"]), "value")
            self._jumps.append(jump)
        self._head, self._what, self._detail = (self._panel() for _ in range(3))
        bar = widgets.HBox([self._slider, self._number, *buttons], layout={"flex_flow": "row wrap"})
        jumps = widgets.HBox(self._jumps, layout={"flex_flow": "row wrap"})
        return [bar, self._head, jumps, self._what, self._detail]

    def _render(self) -> None:
        step = self.state.step
        self._slider.value = self._number.value = step
        for jump in self._jumps:
            jump.value = step if step in [value for _, value in jump.options] else None
        self._head.value = html.panel(self._header(), self._pictured(as_image=False))
        self._what.value = html.panel(self._moved())
        self._detail.value = html.panel(self._about(3))

    def _parts(self) -> list[Markup]:
        lists = []
        for title, rows in (("Largest gains", self._gains), ("Largest costs", self._costs)):
            cells = [
                (str(row.step), row.phase, signed(row.mse_change), self._words_of(row.step))
                for row in rows.itertuples()
            ]
            header = ("step", "phase", "MSE change", "moved")
            lists.append(html.table(header, cells, numeric=(0, 2), caption=title))
        return [
            self._header(),
            self._pictured(as_image=True),
            self._moved(),
            self._about(3),
            html.columns(*lists),
        ]

    # ------------------------------------------------------------------ pieces

    def _header(self) -> Markup:
        s, row = self.stitching, self._frame.iloc[self.state.step]
        return html.markup(
            "<h3>From {} to {}</h3><p>Step <b>{:,}</b> of {:,}, phase <b>{}</b>: {:,} latents of the small "
            "dictionary and {:,} of the large one. <small>{}; on {:,} tokens; {:,} positions are excluded. "
            "Markers at the ends: the two dictionaries alone.</small></p>",
            s.small.name,
            s.large.name,
            self.state.step,
            len(self._frame) - 1,
            row["phase"],
            row["n_small"],
            row["n_large"],
            self._options(),
            s.n_tokens,
            s.n_excluded,
        )

    def _options(self) -> str:
        """The options of the path; for a path of the user's own, only the bias is known."""
        options = self.stitching.options
        shown = {"theta": "θ", "grouping": "groups", "order": "order", "bias": "decoder bias"}
        return "; ".join(
            f"{name}: {str(options[option]).replace('_', ' ')}"
            for option, name in shown.items()
            if options[option] is not None
        )

    def _charts(self) -> dict[str, Chart]:
        step = self.state.step
        row = self._frame.iloc[step]
        at = f"step {step} is at FVU {row['fvu']:.3f}, L0 {row['l0']:.1f}"
        panels = drawing.at_step(self._curves, self.stitching, step)
        chart = Chart(
            tuple((panel,) for panel in panels),
            alt=f"FVU and L0 over the steps; {at}; markers at the ends: the two dictionaries alone",
            height=200,
            heights=drawing.HEIGHTS[:2],
            keys=self._keys,
            caption=f"Stitching {self.stitching.small.name} into {self.stitching.large.name}. FVU and L0 "
            f"after each step, with the phases shaded; {at}",
        )
        return {"curve": chart}

    def _identities(self) -> list[Identity]:
        return [dictionary.identity for dictionary in self.dictionaries.values()]

    def _pictured(self, *, as_image: bool) -> Markup:
        return html.columns(self._charts()["curve"].html(as_image=as_image), self._cost())

    def _cost(self) -> Markup:
        """Measures before and after the step."""
        step = self.state.step
        after = self._frame.iloc[step]
        before = self._frame.iloc[max(step - 1, 0)]
        measures = {"MSE": "mse", "FVU": "fvu", "L0": "l0"}
        rows: list[tuple[Any, ...]] = [
            (
                name,
                number(before[column], 4),
                number(after[column], 4),
                html.bold(signed(after[column] - before[column])),
            )
            for name, column in measures.items()
        ]
        widths = int(before["width"]), int(after["width"])
        change = html.bold(f"{widths[1] - widths[0]:+,}".replace("-", "−"))
        rows.append(("latents", f"{widths[0]:,}", f"{widths[1]:,}", change))
        if after["n_inserted"] + after["n_removed"] > 1:
            single = signed(after["sum_of_single_changes"])
            rows.append(("MSE, sum of single moves", "", "", single))
        header = ("", "before", "after", "change")
        return html.table(header, rows, numeric=(1, 2, 3), caption="Effect of the step")

    def _moved(self) -> Markup:
        """The latents moved by the step, each with its closest latent on the other side."""
        row = self._frame.iloc[self.state.step]
        out, new = (self._latents(self.state.step, side) for side in SIDES)
        if not out and not new:
            return html.markup("<p>{}</p>", self._nothing_moved(row["phase"]))
        return html.columns(
            *(
                self._table(side, latents, others)
                for side, latents, others in (("small", out, new), ("large", new, out))
                if latents
            )
        )

    def _nothing_moved(self, phase: str) -> str:
        if phase == "bias":
            return "No latent moves here: the decoder bias becomes the large dictionary's."
        return f"Nothing has moved yet: this is {self.stitching.small.name}."

    def _table(self, side: str, latents: list[int], others: list[int]) -> Markup:
        evidence, shown = self.evidence[side], latents[:N_MOVED]
        other = "large" if side == "small" else "small"
        partners, cosines = self._closest(side, shown, others)
        rows = [
            (
                html.goto(evidence.width, latent, html.bold(latent)),
                html.chips(evidence.words(latent)) or "dead",
                share(evidence.counts[latent] / evidence.activations.n_tokens),
                html.join(
                    [
                        html.goto(self.evidence[other].width, partner),
                        " ",
                        html.chips(self.evidence[other].words(partner, 1)),
                    ]
                ),
                f"{cosine:.2f}",
            )
            for latent, partner, cosine in zip(shown, partners, cosines, strict=True)
        ]
        more = html.small(f" ({len(shown)} shown)") if len(shown) < len(latents) else ""
        verb = "removed" if side == "small" else "inserted"
        closest = (
            "closest among those it is swapped with"
            if others
            else f"closest in {self.dictionaries[other].name}"
        )
        return html.table(
            ("latent", "fires on", "density", closest, "cosine"),
            rows,
            numeric=(2, 4),
            caption=html.join([f"{len(latents):,} {verb}: {self.dictionaries[side].name}", more]),
        )

    def _closest(self, side: str, latents: list[int], others: list[int]) -> tuple[list[int], list[float]]:
        """For each latent the most similar one of `others` (of the whole other side if there are none)."""
        other = self.dictionaries["large" if side == "small" else "small"].W_dec
        rows = self.dictionaries[side].W_dec[latents]
        cosine, place = (rows @ (other[others] if others else other).T).max(dim=1)
        return [others[i] if others else i for i in place.tolist()], cosine.tolist()

    def _about(self, n: int) -> Markup:
        """Contexts of the first moved latents of each side."""
        parts = []
        for side, verb in (("small", "Removed"), ("large", "Inserted")):
            evidence, name = self.evidence[side], self.dictionaries[side].name
            for latent in self._latents(self.state.step, side)[:N_ABOUT]:
                words = html.chips(evidence.words(latent, 5))
                parts.append(html.markup("<h4>{}: latent {} of {} {}</h4>", verb, latent, name, words))
                parts.append(evidence.card(latent, n))
        return html.join(parts)

    # ------------------------------------------------------------------ steps

    def _can_visit(self, width: int, latent: int) -> bool:
        return self._step_of(width, latent) is not None

    def _visit(self, width: int, latent: int) -> None:
        self.show(step=self._step_of(width, latent))

    def _step(self, by: int) -> None:
        self.state.step = (self.state.step + by) % len(self._frame)

    def _step_of(self, width: int, latent: int) -> int | None:
        """The step that moves a latent; of dictionaries of one width, the large one's."""
        for side in SIDES[::-1]:
            if self.dictionaries[side].width == width:
                moves = self.stitching.moves
                steps = moves.loc[(moves["side"] == side) & (moves["latent"] == latent), "step"]
                return int(steps.iat[0]) if len(steps) else None
        return None

    def _latents(self, step: int, side: str) -> list[int]:
        """Latents of a side that a step moved, the most frequent first."""
        moves = self._moves.get(step)
        if moves is None:
            return []
        return (
            moves[moves["side"] == side]
            .sort_values(["density", "latent"], ascending=[False, True])["latent"]
            .tolist()
        )

    def _words_of(self, step: int) -> Markup:
        """Name a step by the words of its most frequent latent, as HTML."""
        named = self._first(step)
        return html.chips(self.evidence[named[0]].words(named[1])) if named else Markup("decoder bias")

    def _targets(self, rows: pd.DataFrame) -> list[tuple[str, int]]:
        options = []
        for row in rows.itertuples():
            named = self._first(row.step)
            words = html.plain(self.evidence[named[0]].words(named[1])) if named else "decoder bias"
            counts = f"{row.n_removed} out, {row.n_inserted} in"
            options.append(
                (f"{row.step}  {row.phase}  MSE {signed(row.mse_change)}  {counts}  {words}", row.step)
            )
        return options

    def _first(self, step: int) -> tuple[str, int] | None:
        return next(
            ((side, latents[0]) for side in SIDES[::-1] if (latents := self._latents(step, side))), None
        )

    def _next_phase(self) -> None:
        starts = self._phases["first_step"]
        later = starts[starts > self.state.step]
        self.state.step = int(later.iat[0]) if len(later) else 0
