"""Spans of latents that never recur: planted subspaces are found, and nulls are what chance gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make
from scipy.linalg import orth, subspace_angles

from saekit.analysis.uniqueness.seeds import measure_uniqueness
from saekit.analysis.uniqueness.subspaces import measure_shared_subspace
from saekit.dictionary import Dictionary

D_IN, STABLE, LONE, PLANTED = 48, 30, 20, 6


def run(seed: int, *, shared: bool) -> Dictionary:
    """Latents that every run has, and others of its own: in one subspace of all runs, or anywhere."""
    stable = make(d_in=D_IN, width=STABLE).W_dec
    basis = torch.linalg.qr(torch.randn(D_IN, PLANTED, generator=torch.Generator().manual_seed(99))).Q
    generator = torch.Generator().manual_seed(seed)
    coordinates = torch.randn(LONE, PLANTED if shared else D_IN, generator=generator)
    lone = coordinates @ basis.T if shared else coordinates
    rows = torch.nn.functional.normalize(torch.cat([stable, lone]), dim=1)
    made = make(d_in=D_IN, width=STABLE + LONE)
    zeros = torch.zeros(STABLE + LONE)
    info = {"kind": "relu", "seed": seed}
    return replace(made, W_dec=rows, W_enc=rows.T.contiguous(), b_enc=zeros, threshold=zeros, info=info)


def measured(*, shared: bool, theta: float = 0.95, **options):
    runs = [run(seed, shared=shared) for seed in (1, 2, 3)]
    x = torch.randn(400, D_IN, generator=torch.Generator().manual_seed(0))
    unique = measure_uniqueness(*runs, theta=theta, activations=x)
    return runs, unique, measure_shared_subspace(unique, runs, dimensions=[2, PLANTED, 12], **options)


def test_a_planted_subspace_is_reproducible_and_its_nulls_are_not() -> None:
    _, unique, result = measured(shared=True)
    assert all(len(unique.latents(place, recurring=True)) == STABLE for place in range(3))
    at = result.frame[result.frame["dimension"] == PLANTED].groupby("group")
    overlap, explained = at["overlap"].mean(), at["explained"].mean()
    assert overlap["never recurring"] == pytest.approx(1)
    assert explained["never recurring"] == pytest.approx(1)
    assert overlap["random directions"] == pytest.approx(PLANTED / D_IN, abs=0.05)
    assert overlap["recurring"] < 0.4
    assert result.summary["overlap"]["never recurring"] > 0.4
    assert len(result.frame) == 3 * 3 * 3


def test_latents_of_no_common_subspace_overlap_no_more_than_random_ones() -> None:
    _, _, result = measured(shared=False)
    at = result.frame[result.frame["dimension"] == PLANTED].groupby("group")["overlap"].mean()
    assert at["never recurring"] == pytest.approx(at["random directions"], abs=0.1)


def test_overlap_is_that_of_the_principal_angles_of_weighted_singular_vectors() -> None:
    runs, unique, result = measured(shared=False)
    spans = []
    for place in (0, 1):
        frame = unique.frame[unique.frame["place"] == place]
        lone = unique.latents(place, recurring=False)
        density = frame["density"].to_numpy()[lone]
        rows = runs[place].W_dec.double().numpy()[lone] * np.sqrt(density)[:, None]
        spans.append(np.linalg.svd(rows, full_matrices=False)[2][:2].T)
    cosines = np.cos(subspace_angles(orth(spans[0]), orth(spans[1])))
    found = result.frame[
        (result.frame["dimension"] == 2) & (result.frame["group"] == "never recurring")
    ].iloc[0]
    assert found["overlap"] == pytest.approx((cosines**2).mean())
    assert found["first_cosine"] == pytest.approx(cosines.max())


def test_where_nothing_recurs_the_null_of_recurring_latents_is_left_out() -> None:
    runs = [make(d_in=D_IN, width=20, seed=seed) for seed in (1, 2)]
    x = torch.randn(400, D_IN, generator=torch.Generator().manual_seed(0))
    result = measure_shared_subspace(measure_uniqueness(*runs, activations=x), runs, dimensions=[2])
    assert result.frame["group"].tolist() == ["never recurring", "random directions"]
    assert [*result.summary["overlap"]] == ["never recurring", "random directions"]


def test_what_it_needs_is_refused_by_name() -> None:
    runs, unique, _ = measured(shared=True)
    with pytest.raises(ValueError, match="measure the uniqueness with activations"):
        measure_shared_subspace(measure_uniqueness(*runs), runs)
    with pytest.raises(ValueError, match="dictionary 0 was"):
        measure_shared_subspace(unique, runs[::-1])
    with pytest.raises(ValueError, match="on 3 dictionaries, found 2"):
        measure_shared_subspace(unique, runs[:2])
    with pytest.raises(ValueError, match="that never recur, found 0"):
        measured(shared=True, theta=0.0)
    with pytest.raises(ValueError, match=r"No dimension of \[40\] fits"):
        measure_shared_subspace(unique, runs, dimensions=[40])
