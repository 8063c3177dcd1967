"""The probing explorer: a table of probes on one latent, from which the latent opens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from ipywidgets import widgets
from markupsafe import Markup

from saekit import html
from saekit.analysis.probing import Probing
from saekit.charts.chart import Chart
from saekit.charts.scores import scores
from saekit.family import Family
from saekit.widgets.evidence import Evidence
from saekit.widgets.latent_explorer import LatentExplorer

ROWS = 12  # probes in the static form


class ProbingExplorer(LatentExplorer):
    """See which latent tells the classes of each probing set apart best, and what it fires on.

    Parameters
    ----------
    probing : Probing
        Probes of the family's dictionaries, with k = 1 among them.
    family, evidence, width, latent
        As for `LatentExplorer`; it starts at the probe of greatest AUC.

    Attributes
    ----------
    probes : mapping of int to list
        By width, the set, AUC and latent of every probe on one latent, greatest AUC first. Leaky sets are
        left out.
    kept_out : set of str
        Sets that were kept out of the training text, which are marked.
    state : traitlets.HasTraits
        `width` and `latent`.

    Raises
    ------
    TypeError, ValueError
        As `LatentExplorer`; ValueError also if none of the dictionaries was probed with k = 1.

    Examples
    --------
    >>> x = torch.randn(60, 16)
    >>> probing = saekit.probe(list(saes), [saekit.LastTokens("sign", x, x[:, 0] > 0)], ks=[1])
    >>> explorer = saekit.ProbingExplorer(probing, saes, evidence)
    >>> explorer.state.latent == explorer.probes[explorer.state.width][0][2]
    True
    """

    def __init__(
        self,
        probing: Probing,
        family: Family,
        evidence: Mapping[int, Evidence] | None = None,
        *,
        width: int | None = None,
        latent: int | None = None,
    ) -> None:
        sound = probing.frame[(probing.frame["k"] == 1) & ~probing.frame["leaky"]]
        single = sound.sort_values("auc", ascending=False, kind="stable")
        self.kept_out = set(single.loc[single["kept_out"], "set"])
        self.probes: dict[int, list[tuple[str, float, int]]] = {}
        for one in family.widths:
            rows = single[single["dictionary"] == family[one].name]
            found = [(str(row.set), float(row.auc), int(row.latents[0])) for row in rows.itertuples()]
            self.probes[one] = found
        if not any(self.probes.values()):
            raise ValueError(f"None of the dictionaries of {family} was probed with k = 1.")
        if width is None:
            width = max((w for w in family.widths if self.probes[w]), key=lambda w: self.probes[w][0][1])
        if latent is None and self.probes.get(width):
            latent = self.probes[width][0][2]
        super().__init__(family, evidence, width=width, latent=latent)

    def _build(self) -> list[widgets.Widget]:
        bar, *others = super()._build()
        self._found = self._list("Probes", "Sets by AUC of the best latent: choose one to see it", [], rows=9)
        self._found.observe(lambda change: self._go(change["new"]), "value")
        self._probes = self._panel()
        return [bar, self._probes, self._found, *others]

    def _render(self) -> None:
        super()._render()
        self._probes.value = html.panel(self._picture(as_image=False))
        width = self.state.width
        options = [
            (f"AUC {auc:.3f}   {shown}   latent {self.evidence[width].label(i)}", (width, i))
            for name, auc, i in self.probes[width]
            for shown in [html.cut(html.harmless(self._marked(name)))]
        ]
        self._fill(self._found, options, selected=(width, self.state.latent))

    def _marked(self, name: str) -> str:
        return f"{name} (kept out)" if name in self.kept_out else name

    def _parts(self) -> list[Markup]:
        width = self.state.width
        rows = [
            (
                self._marked(name),
                f"{auc:.3f}",
                html.goto(width, i),
                html.chips(self.evidence[width].words(i)) or "dead",
            )
            for name, auc, i in self.probes[width][:ROWS]
        ]
        table = html.table(
            ("set", "AUC", "latent", "fires on"),
            rows,
            numeric=(1, 2),
            caption=f"Best probes at width {width} (kept out: of the training text)",
        )
        return [self._picture(as_image=True), table, *super()._parts()]

    def _charts(self) -> dict[str, Chart]:
        width, latent = self.state.width, self.state.latent
        rows = [(self._marked(name), latent, auc) for name, auc, latent in self.probes[width][:ROWS]]
        if not rows:
            return super()._charts()
        data = pd.DataFrame(rows, columns=["name", "latent", "AUC"])
        here = np.flatnonzero(data["latent"] == latent)
        alt = f"AUC of the best probes on one latent at width {width}"
        chart = scores(data, ["AUC"], label="AUC", alt=alt, selected=int(here[0]) if len(here) else None)
        return {"probes": chart, **super()._charts()}

    def _picture(self, *, as_image: bool) -> Markup:
        chart = self._charts().get("probes")
        return Markup() if chart is None else chart.html(as_image=as_image)
