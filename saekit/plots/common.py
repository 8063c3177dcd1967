"""What the plots share: names, numbers in words, axes."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FixedLocator, NullLocator

from saekit.figures import (
    FONTS,
    KIND_COLOURS,
    KIND_NAMES,
)
from saekit.identity import Identity

if TYPE_CHECKING:
    from saekit.analysis.novelty import CEInsertion, GroupInsertion, Insertion


def identity(name: str | Identity) -> dict[str, Any]:
    """Kind, width and seed out of `Dictionary.name`."""
    if isinstance(name, Identity):
        return {"kind": name.kind, "width": name.width, "seed": name.seed or 0}
    match = re.fullmatch(r"(\S+) (\d+)(?: \(seed (\d+)\))?", name)
    if match is None:
        raise ValueError(f'A dictionary is named like "relu 1152 (seed 0)", found {name!r}.')
    return {"kind": match[1], "width": int(match[2]), "seed": int(match[3] or 0)}


def named(kind: str, width: int) -> str:
    """Such as "ReLU 1152"."""
    return f"{KIND_NAMES.get(kind, kind)} {width}"


def pair_name(result: Insertion | GroupInsertion | CEInsertion) -> str:
    """Such as "ReLU 1152 → 2304", or "ReLU 1152, other seed"."""
    small, large = identity(result.small), identity(result.large)
    name = named(small["kind"], small["width"])
    return f"{name}, other seed" if small["width"] == large["width"] else f"{name} → {large['width']}"


def kind_colour(kind: str) -> str:
    """The colour of a kind of SAE; one more for kinds that have none."""
    return KIND_COLOURS.get(kind, "#cc78bc")


def groups_of(frame: pd.DataFrame, by: list[str]) -> Iterable[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups of rows with their keys as tuples, in the order of the frame."""
    return frame.groupby(by, sort=False)


def percent(share: float) -> str:
    """Write a share as a percentage that does not round something to nothing."""
    return "<1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"


def on_tokens(n_tokens: int, n_excluded: int) -> str:
    """The sentence that ends a caption: what was measured on."""
    return f"On {n_tokens:,} tokens, with {n_excluded:,} positions excluded"


def listed(values: Sequence[Any]) -> str:
    """Such as "16, 32 and 64"."""
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def linear_range(values: pd.Series) -> float:
    """Where a symmetric log axis starts to be logarithmic: the decade of the median magnitude."""
    sizes = values.abs()[values != 0]
    return float(10 ** np.floor(np.log10(sizes.median()))) if len(sizes) else 1.0


def fit_text(text: str, inches: float, size: float = 6.5) -> str:
    """Cut a text with an ellipsis to the given length, safe from math mode."""
    font, renderer = FontProperties(family=FONTS, size=size), RendererAgg(1, 1, 720)

    def too_long(text: str) -> bool:
        return renderer.get_text_width_height_descent(text, font, ismath=False)[0] > inches * 720

    if too_long(text):
        room = bisect_left(range(len(text)), True, key=lambda n: too_long(f"{text[:n]}…")) - 1
        text = f"{text[: max(room, 0)].rstrip()}…"
    return text.replace("$", r"\$")


def doubling_axis(axes: Axes, ticks: Iterable[int]) -> None:
    """A logarithmic axis with these ticks, such as the widths of a family."""
    ticks = sorted(ticks)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
