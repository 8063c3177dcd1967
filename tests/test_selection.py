"""Latents as people select them, against plain indexing."""

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make

from saekit.selection import select_latent, select_latents

WIDTH = 7
MASK = [True, False, False, True, True, False, False]
CHOSEN = [0, 3, 4]


@pytest.mark.parametrize(
    "latents",
    [
        CHOSEN,
        tuple(CHOSEN),
        (latent for latent in CHOSEN),
        np.array(CHOSEN),
        np.array(CHOSEN, dtype=np.uint8),
        torch.tensor(CHOSEN, dtype=torch.int32),
        torch.tensor(CHOSEN, dtype=torch.uint8),
        [torch.tensor(0), np.int16(3), 4],
        pd.Series(CHOSEN, index=[5, 6, 7]),
        pd.Index(CHOSEN),
        pd.Series(CHOSEN, dtype="Int64"),
        MASK,
        np.array(MASK),
        torch.tensor(MASK),
        pd.Series(MASK, index=range(10, 17)),
        pd.Series(MASK, dtype="boolean"),
        pd.Series(MASK, dtype=object),
    ],
    ids=lambda latents: type(latents).__name__,
)
def test_every_way_to_write_the_same_selection(latents):
    found = select_latents(latents, WIDTH)
    assert found.dtype == torch.long
    assert found.tolist() == CHOSEN


def test_order_repeats_slices_and_nothing():
    assert select_latents([4, 0, 4], WIDTH).tolist() == [4, 0, 4]
    assert select_latents(slice(1, None, 2), WIDTH).tolist() == [1, 3, 5]
    assert select_latents(range(2, 4), WIDTH).tolist() == [2, 3]
    for nothing in ([], np.array([]), torch.tensor([]), pd.Series([], dtype=float), [False] * WIDTH):
        assert select_latents(nothing, WIDTH).tolist() == []


def test_a_mask_is_not_read_as_the_numbers_0_and_1():
    dictionary = make(5, WIDTH)
    assert torch.equal(dictionary.gather(torch.tensor(MASK)).W_dec, dictionary.W_dec[CHOSEN])


@pytest.mark.parametrize("length", [0, WIDTH - 1, WIDTH + 1, 2 * WIDTH])
def test_a_mask_of_another_length_is_refused(length):
    if length:
        with pytest.raises(ValueError, match=rf"one entry for each of the {WIDTH} latents, found {length}"):
            select_latents(np.ones(length, dtype=bool), WIDTH)


@pytest.mark.parametrize("latents", [[7], [0, -1], torch.tensor([3, 99]), pd.Series([-7])])
def test_what_is_out_of_range_is_refused(latents):
    with pytest.raises(IndexError, match=r"must be between 0 and 6, found (7|-1|99|-7)\."):
        select_latents(latents, WIDTH)


@pytest.mark.parametrize(
    "latents",
    [
        [0.0, 1.0],
        np.array([0.5]),
        torch.tensor([2.0]),
        ["3"],
        [None],
        pd.Series([1.0, 2.0]),
        [1j],
        [True, 2],
        [0, False],
    ],
)
def test_what_is_no_number_of_a_latent_is_refused(latents):
    with pytest.raises(TypeError, match="whole numbers or a Boolean mask"):
        select_latents(latents, WIDTH)


@pytest.mark.parametrize("latents", [[[0, 1]], torch.zeros(2, 2, dtype=torch.long), np.array(3)])
def test_other_shapes_are_refused(latents):
    with pytest.raises((ValueError, TypeError), match="one dimension"):
        select_latents(latents, WIDTH)


def test_missing_values_in_a_mask_are_refused():
    with pytest.raises((TypeError, ValueError)):
        select_latents(pd.Series([True, None] + [False] * 5, dtype="boolean"), WIDTH)


@pytest.mark.parametrize("latent", [3, np.int64(3), torch.tensor(3), np.uint8(3)])
def test_one_latent(latent):
    found = select_latent(latent, WIDTH)
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("latent", [3.0, "3", True, [3], None])
def test_one_latent_that_is_none(latent):
    with pytest.raises(TypeError):
        select_latent(latent, WIDTH)
    with pytest.raises(IndexError, match="between 0 and 6, found 7"):
        select_latent(7, WIDTH)


def test_a_mask_from_a_sorted_frame_goes_by_its_index():
    order = [4, 0, 6, 3, 5, 1, 2]
    for dtype in (bool, "boolean", object):
        mask = pd.Series(MASK, dtype=dtype)
        assert select_latents(mask.iloc[order], WIDTH).tolist() == CHOSEN
    # any other index: by position, and numbers always
    assert select_latents(pd.Series(MASK, index=[6, 5, 4, 3, 2, 1, 1]), WIDTH).tolist() == CHOSEN
    assert select_latents(pd.Series(MASK, index=list("gfedcba")), WIDTH).tolist() == CHOSEN
    assert select_latents(pd.Series(range(WIDTH), index=order), WIDTH).tolist() == list(range(WIDTH))


@pytest.mark.parametrize(
    "latents", [torch.tensor(MASK).byte(), np.array(MASK, dtype=np.uint8), pd.Series(MASK, dtype="uint8")]
)
def test_zeros_and_ones_of_8_bits_are_refused(latents):
    with pytest.raises(ValueError, match="7 zeros and ones of 8 bits could be a mask or numbers"):
        select_latents(latents, WIDTH)
    assert select_latents(latents, WIDTH + 1).tolist() == [int(chosen) for chosen in MASK]  # numbers alone
    assert select_latent(np.uint8(0), 1) == 0


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_unsigned_numbers(dtype):
    for latents in (torch.tensor(CHOSEN, dtype=getattr(torch, dtype)), np.array(CHOSEN, dtype=dtype)):
        assert select_latents(latents, WIDTH).tolist() == CHOSEN
    with pytest.raises(IndexError, match=r"between 0 and 6, found 7|found 65535"):
        select_latents(torch.tensor([7], dtype=getattr(torch, dtype)), WIDTH)


@pytest.mark.parametrize("latents", [[2**70], [-(2**70), 1], np.array([2**63], dtype=np.uint64)])
def test_numbers_of_more_than_64_bits_are_out_of_range(latents):
    with pytest.raises(IndexError, match=r"^latents must be numbers of 64 bits, found -?\d{19}"):
        select_latents(latents, WIDTH)


@pytest.mark.parametrize(
    "latents",
    [
        None,
        5,
        np.int64(5),
        2.0,
        "abc",
        b"abc",
        {1: 2},
        np.ma.array([1, 2], mask=[0, 1]),
        torch.empty(3, device="meta"),
        torch.tensor([True, False]).to_sparse(),
    ],
    ids=lambda latents: type(latents).__name__,
)
def test_what_is_no_selection_is_refused_in_one_sentence(latents):
    with pytest.raises(TypeError, match=r"^latents must be whole numbers or a Boolean mask, found "):
        select_latents(latents, WIDTH)


def test_slices_are_those_of_python():
    for chosen in (slice(None, None, -2), slice(5, 99), slice(5, 2), slice(-3, None), slice(99, None)):
        assert select_latents(chosen, WIDTH).tolist() == list(range(WIDTH))[chosen]
    for odd in (slice(0.5), slice(0, 3, 0), slice("a")):
        with pytest.raises(TypeError, match="A slice of latents needs whole numbers"):
            select_latents(odd, WIDTH)
