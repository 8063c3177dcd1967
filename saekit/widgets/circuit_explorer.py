"""The circuit explorer: nodes by position and hook point, sized by their effects; each opens its latent."""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import traitlets
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html, settings
from saekit.analysis.effects.nodes import NodeEffects
from saekit.charts.chart import Chart
from saekit.charts.circuits import circuit
from saekit.identity import Identity
from saekit.selection import select_latent
from saekit.widgets.base import Explorer, State, as_trait_error
from saekit.widgets.evidence import Evidence, require_evidence
from saekit.wording import counted, number, signed

MEAN = -1  # instead of a prompt: effects averaged over all
ERROR = -1  # instead of a latent
SHOWN = 24  # nodes drawn
LISTED = 60  # nodes to choose from


class CircuitState(State):
    """A prompt (-1: the mean over all), a method, and a node: hook point, position and latent (-1: error)."""

    order = ("prompt", "method", "place", "position", "latent")
    prompt = traitlets.TraitType(MEAN)
    method = traitlets.TraitType("")
    place = traitlets.TraitType("")
    position = traitlets.TraitType(0)
    latent = traitlets.TraitType(ERROR)

    def __init__(self, effects: NodeEffects, methods: Sequence[str], first: Mapping[str, Any]) -> None:
        super().__init__()
        self._methods, self._places = list(methods), list(effects.places)
        self._n, self._ctx = len(effects.prompts), effects.prompts.tokens.shape[1]
        self._widths = dict(zip(effects.places, (d.width for d in effects.dictionaries), strict=True))
        self.method = self._methods[0]
        self.place, self.position, self.latent = first["place"], first["position"], first["latent"]

    @traitlets.validate("prompt")
    def _known_prompt(self, proposal: Any) -> int:
        with as_trait_error():
            return settings.whole("prompt", proposal["value"], at_least=MEAN, at_most=self._n - 1)

    @traitlets.validate("method")
    def _known_method(self, proposal: Any) -> str:
        with as_trait_error():
            return settings.choice("method", proposal["value"], self._methods)

    @traitlets.validate("place")
    def _known_place(self, proposal: Any) -> str:
        with as_trait_error():
            return settings.choice("place", proposal["value"], self._places)

    @traitlets.validate("position")
    def _known_position(self, proposal: Any) -> int:
        with as_trait_error():
            return settings.whole("position", proposal["value"], at_least=0, at_most=self._ctx - 1)

    @traitlets.validate("latent")
    def _known_latent(self, proposal: Any) -> int:
        with as_trait_error():
            if proposal["value"] == ERROR:
                return ERROR
            return select_latent(proposal["value"], self._widths[self.place])


