"""SAEs of other libraries, read as the one `Dictionary`; a format is a module and a line of `FORMATS`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from saekit.folding import Unfolded
from saekit.loading.formats import (
    batchtopk,
    dictionary_learning,
    gemma_scope,
    hook_z,
    openai,
    saelens,
    sparsify,
)
from saekit.loading.formats.tensor_file import Format

FORMATS = (
    saelens.FORMAT,
    dictionary_learning.FORMAT,
    gemma_scope.FORMAT,
    sparsify.FORMAT,
    batchtopk.FORMAT,
    hook_z.FORMAT,
    openai.FORMAT,
)


def read(path: Path) -> Unfolded:
    """An SAE in a file or folder of one of `FORMATS`, its matrices still in the file.

    Raises
    ------
    ValueError
        If no format is recognised, or the files are not what their format says.
    """
    if (format := recognise(path)) is None:
        raise ValueError(
            f"{path} holds no SAE that saekit recognises: expected one of "
            + "; ".join(f"{format.files} ({format.name})" for format in FORMATS)
            + "."
        )
    sae = format.read(path)
    return replace(sae, info={**sae.info, "format": format.name}, origin=path)


def recognise(path: Path) -> Format | None:
    """The format of a file or folder, if it is one of `FORMATS`."""
    return next((format for format in FORMATS if format.recognises(path)), None)


def is_sae(path: Path) -> bool:
    """Whether this is the file or folder of an SAE: a foreign one, or one that `Dictionary.save` wrote."""
    return (path / "dictionary.json").is_file() or recognise(path) is not None
