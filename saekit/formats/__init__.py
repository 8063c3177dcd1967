"""SAEs of other libraries, read as the one `Dictionary`; a format is a module and a line of `FORMATS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

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

FORMATS = (
    saelens.FORMAT,
    dictionary_learning.FORMAT,
    gemma_scope.FORMAT,
    sparsify.FORMAT,
    batchtopk.FORMAT,
    hook_z.FORMAT,
    openai.FORMAT,
)


def open_sae(source: str | Path) -> Unfolded:
    """An SAE in a foreign format, recognised and checked, with its matrices still in the file.

    Parameters
    ----------
    source : str or Path
        A file or folder of one of `FORMATS`.

    Returns
    -------
    Unfolded
        Its `fold()` reads the matrices; `info["format"]` names the format.

    Raises
    ------
    FileNotFoundError
        If there is nothing at this path.
    ValueError
        If no format is recognised, or the files are not what their format says.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if (format := _recognise(path)) is None:
        raise ValueError(
            f"{path} holds no SAE that saekit recognises: expected one of "
            + "; ".join(f"{format.files} ({format.name})" for format in FORMATS)
            + "."
        )
    sae = format.read(path)
    return replace(sae, info={**sae.info, "format": format.name})


def is_sae(path: Path) -> bool:
    """Whether this is the file or folder of an SAE: a foreign one, or one that `Dictionary.save` wrote."""
    return (path / "dictionary.json").is_file() or _recognise(path) is not None


def _recognise(path: Path) -> Format | None:
    return next((format for format in FORMATS if format.recognises(path)), None)


def load_sae(source: str | Path, *, latents: Sequence[int] | slice | Tensor | None = None) -> Dictionary:
    """An SAE of any format as a `Dictionary`.

    Parameters
    ----------
    source : str or Path
        A file or folder of one of `FORMATS`, or a folder that `Dictionary.save` wrote.
    latents : sequence of int, slice or Tensor, optional
        Only these latents, in this order; all if left out. Memory is used for these alone.

    Raises
    ------
    FileNotFoundError
        If there is nothing at this path.
    ValueError
        As `open_sae` and `Unfolded.fold`, with the path in front.
    """
    path = Path(source)
    if (path / "dictionary.json").is_file():
        dictionary = Dictionary.load(path)
        return dictionary if latents is None else dictionary.gather(torch.arange(dictionary.width)[latents])
    sae = open_sae(path)
    try:
        return sae.fold(latents)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
