"""SAEs of other libraries, read as the one `Dictionary`; a format is a module and a line of `FORMATS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from saekit import releases
from saekit.dictionary import Dictionary
from saekit.folding import Unfolded
from saekit.formats import (
    batchtopk,
    dictionary_learning,
    gemma_scope,
    hook_z,
    openai,
    saelens,
    sparsify,
)
from saekit.formats.common import Format
from saekit.hub import fetch

FORMATS = (
    saelens.FORMAT,
    dictionary_learning.FORMAT,
    gemma_scope.FORMAT,
    sparsify.FORMAT,
    batchtopk.FORMAT,
    hook_z.FORMAT,
    openai.FORMAT,
)


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
        If the hub does not give the files, or is away (see `saekit.hub.fetch`).
    """
    path, name = Path(source), str(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"Local files have no revision, found revision={revision!r} for {path}.")
        return _read(path)
    if published := releases.find(name):
        if len(published) > 1:
            members = ", ".join(sae.name for sae in published)
            raise ValueError(f"{name} holds {len(published)} SAEs, of which one can be loaded: {members}.")
        return published[0].open(revision)
    if (place := _on_the_hub(name)) is None:
        raise FileNotFoundError(f"There is no file or folder {path}, and no published SAE of this name.")
    fetched = fetch(*place, revision or "main")
    sae = _read(fetched.path)
    return replace(sae, info={**sae.info, **fetched.info})


def _read(path: Path) -> Unfolded:
    if (format := _recognise(path)) is None:
        raise ValueError(
            f"{path} holds no SAE that saekit recognises: expected one of "
            + "; ".join(f"{format.files} ({format.name})" for format in FORMATS)
            + "."
        )
    sae = format.read(path)
    return replace(sae, info={**sae.info, "format": format.name}, origin=path)


def _recognise(path: Path) -> Format | None:
    return next((format for format in FORMATS if format.recognises(path)), None)


def _on_the_hub(name: str) -> tuple[str, str] | None:
    """Repository and path of `"organisation/repository/path"`; None of what cannot be one."""
    organisation, _, rest = name.partition("/")
    repository, _, path = rest.partition("/")
    if not repository or not organisation.strip(".~"):
        return None
    return f"{organisation}/{repository}", path.strip("/")


def is_sae(path: Path) -> bool:
    """Whether this is the file or folder of an SAE: a foreign one, or one that `Dictionary.save` wrote."""
    return (path / "dictionary.json").is_file() or _recognise(path) is not None


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
