"""Selections of latents: indices, masks, columns of a frame. The one place that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        Whole numbers from 0 to `width - 1`, in any order and with repeats, or a Boolean mask with one
        entry per latent. A Series counts by its values, whatever its index; but a Boolean one whose
        index holds 0 to `width - 1` in another order, as in a sorted frame, goes by its index. A
        slice works as in Python: one that reaches too far ends at the last latent.
    width : int
        Number of latents there are to select from.
    what : str
        Their name in errors.

    Raises
    ------
    TypeError
        If they are neither whole numbers nor Booleans.
    IndexError
        If one is out of range; negative numbers are out of range.
    ValueError
        If a mask does not have `width` entries, they are not in one dimension, or 8-bit zeros and ones
        could be either a mask or numbers.
    """
    if isinstance(latents, slice):
        return _sliced(latents, width, what)
    if isinstance(latents, pd.Series):
        latents = _by_index(latents, width)
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
    if values.dtype == torch.uint8 and len(values) == width and not (values > 1).any():
        raise ValueError(
            f"{width} zeros and ones of 8 bits could be a mask or numbers of {what}: pass Booleans (.bool()) "
            "for a mask, int64 for numbers."
        )
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
    return int(select_latents(values.long(), width, what=what)[0])


def _sliced(latents: slice, width: int, what: str) -> Tensor:
    try:
        found = range(width)[latents]
    except (TypeError, ValueError):
        raise TypeError(
            f"A slice of {what} needs whole numbers and a step other than 0, found {latents}."
        ) from None
    return torch.arange(len(found)) * found.step + found.start


def _by_index(latents: pd.Series, width: int) -> pd.Series:
    """A mask from a frame in another order, put in the order of its index."""
    index = latents.index
    if pd.api.types.is_integer_dtype(index.dtype) and len(index) == width:
        is_mask = pd.api.types.is_bool_dtype(latents.infer_objects().dtype)
        if is_mask and np.array_equal(np.sort(index.to_numpy()), np.arange(width)):
            return latents.sort_index()
    return latents


def _values(latents: Any, what: str) -> Tensor:
    """The selection as a tensor of whole numbers, Booleans or (to be refused) floats."""
    if latents is None or isinstance(
        latents, int | float | str | bytes | bytearray | Mapping | np.ma.MaskedArray | np.generic
    ):
        raise TypeError(_REFUSED.format(what, f"{type(latents).__name__} {latents!r}"))
    if isinstance(latents, Tensor):
        if latents.is_meta or latents.layout != torch.strided:
            kind = "a meta tensor" if latents.is_meta else "a sparse tensor"
            raise TypeError(_REFUSED.format(what, kind))
        tensor = latents.detach().cpu()
        if tensor.dtype not in (torch.uint16, torch.uint32, torch.uint64):  # which torch cannot compare
            return tensor
        latents = tensor.numpy()
    if isinstance(latents, pd.Series | pd.Index):
        latents = latents.to_numpy()
    array = latents if isinstance(latents, np.ndarray) else np.asarray(items := list(latents))
    if latents is not array or array.dtype == object:
        # Python would take True among numbers for 1, and a pandas column of Booleans may hold a gap.
        kinds = {_kind(value) for value in (array.flat if latents is array else items)}
        if len(kinds) > 1 or kinds & {"other"}:
            raise TypeError(_REFUSED.format(what, "values of several or other types"))
        if array.dtype == object:
            try:
                array = array.astype(bool if kinds == {"Boolean"} else np.int64)
            except OverflowError:
                raise IndexError(_TOO_LARGE.format(what, max(array, key=abs))) from None
    if array.dtype.kind not in "biuf":
        raise TypeError(_REFUSED.format(what, f"{array.dtype} values"))
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise IndexError(_TOO_LARGE.format(what, array.max()))
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


_TOO_LARGE = "{} must be numbers of 64 bits, found {}."
_REFUSED = "{} must be whole numbers or a Boolean mask, found {}."


def _kind(value: Any) -> str:
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if isinstance(value, bool | np.bool_) or kind == "b" or getattr(value, "dtype", None) == torch.bool:
        return "Boolean"
    if isinstance(value, list | tuple | np.ndarray | Tensor) and np.ndim(value):
        return "row"
    return "number" if isinstance(value, int | float | np.number | Tensor) else "other"
