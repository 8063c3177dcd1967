"""Codes of one dictionary against scikit-learn, brute force and cases where the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from saekit.analysis.uniqueness.codes import CODERS, compare_codes, encode_by_all
from saekit.dictionary import Dictionary

X = torch.randn(60, 24, generator=torch.Generator().manual_seed(3))


def planted(
    d_in: int = 100, width: int = 120, terms: int = 3
) -> tuple[Dictionary, torch.Tensor, torch.Tensor]:
    """A dictionary of nearly orthogonal atoms and tokens that are sums of a few of them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(width, d_in, generator=generator), dim=1)
    code = torch.zeros(80, width)
    for row in code:
        places = torch.randperm(width, generator=generator)[:terms]
        row[places] = 1 + torch.rand(terms, generator=generator)
    b_dec = torch.randn(d_in, generator=generator)
    dictionary = Dictionary(
        rows.T.contiguous(), -(b_dec @ rows.T) - 0.8, rows, b_dec, torch.zeros(width), info={"kind": "relu"}
    )
    return dictionary, code @ rows + b_dec, code


def test_pursuit_chooses_what_scikit_learn_chooses() -> None:
    dictionary, x, _ = planted()
    codes = encode_by_all(dictionary, x, 50)
    target, atoms = (x - dictionary.b_dec).double().numpy(), dictionary.W_dec.double().numpy()
    counts = (codes["encoder"] > 0).sum(1)
    compared = 0
    for row in range(len(x)):
        count = int(counts[row])
        if not 0 < count <= 3:  # beyond three it would fit what is left by rounding
            continue
        signed = orthogonal_mp(atoms.T, target[row], n_nonzero_coefs=count)
        assert (signed >= 0).all(), "the planted coefficients are positive"
        compared += 1
        np.testing.assert_array_equal(np.flatnonzero(signed), np.flatnonzero(codes[CODERS[2]][row] > 0))
    assert compared > 40


def test_codes_are_as_sparse_as_the_encoder_and_refits_are_those_of_scipy() -> None:
    dictionary = make(d_in=24, width=40)
    codes = encode_by_all(dictionary, X, 50)
    assert torch.equal(codes["encoder"], dictionary.encode(X))
    counts = (codes["encoder"] > 0).sum(1)
    assert counts.unique().numel() > 3
    atoms, target = dictionary.W_dec.double().numpy(), (X - dictionary.b_dec).double().numpy()
    for name in CODERS[1:]:
        assert (codes[name] >= 0).all()
        assert ((codes[name] > 0).sum(1) <= counts).all()
    for row in range(len(X)):
        support = np.flatnonzero(codes["encoder"][row] > 0)
        expected = nnls(atoms[support].T, target[row])[0] if len(support) else []
        np.testing.assert_allclose(codes[CODERS[1]][row, support], expected, atol=1e-4)


def test_thresholding_keeps_the_largest_coefficients_of_an_orthonormal_dictionary() -> None:
    rows = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1))).Q
    dictionary = Dictionary(
        rows.T.contiguous(),
        torch.full((24,), -0.8),
        rows,
        torch.zeros(24),
        torch.zeros(24),
        info={"kind": "relu"},
    )
    codes = encode_by_all(dictionary, X, 5)
    for name in (CODERS[2], CODERS[3]):
        # Those above the encoder's bias are the largest, and their best coefficients the projections.
        assert torch.equal(codes[name] > 0, codes["encoder"] > 0)
        torch.testing.assert_close(codes[name], (X @ rows.T) * (codes["encoder"] > 0), atol=1e-5, rtol=1e-5)
    result = compare_codes(dictionary, X, n_tokens=60)
    assert (result.jaccard["jaccard"] == 1).all()
    assert (result.jaccard["identical"] == 1).all()


