"""The identity of a dictionary or a model: decided here, by content, and never parsed from a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor


class UnrecordedWarning(UserWarning):
    """Something that should be compared is recorded on one side only."""


@dataclass(frozen=True, eq=False)
class Identity:
    """The record that a result keeps of a dictionary.

    Two are equal if their content is equal: only `hash` decides.

    Attributes
    ----------
    name : str
        For tables and legends, such as `"relu 1152 (seed 0)"`.
    kind : str
        The training variant, or another origin; `"unknown"` if it is not recorded.
    width : int
        Number of latents.
    seed : int or None
        Seed of the training run, if known.
    hook_point : str or None
        The hook point of its activations, if known.
    hash : str
        SHA-256 of tensors and record (`Dictionary.content_hash`).
    """

    name: str
    kind: str
    width: int
    seed: int | None
    hook_point: str | None
    hash: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __str__(self) -> str:
        return self.name

    def require(self, found: Identity, role: str) -> None:
        """Refuse another dictionary in place of this one.

        Parameters
        ----------
        found : Identity
            The dictionary that was given.
        role : str
            The role of this one in the result, such as `"The insertion's small dictionary"`.

        Raises
        ------
        ValueError
            If the two differ in content.
        """
        if self != found:
            raise ValueError(f"{role} was {self.described}, but {found.described} was given in its place.")

    @property
    def described(self) -> str:
        """Name, hook point and the first digits of the hash: enough to tell two apart in an error."""
        place = "" if self.hook_point is None else f" at {self.hook_point}"
        return f"{self.name}{place} [{self.hash[:8]}]"


def fingerprint(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Shapes, types and checksums (xxh3) of tensors: whether a hash computed earlier still holds.

    It reads every value but is far faster than a hash, and a copy has the same fingerprint. It does
    not protect against tampering.
    """
    return tuple((tuple(tensor.shape), str(tensor.dtype), _checksum(tensor)) for tensor in tensors)


def _checksum(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data)


def hash_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named weights, each rounded to bfloat16: the same whatever dtype they are loaded in."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        for part in tensor.detach().reshape(-1).split(1 << 24):
            rounded = part.to(torch.bfloat16).cpu().contiguous()
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_distinct(identities: Iterable[Identity], purpose: str) -> None:
    """Refuse a dictionary that was given twice: under one name, one of the two would be lost.

    Raises
    ------
    ValueError
        If two have the same content.

    Examples
    --------
    >>> require_distinct([small.identity, large.identity], "The comparison")
    >>> require_distinct([small.identity, small.identity], "The comparison")
    Traceback (most recent call last):
        ...
    ValueError: The comparison needs different dictionaries, found relu 8 (seed 0) at ... twice.
    """
    seen: set[Identity] = set()
    for identity in identities:
        if identity in seen:
            raise ValueError(f"{purpose} needs different dictionaries, found {identity.described} twice.")
        seen.add(identity)


def distinct_names(identities: Iterable[Identity]) -> list[str]:
    """Names for a table, each with the beginning of its hash where another dictionary has the same name."""
    found = list(identities)
    hashes: dict[str, set[str]] = {}
    for identity in found:
        hashes.setdefault(identity.name, set()).add(identity.hash)
    return [f"{i.name} [{i.hash[:8]}]" if len(hashes[i.name]) > 1 else i.name for i in found]
