"""Latents as people select them: indices, masks, columns of a frame. The one place that reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

Latents: TypeAlias = "Tensor | np.ndarray | pd.Series | pd.Index | slice | Iterable[int]"


def select_latents(latents: Latents, width: int, *, what: str = "latents") -> Tensor:
    """Indices of the selected latents, int64 `[n]` on the CPU, in the order given.

    Parameters
    ----------
    latents : tensor, array, Series, slice, list or other iterable
        Whole numbers from 0 to `width - 1`, in any order and with repeats, or a Boolean mask with
        one entry per latent. A Series counts by its values, whatever its index.
    width : int
        Number of latents there are to select from.
    what : str
        What they are called in an error.

    Raises
    ------
    TypeError
        If they are neither whole numbers nor Booleans.
    IndexError
        If one is out of range; negative numbers are.
    ValueError
        If a mask does not have `width` entries, or they are not in one dimension.
    """
    if isinstance(latents, slice):
        return torch.arange(width)[latents]
    values = _values(latents, what)
    if values.ndim != 1:
        raise ValueError(f"{what} must be in one dimension, found shape {list(values.shape)}.")
    if values.dtype == torch.bool:
        if len(values) != width:
            raise ValueError(
                f"A Boolean mask of {what} needs one entry for each of the {width} {what}, "
                f"found {len(values)}."
            )
        return values.nonzero()[:, 0]
    if values.dtype.is_floating_point or values.dtype.is_complex:
        if len(values):
            raise TypeError(
                f"{what} must be whole numbers or a Boolean mask, found {str(values.dtype)[6:]} values."
            )
        return torch.zeros(0, dtype=torch.long)
    outside = (values < 0) | (values >= width)
    if outside.any():
        found = int(values[outside][0])
        raise IndexError(f"{what} must be between 0 and {width - 1}, found {found}.")
    return values.long()


def select_latent(latent: Any, width: int, *, what: str = "latent") -> int:
    """One latent as an `int`.

    Raises
    ------
    TypeError, IndexError
        If it is not one whole number, or is out of range.
    """
    values = _values([latent], what)
    if values.ndim != 1 or values.dtype == torch.bool or values.dtype.is_floating_point:
        raise TypeError(f"{what} must be one whole number, found {latent!r}.")
    return int(select_latents(values, width, what=what)[0])


def _values(latents: Any, what: str) -> Tensor:
    """What was given as a tensor of whole numbers, Booleans or (to be refused) floats."""
    if isinstance(latents, Tensor):
        return latents.detach().cpu()
    if isinstance(latents, pd.Series | pd.Index):
        latents = latents.to_numpy()
    array = latents if isinstance(latents, np.ndarray) else np.asarray(items := list(latents))
    if latents is not array or array.dtype == object:
        # Python would take True among numbers for 1, and a pandas column of Booleans may hold a gap.
        kinds = {_kind(value) for value in (array.flat if latents is array else items)}
        if len(kinds) > 1 or kinds & {"other"}:
            raise TypeError(_REFUSED.format(what, "values of several or other types"))
        if array.dtype == object:
            array = array.astype(bool if kinds == {"Boolean"} else np.int64)
    if array.dtype.kind not in "biuf":
        raise TypeError(_REFUSED.format(what, f"{array.dtype} values"))
    signed = array.astype(np.int64) if array.dtype.kind == "u" else array
    return torch.from_numpy(np.array(signed))


_REFUSED = "{} must be whole numbers or a Boolean mask, found {}."


def _kind(value: Any) -> str:
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if isinstance(value, bool | np.bool_) or kind == "b" or getattr(value, "dtype", None) == torch.bool:
        return "Boolean"
    if isinstance(value, list | tuple | np.ndarray | Tensor) and np.ndim(value):
        return "row"
    return "number" if isinstance(value, int | float | np.number | Tensor) else "other"
