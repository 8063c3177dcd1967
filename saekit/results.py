"""The result of an analysis: a frozen dataclass with a summary, a short repr and its obvious picture."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

SHOWN = 6  # entries of the summary in a repr


class Result:
    """Base of all results: frozen dataclasses with `summary` and, where there are rows, `frame`.

    A subclass is declared with `@dataclass(frozen=True, eq=False, repr=False)`, so that it keeps
    this short repr, and names the function of `saekit.plots` that draws it in `_plot`.
    """

    _plot: ClassVar[str | None] = None

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers, as plain values."""
        raise NotImplementedError

    def plot(self, *args: Any, **options: Any) -> Any:
        """Draw the obvious picture of this result, a `saekit.figures.Plot`.

        Parameters
        ----------
        *args, **options
            Arguments of the function in `saekit.plots` that draws it.

        Raises
        ------
        TypeError
            If no plot shows this result alone.
        """
        if self._plot is None:
            raise TypeError(f"No plot shows a {type(self).__name__} alone: see saekit.plots.")
        # By name and only now, since plots import results and results must not import plots.
        return getattr(import_module("saekit.plots"), self._plot)(self, *args, **options)

    def __repr__(self) -> str:
        shown = [
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value!r}"
            for name, value in self.summary.items()
            if value is None or isinstance(value, bool | int | float | str)
        ]
        return f"{type(self).__name__}({', '.join(shown[:SHOWN])})"
