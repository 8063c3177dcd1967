"""A report as one HTML page that contains its figures, with its numbers in files beside it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from saekit import html
from saekit.figures import FULL, Plot, package_versions, render
from saekit.files import source_hash, write_bytes, write_json
from saekit.wording import number, share

FORMAT = "saekit-report-1"
PAGE = "index.html"
# Columns written as percentages.
SHARES = ("share_", "split", "identical", "refined", "lost", "novel", "dead_fraction", "explained_variance")


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a page.

    Attributes
    ----------
    name : str
        Name of its CSV, without suffix.
    caption : str
        Meaning of the columns.
    frame : DataFrame
        The table, written to the CSV in full.
    shown : mapping
        Columns to show, with their headings.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shown: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Section:
    """A section of a page.

    Attributes
    ----------
    title, question : str
        Heading, and the question that the section answers.
    says : str
        The answer, in one or two sentences.
    parts : sequence
        Tables, and figures as pairs of a name and a `Plot`.
    numbers : mapping
        The headline numbers, for the JSON.
    value, unit : str
        The number that represents the section at the top of the page, and its unit; none if empty.
    """

    title: str
    question: str
    says: str
    parts: Sequence[Table | tuple[str, Plot]]
    numbers: Mapping[str, Any]
    value: str = ""
    unit: str = ""


def write_page(
    folder: str | Path,
    sections: Sequence[Section],
    *,
    title: str,
    subtitle: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write the data, the page, and last the JSON that names them by hash; return the page.

    Parameters
    ----------
    folder : str or Path
        For `index.html`, `report.json` and the CSVs, each written atomically.
    sections : sequence of Section
        In the order of the page.
    title, subtitle : str
        Plain text.
    settings : mapping
        Parameters that decide the numbers, as JSON values.
    inputs : mapping
        Provenance (see `saekit.provenance_of`).
    """
    files: dict[str, bytes] = {}
    for section in sections:
        for part in section.parts:
            name, frame = (part.name, part.frame) if isinstance(part, Table) else (part[0], part[1].data)
            csv = frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")
            files[f"{name}.csv"] = csv.encode()
    files[PAGE] = _page(sections, title, subtitle, settings, inputs).encode()
    folder = Path(folder)
    for name, content in files.items():
        write_bytes(folder / name, content)
    record = {
        "format": FORMAT,
        "title": title,
        "settings": settings,
        "says": {section.title: section.says for section in sections},
        "numbers": {section.title: section.numbers for section in sections},
        "inputs": inputs,
        "source": source_hash(),
        "versions": package_versions(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    write_json(folder / "report.json", _plain(record))
    return folder / PAGE


def _plain(value: Any) -> Any:
    """JSON values: numbers that are missing are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(
    sections: Sequence[Section],
    title: str,
    subtitle: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
) -> str:
    rows = [
        [
            *(made.get(key) or "" for key in ("what", "model", "hook_point")),
            html.markup("<code>{}</code>", made["hash"][:16]),
        ]
        for made in inputs.values()
    ]
    page = html.render(
        "report.html",
        title=title,
        subtitle=subtitle,
        sections=[(_anchor(section), section, list(map(_part, section.parts))) for section in sections],
        settings=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()),
        source=source_hash()[:16],
        versions=", ".join(f"{name} {version}" for name, version in package_versions().items()),
        provenance=html.table(("input", "model", "hook point", "SHA-256"), rows),
    )
    return f"{page}\n"


def _anchor(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")


def _part(part: Table | tuple[str, Plot]) -> Markup:
    return _table(part) if isinstance(part, Table) else _figure(*part)


def _figure(name: str, plot: Plot) -> Markup:
    title, _, rest = plot.caption.partition(". ")
    width = min(100.0, 100 * plot.figure.get_size_inches()[0] / FULL)  # text is of one size on the page
    return html.markup(
        '<figure><div style="width:{:.0f}%">{}</div>'
        "<figcaption><b>{}.</b> {} <code>{}.csv</code></figcaption></figure>",
        width,
        html.image(render(plot.figure, "svg").decode(), plot.alt),
        title,
        rest,
        name,
    )


def _table(part: Table) -> Markup:
    frame = part.frame[[*part.shown]]
    formats = [_format(name, frame[name]) for name in frame]
    rows = [
        [write(value) for write, value in zip(formats, row, strict=True)]
        for row in frame.itertuples(index=False)
    ]
    numeric = [place for place, name in enumerate(frame) if pd.api.types.is_numeric_dtype(frame[name])]
    caption = html.markup("{} <code>{}.csv</code>", part.caption, part.name)
    table = html.table([*part.shown.values()], rows, caption=caption, numeric=numeric)
    return html.markup('<div class="table">{}</div>', table)


def _format(name: str, column: pd.Series) -> Callable[[Any], str]:
    """How to write the values of a column: shares as percentages, counts in full."""
    if column.dtype == bool:
        return lambda value: "yes" if value else "no"
    if pd.api.types.is_integer_dtype(column):
        return lambda value: f"{value:,}"
    if pd.api.types.is_numeric_dtype(column):
        return share if name.startswith(SHARES) else number
    return str
