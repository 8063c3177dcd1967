from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from dictionaries import make

from saekit.agreement import MismatchError
from saekit.analysis.nulls import null_dictionary
from saekit.analysis.similarity import nearest
from saekit.analysis.uniqueness.families import family_uniqueness
from saekit.analysis.uniqueness.matching import MatchedActivations, match_latents
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.passes import one_pass


def cosines(a: Dictionary, b: Dictionary) -> np.ndarray:
    rows = [torch.nn.functional.normalize(d.W_dec.double(), dim=1) for d in (a, b)]
    return (rows[0] @ rows[1].T).numpy()


def shuffled(dictionary: Dictionary, *, noise: float = 0.0, seed: int = 0) -> tuple[Dictionary, torch.Tensor]:
    """The same latents in another order, their directions disturbed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(dictionary.width, generator=generator)
    moved = dictionary.gather(order)
    rows = moved.W_dec + noise * torch.randn(moved.W_dec.shape, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    info = {**dictionary.info, "seed": 1}
    return Dictionary(moved.W_enc, moved.b_enc, rows, moved.b_dec, moved.threshold, info=info), order


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 7), (7, 4)])
def test_the_matching_is_the_best_of_all(n: int, m: int) -> None:
    a, b = make(d_in=5, width=n), make(d_in=5, width=m, seed=1)
    values = cosines(a, b)
    short, long = sorted((n, m))
    wide = values if n <= m else values.T
    best = max(sum(wide[i, j] for i, j in enumerate(order)) for order in permutations(range(long), short))
    for options in ({}, {"exact_cosines": 0, "candidates": 2}, {"exact_cosines": 0, "candidates": 7}):
        result = match_latents(a, b, **options)
        pairs = result.pairs
        assert len(pairs) == len(set(pairs["match"])) == short == result.summary["n_matched"]
        found = values[pairs["latent"], pairs["match"]]
        np.testing.assert_allclose(pairs["matched_cosine"], found, atol=1e-6)
        assert best - 1e-5 <= found.sum() + short * result.gap
        if result.exact:
            assert result.gap == 0
            assert found.sum() == pytest.approx(best, abs=1e-5)


def test_sparse_and_exact_matching_agree_on_related_dictionaries() -> None:
    a = make(d_in=16, width=120)
    b, order = shuffled(a, noise=0.1)
    exact, sparse = match_latents(a, b), match_latents(a, b, exact_cosines=0, candidates=4)
    assert sparse.exact
    assert sparse.frame["match"].tolist() == exact.frame["match"].tolist()
    assert sparse.frame["best_match"].tolist() == exact.frame["best_match"].tolist()
    # Latent i of b is latent order[i] of a.
    assert (exact.frame["match"].to_numpy() == order.argsort().numpy()).mean() > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_bounds_what_few_candidates_cost(seed: int) -> None:
    a, b = make(d_in=4, width=60, seed=seed), make(d_in=4, width=70, seed=seed + 10)
    exact = match_latents(a, b)
    assert exact.exact
    sparse = match_latents(a, b, exact_cosines=100, candidates=2)
    assert not sparse.exact
    lacks = exact.summary["mean_matched_cosine"] - sparse.summary["mean_matched_cosine"]
    assert -1e-7 <= lacks <= sparse.gap + 1e-7
    assert len(set(sparse.frame["match"])) == 60, "those without a candidate are matched too"


def test_equal_rows_leave_nobody_alone() -> None:
    a = make(d_in=3, width=1).gather([0] * 12)
    result = match_latents(a, a, exact_cosines=0, candidates=3)
    assert sorted(result.frame["match"]) == list(range(12))
    assert result.summary["mean_matched_cosine"] == pytest.approx(1)


def test_a_shuffled_copy_is_found_again_and_has_the_same_activations() -> None:
    a = make(d_in=16, width=50)
    b, order = shuffled(a)
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(2))
    result = match_latents(a, b, activations=x)
    assert result.frame["match"].tolist() == order.argsort().tolist()
    assert result.frame_b["match"].tolist() == order.tolist()
    assert set(result.frame["status"]) == {"shared"}
    alive = ~result.frame["dead"]
    np.testing.assert_allclose(result.frame.loc[alive, "correlation"], 1, atol=1e-9)
    summary = result.summary
    for share in ("share_shared", "share_mutual", "share_same_by_encoder", "share_shared_both", "share_best"):
        assert summary[share] == 1


def test_best_matches_and_mutual_best_are_those_of_the_similarity() -> None:
    a, b = make(width=40), make(width=30, seed=1)
    result = match_latents(a, b)
    (cosine, up), (_, down) = (nearest(one, other, k=1) for one, other in ((a, b), (b, a)))
    assert result.frame["best_match"].tolist() == up[:, 0].tolist()
    assert result.frame_b["best_match"].tolist() == down[:, 0].tolist()
    np.testing.assert_allclose(result.frame["best_cosine"], cosine[:, 0], atol=1e-6)
    mutual = [int(down[up[i, 0], 0]) == i for i in range(40)]
    assert result.frame["mutual_best"].tolist() == mutual
    assert sum(result.frame_b["mutual_best"]) == sum(mutual)
    without = result.frame[result.frame["match"] == -1]
    assert len(without) == 10
    assert without["matched_cosine"].isna().all()


def test_status_says_why_a_latent_has_no_counterpart() -> None:
    basis = torch.eye(6)
    close = torch.nn.functional.normalize(basis[0] + 0.5 * basis[1], dim=0)
    rows = {"a": torch.stack([basis[0], close, basis[2]]), "b": torch.stack([basis[0], basis[3], basis[4]])}
    a, b = (
        Dictionary(r.T.contiguous(), torch.zeros(3), r, torch.zeros(6), torch.zeros(3)) for r in rows.values()
    )
    result = match_latents(a, b, theta=0.7)
    assert result.frame["status"].tolist() == ["shared", "crowded", "alone"]
    assert result.summary["share_shared"] == pytest.approx(1 / 3)
    assert result.summary["share_best"] == pytest.approx(2 / 3)
    assert result.by_status["n_latents"].tolist() == [1, 1, 1]
    shares = result.unmatched([0.0, 0.5, 1.0])
    assert shares["share_matched_under"].tolist() == pytest.approx([0, 2 / 3, 2 / 3])


def test_correlation_is_that_of_the_dense_activations() -> None:
    a, b = make(width=30), make(width=24, seed=1)
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(3))
    result = match_latents(a, b, activations=x)
    dense = [d.encode(x).double().numpy() for d in (a, b)]
    for row in result.frame.itertuples():
        left = dense[0][:, row.latent]
        assert row.density == pytest.approx((left > 0).mean())
        if row.match < 0 or left.std() == 0 or dense[1][:, row.match].std() == 0:
            assert np.isnan(row.correlation)
        else:
            expected = np.corrcoef(left, dense[1][:, row.match])[0, 1]
            assert row.correlation == pytest.approx(expected, abs=1e-9)
    back = result.frame_b.set_index("latent")["correlation"]
    pairs = result.pairs
    np.testing.assert_allclose(back.loc[pairs["match"]].to_numpy(), pairs["correlation"], atol=1e-12)
    cut = MatchedActivations(a, b, match_latents(a, b))
    tokens = one_pass(x, cut, dictionaries=[a, b], purpose="uniqueness", batch_size=33)
    np.testing.assert_allclose(
        cut.finished(tokens).frame["correlation"], result.frame["correlation"], atol=1e-9
    )


def test_latents_of_dictionaries_with_nothing_active_correlate_with_nothing() -> None:
    a, b = make(width=30), make(width=30, seed=1)
    silent = replace(b, threshold=torch.full_like(b.threshold, 1e6))
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(3))
    result = match_latents(a, silent, activations=x)
    assert result.frame["correlation"].isna().all()
    assert result.frame_b["dead"].all()


def test_dictionaries_must_belong_together() -> None:
    with pytest.raises(ValueError, match="has d_in 12, the second 8"):
        match_latents(make(d_in=12), make(d_in=8))

    def at(place):
        made = make()
        return replace(made, info={**made.info, "hook_point": place})

    a, b = at("blocks.1.hook_resid_post"), at("blocks.2.hook_resid_post")
    with pytest.raises(MismatchError, match="hook point"):
        match_latents(a, b)
    with pytest.warns(UserWarning, match="do not belong together"):
        assert match_latents(a, b, allow_mismatch=True).summary["share_shared"] == 1


@pytest.mark.parametrize("theta", [-1, 1.5, 7, float("nan"), "0.7"])
def test_theta_is_a_cosine(theta) -> None:
    a, b = make(), make(seed=1)
    for call in (
        lambda: match_latents(a, b, theta=theta),
        lambda: family_uniqueness(Family([a, b]), theta=theta),
        lambda: match_latents(a, b).unmatched([0.5, theta]),
    ):
        with pytest.raises((TypeError, ValueError), match="theta must be"):
            call()
    with pytest.raises(TypeError, match="candidates must be a whole number"):
        match_latents(a, b, candidates=2.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused_as_everywhere(bad) -> None:
    """One rule, whatever the analysis."""
    a, b = make(), make(seed=1)
    x = torch.randn(50, 12)
    x[31, 4] = bad
    for call in (
        lambda: match_latents(a, b, activations=x),
        lambda: family_uniqueness(Family([a, b]), activations=x),
    ):
        with pytest.raises(ValueError, match="position 31 are not finite"):
            call()


def test_nulls_keep_what_they_say_and_nothing_else() -> None:
    a = make(d_in=8, width=200)
    permuted, random = (null_dictionary(a, null) for null in ("columns permuted", "random directions"))
    # The encoder is not normalised again, so that its columns hold the same values.
    assert torch.equal(permuted.W_enc.sort(dim=1).values, a.W_enc.sort(dim=1).values)
    assert not torch.equal(permuted.W_enc, a.W_enc)
    for null in (permuted, random):
        assert null.width == a.width
        torch.testing.assert_close(null.W_dec.norm(dim=1), torch.ones(200))
        assert match_latents(a, null).summary["mean_matched_cosine"] < 0.9
        assert null.name != a.name
    again = null_dictionary(a, "random directions")
    assert torch.equal(again.W_dec, random.W_dec)
    assert not torch.equal(null_dictionary(a, "random directions", seed=1).W_dec, random.W_dec)
    with pytest.raises(ValueError, match="found 'nothing'"):
        null_dictionary(a, "nothing")


def test_a_family_has_any_number_of_seeds() -> None:
    first = make(d_in=12, width=20)
    others = []
    for seed in (1, 2):
        moved, _ = shuffled(first, noise=0.05 * seed, seed=seed)
        others.append(replace(moved, info={**moved.info, "seed": seed}))
    result = family_uniqueness(Family([first, *others]))
    table = result.table.set_index(["comparison", "null"])
    assert [name for name, null in table.index if not null] == ["20, seed 1", "20, seed 2"]
    assert table["seeds"].all()
    for other in others:
        found = result.results[f"20, seed {other.seed}", ""]
        assert (found.a, found.b) == (first.identity, other.identity)
        assert found.summary == match_latents(first, other).summary
    assert result.missing == ()
    assert len(repr(result)) < 200


def test_a_family_has_seeds_widths_and_nulls_side_by_side() -> None:
    first = make(d_in=12, width=20)
    second, _ = shuffled(first, noise=0.05)
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(4))
    family = Family([first, second, make(d_in=12, width=40)])
    result = family_uniqueness(family, theta=0.6, activations=x)
    table = result.table.set_index(["comparison", "null"])
    nulls = ["", "columns permuted", "random directions"]
    comparisons = ["20, other seed", "20 → 40"]
    expected = [(name, null) for name in comparisons for null in nulls]
    assert table.index.tolist() == [*expected, ("40, other seed", "")]
    assert table.loc[("40, other seed", ""), "note"] == "no second seed"
    assert result.missing == (40,)
    alone = match_latents(first, second, theta=0.6, activations=x)
    assert result.results["20, other seed", ""].frame.equals(alone.frame)
    assert table.loc[("20, other seed", ""), "share_shared"] == alone.summary["share_shared"] == 1
    assert table.loc[("20, other seed", "random directions"), "share_shared"] < 1
    assert len(result.frame) == 6 * 20
    assert result.summary["share_shared"]["20, other seed"]["measured"] == 1
