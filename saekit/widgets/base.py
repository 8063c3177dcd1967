"""The base of the explorers: a state, its widgets, their life cycle in a notebook, and visible errors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from weakref import WeakSet

import pandas as pd
import traitlets
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html, settings
from saekit.charts.chart import Chart, stacked
from saekit.files import write_bytes
from saekit.identity import Identity
from saekit.selection import select_latent
from saekit.widgets.bridge import Bridge
from saekit.wording import listed

if TYPE_CHECKING:
    from saekit.activations import ActivationStore
    from saekit.figures import Plot
    from saekit.widgets.atlas import Atlas
    from saekit.widgets.evidence import Evidence


def guard(method: Callable[..., None]) -> Callable[..., None]:
    """Make a callback of an `Explorer` show its error in the status line.

    Front ends do not show errors in callbacks, so without this they would go unnoticed. With
    `SAEKIT_STRICT=1` the error is raised as well.
    """

    @functools.wraps(method)
    def guarded(self: Explorer, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception as error:
            self._alert.value = html.alert(f"{type(error).__name__}: {error}")
            if os.environ.get("SAEKIT_STRICT") == "1":
                raise

    return guarded


class State(traitlets.HasTraits):
    """A selection. `order` names its traits: a trait that follows another comes after it."""

    order: ClassVar[tuple[str, ...]] = ()


@contextmanager
def as_trait_error() -> Iterator[None]:
    """Turn the errors of `saekit.settings` and `saekit.selection` into those of a state."""
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        raise traitlets.TraitError(str(error)) from error


class LatentState(State):
    """A latent of one of several widths.

    Parameters
    ----------
    widths : sequence of int
        The widths that exist.
    width, latent : int
        The selection.
    follow : callable
        `follow(old_width, latent, width)` returns the latent to show when the width changes.
    """

    order: ClassVar[tuple[str, ...]] = ("width", "latent")
    width = traitlets.TraitType(0)
    latent = traitlets.TraitType(0)

    def __init__(
        self, widths: Sequence[int], width: int, latent: int, *, follow: Callable[[int, int, int], int]
    ) -> None:
        super().__init__()
        self.widths, self._follow = list(widths), follow
        self.width, self.latent = width, latent

    @traitlets.validate("width")
    def _known_width(self, proposal: Any) -> int:
        with as_trait_error():
            width = settings.whole("width", proposal["value"])
        if width not in self.widths:
            raise traitlets.TraitError(f"width must be one of {listed(self.widths)}, found {width}.")
        return width

    @traitlets.validate("latent")
    def _known_latent(self, proposal: Any) -> int:
        with as_trait_error():
            return select_latent(proposal["value"], self.width)

    @traitlets.observe("width")
    def _width_changed(self, change: Any) -> None:
        if change["old"]:
            self.latent = self._follow(change["old"], self.latent, change["new"])


class Leader(Protocol):
    """An explorer that others are a part of."""

    def goto(self, width: int, latent: int) -> None:
        """Go to a latent."""

    def follow(self, explorer: Explorer) -> None:
        """Take over the selection of one of them, which has changed."""


class Explorer:
    """A state and, from the first display on, the widgets that show it.

    Subclasses make all their widgets once, in `_build`; a change of the state updates their
    values in place (`_render`). A control does nothing but set the state.

    An explorer that is not displayed has no widgets and is freed like any other object. One that is
    displayed lives until its last cell runs again: its widgets are then closed, and IPython's history
    of outputs no longer holds it.

    Attributes
    ----------
    state : traitlets.HasTraits
        The selection; readable, and settable by assignment. A value that does not exist raises
        `traitlets.TraitError`.
    """

    _leader: Leader | None = None  # the explorer that it is a part of
    _atlas: Atlas | None = None  # that its results and evidence are from

    def __init__(self, state: State) -> None:
        self.state = state
        self._view: widgets.VBox | None = None
        self._cells: set[str] = set()  # the cells that display it
        self._rendering, self._shown = False, ""
        state.observe(self._changed)

    @property
    def view(self) -> widgets.VBox:
        """The live widget, made when it is first asked for and again after `close`."""
        if self._view is None:
            self._rendering, self._shown = False, ""
            self._alert, self._code = widgets.HTML(), widgets.HTML()
            self._panels: list[widgets.HTML] = []
            style = widgets.HTML(layout={"display": "none"})
            # Within another explorer, that one's bridge listens, and it shows the selection of both.
            bridge = [Bridge(self._received)] if self._leader is None else []
            self._code.layout.display = None if bridge else "none"
            self._view = widgets.VBox([style, self._alert, *self._build(), self._code, *bridge])
            self._view.add_class("saekit")
            self._view.layout.padding = "8px"
            style.value = html.STYLE + html.hide_static(self._view.model_id)
            self._changed()
        return self._view

    # ------------------------------------------------------------------ for subclasses

    def _build(self) -> list[widgets.Widget]:
        """Make the widgets."""
        raise NotImplementedError

    def _render(self) -> None:
        """Set the values of controls and panels from the state."""
        raise NotImplementedError

    def _parts(self) -> list[Markup]:
        """HTML of the current selection, for `static`."""
        raise NotImplementedError

    def _charts(self) -> dict[str, Chart]:
        """Make the pictures of the current selection, by name."""
        raise NotImplementedError

    def _identities(self) -> Sequence[Identity]:
        """The dictionaries that the explorer is about, for the record of a figure."""
        raise NotImplementedError

    def _described_selection(self) -> Mapping[str, Any]:
        """What a caption tells of the selection; values that are empty are left out."""
        return self.selection

    def _inputs(self) -> dict[str, dict[str, Any]]:
        """The dictionaries, and the store and model of the evidence where they are known."""
        from saekit.figures import describe
        from saekit.models import describe_model
        from saekit.provenance import provenance_of

        record, atlas, evidence = describe(*self._identities()), self._atlas, getattr(self, "evidence", None)
        store = atlas.store if atlas is not None else _store_of(evidence)
        record |= provenance_of(**{"store of the evidence": store})
        if atlas is not None and atlas.model is not None:
            model = describe_model(atlas.model)
            record["model"] = {"what": model.pop("name"), "hash": model.pop("weights"), **model}
        return record

    def _panel(self, **layout: str) -> widgets.HTML:
        """Make a view that is emptied when rendering fails."""
        panel = widgets.HTML(layout={"width": "100%", **layout})
        self._panels.append(panel)
        return panel

    def _bind(self, control: widgets.Widget, trait: str) -> None:
        """Let a control set a trait of the state."""
        control.observe(lambda change: self._set(trait, change["new"]), "value")

    @guard
    def _set(self, trait: str, value: Any) -> None:
        if not self._rendering and value is not None:
            setattr(self.state, trait, value)

    def _latent_controls(self, widths: Sequence[int]) -> list[widgets.Widget]:
        """Make the controls of width and latent, which `_show_latent` keeps up to date."""
        self._width = widgets.Dropdown(
            options=list(widths), description="Width", tooltip="Number of latents", layout={"width": "170px"}
        )
        self._latent = widgets.BoundedIntText(
            description="Latent", max=1, tooltip="Number of the latent", layout={"width": "170px"}
        )
        self._bind(self._width, "width")
        self._bind(self._latent, "latent")
        if self._leader is not None:  # which has these controls too
            self._width.layout.display = self._latent.layout.display = "none"
        return [self._width, self._latent]

    def _show_latent(self) -> None:
        self._width.value = self.state.width
        self._latent.max = self.state.width - 1
        self._latent.value = self.state.latent

    def _list(self, description: str, tooltip: str, options: list[Any], *, rows: int = 6) -> widgets.Select:
        """Make a list to choose from."""
        return widgets.Select(
            description=description,
            options=options,
            value=None,
            rows=rows,
            tooltip=tooltip,
            layout={"width": "560px", "max_width": "100%"},
        )

    @staticmethod
    def _fill(chooser: widgets.Select, options: list[tuple[str, Any]], *, selected: Any = None) -> None:
        """Give a list new options, with none of them chosen unless `selected` is among them."""
        chooser.options = options
        chooser.value = selected if selected in [value for _, value in options] else None
        chooser.layout.display = None if options else "none"

    def _button(self, description: str, tooltip: str, action: Callable[[], None]) -> widgets.Button:
        """Make a button whose errors are shown."""
        button = widgets.Button(description=description, tooltip=tooltip, layout={"width": "auto"})
        button.on_click(lambda _button: self._act(action))
        return button

    @guard
    def _act(self, action: Callable[[], None]) -> None:
        action()

    @guard
    def _go(self, target: tuple[int, int] | None) -> None:
        """Go to a (width, latent) chosen in a list."""
        if not self._rendering and target is not None:
            self.show(width=target[0], latent=target[1])

    @guard
    def _received(self, message: Mapping[str, Any]) -> None:
        """Act on a click or a key that the bridge sent."""
        if "goto" in message:
            width, latent = map(int, message["goto"].split("/"))
            self.goto(width, latent)
        elif "sort" in message:
            self._sort_by(message["sort"])
        elif message["key"] in ("next", "previous"):
            self._step(1 if message["key"] == "next" else -1)
        else:
            self._travel(-1 if message["key"] == "back" else 1)

    def _step(self, by: int) -> None:
        """Go to the next or the previous latent, with the keys."""
        if isinstance(self.state, LatentState):
            self.state.latent = (self.state.latent + by) % self.state.width

    def _travel(self, by: int) -> None:
        """Go back or forward, with the keys."""

    def _sort_by(self, column: str) -> None:
        """Order a table by a column whose title was clicked."""

    @guard
    def _changed(self, _change: Any = None) -> None:
        selection = self.code()
        if self._view is None or self._rendering or selection == self._shown:
            return
        try:
            with self._quiet():
                self._render()
        except Exception:
            self._shown = ""
            for panel in self._panels:  # no stale result beside the error
                panel.value = ""
            raise
        self._shown = selection
        self._code.value = html.panel(self._selection_line())
        self._alert.value = ""
        if self._leader is not None:
            self._leader.follow(self)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Within this context, controls follow the state instead of setting it."""
        self._rendering = True
        try:
            yield
        finally:
            self._rendering = False

    def _selection_line(self) -> Markup:
        return html.small("This selection: ", html.markup("<code>{}</code>", self.code()))

    # ------------------------------------------------------------------ for users

    @property
    def selected(self) -> tuple[int, int] | None:
        """Width and latent that are shown; None where no latent is."""
        return (self.state.width, self.state.latent) if isinstance(self.state, LatentState) else None

    def goto(self, width: int, latent: int) -> None:
        """Show a latent.

        Raises
        ------
        ValueError
            If the explorer shows no latents of this width.
        """
        if self._leader is not None:
            self._leader.goto(width, latent)
        elif self._can_visit(width, latent):
            self._visit(width, latent)
        else:
            raise ValueError(
                f"{type(self).__name__} does not show latent {latent} of width {width}: saekit.explore does."
            )

    def _can_visit(self, width: int, latent: int) -> bool:
        """Whether it can show a latent."""
        return isinstance(self.state, LatentState) and width in self.state.widths and 0 <= latent < width

    def _visit(self, width: int, latent: int) -> None:
        """Show a latent that it can show."""
        self.show(width=width, latent=latent)

    def show(self, **selection: Any) -> None:
        """Set several values of the state at once.

        Raises
        ------
        traitlets.TraitError
            If the state has no such name or a value does not exist; the state is then unchanged.
        """
        unknown = set(selection) - set(type(self.state).order)
        if unknown:
            raise traitlets.TraitError(
                f"{type(self).__name__} shows {', '.join(type(self.state).order)}; "
                f"found {', '.join(sorted(unknown))}."
            )
        before = self.state.trait_values()
        with self._quiet():  # one rendering for all of them
            try:
                self._assign(selection)
            except traitlets.TraitError:
                self._assign(before)
                raise
        self._changed()

    def _assign(self, selection: Mapping[str, Any]) -> None:
        for name in type(self.state).order:  # a trait comes after the one that it follows
            if name in selection:
                setattr(self.state, name, selection[name])

    def code(self) -> str:
        """A line of Python that restores the current selection."""
        selection = ", ".join(f"{name}={getattr(self.state, name)!r}" for name in type(self.state).order)
        return f"explorer.show({selection})"

    @property
    def selection(self) -> dict[str, Any]:
        """The current selection, such as `{"width": 2304, "latent": 17}`; `show(**selection)` restores it."""
        return {name: getattr(self.state, name) for name in type(self.state).order}

    @property
    def charts(self) -> dict[str, Chart]:
        """The pictures on the screen, by name."""
        return self._charts()

    @property
    def frame(self) -> pd.DataFrame:
        """The numbers on the screen: those of the picture, or of all pictures with their names."""
        return stacked("picture", {name: chart.data for name, chart in self._drawn().items()})

    def _drawn(self) -> dict[str, Chart]:
        found = self._charts()
        if not found:
            raise ValueError(f"There is no picture of this selection: {self.code()}.")
        return found

    def figure(self, *names: str) -> Plot:
        """The pictures on the screen as a figure for a paper; `.save("name")` writes its bundle.

        Parameters
        ----------
        names : str
            Pictures to draw, as in `charts`; all of them, below each other, if left out.

        Raises
        ------
        ValueError
            If there is no picture of the selection, or none of such a name.
        """
        from saekit.charts.paper import draw_figure
        from saekit.figures import Plot

        found = self._drawn()
        wanted = {settings.choice("names", name, list(found)): found[name] for name in names} or found
        told = listed(
            f"{name} {value}"
            for name, value in self._described_selection().items()
            if value not in (None, "")
        )
        caption = _caption_of([chart.caption or chart.alt for chart in wanted.values()])
        return Plot(
            draw_figure(list(wanted.values())),
            stacked("picture", {name: chart.data for name, chart in wanted.items()}),
            caption=f"{caption} Selection: {told}.",
            alt=". ".join(chart.alt for chart in wanted.values()) + ".",
            made_from=self._inputs(),
            settings=self.selection,
            modules=(type(self).__module__,),
        )

    def to_html(self, path: str | Path | None = None) -> Markup:
        """The current selection as a page of its own, without scripts or network.

        Parameters
        ----------
        path : str or Path, optional
            Also write it there, whole or not at all.
        """
        page = html.markup(
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width"><title>{}: {}</title></head>'
            "<body>{}</body></html>\n",
            type(self).__name__,
            self.code(),
            self.static(),
        )
        if path is not None:
            write_bytes(path, page.encode())
        return page

    def static(self) -> Markup:
        """The current selection as one self-contained HTML string, without scripts or network."""
        return html.page(*self._parts(), self._selection_line())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The static form, where there is no IPython to display the live one."""
        return {"text/plain": repr(self), "text/html": self.static()}

    def _ipython_display_(self) -> None:
        """Display the static form and, unless `SAEKIT_STATIC=1`, the live widget.

        They are two outputs, since a front end shows only one form of an output: a notebook that is
        opened again without the kernel still has the static one, which the live one hides.
        """
        if os.environ.get("SAEKIT_STATIC") == "1":
            display(self._repr_mimebundle_(), raw=True)
            return
        close_earlier(self)
        view, plain = self.view, {"text/plain": repr(self)}
        display(plain | {"text/html": html.static(self.static(), view.model_id)}, raw=True)
        display(view._repr_mimebundle_() | plain, raw=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.code()}"

    def close(self) -> None:
        """Close every widget; the explorer itself remains, and can be displayed again."""
        if self._view is not None:
            _close_parts(self._view)
            self._view.close()
            self._view = None


def _caption_of(captions: Sequence[str]) -> str:
    """The captions of a figure's pictures as one, whose first sentence, the title, names all of them."""
    split = [caption.partition(". ") for caption in captions]
    named = [title.partition(": ") for title, _, _ in split]
    kinds, subjects = (list(dict.fromkeys(name[part] for name in named)) for part in (0, 2))
    whole = " ".join(f"{caption}." for caption in captions)
    if len(captions) == 1 or "" in subjects or len(kinds) * len(subjects) != len(captions):
        return whole
    kinds[1:] = [kind[:1].lower() + kind[1:] for kind in kinds[1:]]
    details = " ".join(f"{detail}." for _, _, detail in split if detail)
    return f"{listed(kinds)}: {listed(subjects)}. {details}"


