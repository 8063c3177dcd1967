"""MkDocs hooks: pages made of what lies outside docs/. Notebooks appear as committed; nothing runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the notebooks into the navigation, in place of the entry `notebooks`."""
    _replace(config.nav, [f"notebooks/{path.stem}.md" for path in NOTEBOOKS])
    return config


def _replace(entries: list[Any], pages: list[str]) -> None:
    if "notebooks" in entries:
        place = entries.index("notebooks")
        entries[place : place + 1] = pages
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else ():
            if isinstance(value, list):
                _replace(value, pages)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages of the project's root, and a page per notebook with its images beside it."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        exporter = MarkdownExporter()
        text, resources = exporter.from_notebook_node(
            notebook, resources={"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
        )
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_linked(text)))
        for name, data in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    return files


def _linked(text: str) -> str:
    """Links between notebooks lead to their pages."""
    return re.sub(r"\]\((\d\d_\w+)\.ipynb(#[^)]*)?\)", r"](\1.md\2)", text)
