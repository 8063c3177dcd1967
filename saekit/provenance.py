"""The inputs of a result: identities and hashes, without clocks or paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.family import Family


def provenance_of(**inputs: ActivationStore | Dictionary | Family | None) -> dict[str, dict[str, Any]]:
    """Identity of every named input, as JSON values: the `inputs` of a figure.

    The figure itself adds versions and the hash of the code that it came through.

    Parameters
    ----------
    **inputs : ActivationStore, Dictionary or Family
        Inputs of a notebook or a figure, by their names in the record; None is left out. A family has
        one entry per member.

    Returns
    -------
    dict
        By name: `what`, `model`, `hook_point` and `hash`, and for stores `positions` and
        `excluded`.

    Raises
    ------
    TypeError
        If an input is none of the three.

    Examples
    --------
    >>> record = saekit.provenance_of(small=small)
    >>> record["small"]["what"], record["small"]["hook_point"]
    ('relu 8 (seed 0)', 'blocks.0.hook_resid_post')
    """
    record: dict[str, dict[str, Any]] = {}
    for name, value in inputs.items():
        if value is None:
            continue
        if isinstance(value, Family):
            for member in value:
                record[f"{name} {member.width} seed {member.seed}"] = _describe(member)
        else:
            record[name] = _describe(value)
    return record


def provenance_table(inputs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The output of `provenance_of` as a table to read: hashes shortened, blanks where nothing applies.

    Parameters
    ----------
    inputs : mapping
        From `provenance_of`.

    Returns
    -------
    DataFrame
        One row per input.

    Examples
    --------
    >>> record = saekit.provenance_of(small=small, large=large)
    >>> saekit.provenance_table(record)[["what", "hook_point"]]
                       what                hook_point
    small   relu 8 (seed 0)  blocks.0.hook_resid_post
    large  relu 12 (seed 0)  blocks.0.hook_resid_post
    """
    table = pd.DataFrame(dict(inputs)).T
    return table.assign(hash=table["hash"].str[:12]).fillna("")


def _describe(value: ActivationStore | Dictionary) -> dict[str, Any]:
    if isinstance(value, Dictionary):
        return {
            "what": value.name,
            "model": value.info.get("model"),
            "hook_point": _place(value),
            "hash": value.content_hash,
        }
    if isinstance(value, ActivationStore):
        return {
            "what": f"activations in {value.manifest['dtype']}",
            "model": value.model_name,
            "hook_point": _place(value),
            "hash": value.content_hash,
            "positions": value.n_tokens,
            "excluded": value.excluded_counts["total"],
        }
    raise TypeError(f"Provenance takes stores, dictionaries and families, found {type(value).__name__}.")


def _place(value: ActivationStore | Dictionary) -> str | None:
    """The hook point, and the target of a transcoder."""
    return value.hook_point if value.target is None else f"{value.hook_point} → {value.target}"
