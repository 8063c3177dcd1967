"""What a number would be without the structure that it is to show: nulls of directions and of rows."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saekit.activations import random_stream
from saekit.dictionary import Dictionary

NULLS = ("columns permuted", "random directions")  # of a dictionary
ROW_NULLS = ("columns permuted", "Gaussian")  # of rows that a meta-SAE is trained on


def null_dictionary(dictionary: Dictionary, null: str, *, seed: int = 0) -> Dictionary:
    """A dictionary without structure, of the same width and dimension, to compare directions with.

    Parameters
    ----------
    dictionary : Dictionary
        What to imitate.
    null : {"columns permuted", "random directions"}
        Either the values of each dimension are shuffled among the latents (which keeps every
        dimension's distribution and with it the mean direction; encoder and decoder alike), or
        directions are drawn evenly from the sphere.
    seed : int
        Of the shuffle or draw.

    Returns
    -------
    Dictionary
        With decoder rows of unit norm. Only its directions mean something: it reconstructs
        nothing.

    Raises
    ------
    ValueError
        If there is no such null.
    """
    if null not in NULLS:
        raise ValueError(f"The nulls are {' and '.join(map(repr, NULLS))}, found {null!r}.")
    decoder, encoder = dictionary.W_dec.cpu(), dictionary.W_enc.T.cpu()
    if null == "columns permuted":
        decoder, encoder = (null_rows(rows, null, seed=seed) for rows in (decoder, encoder))
    else:
        random = random_stream(seed, dictionary.width)
        decoder, encoder = (torch.randn(rows.shape, generator=random) for rows in (decoder, encoder))
    return replace(
        dictionary,
        W_dec=F.normalize(decoder, dim=1).to(dictionary.W_dec),
        W_enc=encoder.T.contiguous().to(dictionary.W_enc),
        info={**dictionary.info, "kind": f"{dictionary.kind}-{null.replace(' ', '-')}"},
    )


def null_rows(rows: Tensor, kind: str, *, seed: int = 0) -> Tensor:
    """Rows without the structure that a meta-SAE is to find.

    Parameters
    ----------
    rows : Tensor
        `[n, d]`.
    kind : str
        `"columns permuted"`: each column permuted within itself, so that every dimension keeps its
        distribution, and dimensions become independent. `"Gaussian"`: Gaussian rows, given that
        their mean and covariance are exactly those of `rows`.
    seed : int
        Of the draw.

    Raises
    ------
    ValueError
        If the kind is neither.
    """
    if kind not in ROW_NULLS:
        raise ValueError(f"There is no null {kind!r}; expected one of {', '.join(ROW_NULLS)}.")
    generator = torch.Generator().manual_seed(seed)
    if kind == "columns permuted":
        order = torch.rand(rows.shape, generator=generator).argsort(dim=0)
        return rows.gather(0, order)
    mean = rows.double().mean(0)
    _, singular, axes = torch.linalg.svd(rows.double() - mean, full_matrices=False)
    rank = min(len(rows) - 1, rows.shape[1])
    # Given mean and covariance, the left singular vectors of a Gaussian sample are uniform among
    # those orthogonal to the constant vector.
    draw = torch.randn(len(rows), rank, generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(draw - draw.mean(0)).Q
    return ((left * singular[:rank]) @ axes[:rank] + mean).to(rows.dtype)
