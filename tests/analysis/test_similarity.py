from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from saekit.agreement import MismatchError
from saekit.analysis import (
    best_matches,
    family_similarity,
    match_latents,
    measure_splitting,
    nearest,
    similarity,
    splitting_tree,
)
from saekit.analysis.similarity import cosines, largest
from saekit.analysis.stitching.path import plan
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.sparse import affine


def dictionary(rows: torch.Tensor, *, seed: int = 0) -> Dictionary:
    rows = torch.nn.functional.normalize(rows.double(), dim=1).float()
    width, d_in = rows.shape
    return Dictionary(
        W_enc=rows.T.contiguous(),
        b_enc=torch.zeros(width),
        W_dec=rows,
        b_dec=torch.zeros(d_in),
        threshold=torch.zeros(width),
        info={"kind": "relu", "seed": seed},
    )


def random_dictionary(width: int, *, d_in: int = 16, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(1000 * width + seed)
    return dictionary(torch.randn(width, d_in, generator=generator), seed=seed)


def reference_cosines(large: Dictionary, small: Dictionary) -> torch.Tensor:
    a, b = large.W_dec.double(), small.W_dec.double()
    return torch.stack([torch.cosine_similarity(row[None], b) for row in a])


@pytest.mark.parametrize("tile", [4096, 1, 7, 30])
def test_best_matches_are_the_greatest_cosines(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "TILE", tile)
    large, small = random_dictionary(50), random_dictionary(30)
    matches = best_matches(small, large)
    cosine, index = reference_cosines(large, small).max(1)
    assert torch.equal(matches.index, index)
    torch.testing.assert_close(matches.cosine.double(), cosine, atol=1e-6, rtol=0)
    assert list(matches.frame.columns) == ["latent", "best_match", "best_cosine"]
    assert matches.frame["best_match"].tolist() == index.tolist()


def test_a_dictionary_is_not_its_own_neighbour_nor_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "TILE", 6)
    one = random_dictionary(20)
    cosines = reference_cosines(one, one).fill_diagonal_(-2)
    matches = best_matches(one, one)
    assert torch.equal(matches.index, cosines.argmax(1))
    assert (matches.same_index_share, matches.chance) == (0, 0)
    copy = best_matches(dictionary(one.W_dec.clone()), one)
    assert torch.equal(copy.index, matches.index)
    assert (copy.same_index_share, copy.chance) == (0, 0)
    twin = best_matches(dictionary(one.W_dec.clone(), seed=9), one)  # equal directions, another dictionary
    assert torch.equal(twin.index, torch.arange(20))
    assert (twin.same_index_share, twin.chance) == (1, 1 / 20)


def test_same_index_share_counts_only_indices_that_both_have() -> None:
    small = random_dictionary(10, d_in=64)
    shared = torch.cat([small.W_dec[:4], random_dictionary(26, d_in=64).W_dec])
    matches = best_matches(small, dictionary(shared))
    expected = reference_cosines(dictionary(shared), small)[:10].argmax(1) == torch.arange(10)
    assert matches.same_index_share == expected.double().mean() >= 0.4
    assert matches.chance == 0.1


def test_nearest_gives_the_k_greatest_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "TILE", 9)
    large, small = random_dictionary(25), random_dictionary(40)
    latents = [3, 17, 3]
    cosines, indices = nearest(large, small, k=6, latents=latents)
    values, order = reference_cosines(large, small)[latents].sort(dim=1, descending=True)
    assert torch.equal(indices, order[:, :6])
    torch.testing.assert_close(cosines.double(), values[:, :6], atol=1e-6, rtol=0)


def test_nearest_takes_directions_of_any_norm() -> None:
    small = random_dictionary(40)
    directions = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    once, thrice = nearest(directions, small, k=4), nearest(3 * directions, small, k=4)
    assert torch.equal(once[1], thrice[1])
    assert (once[0] <= 1).all()


def test_ties_go_to_the_lowest_index() -> None:
    values = torch.tensor([[1.0, 3, 2, 3, 3, 0], [5, 5, 5, 5, 5, 5], [0, 1, 2, 3, 4, 5]])
    top, indices = largest(values, 3)
    assert indices.tolist() == [[1, 3, 4], [0, 1, 2], [5, 4, 3]]
    assert top.tolist() == [[3, 3, 3], [5, 5, 5], [5, 4, 3]]
    assert largest(values, 2)[1].tolist() == [[1, 3], [0, 1], [5, 4]]


def test_duplicate_directions_match_the_first() -> None:
    rows = random_dictionary(12).W_dec
    _, indices = nearest(dictionary(rows), dictionary(torch.cat([rows, rows, rows])), k=1)
    assert torch.equal(indices[:, 0], torch.arange(12))


