"""Shared by the plots: names, provenance and axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from saekit.colours import INK
from saekit.dictionary import Dictionary, identity_of
from saekit.figures import describe, kind_style
from saekit.identity import Identity, distinct_names
from saekit.wording import listed, on_tokens

T = TypeVar("T")


class Pair(Protocol):
    """A comparison to name: results of two dictionaries, by identity or whole."""

    @property
    def small(self) -> Identity | Dictionary:
        """The narrower dictionary."""

    @property
    def large(self) -> Identity | Dictionary:
        """The wider dictionary."""


def named(kind: str, width: int) -> str:
    """Such as "ReLU 1152"."""
    return f"{kind_style(kind).label} {width}"


def pair_of(result: Pair) -> tuple[Identity, Identity]:
    """The two dictionaries of a comparison."""
    return identity_of(result.small), identity_of(result.large)


def pair_name(result: Pair) -> str:
    """Such as "ReLU 1152 → 2304", "ReLU 48 → BatchTopK 48" or "ReLU 1152, other seed"."""
    return pair_names([result])[0]


def pair_names(results: Sequence[Pair]) -> list[str]:
    """Names of comparisons that tell them apart, as short as possible.

    Kind and width, and a hook point where the two of a pair have different ones; then seeds, hook
    points and at last hashes, where two pairs would otherwise share a name.
    """
    pairs = [pair_of(result) for result in results]
    for detail in range(4):
        names = [_pair_name(small, large, detail) for small, large in pairs]
        if len(set(names)) == len(set(pairs)):
            break
    return names


def _pair_name(small: Identity, large: Identity, detail: int) -> str:
    first, second = named(small.kind, small.width), named(large.kind, large.width)
    if small.kind == large.kind:
        second = str(large.width)
    if detail == 3:
        return f"{first} [{small.hash[:6]}] → {second} [{large.hash[:6]}]"
    elsewhere = small.hook_point != large.hook_point
    if elsewhere:
        first, second = (
            f"{name} at {side.hook_point or 'an unknown hook point'}"
            for name, side in ((first, small), (second, large))
        )
    seeds = f"seeds {small.seed} and {large.seed}" if small.seed != large.seed else f"seed {small.seed}"
    place = f", {small.hook_point}" if detail == 2 and not elsewhere else ""
    if elsewhere or (small.kind, small.width) != (large.kind, large.width):
        return f"{first} → {second}{place}" + (f" ({seeds})" if detail else "")
    if small == large:
        return f"{first} with itself"
    if None in (small.seed, large.seed) or small.seed == large.seed:  # only their contents differ
        return _pair_name(small, large, 3)
    return f"{first}, {seeds if detail else 'other seed'}{place}"


def family_names(members: Sequence[Identity]) -> list[str]:
    """Names of families by one member of each: the kind, and the hook point where a kind comes twice."""
    labels = [kind_style(member.kind).label for member in members]
    return [
        label if labels.count(label) == 1 else f"{label} at {member.hook_point or 'an unknown hook point'}"
        for label, member in zip(labels, members, strict=True)
    ]


def title_of(name: str) -> str:
    """The name of a comparison as a panel's title, on two lines if it is long."""
    return name.replace(" → ", "\n→ ") if len(name) > 36 else name


def rows_of(identities: Sequence[Identity]) -> pd.DataFrame:
    """One row per dictionary, for a plot that shows several.

    `dictionary`, a name that tells it apart; `kind`, `width`, `seed`; `first`, whether its seed is the
    lowest of its kind and width; `label`, such as "ReLU 1152" or "ReLU 1152, seed 1".
    """
    names = [str(identity) for identity in identities]
    hooks = [f"{identity} at {identity.hook_point or 'an unknown hook point'}" for identity in identities]
    frame = pd.DataFrame(
        {
            "dictionary": next(
                (found for found in (names, hooks) if len(set(found)) == len(set(identities))),
                distinct_names(identities),
            ),
            "kind": [identity.kind for identity in identities],
            "width": [identity.width for identity in identities],
            "seed": [identity.seed or 0 for identity in identities],
        }
    )
    frame["first"] = ~frame.sort_values("seed", kind="stable").duplicated(["kind", "width"]).sort_index()
    by_seed = ~frame.duplicated(["kind", "width", "seed"], keep=False)
    frame["label"] = [
        named(row.kind, row.width) + ("" if row.first else f", seed {row.seed}") if told else row.dictionary
        for row, told in zip(frame.itertuples(), by_seed, strict=True)
    ]
    return frame


