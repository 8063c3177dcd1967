"""What a result was made from: identities and hashes, without clocks or paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.families import Family
from saekit.figures import package_versions, source_hash


def provenance(**inputs: ActivationStore | Dictionary | Family | None) -> dict[str, Any]:
    """Identity of the software and of every named input, as JSON values.

    Parameters
    ----------
    **inputs : ActivationStore, Dictionary or Family
        What a notebook or a figure reads, by the name it should have in the record; None is
        left out.

    Returns
    -------
    dict
        `versions`, `saekit_source` (SHA-256 of the package's own source) and one entry an
        input.
    """
    described = {name: describe(value) for name, value in inputs.items() if value is not None}
    return {"versions": package_versions(), "saekit_source": source_hash(), **described}


def describe(value: ActivationStore | Dictionary | Family) -> dict[str, Any] | list[dict[str, Any]]:
    """Name and hash of one input; for a family, of each member.

    Raises
    ------
    TypeError
        If it is none of the three.
    """
    if isinstance(value, Family):
        return [_describe_dictionary(member) for member in value]
    if isinstance(value, Dictionary):
        return _describe_dictionary(value)
    if isinstance(value, ActivationStore):
        manifest: Mapping[str, Any] = value.manifest
        return {
            "model": manifest["model"],
            "hook_point": value.hook_point,
            "corpus": manifest["corpus"],
            "dtype": manifest["dtype"],
            "positions": value.n_tokens,
            "excluded": value.excluded_counts,
            "hash": manifest["hash"],
        }
    raise TypeError(f"Provenance takes stores, dictionaries and families, found {type(value).__name__}.")


def _describe_dictionary(dictionary: Dictionary) -> dict[str, Any]:
    return {
        "name": dictionary.name,
        "model": dictionary.info.get("model"),
        "hook_point": dictionary.hook_point,
        "hash": dictionary.content_hash,
    }
