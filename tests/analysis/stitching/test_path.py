from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from dictionaries import make

from saekit.analysis import (
    Move,
    ce_curve,
    insertion,
    matched_curve,
    matched_l0,
    pair_statistics,
    random_orders,
    stitch,
    stitch_chain,
)
from saekit.analysis.stitching.path import BIASES, GROUPINGS, ORDERS, curve, plan
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.metrics import evaluate

N, D_IN = 700, 12
THETA = 0.75
EVERY = [(g, o, b) for g in GROUPINGS for o in ORDERS for b in BIASES]


def activations(n: int = N, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D_IN, generator=generator) * torch.linspace(0.5, 3, D_IN) + 2


def near(dictionary: Dictionary, latents: list[int], noise: float, seed: int) -> torch.Tensor:
    rows = dictionary.W_dec[latents]
    return F.normalize(
        rows + noise * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)), dim=1
    )


@pytest.fixture(scope="module")
def small() -> Dictionary:
    return make(D_IN, 20, seed=1)


@pytest.fixture(scope="module")
def large(small: Dictionary) -> Dictionary:
    """Near copies of some of the small latents, of two of them twice, and others; two are dead."""
    fresh = make(D_IN, 34, seed=2)
    copies = near(small, [*range(12), 3, 5], 0.08, seed=3)
    W_dec = torch.cat([copies, fresh.W_dec[14:]])
    threshold = fresh.threshold.clone()
    threshold[[4, 30]] = 1e6
    return replace(fresh, W_dec=W_dec, threshold=threshold)


@pytest.fixture(scope="module")
def statistics(small, large):
    return pair_statistics(small, large, activations(), batch_size=300)


def evaluated(dictionary: Dictionary, x: torch.Tensor) -> tuple[float, float]:
    """Mean squared error and L0, densely and in float64."""
    dictionary, x = dictionary.to(dtype=torch.float64), x.double()
    latents = dictionary.encode(x)
    return (
        float((x - dictionary.decode(latents)).square().sum(1).mean()),
        float((latents > 0).double().sum(1).mean()),
    )


def mixture(result, step: int) -> Dictionary:
    """The dictionary after a step, from the moves alone."""
    small, large = result.small, result.large
    moves = result.moves[result.moves["step"] <= step]
    gone = set(moves.loc[moves["side"] == "small", "latent"])
    come = sorted(moves.loc[moves["side"] == "large", "latent"])
    kept = [i for i in range(small.width) if i not in gone]
    share = {
        "small": float(step == result.n_steps),
        "large": float(step >= 1),
        "interpolated": len(moves) / len(result.moves),
    }[result.bias]
    return Dictionary(
        W_enc=torch.cat([small.W_enc[:, kept], large.W_enc[:, come]], dim=1),
        b_enc=torch.cat([small.b_enc[kept], large.b_enc[come]]),
        W_dec=torch.cat([small.W_dec[kept], large.W_dec[come]]),
        b_dec=small.b_dec + share * (large.b_dec - small.b_dec),
        threshold=torch.cat([small.threshold[kept], large.threshold[come]]),
    )


@pytest.mark.parametrize(("grouping", "order", "bias"), EVERY)
def test_every_step_is_what_brute_force_finds(small, large, statistics, grouping, order, bias):
    x = activations()
    result = stitch(small, large, statistics, theta=THETA, grouping=grouping, order=order, bias=bias)
    assert result.frame["step"].tolist() == list(range(len(result.frame)))
    for step in range(0, result.n_steps + 1, 3 if result.n_steps % 3 else 4):
        row = result.frame.iloc[step]
        mse, l0 = evaluated(mixture(result, step), x)
        assert row["mse"] == pytest.approx(mse, rel=1e-6)
        assert row["l0"] == pytest.approx(l0, rel=1e-9)
        variance = float((x.double() - x.double().mean(0)).square().sum(1).mean())
        assert row["fvu"] == pytest.approx(mse / variance, rel=1e-6)
        assert (row["n_small"], row["n_large"]) == (
            20 - (result.moves.query("step <= @step")["side"] == "small").sum(),
            (result.moves.query("step <= @step")["side"] == "large").sum(),
        )
        given = result.dictionary(step)
        assert evaluated(given, x)[0] == pytest.approx(mse, rel=1e-7)  # its bias is rounded to float32
        assert given.width == row["width"]