def as_list(results: T | Sequence[T]) -> list[T]:
    """Several results, or the only one."""
    return list(results) if isinstance(results, Sequence) else [results]


def shared(results: Sequence[Any], setting: str) -> Any:
    """The setting that all results have, such as theta, where a figure shows one.

    Raises
    ------
    ValueError
        If they differ, or there are none.
    """
    if not results:
        raise ValueError("A figure needs at least one result, found none.")
    found = list(dict.fromkeys(getattr(result, setting) for result in results))
    if len(found) > 1:
        raise ValueError(f"One figure shows results of one {setting}, found {listed(found)}.")
    return found[0]


def on_all_tokens(results: Sequence[Any]) -> str:
    """`on_tokens` of each, told once where it is the same."""
    return ". ".join(dict.fromkeys(on_tokens(r.n_tokens, r.n_excluded) for r in results))


def made_from(*results: Any) -> dict[str, Any]:
    """The record that a plot keeps of the dictionaries of its results, or of parts of results."""
    names = ("small", "large", "a", "b", "dictionary")
    found = [getattr(result, name, None) for result in results for name in names]
    found += [each for result in results for each in getattr(result, "dictionaries", ())]
    return describe(*(identity_of(value) for value in found if isinstance(value, Identity | Dictionary)))


def groups_of(frame: pd.DataFrame, by: list[str]) -> Iterable[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups of rows with their keys as tuples, in the order of the frame."""
    return frame.groupby(by, sort=False)


def root_scale(axes: Axes, highest: float) -> None:
    """Shares on a square-root scale up to the highest, so that a tail beside a peak can be seen."""
    axes.set_yscale("function", functions=(np.sqrt, np.square))
    axes.set_ylim(0, 1.1 * highest)
    axes.yaxis.set_major_locator(FixedLocator((0, 0.01, 0.05, 0.1, 0.2, 0.5)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def ink_on(background: str) -> str:
    """The colour of text on this one: white where it is dark."""
    return "white" if np.dot(to_rgb(background), [0.299, 0.587, 0.114]) < 0.5 else INK


def spread_labels(points: np.ndarray, size: tuple[float, float], *, steps: int = 300) -> np.ndarray:
    """Centres for labels of points: outside of them, and apart from each other and from the points.

    Parameters
    ----------
    points : ndarray of shape (n, 2)
        The points, around the origin.
    size : tuple of float
        Width and height of a label, in the units of the points.
    steps : int
        Times that labels which overlap are pushed apart.
    """
    box = np.array(size)
    away = points - points.mean(axis=0)
    away = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    centres = points + 0.75 * box * away
    for step in range(steps):
        push = np.zeros_like(centres)
        for others, room in ((centres, box), (points, 0.62 * box)):  # a point is half a label and a margin
            gap = centres[:, None] - others[None]
            over = np.maximum(1 - np.abs(gap) / room, 0)
            touching = over.min(axis=2) > 0.02
            if others is centres:
                np.fill_diagonal(touching, False)
            shortest = over[..., 0] * room[0] < over[..., 1] * room[1]  # the shorter way out
            side = np.where(gap == 0, np.where(np.arange(len(points)) % 2, 1.0, -1.0)[:, None, None], gap)
            move = np.sign(side) * over * room * np.stack([shortest, ~shortest], axis=2)
            push += np.where(touching[..., None], 0.5 * move, 0).sum(axis=1)
            if step % 30 == 29:  # out of a deadlock, each label in another direction
                turn = step + np.arange(len(points))
                kick = 0.5 * box * np.stack([np.cos(turn), np.sin(turn)], axis=1)
                push += kick * touching.any(axis=1, keepdims=True)
        if not push.any():
            break
        centres = centres + push
    return centres


def doubling_axis(axes: Axes, ticks: Iterable[int]) -> None:
    """A logarithmic axis with these ticks, such as the widths of a family."""
    ticks = sorted(ticks)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