def test_jaccard_and_fvu_are_those_of_the_codes() -> None:
    dictionary = make(d_in=24, width=40)
    result = compare_codes(dictionary, X, n_tokens=60, iterations=50)
    codes = encode_by_all(dictionary, X, 50)
    assert result.n_tokens == len(X)
    for row in result.frame.itertuples():
        code = codes[row.coder].double()
        errors = X.double() - dictionary.b_dec.double() - code @ dictionary.W_dec.double()
        total = (X.double() - X.double().mean(0)).square().sum()
        assert row.fvu == pytest.approx(float(errors.square().sum() / total), rel=1e-5)
        assert row.l0 == pytest.approx(float((code > 0).sum(1).double().mean()))
    for row in result.jaccard.itertuples():
        values = []
        for one, other in zip(codes[row.a], codes[row.b], strict=True):
            first, second = ({*np.flatnonzero(code > 0)} for code in (one, other))
            values.append(len(first & second) / len(first | second) if first | second else 1)
        assert row.jaccard == pytest.approx(np.mean(values))
        assert row.chance < row.jaccard
    fvu = result.frame.set_index("coder")["fvu"]
    assert fvu["encoder, refit"] <= fvu["encoder"]
    assert result.summary["fvu"]["matching pursuit"] == fvu["matching pursuit"]


def test_at_equal_error_each_solver_uses_the_fewest_latents_that_reach_it() -> None:
    dictionary = make(d_in=24, width=40)
    codes = encode_by_all(dictionary, X, 50, equal="error")
    atoms, target = dictionary.W_dec.double(), (X - dictionary.b_dec).double()
    counts = (codes["encoder"] > 0).sum(1)

    def errors(code: torch.Tensor) -> torch.Tensor:
        return (target - code.double() @ atoms).square().sum(1)

    bound = errors(codes["encoder, refit"])
    fewer = 0
    for row in range(len(X)):
        support = np.flatnonzero(codes["matching pursuit"][row] > 0)
        residual, chosen = target[row].numpy(), []
        while np.square(residual).sum() > float(bound[row]) * (1 + 1e-5):  # pursuit, one latent at a time
            products = atoms.numpy() @ residual
            products[chosen] = -np.inf
            chosen.append(int(products.argmax()))
            values = nnls(atoms.numpy()[chosen].T, target[row].numpy())[0]
            residual = target[row].numpy() - values @ atoms.numpy()[chosen]
        assert {*support} <= {*chosen}
        assert len(chosen) <= 2 * counts[row]
        fewer += len(chosen) < counts[row]
    assert fewer > 10
    assert (errors(codes["matching pursuit"]) <= bound * (1 + 1e-4) + 1e-9).all()
    result = compare_codes(dictionary, X, equal="error", n_tokens=60, iterations=50)
    l0 = result.summary["l0"]
    assert l0["matching pursuit"] == float((codes["matching pursuit"] > 0).sum(1).double().mean())
    assert l0["matching pursuit"] < l0["encoder, refit"]
    assert result.summary["fvu"]["matching pursuit"] <= result.summary["fvu"]["encoder, refit"]
    with pytest.raises(ValueError, match="equal must be one of"):
        compare_codes(dictionary, X, equal="l0")


def test_silent_tokens_and_dictionaries_that_compete() -> None:
    dictionary = make(d_in=24, width=40)
    silent = replace(dictionary, threshold=torch.full_like(dictionary.threshold, 1e6))
    assert (compare_codes(silent, X).jaccard["jaccard"] == 1).all()
    with pytest.raises(ValueError, match="do not depend on each other"):
        compare_codes(replace(dictionary, k=3), X)
    dense = replace(dictionary, b_enc=torch.full((40,), 9.0))
    with pytest.raises(ValueError, match="fewer active latents per token than the 24 dimensions"):
        compare_codes(dense, X)
    along_all = 100 * dictionary.W_enc.sum(1, keepdim=True).T  # activates 32 latents
    found = compare_codes(dictionary, torch.cat([X, along_all.expand(7, -1)]), n_tokens=100)
    assert (found.n_tokens, found.n_dense) == (60, 7)
    assert found.jaccard.equals(compare_codes(dictionary, X, n_tokens=60).jaccard)
    with pytest.raises(ValueError, match="n_tokens must be"):
        compare_codes(dictionary, X, n_tokens=0)
