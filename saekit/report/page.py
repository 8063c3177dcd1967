"""A report as one HTML page that contains its figures, with its numbers in files beside it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saekit.figures import FULL, Plot, package_versions, render
from saekit.files import source_hash, write_bytes, write_json
from saekit.html import image, table
from saekit.wording import number, share

FORMAT = "saekit-report-1"
PAGE = "index.html"
# Columns written as percentages.
SHARES = ("share_", "split", "identical", "refined", "lost", "novel", "dead_fraction", "explained_variance")

STYLE = """
:root { color-scheme: light; --ink: #262626; --quiet: #6b6b6b; --line: #e3e1dc; --accent: #0173b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fbfaf7; color: var(--ink); line-height: 1.55;
  font: 17px/1.55 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
main { max-width: 54rem; margin: 0 auto; padding: 3.5rem 1.5rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; font-weight: 600; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.5rem; font-weight: 600; margin: 0; }
header p, .question { color: var(--quiet); margin: 0; }
.question { font-style: italic; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem;
  margin: 2rem 0 3rem; }
.card { background: #fff; border: 1px solid var(--line); border-top: 3px solid var(--accent);
  border-radius: 4px; padding: 1rem 1.2rem; color: inherit; text-decoration: none; display: block; }
.card b { display: block; font-size: 1.05rem; }
.card .value { display: block; font-size: 2.3rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card .unit { display: block; color: var(--quiet); font-size: .85rem; line-height: 1.4; }
section { border-top: 1px solid var(--line); padding-top: 2rem; margin-top: 2.5rem; }
.says { font-size: 1.12rem; border-left: 3px solid var(--accent); padding-left: 1rem;
  margin: 1.1rem 0 1.6rem; }
figure { margin: 1.8rem 0; background: #fff; border: 1px solid var(--line); border-radius: 4px;
  padding: 1.2rem 1.2rem .9rem; }
figure div { margin: 0 auto; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; line-height: 1.5; color: #4a4a4a; margin-top: .9rem; }
.table { overflow-x: auto; margin: 1.6rem 0; }
table { border-collapse: collapse; font: 13px/1.45 system-ui, sans-serif; min-width: 60%; }
caption { caption-side: bottom; text-align: left; color: #4a4a4a; padding-top: .7rem;
  font: .85rem/1.5 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
th { font-weight: 500; color: var(--quiet); vertical-align: bottom; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
td[align=left]:last-child { white-space: normal; min-width: 11rem; }
thead th { border-bottom: 1px solid #a9a6a0; }
td { vertical-align: top; }
[align=right] { font-variant-numeric: tabular-nums; }
code { font: .82em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
footer { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1.2rem; font-size: .85rem;
  color: var(--quiet); }
summary { cursor: pointer; }
@media print { body { background: #fff; } figure, .table { break-inside: avoid; } }
"""


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
    cards = "".join(
        f'<a class="card" href="#{_anchor(section)}"><b>{escape(section.title)}</b>'
        f'<span class="value">{escape(section.value)}</span>'
        f'<span class="unit">{escape(section.unit)}</span></a>'
        for section in sections
        if section.value
    )
    rows = [
        [
            *(escape(str(made.get(key) or "")) for key in ("what", "model", "hook_point")),
            f"<code>{escape(made['hash'][:16])}</code>",
        ]
        for made in inputs.values()
    ]
    made_from = table(("input", "model", "hook point", "SHA-256"), rows)
    chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
        f'<div class="cards">{cards}</div>'
        f"{''.join(map(_section, sections))}"
        "<footer><p>The numbers behind each figure and table are in a file beside this page, under the name "
        "in its caption; <code>report.json</code> holds the headline numbers, settings and hashes.</p>"
        f"<p>Settings: {escape(chosen)}. Made with saekit, source <code>{source_hash()[:16]}</code>, "
        f"{escape(versions)}.</p>"
        f'<details><summary>Provenance</summary><div class="table">{made_from}</div></details>'
        "</footer></main></body></html>\n"
    )


def _anchor(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")


def _section(section: Section) -> str:
    parts = "".join(_table(part) if isinstance(part, Table) else _figure(*part) for part in section.parts)
    return (
        f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>'
        f'<p class="question">{escape(section.question)}</p><p class="says">{escape(section.says)}</p>'
        f"{parts}</section>"
    )


def _figure(name: str, plot: Plot) -> str:
    title, _, rest = plot.caption.partition(". ")
    drawn = image(render(plot.figure, "svg").decode(), plot.alt)
    width = min(100.0, 100 * plot.figure.get_size_inches()[0] / FULL)  # text is of one size on the page
    return (
        f'<figure><div style="width:{width:.0f}%">{drawn}</div>'
        f"<figcaption><b>{escape(title)}.</b> {escape(rest)} <code>{escape(name)}.csv</code></figcaption>"
        "</figure>"
    )


def _table(part: Table) -> str:
    frame = part.frame[[*part.shown]]
    formats = [_format(name, frame[name]) for name in frame]
    rows = [
        [write(value) for write, value in zip(formats, row, strict=True)]
        for row in frame.itertuples(index=False)
    ]
    numeric = [place for place, name in enumerate(frame) if pd.api.types.is_numeric_dtype(frame[name])]
    html = table(
        [escape(heading) for heading in part.shown.values()],
        rows,
        caption=f"{escape(part.caption)} <code>{escape(part.name)}.csv</code>",
        numeric=numeric,
    )
    return f'<div class="table">{html}</div>'


def _format(name: str, column: pd.Series) -> Callable[[Any], str]:
    """How to write the values of a column: shares as percentages, counts in full."""
    if column.dtype == bool:
        return lambda value: "yes" if value else "no"
    if pd.api.types.is_integer_dtype(column):
        return lambda value: f"{value:,}"
    if pd.api.types.is_numeric_dtype(column):
        return share if name.startswith(SHARES) else number
    return lambda value: escape(str(value))
