from collections import Counter
from dataclasses import replace
from itertools import pairwise

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
from saekit.analysis.stitching.controls import _Selection
from saekit.analysis.stitching.mixtures import Streamed
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


@pytest.fixture(scope="module", params=["streamed", "quadratic"])
def source(request, statistics):
    """What `stitch` is given: tokens, or what was kept of them."""
    return activations() if request.param == "streamed" else statistics


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
def test_every_step_is_what_brute_force_finds(small, large, source, grouping, order, bias):
    x = activations()
    result = stitch(small, large, source, theta=THETA, grouping=grouping, order=order, bias=bias)
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


def test_changes_are_within_the_bound_of_single_insertions(small, large, source):
    """Each step's change to 1e-5 of the sizes that it is the difference of."""
    x = activations()
    result = stitch(small, large, source, theta=THETA)
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
def test_everything_swapped_is_the_large_dictionary_bit_for_bit(small, large, source, grouping, bias):
    result = stitch(small, large, source, theta=THETA, grouping=grouping, order="random", bias=bias)
    end = result.dictionary(result.n_steps)
    for name, tensor in large.tensors().items():
        assert torch.equal(end.tensors()[name], tensor), name
    start = result.dictionary(0)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(start, name), getattr(small, name))
    assert result.references["large"]["mse"] == pytest.approx(evaluated(large, activations())[0], rel=1e-6)
    # All sums are float64, but inner products and residuals are float32, of unit roundoff u = 6e-8: the worst
    # case is u per dimension and per move of a token, 29 u here. Errors of single tokens average out.
    assert result.frame["mse"].iloc[-1] == pytest.approx(result.references["large"]["mse"], rel=1e-7)


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


def test_single_linkage_gives_a_giant_group_where_all_resemble_each_other(small, large):
    small, large = (
        replace(d, W_dec=F.normalize(d.W_dec + 9, dim=1))
        for d in (small, large)  # all cosines are high
    )
    result = stitch(small, large, activations(), theta=0.5)
    assert result.giant_share == 1.0
    assert result.frame["phase"].tolist() == ["start", "swap", "bias"]


def test_greedy_takes_the_best_move_each_time(small, large, statistics):
    result = stitch(small, large, statistics, theta=THETA, order="greedy_gain")
    moves = list(result.moves_made)
    for place in range(0, len(moves), 5):
        rest = [m for m in moves[place:] if m.phase == moves[place].phase]
        errors = [curve(statistics, [*moves[:place], move]).frame["mse"].iloc[-2] for move in rest]
        assert errors[0] == pytest.approx(min(errors), rel=1e-9)


def test_static_gain_sorts_by_what_each_move_does_at_the_phases_start(small, large, source):
    result = stitch(small, large, source, theta=THETA, order="static_gain")
    moves = list(result.moves_made)
    for phase in ("insert", "swap", "remove"):
        before = moves[: [m.phase for m in moves].index(phase)]
        part = [m for m in moves if m.phase == phase]
        errors = [curve(result.mixtures, [*before, move]).frame["mse"].iloc[-2] for move in part]
        assert (np.diff(errors) >= -1e-9).all()


def test_single_changes_and_how_far_they_are_from_adding_up(small, large, source):
    x = activations()
    result = stitch(small, large, source, theta=0.6)
    swap = result.frame.query("phase == 'swap'").sort_values("n_inserted").iloc[-1]
    at = result.at(int(swap["step"]))
    assert len(at["inserted"]) > 1
    before = list(result.moves_made[: int(swap["step"]) - 1])
    none = np.zeros(0, dtype=np.int64)
    alone = [Move("swap", np.array([i]), none) for i in at["inserted"]]
    alone += [Move("swap", none, np.array([i])) for i in at["removed"]]
    changes = [
        evaluated(mixture(curve(result.mixtures, [*before, move]), len(before) + 1), x)[0]
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


def test_the_phases_tile_the_curve(small, large, source):
    result = stitch(small, large, source, theta=THETA)
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


def test_lost_latents_may_stay(small, large, source):
    result = stitch(small, large, source, theta=THETA, lost="keep")
    gone = stitch(small, large, source, theta=THETA)
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
        ([([34], [])], "step 1 inserts must be between 0 and 33, found 34"),
        ([([], [-1])], "step 1 removes must be between 0 and 19, found -1"),
    ],
)
def test_moves_that_cannot_be_made_are_refused(statistics, moves, message):
    made = [Move("swap", np.array(come, dtype=int), np.array(go, dtype=int)) for come, go in moves]
    with pytest.raises((ValueError, IndexError), match=message):
        curve(statistics, made)


