"""Warnings name the line of the caller, however deep in saekit and torch they arise."""

import warnings

import pytest
import torch
from dictionaries import make

from saekit.analysis import collect, insertion, logit_table
from saekit.family import Family
from saekit.metrics import evaluate


@pytest.mark.parametrize(
    "call",
    [
        lambda d, store: evaluate(d, store),
        lambda d, store: collect(d, store),  # through torch's no_grad
        lambda d, store: insertion(d, d, store),
        lambda d, _: logit_table(d, torch.randn(16, 5), list("abcde"), n=2),
        lambda d, _: Family([d, make(d_in=16, width=8, seed=1).gather([0, 1])]),
    ],
)
def test_a_warning_names_this_file(call, store):
    dictionary = make(d_in=16)
    if call.__code__.co_names[0] == "Family":
        object.__setattr__(dictionary, "info", {**dictionary.info, "hook_point": "blocks.1.hook_resid_post"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(dictionary, store)
    assert caught
    assert {one.filename for one in caught} == {__file__}
