"""A family: dictionaries of one kind at one hook point, over widths and seeds."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import pandas as pd

from saekit import releases
from saekit.dictionary import Described, Dictionary
from saekit.files import read_json
from saekit.formats import is_sae, open_sae

BUNDLED = Path(__file__).parent  # one folder a kind, and the tables


class Member(Protocol):
    """What a family knows of a dictionary before it is asked for, such as an `Unfolded`."""

    @property
    def d_in(self) -> int: ...  # noqa: D102

    @property
    def width(self) -> int: ...  # noqa: D102

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def seed(self) -> int | None: ...  # noqa: D102

    @property
    def hook_point(self) -> str | None: ...  # noqa: D102

    def fold(self) -> Dictionary:
        """Read it (and download it, where it is not here yet)."""


@dataclass(frozen=True)
class Saved(Described):
    """A folder that `Dictionary.save` wrote, of which only the JSON has been read."""

    folder: Path
    d_in: int
    width: int
    info: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Saved:
        """Read the JSON; `fold` checks the whole."""
        header = read_json(folder / "dictionary.json")
        try:
            return cls(folder, header["d_in"], header["width"], header["info"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'dictionary.json'} does not describe a dictionary.") from error

    def fold(self) -> Dictionary:
        """Read the dictionary."""
        return Dictionary.load(self.folder)


class Family:
    """Dictionaries of one kind over several widths, with second seeds where there are any.

    A member that is not a `Dictionary` yet is read when it is asked for, and kept only as long as
    somebody holds it: a loop over the family holds one while it reads the next. `Family(family)`
    reads and holds all of them.

    Parameters
    ----------
    members : iterable of Dictionary or Member
        At most one for each width and seed. The lowest seed of a width is the one that
        `family[width]` gives; the others are its nulls.

    Raises
    ------
    ValueError
        If there are no members, two have the same width and seed, or they do not share
        `d_in`, kind and hook point.
    """

    def __init__(self, members: Iterable[Dictionary | Member]) -> None:
        ordered = sorted(members, key=lambda member: (member.width, member.seed or 0))
        if not ordered:
            raise ValueError("A family needs at least one dictionary.")
        self._first = ordered[0]
        self._members: dict[tuple[int, int], Dictionary | Member] = {}
        self._read: WeakValueDictionary[tuple[int, int], Dictionary] = WeakValueDictionary()
        for member in ordered:
            for what in ("d_in", "kind", "hook_point"):
                here, there = getattr(member, what), getattr(self._first, what)
                if here != there:
                    raise ValueError(
                        f"A family shares one {what}: the member of width {self._first.width} has {there!r}, "
                        f"that of width {member.width} has {here!r}."
                    )
            key = member.width, member.seed or 0
            if key in self._members:
                seed = "no known seed" if member.seed is None else f"seed {member.seed}"
                raise ValueError(f"The family holds two dictionaries of width {member.width} and {seed}.")
            self._members[key] = member

    @property
    def kind(self) -> str:
        """The training variant that all members share."""
        return self._first.kind

    @property
    def hook_point(self) -> str | None:
        """The hook point that all members share."""
        return self._first.hook_point

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
            If it is read now, and what is read is no such dictionary.
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
        return dictionary

    def __getitem__(self, width: int) -> Dictionary:
        return self.get(width)

    def __iter__(self) -> Iterator[Dictionary]:
        return (self.get(*key) for key in self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"Family({self.kind}, widths={self.widths}, {len(self)} dictionaries at {self.hook_point})"

    def pairs(self) -> Iterator[tuple[Dictionary, Dictionary]]:
        """Neighbouring widths as (small, large), smallest first, each width read once."""
        return pairwise(self[width] for width in self.widths)

    def second_seed(self, width: int) -> Dictionary | None:
        """The null of this width: a dictionary of another seed, or None if there is none."""
        seeds = self.seeds(width)
        return self.get(width, seeds[1]) if len(seeds) > 1 else None

    def save(self, folder: str | Path) -> Path:
        """Write each member to `folder/<width>-seed<seed>`."""
        folder = Path(folder)
        for member in self:
            member.save(folder / f"{member.width}-seed{member.seed or 0}")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Family:
        """The SAEs in a folder: those that saekit wrote, or those in a foreign format.

        Raises
        ------
        FileNotFoundError
            If there are none.
        ValueError
            If they are no family.
        """
        return cls(_below(Path(folder)))


def load_family(source: str | Path | Sequence[str | Path]) -> Family:
    """A family of dictionaries, each read when it is asked for.

    Parameters
    ----------
    source : str, Path or sequence of them
        `"relu"` or `"batchtopk"` for the bundled ones (see `bundled_table`), which are read at once;
        a folder of dictionaries such as `Family.save` writes, or of SAEs in foreign formats; a
        glob of such SAEs; published SAEs (see `releases_table`), such as
        `"gpt2-small-res-jb-feature-splitting"` or `"gemma-scope-2b-pt-res/layer_12"`, of which each
        is downloaded when it is asked for; or a list of these and of whatever `load_sae` takes.

    Raises
    ------
    FileNotFoundError
        If there is nothing of this name, or it holds no dictionaries.
    ValueError
        If what is there is no family, or no SAE.
    """
    sources = [source] if isinstance(source, str | Path) else source
    return Family(member for one in sources for member in _members(one))


def _members(source: str | Path) -> Sequence[Dictionary | Member]:
    name, path = str(source), Path(source)
    bundled = [folder.name for folder in sorted(BUNDLED.iterdir()) if any(folder.glob("*/dictionary.json"))]
    if name in bundled:
        return list(Family.load(BUNDLED / name))
    if path.exists():
        return [_open(path)] if is_sae(path) or path.is_file() else _below(path)
    if published := releases.find(name):
        return published
    if found := [path for path in map(Path, sorted(glob.glob(name, recursive=True))) if is_sae(path)]:
        return [_open(path) for path in found]
    if "/" in name:
        return [open_sae(name)]
    raise FileNotFoundError(
        f"There is no family {name!r}: expected one of {', '.join(bundled)}, a release, or a folder or "
        "glob of dictionaries."
    )


def _below(folder: Path) -> list[Member]:
    members = [_open(path) for path in sorted(folder.glob("*")) if is_sae(path)]
    if not members:
        raise FileNotFoundError(f"{folder} holds no dictionaries: no SAE in it or in a folder right below.")
    return members


def _open(path: Path) -> Member:
    return Saved.open(path) if (path / "dictionary.json").is_file() else open_sae(path)


def bundled_table() -> pd.DataFrame:
    """What the bundled dictionaries are: a row for each, as measured when they were bundled.

    Returns
    -------
    DataFrame
        `kind`, `width`, `seed`, `tokens` and `steps` of training, on the embedded held-out tokens
        `l0`, `fvu`, `dead_fraction`, `ce_degradation`, `loss_recovered_zero`, and
        `half_precision_fvu_change`, the relative change of FVU by storing them in half precision.
    """
    return pd.read_csv(BUNDLED / "members.csv")


def convergence_table() -> pd.DataFrame:
    """How far training had converged: seed overlap and FVU over steps, see `saekit.bundled.convergence`."""
    return pd.read_csv(BUNDLED / "convergence.csv")


def kinds_table() -> pd.DataFrame:
    """Every kind of SAE at equal widths and sparsities: a row for each dictionary of `saekit.kinds`.

    Returns
    -------
    DataFrame
        `kind`, `width`, `target_l0` (active latents a token asked for, the k of TopK kinds),
        `tokens` and `steps` of training, and on the embedded held-out tokens `l0`, `fvu`,
        `dead_fraction`, `ce_degradation`, `loss_recovered_zero`.
    """
    return pd.read_csv(BUNDLED / "kinds.csv")


def kinds_l0_table() -> pd.DataFrame:
    """How many latents held-out tokens use, for each kind at one width and sparsity.

    Returns
    -------
    DataFrame
        `kind`, `width`, `active` (latents) and `tokens` that have exactly so many.
    """
    return pd.read_csv(BUNDLED / "kinds_l0.csv")