def test_changes_are_within_the_bound_of_single_insertions(small, large, statistics):
    """Each step's change to 1e-5 of the sizes that it is the difference of."""
    x = activations()
    result = stitch(small, large, statistics, theta=THETA)
    before = mixture(result, 0).to(dtype=torch.float64)
    for step in range(1, result.n_steps):
        after = mixture(result, step).to(dtype=torch.float64)
        residual, other = (d.decode(d.encode(x.double())) - x.double() for d in (before, after))
        difference = other - residual
        size = difference.square().sum(1).mean() + 2 * (difference * residual).sum(1).mean().abs()
        change = float((other.square().sum(1) - residual.square().sum(1)).mean())
        assert abs(result.frame["mse_change"].iloc[step] - change) <= 1e-5 * float(size) + 1e-12
        before = after


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_everything_swapped_is_the_large_dictionary_bit_for_bit(small, large, statistics, grouping, bias):
    result = stitch(small, large, statistics, theta=THETA, grouping=grouping, order="random", bias=bias)
    end = result.dictionary(result.n_steps)
    for name, tensor in large.tensors().items():
        assert torch.equal(end.tensors()[name], tensor), name
    start = result.dictionary(0)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(start, name), getattr(small, name))
    assert result.references["large"]["mse"] == pytest.approx(evaluated(large, activations())[0], rel=1e-6)
    assert result.frame["mse"].iloc[-1] == pytest.approx(result.references["large"]["mse"], rel=1e-9)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_dictionary_stitched_into_itself_is_flat(small, grouping):
    theta = 0.999  # below it, latents of one dictionary could resemble each other
    result = stitch(small, small, activations(), theta=theta, grouping=grouping)
    assert set(result.frame["phase"]) == {"start", "swap", "bias"}
    assert result.n_steps == small.width + 1
    np.testing.assert_allclose(result.frame["mse"], result.frame["mse"].iloc[0], rtol=1e-6)
    np.testing.assert_allclose(result.frame["l0"], result.frame["l0"].iloc[0], rtol=1e-12)


def test_phases_groups_and_order_follow_the_cosines(small, large, statistics):
    cosines = F.normalize(large.W_dec.double(), dim=1) @ F.normalize(small.W_dec.double(), dim=1).T
    novel = (cosines.amax(1) < THETA).nonzero().flatten()
    lost = (cosines.amax(0) < THETA).nonzero().flatten()
    result = stitch(small, large, statistics, theta=THETA)
    by_phase = result.moves.merge(result.frame[["step", "phase"]], on="step").groupby("phase")["latent"]
    assert by_phase.get_group("insert").tolist() == novel[cosines.amax(1)[novel].argsort()].tolist()
    assert sorted(by_phase.get_group("remove")) == lost.tolist()
    assert result.frame["phase"].drop_duplicates().tolist() == ["start", "insert", "swap", "remove", "bias"]
    swaps = result.frame.query("phase == 'swap'")
    assert swaps["similarity"].is_monotonic_decreasing
    for step in swaps["step"]:
        at = result.at(step)
        block = cosines[at["inserted"]][:, at["removed"]]
        assert (block.amax(1) >= THETA).all()
        assert (block.amax(0) >= THETA).all()
        assert at["similarity"] == pytest.approx(float(block[block >= THETA].mean()), rel=1e-5)
        others = [i for i in range(large.width) if i not in at["inserted"]]
        assert not (cosines[others][:, at["removed"]] >= THETA).any()  # nothing outside belongs to it
    sizes = swaps["n_inserted"]
    assert result.giant_share == sizes.max() / sizes.sum()


