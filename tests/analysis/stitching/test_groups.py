"""Groups of inserted latents, and comparisons with error bars over rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from saekit.agreement import MismatchError, MismatchWarning
from saekit.analysis.stitching.groups import compare_dictionaries, insert_latents, match_by_density
from saekit.metrics import ce_degradation, evaluate


def test_inserted_latents_add_their_contribution():
    small, large = make(12, 20, seed=0), make(12, 50, seed=1)
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)) + 1
    chosen = [3, 40, 7]
    found = insert_latents(small, large.gather(chosen))
    contribution = large.encode(x)[:, chosen] @ large.W_dec[chosen]
    torch.testing.assert_close(
        found.reconstruct(x), small.reconstruct(x) + contribution, rtol=1e-5, atol=1e-5
    )
    assert found.width == 23
    assert torch.equal(found.b_dec, small.b_dec)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="d_in"):
        insert_latents(make(12, 20), make(16, 20))


def test_differences_are_paired_by_row(model, store):
    dictionaries = {"a": make(d_in=16, width=12, seed=0), "b": make(d_in=16, width=30, seed=1)}
    result = compare_dictionaries(model, dictionaries, store, max_rows=store.n_rows)
    found = result.against("a")

    # FVU, from squared errors token by token
    x = store.read(store.positions)
    row = (store.positions // store.context_length).numpy()
    errors = {
        name: (x - d.reconstruct(x)).double().square().sum(1).numpy() for name, d in dictionaries.items()
    }
    variance = float((x.double() - x.double().mean(0)).square().sum())
    change = (errors["b"].sum() - errors["a"].sum()) / variance
    assert found.loc["b", "fvu_difference"] == pytest.approx(change, rel=1e-5)
    rows = np.unique(row)
    sums = np.array([(errors["b"] - errors["a"])[row == r].sum() for r in rows])
    counts = np.array([(row == r).sum() for r in rows])
    n = store.n_rows  # a row without used positions has nothing to differ by
    residual = sums - sums.sum() / counts.sum() * counts
    error = np.sqrt((residual**2).sum() * n / (n - 1)) / variance
    assert found.loc["b", "fvu_difference_error"] == pytest.approx(error, rel=1e-4)

    # cross-entropy, one dictionary at a time
    alone = {name: ce_degradation(model, d, store, max_rows=store.n_rows) for name, d in dictionaries.items()}
    change = alone["b"].frame["ce"][0] - alone["a"].frame["ce"][0]
    assert found.loc["b", "ce_difference"] == pytest.approx(change, abs=1e-9)
    assert (found.loc["a"] == 0).all()
    for name, d in dictionaries.items():
        expected = evaluate(d, store)
        assert result.frame.loc[name, ["width", "l0", "fvu"]].tolist() == [d.width, expected.l0, expected.fvu]


def test_an_unknown_reference_is_named(model, store):
    result = compare_dictionaries(model, {"a": make(d_in=16)}, store, max_rows=2)
    with pytest.raises(KeyError, match="No dictionary is called 'c'"):
        result.against("c")


def test_pairs_fire_equally_often_and_no_more_could_be_made():
    random = np.random.default_rng(0)
    density = np.exp(random.uniform(-6, -1, 60))
    density[[3, 4]] = 0
    is_first = np.arange(60) % 3 == 0
    a, b = match_by_density(density, is_first, np.flatnonzero(~is_first), tolerance=0.1)
    assert is_first[a].all()
    assert not is_first[b].any()
    assert len(set(a)) == len(a)
    assert len(set(b)) == len(b)
    assert (np.abs(np.log(density[a] / density[b])) <= 0.1).all()
    alive = density > 0
    left, right = np.flatnonzero(is_first & alive), np.flatnonzero(~is_first & alive)
    near = np.abs(np.log(density[left][:, None] / density[right])) <= 0.1
    most = (maximum_bipartite_matching(csr_array(near.astype(int))) >= 0).sum()
    assert len(a) == most


def test_groups_that_never_fit_are_refused():
    with pytest.raises(ValueError, match="within 5%"):
        match_by_density(np.array([0.1, 0.5]), [0], [1])


def test_latents_of_another_place_or_model_are_not_inserted():
    def at(seed, **origin):
        made = make(12, 20, seed=seed)
        return replace(made, info=made.info | {"hook_point": "a", "model": "m"} | origin)

    small = at(0)
    for other, what in ((at(1, hook_point="b"), "hook point"), (at(1, model="n"), "model")):
        with pytest.raises(MismatchError, match=f"do not belong together: the first has {what}"):
            insert_latents(small, other)
        with pytest.warns(MismatchWarning, match=what):
            joined = insert_latents(small, other, allow_mismatch=True)
        origin = {name: joined.info.get(name) for name in ("hook_point", "model")}
        shared = {name: small.info[name] == other.info[name] for name in origin}
        assert origin == {name: small.info[name] if shared[name] else None for name in origin}
    assert insert_latents(small, at(1)).info["hook_point"] == "a"


@pytest.mark.parametrize("tolerance", [float("nan"), -1, float("inf"), -1e-9])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must be"):
        match_by_density(np.array([0.1, 0.1]), [0], [1], tolerance=tolerance)


@pytest.mark.parametrize(("first", "second"), [([0, 1], [1, 2]), ([0, 0], [2]), ([0], [1, 1]), ([2], [2])])
def test_a_latent_is_never_paired_with_itself_or_twice(first, second):
    with pytest.raises(ValueError, match=r"latent [012] is given 2 times"):
        match_by_density(np.full(3, 0.1), first, second)