def test_what_cannot_be_stitched_is_refused(small, large, statistics):
    topk = replace(make(D_IN, 20, seed=1), k=4)
    with pytest.raises(ValueError, match="as_jumprelu"):
        stitch(topk, large, activations())
    with pytest.raises(ValueError, match="as_jumprelu"):
        stitch(small, replace(large, k=4), activations())
    with pytest.raises(ValueError, match="the first has d_in 12, the second 13"):
        stitch(small, make(D_IN + 1, 30), activations())
    with pytest.raises(ValueError, match="no activations"):
        stitch(small, large, activations()[:0])
    with pytest.raises(ValueError, match="mixtures' small dictionary was"):
        stitch(make(D_IN, 20, seed=7), large, statistics)
    for activations_or_statistics in (activations(), pair_statistics(large, large, activations())):
        with pytest.raises(ValueError, match=r"swap them|large dictionary was"):
            stitch(large, small, activations_or_statistics)
    broken = activations()
    broken[333, 2] = torch.nan
    with pytest.raises(ValueError, match="position 333 are not finite"):
        stitch(small, large, broken)
    for theta in (-1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="theta must be"):
            stitch(small, large, statistics, theta=theta)
    for option in ("grouping", "order", "lost", "bias"):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            stitch(small, large, statistics, **{option: "other"})
    with pytest.raises(ValueError, match="step must be between 0 and"):
        stitch(small, large, statistics).dictionary(1000)


def test_random_orders_move_the_same_latents(small, large, source):
    result = stitch(small, large, source, theta=THETA)
    drawn = random_orders(result, n=3, seed=1)
    draws = drawn.frame
    assert drawn.summary["n_draws"] == 3
    ends = result.phases["last_step"].tolist()
    for _, draw in draws.groupby("draw"):
        draw = draw.reset_index(drop=True)
        assert draw["phase"].tolist() == result.frame["phase"].tolist()
        # Float64 sums of float32 products, as above: within two unit roundoffs.
        np.testing.assert_allclose(draw["fvu"][[0, *ends]], result.frame["fvu"][[0, *ends]], rtol=1e-7)
    first = draws.query("draw == 0")["fvu"].to_numpy()
    assert not np.allclose(first, draws.query("draw == 1")["fvu"].to_numpy())
    pd.testing.assert_frame_equal(draws, random_orders(result, n=3, seed=1).frame)


