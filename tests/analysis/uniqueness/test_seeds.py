"""Any number of seeds: recurrence, PW-MCC against a dense assignment, and what must not change them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta

from saekit.analysis.uniqueness.families import family_uniqueness
from saekit.analysis.uniqueness.matching import assign, match_latents
from saekit.analysis.uniqueness.seeds import differing, measure_uniqueness, recurrence_interval
from saekit.dictionary import Dictionary
from saekit.family import Family

WIDTH, D_IN = 40, 12


def run(noise: float, seed: int, *, flipped: int = 0, width: int = WIDTH) -> Dictionary:
    """A world's directions found by a training run: in another order, disturbed, some of them opposite."""
    world = make(d_in=D_IN, width=width)
    generator = torch.Generator().manual_seed(seed)
    amount = noise * torch.rand(width, 1, generator=generator)
    rows = world.W_dec + amount * torch.randn(width, D_IN, generator=generator)
    rows[:flipped] *= -1
    rows = torch.nn.functional.normalize(rows, dim=1)[torch.randperm(width, generator=generator)]
    return replace(world, W_enc=rows.T.contiguous(), W_dec=rows, info={"kind": "relu", "seed": seed})


RUNS = [run(1.0, seed) for seed in range(3)]


def dense_mcc(a: Dictionary, b: Dictionary, *, absolute: bool) -> float:
    """Scipy's assignment on all cosines, in double precision."""
    rows = [d.W_dec.double().numpy() for d in (a, b)]
    products = rows[0] @ rows[1].T
    products = np.abs(products) if absolute else products
    return products[linear_sum_assignment(products, maximize=True)].mean()


@pytest.mark.parametrize("options", [{}, {"exact_cosines": 0, "candidates": 8}])
def test_pw_mcc_is_that_of_a_dense_assignment_over_all_pairs(options) -> None:
    runs = [run(1.0, seed, flipped=5 * seed) for seed in range(3)]
    result = measure_uniqueness(*runs, **options)
    pairs = result.pairs
    assert [*result.matchings] == [(0, 1), (0, 2), (1, 2)]
    for (i, j), row in zip(result.matchings, pairs.itertuples(), strict=True):
        for found, gap, absolute in (
            (row.pw_mcc_signed, row.gap_signed, False),
            (row.pw_mcc_absolute, row.gap_absolute, True),
        ):
            best = dense_mcc(runs[i], runs[j], absolute=absolute)
            assert found <= best + 1e-6 <= found + gap + 2e-6
            assert options or gap == 0
    assert result.summary["pw_mcc_absolute"] == pytest.approx(pairs["pw_mcc_absolute"].mean())
    assert (pairs["pw_mcc_absolute"] >= pairs["pw_mcc_signed"] - 1e-9).all()


@pytest.mark.parametrize("absolute", [False, True])
def test_few_candidates_find_the_best_matching_or_bound_what_it_lacks(absolute: bool) -> None:
    exact = 0
    for seed in range(6):
        a, b = run(0.3 * seed, 1), run(0.3 * seed, 2, flipped=20 if absolute else 0)
        best = dense_mcc(a, b, absolute=absolute) * WIDTH
        match, cosine, lost = assign(a.W_dec, b.W_dec, 6, 0, absolute=absolute)
        assert sorted(match) == list(range(WIDTH))
        products = (a.W_dec @ b.W_dec.T).numpy()
        products = np.abs(products) if absolute else products
        np.testing.assert_allclose(cosine, products[np.arange(WIDTH), match], atol=1e-6)
        assert cosine.sum() <= best + 1e-4 <= cosine.sum() + (lost or 0) + 2e-4
        exact += lost is None
    assert exact, "related directions need no more than a few candidates"


def test_recurrence_counts_the_other_seeds_with_a_match() -> None:
    result = measure_uniqueness(*RUNS, theta=0.8)
    frame = result.frame
    assert len(frame) == 3 * WIDTH
    for place in range(3):
        part = frame[frame["place"] == place]
        counts = np.zeros(WIDTH)
        for other in {0, 1, 2} - {place}:
            products = (RUNS[place].W_dec.double() @ RUNS[other].W_dec.double().T).numpy()
            rows, columns = linear_sum_assignment(products, maximize=True)
            counts += products[rows, columns] >= 0.8
        np.testing.assert_array_equal(part["n_recurring"], counts)
        np.testing.assert_array_equal(result.latents(place, recurring=False), np.flatnonzero(counts == 0))
        np.testing.assert_array_equal(result.latents(place, recurring=True), np.flatnonzero(counts == 2))
    assert {*frame["n_recurring"]} == {0, 1, 2}, "the case must have latents of every kind"
    summary = result.summary
    assert summary["share_never"] == (frame["n_recurring"] == 0).mean()
    assert summary["share_always"] == (frame["n_recurring"] == 2).mean()
    assert result.by_share["n_latents"].sum() == 3 * WIDTH


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    for n in (1, 2, 4):
        for k in range(n + 1):
            low, high = recurrence_interval(k, n)
            assert low == pytest.approx(beta.ppf(0.025, k, n - k + 1) if k else 0)
            assert high == pytest.approx(beta.ppf(0.975, k + 1, n - k) if k < n else 1)


