"""Write a static site of a family's latents: resumable, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from saekit.files import read_json, writable_folder, write_bytes, write_json
from saekit.selection import Latents
from saekit.site.pages import BLOCK, ROWS, Chapter, Site
from saekit.widgets.atlas import Atlas
from saekit.wording import listed

FORMAT = "saekit-site-1"
MANIFEST = "site.json"
FRONT = "index.html"


def export_site(
    atlas: Atlas,
    folder: str | Path,
    *,
    widths: Sequence[int] | None = None,
    latents: Latents | None = None,
    progress: bool = True,
) -> Path:
    """Write a site with a page for every latent, to read and search without a server or a network.

    All links are relative, so the folder can be opened from disk, sent or put on any server. Pages are
    written one after the other, so memory does not grow with their number. An interrupted call resumes
    when it is repeated, with the same bytes as one that was not.

    Parameters
    ----------
    atlas : Atlas
        The family and everything that its pages look up (`saekit.widgets.build_atlas`).
    folder : str or Path
        Empty, or with the beginning of the same site.
    widths : sequence of int, optional
        Widths that have pages; all if left out.
    latents : tensor, array, Series or list, optional
        Latents of every width that have pages; all if left out.
    progress : bool
        Show progress in pages.

    Returns
    -------
    Path
        The front page.

    Raises
    ------
    ValueError
        If the folder holds a site of other inputs or other files, or the family has no such width.
    IndexError
        If one of the widths has no such latent.
    OSError
        If the folder cannot be written.

    Examples
    --------
    >>> from saekit.widgets import build_atlas
    >>> atlas = build_atlas(saes, harvested, model, keep=False, progress=False)
    >>> page = saekit.export_site(atlas, "site", widths=[16], progress=False)
    >>> page.name, len(list(page.parent.glob("16/*/*.html")))
    ('index.html', 16)
    """
    site = Site(atlas, widths=widths, latents=latents)
    folder = Path(folder)
    _require_own(folder, site)
    writable_folder(folder)
    for left in folder.rglob(".*.tmp"):  # of a call that was killed
        left.unlink()
    write_json(folder / MANIFEST, {"format": FORMAT, "title": site.title, "inputs": site.inputs})
    for name, data in Site.assets().items():
        write_bytes(folder / name, data)
    total = sum(len(chapter.latents) for chapter in site.chapters)
    with tqdm(total=total, unit=" pages", disable=not progress) as bar:
        for chapter in site.chapters:
            for part in range(chapter.parts):
                _write_part(site, chapter, part, folder, bar)
    # Last, so that a site with a front page is whole.
    write_bytes(folder / FRONT, site.front())
    return folder / FRONT


def _write_part(site: Site, chapter: Chapter, part: int, folder: Path, bar: tqdm) -> None:
    """Write what the folder lacks of a part: pages, tables and, last, the file of the search index."""
    index = folder / str(chapter.width) / f"search-{part}.js"
    places = range(part * BLOCK, min((part + 1) * BLOCK, len(chapter.latents)))
    if index.exists():
        bar.update(len(places))
        return
    for place in places:
        page = folder / site.path(chapter.width, int(chapter.latents[place]))
        if not page.exists():
            write_bytes(page, site.latent(chapter, place))
        bar.update()
    records = site.records(chapter, part)
    for start in range(0, len(records), ROWS):
        number = (part * BLOCK + start) // ROWS
        name = chapter.tables[number]
        write_bytes(
            folder / str(chapter.width) / name, site.table(chapter, number, records[start : start + ROWS])
        )
    write_bytes(index, site.index(chapter, part, records))


def require_site_folder(folder: str | Path) -> Path:
    """Refuse, before anything is loaded, a folder that holds anything but a site.

    Raises
    ------
    ValueError
        If it does.

    Examples
    --------
    >>> require_site_folder("new-site").name
    'new-site'
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _manifest(folder):
        raise ValueError(f"{folder} holds other files: write the site to an empty folder.")
    return folder


def _require_own(folder: Path, site: Site) -> None:
    """Refuse a folder that holds anything but the beginning of this site.

    Raises
    ------
    ValueError
        If it does.
    """
    found = _manifest(require_site_folder(folder)).get("inputs", site.inputs)
    other = [name for name, value in site.inputs.items() if found.get(name) != value]
    if other:
        raise ValueError(
            f"{folder} holds a site of other inputs ({listed(other)} changed): write to another folder, or "
            "delete it."
        )


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the site in a folder, empty if there is none."""
    file = folder / MANIFEST
    record = read_json(file) if file.is_file() else {}
    return record if isinstance(record, dict) and record.get("format") == FORMAT else {}
