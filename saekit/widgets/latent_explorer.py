"""The latent explorer: contexts, promoted tokens and nearest relatives of a latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import traitlets
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html
from saekit.analysis.own_text import TextReading
from saekit.analysis.similarity import largest
from saekit.charts.chart import Chart
from saekit.family import Family
from saekit.identity import Identity
from saekit.widgets.atlas import Atlas
from saekit.widgets.base import Explorer, LatentState, as_trait_error
from saekit.widgets.evidence import Evidence, require_evidence_of_each
from saekit.widgets.latent_page import latent_charts, latent_page

NEIGHBOURS = 3  # nearest latents shown at each other width


class PageState(LatentState):
    """A latent, a text of one's own, and whether tokens tell what they lose without the latent."""

    order = ("width", "latent", "text", "ablation")
    text = traitlets.Unicode("")
    ablation = traitlets.Bool(False)

    def __init__(
        self,
        atlas: Atlas,
        read: Callable[[int, str], TextReading],
        width: int,
        latent: int,
        *,
        follow: Callable[[int, int, int], int],
    ) -> None:
        self._atlas, self._read = atlas, read
        super().__init__(atlas.widths, width, latent, follow=follow)

    # A text that cannot be read is refused here, since no latent could be shown as long as it stays.
    @traitlets.validate("text")
    def _readable(self, proposal: Any) -> str:
        text: str = proposal["value"]
        if text:
            with as_trait_error():
                self._read(self.width, text)
        return text

    @traitlets.validate("ablation")
    def _measurable(self, proposal: Any) -> bool:
        if proposal["value"]:
            with as_trait_error():
                self._atlas.require_ablation(self.width)
        return bool(proposal["value"])