def _store_of(evidence: Evidence | Mapping[Any, Evidence] | None) -> ActivationStore | None:
    """The store of an explorer's evidence; that of several widths is the same."""
    if isinstance(evidence, Mapping):
        evidence = next(iter(evidence.values()), None)
    return None if evidence is None else evidence.store


def _close_parts(widget: widgets.Widget) -> None:
    """Close a widget's children, layout and style, which closing it would leave alive."""
    for child in getattr(widget, "children", ()):
        _close_parts(child)
        child.close()
    for part in ("layout", "style"):
        if isinstance(getattr(widget, part, None), widgets.Widget):
            getattr(widget, part).close()


# ---------------------------------------------------------------------- the life of a displayed explorer

# By cell: the message that ran it last, and the explorers that it displayed.
_displayed: dict[str, tuple[str, WeakSet[Explorer]]] = {}


def close_earlier(explorer: Explorer) -> None:
    """Close what earlier runs of the running cell displayed, since their outputs are gone.

    Front ends name the cell in their messages. Where one does not, nothing is closed.
    """
    shell = get_ipython()
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = message.get("metadata", {}).get("cellId")
    if shell is None or cell is None:
        return
    run = message["header"]["msg_id"]
    last, earlier = _displayed.get(cell, ("", WeakSet()))
    if last != run:
        for old in earlier:
            old._cells.discard(cell)
            if not old._cells and old is not explorer:
                old.close()
                _forget(shell, old)
        _displayed[cell] = run, WeakSet()
    _displayed[cell][1].add(explorer)
    explorer._cells.add(cell)


def _forget(shell: InteractiveShell, explorer: Explorer) -> None:
    """Take an explorer out of IPython's history of outputs, which would keep it and its activations."""
    names = {f"_{number}" for number, output in shell.user_ns["_oh"].items() if output is explorer}
    for namespace in (shell.user_ns, shell.user_ns_hidden):
        for name in names:
            namespace.pop(name, None)
        for name in ("_", "__", "___"):
            if namespace.get(name) is explorer:
                namespace[name] = None
    for name in names:
        del shell.user_ns["_oh"][int(name[1:])]
    for name in ("_", "__", "___"):
        if getattr(shell.displayhook, name) is explorer:
            setattr(shell.displayhook, name, None)
