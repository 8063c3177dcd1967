"""Substitution in closed form against replacing latents one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make

from saekit.analysis.uniqueness.matching import match_latents
from saekit.analysis.uniqueness.substitution import NEIGHBOURS, equal_density, measure_substitution
from saekit.dictionary import Dictionary

X = torch.randn(300, 12, generator=torch.Generator().manual_seed(3))
A = make(d_in=12, width=40)


def other_seed(noise: float, width: int = 40) -> Dictionary:
    made = make(d_in=12, width=width)
    rows = made.W_dec + noise * torch.randn(width, 12, generator=torch.Generator().manual_seed(1))
    return replace(made, W_dec=torch.nn.functional.normalize(rows, dim=1), info={"kind": "relu", "seed": 1})


def brute_force(a: Dictionary, b: Dictionary, latent: int, substitute: int | None) -> float:
    """Change in MSE, from whole reconstructions in double precision."""
    codes = [d.encode(X).double() for d in (a, b)]
    x_hat = codes[0] @ a.W_dec.double() + a.b_dec.double()
    changed = x_hat - codes[0][:, [latent]] * a.W_dec[latent].double()
    if substitute is not None:
        changed = changed + codes[1][:, [substitute]] * b.W_dec[substitute].double()
    errors = [(X.double() - each).square().sum(1).mean() for each in (x_hat, changed)]
    return float(errors[1] - errors[0])


@pytest.mark.parametrize("width", [40, 60])
def test_every_change_is_that_of_replacing_the_latent(width: int) -> None:
    b = other_seed(0.3, width)
    matching = match_latents(A, b, activations=X)
    result = measure_substitution(A, b, matching, X)
    alive = int((~matching.pairs["dead"]).sum())
    assert len(result.frame) == alive > 20
    for row in result.frame.itertuples():
        assert row.removed == pytest.approx(brute_force(A, b, row.latent, None), abs=1e-5)
        assert row.substituted == pytest.approx(brute_force(A, b, row.latent, row.match), abs=1e-5)
        expected = brute_force(A, b, row.latent, row.control)
        assert row.substituted_control == pytest.approx(expected, abs=1e-5)
        assert row.control != row.match
    assert np.isnan(result.summary["quality"]) == (result.frame["removed"].sum() <= 0)
    assert result.by_status["n_latents"].iloc[:-1].sum() == alive


def test_a_copy_substitutes_perfectly_and_controls_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(40, 40, generator=generator)).Q
    zeros = torch.zeros(40)
    whole = Dictionary(rows.T.contiguous(), zeros - 0.5, rows, zeros, zeros, info={"kind": "relu", "seed": 0})
    x = torch.randn(300, 40, generator=generator)
    order = torch.randperm(40, generator=generator)
    copy = replace(whole.gather(order), info={"kind": "relu", "seed": 1})
    result = measure_substitution(whole, copy, match_latents(whole, copy, activations=x), x)
    np.testing.assert_allclose(result.frame["substituted"], 0, atol=1e-5)
    removed, left = result.frame["removed"].sum(), result.frame["substituted_control"].sum()
    assert result.summary["quality"] == pytest.approx(1, abs=1e-4)
    assert result.summary["quality_control"] == pytest.approx(1 - left / removed)
    assert result.summary["quality_control"] < 0.5
    assert result.summary["share_better"] == 1


def test_controls_fire_about_as_often_as_the_match() -> None:
    b = other_seed(0.3)
    matching = match_latents(A, b, activations=X)
    density = matching.frame_b["density"].to_numpy()
    living = np.flatnonzero(density > 0)
    for match, control in zip(matching.pairs["match"], equal_density(matching, 0), strict=True):
        assert control != match
        assert density[control] > 0
        closer = (np.abs(density[living] - density[match]) < abs(density[control] - density[match])).sum()
        assert closer <= 2 * NEIGHBOURS
    again, other = equal_density(matching, 0), equal_density(matching, 1)
    assert (again == equal_density(matching, 0)).all()
    assert (again != other).any()


def test_what_it_needs_is_refused_by_name() -> None:
    b = other_seed(0.3)
    matching = match_latents(A, b, activations=X)
    with pytest.raises(ValueError, match="match the latents with activations"):
        measure_substitution(A, b, match_latents(A, b), X)
    with pytest.raises(ValueError, match="first dictionary was"):
        measure_substitution(b, A, matching, X)
    topk = replace(A, k=3)
    of_topk = match_latents(topk, b, activations=X)
    with pytest.raises(ValueError, match="do not depend on each other"):
        measure_substitution(topk, b, of_topk, X)
