"""Detection by labels, against brute force and on text where the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make
from toy_stores import in_memory

import saekit
from saekit.analysis import collect, detection
from saekit.analysis.detection import detection_test

VOCABULARY = [" king", " queen", " river", " stone", " moon", " the"]
D_IN, ROWS, CONTEXT = len(VOCABULARY), 120, 16


def world(shift=0, seed=0):
    """Each latent reads one word; in the second half each word looks like the one `shift` further."""
    random = torch.Generator().manual_seed(seed)
    common = torch.full((ROWS, CONTEXT), D_IN - 1)
    tokens = torch.where(
        torch.rand(ROWS, CONTEXT, generator=random) < 0.1,
        torch.randint(D_IN - 1, (ROWS, CONTEXT), generator=random),
        common,
    )
    seen = tokens.clone()
    seen[ROWS // 2 :] = (seen[ROWS // 2 :] + shift) % D_IN
    x = torch.eye(D_IN)[seen.flatten()] * (1 + torch.rand(seen.numel(), 1, generator=random))
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    store = in_memory(
        x.view(ROWS, CONTEXT, D_IN),
        tokens=tokens,
        special=nowhere,
        excluded=nowhere,
        documents=[{"source": "toy", "title": "toy"}],
    )
    eye = torch.eye(D_IN)
    dictionary = saekit.Dictionary(eye, torch.zeros(D_IN), eye, torch.zeros(D_IN), torch.full((D_IN,), 0.5))
    return dictionary, collect(dictionary, store), store


def test_labels_that_are_right_detect_everything_and_a_neighbour_s_nothing():
    result = detection_test(*world(), VOCABULARY, window=4)
    frame = result.frame.set_index("latent").loc[:4]
    assert (frame["auc_own"] == 1).all()
    assert (frame["accuracy_own"] == 1).all()
    assert (frame["auc_neighbour"] < 0.6).all()
    assert result.summary["auc_own"] > result.summary["auc_common"]


def test_labels_of_another_half_are_not_used():
    """If words change their meaning half-way, labels of the first half detect nothing in the second."""
    frame = detection_test(*world(shift=1), VOCABULARY, window=4).frame.set_index("latent")
    assert (frame.loc[[1, 2, 3], "auc_own"] < 0.6).all()


class First:
    """Draws the first ones."""

    def choice(self, among, n, replace):
        return among[:n]


def test_scores_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(detection.np.random, "default_rng", lambda seed: First())
    dictionary, activations, store = world(shift=5, seed=3)
    window = 4
    result = detection_test(dictionary, activations, store, VOCABULARY, window=window, n_windows=2000)
    half = ROWS // 2 * CONTEXT
    shares = np.zeros((D_IN, D_IN))
    for latent in range(D_IN):
        positions, values = activations.entries(latent)
        early = [(v, p) for v, p in zip(values.tolist(), positions.tolist(), strict=True) if p < half]
        for value, position in sorted(early, reverse=True)[:50]:
            shares[latent, store.tokens.flatten()[position]] += value
    shares /= shares.sum(1, keepdims=True)
    idf = np.log(D_IN / (shares > 0).sum(0))
    windows, scores = store.tokens[ROWS // 2 :].reshape(-1, window).numpy(), []
    for row in result.frame.itertuples():
        label = shares[row.latent] * idf
        similarity = []
        for tokens in windows:
            bag = np.bincount(tokens, minlength=D_IN) * idf
            size = np.linalg.norm(bag) * np.linalg.norm(label)
            similarity.append(bag @ label / size if size else np.nan)
        similarity = np.array(similarity)
        where = activations.entries(row.latent)[0].numpy() - half
        fires = np.isin(np.arange(len(windows)), where[where >= 0] // window)
        usable = ~np.isnan(similarity)
        firing, other = similarity[usable & fires], similarity[usable & ~fires]
        n = min(len(firing), len(other))
        firing, other = firing[:n], other[:n]
        assert row.n_windows == n
        right = (firing[:, None] > other + 1e-12).mean() + 0.5 * np.isclose(firing[:, None], other).mean()
        assert row.auc_own == pytest.approx(right, abs=1e-3)
        scores.append(right)
    assert np.ptp(scores) > 0.05


def test_auc_and_accuracy_of_known_similarities():
    firing, other = np.array([3.0, 2.0, 1.0, 0.5]), np.array([2.5, 1.0, 0.0, 0.0])
    auc, accuracy = detection._scores(firing, other)
    assert auc == pytest.approx(
        np.mean([[1 if a > b else 0.5 if a == b else 0 for b in other] for a in firing])
    )
    assert accuracy == pytest.approx((2 + 1 * 1 / 2) / 4)  # the fourth place is shared by the two ones
    assert detection._scores(np.zeros(7), np.zeros(7)) == (0.5, 0.5)  # an empty label
    assert detection._scores(np.zeros(3), np.ones(3)) == (0.0, 0.0)


def test_what_cannot_be_tested_is_left_out_and_counted():
    dictionary, activations, store = world()
    silent = replace(dictionary, threshold=torch.tensor([1e6, *[0.5] * (D_IN - 1)]))
    result = detection_test(silent, collect(silent, store), store, VOCABULARY, window=4)
    assert 0 not in set(result.frame["latent"])
    assert result.n_left_out == D_IN - len(result.frame) >= 1
    assert set(result.table.index) == {"under 0.1%", "0.1% to 1%", "over 1%", "all"}
    assert result.table.loc["all", "n_latents"] == len(result.frame)
    excluded = replace_excluded(store)
    again = detection_test(dictionary, collect(dictionary, excluded), excluded, VOCABULARY, window=4)
    assert len(again.frame) <= len(result.frame) + 1
    with pytest.raises(ValueError, match="dictionary of the activations"):
        detection_test(make(d_in=D_IN, width=D_IN), activations, store, VOCABULARY, window=4)
    with pytest.raises(ValueError, match="window must be"):
        detection_test(dictionary, activations, store, VOCABULARY, window=17)
    with pytest.raises(ValueError, match="vocabulary"):
        detection_test(dictionary, activations, store, VOCABULARY[:3], window=4)


def replace_excluded(store):
    """The same with every king left out."""
    excluded = store.tokens == 0
    return in_memory(
        store.rows(0, ROWS),
        tokens=store.tokens,
        special=torch.zeros_like(excluded),
        excluded=excluded,
        documents=[{"source": "toy", "title": "toy"}],
    )
