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
    found = [format for format in FORMATS if format.recognises(path)]
    if not found:
        raise ValueError(
            f"{path} holds no SAE that saekit recognises: expected one of "
            + "; ".join(f"{format.files} ({format.name})" for format in FORMATS)
            + "."
        )
    sae = found[0].read(path)
    return replace(sae, info={**sae.info, "format": found[0].name})


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
