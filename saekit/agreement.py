"""The one place that decides whether a model, activations and dictionaries belong together.

A contradiction is an error, a missing record is a warning, and `allow_mismatch=True`, which every
analysis takes, turns errors into warnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor
from torch.nn import Module

from saekit.activations import Activations, ActivationStore, as_activations
from saekit.dictionary import Dictionary, origin_of, require_dictionaries
from saekit.identity import UnrecordedWarning
from saekit.models import compare_models, describe_model, require_evaluation
from saekit.warn import warn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saekit.streaming import StreamedActivations

SIZES = ("d_in", "d_out", "d_in + d_out")
NO_TARGET = "none (no target)"
WAY_ROUND = "Pass allow_mismatch=True if this is what you want."


class Recorded(Protocol):
    """Activations of another form that record where they come from."""

    @property
    def name(self) -> str:
        """A name for messages."""

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""

    @property
    def hook_point(self) -> str | None:
        """Where they were read."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The record of where they come from."""


class MismatchError(ValueError):
    """Model, activations and dictionaries that do not belong together."""


class MismatchWarning(UserWarning):
    """The same, where `allow_mismatch=True` lets it pass."""


def refuse(message: str, *, allow_mismatch: bool) -> None:
    """Raise a `MismatchError` that names the way round; where that is taken, warn.

    Examples
    --------
    >>> refuse("The two are of different tokens.", allow_mismatch=False)
    Traceback (most recent call last):
        ...
    saekit.agreement.MismatchError: The two are of different tokens. Pass allow_mismatch=True ...
    """
    if not allow_mismatch:
        raise MismatchError(f"{message} {WAY_ROUND}")
    warn(message, MismatchWarning)


def check_agreement(
    *,
    model: TransformerBridge | None = None,
    activations: Activations | StreamedActivations | Recorded | None = None,
    dictionaries: Sequence[Dictionary] = (),
    allow_mismatch: bool = False,
) -> None:
    """Check that a model, activations and dictionaries belong together.

    It compares the model (`saekit.models.compare_models`: weights where both sides record them, else
    name and revision, and how the weights were processed), the hook point, and `d_in`. A plain tensor
    or array records nothing, so only its dimension counts.

    Parameters
    ----------
    model : TransformerBridge, optional
        The model that an analysis runs.
    activations : ActivationStore, StreamedActivations, Tensor or array, optional
        The activations that it reads.
    dictionaries : sequence of Dictionary
        The dictionaries that it uses.
    allow_mismatch : bool
        Warn instead of raising. A different `d_in` is always an error.

    Raises
    ------
    TypeError
        If an argument has the wrong type, for example because two were swapped.
    MismatchError
        If two of them contradict each other; the message names both, with their values.
    ValueError
        If the model is in training mode, or the weights of a dictionary are no longer finite.

    Warns
    -----
    UnrecordedWarning
        If one of them does not record something that another one does.
    MismatchWarning
        Instead of a `MismatchError`, with `allow_mismatch`.

    Examples
    --------
    >>> check_agreement(dictionaries=[small, large])
    >>> info = {"hook_point": "blocks.3.hook_resid_post"}
    >>> elsewhere = saekit.Dictionary.from_weights(torch.rand(6, 8), torch.rand(8, 6), d_in=6, info=info)
    >>> check_agreement(dictionaries=[small, elsewhere])
    Traceback (most recent call last):
        ...
    saekit.agreement.MismatchError: relu 8 (seed 0) at blocks.0.hook_resid_post ...
    """
    if model is not None and not isinstance(model, Module):
        raise TypeError(f"model must be a model from saekit.load_model, found {type(model).__name__}.")
    require_dictionaries(**{f"dictionaries[{i}]": one for i, one in enumerate(dictionaries)})
    for dictionary in dictionaries:
        dictionary.require_finite()
    if isinstance(activations, Module | Dictionary | str | Path):
        found = type(activations).__name__
        raise TypeError(f"Activations must be an ActivationStore, a tensor or a NumPy array, found {found}.")
    for first, second in pairwise(dictionaries):
        if first.W_dec.dtype != second.W_dec.dtype:
            kinds = [str(d.W_dec.dtype).removeprefix("torch.") for d in (first, second)]
            raise MismatchError(
                f"{first.identity.described} is {kinds[0]}, but {second.identity.described} is {kinds[1]}: "
                "convert one of them with .to(dtype=torch.float32)."
            )
    records = [_of_dictionary(dictionary) for dictionary in dictionaries]
    if activations is not None:
        records.append(_of_activations(activations))
    if model is not None:
        require_evaluation(model)
        records.append({"who": lambda: "the model", "model": describe_model(model)})
    unrecorded: dict[str, tuple[str, str]] = {}
    mismatched: dict[str, str] = {}
    for here, there in combinations(records, 2):
        for what, a, b in _compared(here, there):
            if a == b:
                continue
            if a is None or b is None:
                lacks, has = (here, there) if a is None else (there, here)
                if what not in unrecorded:
                    unrecorded[what] = lacks["who"](), has["who"]()
                continue
            message = (
                f"{here['who']()} and {there['who']()} do not belong together: the first has {what} "
                f"{shown(a)}, the second {shown(b)}."
            )
            if what in SIZES:
                raise MismatchError(message)
            mismatched.setdefault(what, message)
    for message in mismatched.values():
        refuse(message, allow_mismatch=allow_mismatch)
    for pair in dict.fromkeys(unrecorded.values()):
        lacking = " and ".join(what for what, where in unrecorded.items() if where == pair)
        warn(
            f"{pair[0]} does not record its {lacking}, which could not be compared with that of {pair[1]}.",
            UnrecordedWarning,
        )


