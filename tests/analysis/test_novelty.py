from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dictionaries import make
from sklearn.metrics import balanced_accuracy_score

from saekit.analysis import compare, group_insertion, insertion
from saekit.analysis.stitching.mixtures import HALF_BLOCK
from saekit.dictionary import Dictionary

N, D_IN = 1500, 12


def activations(n: int = N, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # A mean and uneven scales, as in a real residual stream.
    scales = torch.linspace(0.5, 3, D_IN)
    return torch.randn(n, D_IN, generator=generator) * scales + 2


def double(dictionary: Dictionary) -> Dictionary:
    return dictionary.to(dtype=torch.float64)


@pytest.fixture(scope="module")
def small() -> Dictionary:
    return make(D_IN, 30, seed=1)


@pytest.fixture(scope="module")
def large(small: Dictionary) -> Dictionary:
    """Random latents, near copies of the small ones, and two that are never active."""
    fresh = make(D_IN, 48, seed=2)
    noise = torch.randn(12, D_IN, generator=torch.Generator().manual_seed(5))
    copies = F.normalize(small.W_dec[:12] + 0.05 * noise, dim=1)
    threshold = torch.cat([fresh.threshold, small.threshold[:12]])
    threshold[[7, 50]] = 1e6
    return Dictionary(
        W_enc=torch.cat([fresh.W_enc, small.W_enc[:, :12]], dim=1),
        b_enc=torch.cat([fresh.b_enc, small.b_enc[:12]]),
        W_dec=torch.cat([fresh.W_dec, copies]),
        b_dec=fresh.b_dec,
        threshold=threshold,
        info={"kind": "relu", "seed": 0},
    )


@pytest.fixture(scope="module")
def result(small: Dictionary, large: Dictionary):
    return insertion(small, large, activations(), batch_size=700)


def inserted(small: Dictionary, large: Dictionary, latents, x: torch.Tensor) -> torch.Tensor:
    """One dictionary that holds the small one's latents and some of the large one's, in float64."""
    part = large.gather(latents)
    return Dictionary(
        W_enc=torch.cat([small.W_enc, part.W_enc], dim=1),
        b_enc=torch.cat([small.b_enc, part.b_enc]),
        W_dec=torch.cat([small.W_dec, part.W_dec]),
        b_dec=small.b_dec,
        threshold=torch.cat([small.threshold, part.threshold]),
    )


def sse(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Squared error of each token, densely and in float64."""
    dictionary, x = double(dictionary), x.double()
    return (x - dictionary.decode(dictionary.encode(x))).square().sum(1)


def test_one_pass_equals_inserting_each_latent(small, large, result) -> None:
    x = activations()
    before = sse(small, x).sum()
    latents = double(large).encode(x.double())
    residual = x.double() - double(small).reconstruct(x.double())
    power = latents.square().mean(0) * large.W_dec.double().square().sum(1)
    overlap = (latents * (residual @ large.W_dec.double().T)).mean(0)
    for i in range(large.width):
        change = (sse(inserted(small, large, [i], x), x).sum() - before) / N
        bound = 1e-5 * float(power[i] + 2 * overlap[i].abs())
        assert abs(float(result.mse_change[i]) - float(change)) <= bound
    assert float(result.mse_small) == pytest.approx(float(before) / N, rel=1e-6)
    assert float(result.mse_large) == pytest.approx(float(sse(large, x).mean()), rel=1e-6)


def test_dead_latents_stand_apart(small, large, result) -> None:
    assert result.frame.query("dead")["latent"].tolist() == [7, 50]
    assert (result.frame.query("dead")["mse_change"] == 0).all()
    assert not result.frame.query("dead")["novel_gain"].any()
    assert result.summary["n_dead"] == 2
    assert result.summary["n_latents"] == result.at(0.7)["n_latents"] == large.width - 2
    density = (large.encode(activations()) > 0).double().mean(0)
    assert result.frame["density"].tolist() == pytest.approx(density.tolist(), abs=2 / N)


def test_result_does_not_depend_on_the_batches(small, large, result) -> None:
    other = insertion(small, large, activations(), batch_size=250)
    scale = (result.power.sum(0) + 2 * result.overlap.sum(0).abs()) / N
    assert ((other.mse_change - result.mse_change).abs() <= 1e-6 * scale).all()
    again = insertion(small, large, activations(), batch_size=700)
    assert torch.equal(again.mse_change, result.mse_change)


def test_halves_are_alternating_blocks_of_positions(small, large, result) -> None:
    x = activations()
    half = torch.arange(N) // HALF_BLOCK % 2
    assert result.half_tokens == (int((half == 0).sum()), int((half == 1).sum()))
    for h in (0, 1):
        alone = insertion(small, large, x[half == h])
        both = torch.stack(
            [result.power[h] - 2 * result.overlap[h], (alone.power - 2 * alone.overlap).sum(0)]
        )
        torch.testing.assert_close(both[0], both[1], rtol=1e-5, atol=1e-2)
        assert torch.equal(result.active[h], alone.active.sum(0))


def test_auc_and_rates_by_counting_pairs(result) -> None:
    frame = result.frame.query("not dead")
    cosine, gain = frame["best_cosine"].to_numpy(), frame["novel_gain"].to_numpy()
    assert 0.1 < gain.mean() < 0.9  # both labels occur, so nothing here holds by emptiness
    helps, hurts = cosine[gain], cosine[~gain]
    pairs = (helps[:, None] < hurts).mean() + (helps[:, None] == hurts).mean() / 2
    assert result.auc == pytest.approx(pairs, abs=1e-12)
    for theta in (0.3, 0.7, 0.9):
        at = result.at(theta)
        assert at["true_positive_rate"] == (helps < np.float32(theta)).mean()
        assert at["false_positive_rate"] == (hurts < np.float32(theta)).mean()
        assert at["accuracy"] == ((cosine < np.float32(theta)) == gain).mean()
        expected = balanced_accuracy_score(gain, cosine < np.float32(theta))
        assert at["balanced_accuracy"] == pytest.approx(expected)
        assert at["share_novel_gain"] == gain.mean()


def test_every_theta_of_the_roc_curve_gives_its_rates(result) -> None:
    for row in result.roc().itertuples():
        at = result.at(row.theta)
        assert (at["true_positive_rate"], at["false_positive_rate"]) == pytest.approx((row.tpr, row.fpr))


def test_best_theta_is_chosen_on_one_half_and_judged_on_the_other(result) -> None:
    def labels(half: int) -> tuple[np.ndarray, np.ndarray]:
        alive = (result.active[half] > 0).numpy()
        gain = ((result.power - 2 * result.overlap)[half] < 0).numpy()
        return result.matches.cosine.numpy()[alive], gain[alive]

    cosine, gain = labels(0)
    best = max(balanced_accuracy_score(gain, cosine <= c) for c in cosine)
    found = result.best_theta
    assert found["balanced_accuracy_chosen"] == pytest.approx(best)
    cosine, gain = labels(1)
    expected = balanced_accuracy_score(gain, cosine < np.float32(found["theta"]))
    assert found["balanced_accuracy"] == pytest.approx(expected)


def test_without_both_labels_there_is_no_auc(large) -> None:
    eye = torch.eye(D_IN)
    exact = Dictionary(eye, torch.zeros(D_IN), eye, torch.zeros(D_IN), torch.zeros(D_IN))
    result = insertion(exact, large, activations(200).abs())  # nothing is left to gain
    assert result.fvu_small == 0
    assert not result.novel_gain.any()
    assert np.isnan(result.summary["auc"])
    assert np.isnan(result.summary["best_theta"])
    with pytest.raises(ValueError, match="latents that help and latents that do not"):
        result.roc()


def test_compare_sets_any_number_of_nulls_beside(small, large, result) -> None:
    null = insertion(small, make(D_IN, 30, seed=3), activations())
    other = insertion(small, make(D_IN, 30, seed=4), activations())
    compared = compare(result, null, other)
    assert list(compared.frame.columns) == ["30 → 60", "30, seed 3", "30, seed 4"]
    assert compared.frame.loc["auc"].tolist() == [result.auc, null.auc, other.auc]
    assert compared.summary["null_share_novel_cos"] == [
        null.summary["share_novel_cos"],
        other.summary["share_novel_cos"],
    ]
    with pytest.raises(ValueError, match=r"A null is between .* found relu 30 .* and relu 60"):
        compare(null, result)
    seeds = [make(D_IN, 30, seed=seed) for seed in (5, 6)]
    with pytest.raises(ValueError, match="A null is between"):  # of other dictionaries altogether
        compare(result, insertion(*seeds, activations()))


def test_topk_is_refused(small, large) -> None:
    topk = Dictionary(**small.tensors(), k=4, info={"kind": "topk"})
    for pair in ((topk, large), (large, topk)):
        with pytest.raises(ValueError, match="as_jumprelu"):
            insertion(*pair, activations(10))


def test_no_activations_is_an_error(small, large) -> None:
    with pytest.raises(ValueError, match="every position is excluded"):
        insertion(small, large, torch.zeros(0, D_IN))


# ---------------------------------------------------------------------- groups


def test_groups_equal_dictionaries_that_hold_them(small, large, result) -> None:
    x = activations()
    frame = group_insertion(small, large, result, x, batch_size=500).frame.set_index("group")
    alive, novel, gain = (~result.dead, result.novel_cos, result.novel_gain)
    groups = {
        "small": torch.zeros_like(alive),
        "novel_cos": alive & novel,
        "reconstruction_cos": alive & ~novel,
        "novel_gain": alive & gain,
        "not novel_gain": alive & ~gain,
        "all": alive,
    }
    variance = (x.double() - x.double().mean(0)).square().sum()
    before = sse(small, x).mean()
    for name, mask in groups.items():
        both = inserted(small, large, mask.nonzero()[:, 0], x)
        error, l0 = sse(both, x), (double(both).encode(x.double()) > 0).sum(1).double().mean()
        row = frame.loc[name]
        assert row["n_latents"] == mask.sum()
        assert row["mse"] == pytest.approx(float(error.mean()), rel=1e-6)
        assert row["fvu"] == pytest.approx(float(error.sum() / variance), rel=1e-6)
        assert row["l0"] == pytest.approx(float(l0), abs=2 / N)
        assert row["mse_change"] == pytest.approx(float(error.mean() - before), rel=1e-5, abs=1e-5)
        single = float(result.mse_change[mask].sum())
        assert row["sum_of_single_changes"] == single
        if mask.any():
            assert row["additivity"] == row["mse_change"] / single
    assert frame.loc["large", "mse"] == pytest.approx(float(sse(large, x).mean()), rel=1e-6)
    assert 0 < frame.loc["reconstruction_cos", "n_latents"] < frame.loc["all", "n_latents"]


def test_single_changes_add_up_for_latents_that_never_meet(small) -> None:
    # Each of these is active on tokens of its own, so the group's change is the sum of theirs.
    x = torch.cat([torch.eye(D_IN)[:4] * (2 + s) for s in range(5)])
    alone = make(D_IN, 30, seed=8)
    alone.W_enc[:, :4] = torch.eye(D_IN)[:, :4]
    alone.b_enc[:4] = -0.5
    alone.W_dec[:4] = F.normalize(torch.eye(D_IN)[:4] + 0.1, dim=1)
    alone.threshold[:] = torch.cat([torch.zeros(4), torch.full((26,), 1e6)])
    single = insertion(small, alone, x)
    assert (single.active.sum(0) == torch.tensor([5] * 4 + [0] * 26)).all()
    frame = group_insertion(small, alone, single, x).frame.set_index("group")
    assert frame.loc["all", "additivity"] == pytest.approx(1, rel=1e-5)


def twins(width: int) -> tuple[Dictionary, Dictionary]:
    """Two SAEs of one kind and width from different layers, without seeds: they share their name."""
    first, second = (
        replace(make(D_IN, width, seed=seed), info={"kind": "relu", "hook_point": f"blocks.{seed}.hook"})
        for seed in (1, 2)
    )
    assert first.name == second.name
    return first, second


def test_an_insertion_of_other_dictionaries_is_refused(small, large, result) -> None:
    with pytest.raises(ValueError, match=r"was relu 30 \(seed 1\) .*but relu 30 \(seed 3\) .*was given"):
        group_insertion(make(D_IN, 30, seed=3), large, result, activations())
    (first, second), (wide, wider) = twins(20), twins(40)
    of_first = insertion(first, wide, activations())
    with pytest.raises(ValueError, match=r"small dictionary was relu 20 at blocks\.1\.hook .*blocks\.2"):
        group_insertion(second, wide, of_first, activations())
    with pytest.raises(ValueError, match=r"large dictionary was relu 40 at blocks\.1\.hook .*blocks\.2"):
        group_insertion(first, wider, of_first, activations())
    again = replace(first, W_dec=first.W_dec.clone())  # another object of the same content
    assert group_insertion(again, wide, of_first, activations()).small == of_first.small


@pytest.mark.parametrize(
    "other",
    [activations(seed=1), activations()[:-1], activations() + 0.1, activations() * 1.001],
    ids=["other tokens", "fewer", "another mean", "another scale"],
)
def test_an_insertion_on_other_tokens_is_refused(small, large, result, other) -> None:
    with pytest.raises(ValueError, match=r"The insertion was measured on 1500 tokens .* in their place"):
        group_insertion(small, large, result, other)
    with pytest.warns(UserWarning, match="was measured on 1500 tokens"):
        group_insertion(small, large, result, other, allow_mismatch=True)
    with pytest.raises(ValueError, match="The insertion was measured on 1500 tokens"):
        compare(result, insertion(small, make(D_IN, 30, seed=3), other))


def test_the_same_tokens_in_another_order_belong_to_an_insertion(small, large, result) -> None:
    x = activations()[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
    found, expected = (group_insertion(small, large, result, y, batch_size=64) for y in (x, activations()))
    torch.testing.assert_close(found.frame["mse"].tolist(), expected.frame["mse"].tolist())


def test_a_null_has_the_theta_of_the_insertion_and_two_dictionaries(small, result) -> None:
    with pytest.raises(ValueError, match=r"theta 0\.7, found 0\.6"):
        compare(result, insertion(small, make(D_IN, 30, seed=3), activations(), theta=0.6))
    copy = replace(small, W_dec=small.W_dec.clone())
    with pytest.raises(ValueError, match="another seed of its width"):
        compare(result, insertion(small, copy, activations()))
    seed = make(D_IN, small.width, seed=3)
    other_kind = replace(seed, info={**seed.info, "kind": "other"})
    with pytest.raises(ValueError, match="another seed of its width"):
        compare(result, insertion(small, other_kind, activations()))


def test_nulls_of_one_name_keep_a_column_each(small, result) -> None:
    nulls = []
    for seed in (3, 4):
        other = make(D_IN, 30, seed=seed)
        nulls.append(insertion(small, replace(other, info={**other.info, "seed": None}), activations()))
    frame = compare(result, *nulls).frame
    assert frame.shape[1] == 3
    for null in nulls:
        own = next(name for name in frame if null.large.hash[:8] in name)
        assert frame.loc["mse_large", own] == float(null.mse_large)
    with pytest.raises(ValueError, match=r"The null with relu 30 .* is given twice"):
        compare(result, nulls[0], nulls[1], nulls[0])
