# ruff: noqa: RUF001 - typographic characters are meant

import pytest

from saekit import wording

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (32, "32.0"), (-0.5, "−0.500"), (999.9, "1,000"), (1234.5, "1,234"), (100.2, "100"),
     (2e-5, "2e−05"), (3e9, "3e+09"), (NAN, "–")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0%"), (1, "100.0%"), (0.0032, "0.32%"), (0.5, "50.0%"), (NAN, "–"),
     (-1.1, "−110.0%"), (-0.0123, "−1.2%"), (-0.0032, "−0.32%"), (2.5, "250.0%")],
)  # fmt: skip
def test_shares_are_percentages(value, text):
    assert wording.share(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0%"), (0.004, "<1%"), (0.005, "<1%"), (0.0051, "1%"), (0.435, "44%"), (NAN, "–"),
     (-1.1, "−110%")],
)  # fmt: skip
def test_whole_percentages_round_nothing_to_nothing(value, text):
    assert wording.percent(value) == text


def test_changes_carry_their_sign():
    assert [wording.signed(value) for value in (0.25, -0.25, 0)] == ["+0.250", "−0.250", "0"]
    assert wording.fixed(-1.005, 1) == "−1.0"


def test_counts_agree_with_their_noun():
    assert [wording.counted(n, "latent") for n in (0, 1, 6)] == ["0 latents", "1 latent", "6 latents"]
    assert wording.counted(1, "dictionary", "dictionaries") == "1 dictionary"
    assert wording.counted(1200, "dictionary", "dictionaries") == "1,200 dictionaries"


def test_long_numbers_in_a_sentence_have_separators():
    assert wording.grouped("the first 100000 tokens of 2024") == "the first 100,000 tokens of 2024"
    for text in ("0.123456", "123,456", "10 times", "123456.5"):
        assert wording.grouped(text) == text


def test_lists_and_ranges():
    assert wording.listed([16]) == "16"
    assert wording.listed([16, 32, 64]) == "16, 32 and 64"
    assert wording.span([0.451, 0.43, 0.44]) == "43.0% to 45.1%"
    assert wording.span([0.5, 0.5001]) == "50.0%"
