"""The activations that training reads: a store, a stream, or plain tensors and arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from saekit.activations import Activations, as_activations
from saekit.files import hash_json, hash_tensors

SAMPLE = 32_768  # positions that the input's mean and scale are estimated from


@runtime_checkable
class Source(Protocol):
    """The activations that training needs: `ActivationStore` and `StreamedActivations` have this."""

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""

    @property
    def manifest(self) -> dict[str, Any]:
        """The record of where they come from."""

    @property
    def content_hash(self) -> str:
        """Hash of the content."""

    @property
    def positions(self) -> Tensor:
        """Positions to train on."""

    def read(self, positions: Tensor) -> Tensor:
        """Activations at some positions."""

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Batches in a random order, from a step on."""


class TensorSource:
    """A plain tensor of activations `[n, d_in]` as a source."""

    def __init__(self, x: Tensor) -> None:
        if not len(x):
            raise ValueError(f"There is nothing to train on: the activations are {list(x.shape)}.")
        self.x = x
        self.d_in = x.shape[1]
        self.positions = torch.arange(len(x))
        self.manifest: dict[str, Any] = {}  # and so no target: a transcoder is trained on a store
        self.content_hash = hash_tensors({"activations": x})

    def read(self, positions: Tensor) -> Tensor:
        """Activations at positions `[n]`, float32."""
        return self.x[positions].float()

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Endless batches; the order is a function of seed and epoch."""
        per_epoch = len(self.x) // batch_size
        epoch, step = divmod(start_step, per_epoch)
        while True:
            stream = int(hash_json([seed, epoch])[:15], 16)
            order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(stream))
            for i in range(step, per_epoch):
                yield self.read(order[i * batch_size : (i + 1) * batch_size])
            epoch, step = epoch + 1, 0


def as_source(activations: Source | Activations) -> Source:
    """A store, a stream, or a tensor or array of activations `[n, d_in]` as a source.

    Raises
    ------
    TypeError, ValueError
        As `saekit.activations.as_activations`.
    """
    if isinstance(activations, Source):
        return activations
    found = as_activations(activations)
    return TensorSource(found) if isinstance(found, Tensor) else found


def sides(source: Source) -> list[int]:
    """Columns of a source's rows: `[d_in]`, or `[d_in, d_out]` where it has the targets of a transcoder."""
    d_out = source.manifest.get("d_out", 0)
    return [source.d_in, d_out] if d_out else [source.d_in]


def normalisation(source: Source) -> list[tuple[Tensor, float]]:
    """Mean and scale that centre activations and give them norm `sqrt(d_in)` on average.

    Estimated from positions spread evenly over the data.

    Returns
    -------
    list of tuple
        For the inputs, and for the targets where there are some: mean, float32 `[d]`, and the factor on
        centred activations.

    Raises
    ------
    ValueError
        If the sample is not finite or does not vary.
    """
    sample = source.read(spread(source.positions, SAMPLE)).double()
    found = []
    for part, what in zip(sample.split(sides(source), dim=1), ("activations", "targets"), strict=False):
        mean = part.mean(0)
        norm = float((part - mean).norm(dim=1).mean())
        if not (norm > 0 and math.isfinite(norm)):
            why = "do not vary" if norm == 0 else "hold values that are not finite"
            raise ValueError(f"There is nothing to train on: the {what} {why}.")
        found.append((mean.float(), math.sqrt(part.shape[1]) / norm))
    return found


def spread(positions: Tensor, n: int) -> Tensor:
    """At most `n` of the positions, spread evenly."""
    if len(positions) <= n:
        return positions
    return positions[torch.arange(n) * len(positions) // n]
