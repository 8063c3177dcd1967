"""The meta-SAE explorer: the meta-latents of a latent, and the latents of a meta-latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import traitlets
from ipywidgets import widgets
from markupsafe import Markup
from torch import Tensor

from saekit import charts, html
from saekit.analysis.latents import LogitTable, require_residual_stream
from saekit.analysis.meta.latents import related_latents
from saekit.analysis.meta.sae import MetaSAE
from saekit.analysis.similarity import largest
from saekit.charts.chart import Chart
from saekit.charts.trees import related_latents as draw_related
from saekit.identity import Identity
from saekit.selection import select_latent, select_latents
from saekit.widgets.base import Explorer, LatentState, as_trait_error
from saekit.widgets.evidence import Evidence, effect_table, no_effects, require_evidence_of_each
from saekit.wording import SEPARATOR, number, share

if TYPE_CHECKING:
    from saekit.analysis.labels import Labels

N_GRAPH = 5  # meta-latents in the graph, and latents for each
STRETCH = 1.4  # of the graph, which then has more room for words
N_MEMBERS = 30  # latents listed for a meta-latent
N_FIRST = 10  # of these, shown at once on a static page
N_LOGITS = 8
N_NAMING = 6  # latents that name a meta-latent without a label


class MetaState(LatentState):
    """A latent of a base dictionary, a meta-latent, and which of the latent's meta-latents are off.

    On moving to another latent, the meta-latent stays if it is active on that latent; otherwise the
    strongest one is chosen. All meta-latents of the latent are switched on at first.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    active : callable
        `active(width, latent)` gives the latent's meta-latents, strongest first.
    width, latent : int
        The selection.
    follow : callable
        As for `LatentState`.
    """

    order = ("width", "latent", "meta_latent", "off")
    meta_latent = traitlets.TraitType(0)
    off = traitlets.Tuple()

    def __init__(
        self,
        meta: MetaSAE,
        active: Callable[[int, int], list[int]],
        width: int,
        latent: int,
        *,
        follow: Callable[[int, int, int], int],
    ) -> None:
        self._meta, self._active = meta, active
        super().__init__(meta.widths, width, latent, follow=follow)
        self._latent_changed()

    @traitlets.validate("meta_latent")
    def _known_meta_latent(self, proposal: Any) -> int:
        with as_trait_error():
            return select_latent(proposal["value"], self._meta.width, what="meta-latent")

    @traitlets.validate("off")
    def _own_meta_latents(self, proposal: Any) -> tuple[int, ...]:
        active = self._active(self.width, self.latent)
        with as_trait_error():
            off = select_latents(list(proposal["value"]), self._meta.width, what="meta-latents").tolist()
        if not set(off) <= set(active):
            raise traitlets.TraitError(
                f"Latent {self.latent} has meta-latents {sorted(active)}, found {proposal['value']}."
            )
        return tuple(sorted(off))

    @traitlets.observe("width", "latent")
    def _latent_changed(self, _change: Any = None) -> None:
        if self.latent >= self.width:  # on the way to another width
            return
        active = self._active(self.width, self.latent)
        with self.hold_trait_notifications():  # one rendering for both
            self.off = ()
            if active and self.meta_latent not in active:
                self.meta_latent = active[0]


class MetaExplorer(Explorer):
    """Decompose a latent into meta-latents, and walk from a meta-latent to its latents.

    Each of a latent's meta-latents can be switched off: the direction rebuilt from the others, its
    cosine with the latent's own direction and the tokens that it promotes are updated.

    Parameters
    ----------
    meta : MetaSAE
        From `saekit.meta_sae`; its base dictionaries differ in width.
    evidence : mapping of int to Evidence
        Evidence about each base, by width (`saekit.collect_evidence`).
    unembedding : Tensor
        `[d_model, vocab]`, such as `saekit.models.unembedding(model)`. Logit effects are shown only if
        the bases are on the residual stream.
    labels : Labels, optional
        Labels of the meta-latents (`saekit.label_meta_latents`); if left out, a meta-latent is named by the
        words of the latents that it is most active on.
    width, latent : int, optional
        Where to start; by default the first latent of the widest base that is not dead and has the
        most common number of meta-latents.

    Attributes
    ----------
    state : traitlets.HasTraits
        `width`, `latent`, `meta_latent` and `off` (those of the latent's meta-latents that are
        switched off).

    Raises
    ------
    TypeError
        If evidence or unembedding is missing.
    ValueError
        If two bases have the same width, a base has no evidence or evidence about another dictionary,
        or labels or unembedding do not fit.

    Notes
    -----
    Leask et al. (ICLR 2025): this combines both pages of the dashboard published with the paper.

    Examples
    --------
    >>> from saekit.widgets import Evidence
    >>> shown = Evidence(saekit.collect(large, store), store, vocabulary)
    >>> explorer = saekit.MetaExplorer(meta, {12: shown}, unembedding)
    >>> explorer.state.latent
    0
    """

    def __init__(
        self,
        meta: MetaSAE,
        evidence: Mapping[int, Evidence] | None = None,
        unembedding: Tensor | None = None,
        *,
        labels: Labels | None = None,
        width: int | None = None,
        latent: int | None = None,
    ) -> None:
        if len(set(meta.widths)) < len(meta.widths):
            raise ValueError(f"The bases must differ in width to be told apart, found {list(meta.widths)}.")
        evidence = require_evidence_of_each(
            evidence, (source.identity for source in meta.sources), "MetaExplorer"
        )
        if labels is not None:
            meta.identity.require(labels.dictionary, "The meta-SAE that the labels name")
        self._no_effects = _no_effects(meta)
        if self._no_effects:
            unembedding = None
        elif unembedding is None:
            raise TypeError(
                "MetaExplorer needs the unembedding, found none: give saekit.models.unembedding(model)."
            )
        elif unembedding.shape[0] != meta.dictionary.d_in:
            raise ValueError(
                f"The unembedding must be [{meta.dictionary.d_in}, vocab], found {list(unembedding.shape)}."
            )
        self.meta, self.evidence, self.labels = meta, evidence, labels
        self._unembedding = unembedding
        self._facts = meta.frame
        self._bases = {width: place for place, width in enumerate(meta.widths)}
        self._words_of = lru_cache(maxsize=4096)(self._name_by_words)
        self._of = lru_cache(maxsize=64)(lambda width, latent: meta.of(latent, self._bases[width]))
        self._random = np.random.default_rng(0)
        width = meta.widths[-1] if width is None else width
        latent = self._first(width) if latent is None and width in self._bases else latent or 0
        super().__init__(MetaState(meta, self._active, width, latent, follow=self._nearest))

    # ------------------------------------------------------------------ widgets

    def _build(self) -> list[widgets.Widget]:
        row = {"flex_flow": "row wrap", "align_items": "flex-start"}
        controls = self._latent_controls(self.meta.widths)
        any_latent = self._button("Random latent", "Any latent that is not dead", self._any_latent)
        self._all_on = self._button("All on", "Switch every meta-latent on", self._switch_all_on)
        self._switches = [
            widgets.Checkbox(
                indent=False, tooltip="On: part of the rebuilt direction", layout={"width": "auto"}
            )
            for _ in range(int(self.meta.decomposition.counts.max()))
        ]
        for place, switch in enumerate(self._switches):
            switch.observe(lambda change, place=place: self._switch(place, change["new"]), "value")
        self._chooser = self._list("Look at", "The latent's meta-latents: choose one to see it below", [])
        self._chooser.observe(lambda change: self._set("meta_latent", change["new"]), "value")
        self._meta_latent = widgets.BoundedIntText(
            description="Meta-latent",
            max=self.meta.width - 1,
            tooltip="Number of the meta-latent",
            layout={"width": "170px"},
        )
        self._bind(self._meta_latent, "meta_latent")
        any_meta = self._button(
            "Random meta-latent", "Any meta-latent that is not dead", self._any_meta_latent
        )
        self._members = self._list(
            "Go to", "Latents on which the meta-latent is most active: choose one to go there", [], rows=12
        )
        self._members.observe(lambda change: self._go(change["new"]), "value")
        self._head, self._caption, self._rebuilt, self._graph, self._detail = (
            self._panel() for _ in range(5)
        )
        switches = widgets.VBox([self._caption, *self._switches, self._all_on], layout={"width": "420px"})
        self._rebuilt.layout.width = "auto"
        return [
            widgets.HBox([*controls, any_latent], layout=row),
            self._head,
            widgets.HBox([switches, self._rebuilt], layout=row),
            self._graph,
            widgets.HBox([self._meta_latent, any_meta, self._chooser], layout=row),
            self._detail,
            self._members,
        ]

    def _render(self) -> None:
        self._show_latent()
        own = self._own()
        self._head.value = html.panel(self._header())
        self._caption.value = html.panel(html.bold("Its meta-latents"), " ", self._note(len(own)))
        for place, switch in enumerate(self._switches):
            switch.layout.display = None if place < len(own) else "none"
            if place < len(own):
                switch.description = self._line(own.iloc[place], own["activation"].max())
                switch.value = int(own["meta_latent"].iat[place]) not in self.state.off
        self._all_on.disabled = not self.state.off
        self._rebuilt.value = html.panel(self._comparison())
        self._graph.value = html.panel(self._graph_of(as_image=False))
        self._meta_latent.value = self.state.meta_latent
        options = [(self._line(row), int(row["meta_latent"])) for _, row in own.iterrows()]
        self._fill(self._chooser, options, selected=self.state.meta_latent)
        self._detail.value = html.panel(self._about(as_image=False))
        members = self.meta.members(self.state.meta_latent, N_MEMBERS)
        self._fill(
            self._members,
            [
                (f"{row.activation:.2f}   {self._name(row.width, row.latent)}", (row.width, row.latent))
                for row in members.itertuples()
            ],
            selected=(self.state.width, self.state.latent),
        )

    def _parts(self) -> list[Markup]:
        return [
            self._header(),
            html.columns(self._decomposition(), self._comparison()),
            self._graph_of(as_image=True),
            self._about(as_image=True),
            self._members_table(),
        ]

    # ------------------------------------------------------------------ a latent

    def _header(self) -> Markup:
        width, latent = self.state.width, self.state.latent
        evidence, source = self.evidence[width], self.meta.sources[self._bases[width]]
        words = html.chips(evidence.words(latent, 5))
        return (
            html.markup("<h3>Latent {} of {} {}</h3>", latent, source.name, words)
            + evidence.facts(latent)
            + _neuronpedia(source.info.get("neuronpedia_id"), latent)
            + evidence.contexts_table(latent, 3, caption="Strongest examples")
        )

    def _note(self, n: int) -> Markup:
        if not n:
            return html.small("None: no meta-latent reaches the threshold, so only the mean row remains.")
        threshold = number(float(self.meta.dictionary.threshold.max()))
        return html.small(f"({n}, above a threshold of {threshold})")

    def _line(self, row: pd.Series, greatest: float | None = None) -> str:
        """A meta-latent in one line of plain text; with a bar if the greatest activation is given."""
        meta_latent, activation = int(row["meta_latent"]), float(row["activation"])
        bar = "" if greatest is None else f"{html.bar(activation / greatest, width=6)}  "
        return f"{activation:.2f}  {bar}{meta_latent}  {self._label(meta_latent, 60)}"

    def _decomposition(self) -> Markup:
        own = self._own()
        rows = [
            (
                html.bold(int(row.meta_latent)),
                f"{row.activation:.2f}",
                html.bar(row.activation / own["activation"].max(), width=8),
                "no" if row.meta_latent in self.state.off else "yes",
                self._label(row.meta_latent),
            )
            for row in own.itertuples()
        ]
        header = ("meta-latent", "activation", "", "in use", "label")
        caption = html.join(["Its meta-latents ", self._note(len(own))])
        return html.table(header, rows, numeric=(0, 1), caption=caption)

    def _comparison(self) -> Markup:
        """The direction rebuilt from the meta-latents that are on, beside the latent's own."""
        direction = self.meta.rows[self._row(self.state.width, self.state.latent)]
        rebuilt = self._rebuild()
        cosine = float(F.cosine_similarity(direction, rebuilt, dim=0)) if rebuilt.norm() > 0 else float("nan")
        n, off = len(self._own()), len(self.state.off)
        rebuilding = html.markup(
            "Rebuilt from <b>{} of {}</b> meta-latents and the mean row: cosine with the latent's own "
            "direction <b>{}</b>, length {}",
            n - off,
            n,
            number(cosine),
            number(float(rebuilt.norm())),
        )
        tables = self._effects(torch.stack([direction, F.normalize(rebuilt, dim=0)]))
        if not tables:
            return html.markup("<p>{}.</p>{}", rebuilding, no_effects(self._no_effects))
        kept = len(set(tables[0]["top_token"]) & set(tables[1]["top_token"]))
        same = f"{kept} of the {N_LOGITS} tokens that it promotes most are the same"
        return html.markup("<p>{}; {}.</p>", rebuilding, same) + html.columns(
            effect_table(tables[0], "Its own direction"),
            effect_table(tables[1], Markup("Rebuilt <small>(at length 1)</small>")),
        )

    def _related(self) -> Chart:
        width, state = self.state.width, self.state
        result = related_latents(
            self.meta, state.latent, base=self._bases[width], n_meta=N_GRAPH, n_members=N_GRAPH
        )
        nodes = result.nodes
        labels = [
            self._label(node.latent) if node.role == "meta-latent" else self._words(node.width, node.latent)
            for node in nodes.itertuples()
        ]
        return draw_related(replace(result, nodes=nodes.assign(label=labels)), state.off)

    def _charts(self) -> dict[str, Chart]:
        histogram = self._histogram()
        return {"related": self._related(), **({} if histogram is None else {"histogram": histogram})}

    def _identities(self) -> list[Identity]:
        return [self.meta.identity, *self.meta.bases]

    def _graph_of(self, *, as_image: bool) -> Markup:
        return self._related().html(as_image=as_image, stretch=STRETCH)

    def _words(self, width: int, latent: int) -> str:
        return SEPARATOR.join(word.strip() for word in self.evidence[width].words(latent)) or "dead"

    # ------------------------------------------------------------------ a meta-latent

    def _about(self, *, as_image: bool) -> Markup:
        meta_latent = self.state.meta_latent
        facts = self._facts.iloc[meta_latent]
        title = html.markup("<h3>Meta-latent {}: {}</h3>", meta_latent, self._label(meta_latent, 200))
        if facts["dead"]:
            dead = html.bold(f"Dead: active on none of the {len(self.meta.rows):,} latents.")
            return title + html.markup("<p>{}</p>", dead)
        activity = html.markup(
            "<p>Active on <b>{:,}</b> of {:,} latents (<b>{}</b>); mean {}, greatest <b>{}</b>.</p>",
            int(facts["n_latents"]),
            len(self.meta.rows),
            share(facts["share"]),
            number(facts["mean_activation"]),
            number(facts["max_activation"]),
        )
        effects = self._effects(self.meta.dictionary.W_dec[meta_latent][None])
        shown = effect_table(effects[0]) if effects else no_effects(self._no_effects)
        histogram = self._histogram()
        assert histogram is not None  # it is not dead
        drawn = html.markup("<h4>Activations on latents</h4>{}", histogram.html(as_image=as_image))
        return title + activity + html.columns(drawn, shown)

    def _histogram(self) -> Chart | None:
        """The meta-latent's activations; None if it is dead."""
        values = self.meta.members(self.state.meta_latent, len(self.meta.rows))["activation"].to_numpy()
        if not len(values):
            return None
        counts, edges = np.histogram(values, bins=24, range=(0, float(values.max())))
        return charts.histogram(counts, edges, label="activation on a latent", of="latent")

    def _members_table(self) -> Markup:
        rows = [
            (
                f"{row.width:,}",
                html.goto(row.width, row.latent, html.bold(row.latent)),
                f"{row.activation:.2f}",
                html.chips(self.evidence[row.width].words(row.latent)) or "dead",
            )
            for row in self.meta.members(self.state.meta_latent, N_MEMBERS).itertuples()
        ]
        header = ("width", "latent", "activation", "fires on")
        first = html.table(
            header, rows[:N_FIRST], numeric=(0, 1, 2), caption="Latents on which it is most active"
        )
        more = html.table(header, rows[N_FIRST:], numeric=(0, 1, 2))
        if not rows:
            return Markup()
        return first + html.details(f"{len(rows) - N_FIRST} more", more) if len(rows) > N_FIRST else first

    # ------------------------------------------------------------------ looking up

    def _own(self) -> pd.DataFrame:
        return self._of(self.state.width, self.state.latent)

    def _active(self, width: int, latent: int) -> list[int]:
        return self._of(width, latent)["meta_latent"].tolist()

    def _row(self, width: int, latent: int) -> int:
        """A latent's place among the rows of the meta-SAE."""
        return sum(self.meta.widths[: self._bases[width]]) + latent

    def _label(self, meta_latent: int, length: int = 90) -> str:
        """A meta-latent's label, in plain text."""
        text = self._words_of(meta_latent) if self.labels is None else self.labels.of(meta_latent)
        text = html.visible(text) if text else "dead"
        return text if len(text) <= length else f"{text[: length - 1]}…"

    def _name_by_words(self, meta_latent: int) -> str:
        members = self.meta.members(meta_latent, N_NAMING)
        words = (self.evidence[m.width].words(m.latent, 1) for m in members.itertuples())
        return SEPARATOR.join(dict.fromkeys(word for found in words for word in found))

    def _rebuild(self) -> Tensor:
        own, dictionary = self._own(), self.meta.dictionary
        own = own[~own["meta_latent"].isin(self.state.off)]
        activations = torch.tensor(own["activation"].to_numpy(), dtype=dictionary.W_dec.dtype)
        return activations @ dictionary.W_dec[own["meta_latent"].tolist()] + dictionary.b_dec

    def _effects(self, directions: Tensor) -> list[pd.DataFrame]:
        """Tokens that each direction promotes and suppresses; no tables off the residual stream."""
        if self._unembedding is None:
            return []
        logits = directions @ self._unembedding
        n = min(N_LOGITS, logits.shape[1])
        (top, top_ids), (bottom, bottom_ids) = largest(logits, n), largest(-logits, n)
        vocabulary = self.evidence[self.state.width].vocabulary
        table = LogitTable(self.meta.identity, top_ids, top, bottom_ids, -bottom, vocabulary)
        return [table.latent(place) for place in range(len(directions))]

    def _name(self, width: int, latent: int) -> str:
        label = self.evidence[width].label(latent)
        return label if len(self._bases) == 1 else f"width {width}   {label}"

    def _first(self, width: int) -> int:
        """The first latent that is not dead and has the most common number of meta-latents."""
        of_base = self.meta.decomposition.counts[self.meta.base == self._bases[width]]
        usual = int(of_base.mode().values)
        alive = self.evidence[width].alive
        return next((latent for latent in alive if of_base[latent] == usual), next(iter(alive), 0))

    def _nearest(self, old_width: int, latent: int, width: int) -> int:
        old, new = (self.meta.sources[self._bases[w]].W_dec for w in (old_width, width))
        return int((new @ old[latent]).argmax())

    # ------------------------------------------------------------------ actions

    def _switch(self, place: int, on: bool) -> None:
        if not self._rendering:
            meta_latent = self._active(self.state.width, self.state.latent)[place]
            off = set(self.state.off) - {meta_latent} if on else {*self.state.off, meta_latent}
            self._set("off", tuple(off))

    def _switch_all_on(self) -> None:
        self.state.off = ()

    def _any_latent(self) -> None:
        alive = self.evidence[self.state.width].alive
        if not alive:
            raise ValueError(f"All latents of width {self.state.width} are dead on these tokens.")
        self.state.latent = int(self._random.choice(alive))

    def _any_meta_latent(self) -> None:
        alive = np.flatnonzero(~self._facts["dead"])
        if not len(alive):
            raise ValueError(f"All meta-latents of {self.meta.name} are dead.")
        self.state.meta_latent = int(self._random.choice(alive))


def _no_effects(meta: MetaSAE) -> str:
    """The reason why the logit effects of these bases mean nothing, if there is one."""
    try:
        require_residual_stream(meta.sources[0])
    except ValueError as error:
        return str(error)
    return ""


def _neuronpedia(identifier: str | None, latent: int) -> Markup:
    """A link to the latent's public page; nothing if its dictionary has none."""
    if not identifier:
        return Markup()
    url = f"https://www.neuronpedia.org/{quote(identifier)}/{latent}"
    return html.markup('<p><a href="{}" target="_blank" rel="noreferrer">On Neuronpedia</a></p>', url)
