"""The rule by which latents are shown, on latents whose words, densities and order are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_stores import in_memory

from saekit.analysis.labels import label_latents
from saekit.analysis.latents import collect
from saekit.analysis.readability import measure_readability
from saekit.dictionary import Dictionary

VOCABULARY = [
    " the", " and", " German", " Germany", " Berlin", " cat", " cats", " Cat", " quantum", " physics",
    " encl", " appr", "osed", " x1", ",", " war", " peace",
]  # fmt: skip
FREQUENT = {" the": 20, " and": 20}  # of 72 tokens in a round
READS = {
    "places": [" German", " Germany", " Berlin"],
    "science": [" quantum", " physics"],
    "function": [" the", " and"],
    "one word": [" cat", " cats", " Cat"],
    "fragments": [" encl", " appr"],
    "punctuation": [",", " x1"],
    "everything": VOCABULARY,
    "mostly commas": [",", " war", " peace"],
    "nothing": [],
}
PLACE = {name: place for place, name in enumerate(READS)}


def make(reads=READS):
    """A store of one-hot tokens, and a dictionary whose latents each read the sum of some tokens."""
    rounds = [t for t in VOCABULARY if t != "osed" for _ in range(FREQUENT.get(t, 2))]
    random = np.random.default_rng(0)
    text = []
    for _ in range(100):
        for token in random.permutation(rounds):
            text += [token, "osed"] if token in (" encl", " appr") else [token]
    n = len(text) // 50 * 50
    tokens = torch.tensor([VOCABULARY.index(token) for token in text[:n]]).view(-1, 50)
    x = torch.eye(len(VOCABULARY))[tokens]
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    store = in_memory(x, tokens=tokens, special=nowhere, excluded=nowhere)
    rows = torch.zeros(len(reads), len(VOCABULARY))
    for place, words in enumerate(reads.values()):
        for word in words:
            rows[place, VOCABULARY.index(word)] = 1.0
    # Every token as much as the others of its latent, but the comma more than the words after it.
    encoder = rows.clone()
    if "mostly commas" in reads:
        encoder[PLACE["mostly commas"], VOCABULARY.index(",")] = 3.0
    decoder = torch.nn.functional.normalize(rows + 1e-6, dim=1)
    zeros = torch.zeros(len(reads)), torch.zeros(len(VOCABULARY))
    dictionary = Dictionary(
        encoder.T.contiguous(),
        zeros[0],
        decoder,
        zeros[1],
        zeros[0] + 0.5,
        info={"kind": "relu", "hook_point": "toy"},
    )
    activations = collect(dictionary, store)
    return store, activations, label_latents(dictionary, activations, store, VOCABULARY)


@pytest.fixture(scope="module")
def world():
    return make()


def by_name(result):
    frame = result.frame.set_index("latent")
    return frame.loc[list(PLACE.values())].set_axis(list(PLACE))


def test_specific_latents_with_coherent_labels_come_first(world) -> None:
    store, activations, labels = world
    result = measure_readability(labels, activations, store)
    frame = by_name(result)
    shown = frame.index[frame["score"].notna()].tolist()
    assert shown == ["places", "science"]
    assert result.frame["latent"].tolist()[:2] == [
        PLACE["science"],
        PLACE["places"],
    ]  # fewer tokens: higher lift
    assert result.summary["n_readable"] == 2
    assert result.summary["first"] == "physics · quantum"
    # Why each of the others is left out:
    assert frame.loc["function", "density"] > 2 * frame["density"].mean()
    assert frame.loc["everything", "density"] == 1
    assert frame.loc["one word", "different"] == 1
    assert frame.loc["one word", ["whole", "agreeing"]].tolist() == [1, 2]
    assert frame.loc["fragments", "whole"] == 0
    assert frame.loc["fragments", "different"] == 2
    assert frame.loc["punctuation", "whole"] == 0
    assert frame.loc["mostly commas", "whole"] < 0.75
    assert frame.loc["nothing", "n_active"] == 0
    np.testing.assert_array_equal(result.scores, frame["score"])


def test_lift_is_counted_over_the_text(world) -> None:
    store, activations, labels = world
    frame = by_name(measure_readability(labels, activations, store))
    tokens = store.tokens.flatten()
    for name in ("places", "science", "mostly commas"):
        positions, values = activations.top(PLACE[name], 50)
        shares, usual = np.zeros(len(VOCABULARY)), np.zeros(len(VOCABULARY))
        for position, value in zip(positions.tolist(), values.tolist(), strict=True):
            shares[tokens[position]] += value
        for token in tokens.tolist():
            usual[token] += 1
        shares, usual = shares / shares.sum(), usual / usual.sum()
        there = shares > 0
        expected = np.prod((shares[there] / usual[there]) ** shares[there])
        assert frame.loc[name, "lift"] == pytest.approx(expected)
    assert np.isnan(frame.loc["nothing", "lift"])


def test_the_weaker_side_decides(world) -> None:
    store, activations, labels = world
    rebuilt = torch.full((len(READS),), 0.9)
    rebuilt[PLACE["science"]] = 0.2
    rebuilt[PLACE["function"]] = 0.1  # not shown, so it takes no part in the ranking
    frame = by_name(measure_readability(labels, activations, store, rebuilt))
    assert frame.loc["science", "lift"] > frame.loc["places", "lift"]
    assert frame.loc["science", "score"] == frame.loc["places", "score"] == 0.5
    assert frame["rebuilt"].tolist() == pytest.approx(rebuilt.tolist())
    rebuilt[PLACE["science"]] = 0.95
    assert by_name(measure_readability(labels, activations, store, rebuilt)).loc["science", "score"] == 1


def test_latents_active_on_few_tokens_are_left_out(world) -> None:
    store, activations, labels = world
    n = int(activations.counts[PLACE["science"]])
    for least, shown in ((n, True), (n + 1, False)):
        frame = by_name(measure_readability(labels, activations, store, min_active=least))
        assert bool(np.isfinite(frame.loc["science", "score"])) == shown
    none = measure_readability(labels, activations, store, min_active=10**6)
    assert none.frame["latent"].tolist() == list(range(len(READS)))
    assert none.summary["first"] is None


def test_what_does_not_belong_together_is_refused(world) -> None:
    store, activations, labels = world
    other = replace(activations, dictionary=replace(activations.dictionary, hash="f" * 64))
    with pytest.raises(ValueError, match="The dictionary of the activations"):
        measure_readability(labels, other, store)
    with pytest.raises(ValueError, match="were collected over the store"):
        measure_readability(labels, replace(activations, store="0" * 64), store)
    for bad in ([0.5], np.full(len(READS), np.nan)):
        with pytest.raises(ValueError, match=f"rebuilt must be {len(READS)} finite numbers"):
            measure_readability(labels, activations, store, bad)
    with pytest.raises(ValueError, match="min_active"):
        measure_readability(labels, activations, store, min_active=0)


def test_labels_of_another_text_are_refused(world) -> None:
    """Of the same dictionary, whose identity says nothing about the text that the words come from."""
    store, (tokens, eye) = world[0], (world[0].tokens[:50], torch.eye(len(VOCABULARY)))
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    part = in_memory(eye[tokens], tokens=tokens, special=nowhere, excluded=nowhere)
    dictionary = Dictionary.from_weights(eye[:3], eye[:3], d_in=len(eye), info={"hook_point": "toy"})
    here, there = collect(dictionary, store), collect(dictionary, part)
    of_part = label_latents(dictionary, there, part, VOCABULARY)
    with pytest.raises(ValueError, match=r"labels of relu 3 at toy .* taken from the store \["):
        measure_readability(of_part, here, store)
    with pytest.raises(ValueError, match=r"activations of relu 3 at toy .* collected over the store \["):
        measure_readability(of_part, here, part)
    measure_readability(of_part, there, part)
