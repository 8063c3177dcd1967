"""The page of a latent: everything that is known of it, in one place and one layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from saekit import charts, html
from saekit.analysis.latents import Context
from saekit.analysis.own_text import TextReading
from saekit.charts.chart import Chart
from saekit.loading.neuronpedia import latent_url
from saekit.widgets.atlas import Atlas
from saekit.widgets.evidence import Evidence, example_rows
from saekit.wording import counted, number, share

NEAR = 10  # tokens on each side of the peak that are shown at first
BINS, SAMPLES = 5, 3  # intervals of the activation, and examples of each
LOGIT_BINS = 50
N_CHILDREN, N_META, N_FIRING = 8, 8, 12  # rows that are shown at once


def latent_page(
    atlas: Atlas,
    width: int,
    latent: int,
    *,
    own: TextReading | None = None,
    ablation: bool = False,
    whole_rows: bool = True,
    as_image: bool = False,
    n: int = 10,
) -> Markup:
    """Show everything that is known of a latent.

    Identity and provenance, density and maximum, histograms of its activations and of its effect on
    the logits of the whole vocabulary, the tokens that it fires on, promotes and suppresses, its
    strongest examples and samples of each interval of its activation, and its relatives: nearest
    latents of other widths, parents and children, meta-latents, other seeds. A token under the pointer or
    the keyboard's focus shows its activation. Other latents are named by `saekit.html.goto`.

    Parameters
    ----------
    atlas : Atlas
        From `saekit.build_atlas`.
    width, latent : int
        Which latent.
    own : TextReading, optional
        A text of one's own to show (`atlas.read(width, text)`).
    ablation : bool
        Measure what each active token of the examples loses when the latent is removed there, which
        needs the atlas's model and, on a CPU, up to a minute.
    whole_rows : bool
        Put whole rows of text on the page, of which 10 tokens on each side of the peak are shown until "whole
        rows" is ticked; otherwise only these are on it.
    as_image : bool
        Draw histograms as images, for places that drop drawings.
    n : int
        Examples of greatest activation.

    Raises
    ------
    TypeError, ValueError, IndexError
        If there is no such latent, the text was read by another dictionary, or an ablation is asked of an
        atlas without a model.

    Examples
    --------
    >>> from saekit.widgets import build_atlas, latent_page
    >>> atlas = build_atlas(saes, harvested, model, keep=False, progress=False)
    >>> "Activations" in latent_page(atlas, 16, 0)
    True
    """
    if not isinstance(atlas, Atlas):
        raise TypeError(f"atlas must be an Atlas (saekit.build_atlas), found {type(atlas).__name__}.")
    width, latent = atlas.select(width, latent)
    dictionary, evidence = atlas.dictionary(width), atlas.evidence[width]
    if own is not None and not isinstance(own, TextReading):
        raise TypeError(f"own must be a TextReading (atlas.read(width, text)), found {type(own).__name__}.")
    if own is not None:
        dictionary.identity.require(own.dictionary, "The dictionary that read the text")
    examples = _Examples(atlas, width, latent, n, ablation, whole_rows)
    alive, words, label = bool(evidence.counts[latent]), evidence.words(latent, 5), atlas.label(width, latent)
    return html.render(
        "latent.html",
        latent=latent,
        name=dictionary.name,
        label="" if label == " · ".join(words) else label,
        words=html.chips(words),
        dead=not alive,
        n_tokens=evidence.activations.n_tokens,
        facts=_facts(atlas, width, latent) if alive else [],
        url=latent_url(dictionary, latent) if dictionary.info.get("neuronpedia_id") else "",
        own=_own_text(own, evidence, latent, examples.greatest) if own is not None else "",
        examples=examples.tables() if alive else "",
        whole_rows=whole_rows and alive,
        greatest=number(examples.greatest),
        ablation=ablation,
        histograms=[
            (HEADINGS[which], chart.html(as_image=as_image))
            for which, chart in latent_charts(atlas, width, latent).items()
        ],
        tables=[part for part in (evidence.tokens_table(latent), evidence.logits_table(latent)) if part],
        relatives=[part for part in (
            _nearest(atlas, width, latent), _tree(atlas, width, latent), _seeds(atlas, width, latent),
            _meta_latents(atlas, width, latent),
        ) if part],
        provenance=_provenance(atlas, width),
    )  # fmt: skip


def _facts(atlas: Atlas, width: int, latent: int) -> list[tuple[str, str]]:
    """The numbers at the head of the page."""
    activations = atlas.evidence[width].activations
    count, values = atlas.evidence[width].counts[latent], activations.entries(latent)[1]
    return [
        ("density", share(count / activations.n_tokens)),
        ("active tokens", f"{count:,} of {activations.n_tokens:,}"),
        ("greatest activation", number(float(values.max()))),
        ("mean where active", number(float(values.double().mean()))),
    ]


# ---------------------------------------------------------------------- examples


class _Examples:
    """The contexts of a page and what is told about their tokens."""

    def __init__(
        self, atlas: Atlas, width: int, latent: int, n: int, ablation: bool, whole_rows: bool
    ) -> None:
        evidence = atlas.evidence[width]
        self.evidence, self.latent, self.whole_rows = evidence, latent, whole_rows
        self.greatest = (
            float(evidence.activations.entries(latent)[1].max()) if evidence.counts[latent] else 0.0
        )
        self.top = self._cut([context.position for context in evidence.top(latent, n)])
        self.intervals = [
            (interval, self._cut(interval.positions.tolist()))
            for interval in evidence.activations.intervals(latent, bins=BINS, n=SAMPLES)
        ]
        shown = [*self.top, *(context for _, found in self.intervals for context in found)]
        self.losses: dict[int, float] = {}
        if ablation and shown:
            active = {at for context in shown for at in _active_near(context)}
            self.losses = atlas.ablation(width, latent, sorted(active))

    def _cut(self, positions: Sequence[int]) -> list[Context]:
        if self.whole_rows:
            return list(self.evidence.rows(self.latent, positions))
        return list(self.evidence.around(self.latent, positions, reach=NEAR))

    def tables(self) -> Markup:
        """The strongest examples, and those of each interval."""
        parts = [
            html.table(
                ("peak", "text", "from"), self._rows(self.top), numeric=(0,), caption="Top activations"
            )
        ]
        for interval, found in self.intervals:
            between = f"Interval {number(interval.low)} to {number(interval.high)}"
            contains = f" holds {share(interval.share)} of the activations ({interval.count:,})"
            rows = self._rows(found)
            if rows:
                caption = html.join([between, html.small(contains)])
                parts.append(html.table((), rows, numeric=(0,), caption=caption))
            else:
                parts.append(html.markup("<p>{}{}</p>", between, html.small(contains)))
        return html.join(parts)

    def _rows(self, found: Sequence[Context]) -> list[tuple[Any, ...]]:
        return example_rows(found, self.greatest, near=NEAR, losses=self.losses)


def _active_near(context: Context) -> list[int]:
    """Positions in the store of the active tokens near the peak."""
    first = context.position - context.focus
    near = range(context.focus - NEAR, context.focus + NEAR + 1)
    return [first + place for place, value in enumerate(context.values) if value > 0 and place in near]


def _own_text(own: TextReading, evidence: Evidence, latent: int, greatest: float) -> Markup:
    """A text of one's own: coloured by this latent, and every latent that is active on it."""
    values = own.of(latent)
    deepest = max(greatest, *values)
    text = html.context(
        own.tokens, values, int(np.argmax(values)) if max(values) > 0 else None, deepest or 1.0
    )
    verdict = f"This latent reaches {number(max(values))}." if max(values) > 0 else "This latent is silent."
    frame, width = own.frame, evidence.width
    rows = [
        (
            html.goto(width, row.latent, html.bold(row.latent) if row.latent == latent else row.latent),
            number(row.max),
            html.chip(row.token),
            row.n_active,
            html.chips(evidence.words(row.latent)) or "dead on the store",
        )
        for row in frame.itertuples()
    ]
    header = ("latent", "greatest", "on", "tokens", "usually fires on")
    caption = f"{counted(len(rows), 'latent')} active on {counted(len(own.tokens), 'token')}"
    listed = html.table(header, rows[:N_FIRING], numeric=(0, 1, 3), caption=caption)
    if len(rows) > N_FIRING:
        more = html.table(header, rows[N_FIRING:], numeric=(0, 1, 3))
        listed += html.details(f"{len(rows) - N_FIRING:,} more", more)
    return html.markup('<p class="read">{}</p><p>{}</p>{}', text, verdict, listed)


