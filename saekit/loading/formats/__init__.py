"""SAEs of other libraries, read as the one `Dictionary`.

A format is a module and a line of `FORMATS`, or an entry point of another package.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from saekit.dictionary import HEADER
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
from saekit.loading.formats.tensor_file import Format, opened_files
from saekit.plugins import registered

FORMATS = (
    saelens.FORMAT,
    dictionary_learning.FORMAT,
    gemma_scope.FORMAT,
    sparsify.FORMAT,
    batchtopk.FORMAT,
    hook_z.FORMAT,
    openai.FORMAT,
)


@cache
def formats() -> tuple[Format, ...]:
    """The formats that can be read: those of saekit, and those that other packages register.

    A package registers a `Format` through an entry point of the group `saekit.formats`.

    Raises
    ------
    ImportError
        If an entry point does not load.
    TypeError, ValueError
        If an entry point is not a `Format`, or has the name of another one.
    """
    known = list(FORMATS)
    for where, found in registered("saekit.formats"):
        if not isinstance(found, Format):
            raise TypeError(
                f"The {where} must be a saekit.loading.formats.Format, found {type(found).__name__}."
            )
        if found.name in {format.name for format in known}:
            raise ValueError(f"The {where} is called {found.name}, like another format.")
        known.append(found)
    return tuple(known)


def read(path: Path) -> Unfolded:
    """An SAE in a file or folder of one of `formats()`, its matrices still in the file.

    Raises
    ------
    ValueError
        If no format is recognised, or more than one, or the files do not follow their format.
    """
    if not (recognised := recognise(path)):
        raise ValueError(f"{path} holds no SAE that saekit recognises: expected one of {known_files()}.")
    if len(recognised) > 1:
        raise ValueError(
            f"{path} holds SAEs of {len(recognised)} formats, {' and '.join(recognised)}: keep each in a "
            "separate folder."
        )
    (format,) = recognised.values()
    with opened_files() as stamps:
        sae = format.read(path)
    return replace(sae, info={**sae.info, "format": format.name}, origin=path, stamps=tuple(stamps))


def known_files() -> str:
    """The files or folders of each format, for an error."""
    return "; ".join(f"{format.files} ({format.name})" for format in formats())


def recognise(path: Path) -> dict[str, Format]:
    """The formats that a file or folder has, by name; one, unless its files are a mix of several."""
    return {format.name: format for format in formats() if format.recognises(path)}


def is_saved(path: Path) -> bool:
    """Whether this is a folder that `Dictionary.save` wrote."""
    return (path / HEADER).is_file()


def is_sae(path: Path) -> bool:
    """Whether this is the file or folder of an SAE: a foreign one, or one that `Dictionary.save` wrote."""
    return is_saved(path) or bool(recognise(path))
