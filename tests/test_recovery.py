"""Scores against the truth: SAELens' own, brute force, and what must and must not change them."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import saekit
from saekit.recovery import measure_recovery
from saekit.sparse import SparseLatents
from saekit.synthetic import Sample, World, nabeshima_tree

RECORDED = Path(__file__).parent / "recovery"
SCORES = json.loads((RECORDED / "scores.json").read_text())


def rows(n, d, seed):
    return torch.nn.functional.normalize(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def perfect(world):
    """The dictionary of a world whose directions are orthonormal."""
    zeros = torch.zeros(world.n_features)
    return saekit.Dictionary(
        world.directions.T, zeros, world.directions, torch.zeros(world.d_in), zeros + 0.05
    )


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_saelens(name):
    tensors = load_file(RECORDED / "cases.safetensors")
    case = {key.split("/")[1]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
    dictionary = saekit.Dictionary.from_weights(
        case["W_enc"], case["W_dec"], case["b_enc"], case["b_dec"], d_in=len(case["b_dec"])
    )
    features = SparseLatents.from_mask(case["features"] > 0, case["features"])
    sample = Sample(case["features"] @ case["directions"], features)
    found = measure_recovery(dictionary, case["directions"], sample)
    expected = SCORES[name]
    mine = found.summary
    for score in ("mcc", "uniqueness", "shrinkage", "explained_variance", "true_l0"):
        assert mine[score] == pytest.approx(expected[score], abs=1e-6), score
    assert mine["l0"] == pytest.approx(expected["sae_l0"], abs=1e-6)
    assert mine["f1"] == pytest.approx(expected["classification"]["f1_score"], abs=1e-6)
    for score in ("precision", "recall"):
        assert mine[score] == pytest.approx(expected["classification"][score], abs=1e-6)


def test_matching_is_the_best_of_all():
    for seed, (n, m) in enumerate([(4, 6), (6, 4), (5, 5)]):
        learned, truth = rows(n, 3, seed), rows(m, 3, seed + 50)
        cosines = learned @ truth.T
        short, long = (cosines, range(m)) if n <= m else (cosines.T, range(n))
        for signed in (False, True):
            values = short if signed else short.abs()
            best = max(
                sum(values[i, j] for i, j in enumerate(chosen)) / len(short)
                for chosen in itertools.permutations(long, len(short))
            )
            found = measure_recovery(learned, truth)
            assert (found.mcc_signed if signed else found.mcc) == pytest.approx(float(best), abs=1e-6)


def test_detection_by_counting():
    world = nabeshima_tree(deviation=0.3)
    sample = world.sample(700)
    noisy = saekit.Dictionary(
        rows(9, 20, 1).T, torch.zeros(9), rows(9, 20, 1), torch.zeros(20), torch.full((9,), 0.3)
    )
    found = measure_recovery(noisy, world.directions, sample)
    latents, truth = noisy.encode(sample.x), sample.features.dense()
    for i in range(9):
        best = int((noisy.W_dec[i] @ world.directions.T).abs().argmax())
        pairs = [(bool(a), bool(b)) for a, b in zip(latents[:, i] > 0, truth[:, best] > 0, strict=True)]
        both = pairs.count((True, True))
        precision = both / max(both + pairs.count((True, False)), 1)
        recall = both / max(both + pairs.count((False, True)), 1)
        f1 = 2 * precision * recall / (precision + recall) if both else 0
        assert found.frame.loc[i, ["best", "precision", "recall", "f1"]].tolist() == pytest.approx(
            [best, precision, recall, f1]
        )


def test_the_true_dictionary_scores_one():
    world = nabeshima_tree(deviation=0.1)
    summary = measure_recovery(perfect(world), world.directions, world.sample(20_000)).summary
    for score in (
        "mcc",
        "mcc_signed",
        "precision",
        "recall",
        "f1",
        "uniqueness",
        "share_recovered",
        "shrinkage",
    ):
        assert summary[score] == pytest.approx(1, abs=1e-5), score
    assert summary["explained_variance"] == pytest.approx(1, abs=1e-5)


def test_undefined_ratios_are_zero():
    world = World("two", torch.eye(2), torch.tensor([0.5, 0.0]))
    silent = saekit.Dictionary(
        torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), torch.tensor([1e6, 1e6])
    )
    found = measure_recovery(silent, world.directions, world.sample(100))
    assert found.f1.tolist() == found.precision.tolist() == found.recall.tolist() == [0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12))
def test_permuting_latents_changes_nothing(seed, n, m):
    learned, truth = rows(n, 6, seed), rows(m, 6, seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    plain, permuted = measure_recovery(learned, truth), measure_recovery(learned[order], truth)
    for score in ("mcc", "mcc_signed", "uniqueness", "share_recovered"):
        assert permuted.summary[score] == pytest.approx(plain.summary[score], abs=1e-6)
    assert torch.equal(permuted.best, plain.best[order])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 12))
def test_flipped_signs_move_the_signed_score_alone(seed, n):
    learned = rows(n, 20, seed)
    signs = torch.ones(n, 1)
    signs[: n // 2 + 1] = -1
    found = measure_recovery(signs * learned, learned)
    assert found.mcc == pytest.approx(1, abs=1e-5)
    assert found.mcc_signed < 0.9
    assert measure_recovery(learned, learned).mcc_signed == pytest.approx(1, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_near_duplicates_do_not_raise_the_scores(seed, n):
    """Copies of what was found already add nothing for features that were not."""
    truth = rows(12, 40, seed)
    learned = truth[:n]
    copies = torch.cat([learned, learned + 1e-3 * rows(n, 40, seed + 1)])
    plain, padded = measure_recovery(learned, truth), measure_recovery(copies, truth)
    assert padded.mcc <= plain.mcc + 1e-6
    assert padded.uniqueness <= plain.uniqueness / 2 + 1e-6
    assert torch.equal(padded.recovered(0.99), plain.recovered(0.99))


def test_refusals():
    with pytest.raises(TypeError, match="Only a Dictionary"):
        measure_recovery(torch.eye(3), torch.eye(3), nabeshima_tree().sample(5))
    with pytest.raises(ValueError, match="true ones"):
        measure_recovery(torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match="20 features, not of 3"):
        measure_recovery(perfect(nabeshima_tree()), rows(3, 20, 0), nabeshima_tree().sample(5))
    with pytest.raises(ValueError, match="A direction is 0"):
        measure_recovery(torch.zeros(2, 3), torch.eye(3))