class CircuitExplorer(Explorer):
    """See which latents and SAE errors carry a task, where, and what each of them fires on.

    A disc is a latent, a square an error. Its area is its effect, averaged over the prompts or of one; it is
    filled if it supports the metric and hollow if it opposes it.

    Parameters
    ----------
    effects : NodeEffects
        With a method measured on all nodes (`saekit.measure_node_effects`).
    evidence : Evidence, or mapping of str to Evidence, optional
        Evidence about the dictionary (`saekit.collect_evidence`), or about each, by hook point.

    Attributes
    ----------
    state : traitlets.HasTraits
        `prompt` (-1: the mean over all), `method`, `place`, `position` and `latent` (-1: the error).

    Raises
    ------
    ValueError
        If no method was measured on all nodes, there are no nodes, or evidence is about another dictionary.

    Examples
    --------
    >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
    >>> pairs = saekit.Prompts.from_texts(
    ...     model.tokenizer, texts, corrupted=others, answers=[" over"] * 2, wrong=[" runs"] * 2
    ... )
    >>> effects = saekit.measure_node_effects(model, saes[16], pairs)
    >>> explorer = saekit.CircuitExplorer(effects, evidence[16])
    >>> explorer.show(prompt=1, method="relp")
    >>> explorer.state.method
    'relp'
    """

    def __init__(
        self, effects: NodeEffects, evidence: Evidence | Mapping[str, Evidence] | None = None
    ) -> None:
        self.methods = [m for m in effects.methods if not effects.frame[m].isna().any()]
        if not self.methods:
            raise ValueError("CircuitExplorer needs effects of a method measured on all nodes.")
        if effects.frame.empty:
            raise ValueError("No node differs from its baseline, so there is no circuit to show.")
        given = {} if evidence is None else evidence
        if isinstance(given, Evidence):
            given = {effects.places[0]: given}
        for place, one in given.items():
            with_name = dict(zip(effects.places, effects.dictionaries, strict=True))
            settings.choice("evidence", place, with_name)
            require_evidence(one, with_name[place], "CircuitExplorer")
        self.effects, self.evidence = effects, dict(given)
        self._tables = {method: effects.nodes(method) for method in self.methods}
        first = self._tables[self.methods[0]].iloc[0]
        chosen = {name: first[name] for name in ("place", "position", "latent")}
        super().__init__(CircuitState(effects, self.methods, chosen))

    def _build(self) -> list[widgets.Widget]:
        layout = {"width": "360px"}
        texts = [html.cut(html.harmless("".join(row)), 60) for row in self.effects.prompts.strings]
        self._prompt = widgets.Dropdown(
            description="Prompt",
            options=[
                ("mean over all", MEAN),
                *((f"{i}: {text}", i) for i, text in enumerate(texts)),
            ],
            tooltip="Effects of one prompt, or averaged over all",
            layout=layout,
        )
        self._method = widgets.Dropdown(
            description="Method", options=self.methods, tooltip="How effects are measured", layout=layout
        )
        self._bind(self._prompt, "prompt")
        self._bind(self._method, "method")
        self._found = self._list("Nodes", "Nodes by effect: choose one to open it", [], rows=9)
        self._found.observe(lambda change: self._open(change["new"]), "value")
        self._head, self._chart, self._detail = (self._panel() for _ in range(3))
        bar = widgets.HBox([self._prompt, self._method], layout={"flex_flow": "row wrap"})
        return [bar, self._head, self._chart, self._found, self._detail]

    def _open(self, node: tuple[str, int, int] | None) -> None:
        if not self._rendering and node is not None:
            self._act(lambda: self.show(place=node[0], position=node[1], latent=node[2]))

    def _render(self) -> None:
        self._prompt.value, self._method.value = self.state.prompt, self.state.method
        self._head.value = html.panel(self._header())
        self._chart.value = html.panel(self._picture(as_image=False))
        options = [
            (
                f"{signed(row.effect)}   position {row.position} "
                f"{html.plain([self._token(row.position)])}   {self._named(row.place, row.latent)}",
                (row.place, int(row.position), int(row.latent)),
            )
            for row in self._nodes().head(LISTED).itertuples()
        ]
        state = self.state
        self._fill(self._found, options, selected=(state.place, state.position, state.latent))
        self._detail.value = html.panel(self._about(6))

    def _parts(self) -> list[Markup]:
        rows = [
            (
                row.place,
                html.join([row.position, " ", html.chip(self._token(row.position))]),
                "error" if row.latent == ERROR else str(row.latent),
                signed(row.effect),
                html.chips(self._words(row.place, row.latent)),
            )
            for row in self._nodes().head(10).itertuples()
        ]
        header = ("hook point", "position", "latent", "effect", "fires on")
        table = html.table(header, rows, numeric=(3,), caption="Greatest effects")
        return [self._header(), self._picture(as_image=True), table, self._about(4)]

    # ------------------------------------------------------------------ pieces

    def _nodes(self) -> pd.DataFrame:
        """The nodes of the prompt, or of all, greatest effect first."""
        prompt, method = self.state.prompt, self.state.method
        if prompt == MEAN:
            return self._tables[method]
        frame = self.effects.frame
        own = frame[frame["prompt"] == prompt].rename(columns={method: "effect"})
        return own.sort_values("effect", key=abs, ascending=False, kind="stable")

    def _token(self, position: int) -> str:
        strings = self.effects.prompts.strings
        if self.state.prompt != MEAN:
            return strings[self.state.prompt][position]
        # Of all prompts: the token that they share, or the first one's with a mark.
        found = {row[position] for row in strings if position < len(row)}
        first = next(row[position] for row in strings if position < len(row))
        return first if len(found) == 1 else f"{first}…"

    def _words(self, place: str, latent: int) -> list[str]:
        if latent == ERROR or place not in self.evidence:
            return []
        return list(self.evidence[place].words(latent))

    def _named(self, place: str, latent: int) -> str:
        if latent == ERROR:
            return f"error at {place}"
        if place not in self.evidence:
            return f"latent {latent} at {place}"
        return f"latent {self.evidence[place].label(latent)}"

    def _header(self) -> Markup:
        effects, prompt = self.effects, self.state.prompt
        if prompt == MEAN:
            what: str | Markup = f"averaged over {counted(len(effects.prompts), 'prompt')}"
        else:
            what = html.markup("of <b>{}</b>", "".join(effects.prompts.strings[prompt]))
        totals = effects.totals if prompt == MEAN else effects.totals[effects.totals["prompt"] == prompt]
        clean = number(float(totals["clean"].mean()))
        return html.markup(
            "<h3>{}: {}</h3><p>Change of the metric ({}) when a node is set to its baseline (<i>{}</i>), by "
            "{}, {}. The greatest {} of {:,} nodes are shown. Discs are latents, squares SAE errors; filled "
            "(blue) nodes support the metric, hollow (red) ones oppose it.</p>",
            effects.prompts.name,
            effects.metric.replace("_", " "),
            clean,
            effects.baseline,
            self.state.method,
            what,
            min(SHOWN, len(self._nodes())),
            len(self._nodes()),
        )

    def _charts(self) -> dict[str, Chart]:
        strings, state = self.effects.prompts.strings, self.state
        most = len(strings[state.prompt]) if state.prompt != MEAN else max(map(len, strings))
        tokens = [self._token(position) for position in range(most)]
        selected = (state.position, state.place, state.latent)
        return {"circuit": circuit(tokens, self.effects.places, self._nodes().head(SHOWN), selected)}

    def _identities(self) -> list[Identity]:
        return list(self.effects.dictionaries)

    def _picture(self, *, as_image: bool) -> Markup:
        return self._charts()["circuit"].html(as_image=as_image)

    def _about(self, n: int) -> Markup:
        state, frame = self.state, self.effects.frame
        at = (frame["place"] == state.place) & (frame["position"] == state.position)
        rows = frame[at & (frame["latent"] == state.latent)]
        if state.prompt != MEAN:
            rows = rows[rows["prompt"] == state.prompt]
        what = "SAE error" if state.latent == ERROR else f"Latent {state.latent}"
        words = html.chips(self._words(state.place, state.latent))
        parts = [
            html.markup(
                "<h4>{} at {}, position {} {} {}</h4>",
                what,
                state.place,
                state.position,
                html.chip(self._token_or_none(state.position)),
                words,
            )
        ]
        if rows.empty:
            parts.append(Markup("<p>It does not differ from its baseline here, so it has no effect.</p>"))
        else:
            values = [(method, rows[method].dropna()) for method in self.effects.methods]
            found = [
                (method, signed(float(one.mean())) if len(one) else "–", str(len(one)))
                for method, one in values
            ]
            parts.append(html.table(("method", "mean effect", "prompts"), found, numeric=(1, 2)))
        if state.latent != ERROR and state.place in self.evidence:
            evidence = self.evidence[state.place]
            parts.append(evidence.card(state.latent, n))
        return html.join(parts)

    def _token_or_none(self, position: int) -> str:
        strings = self.effects.prompts.strings
        reach = strings if self.state.prompt == MEAN else [strings[self.state.prompt]]
        return self._token(position) if any(position < len(row) for row in reach) else ""