def test_statistics_do_not_depend_on_batches_and_pairs_on_blocks(small, large, statistics, monkeypatch):
    monkeypatch.setattr("saekit.analysis.stitching.mixtures.BLOCK", 7)
    other = pair_statistics(small, large, activations(), batch_size=64)
    np.testing.assert_allclose(other.overlap, statistics.overlap, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(other.power, statistics.power, rtol=1e-12)
    np.testing.assert_allclose(
        other.symmetric.toarray(), statistics.symmetric.toarray(), rtol=1e-5, atol=1e-3
    )
    latents = torch.cat([small.encode(activations()), large.encode(activations())], dim=1).double()
    directions = torch.cat([small.W_dec, large.W_dec]).double()
    expected = (latents.T @ latents) * (directions @ directions.T)
    np.testing.assert_allclose(other.symmetric.toarray(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_streamed_and_the_quadratic_curve_agree(small, large, statistics, grouping, bias):
    """Every column, for paths with groups and without; to rounding, as sums of the same tokens."""
    for order in ORDERS[:2]:
        options = {"theta": THETA, "grouping": grouping, "order": order, "bias": bias}
        streamed = stitch(small, large, activations(), **options)
        quadratic = stitch(small, large, statistics, **options)
        pd.testing.assert_frame_equal(streamed.moves, quadratic.moves)
        scale = streamed.frame["mse"].max()
        for column in ("mse", "mse_change", "sum_of_single_changes"):
            np.testing.assert_allclose(
                streamed.frame[column], quadratic.frame[column], rtol=0, atol=1e-6 * scale
            )
        np.testing.assert_allclose(streamed.frame["l0"], quadratic.frame["l0"], rtol=1e-12)
        np.testing.assert_allclose(
            streamed.phases["sum_of_single_changes"],
            quadratic.phases["sum_of_single_changes"],
            rtol=0,
            atol=1e-6 * scale,
        )


def test_a_streamed_curve_does_not_depend_on_how_the_tokens_are_cut(small, large, monkeypatch):
    whole = stitch(small, large, activations(), theta=THETA, bias="interpolated")
    monkeypatch.setattr("saekit.analysis.stitching.mixtures.FOLLOWED", 7 * small.d_in)
    monkeypatch.setattr("saekit.analysis.stitching.mixtures.SEGMENTS", 5)
    cut = curve(Streamed(small, large, activations(), batch_size=33), whole.moves_made, bias="interpolated")
    for column in ("mse", "sum_of_single_changes"):
        np.testing.assert_allclose(cut.frame[column], whole.frame[column], rtol=1e-6)


def test_the_streamed_curve_holds_no_pairs_and_no_tokens(small, large):
    result = stitch(small, large, activations(), theta=THETA)
    held = [v for v in vars(result.mixtures).values() if isinstance(v, torch.Tensor | np.ndarray)]
    assert all(len(value) <= N for value in held)
    assert isinstance(result.mixtures, Streamed)


def test_latents_of_a_move_are_selected_as_everywhere(small, large, statistics):
    mask = torch.zeros(34, dtype=torch.bool)
    mask[[2, 9]] = True
    none = np.zeros(0, dtype=np.int64)
    expected = curve(statistics, [Move("insert", np.array([2, 9]), none)]).frame
    for latents in (mask, mask.numpy(), pd.Series(mask.numpy()), [2, 9]):
        found = curve(statistics, [Move("insert", latents, none)]).frame
        pd.testing.assert_frame_equal(found, expected)


# ---------------------------------------------------------------------- controls


def test_matched_l0_is_the_least_threshold_that_does(large):
    x = activations()
    before = evaluated(large, x)[1]
    found = matched_l0(large, x, before / 2)
    raised, threshold = found.dictionary, found.threshold
    assert found.l0 == pytest.approx(evaluated(raised, x)[1])
    values = large.encode(x)
    assert (raised.encode(x) > 0).sum() == round(before / 2 * N)
    assert (values > threshold).sum() == round(before / 2 * N)
    lower = float(values[values <= threshold].max()) - 1e-6
    assert (values > lower).sum() > before / 2 * N
    assert torch.equal(raised.threshold, large.threshold.clamp(min=threshold))
    same = matched_l0(large, x, before).dictionary
    assert matched_l0(large, x, before).threshold == 0.0
    assert torch.equal(same.threshold, large.threshold)


def test_matched_curve_is_each_dictionary_with_its_threshold(small, large, source):
    x = activations()
    result = stitch(small, large, source, theta=THETA)
    points = matched_curve(result, x, n_points=5).frame
    assert {0, result.n_steps, *result.phases["last_step"]} <= set(points["step"])
    target = result.frame["l0"].iloc[0]
    for row in points.itertuples():
        matched = matched_l0(result.dictionary(row.step), x, target)
        raised, threshold = matched.dictionary, matched.threshold
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
    found = ce_curve(model, result, store, max_rows=6).frame
    assert found["step"].tolist() == [0, *result.phases["last_step"]]
    expected = ce_degradation(model, [small, large], store, max_rows=6).frame["ce_degradation"]
    assert found["ce_degradation"].iloc[0] == pytest.approx(expected.iloc[0], rel=1e-6)
    assert found["ce_degradation"].iloc[-1] == pytest.approx(expected.iloc[1], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_selection_is_that_of_a_sort(dtype):
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0)).to(dtype) + 1e-3
    values[:900] = values[900:1800]  # ties
    ordered = values.sort(descending=True).values
    for n in (0, 1, 17, 3000, 4999, 5000, 6000):
        selection = _Selection()
        while not selection.decided:
            for part in values.split(77):
                selection.add(part)
            selection.decide(n)
        assert selection.threshold == (float(ordered[n]) if n < 5000 else 0.0)
        assert selection.n_above == int((values > selection.threshold).sum()) <= n


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


@pytest.mark.parametrize("order", ORDERS)
def test_a_chain_is_its_pairs_and_keeps_no_statistics(order):
    family = Family([make(D_IN, width, seed=0) for width in (10, 20, 40)])
    chain = stitch_chain(family, activations(), theta=0.5, order=order)
    for found, (small, large) in zip(chain.stitchings, pairwise((10, 20, 40)), strict=True):
        alone = stitch(family[small], family[large], activations(), theta=0.5, order=order)
        pd.testing.assert_frame_equal(found.frame, alone.frame)
        assert found.summary == alone.summary
        assert isinstance(found.mixtures, Streamed)


def test_a_chain_encodes_the_tokens_once(monkeypatch):
    family = Family([make(D_IN, width, seed=0) for width in (10, 20, 40)])
    encoded, encode = Counter(), Dictionary.encode_sparse

    def counted(dictionary, x):
        encoded[dictionary.width] += len(x)
        return encode(dictionary, x)

    monkeypatch.setattr(Dictionary, "encode_sparse", counted)
    stitch_chain(family, activations(), theta=0.5)
    assert encoded == dict.fromkeys((10, 20, 40), len(activations()))


@pytest.mark.parametrize("which", ["small", "large"])
def test_dictionaries_whose_tensors_have_changed_are_refused(small, large, which, model, store):
    x = activations()
    pair = {
        "small": replace(small, W_dec=small.W_dec.clone()),
        "large": replace(large, W_dec=large.W_dec.clone()),
    }
    statistics, streamed = pair_statistics(**pair, activations=x), Streamed(**pair, activations=x)
    stitched = stitch(**pair, activations=x)
    again = {
        "stitch": lambda: stitch(**pair, activations=statistics),
        "curve": lambda: curve(statistics, stitched.moves_made),
        "streamed": lambda: streamed.totals,
        "dictionary": lambda: stitched.dictionary(1),
        "random_orders": lambda: random_orders(stitched, n=1),
        "matched_curve": lambda: matched_curve(stitched, x, n_points=2),
        "ce_curve": lambda: ce_curve(model, stitched, store, max_rows=1),
    }
    before, summary = stitched.dictionary(1), stitched.summary
    pair[which].W_dec.mul_(-1)
    for use in again.values():
        with pytest.raises(
            ValueError, match=f"The mixtures' {which} dictionary was .* was given in its place"
        ):
            use()
    assert stitched.summary == summary
    pair[which].W_dec.mul_(-1)  # the same content again
    assert stitched.dictionary(1).identity == before.identity
    assert stitch(**pair, activations=statistics).summary["fvu_small"] == pytest.approx(summary["fvu_small"])


def test_matching_along_a_path_needs_its_tokens(small, large):
    stitched = stitch(small, large, activations())
    with pytest.raises(ValueError, match=f"The curve was measured on {N} tokens .* in their place"):
        matched_curve(stitched, activations(seed=1), n_points=2)


@pytest.mark.parametrize(
    "x", [torch.ones(1, D_IN), torch.full((9, D_IN), 2.5)], ids=["one token", "constant"]
)
def test_activations_that_do_not_vary_have_no_fvu(small, large, x):
    for tokens in (x, pair_statistics(small, large, x)):
        with pytest.raises(ValueError, match="FVU is not defined: the activations do not vary"):
            stitch(small, large, tokens)