# ---------------------------------------------------------------------- pictures


HEADINGS = {
    "activations": "Activations where it is active",
    "logits": "Effect on the logits of all tokens",
}


def latent_charts(atlas: Atlas, width: int, latent: int) -> dict[str, Chart]:
    """The histograms of a latent's page: of its activations, and of its effects on all logits."""
    found = {}
    activations = atlas.evidence[width].chart(latent)
    if activations is not None:
        found["activations"] = activations
    logits = atlas.logits(width, latent)
    if logits is not None:
        found["logits"] = charts.logit_histogram(*np.histogram(logits.float().cpu().numpy(), bins=LOGIT_BINS))
    name = f"latent {latent} of {atlas.family[width].name}"
    return {
        which: replace(chart, caption=f"{HEADINGS[which]}: {name}. {chart.alt}")
        for which, chart in found.items()
    }


# ---------------------------------------------------------------------- relatives


def _nearest(atlas: Atlas, width: int, latent: int) -> Markup:
    found = atlas.nearest(width, latent)
    rows = [
        (f"{row.width:,}", html.goto(row.width, row.latent), f"{row.cosine:.2f}", html.cut(row.label, 40))
        for row in found.itertuples()
    ]
    if not rows:
        return Markup()
    header = ("width", "latent", "cosine", "label")
    return html.table(header, rows, numeric=(0, 1, 2), caption="Nearest at other widths")


