"""Prompts: pairs of equal length, single-token answers, and the generators of tasks."""

import re

import pytest
import torch

from saekit.prompts import EVENTS, NAMES, NOUNS, PLACES, TASKS, Prompts


class Words:
    """A tokenizer of whole words with their leading space, and of single digits or pairs of them."""

    def __init__(self, digits):
        self.known, self.digits, self.whole = ["<unk>"], digits, ""
        self.added_tokens_decoder, self.all_special_ids, self.bos_token_id = {}, [], 0

    def __call__(self, text, add_special_tokens=True):
        pattern = r" (?=\d)|\d" if self.digits == 1 else r" ?\d\d"
        parts = re.findall(rf"{self.whole}{pattern}| ?[A-Za-z]+|[^\w\s]", text)
        for part in parts:
            if part not in self.known:
                self.known.append(part)
        return {"input_ids": [self.known.index(part) for part in parts]}

    def __len__(self):
        return len(self.known)

    def decode(self, ids):
        return "".join(self.known[index] for index in ids)

    def batch_decode(self, rows, **_):
        return [self.decode(row) for row in rows]

    def convert_ids_to_tokens(self, ids):
        return [self.known[index] for index in ids]


@pytest.fixture(params=[1, 2])
def tokenizer(request):
    words = Words(request.param)
    for text in [*(f" {name}" for name in NAMES), *(f" {year:02d}" for year in range(100)), " 17"]:
        words(text)
    for year in range(100):
        words(f"{year:02d}")
    for forms in NOUNS:
        words(" ".join(("", *forms)))
    words(" ".join(("", *PLACES, *EVENTS)))
    words(
        "When The and went to the store park school station office garden library market, gave a drink ball "
        "book ticket letter flower map basket is are lasted from year"
    )
    words(" store park school station office garden library market drink ball book ticket letter flower map "
          "basket is are")  # fmt: skip
    return words


@pytest.mark.parametrize("task", list(TASKS))
def test_tasks_are_different_pairs_with_opposite_answers(tokenizer, task):
    prompts = TASKS[task](tokenizer, 12, seed=3)
    again = TASKS[task](tokenizer, 12, seed=3)
    assert torch.equal(prompts.tokens, again.tokens)
    assert len({tuple(row) for row in prompts.tokens.tolist()}) == len(prompts) == 12
    assert prompts.corrupted.shape == prompts.tokens.shape
    assert ((prompts.tokens != prompts.corrupted).sum(1) > 0).all()
    for right, wrong in zip(prompts.answers.tolist(), prompts.wrong.tolist(), strict=True):
        assert {one for one in right if one >= 0}.isdisjoint(one for one in wrong if one >= 0)
    if task == "indirect_object":
        for row, answer, other in zip(prompts.strings, prompts.answers, prompts.wrong, strict=True):
            names = [text for text in row if text.strip() in NAMES]
            giver, taker = tokenizer.decode(other), tokenizer.decode(answer)
            assert names.count(giver) == 2
            assert names.count(taker) == 1
            assert names[-1] == giver


def test_later_years_are_right_whatever_the_digits(tokenizer):
    prompts = TASKS["greater_than"](tokenizer, 6)
    for row, right, wrong in zip(prompts.strings, prompts.answers, prompts.wrong, strict=True):
        text = "".join(row)
        year = text.split("year 17")[1][:2]
        rights, wrongs = (
            {tokenizer.decode([one]) for one in side.tolist() if one >= 0} for side in (right, wrong)
        )
        n = tokenizer.digits
        later = {f"{y:02d}"[:n] for y in range(int(year) + 1, 100)}
        earlier = {f"{y:02d}"[:n] for y in range(int(year))}
        assert rights == later - earlier
        assert wrongs == earlier - later


def test_years_of_one_token_are_left_out(tokenizer):
    """As GPT-2 writes some years: 1745 and 1776 as one token."""
    tokenizer.whole = " 1745(?!\\d)| 1776(?!\\d)|"
    prompts = TASKS["greater_than"](tokenizer, 100)
    years = {"".join(row).split("year 17")[1][:2] for row in prompts.strings}
    assert len(years) > 40
    assert years.isdisjoint({"45", "76"})
    if tokenizer.digits == 2:
        named = {tokenizer.decode([token]) for token in prompts.answers.unique().tolist() if token >= 0}
        assert "77" in named
        assert "76" not in named
    tokenizer.whole = " 1701(?!\\d)|"
    with pytest.raises(ValueError, match="does not write 1732 and 1701 as 17 and more"):
        TASKS["greater_than"](tokenizer, 4)


@pytest.mark.parametrize("task", list(TASKS))
def test_tasks_begin_as_the_dictionaries_text_does(tokenizer, task):
    plain, begun = (TASKS[task](tokenizer, 4, prepend_bos=bos) for bos in (False, True))
    assert torch.equal(begun.tokens[:, 1:], plain.tokens)
    assert torch.equal(begun.corrupted[:, 1:], plain.corrupted)
    assert (begun.tokens[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(begun.last, plain.last + 1)
    tokenizer.bos_token_id = None
    with pytest.raises(ValueError, match="no beginning-of-sequence token"):
        TASKS[task](tokenizer, 4, prepend_bos=True)


def test_too_many_prompts_are_refused(tokenizer):
    with pytest.raises(ValueError, match="make only"):
        TASKS["agreement"](tokenizer, 10_000)


def test_lists_of_prompts(model):
    tokenizer = model.tokenizer
    prompts = Prompts.from_texts(tokenizer, ["the king", "the old queen"], answers=[" the", (" a", " the")])
    assert repr(prompts) == "Prompts(prompts, 2 prompts of 2 to 3 tokens)"
    assert prompts.strings[1] == ("the", " old", " queen")
    assert prompts.answers[0, 1] == -1
    assert prompts.last.tolist() == [1, 2]
    assert prompts.select([1]).strings == (prompts.strings[1],)
    assert prompts.select(torch.tensor([True, False])).tokens.tolist() == prompts.tokens[:1].tolist()
    begun = Prompts.from_texts(tokenizer, ["the king"], prepend_bos=True)
    assert begun.tokens[0, 0] == tokenizer.bos_token_id


def test_bad_prompts_are_refused(model):
    for options, message in (
        ({"clean": ["a king"], "corrupted": ["a old king"]}, r"equally many tokens, found 2 .* and 3"),
        ({"clean": ["the king"], "answers": [" kingdom come"]}, "single token, found ' kingdom come'"),
        ({"clean": ["the king"], "answers": [" a", " the"]}, "one entry per prompt, 1, found 2"),
        ({"clean": ["the king"], "answers": [[]]}, "Prompt 0 has no answer"),
        ({"clean": ["the king"], "answers": [[" a", " the"]], "wrong": [" the"]}, "' the' is both a right"),
        ({"clean": []}, "at least one text"),
        ({"clean": [""]}, "no empty one"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Prompts.from_texts(model.tokenizer, **options)
    with pytest.raises(TypeError, match="clean must be a sequence of texts"):
        Prompts.from_texts(model.tokenizer, "the king")
    with pytest.raises(ValueError, match="None of the 1 prompts"):
        Prompts.from_texts(model.tokenizer, ["the king"]).select([False])
