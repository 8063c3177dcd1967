"""From a name to an SAE or a family: the one place where names, paths and hub ids are resolved."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.dictionary import Described, Dictionary
from saekit.family import Family, Member
from saekit.files import read_json
from saekit.folding import Unfolded
from saekit.loading import releases
from saekit.loading.formats import is_sae, read
from saekit.loading.hub import fetch

BUNDLED = Path(__file__).parents[1] / "series" / "data"  # one folder a kind, and the tables


# ---------------------------------------------------------------------- one SAE


def open_sae(source: str | Path, *, revision: str | None = None) -> Unfolded:
    """An SAE in a foreign format, recognised and checked, with its matrices still in the file.

    Parameters
    ----------
    source : str or Path
        A file or folder of one of `FORMATS`; the name of a published SAE (`releases_table`), such as
        `"gpt2-small-res-jb/blocks.8.hook_resid_pre"`; or a file or folder on the hub, as
        `"organisation/repository/path"`.
    revision : str, optional
        Branch, tag or commit on the hub.

    Returns
    -------
    Unfolded
        Its `fold()` reads the matrices; `info["format"]` names the format, and what comes from the
        hub has `repo`, `commit` and `sha256` there.

    Raises
    ------
    FileNotFoundError
        If there is nothing of this name.
    ValueError
        If no format is recognised, or the files are not what their format says or not what was
        published.
    PermissionError, ConnectionError
        If the hub does not give the files, or is away (see `saekit.loading.hub.fetch`).
    """
    path, name = Path(source), str(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"Local files have no revision, found revision={revision!r} for {path}.")
        return read(path)
    if published := releases.find(name):
        if len(published) > 1:
            members = ", ".join(sae.name for sae in published)
            raise ValueError(f"{name} holds {len(published)} SAEs, of which one can be loaded: {members}.")
        return published[0].open(revision)
    if (place := _on_the_hub(name)) is None:
        raise FileNotFoundError(f"There is no file or folder {path}, and no published SAE of this name.")
    fetched = fetch(*place, revision or "main")
    sae = read(fetched.path)
    return replace(sae, info={**sae.info, **fetched.info})


def _on_the_hub(name: str) -> tuple[str, str] | None:
    """Repository and path of `"organisation/repository/path"`; None of what cannot be one."""
    organisation, _, rest = name.partition("/")
    repository, _, path = rest.partition("/")
    if not repository or not organisation.strip(".~"):
        return None
    return f"{organisation}/{repository}", path.strip("/")


def load_sae(
    source: str | Path,
    *,
    latents: Sequence[int] | slice | Tensor | None = None,
    revision: str | None = None,
) -> Dictionary:
    """An SAE of any format as a `Dictionary`.

    Parameters
    ----------
    source : str or Path
        What `open_sae` takes, or a folder that `Dictionary.save` wrote.
    latents : sequence of int, slice or Tensor, optional
        Only these latents, in this order; all if left out. Memory is used for these alone.
    revision : str, optional
        Branch, tag or commit on the hub.

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError
        As `open_sae`.
    ValueError
        As `open_sae` and `Unfolded.fold`.
    """
    path = Path(source)
    if (path / "dictionary.json").is_file():
        dictionary = Dictionary.load(path)
        return dictionary if latents is None else dictionary.gather(torch.arange(dictionary.width)[latents])
    return open_sae(source, revision=revision).fold(latents)


# ---------------------------------------------------------------------- a family


@dataclass(frozen=True)
class Saved(Described):
    """A folder that `Dictionary.save` wrote, of which only the JSON has been read."""

    folder: Path
    d_in: int
    width: int
    info: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Saved:
        """Read the JSON; `fold` checks the whole."""
        header = read_json(folder / "dictionary.json")
        try:
            return cls(folder, header["d_in"], header["width"], header["info"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'dictionary.json'} does not describe a dictionary.") from error

    def fold(self) -> Dictionary:
        """Read the dictionary."""
        return Dictionary.load(self.folder)


def load_family(source: str | Path | Sequence[str | Path]) -> Family:
    """A family of dictionaries, each read when it is asked for.

    Parameters
    ----------
    source : str, Path or sequence of them
        `"relu"` or `"batchtopk"` for the bundled ones (see `bundled_table`), which are read at once;
        a folder of dictionaries such as `Family.save` writes, or of SAEs in foreign formats; a
        glob of such SAEs; published SAEs (see `releases_table`), such as
        `"gpt2-small-res-jb-feature-splitting"` or `"gemma-scope-2b-pt-res/layer_12"`, of which each
        is downloaded when it is asked for; or a list of these and of whatever `load_sae` takes.

    Raises
    ------
    FileNotFoundError
        If there is nothing of this name, or it holds no dictionaries.
    ValueError
        If what is there is no family, or no SAE.
    """
    sources = [source] if isinstance(source, str | Path) else source
    return Family(member for one in sources for member in _members(one))


def _members(source: str | Path) -> Sequence[Dictionary | Member]:
    name, path = str(source), Path(source)
    bundled = [folder.name for folder in sorted(BUNDLED.iterdir()) if any(folder.glob("*/dictionary.json"))]
    if name in bundled:
        return list(Family(_below(BUNDLED / name)))
    if path.exists():
        return [_open(path)] if is_sae(path) or path.is_file() else _below(path)
    if published := releases.find(name):
        return published
    if found := [path for path in map(Path, sorted(glob.glob(name, recursive=True))) if is_sae(path)]:
        return [_open(path) for path in found]
    if "/" in name:
        return [open_sae(name)]
    raise FileNotFoundError(
        f"There is no family {name!r}: expected one of {', '.join(bundled)}, a release, or a folder or "
        "glob of dictionaries."
    )


def _below(folder: Path) -> list[Member]:
    members = [_open(path) for path in sorted(folder.glob("*")) if is_sae(path)]
    if not members:
        raise FileNotFoundError(f"{folder} holds no dictionaries: no SAE in it or in a folder right below.")
    return members


def _open(path: Path) -> Member:
    return Saved.open(path) if (path / "dictionary.json").is_file() else open_sae(path)
