"""The workspace: all explorers of a family over one selection, with search, tables and a list of your own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import traitlets
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html, settings
from saekit.activations import ActivationStore
from saekit.analysis.novelty import insertion
from saekit.analysis.similarity import largest
from saekit.analysis.stitching.path import stitch
from saekit.cache import keeping
from saekit.charts.chart import Chart
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import write_bytes
from saekit.identity import Identity
from saekit.loading.neuronpedia import mixed_list_url
from saekit.widgets.atlas import Atlas, build_atlas
from saekit.widgets.base import Explorer, LatentState, as_trait_error
from saekit.widgets.latent_explorer import LatentExplorer
from saekit.widgets.meta_explorer import MetaExplorer
from saekit.widgets.novelty_explorer import NoveltyExplorer
from saekit.widgets.splitting_explorer import SplittingExplorer
from saekit.widgets.stitching_explorer import StitchingExplorer
from saekit.wording import counted, listed, number, share

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saekit.figures import Plot

ROWS = 25  # of a page of the table
FOUND = 16  # latents listed for a search
OWN_VIEWS = ("table", "side by side", "my list")
TITLES = {
    "latent": "latent",
    "label": "label",
    "density": "density",
    "max": "greatest",
    "status": "at next width",
    "children": "children",
    "smaller_cosine": "cosine, smaller",
    "larger_cosine": "cosine, larger",
    "seed_cosine": "cosine, other seed",
    "meta_latents": "meta-latents",
    "mse_change": "MSE change",
}  # columns of the table; those without a value for any latent are left out
TERM = re.compile(r"(\w+)(<=|>=|!=|==?|<|>)(.+)")


class WorkspaceState(LatentState):
    """A latent, the view that is open, and what is searched, filtered and compared.

    Parameters
    ----------
    atlas : Atlas
        The latents that exist.
    views : sequence of str
        The views that exist.
    width, latent : int
        The selection.
    follow : callable
        As for `LatentState`.
    check : callable
        `check(state, page)` raises an error if the table has no such page; `check(state, None)` if its
        filter or order does not exist.
    """

    order = ("width", "latent", "view", "second", "query", "filter", "sort", "descending", "page")
    view = traitlets.TraitType("latent")
    second = traitlets.TraitType(None, allow_none=True)
    query = traitlets.Unicode("")
    filter = traitlets.TraitType("")
    sort = traitlets.TraitType("latent")
    descending = traitlets.Bool(False)
    page = traitlets.TraitType(0)

    def __init__(
        self,
        atlas: Atlas,
        views: Sequence[str],
        width: int,
        latent: int,
        *,
        follow: Callable[[int, int, int], int],
        check: Callable[[int, str, str, int], None],
    ) -> None:
        self._atlas, self.views, self._check = atlas, list(views), check
        super().__init__(atlas.widths, width, latent, follow=follow)

    @traitlets.validate("view")
    def _known_view(self, proposal: Any) -> str:
        with as_trait_error():
            return settings.choice("view", proposal["value"], self.views)

    @traitlets.validate("second")
    def _known_second(self, proposal: Any) -> tuple[int, int] | None:
        if proposal["value"] is None:
            return None
        with as_trait_error():
            try:
                width, latent = proposal["value"]
            except (TypeError, ValueError) as error:
                message = f"second must be None or a pair (width, latent), found {proposal['value']!r}."
                raise ValueError(message) from error
            return self._atlas.select(width, latent)

    @traitlets.validate("filter", "sort", "page")
    def _known_rows(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        asked = {"filter": self.filter, "sort": self.sort, "page": 0, name: value}
        with as_trait_error():
            self._check(self.width, asked["filter"], asked["sort"], asked["page"])
        return value

    @traitlets.observe("width", "filter", "sort", "descending")
    def _rows_changed(self, _change: Any) -> None:
        self.page = 0


class Workspace(Explorer):
    """Look at the latents of a family in every way that there is, over one selection.

    A click on a latent, anywhere, opens it in all views. Keys, while the focus is inside: `j` and `k` (or the
    right and left arrow) step through the latents, `b` and `f` go back and forward, `/` starts a search and
    Enter opens the first latent found.

    Parameters
    ----------
    atlas : Atlas
        From `saekit.build_atlas`; `saekit.explore` makes both.
    explorers : mapping of str to Explorer, optional
        Further explorers of results on this family, by the name of their view.
    width, latent : int, optional
        Where to start; the first latent of the smallest width that is not dead if left out.

    Attributes
    ----------
    state : traitlets.HasTraits
        `width` and `latent`; `view` (`"latent"`, `"table"`, `"side by side"`, `"my list"`, and one per
        explorer: `"splitting"`, `"novelty"`, `"stitching"`, `"meta"` where the atlas has their results);
        `second`, the latent beside it, as `(width, latent)` (None: the most similar one at another width);
        `query`, what is searched; `filter`, `sort`, `descending` and `page` of the table. A filter has terms
        such as `density>0.01`, `status=split` or words of the label, all of which a latent must meet.
    explorers : dict of str to Explorer
        The explorers, by view.
    pins : DataFrame
        The list: `width`, `latent`, `label`, `note`.

    Raises
    ------
    TypeError
        If the atlas or a further explorer is something else.
    ValueError
        If a further explorer has the name of a view that there is already.

    Examples
    --------
    >>> from saekit.widgets import Workspace
    >>> atlas = saekit.build_atlas(saes, harvested, model, keep=False, progress=False)
    >>> workspace = Workspace(atlas)
    >>> workspace.show(width=32, latent=3, view="table", filter="dead=no", sort="density", descending=True)
    >>> workspace.frame.columns.tolist()[:3]
    ['width', 'latent', 'label']
    >>> workspace.pin(note="look again")
    >>> workspace.pins[["width", "latent", "note"]]
       width  latent        note
    0     32       3  look again
    """

    def __init__(
        self,
        atlas: Atlas,
        *,
        explorers: Mapping[str, Explorer] | None = None,
        width: int | None = None,
        latent: int | None = None,
    ) -> None:
        if not isinstance(atlas, Atlas):
            raise TypeError(f"atlas must be an Atlas (saekit.build_atlas), found {type(atlas).__name__}.")
        self.atlas = self._atlas = atlas
        self.explorers = _explorers_of(atlas)
        for explorer in self.explorers.values():
            explorer._atlas = atlas
        for name, explorer in _by_name(explorers).items():
            if name in self.explorers or name in OWN_VIEWS:
                raise ValueError(f"There is a view {name!r} already: give the explorer another name.")
            self.explorers[name] = explorer
        for explorer in self.explorers.values():
            explorer.close()  # what it shows from now on is a part of this
            explorer._leader = self
        self._visited: dict[str, tuple[int, int]] = {}  # the latent that each view was given last
        self._pins: dict[tuple[int, int], str] = {}
        self._rows: tuple[Any, pd.DataFrame] = (None, pd.DataFrame())  # of the table, for its last settings
        self._places: list[dict[str, Any]] = []  # where one has been
        self._place = -1
        width = atlas.widths[0] if width is None else atlas.select(width, 0)[0]
        if latent is None:
            latent = next(iter(atlas.evidence[width].alive), 0)
        first, *more = self.explorers
        views = [first, *OWN_VIEWS[:2], *more, OWN_VIEWS[2]]
        super().__init__(
            WorkspaceState(atlas, views, width, latent, follow=self._nearest, check=self._check_rows)
        )
        self._changed()

    # ------------------------------------------------------------------ widgets

    def _build(self) -> list[widgets.Widget]:
        row = {"flex_flow": "row wrap", "align_items": "center"}
        self._back = self._button("← Back", "Where you were before (key b)", self.back)
        self._forth = self._button("Forward →", "Where you went back from (key f)", self.forward)
        self._search = widgets.Text(
            description="Search",
            placeholder="words, tokens, or a number",
            tooltip="Search labels and tokens of all widths (key /); Enter opens the first latent found",
            layout={"width": "340px"},
        )
        self._search.add_class("saekit-search")
        self._bind(self._search, "query")
        self._pin = self._button("Pin", "Add this latent to my list, or take it off", self._toggle_pin)
        bar = [self._back, self._forth, *self._latent_controls(self.atlas.widths), self._search, self._pin]
        self._tabs = widgets.ToggleButtons(
            options=[(view.capitalize(), view) for view in self.state.views],
            tooltips=[f"View: {view}" for view in self.state.views],
            style={"button_width": "auto"},
        )
        self._bind(self._tabs, "view")
        self._results, self._head = self._panel(), self._panel()
        self._searched = ""  # what is shown already
        self._listed_last: tuple[Any, ...] | None = None

        self._boxes = {name: widgets.VBox() for name in self.explorers}
        self._boxes["table"] = widgets.VBox(self._build_table())
        self._boxes["side by side"] = widgets.VBox(self._build_comparison())
        self._boxes["my list"] = widgets.VBox(self._build_list())
        return [
            widgets.HBox(bar, layout=row),
            self._results,
            self._tabs,
            self._head,
            *self._boxes.values(),
        ]

    def _build_table(self) -> list[widgets.Widget]:
        row = {"flex_flow": "row wrap", "align_items": "center"}
        self._filter = widgets.Text(
            description="Filter",
            placeholder="such as density>0.01 dead=no king",
            tooltip="Words of the label, or a column, a comparison and a value; a latent must meet all",
            continuous_update=False,
            layout={"width": "340px"},
        )
        self._sort = widgets.Dropdown(description="Sort by", layout={"width": "260px"})
        self._descending = widgets.Checkbox(
            description="Greatest first", indent=False, layout={"width": "140px"}
        )
        self._bind(self._filter, "filter")
        self._bind(self._sort, "sort")
        self._bind(self._descending, "descending")
        self._page = widgets.BoundedIntText(
            description="Page", min=1, tooltip="Page of the table", layout={"width": "160px"}
        )
        self._page.observe(lambda change: self._set("page", change["new"] - 1), "value")
        turn = [
            self._button("← Page", "The page before", lambda: self._turn(-1)),
            self._button("Page →", "The next page", lambda: self._turn(1)),
        ]
        self._table = self._panel()
        return [
            widgets.HBox([self._filter, self._sort, self._descending], layout=row),
            widgets.HBox([self._page, *turn], layout=row),
            self._table,
        ]

    def _build_comparison(self) -> list[widgets.Widget]:
        self._other_width = widgets.Dropdown(
            description="Beside",
            options=self.atlas.widths,
            tooltip="Width of the second latent",
            layout={"width": "170px"},
        )
        self._other = widgets.BoundedIntText(
            description="Latent",
            max=1,
            tooltip="Number of the second latent",
            layout={"width": "170px"},
        )
        self._other_width.observe(lambda change: self._set_second(width=change["new"]), "value")
        self._other.observe(lambda change: self._set_second(latent=change["new"]), "value")
        buttons = [
            self._button("Swap", "Exchange the two", self._swap),
            self._button("Most similar", "The most similar latent at another width", self._automatic),
        ]
        self._sides = self._panel()
        row = widgets.HBox([self._other_width, self._other, *buttons], layout={"flex_flow": "row wrap"})
        return [row, self._sides]

    def _build_list(self) -> list[widgets.Widget]:
        self._note = widgets.Text(
            description="Note",
            placeholder="on the latent that is open",
            continuous_update=False,
            layout={"width": "420px"},
        )
        self._note.observe(lambda change: self._write_note(change["new"]), "value")
        self._list_shown = self._panel()
        return [self._note, self._list_shown]

    def _render(self) -> None:
        state = self.state
        self._show_latent()
        self._search.value, self._tabs.value = state.query, state.view
        self._back.disabled, self._forth.disabled = self._place <= 0, self._place >= len(self._places) - 1
        self._pin.description = "Unpin" if state_latent(state) in self._pins else "Pin"
        for view, box in self._boxes.items():
            box.layout.display = None if view == state.view else "none"
        if state.query != self._searched:
            self._results.value = html.panel(self._found()) if state.query.strip() else ""
            self._searched = state.query
        self._synchronise()
        self._head.value = html.panel(self._heading())
        if state.view in self.explorers:
            if not self._boxes[state.view].children:
                self._boxes[state.view].children = (self.explorers[state.view].view,)
        elif state.view == "table":
            self._sort.options = [(TITLES[name], name) for name in self._columns()]
            self._sort.value, self._filter.value = self._sorted_by(), state.filter
            self._descending.value = state.descending
            self._page.max = self._n_pages()
            self._page.value = state.page + 1
            self._table.value = html.panel(self._page_of_table())
        elif state.view == "side by side":
            width, latent = self._second()
            self._other_width.value, self._other.max = width, width - 1
            self._other.value = latent
            self._sides.value = html.panel(self._comparison(as_image=False))
        else:
            self._note.value = self._pins.get(state_latent(state), "")
            pinned = tuple(self._pins.items())
            if pinned != self._listed_last:
                self._list_shown.value = html.panel(self._listed(links=True))
                self._listed_last = pinned

    def _parts(self) -> list[Markup]:
        view = self.state.view
        if view in self.explorers:
            return [self._heading(), *self.explorers[view]._parts()]
        shown = {
            "table": self._page_of_table,
            "side by side": lambda: self._comparison(as_image=True),
            "my list": lambda: self._listed(links=False),
        }[view]
        found = self._found() if self.state.query.strip() else Markup()
        return [self._heading(), found, shown()]

    def _synchronise(self) -> None:
        """Give the selection to the explorer of the view, once: its own state may then move on."""
        if self.state.view not in self.explorers:
            return
        explorer, here = self.explorers[self.state.view], state_latent(self.state)
        if self._visited.get(self.state.view) != here and explorer._can_visit(*here):
            with self._quiet():
                explorer._visit(*here)
        self._visited[self.state.view] = here

    # ------------------------------------------------------------------ one selection

    def follow(self, explorer: Explorer) -> None:
        """Take over the selection of an explorer that is a part of this."""
        if self._rendering:
            return
        selected = explorer.selected
        if selected is not None and selected[0] in self.atlas.evidence:
            if self.explorers.get(self.state.view) is explorer:
                self._visited[self.state.view] = selected
            self.show(width=selected[0], latent=selected[1])
        self._changed()

    def _nearest(self, old_width: int, latent: int, width: int) -> int:
        row = self.atlas.family[old_width].W_dec[latent]
        return int(largest((self.atlas.family[width].W_dec @ row)[None], 1)[1])

    def _can_visit(self, width: int, latent: int) -> bool:
        self.atlas.select(width, latent)
        return True

    def _changed(self, _change: Any = None) -> None:
        if not self._rendering:
            self._record()
            if self._view is None:
                self._synchronise()
        super()._changed(_change)

    def _received(self, message: Mapping[str, Any]) -> None:
        if message.get("key") == "first":
            self._act(lambda: self._open_first(message["query"]))
        else:
            super()._received(message)

    def _open_first(self, query: str) -> None:
        found, place = self.atlas.search(query, 1), {}
        if len(found):
            place = {"width": int(found["width"].iat[0]), "latent": int(found["latent"].iat[0])}
        self.show(query=query, **place)

    def code(self) -> str:
        """A line of Python that restores the current selection."""
        inner = self.explorers.get(self.state.view)
        more = "" if inner is None else f"; explorer.explorers[{self.state.view!r}]"
        return super().code() + ("" if inner is None else more + inner.code().removeprefix("explorer"))

    # ------------------------------------------------------------------ back and forward

    def _record(self) -> None:
        state = self.state
        place = {name: getattr(state, name) for name in ("width", "latent", "view", "second")}
        if self._place < 0 or place != self._places[self._place]:
            del self._places[self._place + 1 :]
            self._places.append(place)
            self._place += 1

    def back(self) -> None:
        """Go back to where you were before."""
        self._travel(-1)

    def forward(self) -> None:
        """Go to where you went back from."""
        self._travel(1)

    def _travel(self, by: int) -> None:
        place = self._place + by
        if 0 <= place < len(self._places):
            self._place = place
            self.show(**self._places[place])

    # ------------------------------------------------------------------ searching

    def _found(self) -> Markup:
        query, found = html.bold(html.cut(self.state.query)), self.atlas.search(self.state.query, FOUND + 1)
        if not len(found):
            return html.markup("<p>No latent has a label or a token with {}.</p>", query)
        rows = [
            html.markup(
                '<li title="{}">{} {}</li>',
                f"found in: {row.where}",
                html.goto(row.width, row.latent, f"{row.width:,}/{row.latent}"),
                html.cut(row.label, 40),
            )
            for row in found.head(FOUND).itertuples()
        ]
        n = f"the {FOUND} best" if len(found) > FOUND else counted(len(found), "latent")
        return html.markup('<p>Found for {} ({}):</p><ul class="found">{}</ul>', query, n, html.join(rows))

    # ------------------------------------------------------------------ the table

    def _columns(self, width: int | None = None) -> list[str]:
        """Columns of the table of a width that hold anything."""
        table = self.atlas.table(self.state.width if width is None else width)
        empty = {name for name in TITLES if name not in table or table[name].isna().all()}
        if (table["status"].isin(["", "leaf"])).all():
            empty |= {"status", "children"}
        return [name for name in TITLES if name not in empty]

    def _check_rows(self, width: int, terms: Any, column: Any, page: Any) -> None:
        if not isinstance(terms, str):
            raise TypeError(f"filter must be text, found {type(terms).__name__}.")
        settings.choice("sort", column, TITLES)
        kept = self._kept(width, terms)
        last = max(0, (int(kept.sum()) - 1) // ROWS)
        settings.whole("page", page, at_least=0, at_most=last)

    def _kept(self, width: int, terms: str) -> np.ndarray:
        """Which latents of a width meet every term of a filter."""
        table = self.atlas.table(width)
        kept = np.ones(len(table), dtype=bool)
        for term in terms.split():
            comparison = TERM.fullmatch(term)
            if comparison is None:
                kept &= _in_label(self.atlas, width, term)
                continue
            name, how, value = comparison.groups()
            kept &= _compare(table, name, how, value)
        return kept

    @property
    def rows(self) -> pd.DataFrame:
        """All rows of the table, filtered and sorted, on whatever page."""
        state = self.state
        column = self._sorted_by()
        key = state.width, state.filter, column, state.descending
        if self._rows[0] != key:
            table = self.atlas.table(state.width)[self._kept(state.width, state.filter)]
            ordered = table.sort_values(
                column,
                ascending=not state.descending,
                kind="stable",
                key=(lambda text: text.str.casefold()) if column == "label" else None,
            )
            self._rows = key, ordered
        return self._rows[1]

    def _sorted_by(self) -> str:
        """The column that orders the table: the one asked for, where this width has it."""
        return self.state.sort if self.state.sort in self._columns() else "latent"

    def _n_pages(self) -> int:
        return max(1, -(-len(self.rows) // ROWS))

    def _turn(self, by: int) -> None:
        self.state.page = min(max(self.state.page + by, 0), self._n_pages() - 1)

    def _sort_by(self, column: str) -> None:
        state = self.state
        descending = not state.descending if column == state.sort else column not in ("latent", "label")
        self.show(view="table", sort=column, descending=descending)

    def _page_of_table(self) -> Markup:
        state, rows, columns = self.state, self.rows, self._columns()
        first = state.page * ROWS
        sorted_by = self._sorted_by()
        arrow = {True: " ↓", False: " ↑"}[state.descending]
        header = [
            html.markup('<span data-sort="{}">{}{}</span>', name, TITLES[name], arrow * (name == sorted_by))
            for name in columns
        ]
        cells = [
            [self._cell(row, name) for name in columns]
            for _, row in rows.iloc[first : first + ROWS].iterrows()
        ]
        caption = html.markup(
            "{} of {:,} latents of width {:,} {}",
            f"{len(rows):,}",
            state.width,
            state.width,
            html.small(f"(page {state.page + 1:,} of {self._n_pages():,})"),
        )
        numeric = [place for place, name in enumerate(columns) if name not in ("label", "status")]
        return html.table(header, cells, numeric=numeric, caption=caption)

    def _cell(self, row: pd.Series, name: str) -> str | Markup:
        value = row[name]
        if name == "latent":
            return html.goto(row["width"], value, html.bold(value))
        if name in ("label", "status"):
            return html.cut(str(value))
        if name == "density":
            return share(value)
        if name in ("children", "meta_latents"):
            return f"{value:,}"
        if name in ("smaller_cosine", "larger_cosine") and value == value:
            place = self.atlas.widths.index(row["width"]) + (1 if name == "larger_cosine" else -1)
            return html.goto(self.atlas.widths[place], row[name.replace("cosine", "match")], f"{value:.2f}")
        return number(value)

    # ------------------------------------------------------------------ side by side

    def _second(self) -> tuple[int, int]:
        """The latent beside the one that is open."""
        state = self.state
        if state.second is not None:
            return state.second
        widths = self.atlas.widths
        if len(widths) > 1:
            place = widths.index(state.width)
            width = widths[place + 1] if place + 1 < len(widths) else widths[place - 1]
            return width, self._nearest(state.width, state.latent, width)
        directions = self.atlas.family[state.width].W_dec
        cosines = directions @ directions[state.latent]
        cosines[state.latent] = -1
        return state.width, int(cosines.argmax())

    def _set_second(self, width: int | None = None, latent: int | None = None) -> None:
        if not self._rendering:
            old_width, old = self._second()
            if width is None:
                width, latent = old_width, old if latent is None else latent
            else:
                latent = self._nearest(old_width, old, width)
            self._set("second", (width, latent))

    def _swap(self) -> None:
        width, latent = self._second()
        self.show(second=state_latent(self.state), width=width, latent=latent)

    def _automatic(self) -> None:
        self.state.second = None

    def _comparison(self, *, as_image: bool) -> Markup:
        first, second = state_latent(self.state), self._second()
        a, b = (self.atlas.family[width].W_dec[latent] for width, latent in (first, second))
        positions = [self.atlas.evidence[w].activations.entries(i)[0].numpy() for w, i in (first, second)]
        both = len(np.intersect1d(positions[0], positions[1], assume_unique=True))
        shares = [share(both / len(found)) if len(found) else "none" for found in positions]
        about = html.markup(
            "<p>Cosine {}. Both are active on {}: {} of those of the first, {} of those of the second.</p>",
            html.bold(f"{float(a @ b):.2f}"),
            counted(both, "token"),
            *shares,
        )
        sides = html.markup(
            '<div class="beside"><section>{}</section><section>{}</section></div>',
            *(self._side(*one, as_image=as_image) for one in (first, second)),
        )
        return about + sides + self._dictionaries(sorted({first[0], second[0]}))

    def _side(self, width: int, latent: int, *, as_image: bool) -> Markup:
        evidence = self.atlas.evidence[width]
        return html.join(
            [
                html.markup(
                    "<h4>{}: {}</h4>",
                    html.goto(width, latent, f"{width:,}/{latent}"),
                    html.cut(self.atlas.label(width, latent)),
                ),
                evidence.card(latent, 5),
                evidence.histogram(latent, as_image=as_image),
                evidence.tokens_table(latent),
                evidence.logits_table(latent),
            ]
        )

    def _dictionaries(self, widths: Sequence[int]) -> Markup:
        """The dictionaries of both latents, beside each other."""
        tables = [self.atlas.table(width) for width in widths]

        def across(name: str, value: Callable[[pd.DataFrame], str]) -> tuple[str, ...]:
            return (name, *map(value, tables))

        rows = [
            across("latents", lambda table: f"{len(table):,}"),
            across("dead", lambda table: share(table["dead"].mean())),
            across("active per token", lambda table: number(table["density"].sum())),
            across("median density", lambda table: share(table["density"].median())),
            across("median cosine, smaller width", lambda table: number(table["smaller_cosine"].median())),
            across("median cosine, larger width", lambda table: number(table["larger_cosine"].median())),
            across("median cosine, other seed", lambda table: number(table["seed_cosine"].median())),
            across("split at the next width", lambda table: share((table["status"] == "split").mean())),
            across("novel at this width", lambda table: share(table["novel"].mean())),
        ]
        names = [self.atlas.family[width].name for width in widths]
        numeric = range(1, len(widths) + 1)
        return html.table(("", *names), rows, numeric=numeric, caption="Their dictionaries")

    # ------------------------------------------------------------------ a list of one's own

    @property
    def pins(self) -> pd.DataFrame:
        """The list, in the order of pinning: `width`, `latent`, `label`, `note`."""
        rows = [(*one, self.atlas.label(*one), note) for one, note in self._pins.items()]
        return pd.DataFrame(rows, columns=["width", "latent", "label", "note"])

    def pin(self, width: int | None = None, latent: int | None = None, *, note: str = "") -> None:
        """Add a latent to the list (the one that is open if left out), or give it another note."""
        if not isinstance(note, str):
            raise TypeError(f"note must be text, found {type(note).__name__}.")
        self._pins[self._or_selected(width, latent)] = note
        self._again()

    def unpin(self, width: int | None = None, latent: int | None = None) -> None:
        """Take a latent (the one that is open if left out) off the list.

        Raises
        ------
        KeyError
            If it is not on the list.
        """
        one = self._or_selected(width, latent)
        if one not in self._pins:
            raise KeyError(f"{one[0]}/{one[1]} is not on the list.")
        del self._pins[one]
        self._again()

    def _or_selected(self, width: int | None, latent: int | None) -> tuple[int, int]:
        if (width is None) != (latent is None):
            raise TypeError("Give both width and latent, or neither.")
        if width is None or latent is None:
            return state_latent(self.state)
        return self.atlas.select(width, latent)

    def save_pins(self, path: str | Path) -> Path:
        """Write the list to a file: `.csv` or `.json`, with the hash of each latent's dictionary.

        Raises
        ------
        ValueError
            If the name of the file ends in neither.
        """
        path = Path(path)
        form = settings.choice("The ending of the file", path.suffix, (".csv", ".json"))
        write_bytes(path, self._exported()[form].encode())
        return path

    def _exported(self) -> dict[str, str]:
        """The list as the text of a file, by ending."""
        pins = self.pins
        hashes = [self.atlas.family[width].identity.hash for width in pins["width"]]
        pins = pins.assign(dictionary=hashes)
        return {
            ".csv": pins.to_csv(index=False, lineterminator="\n"),
            ".json": pins.to_json(orient="records", indent=1, force_ascii=False) + "\n",
        }

    def quick_list(self, name: str = "saekit") -> str:
        """Address of the list at Neuronpedia.

        Raises
        ------
        ValueError
            If the list is empty, holds more latents than Neuronpedia lists, or a dictionary has no
            `neuronpedia_id`.
        """
        pins = [(self.atlas.family[width], latent) for width, latent in self._pins]
        return mixed_list_url(pins, name=name)

    def _toggle_pin(self) -> None:
        if state_latent(self.state) in self._pins:
            self.unpin()
        else:
            self.pin()

    def _write_note(self, note: str) -> None:
        if not self._rendering and (note or state_latent(self.state) in self._pins):
            self._act(lambda: self.pin(note=note))

    def _again(self) -> None:
        """Show the list as it is now, which is no part of the state."""
        self._shown = ""
        self._changed()

    def _listed(self, *, links: bool) -> Markup:
        rows = [
            (html.goto(row.width, row.latent, f"{row.width:,}/{row.latent}"), html.cut(row.label), row.note)
            for row in self.pins.itertuples()
        ]
        if not rows:
            return Markup("<p>No latents yet: “Pin” adds the one that is open.</p>")
        shown = html.table(("latent", "label", "note"), rows, caption=counted(len(rows), "latent"))
        if not links:
            return shown
        files = [
            html.markup(
                '<a download="latents{}" href="data:{};charset=utf-8,{}">{}</a>',
                ending,
                "text/csv" if ending == ".csv" else "application/json",
                quote(text),
                ending.removeprefix(".").upper(),
            )
            for ending, text in self._exported().items()
        ]
        if all(self.atlas.family[width].info.get("neuronpedia_id") for width, _ in self._pins):
            link = '<a href="{}" target="_blank" rel="noreferrer">list at Neuronpedia</a>'
            files.append(html.markup(link, self.quick_list()))
        return shown + html.markup("<p>Take it along: {}</p>", html.join(files, " · "))

    # ------------------------------------------------------------------ pieces

    def _heading(self) -> Markup:
        """The latent that is open, unless the explorer of the view shows it."""
        width, latent = state_latent(self.state)
        explorer = self.explorers.get(self.state.view)
        label = html.cut(self.atlas.label(width, latent))
        if explorer is not None and explorer.selected == (width, latent):
            return Markup()
        title = html.markup("<h3>{:,}/{} · {}</h3>", width, latent, label)
        if explorer is None or explorer.selected is None:
            return title
        return title + html.markup("<p>{}</p>", html.small("This view has no latents of that width."))

    @property
    def frame(self) -> pd.DataFrame:
        """The numbers on the screen: the filtered table, both latents, the list, or those of the explorer."""
        if self.state.view in self.explorers:
            return self.explorers[self.state.view].frame
        if self.state.view == "my list":
            return self.pins
        if self.state.view == "table":
            return self.rows.reset_index(drop=True)
        both = state_latent(self.state), self._second()
        rows = [self.atlas.table(width).iloc[[latent]] for width, latent in both]
        return pd.concat(rows, ignore_index=True)

    def _charts(self) -> dict[str, Chart]:
        if self.state.view in self.explorers:
            return self.explorers[self.state.view]._charts()
        if self.state.view != "side by side":
            return {}
        found = {}
        for width, latent in (state_latent(self.state), self._second()):
            chart = self.atlas.evidence[width].chart(latent)
            if chart is not None:
                name = f"latent {latent} of {self.atlas.family[width].name}"
                caption = f"Activations where it is active: {name}. {chart.alt}"
                found[f"{width}/{latent}"] = replace(chart, caption=caption)
        return found

    def figure(self, *names: str) -> Plot:
        """The pictures on the screen, with the selection and the inputs of the explorer that draws them.

        See `Explorer.figure`.

        Raises
        ------
        ValueError
            If there is no picture of the selection, or none of such a name.
        """
        inner = self.explorers.get(self.state.view)
        if inner is not None:
            return inner.figure(*names)
        if self.state.view != "side by side":
            having = listed(
                repr(view) for view in self.state.views if view in (*self.explorers, "side by side")
            )
            raise ValueError(
                f"There is no picture of this selection: {self.code()}. The views {having} have pictures."
            )
        return super().figure(*names)

    def _described_selection(self) -> Mapping[str, Any]:
        """Of two latents side by side, the only picture of its own."""
        return {"width": self.state.width, "latent": self.state.latent, "second": self._second()}

    def _identities(self) -> Sequence[Identity]:
        widths = sorted({self.state.width, self._second()[0]})  # those of the latents side by side
        return [self.atlas.family[width].identity for width in widths]

    def close(self) -> None:
        """Close every widget; the workspace itself remains, and can be displayed again."""
        for explorer in self.explorers.values():
            explorer.close()
        super().close()


def state_latent(state: LatentState) -> tuple[int, int]:
    """Width and latent of a state."""
    return state.width, state.latent


def _explorers_of(atlas: Atlas) -> dict[str, Explorer]:
    """The explorers of what an atlas holds, by view."""
    found: dict[str, Explorer] = {"latent": LatentExplorer(atlas.family, atlas.evidence, atlas=atlas)}
    if atlas.tree is not None:
        found["splitting"] = SplittingExplorer(atlas.tree, atlas.evidence)
    if atlas.insertion is not None:
        small, large = (atlas.evidence[of.width] for of in (atlas.insertion.small, atlas.insertion.large))
        found["novelty"] = NoveltyExplorer(atlas.insertion, large, small_evidence=small)
    if atlas.stitching is not None:
        small, large = (atlas.evidence[of.width] for of in (atlas.stitching.small, atlas.stitching.large))
        found["stitching"] = StitchingExplorer(atlas.stitching, small, large)
    if atlas.meta is not None and atlas.model is not None:
        from saekit.models import unembedding

        found["meta"] = MetaExplorer(
            atlas.meta, atlas.evidence, unembedding(atlas.model), labels=atlas.meta_labels
        )
    return found


def _by_name(explorers: Any) -> Mapping[str, Explorer]:
    """Further explorers, each with the name of its view."""
    found = {} if explorers is None else explorers
    if not isinstance(found, Mapping) or not all(isinstance(one, Explorer) for one in found.values()):
        raise TypeError(
            f"explorers must be a dict of explorers by the names of their views, found {found!r}."
        )
    return found


def _in_label(atlas: Atlas, width: int, word: str) -> np.ndarray:
    labels: pd.Series = atlas.table(width)["label"]
    found: np.ndarray = labels.str.contains(word, case=False, regex=False).to_numpy(dtype=bool)
    return found


def _compare(table: pd.DataFrame, name: str, how: str, value: str) -> np.ndarray:
    """Which rows meet a comparison such as `density>0.01`."""
    if name not in table:
        raise ValueError(f"A filter compares one of {listed(table.columns)}, found {name!r}.")
    column = table[name]
    if column.dtype == bool:
        yes = settings.choice(f"{name} in a filter", value.casefold(), ("yes", "no")) == "yes"
        wanted: Any = yes
    elif pd.api.types.is_numeric_dtype(column):
        try:
            wanted = float(value)
        except ValueError:
            wanted = np.nan
        if wanted != wanted:
            raise ValueError(f"A filter compares {name} with a number, found {value!r}.")
    else:
        column, wanted = column.str.casefold(), value.casefold()
    if how in ("=", "==", "!="):
        found = column != wanted if how == "!=" else column == wanted
    else:
        found = {"<": column.lt, "<=": column.le, ">": column.gt, ">=": column.ge}[how](wanted)
    return found.to_numpy(dtype=bool)


def explore(
    family: Family,
    activations: ActivationStore,
    model: TransformerBridge | None = None,
    *,
    pair: tuple[int, int] | None = None,
    explorers: Mapping[str, Explorer] | None = None,
    **given: Any,
) -> Workspace:
    """Open a family in a workspace: every latent, search, tables and all explorers, in one call.

    The first call computes what is shown and keeps it by content; later ones read it. Novelty and stitching
    are computed between one pair of widths unless their results are given; a meta-SAE, which would have to be
    trained, is shown where one is given.

    Parameters
    ----------
    family : Family
        Of any kind, over one width or several, with or without further seeds; transcoders too.
    activations : ActivationStore
        Activations with their tokens, of the same model and hook point.
    model : TransformerBridge, optional
        Its unembedding gives the tokens that latents promote, and its tokenizer the display strings.
    pair : tuple of int, optional
        The small and the large width of novelty and stitching; the two smallest widths if left out.
        Neither is computed where latents depend on each other (TopK) or on the row.
    explorers : mapping of str to Explorer, optional
        Further explorers of results on this family, by the name of their view.
    **given
        Results to show (`tree`, `meta`, `insertion`, `stitching`, `labels`) and settings, see
        `saekit.build_atlas`.

    Raises
    ------
    TypeError, ValueError
        As `saekit.build_atlas`, and if the pair is not of two widths of the family, the smaller one first.

    Examples
    --------
    >>> workspace = saekit.explore(saes, harvested, model, keep=False, progress=False)
    >>> workspace.show(width=32, latent=5, view="novelty")
    >>> workspace.explorers["novelty"].selected
    (32, 5)
    """
    pair = _pair(family, pair)
    atlas = build_atlas(family, activations, model, **given)
    small, large = (None, None) if pair is None else (atlas.dictionary(width) for width in pair)
    if small is not None and large is not None and _independent(small) and _independent(large):
        how = {name: given[name] for name in ("progress", "allow_mismatch") if name in given}
        compared: dict[str, Any] = {}
        with keeping(given.get("keep", True)):
            if atlas.insertion is None:
                compared["insertion"] = insertion(small, large, activations, **{"progress": True, **how})
            if atlas.stitching is None:
                compared["stitching"] = stitch(small, large, activations, **{"progress": True, **how})
        atlas = replace(atlas, _tables={}, **compared)
    return Workspace(atlas, explorers=explorers)


def _pair(family: Family, pair: tuple[int, int] | None) -> tuple[int, int] | None:
    """The two widths to compare, checked before any work; None in a family of one."""
    if not isinstance(family, Family):
        return None  # build_atlas refuses it
    widths = family.widths
    if pair is None:
        return (widths[0], widths[1]) if len(widths) > 1 else None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or pair[0] >= pair[1]:
        raise ValueError(f"pair must be two widths, the smaller one first, found {pair!r}.")
    for width in pair:
        if width not in widths:
            raise ValueError(f"The family has widths {listed(widths)}, found {width!r} in pair.")
    return pair[0], pair[1]


def _independent(dictionary: Dictionary) -> bool:
    """Whether latents can be moved one by one (`Dictionary.require_independent`)."""
    return dictionary.k is None and dictionary.normalization is None