class LatentExplorer(Explorer):
    """Walk through the latents of a family and see what each fires on.

    Changing the width goes to the latent of that width whose decoder direction is most similar. With an
    atlas that has a model, a text of one's own is read, and what each token of the examples loses
    without the latent is measured on request.

    Parameters
    ----------
    family : Family
        Dictionaries by width.
    evidence : mapping of int to Evidence
        Evidence about each width (`saekit.collect_evidence`).
    width : int, optional
        The width to start at; the smallest if left out.
    latent : int, optional
        The latent to start with; the first that is not dead if left out.
    n_contexts : int
        Top contexts to show.
    atlas : Atlas, optional
        Of this family (`saekit.build_atlas`), for labels, relatives and what needs the model.

    Attributes
    ----------
    state : traitlets.HasTraits
        `width`, `latent`, `text` (empty for none) and `ablation`.

    Raises
    ------
    TypeError
        If there is no evidence.
    ValueError
        If a width of the family has no evidence, or evidence about another dictionary, or the atlas is of
        another family.

    Examples
    --------
    >>> explorer = saekit.LatentExplorer(saes, evidence)
    >>> explorer.state.width, explorer.state.latent = 32, 3
    >>> explorer.state.latent
    3
    """

    def __init__(
        self,
        family: Family,
        evidence: Mapping[int, Evidence] | None = None,
        *,
        width: int | None = None,
        latent: int | None = None,
        n_contexts: int = 8,
        atlas: Atlas | None = None,
    ) -> None:
        identities = [family[width].identity for width in family.widths]
        evidence = require_evidence_of_each(evidence, identities, "LatentExplorer")
        if atlas is not None and [atlas.family[width].identity for width in atlas.widths] != identities:
            raise ValueError("atlas must be of the family that is explored, and is of another.")
        # The whole family is held: a click should not have to read a dictionary.
        self.atlas = Atlas.of_evidence(family, evidence) if atlas is None else atlas
        self._read = lru_cache(maxsize=16)(self.atlas.read)
        self._atlas = self.atlas
        self.family, self.evidence, self.n_contexts = self.atlas.family, evidence, n_contexts
        width = family.widths[0] if width is None else width
        if latent is None:
            latent = next(iter(evidence[width].alive), 0) if width in evidence else 0
        self._random = np.random.default_rng(0)
        super().__init__(PageState(self.atlas, self._read, width, latent, follow=self._nearest))

    def _build(self) -> list[widgets.Widget]:
        controls = self._latent_controls(self.family.widths)
        steps = [
            self._button("← Previous", "The latent before this one", lambda: self._step(-1)),
            self._button("Next →", "The latent after this one", lambda: self._step(1)),
            self._button("Random", "Any latent that is not dead", self._any),
        ]
        self._text = widgets.Text(
            description="Your text",
            placeholder="Type a text, and press Enter",
            continuous_update=False,
            tooltip="Run the model on a text of your own, and see which latents are active on it",
            layout={"width": "560px", "max_width": "100%"},
        )
        self._ablation = widgets.Checkbox(
            description="Loss per token",
            indent=False,
            tooltip="Measure what each active token of the examples loses without the latent: up to a minute",
            layout={"width": "auto"},
        )
        self._bind(self._text, "text")
        self._bind(self._ablation, "ablation")
        with_model = widgets.HBox([self._text, self._ablation], layout={"flex_flow": "row wrap"})
        with_model.layout.display = "none" if self.atlas.model is None else None
        self._page = self._panel()
        self._near = self._list(
            "Nearest", "Most similar latents at other widths: choose one to go there", [], rows=9
        )
        self._near.observe(lambda change: self._go(change["new"]), "value")
        bar = widgets.HBox([*controls, *steps], layout={"flex_flow": "row wrap"})
        return [bar, with_model, self._page, self._near]

    def _render(self) -> None:
        self._show_latent()
        self._text.value, self._ablation.value = self.state.text, self.state.ablation
        self._page.value = html.panel(self._latent_page(whole_rows=True))
        self._fill(
            self._near,
            [
                (f"width {w}   cosine {cosine:.2f}   {self.evidence[w].label(i)}", (w, i))
                for w, i, cosine in self._neighbours()
            ],
        )

    def _parts(self) -> list[Markup]:
        return [self._latent_page(whole_rows=False, as_image=True)]

    def _latent_page(self, *, whole_rows: bool, as_image: bool = False) -> Markup:
        return latent_page(
            self.atlas,
            self.state.width,
            self.state.latent,
            whole_rows=whole_rows,
            as_image=as_image,
            n=self.n_contexts,
            own=self._read(self.state.width, self.state.text) if self.state.text else None,
            ablation=self.state.ablation,
        )

    def code(self) -> str:
        """A line of Python that restores the current selection."""
        chosen = {name: getattr(self.state, name) for name in PageState.order}
        shown = (
            f"{name}={value!r}"
            for name, value in chosen.items()
            if value not in ("", False) or name == "latent"
        )
        return f"explorer.show({', '.join(shown)})"

    def _charts(self) -> dict[str, Chart]:
        return latent_charts(self.atlas, self.state.width, self.state.latent)

    def _identities(self) -> list[Identity]:
        return [self.family[self.state.width].identity]

    def _neighbours(self) -> list[tuple[int, int, float]]:
        """Width, latent and cosine of the nearest latents at the other widths."""
        row = self.family[self.state.width].W_dec[self.state.latent]
        found = []
        for width in self.family.widths:
            if width != self.state.width:
                cosines, indices = self._most_similar(row, width, min(NEIGHBOURS, width))
                found += [(width, i, cosine) for cosine, i in zip(cosines, indices, strict=True)]
        return found

    def _most_similar(self, row: torch.Tensor, width: int, k: int) -> tuple[list[float], list[int]]:
        # Decoder rows have unit norm, so one product gives the cosines, even at large widths.
        cosines, indices = largest((self.family[width].W_dec @ row)[None], k)
        return cosines[0].tolist(), indices[0].tolist()

    def _nearest(self, old_width: int, latent: int, width: int) -> int:
        return self._most_similar(self.family[old_width].W_dec[latent], width, 1)[1][0]

    # ------------------------------------------------------------------ actions

    def _any(self) -> None:
        alive = self.evidence[self.state.width].alive
        if not alive:
            raise ValueError(f"All latents of {self.family[self.state.width].name} are dead on these tokens.")
        self.state.latent = int(self._random.choice(alive))