def tiles_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of the products that are taken from now on."""
    sizes: list[tuple[int, int]] = []

    def spy(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append((len(x), len(W)))
        return affine(x, W, b)

    monkeypatch.setattr(similarity, "affine", spy)
    monkeypatch.setattr(similarity, "_KEPT", OrderedDict())
    return sizes


def test_memory_stays_within_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = random_dictionary(1200, d_in=4), random_dictionary(500, d_in=4)
    whole = best_matches(small, large)
    sizes = tiles_of(monkeypatch)
    monkeypatch.setattr(similarity, "TILE", 150)
    assert torch.equal(best_matches(small, large).index, whole.index)
    assert max(max(size) for size in sizes) <= 150
    assert sum(rows * columns for rows, columns in sizes) == 1200 * 500


@pytest.mark.parametrize(("tile", "k", "floor"), [(4096, 1, 0.5), (7, 3, 0.2), (10, 40, -1.0), (1, 2, 2.0)])
@pytest.mark.parametrize("ties", [False, True])
def test_cosines_of_all_pairs(
    tile: int, k: int, floor: float, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "TILE", tile)
    tiles_of(monkeypatch)
    a, b = random_dictionary(23).W_dec, random_dictionary(31).W_dec
    if ties:  # whole numbers: every product is exact, and most occur more than once
        a, b = (
            torch.eye(4).repeat(8, 1)[: len(rows)] * (1 + torch.arange(len(rows)) % 3)[:, None]
            for rows in (a, b)
        )
    products = (
        torch.nn.functional.normalize(a.double(), dim=1) @ torch.nn.functional.normalize(b.double(), dim=1).T
    )
    found = cosines(a, b, k=k, floor=floor)
    for (values, indices), rows in ((found.up, products), (found.down, products.T)):
        ordered, order = rows.sort(dim=1, descending=True, stable=True)
        kept = min(k, rows.shape[1])
        assert torch.equal(indices, order[:, :kept])
        torch.testing.assert_close(values.double(), ordered[:, :kept], atol=1e-6, rtol=0)
    above = torch.where(products >= floor, products, 0.0).numpy()
    assert found.above.nnz == int((products >= floor).sum())
    np.testing.assert_allclose(found.above.toarray(), above, atol=1e-6)


def test_a_pair_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = random_dictionary(50), random_dictionary(30)
    sizes = tiles_of(monkeypatch)
    plans = plan(small, large, theta=0.3), plan(small, large, theta=0.5)
    best_matches(small, large)
    measure_splitting(small, large)
    plan(dictionary(small.W_dec.clone(), seed=9), large)  # directions count, whoever holds them
    assert sizes == [(50, 30)]
    turned = cosines(small.W_dec, large.W_dec, floor=0.4)
    assert sizes == [(50, 30)]
    encoders = random_dictionary(50, seed=1).W_dec.T.contiguous()
    match_latents(small, replace(large, W_enc=encoders), exact_cosines=0, candidates=4)
    assert sizes[1:3] == [(30, 50), (30, 50)]  # decoders with more of each row, encoders
    n = len(sizes)
    best_matches(small, large), plan(small, large, theta=0.3)
    assert len(sizes) == n
    monkeypatch.setattr(similarity, "_KEPT", OrderedDict())
    anew = plan(small, large, theta=0.3), plan(small, large, theta=0.5)
    for one, other in zip(plans, anew, strict=True):
        assert [move.insert.tolist() for move in one] == [move.insert.tolist() for move in other]
    fresh = cosines(small.W_dec, large.W_dec, floor=0.4)
    np.testing.assert_allclose(fresh.above.toarray(), turned.above.toarray(), atol=1e-6)


def test_other_directions_are_multiplied_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = random_dictionary(50), random_dictionary(30)
    sizes = tiles_of(monkeypatch)
    before = best_matches(small, large).index
    small.W_dec.copy_(small.W_dec.flip(0))
    assert torch.equal(best_matches(small, large).index, 29 - before)
    assert len(sizes) == 2


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = random_dictionary(50), [random_dictionary(30, seed=seed) for seed in range(4)]
    sizes = tiles_of(monkeypatch)
    best_matches(small[0], large)
    (entry,) = similarity._KEPT.values()
    monkeypatch.setattr(similarity, "KEPT_BYTES", 2 * entry.n_bytes)
    best_matches(small[1], large), best_matches(small[0], large)
    assert len(sizes) == 2
    best_matches(small[2], large)  # the second one, used longest ago, makes room
    assert len(similarity._KEPT) == 2
    best_matches(small[0], large)
    assert len(sizes) == 3
    best_matches(small[1], large)
    assert len(sizes) == 4


def test_results_do_not_change_what_is_kept() -> None:
    large, small = random_dictionary(50), random_dictionary(30)
    first = best_matches(small, large)
    index = first.index.clone()
    first.index.zero_(), first.cosine.zero_()
    assert torch.equal(best_matches(small, large).index, index)


@pytest.mark.parametrize("rows", [torch.zeros(3, 5), torch.zeros(16)])
def test_directions_must_fit(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[n, 16\]"):
        nearest(rows, random_dictionary(8), k=3)


def test_k_must_be_available() -> None:
    one = random_dictionary(8)
    assert nearest(one, one, k=7)[1].shape == (8, 7)
    with pytest.raises(ValueError, match="between 1 and 7, found 8"):
        nearest(one, one, k=8)


def test_family_similarity_sets_nulls_beside_pairs() -> None:
    family = Family([random_dictionary(8), random_dictionary(8, seed=1), random_dictionary(16)])
    result = family_similarity(family, theta=0.5)
    table = result.table.set_index("comparison")
    assert table.index.tolist() == ["8 → 16", "8, other seed", "16, other seed"]
    assert table["note"].tolist() == ["", "", "no second seed"]
    assert table["null"].tolist() == [False, True, True]
    pair = reference_cosines(family[16], family[8]).max(1).values
    null = reference_cosines(family.get(8, 1), family[8]).max(1).values
    assert table.loc["8 → 16", "share_under_theta"] == (pair < 0.5).double().mean()
    assert table.loc["8, other seed", "median_cosine"] == pytest.approx(float(null.quantile(0.5)), abs=1e-6)
    rows = result.frame[result.frame["comparison"] == "8 → 16"]
    assert rows["best_cosine"].tolist() == pytest.approx(pair.tolist(), abs=1e-6)
    assert set(result.summary["median_cosine"]) == {"8 → 16", "8, other seed"}


def test_the_small_dictionary_comes_first() -> None:
    small, large = random_dictionary(8), random_dictionary(16)
    with pytest.raises(ValueError, match=r"small is relu 16 .* the narrower relu 8 .*swap them"):
        best_matches(large, small)


def test_latents_to_look_up_are_selected_as_everywhere() -> None:
    large, small = random_dictionary(25), random_dictionary(40)
    mask = torch.zeros(25, dtype=torch.bool)
    mask[[4, 9]] = True
    expected = nearest(large, small, k=3, latents=[4, 9])
    for latents in (mask, mask.numpy(), pd.Series(mask.numpy(), index=range(7, 32)), pd.Series([4, 9])):
        found = nearest(large, small, k=3, latents=latents)
        assert torch.equal(found[1], expected[1])
    with pytest.raises(IndexError, match="between 0 and 24, found 25"):
        nearest(large, small, k=3, latents=[25])
    with pytest.raises(ValueError, match="one entry for each of the 25 latents, found 24"):
        nearest(large, small, k=3, latents=mask[1:])


def test_dictionaries_of_other_places_are_not_compared_by_mistake() -> None:
    small, large = (
        replace(random_dictionary(width), info={"kind": "relu", "hook_point": point})
        for width, point in ((8, "blocks.1.hook_resid_post"), (16, "blocks.2.hook_resid_post"))
    )
    for compare in (best_matches, measure_splitting, lambda a, b, **k: nearest(b, a, k=1, **k)):
        with pytest.raises(MismatchError, match=r"blocks\.1\.hook_resid_post.*blocks\.2\.hook_resid_post"):
            compare(small, large)
        with pytest.warns(UserWarning, match="do not belong together"):
            compare(small, large, allow_mismatch=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_directions_that_are_not_finite_are_refused(bad) -> None:
    small, large = random_dictionary(8), random_dictionary(16)
    directions = large.W_dec.clone()
    directions[3, 1] = bad
    for call in (
        lambda: cosines(directions, small.W_dec),
        lambda: cosines(small.W_dec, directions, k=2, floor=0.5),
        lambda: nearest(directions, small, k=1),
        lambda: nearest(directions, small, k=1, latents=[3]),
    ):
        with pytest.raises(ValueError, match="directions hold values that are not finite"):
            call()


@pytest.mark.parametrize("theta", [-1, 1.5, 7, float("nan"), "0.7", None])
def test_theta_is_a_cosine(theta) -> None:
    family = Family([random_dictionary(8), random_dictionary(16)])
    for call in (
        lambda: family_similarity(family, theta=theta),
        lambda: measure_splitting(family[8], family[16], theta=theta),
        lambda: splitting_tree(family, theta=theta),
    ):
        with pytest.raises((ValueError, TypeError), match="theta must be"):
            call()


def test_every_seed_is_a_null() -> None:
    seeds = [random_dictionary(8, seed=seed) for seed in (0, 1, 2)]
    result = family_similarity(Family([*seeds, random_dictionary(16)]))
    assert result.table["comparison"].tolist() == ["8 → 16", "8, seed 1", "8, seed 2", "16, other seed"]
    assert result.table["median_cosine"].isna().tolist() == [False, False, False, True]


def test_a_copy_leaves_one_candidate_fewer() -> None:
    one = random_dictionary(20)
    with pytest.raises(ValueError, match="k must be between 1 and 19, found 20"):
        nearest(one, dictionary(one.W_dec.clone()), k=20)
