"""The edit explorer: what the model answers before and after an edit of one fact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html, settings
from saekit.analysis.edits import Edits
from saekit.charts.chart import Chart
from saekit.charts.edits import at_method, edits_by_method
from saekit.identity import Identity
from saekit.widgets.base import Explorer, State, as_trait_error

SHOWN = 3  # answers by probability, besides those of base and source


class EditState(State):
    """A pair of entities, the attribute that is edited, and the method.

    Parameters
    ----------
    options : mapping of str to list
        The values that exist of each trait.
    selection : mapping
        The values to start with.
    """

    order = ("pair", "attribute", "method")
    pair = traitlets.TraitType("")
    attribute = traitlets.TraitType("")
    method = traitlets.TraitType("")

    def __init__(self, options: dict[str, list[str]], selection: dict[str, str]) -> None:
        super().__init__()
        self._options = options
        for name in self.order:
            setattr(self, name, selection[name])

    @traitlets.validate("pair", "attribute", "method")
    def _known(self, proposal: Any) -> str:
        name = proposal["trait"].name
        with as_trait_error():
            return settings.choice(name, proposal["value"], self._options[name])


class EditExplorer(Explorer):
    """Choose two entities, the attribute to edit and the method, and see the answers before and after.

    The result holds every answer, so no forward pass runs on a click.

    Parameters
    ----------
    edits : Edits
        The edits (`saekit.measure_edits`).
    pair, attribute, method : str, optional
        The selection to start with, such as `"Paris to Tokyo"`, `"country"` and `"latents, 4"`; the first
        pair and attribute, and the method of greatest disentangle, if left out.

    Attributes
    ----------
    options : dict of str to list
        The values that `state.pair`, `state.attribute` and `state.method` can have.
    state : traitlets.HasTraits
        `pair`, `attribute` and `method`.

    Examples
    --------
    >>> explorer = saekit.EditExplorer(edits)  # doctest: +SKIP
    >>> explorer.show(attribute="continent", method="neurons, 32")  # doctest: +SKIP
    """

    def __init__(
        self,
        edits: Edits,
        *,
        pair: str | None = None,
        attribute: str | None = None,
        method: str | None = None,
    ) -> None:
        self.edits = edits
        frame = edits.frame
        self._pairs = frame["base"] + " to " + frame["source"]
        self._methods = frame["method"] + ", " + frame["n"].astype(str)
        found = (self._pairs, frame["attribute"], self._methods)
        self.options = {
            name: list(values.unique()) for name, values in zip(EditState.order, found, strict=True)
        }
        self._by_method = edits_by_method(edits)
        self._table = self._by_method.data
        best = self._table.loc[self._table["disentangle"].idxmax()]
        given = {"pair": pair, "attribute": attribute, "method": method}
        start = {name: values[0] for name, values in self.options.items()}
        start["method"] = f"{best['method']}, {best['n']}"
        super().__init__(
            EditState(
                self.options, start | {name: value for name, value in given.items() if value is not None}
            )
        )

    def _build(self) -> list[widgets.Widget]:
        tooltips = {
            "pair": "The entity that is edited, and the one that its activation is moved towards",
            "attribute": "The attribute to edit; the others should stay",
            "method": "How the activation is changed, and in how many components",
        }
        self._controls = {}
        for name, tooltip in tooltips.items():
            control = widgets.Dropdown(
                options=[(html.cut(html.harmless(option)), option) for option in self.options[name]],
                description=name.capitalize(),
                tooltip=tooltip,
                layout={"width": "320px"},
            )
            self._bind(control, name)
            self._controls[name] = control
        self._detail = self._panel()
        bar = widgets.HBox([*self._controls.values()], layout={"flex_flow": "row wrap"})
        return [bar, self._detail]

    def _render(self) -> None:
        for name, control in self._controls.items():
            control.value = getattr(self.state, name)
        self._detail.value = html.panel(*self._told(as_image=False))

    def _charts(self) -> dict[str, Chart]:
        method, _, n = self.state.method.rpartition(", ")
        return {"edits": at_method(self._by_method, method, int(n))}

    def _identities(self) -> Sequence[Identity]:
        return [self.edits.dictionary]

    def _parts(self) -> list[Markup]:
        return self._told(as_image=True)

    def _told(self, *, as_image: bool) -> list[Markup]:
        state, frame = self.state, self.edits.frame
        chosen = (
            (self._pairs == state.pair)
            & (frame["attribute"] == state.attribute)
            & (self._methods == state.method)
        )
        rows = frame[chosen]
        first = rows.iloc[0]
        head = html.markup(
            "<h3>{}: edit the {}</h3><p>{}; the activation of {} moves by {:.1f}.</p>",
            state.pair,
            state.attribute,
            state.method,
            first["base"],
            first["norm"],
        )
        answers = html.columns(*(self._answers(row) for _, row in rows.iterrows()))
        return [head, answers, self._charts()["edits"].html(as_image=as_image), self._numbers()]

    def _answers(self, row: Any) -> Markup:
        """The likeliest answers to one question, and those of base and source, before and after."""
        asked, edits = row["asked"], self.edits
        place = int((edits.frame.index[edits.frame["asked"] == asked] == row.name).argmax())
        before = edits.before[asked][edits.entities.index(row["base"])].numpy()
        after = edits.after[asked][place].numpy()
        own = [self._fact(row["base"], asked), self._fact(row["source"], asked)]
        names = edits.candidates[asked]
        listed = [*own, *(names[i] for i in np.argsort(-after, kind="stable")[:SHOWN])]
        told = dict(zip(reversed(own), (" (source)", " (base)"), strict=True))
        cells = []
        for name in dict.fromkeys(listed):
            i = names.index(name)
            shown = html.bold(name) if name == row["answer"] else html.escape(name)
            cells.append([shown + told.get(name, ""), f"{before[i]:.2f}", f"{after[i]:.2f}"])
        goal = "edited" if asked == row["attribute"] else "should stay"
        reached = "yes" if row["reached"] else f"no, {row['wanted']} was wanted"
        caption = f"{asked} ({goal}); reached: {reached}"
        return html.table(["answer", "before", "after"], cells, numeric=(1, 2), caption=caption)

    def _fact(self, entity: str, attribute: str) -> str:
        facts = self.edits.facts
        chosen = (facts["entity"] == entity) & (facts["attribute"] == attribute)
        return str(facts.loc[chosen, "answer"].iloc[0])

    def _numbers(self) -> Markup:
        """The method beside all others, over all pairs."""
        rows = []
        for row in self._table.sort_values("disentangle", ascending=False, kind="stable").itertuples():
            name = f"{row.method}, {row.n}"
            numbers = (f"{value:.2f}" for value in (row.cause, row.isolation, row.disentangle, row.damage))
            rows.append([html.bold(name) if name == self.state.method else name, *numbers])
        header = ["method, components", "cause", "isolation", "disentangle", "damage"]
        return html.details(
            "All methods, over all pairs", html.table(header, rows, numeric=range(1, 5)), is_open=True
        )
