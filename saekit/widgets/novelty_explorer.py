"""The novelty explorer: move theta and see when a low cosine predicts that a latent helps."""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import traitlets
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html, settings
from saekit.analysis.novelty import Insertion
from saekit.analysis.nulls import require_null
from saekit.charts import novelty as drawing
from saekit.charts.chart import Chart
from saekit.charts.model import Panel
from saekit.identity import Identity
from saekit.selection import select_latent
from saekit.widgets.base import Explorer, State, as_trait_error
from saekit.widgets.evidence import Evidence, require_evidence
from saekit.wording import number, share, signed

GROUPS = {
    "clear novel": "low cosine, and helps",
    "clear reconstruction": "high cosine, and hurts",
    "low but hurts": "low cosine, yet hurts",
    "high but helps": "high cosine, yet helps",
}
N_LISTED = 30  # latents of a group in the live list
N_STATIC = 5  # latents of each group in the static form
MOST = 5000  # latents drawn
CAPTION = (
    "Inserting single latents. Each point is a latent of the large dictionary: the change in the small "
    "dictionary's MSE when it alone is added, against its best cosine; and the ROC curve of that cosine"
)


class NoveltyState(State):
    """A theta, one of the four groups that it makes, and a latent of the large dictionary."""

    order = ("theta", "group", "latent")
    theta = traitlets.TraitType(0.7)
    group = traitlets.Enum(tuple(GROUPS), default_value="clear novel")
    latent = traitlets.TraitType(0)

    def __init__(self, width: int, theta: float, first: Callable[[str, float], int | None]) -> None:
        super().__init__()
        self._width, self._first = width, first
        self.theta = theta
        self._group_changed()

    @traitlets.validate("theta")
    def _a_cosine(self, proposal: Any) -> float:
        with as_trait_error():
            return settings.cosine("theta", proposal["value"])

    @traitlets.validate("latent")
    def _known_latent(self, proposal: Any) -> int:
        with as_trait_error():
            return select_latent(proposal["value"], self._width)

    @traitlets.observe("group")
    def _group_changed(self, _change: Any = None) -> None:
        first = self._first(self.group, self.theta)
        if first is not None:
            self.latent = first