def test_best_match_groups_are_a_latent_with_its_children(small, large):
    cosines = F.normalize(large.W_dec, dim=1) @ F.normalize(small.W_dec, dim=1).T
    best, parent = cosines.max(1)
    swaps = [move for move in plan(small, large, theta=0.3, grouping="best_match") if move.phase == "swap"]
    found = {int(move.remove[0]): move.insert.tolist() for move in swaps}
    assert all(len(move.remove) == 1 for move in swaps)
    for latent, children in found.items():
        assert children == ((parent == latent) & (best >= 0.3)).nonzero().flatten().tolist()
    assert sum(map(len, found.values())) == int((best >= 0.3).sum())


def test_single_linkage_gives_a_giant_group_where_all_resemble_each_other(small, large, statistics):
    result = stitch(small, large, statistics, theta=-1.0)
    assert result.giant_share == 1.0
    assert result.frame["phase"].tolist() == ["start", "swap", "bias"]


def test_greedy_takes_the_best_move_each_time(small, large, statistics):
    result = stitch(small, large, statistics, theta=THETA, order="greedy_gain")
    moves = list(result.moves_made)
    for place in range(0, len(moves), 5):
        rest = [m for m in moves[place:] if m.phase == moves[place].phase]
        errors = [curve(statistics, [*moves[:place], move]).frame["mse"].iloc[-2] for move in rest]
        assert errors[0] == pytest.approx(min(errors), rel=1e-9)


def test_static_gain_sorts_by_what_each_move_does_at_the_phases_start(small, large, statistics):
    result = stitch(small, large, statistics, theta=THETA, order="static_gain")
    moves = list(result.moves_made)
    for phase in ("insert", "swap", "remove"):
        before = moves[: [m.phase for m in moves].index(phase)]
        part = [m for m in moves if m.phase == phase]
        errors = [curve(statistics, [*before, move]).frame["mse"].iloc[-2] for move in part]
        assert (np.diff(errors) >= -1e-9).all()


def test_single_changes_and_how_far_they_are_from_adding_up(small, large, statistics):
    x = activations()
    result = stitch(small, large, statistics, theta=0.6)
    swap = result.frame.query("phase == 'swap'").sort_values("n_inserted").iloc[-1]
    at = result.at(int(swap["step"]))
    assert len(at["inserted"]) > 1
    before = list(result.moves_made[: int(swap["step"]) - 1])
    none = np.zeros(0, dtype=np.int64)
    alone = [Move("swap", np.array([i]), none) for i in at["inserted"]]
    alone += [Move("swap", none, np.array([i])) for i in at["removed"]]
    changes = [
        evaluated(mixture(curve(statistics, [*before, move]), len(before) + 1), x)[0]
        - evaluated(mixture(result, int(swap["step"]) - 1), x)[0]
        for move in alone
    ]
    assert swap["sum_of_single_changes"] == pytest.approx(sum(changes), rel=1e-5, abs=1e-6)

    inserted = result.phases.set_index("phase").loc["insert"]
    single = insertion(small, large, x, theta=0.6)
    novel = result.moves.query("side == 'large' and step <= @inserted.last_step")["latent"]
    expected = float(single.mse_change[novel.tolist()].sum())
    assert inserted["sum_of_single_changes"] == pytest.approx(expected, rel=1e-5)
    assert inserted["additivity"] == pytest.approx(
        (inserted["mse"] - inserted["mse_before"]) / expected, rel=1e-5
    )
    first = result.moves.iloc[0]["latent"]
    assert result.frame["mse_change"].iloc[1] == pytest.approx(float(single.mse_change[first]), rel=1e-5)


def test_the_phases_tile_the_curve(small, large, statistics):
    result = stitch(small, large, statistics, theta=THETA)
    phases = result.phases
    assert phases["first_step"].iloc[0] == 1
    assert phases["last_step"].iloc[-1] == result.n_steps
    assert (phases["first_step"].iloc[1:].to_numpy() == phases["last_step"].iloc[:-1].to_numpy() + 1).all()
    assert phases["mse_before"].iloc[1:].tolist() == phases["mse"].iloc[:-1].tolist()
    assert phases["n_inserted"].sum() == large.width
    assert phases["n_removed"].sum() == small.width
    for row in phases.itertuples():
        changes = result.frame.query("phase == @row.phase")["mse_change"]
        assert row.share_lowering == (changes < 0).mean()
        assert row.monotone == bool((changes <= 0).all())


