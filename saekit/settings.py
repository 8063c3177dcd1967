"""Settings checked and normalised as they are given: the one place that does this.

Notebooks hand over NumPy integers, zero-dimensional tensors and strings. Each function here takes
the setting's name and the value, and returns a plain Python value or raises one sentence that
names the setting, what was expected and what was found.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch

Rule = Callable[[str, Any], Any]  # a setting's name and value in, its plain value out


def normalise(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Check the fields of a frozen dataclass of settings and make them plain, in its `__post_init__`.

    Parameters
    ----------
    settings : dataclass
        Its fields are replaced in place; those without a rule stay as they are.
    rules : mapping
        A rule for each field, such as `whole` or `optional(positive)`.

    Raises
    ------
    TypeError, ValueError
        As the rules raise.
    """
    for field in fields(settings):
        if rule := rules.get(field.name):
            object.__setattr__(settings, field.name, rule(field.name, getattr(settings, field.name)))


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
        number = operator.index(_single(value))
    except (TypeError, ValueError):
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
        if isinstance(value, str):
            raise TypeError
        number = float(_single(value))
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold, found a larger one.") from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, found {value!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, found {number}.")
    if above is not None and not number > above:
        raise ValueError(f"{name} must be above {above:g}, found {number:g}.")
    return float(_in_range(name, number, at_least, at_most))


positive = partial(real, above=0)
share = partial(real, at_least=0, at_most=1)


def optional(rule: Rule) -> Rule:
    """A rule that lets None through."""
    return lambda name, value: None if value is None else rule(name, value)


def flag(name: str, value: Any) -> bool:
    """True or False, including NumPy's and torch's; numbers are refused.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if not _is_boolean(value):
        raise TypeError(f"{name} must be True or False, found {value!r}.")
    return bool(value)


def several(rule: Rule) -> Rule:
    """A rule for a sequence whose values must each meet another rule; returns a tuple.

    A string is not a sequence here.
    """

    def check(name: str, value: Any) -> tuple[Any, ...]:
        values = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(f"{name} must be a sequence, found {value!r}.")
        return tuple(rule(f"{name}[{i}]", one) for i, one in enumerate(values))

    return check


def cosine(name: str, value: Any) -> float:
    """A cosine to compare latents by, such as theta: from 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If it is not such a number.
    """
    return share(name, value)


def choice(name: str, value: Any, options: Collection[str]) -> str:
    """One of a few words.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, found {value!r}.")
    return str(value)


def device(value: str | torch.device) -> torch.device:
    """A device that torch has on this machine.

    Raises
    ------
    ValueError
        If torch does not know it, or the machine has none.
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


def torch_dtype(value: torch.dtype) -> torch.dtype:
    """A dtype of torch's.

    Raises
    ------
    TypeError
        If it is something else, such as the name of one.

    Examples
    --------
    >>> torch_dtype("float32")
    Traceback (most recent call last):
        ...
    TypeError: dtype must be one of torch's, such as torch.float32, found 'float32'.
    """
    if not isinstance(value, torch.dtype):
        raise TypeError(f"dtype must be one of torch's, such as torch.float32, found {value!r}.")
    return value


def finite(what: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with values that are not finite, without a copy of it, since it may be large.

    Parameters
    ----------
    what : str
        Beginning of the sentence, such as `"W_enc holds"`.
    tensor : Tensor
        Of any shape.

    Raises
    ------
    ValueError
        If a value is infinite or not a number.
    """
    if tensor.numel() and not all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax()):
        raise ValueError(f"{what} values that are not finite.")


def _is_boolean(value: Any) -> bool:
    """Whether it is one Boolean, of Python, NumPy or torch."""
    dtype = str(getattr(value, "dtype", ""))
    return isinstance(value, bool) or (dtype in ("bool", "torch.bool") and value.ndim == 0)


def _single(value: Any) -> Any:
    """A value that is neither a Boolean nor an array of several dimensions, else a TypeError."""
    if _is_boolean(value) or getattr(value, "ndim", 0) != 0:
        raise TypeError
    return value


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
