"""Cached results: the return value of an analysis is read again for the same inputs and code.

It is off unless the environment variable `SAEKIT_CACHE` is set, as `saekit reproduce` does for the
notebooks that it runs, or the call is within `keeping()`, as in `saekit.build_atlas`. The cache is under
`saekit.files.home()`, in a folder for each version of saekit's source, torch, NumPy and pandas, which may
be deleted at any time.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
import xxhash
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import atomic_path, hash_json, home, source_hash
from saekit.identity import fingerprint
from saekit.models import describe_model, device_of
from saekit.warn import warn

P = ParamSpec("P")
R = TypeVar("R")
_keeping: ContextVar[bool] = ContextVar("keeping", default=False)


@contextmanager
def keeping(keep: bool = True) -> Iterator[None]:
    """Cache results within this context as if `SAEKIT_CACHE` were set; with `keep=False` change nothing.

    Examples
    --------
    >>> with keeping():
    ...     folder = results_folder()
    >>> folder is None
    False
    """
    token = _keeping.set(keep or _keeping.get())
    try:
        yield
    finally:
        _keeping.reset(token)


def cached(function: Callable[P, R], *, unless: Collection[str] = ()) -> Callable[P, R]:
    """Cache a function's return values, by the content of its arguments, while `SAEKIT_CACHE` is set.

    Arguments count by content: dictionaries and stores by their hashes, models by that of their
    weights, tensors and tables by their values, results by all of these. Only `progress` does not
    count. Arguments, such as a dictionary, are referred to and not copied: a result read from the
    cache holds those of the call. Files are written atomically; a damaged one is written again.

    A call warns again when its result is read. It runs, and its result is not kept, where the source
    has changed since it was imported, or a model has hooks; and, with a warning, where an argument has no
    content that could be compared or the result cannot be written.

    Parameters
    ----------
    function : callable
        Has no side effects, except when it is given one of `unless`.
    unless : collection of str
        Keyword parameters with side effects, such as a checkpoint to write: such a call always runs.

    Examples
    --------
    >>> @cached
    ... def total(x):
    ...     return float(x.sum())
    >>> total(torch.ones(3))
    3.0
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        folder = results_folder()
        if folder is None or any(kwargs.get(name) for name in unless):
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "progress"}
        live: list[Any] = []
        try:
            key = hash_json([f"{function.__module__}.{function.__qualname__}", _content(arguments, live)])
        except TypeError as error:
            warn(str(error))
            return function(*args, **kwargs)
        if any(_is_model(part) and _is_hooked(part) for part in live):
            return function(*args, **kwargs)
        file = folder / f"{function.__name__}-{key[:24]}.pickle"
        found: tuple[R, list[Any]] | None = _read(file, live)
        if found is None:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                result = function(*args, **kwargs)
            said = [(str(each.message), each.category, each.filename, each.lineno) for each in warned]
            found = result, said
            _write(file, found, live)
        for each in found[1]:
            warnings.warn_explicit(*each)
        return found[0]

    return call


def results_folder() -> Path | None:
    """The folder in which results of this code are kept; None if they are not.

    Examples
    --------
    >>> results_folder() is None  # unless SAEKIT_CACHE is set
    True
    """
    if not (_keeping.get() or os.environ.get("SAEKIT_CACHE")) or source_hash() != _IMPORTED:
        return None
    return home() / "results" / _code()


def forget_old(*, days: int = 7) -> None:
    """Delete the results of other versions of the code that nothing was written to for some days.

    Examples
    --------
    >>> forget_old()
    """
    for folder in (home() / "results").glob("*"):
        if folder.name != _code() and time.time() - folder.stat().st_mtime > days * 24 * 3600:
            shutil.rmtree(folder)


_IMPORTED = source_hash()
_LIBRARIES = ("torch", "numpy", "pandas", "scipy", "transformers", "transformer-lens")


@functools.cache
def _code() -> str:
    """What computes: the source as this process has imported it, and the libraries."""
    return hash_json([_IMPORTED, [version(name) for name in _LIBRARIES]])[:12]


