"""Settings as notebooks hand them over."""

from decimal import Decimal
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from saekit.settings import (
    choice,
    cosine,
    device,
    flag,
    optional,
    positive,
    real,
    several,
    share,
    torch_dtype,
    whole,
)


@pytest.mark.parametrize(
    "value",
    [512, np.int64(512), np.uint16(512), torch.tensor(512), np.array(512), pd.Series([512])[0]],
)
def test_whole_numbers_of_any_type_become_plain(value):
    found = whole("width", value)
    assert found == 512
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [2.0, 2.5, np.float32(2), True, np.True_, torch.tensor(True), "2", None, [2], torch.tensor([2]), 2j],
)
def test_anything_else_is_no_whole_number(value):
    with pytest.raises(TypeError, match="k must be a whole number, found"):
        whole("k", value)


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5).half(), Decimal("0.5")],
)
def test_real_numbers_of_any_type_become_plain(value):
    found = real("lr", value)
    assert found == 0.5
    assert type(found) is float


@pytest.mark.parametrize("value", ["0.5", True, np.False_, None, 1j, np.array([0.5]), torch.zeros(2)])
def test_anything_else_is_no_real_number(value):
    with pytest.raises(TypeError, match="lr must be a number, found"):
        real("lr", value)


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (whole, 0, "x must be at least 1, found 0"),
        (partial(whole, at_least=0, at_most=3), 4, "x must be between 0 and 3, found 4"),
        (partial(whole, at_least=None, at_most=3), 4, "x must be at most 3, found 4"),
        (real, float("nan"), "x must be finite, found nan"),
        (positive, float("inf"), "x must be finite, found inf"),
        (positive, 0, "x must be above 0, found 0"),
        (share, 1.5, "x must be between 0 and 1, found 1.5"),
        (cosine, -0.1, "x must be between 0 and 1, found -0.1"),
        (real, 10**400, "x must be a number that a float can hold"),
        (partial(choice, options=("a", "b")), "c", "x must be one of 'a', 'b', found 'c'"),
        (partial(choice, options=("a", "b")), np.array(["a", "b"]), "x must be one of 'a', 'b', found array"),
        (partial(choice, options={"a": 1}), ["a"], r"x must be one of 'a', found \['a'\]"),
    ],
)
def test_values_out_of_range_are_named(rule, value, message):
    with pytest.raises(ValueError, match=message):
        rule("x", value)


def test_flags_are_booleans_and_nothing_else():
    assert [flag("x", value) for value in (True, np.False_, torch.tensor(True))] == [True, False, True]
    for value in (1, 0, "true", None, torch.tensor([True])):
        with pytest.raises(TypeError, match="x must be True or False, found"):
            flag("x", value)


def test_sequences_come_out_as_tuples_of_plain_values():
    for value in ([0.25, 1], (0.25, 1), np.array([0.25, 1]), torch.tensor([0.25, 1])):
        found = several(real)("prefixes", value)
        assert found == (0.25, 1.0)
        assert {type(one) for one in found} == {float}
    with pytest.raises(TypeError, match=r"prefixes\[1\] must be a number, found 'x'"):
        several(real)("prefixes", [1, "x"])
    for value in ("12", 3, None):
        with pytest.raises(TypeError, match="prefixes must be a sequence, found"):
            several(real)("prefixes", value)


def test_optional_settings_may_be_none():
    assert optional(whole)("k", None) is None
    assert optional(whole)("k", np.int8(3)) == 3


def test_a_device_that_is_not_here_is_named_with_those_that_are():
    assert device("cpu") == device(torch.device("cpu")) == torch.device("cpu")
    missing = "cuda:99"
    for value in (missing, "gpu", 3.5):
        with pytest.raises(ValueError, match=r"There is no device .* choose one of cpu"):
            device(value)


def test_the_name_of_a_dtype_is_no_dtype():
    assert torch_dtype(torch.float16) is torch.float16
    for value in ("float32", float, None):
        with pytest.raises(TypeError, match=r"one of torch's, such as torch\.float32, found"):
            torch_dtype(value)
