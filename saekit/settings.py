"""Settings as they are given, checked and normalised: the one place where this is done.

Notebooks hand over NumPy integers, zero-dimensional tensors and strings. Each function here takes
the setting's name and the value, and returns a plain Python value or raises one sentence that
names the setting, what was expected and what was found.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any

import torch


def whole(name: str, value: Any, *, at_least: int | None = 1, at_most: int | None = None) -> int:
    """A whole number as an `int`; a float, even 2.0, is refused, and so is a Boolean.

    Raises
    ------
    TypeError
        If it is not a whole number.
    ValueError
        If it is out of range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, found {value!r}.") from None
    return int(_in_range(name, number, at_least, at_most))


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """A finite number as a `float`.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not finite, or out of range.
    """
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, found {value!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, found {number}.")
    if above is not None and not number > above:
        raise ValueError(f"{name} must be above {above:g}, found {number:g}.")
    return _in_range(name, number, at_least, at_most)


def cosine(name: str, value: Any) -> float:
    """A cosine to compare latents by, such as theta: from 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If it is not such a number.
    """
    return real(name, value, at_least=0, at_most=1)


def choice(name: str, value: Any, options: Collection[str]) -> str:
    """One of a few words.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, found {value!r}.")
    return str(value)


def device(value: str | torch.device) -> torch.device:
    """A device that torch has here.

    Raises
    ------
    ValueError
        If torch does not know it, or has none.
    """
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        here = ["cpu"]
        here += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"There is no device {str(value)!r} for torch {torch.__version__} here: "
            f"choose one of {', '.join(here)}."
        ) from None
    return found


def _in_range(name: str, number: Any, at_least: float | None, at_most: float | None) -> Any:
    low = at_least is not None and number < at_least
    high = at_most is not None and number > at_most
    if low or high:
        if at_least is None:
            expected = f"at most {at_most:g}"
        elif at_most is None:
            expected = f"at least {at_least:g}"
        else:
            expected = f"between {at_least:g} and {at_most:g}"
        raise ValueError(f"{name} must be {expected}, found {number}.")
    return number
