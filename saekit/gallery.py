"""The gallery of saved figures, how to cite one, and which are older than the code that drew them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saekit.figures import FORMAT, SUFFIXES, check_name, figures_folder, latex
from saekit.files import hash_file, read_json, write_bytes
from saekit.source import code_hash, modules_behind


def citation(name: str, *, folder: str | Path | None = None) -> str:
    """Give a BibTeX entry for a saved figure, to paste.

    Parameters
    ----------
    name : str
        The name under which it was saved.
    folder : str or Path, optional
        Where it is; `saekit.figures.figures_folder()` if left out.

    Raises
    ------
    FileNotFoundError
        If the folder holds no such figure.

    Examples
    --------
    >>> files = saekit.plots.splitting_flow(saekit.splitting_tree(family)).save("flow", folder=".")
    >>> citation("flow", folder=".").splitlines()[0]
    '@misc{saekit-flow,'
    """
    check_name(name)
    manifest = _read_manifest(Path(figures_folder() if folder is None else folder) / f"{name}.json")
    source, data = manifest["source"][:12], manifest["files"][f"{name}.csv"][:12]
    return (
        f"@misc{{saekit-{name},\n"
        f"  title        = {{{{{latex(_title(manifest))}}}}},\n"  # two braces keep its capitals
        f"  author       = {{{{The saekit authors}}}},\n"
        f"  howpublished = {{Figure \\texttt{{{latex(name)}}}, made with saekit}},\n"
        f"  note         = {{saekit source {source}, data {data} (SHA-256)}}\n"
        f"}}\n"
    )


def stale_figures(folder: str | Path) -> dict[str, list[str]]:
    """Figures whose code has changed since they were saved, with the modules that drew them.

    The code is that of these modules and of all of saekit that they import, without comments and
    docstrings: an edit of an explorer or of the command line makes no figure stale.

    Examples
    --------
    >>> files = saekit.plots.splitting_flow(saekit.splitting_tree(family)).save("flow", folder=".")
    >>> stale_figures(".")
    {}
    """
    now: dict[tuple[str, ...], str] = {}
    stale = {}
    for manifest in _manifests(Path(folder)):
        modules = tuple(manifest["modules"])
        if modules not in now:
            now[modules] = code_hash(modules_behind(modules))
        if manifest["source"] != now[modules]:
            stale[manifest["name"]] = list(modules)
    return stale


def write_index(folder: str | Path) -> Path:
    """Write `README.md`: every figure of the folder with its title, caption, files and citation.

    Figures are grouped by the notebook whose number begins their names, under the question of its first
    cell, where `notebooks` and `docs` are beside the folder.

    Raises
    ------
    FileNotFoundError
        If the folder holds no figures, or a figure lacks one of its files.
    ValueError
        If a file is not the one that its figure's JSON describes.

    Examples
    --------
    >>> files = saekit.plots.splitting_flow(saekit.splitting_tree(family)).save("flow", folder=".")
    >>> write_index(".").name
    'README.md'
    """
    folder = Path(folder)
    groups: dict[str, list[dict[str, Any]]] = {}
    for manifest in _manifests(folder):
        _check_files(folder, manifest)
        groups.setdefault(manifest["name"][:2], []).append(manifest)
    if not groups:
        raise FileNotFoundError(f"{folder} holds no figures to index (files that save_figure wrote).")
    heads = {number: _heading(folder, number) for number in groups}
    whole = len(groups) > 1
    contents = [
        f"- [{_markdown(title)}](#{_anchor(title)}) ({len(groups[number])}): {_markdown(question)}"
        for number, (title, question, _) in heads.items()
    ]
    sections = [
        "# Figures\n\nEach figure comes with the numbers that it shows (CSV), a record of what it was made "
        "from (JSON) and a LaTeX environment that includes it. The same inputs give the same bytes. "
        "`saekit cite NAME` prints BibTeX and LaTeX.\n",
        *(["\n".join(contents) + "\n"] if whole else []),
    ]
    for number, manifests in groups.items():
        title, question, links = heads[number]
        if whole:
            about = f"\n*{_markdown(question)}* · {links}\n" if links else ""
            sections.append(f"## {_markdown(title)}\n{about}")
        titles = [_title(manifest) for manifest in manifests]
        sections += [_section(folder, manifest, titles.count(_title(manifest)) > 1) for manifest in manifests]
    write_bytes(folder / "README.md", "\n".join(sections).encode())
    return folder / "README.md"


# ---------------------------------------------------------------------- helpers


def _manifests(folder: Path) -> Iterator[dict[str, Any]]:
    return (_read_manifest(path) for path in sorted(folder.glob("*.json")))


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} holds no figure {path.stem}: {path.name} is not there.")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not a figure's JSON: its format is not {FORMAT!r}.")
    return manifest


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    name = manifest["name"]
    for file, expected in manifest["files"].items():
        if not (folder / file).exists():
            raise FileNotFoundError(f"Figure {name} lacks {file}: save it again.")
        if hash_file(folder / file) != expected:
            raise ValueError(f"{file} is not the file that {name}.json describes: save the figure again.")


def _title(manifest: dict[str, Any]) -> str:
    """The first sentence of the caption."""
    title: str = manifest["caption"].partition(". ")[0]
    return title.rstrip(".")


def _heading(folder: Path, number: str) -> tuple[str, str, str]:
    """Title and question of the notebook with this number, and links to it and to its question's page."""
    root = folder.resolve().parent
    notebook = next(iter((root / "notebooks").glob(f"{number}_*.ipynb")), None) if number.isdigit() else None
    if notebook is None:
        return "Other figures", "", ""
    first = "".join(read_json(notebook)["cells"][0]["source"])
    title, question = re.search(r"^# (.+)$", first, re.M), re.search(r"\*\*(.+?)\*\*", first, re.S)
    links = [f"[notebook](../notebooks/{notebook.name})"]
    for page in sorted((root / "docs" / "questions").glob("*.md")):
        if f"notebooks/{notebook.stem}.md" in page.read_text(encoding="utf-8"):
            links.append(f"[{page.stem.replace('_', ' ')}](../docs/questions/{page.name})")
    return title[1] if title else notebook.stem, question[1] if question else "", " · ".join(links)


def _section(folder: Path, manifest: dict[str, Any], named: bool) -> str:
    """One figure; its name is in the heading if another one of the group has the same title."""
    name, suffixes = manifest["name"], (*SUFFIXES, "json")
    width = round(manifest["size_in"][0] * 140)  # as wide beside each other as in print
    alt = " ".join(manifest["alt"].split()).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    files = " · ".join(f"[{suffix.upper()}]({name}.{suffix})" for suffix in suffixes)
    return (
        f"### {_markdown(_title(manifest))}{f' ({_markdown(name)})' if named else ''}\n\n"
        f'<a href="{name}.pdf"><img src="{name}.png" width="{width}" alt="{alt}"></a>\n\n'
        f"{_markdown(manifest['caption'].partition('. ')[2] or manifest['caption'])}\n\n"
        f"`{name}` · {files}\n\n"
        f"<details><summary>BibTeX</summary>\n\n"
        f"```bibtex\n{citation(name, folder=folder)}```\n\n</details>\n"
    )


def _markdown(text: str) -> str:
    """Plain text as Markdown: special characters escaped, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _anchor(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