def test_the_order_of_latents_changes_nothing() -> None:
    before = measure_uniqueness(*RUNS).summary
    orders = [torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    after = measure_uniqueness(*(d.gather(o) for d, o in zip(RUNS, orders, strict=True))).summary
    assert after == pytest.approx(before)


def test_opposite_directions_move_the_signed_score_alone() -> None:
    first, second = run(0.1, 0), run(0.1, 1)
    signs = torch.ones(WIDTH)
    signs[:10] = -1
    turned = replace(second, W_dec=second.W_dec * signs[:, None])
    before, after = (measure_uniqueness(first, other).summary for other in (second, turned))
    assert after["pw_mcc_absolute"] == pytest.approx(before["pw_mcc_absolute"])
    assert after["pw_mcc_signed"] < before["pw_mcc_signed"] - 0.05


def test_a_dictionary_recurs_in_itself() -> None:
    summary = measure_uniqueness(RUNS[0], RUNS[0], RUNS[0]).summary
    assert summary["pw_mcc_signed"] == pytest.approx(1)
    assert summary["pw_mcc_absolute"] == pytest.approx(1)
    assert (summary["share_always"], summary["share_never"]) == (1, 0)


def test_near_duplicates_raise_neither_score() -> None:
    """One direction that two runs share counts once, however often one of them holds it."""
    first, other = make(d_in=64, width=30), make(d_in=64, width=30, seed=1)
    rows = other.W_dec.clone()
    rows[0] = first.W_dec[0]
    other = replace(other, W_dec=rows)
    copies = first.W_dec.clone()
    noise = 0.01 * torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    copies[1:11] = torch.nn.functional.normalize(first.W_dec[0] + noise, dim=1)
    duplicated = replace(first, W_dec=copies)
    before, after = (measure_uniqueness(d, other) for d in (first, duplicated))
    assert before.summary["share_shared"] == after.summary["share_shared"] == pytest.approx(1 / 30)
    assert after.frame.loc[after.frame["place"] == 0, "n_recurring"].sum() == 1
    for score in ("pw_mcc_signed", "pw_mcc_absolute"):
        assert after.summary[score] <= before.summary[score]


def test_activations_are_compared_in_one_pass() -> None:
    x = torch.randn(300, D_IN, generator=torch.Generator().manual_seed(3))
    result = measure_uniqueness(*RUNS, activations=x)
    for (i, j), matching in result.matchings.items():
        alone = match_latents(RUNS[i], RUNS[j], activations=x)
        assert matching.frame.equals(alone.frame)
        assert matching.frame_b.equals(alone.frame_b)
    second = result.frame[result.frame["place"] == 1].reset_index(drop=True)
    of_both = [result.matchings[0, 1].frame_b["correlation"], result.matchings[1, 2].frame["correlation"]]
    np.testing.assert_allclose(second["mean_correlation"], np.nanmean(of_both, axis=0))
    assert second["density"].tolist() == ((RUNS[1].encode(x) > 0).double().mean(0)).tolist()


def test_a_family_holds_the_uniqueness_of_each_width() -> None:
    x = torch.randn(300, D_IN, generator=torch.Generator().manual_seed(3))
    wider = make(d_in=D_IN, width=60)
    result = family_uniqueness(Family([*RUNS, wider]), activations=x)
    assert [*result.seeds] == [WIDTH]
    alone = measure_uniqueness(*RUNS, activations=x)
    assert result.seeds[WIDTH].summary == alone.summary
    assert result.seeds[WIDTH].frame.equals(alone.frame)
    assert result.results[f"{WIDTH}, seed 2", ""].frame.equals(alone.matchings[0, 2].frame)
    assert result.over_seeds["n_seeds"].tolist() == [3]
    assert result.summary["over_seeds"][WIDTH]["share_never"] == alone.summary["share_never"]


def trained(seed: int, data_seed: int | None = None, **record) -> Dictionary:
    training = {"seed": seed, "activations": "a", "batch_size": 512} | record
    if data_seed is not None:
        training["data_seed"] = data_seed
    return replace(RUNS[0], info={"kind": "relu", "seed": seed, "training": training})


def test_what_differed_is_read_from_the_records() -> None:
    base = trained(0)
    assert differing(base, trained(1)) == "both"
    assert differing(base, trained(1, 0)) == "initialisation"
    assert differing(base, trained(0, 1)) == "data order"
    assert differing(base, trained(1, 1)) == "both"
    assert differing(base, trained(0, 0)) == "neither"
    assert differing(base, trained(0, activations="b")) == "data order", "other text is another order"
    assert differing(base, trained(0, batch_size=64)) == "data order"
    assert differing(base, RUNS[1]) == "unknown"
    summary = measure_uniqueness(base, trained(1), trained(1, 0)).summary
    assert summary["differ"] == "both, initialisation, data order"


def test_seeds_of_two_widths_or_one_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one width, found the widths \[40, 20\]"):
        measure_uniqueness(make(width=40), make(width=20))
    with pytest.raises(ValueError, match="at least two dictionaries"):
        measure_uniqueness(RUNS[0])
    with pytest.raises(ValueError, match="theta must be"):
        measure_uniqueness(*RUNS, theta=2)
