"""Baselines and nulls of a meta-SAE: every number against an independent computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make
from scipy.optimize import nnls
from sklearn.cluster import kmeans_plusplus
from sklearn.decomposition import PCA
from sklearn.linear_model import orthogonal_mp

from saekit.agreement import MismatchError
from saekit.analysis.meta.baselines import (
    least_squares,
    matching_pursuit,
    meta_baselines,
    non_negative_least_squares,
    principal_components,
    refit_encoder,
    spread_rows,
)
from saekit.analysis.meta.sae import Recipe, meta_sae
from saekit.analysis.nulls import null_rows
from saekit.folding import Unfolded

D_IN, META, ROWS = 20, 30, 500
QUICK = Recipe("quick", lr=5e-3, steps=400, batch=1 / 3, width=META / ROWS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def planted(width=ROWS, seed=0):
    """A dictionary whose directions are positive sums of 1 to 3 of 30 directions, and these."""
    truth, generator = unit(normal(META, D_IN, seed=99)), torch.Generator().manual_seed(seed)
    chosen = torch.rand(width, META, generator=generator).argsort(dim=1)[:, :3]
    amounts = 0.3 + torch.rand(width, 3, generator=generator, dtype=torch.float64)
    amounts *= torch.arange(3) <= torch.randint(3, (width, 1), generator=generator)
    rows = torch.zeros(width, META, dtype=torch.float64).scatter(1, chosen, amounts) @ truth
    zero = torch.zeros(D_IN)
    info = {"kind": "relu", "seed": seed}
    return Unfolded(
        W_enc=normal(D_IN, width), b_enc=torch.zeros(width), W_dec=rows, b_dec=zero, info=info
    ).fold(), truth.float()


@pytest.fixture(scope="module")
def base():
    return planted()[0]


@pytest.fixture(scope="module")
def smaller():
    return [make(d_in=D_IN, width=25, seed=1), make(d_in=D_IN, width=60, seed=2)]


@pytest.fixture(scope="module")
def meta(base):
    return meta_sae(base, k=2, recipe=QUICK, held_out_share=0.2)


@pytest.fixture(scope="module")
def baselines(meta, smaller):
    return meta_baselines(meta, smaller, make(d_in=D_IN, width=META, seed=3), refit_steps=100)


def of(baselines, variant, encoder, signed=False):
    frame = baselines.frame
    found = frame[(frame["variant"] == variant) & (frame["encoder"] == encoder) & (frame["signed"] == signed)]
    assert len(found) == 1
    return found.iloc[0]


def explained(rows, reconstruction):
    rows, reconstruction = rows.double().numpy(), np.asarray(reconstruction, dtype=float)
    return 1 - ((rows - reconstruction) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()


# ---------------------------------------------------------------------- matching pursuit


@pytest.mark.parametrize("terms", [1, 2, 4, 7])
def test_signed_pursuit_equals_scikit_learn(terms):
    rows, atoms = normal(60, 15), unit(normal(40, 15, seed=1))
    here = matching_pursuit(rows, atoms, terms, signed=True).dense()
    there = orthogonal_mp(atoms.T.numpy(), rows.T.numpy(), n_nonzero_coefs=terms).T
    np.testing.assert_allclose(here, there, atol=1e-9)


@pytest.mark.parametrize("terms", [1, 3, 6])
def test_non_negative_pursuit_equals_brute_force(terms):
    rows, atoms = normal(60, 15), unit(normal(40, 15, seed=1))
    here = matching_pursuit(rows, atoms, terms, signed=False).dense().numpy()
    D = atoms.numpy()
    for row, found in zip(rows.numpy(), here, strict=True):
        chosen, coefficients, left = [], np.zeros(0), row
        for _ in range(terms):
            scores = D @ left
            scores[chosen] = -np.inf
            if scores.max() > 1e-9:
                chosen.append(int(scores.argmax()))
                coefficients, _ = nnls(D[chosen].T, row)
                left = row - coefficients @ D[chosen]
        expected = np.zeros(len(D))
        expected[chosen] = coefficients
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_where_all_signs_agree_both_pursuits_are_one():
    atoms = torch.linalg.qr(normal(12, 12))[0]
    rows = normal(30, 12).abs() @ atoms
    torch.testing.assert_close(
        matching_pursuit(rows, atoms, 5, signed=True).dense(),
        matching_pursuit(rows, atoms, 5, signed=False).dense(),
    )


def test_pursuit_stops_where_no_atom_helps_and_ignores_the_atoms_norms():
    atoms = 3 * torch.eye(4, 6)
    rows = torch.tensor([[2.0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0]])
    positive, signed = (matching_pursuit(rows, atoms, 3, signed=signed) for signed in (False, True))
    assert positive.counts.tolist() == [2, 0, 0, 0]
    assert signed.counts.tolist() == [2, 0, 0, 1]
    torch.testing.assert_close(signed.dense()[:, 0], torch.tensor([2.0, 0, 0, -1]))


def test_pursuit_does_not_depend_on_chunks(monkeypatch):
    rows, atoms = normal(50, 8), normal(20, 8, seed=1)
    whole = matching_pursuit(rows, atoms, 3, signed=False).dense()
    monkeypatch.setitem(matching_pursuit.__globals__, "CHUNK_ELEMENTS", 200)
    torch.testing.assert_close(matching_pursuit(rows, atoms, 3, signed=False).dense(), whole)


@pytest.mark.parametrize("similar", [False, True])
def test_non_negative_least_squares_equals_scipy(similar):
    atoms = normal(300, 8, 12, seed=2)
    if similar:  # many coefficients turn negative on the way
        atoms = atoms[:, :1] + 0.3 * atoms
    rows, used = normal(300, 12, seed=3), normal(300, 8, seed=4) > -1
    gram, target = atoms @ atoms.mT, (atoms @ rows[:, :, None])[:, :, 0]
    here = non_negative_least_squares(gram, target, used)
    for i in range(300):
        expected = np.zeros(8)
        expected[used[i]] = nnls(atoms[i][used[i]].T.numpy(), rows[i].numpy())[0]
        np.testing.assert_allclose(here[i], expected, atol=1e-8)


def test_least_squares_of_some_atoms_equals_numpy():
    atoms, rows, used = normal(20, 3, 7), normal(20, 7, seed=1), normal(20, 3, seed=2) > 0
    here = least_squares(atoms @ atoms.mT, (atoms @ rows[:, :, None])[:, :, 0], used)
    for i in range(20):
        expected = np.zeros(3)
        expected[used[i]] = np.linalg.lstsq(atoms[i][used[i]].T.numpy(), rows[i].numpy())[0]
        np.testing.assert_allclose(here[i], expected, atol=1e-9)


def test_pursuit_finds_planted_terms():
    base, truth = planted()
    found = matching_pursuit(base.W_dec, truth, 3, signed=False)
    assert explained(base.W_dec, found.matmul(truth)) > 0.95


# ---------------------------------------------------------------------- other encoders


@pytest.mark.slow
def test_refit_learns_the_encoder_alone():
    base, truth = planted()
    config = QUICK.config(ROWS, width=META, k=2, seed=0)
    rows = base.W_dec
    refitted = refit_encoder(rows, truth, config)
    torch.testing.assert_close(refitted.W_dec, truth)
    torch.testing.assert_close(refitted.b_dec, rows.mean(0))
    untrained = refit_encoder(rows, truth, replace(config, steps=1))
    assert torch.nn.functional.cosine_similarity(untrained.W_enc.T, truth).min() > 0.999
    after, before = (explained(rows, d.reconstruct(rows)) for d in (refitted, untrained))
    assert after > before
    assert after > 0.9


def test_principal_components_equal_scikit_learn():
    rows = normal(50, 6) * torch.arange(1, 7) + 2
    expected = PCA(3).fit(rows.numpy()).components_
    here = principal_components(rows, 3).numpy()
    np.testing.assert_allclose(np.abs((here * expected).sum(1)), 1, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_k_means_starts_from_the_rows_that_scikit_learn_would_choose(base, seed):
    rows = (base.W_dec - base.W_dec.mean(0)).numpy()
    _, expected = kmeans_plusplus(rows - rows.mean(axis=0), META, random_state=seed)
    assert spread_rows(rows, META, seed=seed).tolist() == expected.tolist()
    assert spread_rows(rows[:3], 3, seed=seed).tolist() != [0, 0, 0]


def test_values_that_are_not_finite_are_refused():
    rows, atoms = torch.ones(2, 5), torch.eye(5)
    for where in (rows, atoms):
        where[0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"(rows|atoms) hold values that are not finite"):
            matching_pursuit(rows, atoms, 2, signed=True)
        where[0, 0] = 1


# ---------------------------------------------------------------------- nulls


def test_permuted_columns_hold_the_same_values_and_lose_their_covariance(base):
    null = null_rows(base.W_dec, "columns permuted", seed=4)
    assert torch.equal(null.sort(dim=0).values, base.W_dec.sort(dim=0).values)
    assert not torch.equal(null, base.W_dec)
    covariance, lost = torch.cov(base.W_dec.T), torch.cov(null.T)
    torch.testing.assert_close(lost.diag(), covariance.diag())
    assert (lost - lost.diag().diag()).norm() < 0.5 * (covariance - covariance.diag().diag()).norm()


@pytest.mark.parametrize("n", [500, 12])  # also fewer rows than dimensions
def test_gaussian_rows_have_exactly_the_same_mean_and_covariance(base, n):
    rows = base.W_dec[:n].double()
    null = null_rows(rows, "Gaussian")
    torch.testing.assert_close(null.mean(0), rows.mean(0))
    torch.testing.assert_close(torch.cov(null.T), torch.cov(rows.T))
    assert not torch.allclose(null, rows)


def test_gaussian_rows_are_gaussian(base):
    standard = null_rows(base.W_dec.double().repeat(8, 1), "Gaussian")
    whitened = (standard - standard.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(standard.T))
    ).T
    fourth = (whitened**4).mean()
    assert fourth == pytest.approx(3, abs=0.1)  # of the standard normal


def test_nulls_are_explained_less_than_planted_structure(baselines):
    own = baselines.frame["explained_variance"][0]
    for name in ("columns permuted", "Gaussian"):
        null = of(baselines, name, "own")
        assert null["null"]
        assert null["explained_variance"] < own - 0.2
        assert null["explained_variance_held_out"] < 0.5
    with pytest.raises(ValueError, match="kind must be one of 'columns permuted', 'Gaussian', found 'rows'"):
        null_rows(torch.ones(3, 2), "rows")


# ---------------------------------------------------------------------- the table


def test_the_meta_sae_comes_first_as_it_is(baselines, meta):
    first, summary = baselines.frame.iloc[0], meta.summary
    assert (first["variant"], first["encoder"], first["terms"]) == ("meta-SAE", "own", 2)
    for name in ("explained_variance", "explained_variance_uncentred", "explained_variance_held_out"):
        assert first[name] == summary[name]
    assert first["n_terms"] == summary["l0"]
    assert first["difference"] == 0
    np.testing.assert_allclose(
        baselines.frame["difference"], baselines.frame["explained_variance"] - first["explained_variance"]
    )


def test_pursuits_of_the_table_equal_scikit_learn(baselines, meta, smaller):
    rows = meta.rows.double().numpy()
    mean = meta.rows[~meta.held_out].mean(0).double().numpy()
    for dictionary in smaller:
        D = dictionary.W_dec.double().numpy()
        found = orthogonal_mp(D.T, (rows - mean).T, n_nonzero_coefs=2).T @ D + mean
        row = of(baselines, dictionary.name, "matching pursuit", signed=True)
        assert row["explained_variance"] == pytest.approx(explained(meta.rows, found), abs=1e-5)
        assert row["dictionary_width"] == dictionary.width
        positive = of(baselines, dictionary.name, "matching pursuit")["explained_variance"]
        assert positive <= row["explained_variance"]
    D, bias = (t.double().numpy() for t in (meta.dictionary.W_dec, meta.dictionary.b_dec))
    found = orthogonal_mp(D.T, (rows - bias).T, n_nonzero_coefs=2).T @ D + bias
    row = of(baselines, "meta-SAE", "matching pursuit", signed=True)
    assert row["explained_variance"] == pytest.approx(explained(meta.rows, found), abs=1e-5)
    assert of(baselines, f"relu {META} (seed 3)", "matching pursuit")["note"] == "plain SAE"


def test_kept_encoder_with_other_directions_equals_brute_force(baselines, meta, smaller):
    small = torch.cat([dictionary.W_dec for dictionary in smaller]).double()
    cosine = meta.dictionary.W_dec.double() @ small.T
    replaced = small[cosine.argmax(1)]
    latents = meta.decomposition.dense().double()
    found = latents @ replaced + meta.dictionary.b_dec
    row = of(baselines, "nearest small latents", "kept")
    assert row["explained_variance"] == pytest.approx(explained(meta.rows, found), abs=1e-5)
    assert row["note"].startswith(f"{len(cosine.argmax(1).unique())} different latents of 2")


def test_centroids_and_components_equal_closed_forms(baselines, meta):
    training = meta.rows[~meta.held_out].double().numpy()
    rows = meta.rows.double().numpy()
    pca = PCA(2).fit(training)
    found = pca.inverse_transform(pca.transform(rows))
    projected = of(baselines, "PCA", "projection", signed=True)["explained_variance"]
    assert projected == pytest.approx(explained(meta.rows, found), abs=1e-5)
    # All principal components are an orthonormal basis: pursuit keeps the two largest coefficients.
    pca = PCA(D_IN).fit(training)
    z = pca.transform(rows)
    kept = np.where(np.abs(z) >= np.sort(np.abs(z), axis=1)[:, -2:-1], z, 0)
    pursued = of(baselines, "PCA", "matching pursuit", signed=True)["explained_variance"]
    assert pursued == pytest.approx(explained(meta.rows, pca.inverse_transform(kept)), abs=1e-4)
    nearest = of(baselines, "k-means", "nearest centroid")
    assert (nearest["terms"], nearest["n_terms"]) == (1, 1)
    assert 0 < nearest["explained_variance"] < 1


def test_planted_order_of_variants(baselines):
    def ev(*which):
        return of(baselines, *which)["explained_variance"]

    assert ev("meta-SAE", "own") > ev("nearest small latents", "refit") > ev("nearest small latents", "kept")
    assert ev("random directions", "refit") > ev("random directions", "kept")
    assert ev("meta-SAE", "own") > ev("k-means", "nearest centroid")


@pytest.mark.slow
def test_what_learns_from_rows_does_not_see_those_held_out(baselines, base, meta, smaller):
    """Other held-out rows leave the squared error on all others as it was."""
    held_out = meta.held_out
    W_dec = base.W_dec.clone()
    W_dec[held_out] = unit(normal(int(held_out.sum()), D_IN, seed=8)).float()
    other = meta_sae(replace(base, W_dec=W_dec), k=2, recipe=QUICK, held_out_share=0.2)
    changed = meta_baselines(other, smaller, make(d_in=D_IN, width=META, seed=3), refit_steps=100)

    def error_on_training(table, rows):
        def total(of_rows):
            return float((of_rows - of_rows.mean(0)).double().square().sum())

        frame = table.frame[~table.frame["null"]]
        whole = (1 - frame["explained_variance"]) * total(rows)
        return whole - (1 - frame["explained_variance_held_out"]) * total(rows[held_out])

    np.testing.assert_allclose(
        error_on_training(baselines, base.W_dec), error_on_training(changed, W_dec), rtol=1e-4
    )


@pytest.mark.parametrize("measure", ["explained_variance", "explained_variance_held_out"])
def test_summary_names_the_best_at_the_same_number_of_terms(baselines, measure):
    frame, summary = baselines.frame, baselines.summary
    summary = summary["held_out"] if measure.endswith("held_out") else summary
    rivals = frame[~frame["null"] & (frame["terms"] == 2) & (frame["variant"] != "meta-SAE")]
    assert summary["explained_variance"] == frame[measure][0]
    assert summary["n_baselines"] == len(rivals) == len(frame) - 3 - 2 - 1
    assert summary["n_beaten"] == (rivals[measure] < frame[measure][0]).sum()
    for name, among in (
        ("best_non_negative", rivals[~rivals["signed"]]),
        ("best_signed", rivals[rivals["signed"]]),
        ("best_no_wider", rivals[rivals["dictionary_width"] <= META]),
    ):
        assert summary[f"{name}_explained_variance"] == among[measure].max()
        best = among.sort_values(measure).iloc[-1]
        assert summary[name] == f"{best['variant']}, {best['encoder']}"
    own = of(baselines, "meta-SAE", "matching pursuit", signed=True)
    assert summary["own_pursuit_signed"] == own[measure]
    null = of(baselines, "Gaussian", "own")
    assert summary["nulls"]["Gaussian"] == null[measure]
    assert set(summary["nulls"]) == {"columns permuted", "Gaussian"}


def test_variants_that_are_dictionaries_are_named_apart(meta, smaller):
    """Two SAEs without seeds may share a name; a plot looks kind and width up instead of reading them."""
    twin = replace(smaller[1], b_enc=smaller[1].b_enc + 1)
    quick = replace(meta, dictionary=replace(meta.dictionary))
    result = meta_baselines(quick, [*smaller, twin], refit_steps=1)
    names = list(result.dictionaries)
    assert names[0] == "relu 25 (seed 1)"
    assert names[1] != names[2]
    assert [identity.width for identity in result.dictionaries.values()] == [25, 60, 60]
    assert set(names) <= set(result.frame["variant"])
    assert result.meta == meta.identity
    assert len(repr(result)) < 200


def test_without_held_out_rows_the_summary_has_none(base, smaller):
    all_seen = meta_sae(base, k=2, recipe=replace(QUICK, steps=5))
    table = meta_baselines(all_seen, smaller)
    assert "held_out" not in table.summary
    assert table.frame["explained_variance_held_out"].isna().all()


def test_settings_out_of_range_are_refused(meta, smaller, base):
    with pytest.raises(ValueError, match="at least one smaller dictionary"):
        meta_baselines(meta, [])
    with pytest.raises(ValueError, match="has d_in 20, the second 5"):
        meta_baselines(meta, [*smaller, make(d_in=5, width=9)])
    with pytest.raises(ValueError, match=r"relu 500 .* is decomposed by meta 30 .* would explain itself"):
        meta_baselines(meta, smaller, base)
    elsewhere = replace(smaller[0], info={**smaller[0].info, "hook_point": "blocks.3.hook_mlp_out"})
    here = replace(smaller[1], info={**smaller[1].info, "hook_point": "blocks.2.hook_mlp_out"})
    with pytest.raises(MismatchError, match="do not belong together"):
        meta_baselines(meta, [elsewhere, here])
    with pytest.raises(ValueError, match=r"relu 1 .* has 1 latents, but 2 terms are needed"):
        meta_baselines(meta, [make(d_in=D_IN, width=1)])
    with pytest.raises(TypeError, match=r"refit_steps must be a whole number, found 1\.5"):
        meta_baselines(meta, smaller, refit_steps=1.5)
    with pytest.raises(ValueError, match="terms must be between 1 and 3, found 4"):
        matching_pursuit(torch.ones(2, 5), torch.ones(3, 5), 4, signed=True)
    with pytest.raises(ValueError, match="rows have dimension 5, the atoms 4"):
        matching_pursuit(torch.ones(2, 5), torch.ones(3, 4), 2, signed=True)


def test_a_dictionary_given_twice_is_refused(meta, smaller):
    for given in (smaller[:1] * 2, smaller[:1]):
        with pytest.raises(ValueError, match=r"different dictionaries, found relu 25 .* twice"):
            meta_baselines(meta, given, smaller[0])