def test_lost_latents_may_stay(small, large, statistics):
    result = stitch(small, large, statistics, theta=THETA, lost="keep")
    gone = stitch(small, large, statistics, theta=THETA)
    n_lost = gone.summary["n_lost"]
    assert n_lost > 0
    assert result.summary["n_lost"] == 0
    assert result.frame["width"].iloc[-1] == large.width + n_lost
    mse, _ = evaluated(result.dictionary(result.n_steps), activations())
    assert result.frame["mse"].iloc[-1] == pytest.approx(mse, rel=1e-6)


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([([3], []), ([5, 3], [])], "Step 2 inserts latent 3 of relu 34 .*is in already"),
        ([([], [1]), ([], [1])], "Step 2 removes latent 1 of relu 20 .*is no longer there"),
        ([([7, 7], [])], "Step 1 inserts latent 7"),
        ([([34], [])], "Step 1 inserts latent 34, which relu 34 .* does not have"),
        ([([], [-1])], "Step 1 removes latent -1, which relu 20 .* does not have"),
    ],
)
def test_moves_that_cannot_be_made_are_refused(statistics, moves, message):
    made = [Move("swap", np.array(come, dtype=int), np.array(go, dtype=int)) for come, go in moves]
    with pytest.raises(ValueError, match=message):
        curve(statistics, made)


def test_what_cannot_be_stitched_is_refused(small, large, statistics):
    topk = replace(make(D_IN, 20, seed=1), k=4)
    with pytest.raises(ValueError, match="as_jumprelu"):
        stitch(topk, large, activations())
    with pytest.raises(ValueError, match="as_jumprelu"):
        stitch(small, replace(large, k=4), activations())
    with pytest.raises(ValueError, match="one d_in"):
        stitch(small, make(D_IN + 1, 30), activations())
    with pytest.raises(ValueError, match="no activations"):
        stitch(small, large, activations()[:0])
    with pytest.raises(ValueError, match="statistics' small dictionary was"):
        stitch(large, small, statistics)
    for option in ("grouping", "order", "lost", "bias"):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            stitch(small, large, statistics, **{option: "other"})
    with pytest.raises(IndexError, match="steps 0 to"):
        stitch(small, large, statistics).dictionary(1000)


def test_random_orders_move_the_same_latents(small, large, statistics):
    result = stitch(small, large, statistics, theta=THETA)
    draws = random_orders(result, n=3, seed=1)
    ends = result.phases["last_step"].tolist()
    for _, draw in draws.groupby("draw"):
        draw = draw.reset_index(drop=True)
        assert draw["phase"].tolist() == result.frame["phase"].tolist()
        np.testing.assert_allclose(draw["fvu"][[0, *ends]], result.frame["fvu"][[0, *ends]], rtol=1e-9)
    first = draws.query("draw == 0")["fvu"].to_numpy()
    assert not np.allclose(first, draws.query("draw == 1")["fvu"].to_numpy())
    pd.testing.assert_frame_equal(draws, random_orders(result, n=3, seed=1))