class NoveltyExplorer(Explorer):
    """Move theta through the latents of a large dictionary inserted into a small one.

    Dead latents are excluded and counted. The chosen latent stays when theta moves; choosing another
    group goes to its first latent.

    Parameters
    ----------
    insertion : Insertion
        Between two widths, from `saekit.insertion`.
    evidence : Evidence
        Evidence about the large dictionary (`saekit.collect_evidence`).
    null : Insertion, optional
        Between two seeds of one of the widths, on the same tokens.
    small_evidence : Evidence, optional
        Evidence about the small dictionary, to show the best match as well.
    theta : float, optional
        Where to start; the insertion's own theta if left out.

    Attributes
    ----------
    state : traitlets.HasTraits
        `theta`, `group` (`"clear novel"`, `"clear reconstruction"`, `"low but hurts"`,
        `"high but helps"`) and `latent`.

    Raises
    ------
    TypeError
        If there is no evidence.
    ValueError
        If evidence is about another dictionary, or the null is no null of the insertion.

    Examples
    --------
    >>> result = saekit.insertion(saes[16], saes[32], harvested)
    >>> explorer = saekit.NoveltyExplorer(result, evidence[32], small_evidence=evidence[16])
    >>> explorer.state.theta
    0.7
    """

    def __init__(
        self,
        insertion: Insertion,
        evidence: Evidence | None = None,
        *,
        null: Insertion | None = None,
        small_evidence: Evidence | None = None,
        theta: float | None = None,
    ) -> None:
        evidence = require_evidence(evidence, insertion.large, "NoveltyExplorer")
        if small_evidence is not None:
            require_evidence(small_evidence, insertion.small, "NoveltyExplorer's small_evidence")
        if null is not None:
            require_null(insertion, null, "theta")
        self._frame = insertion.frame
        self.insertion, self.null = insertion, null
        self.evidence, self.small_evidence = evidence, small_evidence
        self._results = {"this": insertion, **({} if null is None else {"other seed": null})}
        self._summaries = {name: result.summary for name, result in self._results.items()}
        self._axes = drawing.insertion_axes([insertion])
        self._with_curve = {name: r for name, r in self._results.items() if not r.without_auc}
        self._roc: Panel | None = None
        if not insertion.without_auc:
            nulls = [] if null is None or null.without_auc else [null]
            self._roc = drawing.roc_panel([insertion], nulls, list(self._with_curve), "AUC")
        alive = self._frame[~self._frame["dead"]]
        self._alive = alive.sort_values(["mse_change", "latent"])  # most helpful first
        theta = insertion.theta if theta is None else theta
        super().__init__(NoveltyState(evidence.width, theta, first=self._first))

    def _build(self) -> list[widgets.Widget]:
        self._theta = widgets.FloatSlider(
            description="theta",
            min=0,
            max=1,
            step=0.01,
            continuous_update=False,
            tooltip="A latent counts as novel if its best cosine is under theta",
            layout={"width": "360px"},
            readout=False,
        )
        self._theta_box = widgets.BoundedFloatText(
            description="theta",
            min=0,
            max=1,
            step=0.01,
            tooltip="The same, as a number",
            layout={"width": "170px"},
        )
        self._group = widgets.Dropdown(
            description="Group",
            options=[(f"{name}: {meaning}", name) for name, meaning in GROUPS.items()],
            tooltip="The four groups that theta makes",
            layout={"width": "360px"},
        )
        self._bind(self._theta, "theta")
        self._bind(self._theta_box, "theta")
        self._bind(self._group, "group")
        self._list_of = self._list("Latents", "Latents of the group: choose one to see it", [], rows=9)
        self._list_of.observe(lambda change: self._set("latent", change["new"]), "value")
        self._overview, self._count, self._detail = (self._panel() for _ in range(3))
        bar = widgets.HBox([self._theta, self._theta_box], layout={"flex_flow": "row wrap"})
        choose = widgets.HBox([self._group, self._count], layout={"flex_flow": "row wrap"})
        self._count.layout.width = "auto"
        return [bar, self._overview, choose, self._list_of, self._detail]

    def _render(self) -> None:
        theta, group, latent = self.state.theta, self.state.group, self.state.latent
        self._theta.value = theta
        self._theta_box.value = theta
        self._group.value = group
        self._overview.value = html.panel(self._header(), self._pictures(as_image=False))
        members = self._members(group, theta)
        shown = members.head(N_LISTED)
        self._count.value = html.panel(
            html.small(f"{len(members):,} latents; {len(shown)} listed, the {self._ordered_by(group)} first")
        )
        self._fill(
            self._list_of,
            [
                (
                    f"cosine {row.best_cosine:.2f}   MSE {signed(row.mse_change)}   "
                    f"{self.evidence.label(row.latent)}",
                    row.latent,
                )
                for row in shown.itertuples()
            ],
            selected=latent,
        )
        self._detail.value = html.panel(self._about(6))

    def _parts(self) -> list[Markup]:
        lists = []
        for group, meaning in GROUPS.items():
            members = self._members(group, self.state.theta)
            rows = [
                (
                    html.goto(self.evidence.width, row.latent, html.bold(row.latent)),
                    f"{row.best_cosine:.2f}",
                    signed(row.mse_change),
                    html.chips(self.evidence.words(row.latent)),
                )
                for row in members.head(N_STATIC).itertuples()
            ]
            title = html.join([group.capitalize(), " ", html.small(f"({meaning}): {len(members):,} latents")])
            header = ("latent", "best cosine", "MSE change", "fires on")
            lists.append(html.table(header, rows, numeric=(0, 1, 2), caption=title))
        return [self._header(), self._pictures(as_image=True), html.columns(*lists), self._about(4)]

    # ------------------------------------------------------------------ pieces

    def _header(self) -> Markup:
        frame = self._frame
        return html.markup(
            "<h3>{} into {}</h3><p>Each of {:,} latents is inserted alone, on {:,} tokens <small>({:,} dead "
            "latents and {:,} positions are excluded)</small>. Does a cosine under θ = <b>{:.2f}</b> predict "
            "which latents help?</p>",
            self.insertion.large,
            self.insertion.small,
            len(self._alive),
            self.insertion.n_tokens,
            int(frame["dead"].sum()),
            self.insertion.n_excluded,
            self.state.theta,
        )

    def _charts(self) -> dict[str, Chart]:
        theta, selected = self.state.theta, self.state.latent
        most = MOST if len(self._alive) > MOST else None
        sample = f", {MOST:,} drawn" if most else ""
        alt = f"MSE change against best cosine of {len(self._alive):,} latents{sample}, theta {theta:.2f}"
        panel = drawing.insertion_panel(self.insertion, theta, self._axes, selected=selected, most=most)
        keys = drawing.insertion_keys(theta)
        chart = Chart(((panel,),), alt, height=200, keys=keys, key_columns=3, caption=CAPTION)
        if self._roc is None:
            return {"insertion": chart}
        curves = [*self._with_curve.values()]
        roc = drawing.roc_at(self._roc, curves[:1], curves[1:], theta)
        at = self.insertion.at(theta)
        here = f"({at['false_positive_rate']:.2f}, {at['true_positive_rate']:.2f})"
        auc = number(self._summaries["this"]["auc"])
        alt = f"{alt}; ROC curve, area {auc}; theta {theta:.2f} is at {here}"
        return {"insertion": replace(chart, rows=((panel, roc),), widths=(1.6, 1), alt=alt)}

    def _pictures(self, *, as_image: bool) -> Markup:
        at = {name: result.at(self.state.theta) for name, result in self._results.items()}
        note = Markup()
        if self._roc is None:
            note = html.markup("<p>{}</p>", html.small(f"No ROC curve: {self.insertion.without_auc}."))
        (chart,) = self._charts().values()
        return html.columns(chart.html(as_image=as_image), self._confusion() + note + self._rates(at))

    def _identities(self) -> list[Identity]:
        return [identity for r in self._results.values() for identity in (r.small, r.large)]

    def _confusion(self) -> Markup:
        count = {group: len(self._members(group, self.state.theta)) for group in GROUPS}
        total = max(1, len(self._alive))

        def cell(group: str) -> Markup:
            return html.markup("<b>{:,}</b> <small>{}</small>", count[group], share(count[group] / total))

        rows = [
            ("cosine < θ", cell("clear novel"), cell("low but hurts")),
            ("cosine ≥ θ", cell("high but helps"), cell("clear reconstruction")),
        ]
        header = ("latents", "helps", "hurts")
        return html.table(header, rows, numeric=(1, 2), caption=f"Partition at θ = {self.state.theta:.2f}")

    def _rates(self, at: dict[str, dict[str, Any]]) -> Markup:
        summaries = self._summaries
        measures: list[tuple[str | Markup, Callable[[str], str | Markup]]] = [
            ("cosine < θ (base rate)", lambda name: share(at[name]["share_novel_cos"])),
            ("helps (base rate)", lambda name: share(at[name]["share_novel_gain"])),
            ("true positive rate", lambda name: share(at[name]["true_positive_rate"])),
            ("false positive rate", lambda name: share(at[name]["false_positive_rate"])),
            ("accuracy", lambda name: share(at[name]["accuracy"])),
            (
                html.bold("balanced accuracy"),
                lambda name: html.bold(share(at[name]["balanced_accuracy"])),
            ),
            ("area under the ROC", lambda name: number(summaries[name]["auc"])),
            ("best θ, chosen on half of the tokens", lambda name: number(summaries[name]["best_theta"], 2)),
            (
                "its balanced accuracy on the other half",
                lambda name: share(summaries[name]["best_theta_balanced_accuracy"]),
            ),
        ]
        names = list(self._results)
        rows = [(measure, *(value(name) for name in names)) for measure, value in measures]
        if self.null is None:
            names.append("other seed")
            rows = [(*row, "–") for row in rows]
        seeds = "no second seed to compare"
        if self.null is not None:
            seeds = f"other seed: {self.null.large} into {self.null.small}"
        measured = html.table(("", *names), rows, numeric=(1, 2), caption="How well θ predicts")
        return measured + html.markup("<p>{}</p>", html.small(seeds))

    def _about(self, n: int) -> Markup:
        latent = self.state.latent
        row = self._frame.iloc[latent]
        words = html.chips(self.evidence.words(latent, 5))
        parts = [html.markup("<h4>Latent {} of {} {}</h4>", latent, self.insertion.large, words)]
        match = int(row["best_match"])
        if row["dead"]:
            parts.append(
                html.markup(
                    "<p>Dead, so it is not part of the partition. Best cosine {:.2f}.</p>", row["best_cosine"]
                )
            )
        else:
            novel, helps = row["best_cosine"] < self.state.theta, row["mse_change"] < 0
            parts.append(
                html.markup(
                    "<p>Best cosine <b>{:.2f}</b>, with small latent {}: {} by cosine. Inserted alone, it "
                    "changes the MSE by <b>{}</b>: it {}.</p>",
                    row["best_cosine"],
                    html.goto(self.insertion.small.width, match),
                    "novel" if novel else "not novel",
                    signed(row["mse_change"]),
                    "helps" if helps else "does not help",
                )
            )
        parts.append(self.evidence.card(latent, n))
        if self.small_evidence is not None:
            small = html.chips(self.small_evidence.words(match, 5))
            parts.append(
                html.markup("<h4>Its best match: latent {} of {} {}</h4>", match, self.insertion.small, small)
            )
            parts.append(self.small_evidence.card(match, max(3, n // 2)))
        return html.join(parts)

    # ------------------------------------------------------------------ one latent of the large dictionary

    @property
    def selected(self) -> tuple[int, int]:
        """Width of the large dictionary, and the latent of it that is shown."""
        return self.evidence.width, self.state.latent

    def _can_visit(self, width: int, latent: int) -> bool:
        return width == self.evidence.width and 0 <= latent < width

    def _visit(self, width: int, latent: int) -> None:  # noqa: ARG002 - the width is the only one
        self.show(latent=latent)

    def _step(self, by: int) -> None:
        members = self._members(self.state.group, self.state.theta)["latent"].tolist()
        if self.state.latent in members:
            by += members.index(self.state.latent)
        if members:
            self.state.latent = members[by % len(members)]

    # ------------------------------------------------------------------ groups

    def _members(self, group: str, theta: float) -> Any:
        """Rows of a group: the most helpful first if it helps, else the most harmful first."""
        low, helps = self._alive["best_cosine"] < np.float32(theta), self._alive["mse_change"] < 0
        novel, gain = group in ("clear novel", "low but hurts"), group in ("clear novel", "high but helps")
        rows = self._alive[(low == novel) & (helps == gain)]
        return rows if gain else rows[::-1]

    @staticmethod
    def _ordered_by(group: str) -> str:
        return "most helpful" if group in ("clear novel", "high but helps") else "most harmful"

    def _first(self, group: str, theta: float) -> int | None:
        members = self._members(group, theta)
        return int(members["latent"].iat[0]) if len(members) else None
