"""Variants and formats that other packages register with saekit through entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any


def registered(group: str) -> Iterator[tuple[str, Any]]:
    """Load what installed packages register in a group of entry points.

    Parameters
    ----------
    group : str
        Such as `"saekit.variants"`.

    Yields
    ------
    tuple
        The origin, for errors, and the registered object.

    Raises
    ------
    ImportError
        If an entry point does not load; the message names it and its package.
    """
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        package = "an unnamed package" if point.dist is None else point.dist.name
        where = f"{group} entry point {point.name} = {point.value} of {package}"
        try:
            found = point.load()
        except Exception as error:
            raise ImportError(f"The {where} does not load ({type(error).__name__}: {error}).") from error
        yield where, found
