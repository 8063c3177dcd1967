"""Numbers and lists written for people, the same way in captions, explorers and reports."""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MISSING = "–"
SEPARATOR = " · "  # between the words of a label


def percent(value: float) -> str:
    """A share in whole per cent, such as "43%"; a small one is "<1%" and never "0%"."""
    if value != value:
        return MISSING
    return "<1%" if 0 < value <= 0.005 else f"{100 * value:.0f}%".replace("-", "−")


def share(value: float) -> str:
    """A share in per cent with one decimal, such as "43.2%"; more digits where it is under 1%."""
    if value != value:
        return MISSING
    scaled = 100 * value
    text = f"{scaled:.1f}%" if abs(scaled) >= 1 or scaled == 0 else f"{scaled:.2g}%"
    return text.replace("-", "−")


def number(value: float, digits: int = 3) -> str:
    """A number with this many significant digits and a true minus sign."""
    if value != value:
        return MISSING
    size = abs(value)
    if size == 0:
        text = "0"
    elif 1e-3 <= size < 10**digits - 0.5:
        text = f"{value:#.{digits}g}".rstrip(".")
    else:
        text = f"{value:,.0f}" if 1 <= size < 1e6 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def fixed(value: float, decimals: int = 2) -> str:
    """A number with this many decimals and a true minus sign."""
    return MISSING if value != value else f"{value:.{decimals}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A change: a number with its sign, plus included."""
    return ("+" if value > 0 else "") + number(value, digits)


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number of things, such as "1 latent" or "1,200 dictionaries"; the plural ends in s if left out."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def grouped(text: str) -> str:
    """A sentence whose whole numbers of five or more digits have thousands separators."""
    return re.sub(r"(?<![\d.,])\d{5,}(?![\d.,]*\d)", lambda found: f"{int(found[0]):,}", text)


def listed(values: Iterable[Any]) -> str:
    """A list in a sentence, such as "16, 32 and 64"."""
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def span(values: Iterable[float]) -> str:
    """The range of several shares, such as "43.0% to 45.1%"."""
    found = sorted(values)
    ends = share(found[0]), share(found[-1])
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def on_tokens(n_tokens: int, n_excluded: int) -> str:
    """The sentence that ends a caption: the tokens that the numbers are measured on."""
    return f"Measured on {n_tokens:,} tokens; {n_excluded:,} positions are excluded"