def _tree(atlas: Atlas, width: int, latent: int) -> Markup:
    if atlas.tree is None:
        return Markup()
    path = [*reversed(atlas.tree.ancestors(width, latent)), {"width": width, "latent": latent}]
    crumbs = html.join(
        (html.goto(node["width"], node["latent"], f"{node['width']:,}/{node['latent']}") for node in path),
        " → ",
    )
    way = html.markup("<p>Path (width/latent): {}</p>", crumbs) if len(path) > 1 else Markup()
    fate = {
        "split": "Split at the next width: several children.",
        "identical": "Identical at the next width: one child, each other's best match.",
        "refined": "Refined at the next width: one child, which is not identical.",
        "lost": "Lost at the next width: no child.",
        "leaf": "This is the greatest width.",
    }[atlas.tree.subtree(width, latent)["status"]]
    if len(path) == 1 and width != atlas.widths[0]:
        fate = f"Novel at this width: no parent. {fate}"
    # A path of one latent would be a link to this page.
    shown = html.markup("<h4>Splitting</h4>{}<p>{}</p>", way, fate)
    children = atlas.tree.children(width, latent)
    if not children:
        return shown
    rows = [
        (
            html.goto(child["width"], child["latent"]),
            f"{child['cosine']:.2f}",
            html.cut(atlas.label(child["width"], child["latent"]), 40),
        )
        for child in children[:N_CHILDREN]
    ]
    more = f" ({len(children) - N_CHILDREN} more)" if len(children) > N_CHILDREN else ""
    caption = f"Children of width {children[0]['width']:,}{more}"
    return shown + html.table(("latent", "cosine", "label"), rows, numeric=(0, 1), caption=caption)


def _seeds(atlas: Atlas, width: int, latent: int) -> Markup:
    found = atlas.seeds(width, latent)
    if found.empty:
        if width not in atlas.family.without_null:  # an atlas of evidence alone compares no seeds
            return Markup()
        none = f"There is no second seed of width {width:,}, so the cosines of this page have no null."
        return html.markup("<h4>Other seeds</h4><p>{}</p>", none)
    typical = float(np.nanmedian(atlas.table(width)["seed_cosine"]))
    best = float(found["cosine"].max())
    theta = None if atlas.tree is None else atlas.tree.theta
    verdict = ""
    if theta is not None:
        has = int((found["cosine"] >= theta).sum())
        verdict = f"{has} of {counted(len(found), 'other seed')} have it at a cosine of {theta:g} or more. "
    rows = [(row.seed, row.latent, f"{row.cosine:.2f}") for row in found.itertuples()]
    beside = f"Its best cosine is {best:.2f}; a typical latent of this width has {typical:.2f}."
    table = html.table(
        ("seed", "latent", "cosine"), rows, numeric=(0, 1, 2), caption="Most similar in other seeds"
    )
    return html.markup("<h4>Other seeds</h4><p>{}{}</p>{}", verdict, beside, table)


def _meta_latents(atlas: Atlas, width: int, latent: int) -> Markup:
    if atlas.meta is None or atlas.dictionary(width).identity not in atlas.meta.bases:
        return Markup()
    found = atlas.meta_latents(width, latent)
    if found.empty:
        return html.markup("<h4>Meta-latents</h4><p>{}</p>", "No meta-latent reaches the threshold.")
    rows = [
        (
            row.meta_latent,
            f"{row.activation:.2f}",
            html.bar(row.activation / found["activation"].max(), width=6),
            html.cut(row.label, 40),
        )
        for row in found.head(N_META).itertuples()
    ]
    header = ("meta-latent", "activation", "", "label")
    return html.table(header, rows, numeric=(0, 1), caption=f"{counted(len(found), 'meta-latent')}")


def _provenance(atlas: Atlas, width: int) -> list[tuple[str, Any]]:
    """Where the numbers of the page come from."""
    dictionary, store = atlas.dictionary(width), atlas.store
    activations = atlas.evidence[width].activations
    rule = store.manifest.get("exclusion", {}).get("rule", "")
    return [
        ("dictionary", dictionary.name),
        ("hash", html.markup("<code>{}</code>", dictionary.content_hash[:16])),
        ("hook point", dictionary.hook_point or "not recorded"),
        ("model", store.model_name or "not recorded"),
        ("activations", html.markup("<code>{}</code>", str(store.content_hash)[:16])),
        ("tokens", f"{activations.n_tokens:,}; {activations.n_excluded:,} positions are excluded"),
        *([("excluded", rule)] if rule else []),
    ]
