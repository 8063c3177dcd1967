"""Worlds with known features: the law that was asked for, measured; determinism; training on them."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import saekit
from saekit import synthetic
from saekit.agreement import MismatchError
from saekit.synthetic import BLOCK, PRESETS, World, classic_directions, draw_probabilities

N = 1 << 20
SIGMAS = 5.0  # a deviation that 1 draw in 1.7 million exceeds; some hundred numbers are compared here


def counts(sample):
    return torch.bincount(sample.features.indices, minlength=sample.features.width).double()


def forest(n_roots=4, branching=3, rank=0, seed=0, **settings):
    """Roots, exclusive children and exclusive grandchildren with rates of every size."""
    generator = torch.Generator().manual_seed(seed)
    n = n_roots * (1 + branching + branching**2)
    parent = torch.full((n,), -1)
    for i in range(n_roots, n):
        parent[i] = (i - n_roots) // branching
    factor = (
        0.8 * torch.nn.functional.normalize(torch.randn(n, rank, generator=generator), dim=1)
        if rank
        else None
    )
    return World(
        f"forest {seed}",
        torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1),
        0.1 + 0.8 * torch.rand(n, generator=generator),
        parent=parent,
        group=parent.clone(),
        factor=factor,
        **settings,
    )


def require_rates(world, sample, law_error=0.0):
    """Measured rates are the law's, within `SIGMAS` of the error of sampling, binomial and the law's own."""
    rates, n = world.rates(), len(sample)
    error = (rates * (1 - rates) / n + (law_error * rates) ** 2).sqrt()
    deviation = (counts(sample) / n - rates).abs()
    assert (deviation <= SIGMAS * error + 1e-12).all(), (deviation / error).max()


def require_hierarchy(world, sample):
    """No child fires without its parent, and of a group at most one, on every sample."""
    rows, which = sample.features.rows, sample.features.indices
    parent, group = world.parent[which], world.group[which]
    fires = rows * world.n_features + which
    assert torch.isin((rows * world.n_features + parent)[parent >= 0], fires).all()
    contested = (rows * world.n_features + group)[group >= 0]
    assert len(contested.unique()) == len(contested)


class TestLaw:
    def test_rates_are_those_asked_for(self):
        world = synthetic.nabeshima_tree()
        asked = torch.tensor([0.15, 0.03, 0.03, 0.03] * 3 + [0.05] * 8, dtype=torch.float64)
        assert torch.allclose(world.rates(), asked, atol=1e-12)
        require_rates(world, world.sample(N))

    @pytest.mark.slow
    def test_rates_of_a_deep_exclusive_forest(self):
        world = forest()
        sample = world.sample(N)
        require_rates(world, sample)
        require_hierarchy(world, sample)

    @pytest.mark.slow
    def test_rates_with_correlations(self):
        world = forest(rank=3)
        free = (world.parent < 0).nonzero().flatten()
        assert torch.allclose(world.rates()[free], world.probability[free], rtol=1e-3)
        sample = world.sample(N)
        require_rates(world, sample, law_error=1e-3)
        require_hierarchy(world, sample)

    @pytest.mark.slow
    def test_rates_of_the_benchmark(self):
        world = synthetic.synth_sae_bench(features=128, d_in=32, roots=8)
        sample = world.sample(N)
        require_rates(world, sample, law_error=1e-3)
        require_hierarchy(world, sample)

    def test_rates_by_enumeration(self):
        """Every outcome of drawing five features, with its probability, by brute force."""
        p = [0.7, 0.5, 0.3, 0.9, 0.4]
        parent, group = [-1, 0, 0, 0, 2], [-1, 1, 1, 1, -1]
        expected = np.zeros(5)
        for drawn in itertools.product((0, 1), repeat=5):
            chance = math.prod(q if d else 1 - q for q, d in zip(p, drawn, strict=True))
            rivals = [i for i in (1, 2, 3) if drawn[i] and drawn[0]]
            for winner in rivals or [None]:
                fires = {0} if drawn[0] else set()
                fires |= {winner} - {None}
                fires |= {4} if drawn[4] and winner == 2 else set()
                expected[list(fires)] += chance / max(len(rivals), 1)
        world = World(
            "five", torch.eye(5), torch.tensor(p), parent=torch.tensor(parent), group=torch.tensor(group)
        )
        np.testing.assert_allclose(world.rates(), expected, atol=1e-7)

    def test_hierarchy_and_groups_hold_on_every_sample(self):
        world = forest(rank=2)
        fires = world.sample(20_000).features.dense() > 0
        child = (world.parent >= 0).nonzero().flatten()
        assert not (fires[:, child] & ~fires[:, world.parent[child]]).any()
        for group in world.group.unique()[1:]:
            assert fires[:, world.group == group].sum(1).max() == 1

    def test_one_of_a_group_stays_at_random(self):
        world = World("three", torch.eye(3), torch.ones(3), group=torch.zeros(3, dtype=torch.long))
        assert stats.chisquare(counts(world.sample(N))).pvalue > 1e-6

    def test_correlations_are_the_copulas(self):
        """Pairs fire together as the bivariate normal distribution has it."""
        generator = torch.Generator().manual_seed(1)
        factor = 0.7 * torch.nn.functional.normalize(torch.randn(6, 2, generator=generator), dim=1)
        p = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.02])
        world = World("six", torch.eye(6), p, factor=factor)
        fires = (world.sample(N).features.dense() > 0).double()
        together = fires.T @ fires / N
        loadings = world.factor.double() @ world.factor.double().T
        for i, j in itertools.combinations(range(6), 2):
            cut = -stats.norm.ppf([p[i], p[j]])
            covariance = [[1, float(loadings[i, j])], [float(loadings[i, j]), 1]]
            expected = stats.multivariate_normal(cov=covariance).cdf(-cut)
            assert abs(together[i, j] - expected) <= SIGMAS * math.sqrt(expected / N) + 1e-6, (i, j)

    @pytest.mark.parametrize("noise", ["normal", "uniform"])
    def test_magnitudes_are_those_asked_for(self, noise):
        """Mean and standard deviation of what fires, against the rectified distribution by quadrature."""
        mean, deviation = torch.tensor([5.0, 0.5, 1.0]), torch.tensor([0.3, 1.0, 0.0])
        world = World(
            "three", torch.eye(3), torch.full((3,), 0.3), mean=mean, deviation=deviation, noise=noise
        )
        sample = world.sample(N)
        require_rates(world, sample)
        unit = stats.norm() if noise == "normal" else stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))
        for i in range(3):
            values = sample.features.values[sample.features.indices == i].double()
            z = unit.ppf((np.arange(200_000) + 0.5) / 200_000)
            law = float(mean[i]) + float(deviation[i]) * z
            law = law[law > 0]
            assert (
                abs(float(values.mean()) - law.mean()) <= SIGMAS * law.std() / math.sqrt(len(values)) + 1e-5
            )
            fourth = ((law - law.mean()) ** 4).mean() - law.var() ** 2
            assert (
                abs(float(values.var()) - law.var())
                <= SIGMAS * math.sqrt(max(fourth, 0) / len(values)) + 1e-4
            )

    def test_children_are_scaled_by_their_parent(self):
        settings = {"mean": torch.tensor([2.0, 3.0]), "deviation": torch.tensor([0.5, 0.0])}
        parent = torch.tensor([-1, 0])
        world = World("two", torch.eye(2), torch.ones(2), parent=parent, scale_by_parent=True, **settings)
        dense = world.sample(1000).features.dense()
        torch.testing.assert_close(dense[:, 1], 3 * dense[:, 0] / 2)

    def test_activations_are_the_sum_of_what_fires(self):
        world = replace(forest(rank=2), bias=torch.arange(16.0))
        sample = world.sample(3000)
        expected = sample.features.dense().double() @ world.directions.double() + torch.arange(16.0)
        torch.testing.assert_close(sample.x.double(), expected, atol=1e-5, rtol=1e-5)

    def test_draws_that_give_rates(self):
        parent, group = torch.tensor([-1, 0, 0, 0]), torch.tensor([-1, 0, 0, 0])
        rates = torch.tensor([0.5, 0.2, 0.15, 0.05], dtype=torch.float64)
        drawn = draw_probabilities(rates, parent, group)
        world = World("four", torch.eye(4), drawn, parent=parent, group=group)
        assert torch.allclose(world.rates(), rates, atol=1e-9)
        with pytest.raises(ValueError, match=r"Feature \d shall fire on"):
            draw_probabilities(torch.tensor([0.5, 0.3, 0.3, 0.1]), parent, group)


class TestSameBits:
    @pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS)
    def test_however_it_is_read(self, make):
        small = (
            {"features": 300, "d_in": 24, "roots": 8, "steps": 5} if make is synthetic.synth_sae_bench else {}
        )
        world, again = make(**small), make(**small)
        assert world.content_hash == again.content_hash
        n = 2 * BLOCK + 100
        whole = world.sample(n)
        parts = [
            again.sample(size, start=start) for start, size in ((BLOCK - 7, 50), (0, 10), (2 * BLOCK, 100))
        ]
        for part, start in zip(parts, (BLOCK - 7, 0, 2 * BLOCK), strict=True):
            same = whole[start : start + len(part)]
            assert torch.equal(part.x, same.x)
            assert torch.equal(part.features.dense(), same.features.dense())
        positions = torch.tensor([2 * BLOCK + 3, 5, 5, BLOCK])
        assert torch.equal(again.read(positions), whole.x[positions])

    def test_batches_do_not_depend_on_where_training_resumes(self):
        world = synthetic.nabeshima_tree()
        batches = list(itertools.islice(world.shuffled(300, seed=3), 9))
        for start in (0, 4, 8):
            assert torch.equal(next(world.shuffled(300, seed=3, start_step=start)), batches[start])
        assert not torch.equal(next(world.shuffled(300, seed=4)), batches[0])
        assert not torch.equal(world.sample(300).x, batches[0])

    def test_two_worlds_never_share_directions(self):
        """At d_in 50, no two of 2,000 pairs of random directions have a cosine near 1."""
        worlds = [
            make(d_in=50, seed=seed)
            for make in (synthetic.nabeshima_tree, synthetic.hedging_tree, synthetic.shapes_and_colours)
            for seed in (0, 1)
        ]
        worlds.append(synthetic.synth_sae_bench(features=40, d_in=50, roots=4, steps=0, seed=0))
        for a, b in itertools.combinations(worlds, 2):
            assert (a.directions @ b.directions.T).abs().max() < 0.75, (a, b)
            assert a.content_hash != b.content_hash


class TestPresets:
    def test_each_says_what_it_can_be_compared_with(self):
        for name, make in PRESETS.items():
            small = {"features": 40, "d_in": 8, "roots": 4, "steps": 0} if name == "synth_sae_bench" else {}
            assert "Not comparable:" in make(**small).comparable, name

    def test_pentagons(self):
        world = synthetic.toy_superposition(planes=2)
        cosines = world.directions @ world.directions.T
        expected = torch.zeros(10, 10)
        for i, j in itertools.product(range(5), repeat=2):
            expected[i, j] = expected[5 + i, 5 + j] = math.cos(2 * math.pi * (i - j) / 5)
        torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
        values = world.sample(50_000).features.values
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-4

    def test_hedging_tree(self):
        rates = torch.tensor([0.25, 0.0375, 0.0375, 0.0375], dtype=torch.float64)
        assert torch.allclose(synthetic.hedging_tree().rates(), rates)

    def test_shapes_and_colours(self):
        world = synthetic.shapes_and_colours(shapes=3, colours=4)
        assert (world.sample(5000).features.counts == 1).all()
        both = world.directions @ world.atoms.T
        assert ((both > 0.7).sum(1) == 2).all()
        assert both.where(both > 0.7, torch.tensor(0.5**0.5)).allclose(torch.tensor(0.5**0.5))

    def test_several_trees_with_another_rate_of_children(self):
        world = synthetic.hedging_tree(trees=3, child=0.4)
        assert torch.allclose(world.rates(), torch.tensor([0.25, 0.1, 0.1, 0.1] * 3, dtype=torch.float64))
        assert world.parent.tolist() == [-1, 0, 0, 0, -1, 4, 4, 4, -1, 8, 8, 8]
        default = synthetic.hedging_tree(trees=1, child=0.15)
        assert default.content_hash == synthetic.hedging_tree().content_hash

    def test_independent_objects_and_atoms_alone(self):
        world = synthetic.shapes_and_colours(shapes=2, colours=3, objects=1.5, alone=0.2)
        sample = world.sample(N)
        require_rates(world, sample)
        expected = torch.tensor([1.2 / 6] * 6 + [0.3 / 5] * 5, dtype=torch.float64)
        assert torch.allclose(world.rates(), expected, atol=1e-6)
        assert float(sample.features.counts.double().mean()) == pytest.approx(1.5, abs=0.01)
        assert torch.equal(world.directions[6:], world.atoms)
        assert world.labels[6:] == world.atom_labels
        with pytest.raises(ValueError, match="give objects per sample"):
            synthetic.shapes_and_colours(alone=0.2)

    def test_one_object_per_sample_does_not_tell_atoms(self):
        """Moving all shapes by a direction, and all colours back, gives the same composites."""
        world = synthetic.shapes_and_colours()
        moved = 0.5 * world.directions[0]
        atoms = world.atoms + torch.cat([moved.expand(3, -1), -moved.expand(3, -1)])
        composites = (atoms[:3, None] + atoms[None, 3:]).flatten(0, 1) / math.sqrt(2)
        torch.testing.assert_close(composites, world.directions, atol=1e-6, rtol=0)
        assert saekit.measure_recovery(atoms, world.atoms).mcc < 0.95

    def test_synth_sae_bench_has_the_recipes_constants(self):
        """Written out from the recipe, one feature at a time."""
        n = 700
        world = synthetic.synth_sae_bench(features=n, d_in=32, steps=0)
        base = [1 / math.sqrt(i) for i in range(1, n + 1)]
        base = [5e-4 + (0.4 - 5e-4) * (b - base[-1]) / (base[0] - base[-1]) for b in base]
        parent = [-1] * 128 + [i // 4 for i in range(512)] + [128 + i // 4 for i in range(60)]
        assert world.parent.tolist() == parent
        for i in (0, 127, 128, 131, 639, 640, 699):
            expected = base[i]
            if parent[i] >= 0:
                above = base[parent[i]]
                others = sum(base[j] for j in range(n) if parent[j] == parent[i] and j != i)
                expected = min(1.0, base[i] / above * (1 + others / above))
            assert float(world.probability[i]) == pytest.approx(expected)
        assert world.mean[[0, n - 1]].tolist() == [5.0, 4.0]
        assert float(world.bias.norm()) == pytest.approx(0.5)
        assert float(world.factor.std()) == pytest.approx(0.1, rel=0.03)
        assert world.factor.shape == (n, 25)
        assert world.scale_by_parent

    def test_orthogonalisation_is_adam_on_all_pairs(self):
        """Against autograd on the loss as it is written, in float64."""
        rows = torch.nn.functional.normalize(
            torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1
        )
        slow = rows.double().clone().requires_grad_()
        adam = torch.optim.Adam([slow], lr=3e-3)
        for _ in range(20):
            adam.zero_grad()
            gram = slow @ slow.T
            off = gram - torch.diag(gram.diagonal())
            (off.square().sum() + 30 * (gram.diagonal() - 1).square().sum()).backward()
            adam.step()
        fast = synthetic.orthogonalise(rows, steps=20, lr=3e-3)
        expected = torch.nn.functional.normalize(slow.detach(), dim=1)
        torch.testing.assert_close(fast.double(), expected, atol=1e-4, rtol=0)
        assert (fast @ fast.T).square().sum() < (rows @ rows.T).square().sum()


class TestAsASource:
    @pytest.mark.slow
    def test_training_finds_the_features_and_analyses_run(self):
        world = synthetic.hedging_tree()
        saes = [
            saekit.train(
                saekit.TrainingConfig(saekit.BatchTopK(k=1), width=w, steps=300, batch_size=256, seed=s),
                world,
                held_out=world,
                progress=False,
            ).dictionary
            for w, s in ((2, 0), (6, 0), (6, 1))
        ]
        x = world.sample(2000).x
        assert saekit.evaluate(saes[1], x).fvu < 0.3
        assert saekit.insertion(saes[0], saes[1], x).n_tokens == 2000
        assert saekit.match_latents(saes[1], saes[2]).summary["mean_matched_cosine"] > 0
        assert saes[0].hook_point == world.manifest["hook_point"]

    def test_another_world_is_refused(self):
        a, b = synthetic.hedging_tree(seed=0), synthetic.hedging_tree(seed=1)
        config = saekit.TrainingConfig(saekit.BatchTopK(k=1), width=4, steps=2, batch_size=64)
        with pytest.raises(ValueError, match="hook point"):
            saekit.train(config, a, held_out=b, progress=False)
        saes = [saekit.train(config, world, progress=False).dictionary for world in (a, b)]
        with pytest.raises(MismatchError, match="hedging_tree"):
            saekit.insertion(*saes, a.sample(10).x)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"probability": torch.tensor([0.5, 1.5])}, "from 0 to 1"),
            ({"probability": torch.tensor([0.5])}, "probability must be of shape"),
            ({"directions": 2 * torch.eye(2)}, "unit norm"),
            ({"parent": torch.tensor([1, -1])}, "come before it"),
            ({"parent": torch.tensor([-1, 0]), "group": torch.tensor([0, 0])}, "share their parent"),
            ({"factor": torch.ones(2, 1)}, "norm under 1"),
            ({"noise": "cauchy"}, "noise"),
            ({"bias": torch.zeros(3)}, "bias must be of shape"),
        ],
    )
    def test_what_makes_no_world(self, change, found):
        world = World("two", torch.eye(2), torch.tensor([0.5, 0.5]))
        with pytest.raises(ValueError, match=found):
            replace(world, **change)


@pytest.mark.parametrize("method", synthetic.CLASSICS)
def test_classic_methods_find_what_they_should(method):
    """Two independent features in a plane at 60 degrees: PCA cannot find them, the others do."""
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]])
    deviation = torch.full((2,), 0.3)
    world = World("two", rows, torch.full((2,), 0.1), deviation=deviation)
    found = classic_directions(world.sample(1000).x, 2, method, penalty=0.05)
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    mcc = saekit.measure_recovery(found, world.directions).mcc
    assert (mcc < 0.95) if method == "pca" else (mcc > 0.97), mcc
    assert torch.equal(found, classic_directions(world.sample(1000).x, 2, method, penalty=0.05))


def test_classic_methods_refuse_more_directions_than_there_are():
    with pytest.raises(ValueError, match="at most 3"):
        classic_directions(torch.randn(10, 3), 4, "fastica")
