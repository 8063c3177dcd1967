"""A family: dictionaries of one kind at one hook point, over widths and seeds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from weakref import WeakValueDictionary

from saekit.dictionary import HEADER, Dictionary, origin_of, read_header
from saekit.identity import fingerprint
from saekit.selection import Latents
from saekit.settings import whole
from saekit.warn import warn

# What the members of a family share: keys of `info`, with their names in errors.
PLACE = {
    "hook_point": "hook point",
    "target": "target",
    "layer": "layer",
    "submodule": "submodule",
    "hf_hook_point": "hook point in Hugging Face's names",
    "hf_target": "target in Hugging Face's names",
}
WEIGHTS = "model's weights"


class Member(Protocol):
    """What a family knows about a dictionary before it is asked for, such as an `Unfolded`."""

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""

    @property
    def width(self) -> int:
        """Number of latents."""

    @property
    def kind(self) -> str:
        """Kind of the dictionary."""

    @property
    def transcoder(self) -> bool:
        """Whether it predicts another activation."""

    @property
    def seed(self) -> int | None:
        """Seed, where it is recorded."""

    @property
    def info(self) -> Mapping[str, Any]:
        """The record."""

    def fold(self, latents: Latents | None = None) -> Dictionary:
        """Read it (and download it, where it is not here yet), or some of its latents."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two members of a family to be compared: neighbouring widths, or two seeds of one width.

    Attributes
    ----------
    family : Family
        The family; each member is read when it is asked for.
    small_key, large_key : tuple of int
        Width and seed of each.
    """

    family: Family
    small_key: tuple[int, int]
    large_key: tuple[int, int]

    @property
    def null(self) -> bool:
        """Whether two seeds of one width are compared."""
        return self.small_width == self.large_width

    @property
    def small_width(self) -> int:
        """Width of the first."""
        return self.small_key[0]

    @property
    def large_width(self) -> int:
        """Width of the second."""
        return self.large_key[0]

    @property
    def small(self) -> Dictionary:
        """The narrower dictionary, or that of the lowest seed."""
        return self.family.get(*self.small_key)

    @property
    def large(self) -> Dictionary:
        """The wider dictionary, or that of the other seed."""
        return self.family.get(*self.large_key)

    @property
    def label(self) -> str:
        """Such as `"1152 → 2304"`, `"1152, other seed"`, or `"1152, seed 2"` where there are several."""
        if not self.null:
            return f"{self.small_width} → {self.large_width}"
        several = len(self.family.seeds(self.small_width)) > 2
        return f"{self.small_width}, " + (f"seed {self.large_key[1]}" if several else "other seed")


class Family:
    """Dictionaries of one kind over several widths, with second seeds where there are any.

    A member that is not yet a `Dictionary` is read when it is asked for, and kept only while
    something refers to it: a loop over the family holds one while it reads the next. `Family(family)`
    reads and holds all of them.

    Parameters
    ----------
    members : iterable of Dictionary or Member
        At most one for each width and seed. The lowest seed of a width is the one that
        `family[width]` gives; the others are its nulls.

    Raises
    ------
    ValueError
        If there are no members, two have the same width and seed, or they do not share `d_in`, kind,
        model, processing of its weights, and place (hook point, layer, submodule).

    Warns
    -----
    UserWarning
        If some members record one of these and others do not; a missing record contradicts nothing.
        If two members of one width have the same weights, once both have been read.

    Examples
    --------
    >>> import torch
    >>> eye = torch.eye(4)
    >>> family = Family(Dictionary.from_weights(eye[:n], eye[:n], d_in=4) for n in (1, 2, 3))
    >>> family
    Family(relu, widths=[1, 2, 3], 3 dictionaries at None)
    >>> [comparison.label for comparison in family.comparisons()]
    ['1 → 2', '2 → 3']
    """

    def __init__(self, members: Iterable[Dictionary | Member]) -> None:
        ordered = sorted(members, key=_key)
        if not ordered:
            raise ValueError("A family needs at least one dictionary.")
        _require_one_place(ordered)
        self._first = ordered[0]
        self._members: dict[tuple[int, int], Dictionary | Member] = {}
        self._read: WeakValueDictionary[tuple[int, int], Dictionary] = WeakValueDictionary()
        for member in ordered:
            key = _key(member)
            if key in self._members:
                seed = "no known seed" if member.seed is None else f"seed {member.seed}"
                raise ValueError(f"The family holds two dictionaries of width {member.width} and {seed}.")
            self._members[key] = member
        self._weights: dict[tuple[int, int], Hashable] = {}
        for key, found in self._members.items():
            if isinstance(found, Dictionary):
                self._note(key, found)

    @property
    def kind(self) -> str:
        """The training variant that all members share."""
        return self._first.kind

    @property
    def hook_point(self) -> str | None:
        """The hook point that all members share, if one of them records it."""
        return next((point for m in self._members.values() if (point := m.info.get("hook_point"))), None)

    @property
    def widths(self) -> list[int]:
        """The widths, ascending."""
        return sorted({width for width, _ in self._members})

    def seeds(self, width: int) -> list[int]:
        """The seeds trained at this width, ascending."""
        return sorted(seed for w, seed in self._members if w == width)

    def get(self, width: int, seed: int | None = None) -> Dictionary:
        """The dictionary of this width and seed (the lowest seed if none is named).

        Raises
        ------
        KeyError
            If the family does not hold it.
        ValueError
            If it is read now and turns out to be another dictionary.
        """
        seeds = self.seeds(width)
        if not seeds:
            raise KeyError(f"The {self.kind} family has no width {width}; it has {self.widths}.")
        if seed is None:
            seed = seeds[0]
        if seed not in seeds:
            raise KeyError(f"The {self.kind} family has no seed {seed} at width {width}; it has {seeds}.")
        member = self._members[width, seed]
        if isinstance(member, Dictionary):
            return member
        dictionary = self._read.get((width, seed))
        if dictionary is None:
            try:
                dictionary = self._read[width, seed] = member.fold()
            except ValueError as error:
                raise ValueError(f"The family's member of width {width}: {error}") from error
            self._note((width, seed), dictionary)
        return dictionary

    def _note(self, key: tuple[int, int], member: Dictionary) -> None:
        """Warn of a member with the weights of another: as two seeds they would share everything."""
        if key in self._weights or len(self.seeds(key[0])) == 1:
            return
        weights = fingerprint(member.tensors().values())
        for (width, seed), known in self._weights.items():
            if width == key[0] and known == weights:
                warn(
                    f"The {self.kind} dictionaries of width {width} with the seeds {seed} and {key[1]} have "
                    "the same weights, so they are not two seeds."
                )
        self._weights[key] = weights

    def __getitem__(self, width: int) -> Dictionary:
        return self.get(width)

    def __iter__(self) -> Iterator[Dictionary]:
        return (self.get(*key) for key in self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        members = f"{len(self)} {'dictionary' if len(self) == 1 else 'dictionaries'}"
        return f"Family({self.kind}, widths={self.widths}, {members} at {self.hook_point})"

    def comparisons(self, *, null: bool | None = None) -> list[Comparison]:
        """Neighbouring widths, smallest first, then each width's lowest seed with its other seeds.

        Parameters
        ----------
        null : bool, optional
            Only comparisons between seeds (True) or between widths (False); both if left out.
        """
        first = {width: (width, self.seeds(width)[0]) for width in self.widths}
        widths = [Comparison(self, first[a], first[b]) for a, b in pairwise(self.widths)]
        seeds = [Comparison(self, first[w], (w, seed)) for w in self.widths for seed in self.seeds(w)[1:]]
        return {None: [*widths, *seeds], True: seeds, False: widths}[null]

    @property
    def without_null(self) -> list[int]:
        """Widths with a single seed, whose numbers therefore have no null beside them."""
        return [width for width in self.widths if len(self.seeds(width)) == 1]

    def second_seed(self, width: int) -> Dictionary | None:
        """The null of this width: a dictionary of another seed, or None if there is none."""
        seeds = self.seeds(width)
        return self.get(width, seeds[1]) if len(seeds) > 1 else None

    def save(self, folder: str | Path) -> Path:
        """Write each member to `folder/<width>-seed<seed>`.

        Members of this family that the folder holds already are replaced.

        Raises
        ------
        ValueError
            If the folder holds dictionaries that are not of this family: of another width or seed, or
            of another kind, hook point or model. Nothing is written then.
        OSError
            If the folder cannot be written.
        """
        folder = Path(folder)
        names = {key: f"{key[0]}-seed{key[1]}" for key in self._members}
        records = {name: _record(self._members[key]) for key, name in names.items()}
        foreign = []
        for header in sorted(folder.glob(f"*/{HEADER}")):
            expected = records.get(header.parent.name)
            if expected is None or not _agrees(expected, read_header(header.parent)):
                foreign.append(header.parent.name)
        if foreign:
            raise ValueError(
                f"{folder} holds {', '.join(foreign)}, not of this family: save it in a separate folder."
            )
        for key, name in names.items():
            self.get(*key).save(folder / name)
        return folder


def _key(member: Dictionary | Member) -> tuple[int, int]:
    """Width and seed; a seed that is not known counts as 0."""
    return member.width, 0 if member.seed is None else whole("seed", member.seed, at_least=None)


def _require_one_place(members: list[Dictionary | Member]) -> None:
    """Refuse members that differ in what a family shares, and warn where only some record it.

    Raises
    ------
    ValueError
        If two differ; the sentence names both.
    """
    records = [(member, _record(member)) for member in members]
    for what in records[0][1]:
        known = [(member, record[what]) for member, record in records if record[what] is not None]
        for member, found in known[1:]:
            first, expected = known[0]
            if found != expected:
                raise ValueError(
                    f"A family shares one {what}: the member of width {first.width} has {expected!r}, "
                    f"that of width {member.width} has {found!r}."
                )
        if what == WEIGHTS and _one_revision(members):
            continue
        if known and len(known) < len(records):
            silent = next(member for member, record in records if record[what] is None)
            warn(
                f"The member of width {silent.width} does not record its {what}, so it was not compared with "
                f"that of the others ({known[0][1]!r}).",
            )


def _one_revision(members: list[Dictionary | Member]) -> bool:
    """Whether all members name one model and revision, which stand for its weights as well as their hash."""
    named = {(member.info.get("model"), member.info.get("model_revision")) for member in members}
    return len(named) == 1 and None not in named.pop()


def _agrees(expected: Mapping[str, Any], header: dict[str, Any]) -> bool:
    """Whether a saved dictionary contradicts nothing that a member records."""
    found = _record(SimpleNamespace(kind=header["info"].get("kind", "unknown"), **header))
    return all(value is None or found[what] in (value, None) for what, value in expected.items())


def _record(member: Dictionary | Member) -> dict[str, Any]:
    """What a member has in common with its family, None where it is not recorded."""
    info = member.info
    origin = origin_of(info)
    model, processing = origin.get("model"), origin.get("model_processing")
    return {
        "d_in": member.d_in,
        "form": "transcoder" if member.transcoder else "SAE",
        "kind": member.kind,
        # A local folder of a model is named without the organisation.
        "model": None if model is None else str(model).rpartition("/")[2],
        WEIGHTS: origin.get("model_weights"),
        "processing of the model's weights": None if processing is None else sorted(processing),
        **{what: info.get(name) for name, what in PLACE.items()},
    }