def compare_records(
    dictionary: Dictionary, activations: Activations | StreamedActivations
) -> list[tuple[str, Any, Any]]:
    """Everything that `check_agreement` compares: the name, and the values for dictionary and activations.

    Examples
    --------
    >>> [(what, mine) for what, mine, theirs in compare_records(small, x)]
    [('d_in', 6)]
    """
    return list(_compared(_of_dictionary(dictionary), _of_activations(activations)))


def _of_dictionary(dictionary: Dictionary) -> dict[str, Any]:
    origin = origin_of(dictionary.info)
    return {
        "who": lambda: dictionary.identity.described,  # a hash, needed for sentences only
        "d_in": dictionary.d_in,
        "d_out": dictionary.d_out if dictionary.transcoder else NO_TARGET,
        "hook point": origin.get("hook_point"),
        **({"target": origin.get("target")} if dictionary.transcoder else {}),
        "model": {
            "name": origin.get("model"),
            "weights": origin.get("model_weights"),
            "revision": origin.get("model_revision"),
            "processing": origin.get("model_processing"),
        },
    }


def _of_activations(activations: Activations | StreamedActivations | Recorded) -> dict[str, Any]:
    """The record of activations; entries that they lack are left out and so not compared."""
    if isinstance(activations, Tensor | np.ndarray):
        activations = as_activations(activations)
    if isinstance(activations, Tensor):
        return {"who": lambda: "the activations", "columns": activations.shape[1]}
    if isinstance(activations, ActivationStore):
        who = f"the store {activations.path.name}"
    else:
        who = getattr(activations, "name", "the stream")
    record = {
        "who": lambda: who,
        "d_in": activations.d_in,
        "d_out": activations.manifest.get("d_out", NO_TARGET),
        "hook point": activations.hook_point,
        "target": activations.manifest.get("target"),
        "model": activations.manifest.get("model"),
    }
    return {what: value for what, value in record.items() if value is not None}


def _compared(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The entries that two records have in common."""
    for what in ("d_in", "d_out", "hook point", "target"):
        if what in here and what in there:
            yield what, here[what], there[what]
    # Of a plain tensor, only the number of columns is known: inputs, and targets beside them.
    sizes = [record for record in (here, there) if "d_in" in record]
    if len(sizes) == 1 and "columns" in {**here, **there}:
        d_in, d_out = sizes[0]["d_in"], sizes[0]["d_out"]
        what, columns = ("d_in", d_in) if d_out == NO_TARGET else ("d_in + d_out", d_in + d_out)
        yield what, here.get("columns", columns), there.get("columns", columns)
    if "model" in here and "model" in there:
        yield from compare_models(here["model"], there["model"])


def shown(value: Any) -> str:
    """A compared value as text, for a sentence or a table.

    Examples
    --------
    >>> shown(None), shown("blocks.0.hook_resid_post")
    ('None', 'blocks.0.hook_resid_post')
    """
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value)[:12] if len(str(value)) == 64 else str(value)
