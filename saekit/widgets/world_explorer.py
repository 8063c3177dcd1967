"""The world explorer: a world's true tree beside the latents that found it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import traitlets
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html
from saekit.charts.chart import Chart
from saekit.charts.scores import scores
from saekit.identity import Identity
from saekit.recovery import Recovery
from saekit.selection import select_latent
from saekit.synthetic import World
from saekit.widgets.base import Explorer, State, as_trait_error
from saekit.wording import counted

SCORES = ("cosine", "precision", "recall", "f1")
MOST = 30  # latents drawn
MAX_FEATURES = 60  # rows of the tree
MAX_LATENTS = 3  # in a cell of it


class WorldState(State):
    """A true feature of a world."""

    order = ("feature",)
    feature = traitlets.TraitType(0)

    def __init__(self, n_features: int, feature: int) -> None:
        super().__init__()
        self._n = n_features
        self.feature = feature

    @traitlets.validate("feature")
    def _known(self, proposal: Any) -> int:
        with as_trait_error():
            return select_latent(proposal["value"], self._n)


class WorldExplorer(Explorer):
    """Walk a world's true features: for each, the latents of several dictionaries that point at it.

    Parameters
    ----------
    world : World
        The world; the first 60 features are in its tree.
    found : mapping of str to Recovery
        `saekit.measure_recovery` of each dictionary on this world, by name.
    feature : int
        Where to start.

    Attributes
    ----------
    state : traitlets.HasTraits
        `feature`.

    Raises
    ------
    ValueError
        If a recovery is of another number of features, or there is none.

    Examples
    --------
    >>> world = saekit.synthetic.hedging_tree()
    >>> exact = saekit.measure_recovery(world.directions, world.directions)
    >>> saekit.WorldExplorer(world, {"exact": exact})
    WorldExplorer: explorer.show(feature=0)
    """

    def __init__(self, world: World, found: Mapping[str, Recovery], *, feature: int = 0) -> None:
        if not found:
            raise ValueError("A WorldExplorer shows at least one recovery, found none.")
        for name, recovery in found.items():
            if len(recovery.found) != world.n_features:
                raise ValueError(
                    f"{name!r} is a recovery of {len(recovery.found)} features, but {world.name} has "
                    f"{world.n_features}."
                )
        self.world, self.found = world, dict(found)
        self._frames = {name: recovery.frame for name, recovery in self.found.items()}
        self._rates = world.rates().tolist()  # computed once
        super().__init__(WorldState(world.n_features, feature))

    def _build(self) -> list[widgets.Widget]:
        options = [(f"{i}: {html.cut(html.harmless(label))}", i) for i, label in enumerate(self.world.labels)]
        self._feature = widgets.Dropdown(options=options, description="Feature", tooltip="A true feature")
        self._bind(self._feature, "feature")
        self._detail, self._tree = self._panel(), self._panel()
        return [self._feature, self._detail, self._tree]

    def _render(self) -> None:
        self._feature.value = self.state.feature
        self._detail.value = html.panel(self._latents(), self._picture(as_image=False))
        self._tree.value = html.panel(self._features())

    def _parts(self) -> list[Markup]:
        return [self._latents(), self._picture(as_image=True), self._features()]

    def _charts(self) -> dict[str, Chart]:
        feature, found = self.state.feature, []
        for name, frame in self._frames.items():
            rows = frame[frame["best"] == feature]
            found.append(rows.assign(name=name + ", latent " + rows["latent"].astype(str)))
        data = pd.concat(found)[["name", "latent", *SCORES]]
        if data.empty:
            return {}
        label = self.world.labels[feature]
        alt = f"Scores of the {counted(len(data), 'latent')} whose best true feature is {feature}, {label}"
        return {"scores": scores(data.head(MOST), SCORES, label="score", alt=alt)}

    def _picture(self, *, as_image: bool) -> Markup:
        return html.join(chart.html(as_image=as_image) for chart in self._charts().values())

    def _identities(self) -> list[Identity]:
        return []  # recoveries are of directions, which no dictionary need hold

    def _latents(self) -> Markup:
        """The selected feature and every latent that points at it best."""
        feature, rows = self.state.feature, []
        for name, frame in self._frames.items():
            for row in frame[frame["best"] == feature].itertuples():
                numbers = (f"{value:.2f}" for value in (row.cosine, row.precision, row.recall, row.f1))
                rows.append([name, str(row.latent), *numbers])
        parent = int(self.world.parent[feature])
        above = f"child of {self.world.labels[parent]}" if parent >= 0 else "no parent"
        title = html.markup("<h3>Feature {}: {}</h3>", feature, self.world.labels[feature])
        facts = html.markup("<p>Fires on {:.3f} of the samples; {}.</p>", self._rates[feature], above)
        header = ["dictionary", "latent", "cosine", "precision", "recall", "F1"]
        if not rows:
            return title + facts + Markup("<p>It is no latent's best true feature.</p>")
        return title + facts + html.table(header, rows, numeric=range(1, 6))

    def _features(self) -> Markup:
        """The tree: one row per feature, with its nearest latents in each dictionary."""
        rows = []
        for i in range(min(self.world.n_features, MAX_FEATURES)):
            label = Markup("&nbsp;") * 4 * int(self.world.depth[i]) + html.escape(self.world.labels[i])
            cells = []
            for frame in self._frames.values():
                here = frame[frame["best"] == i]
                nearest = here.loc[here["cosine"].abs().sort_values(ascending=False).index[:MAX_LATENTS]]
                told = ", ".join(f"{row.latent} ({row.cosine:.2f})" for row in nearest.itertuples())
                cells.append(told + (" …" if len(here) > MAX_LATENTS else ""))
            shown = html.bold(label) if i == self.state.feature else label
            rows.append([shown, f"{self._rates[i]:.3f}", *cells])
        left_out = self.world.n_features - len(rows)
        caption = f"The first {len(rows)} features; {left_out} more are not shown." if left_out else ""
        return html.table(["true feature", "rate", *self._frames], rows, caption=caption, numeric=[1])
