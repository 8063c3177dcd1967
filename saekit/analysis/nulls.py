"""Nulls: dictionaries, directions and rows without the structure that an analysis measures.

Every null of an analysis is made or recognised here, apart from those that only shuffle its own indices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from saekit import settings
from saekit.activations import random_stream
from saekit.dictionary import Dictionary, identity_of
from saekit.folding import with_directions
from saekit.identity import Identity
from saekit.passes import Tokens

NULLS = ("columns permuted", "random directions")  # of a dictionary
ROW_NULLS = ("columns permuted", "Gaussian")  # of rows that a meta-SAE is trained on


class Compared(Protocol):
    """A result about two dictionaries on some tokens."""

    @property
    def small(self) -> Identity | Dictionary:
        """The narrower dictionary."""

    @property
    def large(self) -> Identity | Dictionary:
        """The wider dictionary."""

    @property
    def tokens(self) -> Tokens:
        """The tokens that both were measured on."""


def require_null(result: Compared, null: Compared, *settings: str) -> None:
    """Refuse to set a result beside something that is not its null.

    Parameters
    ----------
    result : Compared
        Between two widths.
    null : Compared
        Between two seeds of one of these widths, on the same tokens.
    *settings : str
        Attributes that both must share, such as `"theta"`.

    Raises
    ------
    ValueError
        If it compares other dictionaries or a dictionary with itself, or if settings or tokens differ.

    Examples
    --------
    >>> result, null = saekit.insertion(small, large, x), saekit.insertion(small, other_seed, x)
    >>> require_null(result, null, "theta")
    >>> require_null(null, result)
    Traceback (most recent call last):
        ...
    ValueError: A null is between ...
    """
    small, large, one, other = map(identity_of, (result.small, result.large, null.small, null.large))
    same = (one.kind, one.width, one.hook_point) == (other.kind, other.width, other.hook_point)
    if not same or one == other or one not in (small, large):
        raise ValueError(
            f"A null is between {small.described} or {large.described} and another seed of its width, "
            f"found {one.described} and {other.described}."
        )
    for name in settings:
        expected, found = getattr(result, name), getattr(null, name)
        if expected != found:
            raise ValueError(f"A null needs the result's {name} {expected}, found {found}.")
    result.tokens.require(null.tokens, f"The {type(result).__name__.lower()}")


def null_dictionary(dictionary: Dictionary, null: str, *, seed: int = 0) -> Dictionary:
    """A dictionary without structure, of the same width and dimension, to compare directions with.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary to imitate.
    null : {"columns permuted", "random directions"}
        Either the values of each dimension are shuffled among the latents (which keeps every
        dimension's distribution and with it the mean direction; encoder and decoder alike), or
        directions are drawn uniformly from the sphere.
    seed : int
        Seed of the shuffle or draw.

    Returns
    -------
    Dictionary
        With decoder rows of unit norm. Only its directions mean something: it reconstructs
        nothing.

    Raises
    ------
    ValueError
        If there is no such null, or the seed is negative.

    Examples
    --------
    >>> null_dictionary(dictionary, "random directions")
    Dictionary(relu-random-directions 8 (seed 0), d_in=6, width=8)
    """
    null, seed = settings.choice("null", null, NULLS), settings.whole("seed", seed, at_least=0)
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


def turned_dictionary(dictionary: Dictionary, W_dec: Tensor, *, seed: int = 0) -> Dictionary:
    """A dictionary whose decoder rows lie as far from its own as `W_dec` does, but in random directions.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary to change; its encoder stays as it is.
    W_dec : Tensor
        `[width, d_in]`: each row of the result has this row's norm, and this row's cosine with the
        dictionary's own direction.
    seed : int
        Seed of the directions.

    Examples
    --------
    >>> turned_dictionary(dictionary, 0.5 * dictionary.W_dec)
    Dictionary(turned relu 8 (seed 0), d_in=6, width=8)
    """
    rows, given = F.normalize(dictionary.W_dec.double(), dim=1), W_dec.double()
    generator = random_stream(settings.whole("seed", seed, at_least=0))
    random = torch.randn(rows.shape, generator=generator, dtype=rows.dtype).to(rows.device)
    along = (rows * given).sum(1, keepdim=True)
    across = (given.square().sum(1, keepdim=True) - along**2).clamp(min=0).sqrt()
    aside = F.normalize(random - (random * rows).sum(1, keepdim=True) * rows, dim=1)
    return with_directions(dictionary, along * rows + across * aside, kind=f"turned {dictionary.kind}")


def random_directions(n: int, d: int, *, seed: int = 0) -> Tensor:
    """Directions drawn uniformly from the sphere, `[n, d]`.

    Examples
    --------
    >>> random_directions(3, 5).norm(dim=1)
    tensor([1., 1., 1.])
    """
    generator = torch.Generator().manual_seed(settings.whole("seed", seed, at_least=0))
    return F.normalize(torch.randn(n, d, generator=generator), dim=1)


def null_rows(rows: Tensor, kind: str, *, seed: int = 0) -> Tensor:
    """Rows without the structure that a meta-SAE looks for.

    Parameters
    ----------
    rows : Tensor
        `[n, d]`.
    kind : str
        `"columns permuted"`: each column permuted within itself, so that every dimension keeps its
        distribution, and dimensions become independent. `"Gaussian"`: Gaussian rows whose mean and
        covariance are exactly those of `rows`.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If the kind is neither, or the seed is negative.

    Examples
    --------
    >>> null_rows(torch.arange(6.0).view(3, 2), "columns permuted").sort(dim=0).values
    tensor([[0., 1.],
            [2., 3.],
            [4., 5.]])
    """
    kind = settings.choice("kind", kind, ROW_NULLS)
    generator = torch.Generator().manual_seed(settings.whole("seed", seed, at_least=0))
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
    drawn: Tensor = (left * singular[:rank]) @ axes[:rank] + mean
    return drawn.to(rows.dtype)
