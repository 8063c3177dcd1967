"""What a dictionary or a model is: decided here, by content, and nowhere read out of a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SAMPLE = 64  # values of each tensor by which a change that torch did not count is noticed


@dataclass(frozen=True, eq=False)
class Identity:
    """What a result says of a dictionary that it is about.

    Two are equal if their content is: `hash` decides, and nothing else.

    Attributes
    ----------
    name : str
        For tables and legends, such as `"relu 1152 (seed 0)"`.
    kind : str
        The training variant, or what else made it; `"unknown"` if that is not recorded.
    width : int
        Number of latents.
    seed : int or None
        Of the training run, if known.
    hook_point : str or None
        Where its activations come from, if known.
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
        """Refuse another dictionary in the place of this one.

        Parameters
        ----------
        found : Identity
            Of the dictionary that was given.
        role : str
            What this one was to the result, such as `"The insertion's small dictionary"`.

        Raises
        ------
        ValueError
            If the two differ in content.
        """
        if self != found:
            raise ValueError(f"{role} was {self.described}, but {found.described} was given in its place.")

    @property
    def described(self) -> str:
        """Name, hook point and the beginning of the hash: enough to tell two apart in an error."""
        place = "" if self.hook_point is None else f" at {self.hook_point}"
        return f"{self.name}{place} [{self.hash[:8]}]"


def fingerprint(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """A cheap key that changes when tensors do: addresses, torch's counts of changes, sampled values.

    It tells whether a hash that was computed earlier still holds, and is good for nothing else.
    """
    key: list[Any] = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLE, len(flat)), dtype=torch.float64)
        sample = flat[places.long().to(flat.device)].cpu()
        bits = sample.contiguous().view(torch.uint8).numpy().tobytes()
        key.append((tensor.data_ptr(), tensor._version, tuple(tensor.shape), str(tensor.dtype), bits))
    return tuple(key)


def hash_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named weights, each rounded to bfloat16: the same whatever dtype they are loaded in."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        for part in tensor.detach().reshape(-1).split(1 << 24):
            rounded = part.to(torch.bfloat16).cpu().contiguous()
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def distinct_names(identities: Iterable[Identity]) -> list[str]:
    """Names for a table, each with the beginning of its hash where another dictionary has the same name."""
    found = list(identities)
    hashes: dict[str, set[str]] = {}
    for identity in found:
        hashes.setdefault(identity.name, set()).add(identity.hash)
    return [f"{i.name} [{i.hash[:8]}]" if len(hashes[i.name]) > 1 else i.name for i in found]
