"""Whether a change of a tensor is noticed, whatever the change."""

import pytest
import torch
from dictionaries import make

from saekit.identity import Identity, fingerprint


def changed(change, dtype):
    """The fingerprints of a matrix before and after a change in place."""
    tensor = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = fingerprint([tensor])
    change(tensor)
    return before, fingerprint([tensor])


CHANGES = {
    "one sign": lambda t: t[3, 5].neg_(),
    "two signs": lambda t: t[3, 5:7].neg_(),
    "all signs": lambda t: t.neg_(),
    "a column of signs": lambda t: t[:, 1].neg_(),
    "two neighbours": lambda t: t[0, :2].copy_(t[0, :2].flip(0)),
    "two columns": lambda t: t[:, :2].copy_(t[:, :2].flip(1)),
    "rows shuffled": lambda t: t.copy_(t[torch.randperm(64, generator=torch.Generator().manual_seed(1))]),
    "through .data": lambda t: t.data.mul_(2),
    "the last value": lambda t: t[-1, -1].add_(1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_noticed(change, dtype):
    before, after = changed(change, dtype)
    assert before != after


def test_copies_views_and_no_values():
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert fingerprint([tensor]) == fingerprint([tensor.clone()])
    assert fingerprint([tensor.T]) == fingerprint([tensor.T.contiguous()])
    assert fingerprint([torch.cat([tensor, tensor])[7:]]) == fingerprint([tensor])
    assert fingerprint([torch.zeros(0, 3)]) != fingerprint([torch.zeros(3, 0)])
    assert fingerprint([torch.zeros(()), torch.zeros(1)])[0] != fingerprint([torch.zeros(1)])[0]


def test_a_dictionary_that_was_changed_in_place_is_another_one():
    dictionary = make(6, 10)
    before = dictionary.identity
    dictionary.W_dec[:, 1].neg_()
    assert dictionary.identity != before
    with pytest.raises(ValueError, match=r"The base was .* but .* was given in its place"):
        before.require(dictionary.identity, "The base")
    dictionary.W_dec[:, 1].neg_()
    assert dictionary.identity == before
    assert isinstance(before, Identity)
