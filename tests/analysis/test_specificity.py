"""When children fire against their parents, counted token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dictionaries import make

from saekit.agreement import MismatchError, MismatchWarning
from saekit.analysis.specificity import measure_specificity
from saekit.analysis.splitting import measure_splitting

THETA = 0.5


@pytest.fixture(scope="module")
def pair():
    return make(12, 10, seed=0), make(12, 40, seed=1)


@pytest.fixture(scope="module")
def x():
    return torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) * 2 + 1


def test_every_edge_is_counted_token_by_token(pair, x):
    small, large = pair
    frame = measure_specificity(small, large, x, theta=THETA).frame
    of_small, of_large = (dictionary.encode(x) > 0 for dictionary in pair)
    edges = measure_splitting(small, large, theta=THETA).frame
    expected = [
        (row.latent, row.parent, row.status)
        for row in edges.itertuples()
        if row.parent >= 0 and of_large[:, row.latent].any()
    ]
    assert list(zip(frame["latent"], frame["parent"], frame["status"], strict=True)) == expected
    assert len(expected) > 5
    for row in frame.itertuples():
        child, parent = of_large[:, row.latent], of_small[:, row.parent]
        assert row.density == pytest.approx(float(child.double().mean()))
        assert row.parent_density == pytest.approx(float(parent.double().mean()))
        assert row.inside == pytest.approx(float((child & parent).sum() / child.sum()))
        if parent.any():
            assert row.density_ratio == pytest.approx(float(child.sum() / parent.sum()))
            assert row.lift == pytest.approx(row.inside / row.parent_density)


def test_the_table_counts_children_and_clusters_them_by_parent(pair, x):
    result = measure_specificity(*pair, x, theta=THETA)
    for status, row in result.table.iterrows():
        part = result.frame[result.frame["status"] == status]
        rarer = part["density_ratio"] < 1
        assert row["n_latents"] == len(part)
        assert row["share_rarer"] == pytest.approx(rarer.mean())
        parents = part["parent"].unique()
        deviations = [(rarer[part["parent"] == p] - rarer.mean()).sum() for p in parents]
        if len(parents) > 1:
            n = len(parents)
            error = np.sqrt(np.square(deviations).sum() * n / (n - 1)) / len(part)
            assert row["share_rarer_error"] == pytest.approx(error)


def test_a_copy_with_half_the_tokens_is_rarer_and_inside(pair, x):
    """A latent with a higher threshold fires on some of the tokens of the latent that it copies."""
    small, _ = pair
    values = small.encode(x)
    threshold = torch.stack([v[v > 0].median() if (v > 0).any() else v.max() for v in values.T])
    frame = measure_specificity(small, replace(small, threshold=threshold), x).frame
    alive = frame[frame["density"] > 0]
    assert (alive["inside"] == 1).all()
    assert (alive["density_ratio"] < 0.6).all()


def test_another_hook_point_is_refused_and_let_through():
    a, b = (
        replace(make(12, 20, seed=seed), info={"hook_point": hook}) for seed, hook in ((0, "a"), (1, "b"))
    )
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MismatchError, match="hook point"):
        measure_specificity(a, b, x)
    with pytest.warns(MismatchWarning, match="hook point"):
        found = measure_specificity(a, b, x, theta=0.0, allow_mismatch=True)
    same = replace(b, info={"hook_point": "a"})
    assert found.frame.equals(measure_specificity(a, same, x, theta=0.0).frame)
