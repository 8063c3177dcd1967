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
    values = _values(latents)
    if values.ndim != 1:
        raise ValueError(f"{what} must be in one dimension, found shape {list(values.shape)}.")
    if values.dtype == torch.bool:
        if len(values) != width:
            raise ValueError(
                f"A Boolean mask of {what} needs one entry for each of the {width} latents, "
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
    values = _values([latent])
    if values.ndim != 1 or values.dtype == torch.bool or values.dtype.is_floating_point:
        raise TypeError(f"{what} must be one whole number, found {latent!r}.")
    return int(select_latents(values, width, what=what)[0])


def _values(latents: Any) -> Tensor:
    if isinstance(latents, Tensor):
        return latents.detach().cpu()
    if isinstance(latents, pd.Series | pd.Index):
        latents = latents.to_numpy()
    array = latents if isinstance(latents, np.ndarray) else np.asarray(list(latents))
    if array.dtype == object:  # such as a pandas column of nullable Booleans
        kinds = {type(value) for value in array.flat}
        array = array.astype(bool if kinds <= {bool, np.bool_} else np.int64) if array.size else array
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"Latents are selected by whole numbers or a Boolean mask, found {array.dtype} values."
        )
    return torch.from_numpy(
        np.ascontiguousarray(array.astype(np.int64) if array.dtype.kind == "u" else array)
    )
