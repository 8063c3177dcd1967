"""A family: dictionaries of one kind at one hook point, over widths and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pandas as pd

from saekit.dictionary import Dictionary

BUNDLED = Path(__file__).parent  # one folder a kind, and the tables


class Family:
    """Dictionaries of one kind over several widths, with second seeds where there are any.

    Parameters
    ----------
    members : iterable of Dictionary
        At most one for each width and seed. The lowest seed of a width is the one that
        `family[width]` gives; the others are its nulls.

    Raises
    ------
    ValueError
        If there are no members, two have the same width and seed, or they do not share
        `d_in`, kind and hook point.
    """

    def __init__(self, members: Iterable[Dictionary]) -> None:
        ordered = sorted(members, key=lambda member: (member.width, member.seed or 0))
        if not ordered:
            raise ValueError("A family needs at least one dictionary.")
        self._members: dict[tuple[int, int], Dictionary] = {}
        for member in ordered:
            for what in ("d_in", "kind", "hook_point"):
                here, there = getattr(member, what), getattr(ordered[0], what)
                if here != there:
                    raise ValueError(
                        f"A family shares one {what}: {ordered[0].name} has {there!r}, "
                        f"{member.name} has {here!r}."
                    )
            if (member.width, member.seed or 0) in self._members:
                raise ValueError(f"The family holds two dictionaries {member.name}.")
            self._members[member.width, member.seed or 0] = member

    @property
    def kind(self) -> str:
        """The training variant that all members share."""
        return next(iter(self)).kind

    @property
    def hook_point(self) -> str | None:
        """The hook point that all members share."""
        return next(iter(self)).hook_point

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
        """
        seeds = self.seeds(width)
        if not seeds:
            raise KeyError(f"The {self.kind} family has no width {width}; it has {self.widths}.")
        if seed is None:
            seed = seeds[0]
        if seed not in seeds:
            raise KeyError(f"The {self.kind} family has no seed {seed} at width {width}; it has {seeds}.")
        return self._members[width, seed]

    def __getitem__(self, width: int) -> Dictionary:
        return self.get(width)

    def __iter__(self) -> Iterator[Dictionary]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"Family({self.kind}, widths={self.widths}, {len(self)} dictionaries at {self.hook_point})"

    def pairs(self) -> list[tuple[Dictionary, Dictionary]]:
        """Neighbouring widths as (small, large), smallest first."""
        members = [self[width] for width in self.widths]
        return list(pairwise(members))

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
        """Read every dictionary in the folders below `folder`.

        Raises
        ------
        FileNotFoundError
            If there are none.
        """
        found = sorted(Path(folder).glob("*/dictionary.json"))
        if not found:
            raise FileNotFoundError(f"{folder} holds no dictionaries (folders with a dictionary.json).")
        return cls(Dictionary.load(path.parent) for path in found)


def load_family(source: str | Path) -> Family:
    """A family of dictionaries.

    Parameters
    ----------
    source : str or Path
        `"relu"` or `"batchtopk"` for the bundled ones (see `bundled_table`), else a folder of
        dictionaries such as `Family.save` writes.

    Raises
    ------
    FileNotFoundError
        If the folder holds no dictionaries.
    """
    bundled = [path.name for path in sorted(BUNDLED.iterdir()) if any(path.glob("*/dictionary.json"))]
    if str(source) in bundled:
        return Family.load(BUNDLED / source)
    if not Path(source).is_dir():
        raise FileNotFoundError(
            f"There is no family {str(source)!r}: expected one of {', '.join(bundled)}, or a folder of "
            "dictionaries."
        )
    return Family.load(source)


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
