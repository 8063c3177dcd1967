"""The hedging score against least squares, and the parts of an overshoot against sums over all pairs."""

import pytest
import torch
from dictionaries import make

import saekit
from saekit.analysis.hedging import measure_hedging, overshoot_parts
from saekit.analysis.nulls import random_directions
from saekit.series.ground_truth import hedged_by_hand_rows


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_projection_is_least_squares():
    before, after, added = normal(7, 12, seed=0), normal(7, 12, seed=1), normal(4, 12, seed=2)
    added = torch.cat([added, added[:1]])  # a repeated row spans nothing more
    found = measure_hedging(before, after, added, draws=3, seed=5)
    change = (after - before).numpy()
    fitted = added[:4].T.numpy() @ torch.linalg.lstsq(added[:4].T, (after - before).T).solution.numpy()
    expected = torch.tensor(fitted).norm(dim=0).mean() / before.norm(dim=1).mean()
    assert found.projection == pytest.approx(float(expected), rel=1e-6)
    draws = []
    for i in range(3):
        rows = random_directions(5, 12, seed=15 + i).double()
        fitted = rows.T @ torch.linalg.lstsq(rows.T, torch.tensor(change).T).solution
        draws.append(float(fitted.norm(dim=0).mean() / before.norm(dim=1).mean()))
    assert found.baseline == pytest.approx(sum(draws) / 3, rel=1e-6)
    assert found.score == pytest.approx((found.projection - found.baseline) / (1 - found.baseline))


def test_unrelated_changes_score_about_zero():
    before = normal(200, 40, seed=0)
    found = measure_hedging(before, before + normal(200, 40, seed=1), normal(5, 40, seed=2))
    assert abs(found.projection - found.baseline) < 4 * found.baseline_sd


def test_order_and_size_of_added_rows_do_not_matter():
    before, after, added = normal(7, 12, seed=0), normal(7, 12, seed=1), normal(4, 12, seed=2)
    plain = measure_hedging(before, after, added)
    changed = measure_hedging(before, after, -3 * added[[2, 0, 3, 1]])
    assert changed.score == pytest.approx(plain.score, rel=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="span all 3 dimensions"):
        measure_hedging(torch.eye(3), torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"before and after must be \[n, d_in\]"):
        measure_hedging(torch.eye(3), torch.eye(3)[:2], torch.eye(3))


@pytest.mark.parametrize("group", ["novel_cos", "novel_gain"])
def test_parts_are_the_sums_over_latents_and_pairs(group):
    small, large = make(width=10, seed=1), make(width=24, seed=2)
    x = normal(300, 12, seed=3)
    single = saekit.insertion(small, large, x)
    parts = overshoot_parts(single, saekit.group_insertion(small, large, single, x), group)
    chosen = (~single.dead & getattr(single, group)).nonzero().flatten()
    f, w = large.encode(x)[:, chosen].double(), large.W_dec[chosen].double()
    residual = x - small.decode(small.encode(x)).double()
    power = f.square().mean(0).sum()
    overlap = (f * (residual @ w.T)).mean(0).sum()
    gram = (f.T @ f / len(x)) * (w @ w.T)
    interaction = gram.sum() - gram.diagonal().sum()
    assert parts["ideal"] == pytest.approx(-float(power), rel=1e-6)
    assert parts["carried"] == pytest.approx(2 * float(power - overlap), rel=1e-6)
    assert parts["interaction"] == pytest.approx(float(interaction), rel=1e-6)
    assert parts["change"] == pytest.approx(sum(parts[p] for p in ("ideal", "carried", "interaction")))


def test_the_sign_of_an_insertion_depends_on_hedging():
    """Children inserted beside a perfect parent help by all they hold; beside a hedged one, by less."""
    rows = hedged_by_hand_rows((0.0, 0.3, 0.7)).set_index("alpha")
    true_power = 3 * 0.25 * 0.15  # of three children of magnitude 1
    assert -rows.loc[0.0, "change"] == pytest.approx(true_power, rel=0.05)
    assert rows["score"].is_monotonic_increasing
    assert rows["change"].is_monotonic_increasing
    assert rows["interaction"].abs().max() < 1e-6  # directions are orthogonal: nothing else differs