def _content(value: Any, live: list[Any]) -> Any:
    """A value as JSON that is equal for equal content; its parts, all but plain values, go to `live`."""
    if value is None or isinstance(value, str | bool | int | float | Path | torch.dtype | torch.device):
        return [type(value).__name__, repr(value)]
    live.append(value)
    if isinstance(value, Dictionary | ActivationStore):
        return [type(value).__name__, value.content_hash]
    if isinstance(value, Family):  # whichever of its members were read so far
        return ["Family", [_content(member, live) for member in value]]
    if _is_model(value):
        # Also what the hash of its weights leaves out: their last bits, its config and its mode.
        weights = fingerprint([*value.parameters(), *value.buffers()])
        config = value.original_model.config.to_json_string()
        return ["model", describe_model(value), str(device_of(value)), weights, config, value.training]
    if isinstance(value, Tensor):
        return ["tensor", str(value.device), *fingerprint([value])]
    if isinstance(value, np.generic | np.ndarray) and value.dtype != object:
        data = np.ascontiguousarray(value)
        return ["array", str(data.dtype), list(value.shape), xxhash.xxh3_128_hexdigest(data.tobytes())]
    if isinstance(value, pd.DataFrame):
        columns = [_content(value.iloc[:, place], live) for place in range(value.shape[1])]
        return ["frame", _content(list(value.columns), live), columns]
    if isinstance(value, pd.Series | pd.Index):
        index = _content(value.index, live) if isinstance(value, pd.Series) else None
        return [type(value).__name__, str(value.dtype), _content(value.to_list(), live), index]
    if hasattr(value, "get_vocab"):  # a tokenizer
        vocabulary = sorted(value.get_vocab().items())
        return [type(value).__name__, hash_json(vocabulary), value.all_special_ids]
    if isinstance(value, Mapping):
        return ["mapping", [[_content(part, live) for part in item] for item in value.items()]]
    if isinstance(value, list | tuple | np.ndarray):
        return [type(value).__name__, [_content(part, live) for part in value]]
    kind = type(value)
    if isinstance(value, FunctionType | type) and "<" not in value.__qualname__:
        return ["function", f"{value.__module__}.{value.__qualname__}"]
    if kind.__module__.partition(".")[0] == __package__:
        derived = functools.cached_property  # computed from the rest, perhaps not yet
        made = {name for base in kind.__mro__ for name, of in vars(base).items() if isinstance(of, derived)}
        parts = {name: _content(part, live) for name, part in vars(value).items() if name not in made}
        return [f"{kind.__module__}.{kind.__qualname__}", parts]
    raise TypeError(
        f"A result cannot be kept for an argument of type {kind.__name__}, whose content saekit cannot "
        "compare: run without SAEKIT_CACHE."
    )


def _is_model(value: Any) -> bool:
    bridges = sys.modules.get("transformer_lens.model_bridge")
    return bridges is not None and isinstance(value, bridges.TransformerBridge)


def _is_hooked(model: Any) -> bool:
    return any(point.has_hooks() for point in model.hook_dict.values())


class _Pickler(pickle.Pickler):
    """Refers to arguments of the call instead of writing them."""

    def __init__(self, file: Any, live: list[Any]) -> None:
        super().__init__(file, protocol=5)
        self._places = {id(part): place for place, part in enumerate(live)}

    def persistent_id(self, part: Any) -> int | None:
        place = self._places.get(id(part))
        if place is None and (isinstance(part, ActivationStore) or _is_model(part)):
            raise pickle.PicklingError("A result that holds a store or a model of its own cannot be cached.")
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, live: list[Any]) -> None:
        super().__init__(file)
        self._live = live

    def persistent_load(self, place: int) -> Any:
        return self._live[place]


def _write(file: Path, found: tuple[Any, list[Any]], live: list[Any]) -> None:
    try:
        with atomic_path(file) as temporary, open(temporary, "wb") as opened:
            _Pickler(opened, live).dump(found)
    except (OSError, pickle.PicklingError, AttributeError, TypeError) as error:
        warn(f"A result is not kept: {error}")


def _read(file: Path, live: list[Any]) -> tuple[Any, list[Any]] | None:
    """The result in a file and the warnings of its call, if there is one that can be read."""
    try:
        with open(file, "rb") as opened:
            found: tuple[Any, list[Any]] = _Unpickler(opened, live).load()
            return found
    except OSError:
        return None
    except Exception as error:  # damaged bytes raise nearly anything
        warn(f"{file} is damaged ({error!r}): it is computed and written again.")
        return None
