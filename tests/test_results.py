"""All results: a short repr, and one obvious picture that exists."""

import importlib
import pkgutil
from dataclasses import dataclass

import pytest
import torch
from dictionaries import make

import saekit
from saekit import plots
from saekit.metrics import evaluate
from saekit.results import SHOWN, Result


def results() -> list[type[Result]]:
    found, new = [], [Result]
    while new:
        new = [sub for cls in new for sub in cls.__subclasses__() if sub.__module__.startswith("saekit.")]
        found += new
    return found


def test_whatever_has_a_summary_is_a_result() -> None:
    names = [module.name for module in pkgutil.walk_packages(saekit.__path__, "saekit.")]
    names.remove("saekit.__main__")  # runs the command line
    values = [value for name in names for value in vars(importlib.import_module(name)).values()]
    found = {value for value in values if isinstance(value, type) and hasattr(value, "summary")}
    assert found == {Result, *results()}


@pytest.mark.parametrize("cls", results(), ids=lambda cls: cls.__name__)
def test_every_result_has_the_short_repr_and_a_summary(cls) -> None:
    assert not cls.__dataclass_params__.repr  # else the one that writes out every field takes its place
    assert cls.summary is not Result.summary
    assert cls._plot is None or hasattr(plots, cls._plot)


def test_repr_shows_the_first_entries_of_the_summary() -> None:
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    shown = repr(evaluate(make(), x))
    assert shown.startswith("Evaluation(dictionary='relu 40 (seed 0)', fvu=")
    assert shown.count("=") == SHOWN
    assert len(shown) < 150


def test_what_is_not_one_value_is_left_out_of_the_repr() -> None:
    @dataclass(frozen=True, eq=False, repr=False)
    class Wide(Result):
        @property
        def summary(self):
            return {"name": "a", "by_width": {1: 2.0}, "rows": [1] * 10_000, "share": 1 / 3, "missing": None}

    assert repr(Wide()) == "Wide(name='a', share=0.3333, missing=None)"
    with pytest.raises(TypeError, match="No plot shows a Wide alone"):
        Wide().plot()


def test_plot_hands_the_result_to_its_function(monkeypatch) -> None:
    @dataclass(frozen=True, eq=False, repr=False)
    class Drawn(Result):
        _plot = "roc"

    monkeypatch.setattr(plots, "roc", lambda result, **options: (result, options))
    drawn = Drawn()
    assert drawn.plot(nulls=3) == (drawn, {"nulls": 3})