def test_statistics_do_not_depend_on_batches_and_pairs_on_blocks(small, large, statistics, monkeypatch):
    monkeypatch.setattr("saekit.analysis.stitching.mixtures.BLOCK", 7)
    other = pair_statistics(small, large, activations(), batch_size=64)
    np.testing.assert_allclose(other.linear, statistics.linear, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(other.diagonal, statistics.diagonal, rtol=1e-12)
    np.testing.assert_allclose(
        other.symmetric.toarray(), statistics.symmetric.toarray(), rtol=1e-5, atol=1e-3
    )
    latents = torch.cat([small.encode(activations()), large.encode(activations()), torch.ones(N, 1)], dim=1)
    directions = torch.cat([small.W_dec, large.W_dec, (large.b_dec - small.b_dec)[None]]).double()
    expected = (latents.double().T @ latents.double()) * (directions @ directions.T)
    np.testing.assert_allclose(other.symmetric.toarray(), expected, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------- controls


def test_matched_l0_is_the_least_threshold_that_does(large):
    x = activations()
    before = evaluated(large, x)[1]
    raised, threshold = matched_l0(large, x, before / 2)
    values = large.encode(x)
    assert (raised.encode(x) > 0).sum() == round(before / 2 * N)
    assert (values > threshold).sum() == round(before / 2 * N)
    lower = float(values[values <= threshold].max()) - 1e-6
    assert (values > lower).sum() > before / 2 * N
    assert torch.equal(raised.threshold, large.threshold.clamp(min=threshold))
    same, none = matched_l0(large, x, before)
    assert none == 0.0
    assert torch.equal(same.threshold, large.threshold)


def test_matched_curve_is_each_dictionary_with_its_threshold(small, large, statistics):
    x = activations()
    result = stitch(small, large, statistics, theta=THETA)
    points = matched_curve(result, x, n_points=5)
    assert {0, result.n_steps, *result.phases["last_step"]} <= set(points["step"])
    target = result.frame["l0"].iloc[0]
    for row in points.itertuples():
        raised, threshold = matched_l0(result.dictionary(row.step), x, target)
        assert row.threshold == pytest.approx(threshold, rel=1e-6)
        mse = evaluate(raised, x).mse
        assert row.l0_matched == pytest.approx(min(target, row.l0), rel=1e-9)
        variance = float((x.double() - x.double().mean(0)).square().sum(1).mean())
        assert row.fvu_matched == pytest.approx(mse / variance, rel=1e-4)  # one value is at the threshold
    with pytest.raises(ValueError, match="measured on 700 tokens, found 600"):
        matched_curve(result, x[:600])


def test_ce_curve_is_that_of_the_stitched_dictionaries(model, store):
    from saekit.metrics import ce_degradation

    small, large = make(16, 20, seed=4), make(16, 30, seed=5)
    result = stitch(small, large, store, theta=0.5)
    found = ce_curve(model, result, store, max_rows=6)
    assert found["step"].tolist() == [0, *result.phases["last_step"]]
    expected = ce_degradation(model, [small, large], store, max_rows=6).frame["ce_degradation"]
    assert found["ce_degradation"].iloc[0] == pytest.approx(expected.iloc[0], rel=1e-6)
    assert found["ce_degradation"].iloc[-1] == pytest.approx(expected.iloc[1], rel=1e-6)


# ---------------------------------------------------------------------- saved, and chained


def test_a_stitched_dictionary_is_saved_and_loaded(small, large, statistics, tmp_path):
    result = stitch(small, large, statistics, theta=THETA)
    stitched = result.dictionary(5)
    loaded = Dictionary.load(stitched.save(tmp_path))
    assert torch.equal(loaded.encode(activations()), stitched.encode(activations()))
    assert loaded.kind == "stitched"
    assert loaded.info["stitched"]["step"] == 5
    assert loaded.info["stitched"]["large"] == large.content_hash


def test_a_chain_goes_on_where_the_last_pair_ended():
    family = Family([make(D_IN, width, seed=0) for width in (10, 20, 40)])
    chain = stitch_chain(family, activations(), theta=0.5)
    frame = chain.frame
    assert frame["pair"].unique().tolist() == ["10 → 20", "20 → 40"]
    end, start = frame.query("pair == '10 → 20'").iloc[-1], frame.query("pair == '20 → 40'").iloc[0]
    assert end["chain_step"] == start["chain_step"]
    assert end["mse"] == pytest.approx(start["mse"], rel=1e-6)
    assert end["l0"] == pytest.approx(start["l0"], rel=1e-9)
    assert frame["mse"].iloc[-1] == pytest.approx(evaluated(family[40], activations())[0], rel=1e-6)
    with pytest.raises(ValueError, match="at least two widths"):
        stitch_chain(Family([family[10]]), activations())
