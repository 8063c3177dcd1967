"""The door: whether model, activations and dictionaries belong together, asked in one place.

What contradicts is an error; what is not recorded is a warning. `allow_mismatch=True` of an
analysis turns errors into warnings, and is the only way round.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saekit.dictionary import Dictionary
from saekit.models import describe_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saekit.activations import ActivationStore

WAY_ROUND = "Pass allow_mismatch=True if this is what you want."


class MismatchError(ValueError):
    """Model, activations and dictionaries that do not belong together."""


class UnrecordedWarning(UserWarning):
    """Something that should be compared is recorded on one side only."""


def check_agreement(
    *,
    model: TransformerBridge | None = None,
    activations: ActivationStore | Tensor | None = None,
    dictionaries: Sequence[Dictionary] = (),
    allow_mismatch: bool = False,
) -> None:
    """Hold a model, activations and dictionaries against each other.

    Compared are the model (weights, revision, processing; by name where no weights are recorded),
    the hook point, and `d_in`. A plain tensor records nothing, so only its dimension counts.

    Parameters
    ----------
    model : TransformerBridge, optional
        The model that an analysis runs.
    activations : ActivationStore or Tensor, optional
        What it reads.
    dictionaries : sequence of Dictionary
        What it asks.
    allow_mismatch : bool
        Warn instead of raising. A `d_in` that does not fit is an error all the same.

    Raises
    ------
    MismatchError
        If two of them contradict each other; the sentence names both, and what each records.

    Warns
    -----
    UnrecordedWarning
        If a dictionary does not record what the store or the model does.
    """
    records = [_of_dictionary(dictionary) for dictionary in dictionaries]
    if isinstance(activations, Tensor):
        if activations.ndim != 2:
            raise ValueError(f"Activations must be [n, d_in], found shape {list(activations.shape)}.")
        records.append({"who": "the activations", "d_in": activations.shape[1]})
    elif activations is not None:
        records.append(_of_store(activations))
    if model is not None:
        records.append({"who": "the model given", **_of_model(describe_model(model))})
    for here, there in _pairs(records):
        _hold(here, there, allow_mismatch)


def _pairs(records: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Neighbours, and everything with the last: one contradiction is enough."""
    last = records[-1:] * max(0, len(records) - 2)
    return [*pairwise(records), *zip(records[:-2], last, strict=True)]


def _of_dictionary(dictionary: Dictionary) -> dict[str, Any]:
    info = dictionary.info
    processing = info.get("model_processing")
    if processing is None and "training" in info:
        processing = {}  # saekit did not record processing before it could be on
    return {
        "who": dictionary.identity.described,
        "dictionary": True,
        "d_in": dictionary.d_in,
        "hook_point": info.get("hook_point"),
        "model": info.get("model"),
        "weights": info.get("model_weights"),
        "revision": info.get("model_revision"),
        "processing": processing,
    }


def _of_store(store: ActivationStore) -> dict[str, Any]:
    model = store.manifest.get("model")
    return {
        "who": f"the store {store.path.name}" if hasattr(store, "path") else "the activations",
        "d_in": store.d_in,
        "hook_point": store.manifest.get("hook_point"),
        **({} if model is None else _of_model(model)),
    }


def _of_model(described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": described["name"],
        "weights": described.get("weights"),
        "revision": described["revision"],
        "processing": described["processing"],
    }


def _hold(here: Mapping[str, Any], there: Mapping[str, Any], allow_mismatch: bool) -> None:
    if None not in (d := (here.get("d_in"), there.get("d_in"))) and d[0] != d[1]:
        raise MismatchError(f"{here['who']} has d_in {d[0]}, but {there['who']} has {d[1]}.")
    for what, a, b in _compared(here, there):
        if a is None or b is None:
            if (a is None) != (b is None) and (here if a is None else there).get("dictionary"):
                lacks, has, value = (here, there, b) if a is None else (there, here, a)
                warnings.warn(
                    f"{lacks['who']} does not record its {what}, so it was not compared with that of "
                    f"{has['who']} ({_shown(value)}).",
                    UnrecordedWarning,
                    stacklevel=4,
                )
        elif a != b:
            message = (
                f"{here['who']} and {there['who']} do not belong together: the {what} is {_shown(a)} "
                f"for the first and {_shown(b)} for the second."
            )
            if not allow_mismatch:
                raise MismatchError(f"{message} {WAY_ROUND}")
            warnings.warn(message, stacklevel=4)


def _compared(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What two records say of the same thing; where weights are on both sides, names do not count."""
    hook_point = ("hook point", here.get("hook_point"), there.get("hook_point"))
    if "model" not in here or "model" not in there:
        return [hook_point] if "hook_point" in here and "hook_point" in there else []
    if here["weights"] and there["weights"]:
        model = [("model (weights)", here["weights"], there["weights"])]
    else:
        model = [("model", _own_name(here["model"]), _own_name(there["model"]))]
        if here["revision"] and there["revision"]:
            model.append(("model revision", here["revision"], there["revision"]))
    points = [hook_point] if "hook_point" in here and "hook_point" in there else []
    return [*points, *model, ("weight processing", _flags(here["processing"]), _flags(there["processing"]))]


def _own_name(name: str | None) -> str | None:
    """A model's name without its organisation, which a local folder does not have."""
    return None if name is None else str(name).rpartition("/")[2]


def _flags(processing: Mapping[str, bool] | None) -> tuple[str, ...] | None:
    """The flags that are on."""
    return None if processing is None else tuple(sorted(flag for flag, on in processing.items() if on))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value)[:12] if len(str(value)) == 64 else str(value)
