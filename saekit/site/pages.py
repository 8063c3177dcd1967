"""The pages of a site: what each shows, from an atlas."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from saekit import charts, html, settings
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import hash_json, source_hash
from saekit.provenance import provenance_of
from saekit.selection import Latents, select_latents
from saekit.widgets.atlas import Atlas
from saekit.widgets.latent_page import latent_page
from saekit.wording import MISSING, counted, fixed, listed, number, share

BLOCK = 1000  # latents per folder and per file of the search index
ROWS = 250  # of a page of a table
TOKENS = 5  # per latent in tables and in the search index
TEMPLATES = Path(html.__file__).parent / "templates"
# What every page would repeat for each token, and its style sheet says once; no text can look like it.
_SILENT = re.compile(r'<span data-told="0">(.*?)</span>', re.DOTALL)
_COLOUR = re.compile(r'style="background-color:rgba\(255,140,0,([\d.]+)\);color:inherit"')
_FORMS: dict[str, Callable[[Any], str]] = {
    "share": share,
    "number": number,
    "cosine": fixed,
    "whole": str,
    "text": str,
}


@dataclass(frozen=True)
class Column:
    """A column of the table of latents: its place in a record, and how it is written."""

    name: str
    place: int
    form: str
    help: str

    @property
    def numeric(self) -> bool:
        """Whether its cells are aligned right."""
        return self.form not in ("text", "tokens")


# A record also holds the tokens that the latent promotes, which are searched and not listed.
PROMOTED, DENSITY, STATUS = 3, 4, 10
COLUMNS = (
    Column("Latent", 0, "whole", "Number of the latent"),
    Column("Label", 1, "text", "Words of its strongest activations"),
    Column("Fires on", 2, "tokens", "Tokens of its strongest activations"),
    Column("Density", DENSITY, "share", "Share of tokens on which it is active"),
    Column("Max", 5, "number", "Greatest activation"),
    Column("Mean", 6, "number", "Mean activation where it is active"),
    Column("Smaller", 7, "cosine", "Greatest cosine with a latent of the next smaller width"),
    Column("Larger", 8, "cosine", "Greatest cosine with a latent of the next larger width"),
    Column("Seeds", 9, "cosine", "Greatest cosine with a latent of another seed, averaged over seeds"),
    Column("Status", STATUS, "text", "Dead, or what became of it at the next larger width"),
)
_NUMBERS = {
    DENSITY: "density",
    5: "max",
    6: "mean",
    7: "smaller_cosine",
    8: "larger_cosine",
    9: "seed_cosine",
}


@dataclass(frozen=True, eq=False)
class Chapter:
    """The pages of one width.

    Attributes
    ----------
    width : int
        Number of latents of the dictionary.
    latents : ndarray
        Those that have a page, ascending.
    alive : ndarray
        Which of them are not dead, bool.
    """

    width: int
    latents: np.ndarray
    alive: np.ndarray

    @property
    def parts(self) -> int:
        """Number of files of the search index."""
        return math.ceil(len(self.latents) / BLOCK)

    @property
    def tables(self) -> list[str]:
        """Names of the pages of the table, in order."""
        n = math.ceil(len(self.latents) / ROWS)
        return ["index.html", *(f"table-{place}.html" for place in range(2, n + 1))]

    @cached_property
    def after(self) -> dict[int, int]:
        """The latent that "Random" leads to, by latent: one cycle through all that are not dead."""
        order = np.random.default_rng(self.width).permutation(self.latents[self.alive]).tolist()
        steps = dict(pairwise([*order, *order[:1]]))
        dead = self.latents[~self.alive].tolist()
        return steps | (dict(zip(dead, np.resize(order, len(dead)).tolist(), strict=True)) if order else {})


def choose_latents(
    family: Family, widths: Sequence[int] | None, latents: Latents | None
) -> dict[int, np.ndarray]:
    """The latents that have a page, ascending, by width.

    Raises
    ------
    TypeError, ValueError, IndexError
        If the family has no such width, one of the widths no such latent, or none is chosen.
    """
    given = family.widths if widths is None else widths
    chosen = sorted({settings.whole("width", width) for width in given})
    unknown = [width for width in chosen if width not in family.widths]
    if unknown:
        raise ValueError(f"The family has widths {listed(family.widths)}, found {unknown[0]}.")
    found = {
        width: np.arange(width) if latents is None else np.unique(select_latents(latents, width).numpy())
        for width in chosen
    }
    if not any(map(len, found.values())):
        raise ValueError("A site needs at least one latent, found none.")
    return found


class Site:
    """What a site shows, and the bytes of each of its files.

    Parameters
    ----------
    atlas : Atlas
        The family and everything that its pages look up.
    widths : sequence of int, optional
        Widths that have pages; all if left out.
    latents : tensor, array, Series or list, optional
        Latents of every width that have pages (`saekit.selection.select_latents`); all if left out.

    Raises
    ------
    ValueError, IndexError
        If the family has no such width, or one of the widths no such latent.
    """

    def __init__(
        self, atlas: Atlas, *, widths: Sequence[int] | None = None, latents: Latents | None = None
    ) -> None:
        self.atlas = atlas
        self.chapters = [
            self._chapter(width, chosen)
            for width, chosen in choose_latents(atlas.family, widths, latents).items()
        ]
        self._chapter_of = {chapter.width: chapter for chapter in self.chapters}
        family = atlas.family
        place = "" if family.hook_point is None else f" at {family.hook_point}"
        self.title = f"{family.kind}{place}"
        self.version, self.store = version("saekit"), atlas.store.content_hash
        self.inputs = self._inputs()
        self.digest = hash_json(self.inputs)

    def _chapter(self, width: int, wanted: np.ndarray) -> Chapter:
        dead = self.atlas.table(width)["dead"].to_numpy()
        return Chapter(width, wanted, ~dead[wanted])

    def _inputs(self) -> dict[str, str]:
        """Hashes of everything that the pages depend on, by their names in an error."""
        atlas = self.atlas
        tables = [[frame.columns.tolist(), _plain(frame)] for frame in map(atlas.table, atlas.widths)]
        labels = [atlas.labels[width].frame.to_dict("list") for width in atlas.widths]
        meta = None if atlas.meta is None else atlas.meta.dictionary.content_hash
        theta = None if atlas.tree is None else atlas.tree.theta
        sources = [evidence.sources and [*evidence.sources] for evidence in atlas.evidence.values()]
        return {
            "the family": hash_json([member.content_hash for member in atlas.family]),
            "the activations": self.store,
            "the labels": hash_json(labels),
            "the results": hash_json([tables, meta, theta]),
            "the sources": hash_json(sources),
            "the choice of latents": hash_json([[c.width, c.latents.tolist()] for c in self.chapters]),
            "the version of saekit": source_hash(),
        }

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Each width with the number of its files of the search index."""
        return [(chapter.width, chapter.parts) for chapter in self.chapters]

    def path(self, width: int, latent: int) -> str:
        """Where the page of a latent is, below the site's folder."""
        return f"{width}/{latent // BLOCK}/{latent}.html"

    def link(self, width: int, latent: int, start: str) -> str | None:
        """The address of a latent's page, from a page for which the root is `start`; None without one."""
        chapter = self._chapter_of.get(width)
        if chapter is None:
            return None
        place = int(np.searchsorted(chapter.latents, latent))
        there = place < len(chapter.latents) and chapter.latents[place] == latent
        return start + self.path(width, latent) if there else None

    # ------------------------------------------------------------------ pages

    def latent(self, chapter: Chapter, place: int) -> bytes:
        """The page of the latent at a place of its chapter."""
        width, latent, root = chapter.width, int(chapter.latents[place]), "../../"

        def neighbour(by: int) -> str | None:
            there = 0 <= place + by < len(chapter.latents)
            return root + self.path(width, int(chapter.latents[place + by])) if there else None

        with html.linked(lambda width, latent: self.link(width, latent, root)):
            body = latent_page(self.atlas, width, latent, whole_rows=False)
        dictionary = self.atlas.dictionary(width)
        random = chapter.after.get(latent)
        return self._render(
            "latent",
            root,
            width,
            latent,
            label=html.harmless(self.atlas.label(width, latent)),
            before=neighbour(-1),
            after=neighbour(1),
            random=None if random is None else root + self.path(width, random),
            listing=f"{root}{width}/{chapter.tables[place // ROWS]}",
            identity=dictionary.identity,
            body=html.panel(_compact(body)),
        )

    def table(self, chapter: Chapter, page: int, records: Sequence[Sequence[Any]]) -> bytes:
        """A page of the table of a width, from 0; `records` are those of its latents."""
        root, width = "../", chapter.width
        columns = self._columns(width)
        last = len(chapter.tables)
        shown = sorted({1, page - 1, page, page + 1, page + 2, page + 3, last} & {*range(1, last + 1)})
        near: list[int | None] = []
        for one in shown:
            near += [None, one] if near and one - (near[-1] or 0) > 1 else [one]
        return self._render(
            "width",
            root,
            width,
            None,
            chapter=chapter,
            identity=self.atlas.dictionary(width).identity,
            columns=columns,
            statuses=sorted({*_statuses(self.atlas.table(width))} - {""}),
            rows=[self._row(width, record, root, columns) for record in records],
            page_rows=ROWS,
            pages=chapter.tables,
            number=page + 1,
            near=near,
        )

    def _columns(self, width: int) -> list[Column]:
        """The columns that hold anything at this width: the smallest has no next smaller one."""
        table = self.atlas.table(width)
        empty = {place for place, name in _NUMBERS.items() if table[name].isna().all()}
        empty |= {STATUS} if not any(_statuses(table)) else set()
        return [column for column in COLUMNS if column.place not in empty]

    def _row(self, width: int, record: Sequence[Any], root: str, columns: Sequence[Column]) -> dict[str, Any]:
        latent = record[0]
        cells: list[tuple[str | Markup, Column]] = []
        for column in columns:
            cell: str | Markup
            value = record[column.place]
            if column.place == 0:
                cell = html.markup('<a href="{}">{}</a>', f"{root}{self.path(width, latent)}", latent)
            elif column.place == 1:
                cell = html.markup("<bdi>{}</bdi>", value)
            elif column.form == "tokens":
                cell = html.join((html.markup('<bdi class="token">{}</bdi>', token) for token in value), " ")
            else:
                cell = MISSING if value is None else _FORMS[column.form](value)
            cells.append((cell, column))
        return {"latent": latent, "dead": record[STATUS] == "dead", "cells": cells}

    def front(self) -> bytes:
        """The page about the family."""
        atlas, family = self.atlas, self.atlas.family
        members = [atlas.dictionary(chapter.width) for chapter in self.chapters]
        pages = sum(len(chapter.latents) for chapter in self.chapters)
        widths = [f"{chapter.width:,}" for chapter in self.chapters]
        model = members[0].info.get("model")
        lead = (
            f"{counted(pages, 'latent')} of {counted(len(members), 'sparse autoencoder')} "
            f"({'width' if len(widths) == 1 else 'widths'} {listed(widths)})"
            f"{f', trained on activations of {model}' if model else ''}"
            f"{f' at {family.hook_point}' if family.hook_point else ''}."
        )
        return self._render(
            "front",
            "",
            None,
            None,
            lead=lead,
            summaries=[self._summary(chapter) for chapter in self.chapters],
            facts=self._facts(),
            citation=self._citation(members),
        )

    def _summary(self, chapter: Chapter) -> dict[str, Any]:
        table = self.atlas.table(chapter.width)
        density = table["density"].to_numpy(float)
        alive = density[density > 0]
        edges = np.arange(-6.0, 0.01, 0.5)
        counts, _ = np.histogram(np.log10(np.clip(alive, 1e-6, 1)), edges)
        return {
            "width": chapter.width,
            "name": self.atlas.dictionary(chapter.width).name,
            "pages": len(chapter.latents),
            "dead": int(table["dead"].sum()),
            "l0": number(float(density.sum())),
            "density": share(float(np.median(alive))) if len(alive) else MISSING,
            "histogram": charts.histogram(counts, edges, label="log₁₀ of the density", of="latent").svg(),
        }

    def _facts(self) -> list[tuple[str, str]]:
        facts = []
        for name, record in provenance_of(store=self.atlas.store, family=self.atlas.family).items():
            told = [str(record["what"]), str(record["model"] or ""), str(record["hook_point"] or "")]
            if "positions" in record:
                told.append(f"{record['positions']:,} positions, {record['excluded']:,} excluded")
            facts.append(
                (name.capitalize(), ", ".join(filter(None, [*told, f"SHA-256 {record['hash'][:16]}"])))
            )
        sources = Counter(document.get("source") or "text" for document in self.atlas.store.documents)
        texts = ", ".join(f"{name} ({counted(n, 'document')})" for name, n in sorted(sources.items()))
        facts.insert(1, ("Texts", html.harmless(texts)))
        return [*facts, ("Site", f"{self.digest[:16]}, saekit {self.version}")]

    def _citation(self, members: Sequence[Dictionary]) -> list[str]:
        """Lines of a BibTeX entry."""
        hashes = ", ".join(f"{member.name} {member.content_hash[:12]}" for member in members)
        return [
            f"@misc{{saekit-site-{self.digest[:8]},",
            f"  title  = {{Latents of {self.title}}},",
            "  author = {{The saekit authors}},",
            f"  note   = {{Site {self.digest[:12]}, saekit {self.version}; {hashes} (SHA-256)}}",
            "}",
        ]

    def _render(self, name: str, root: str, width: int | None, latent: int | None, **values: Any) -> bytes:
        page = html.render(
            f"site/{name}.html", plan=self, root=root, block=BLOCK, width=width, latent=latent, **values
        )
        return f"{page}\n".encode()

    # ------------------------------------------------------------------ the search index

    def records(self, chapter: Chapter, part: int) -> list[list[Any]]:
        """What the table and the search know of the latents of a part: a list of values for each."""
        latents = chapter.latents[part * BLOCK : (part + 1) * BLOCK]
        table = self.atlas.table(chapter.width).iloc[latents]
        labels = self.atlas.labels[chapter.width].frame.iloc[latents]
        columns = {
            0: latents.tolist(),
            1: [html.cut(html.harmless(label)) for label in labels["label"]],
            2: [_shown(tokens) for tokens in labels["top_tokens"]],
            PROMOTED: [_shown(tokens) for tokens in labels.get("top_logits", [()] * len(latents))],
            STATUS: _statuses(table),
            **{place: _rounded(table[name]) for place, name in _NUMBERS.items()},
        }
        return [list(row) for row in zip(*(columns[place] for place in sorted(columns)), strict=True)]

    def index(self, chapter: Chapter, part: int, records: Sequence[Sequence[Any]]) -> bytes:
        """A file of the search index: a script that hands the records over, in ASCII."""
        rows = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
        # No reader of scripts can take a token for the end of one.
        rows = rows.replace("<", "\\u003c")
        return f"saekit.add({chapter.width},{part},[\n{rows}\n]);\n".encode("ascii")

    @staticmethod
    def assets() -> dict[str, bytes]:
        """The style sheets and the script that all pages share."""
        files = ("style.css", "site/site.css", "site/site.js")
        return {f"assets/{Path(name).name}": (TEMPLATES / name).read_bytes() for name in files}


def _compact(page: Markup) -> Markup:
    """The same page with half as many bytes: silent tokens as plain text, colours by their strength."""
    return Markup(_COLOUR.sub(r'style="--strength:\1"', _SILENT.sub(r"\1", str(page))))  # noqa: S704 - it was Markup


def _shown(tokens: Sequence[str]) -> list[str]:
    return [html.cut(html.visible(token).strip()) for token in tokens[:TOKENS]]


def _statuses(table: pd.DataFrame) -> list[str]:
    return np.where(table["dead"], "dead", table["status"]).tolist()


def _rounded(values: pd.Series) -> list[float | None]:
    return [None if math.isnan(value) else float(f"{value:.5g}") for value in values.astype(float)]


def _plain(frame: pd.DataFrame) -> list[list[Any]]:
    return [[None if value != value else value for value in frame[name].tolist()] for name in frame]
