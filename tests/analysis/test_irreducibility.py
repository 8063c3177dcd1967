"""Irreducibility against brute force, and on points and dictionaries whose shape is known."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from dictionaries import make
from toy_stores import in_memory

from saekit.activations import random_stream
from saekit.analysis.irreducibility.clusters import cluster_latents, shuffled_clusters
from saekit.analysis.irreducibility.measure import cluster_points, measure_irreducibility
from saekit.analysis.irreducibility.panels import show_clusters
from saekit.analysis.irreducibility.scores import plane_scores, score_planes
from saekit.analysis.irreducibility.search import principal_components, separability
from saekit.analysis.irreducibility.words import latents_about, measure_circular_order, word_tokens
from saekit.analysis.labels import label_latents
from saekit.analysis.latents import collect
from saekit.dictionary import Dictionary

N = 1000
SEEDS = range(10)


class Draw:
    """Points of known shapes."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def noise(self, *shape):
        return 0.05 * torch.randn(*shape, generator=self.generator)

    def circle(self):
        turn = 2 * math.pi * self.uniform(N)
        return torch.stack([turn.cos(), turn.sin()], 1) + self.noise(N, 2)

    def torus(self):
        """Two circles in four dimensions, the first a little larger."""
        turns = 2 * math.pi * self.uniform(N, 2)
        return torch.stack([turns.cos(), turns.sin()], 2).mul(torch.tensor([1.2, 1.0])[:, None]).flatten(
            1
        ) + self.noise(N, 4)

    def independent_lines(self):
        return self.uniform(N, 2) * torch.tensor([1.0, 0.7])

    def sparse_lines(self):
        return self.uniform(N, 2) * (self.uniform(N, 2) < 0.4) * torch.tensor([1.0, 0.7])

    def gaussian(self):
        return 20 * self.noise(N, 2)

    def mixture(self):
        """Two lines that exclude each other."""
        first = self.uniform(N) < 0.5
        return torch.stack([first, ~first], 1) * (0.5 + self.uniform(N, 1)) + 0.2 * self.noise(N, 2)


def turned(points, seed):
    """The same points in a random position in twelve dimensions."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(12, points.shape[1], generator=generator)).Q
    return 3 * points @ axes.T + torch.randn(12, generator=generator)


@pytest.mark.parametrize("seed", SEEDS)
def test_circle_and_torus_score_high_and_lines_and_a_mixture_low(seed):
    def scored(name):
        return plane_scores(turned(getattr(Draw(seed), name)(), seed), permutations=1, seed=seed)

    circle, torus = scored("circle"), scored("torus")
    assert len(circle) == 1
    assert len(torus) == 3
    assert circle["score"].item() > 0.85
    assert (torus["score"].iloc[[0, 2]] > 0.4).all()  # between its two circles the middle plane is reducible
    assert torus["score"].max() > 0.6
    for name in ("independent_lines", "sparse_lines", "gaussian"):
        assert scored(name)["score"].item() < 0.1
    assert scored("sparse_lines")["mixture"].item() > 0.5
    mixture = scored("mixture")
    assert mixture["mixture"].item() > 0.45  # one of the two lines
    assert mixture["score"].item() < 0.6 * circle["score"].item()


def test_the_null_tells_dependence_from_bias():
    """With few points mutual information is high without any dependence; the p-value knows."""
    few = plane_scores(Draw(0).independent_lines()[:60], permutations=99)
    assert few["separability"].item() > 0.2
    assert few["separability"].item() == pytest.approx(few["separability_null"].item(), rel=0.3)
    assert few["p_value"].item() > 0.05
    p_values = [plane_scores(Draw(s).gaussian()[:300], permutations=19)["p_value"].item() for s in SEEDS]
    assert np.mean(p_values) > 0.2
    assert plane_scores(Draw(0).circle()[:60], permutations=99)["p_value"].item() == 0.01


QUARTER = np.arange(100) * (math.pi / 200)


def numpy_information(plane, angle):
    """Mutual information in bits of the two coordinates of a plane that is turned by an angle."""
    x, y = plane.numpy().T
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    joint = np.histogram2d(u, v, bins=10)[0] / len(u)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return (joint[some] * np.log2(joint[some] / independent[some])).sum()


def test_separability_is_the_least_mutual_information_of_numpy_histograms():
    plane = principal_components(Draw(3).circle().double() * torch.tensor([1.0, 0.6]))
    expected = [numpy_information(plane, angle) for angle in QUARTER]
    found, angle = separability(plane)
    assert found == pytest.approx(min(expected), abs=1e-9)
    assert angle == pytest.approx(np.argmin(expected) * math.pi / 200)
    assert np.ptp(expected) > 0.02


@pytest.mark.parametrize("shape", ["circle", "mixture", "sparse_lines", "gaussian"])
def test_the_band_is_at_least_as_full_as_the_fullest_of_a_grid(shape):
    """Over all directions and offsets, in the definition's own terms, without whitening."""
    points = principal_components(getattr(Draw(5), shape)().double())
    found = plane_scores(points, permutations=1)["mixture"].item()
    best = 0.0
    for angle in np.linspace(0, math.pi, 90, endpoint=False):
        along = points @ torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        offsets = torch.linspace(-1.2, 1.2, 241) * along.abs().max()
        shifted = along[:, None] + offsets
        z = shifted / shifted.square().mean(0).sqrt()
        best = max(best, float((z.abs() < 0.1).double().mean(0).max()))
    assert found > best - 0.02
    assert found < best + 0.04  # the grid is coarse


def test_scores_do_not_depend_on_scale_position_or_the_order_of_points():
    points = Draw(1).circle()
    first = plane_scores(points, permutations=3)
    again = plane_scores(1000 * points + 7, permutations=3)
    backwards = plane_scores(points.flip(0), permutations=3)
    for other in (again, backwards):
        for name in ("separability", "mixture"):
            assert other[name].item() == pytest.approx(first[name].item(), abs=0.01)
    assert plane_scores(points, permutations=3).equals(first)


# ---------------------------------------------------------------------- clusters

WEEK = [" Monday", " Tuesday", " Wednesday", " Thursday", " Friday", " Saturday", " Sunday"]
VOCABULARY = [*WEEK, " king", " queen", " the", " SUNDAY"]
D_IN = 8


@cache
def world():
    """Seven latents around a circle, one for each day, and two independent ones; some tokens fire none."""
    generator = torch.Generator().manual_seed(0)
    turn = 2 * math.pi * torch.arange(7) / 7
    rows = torch.zeros(9, D_IN)
    rows[:7, 0], rows[:7, 1], rows[:7, 2] = turn.cos(), turn.sin(), 2.0
    rows[7, 3] = rows[8, 4] = 1.0
    rows = torch.nn.functional.normalize(rows, dim=1)
    threshold = torch.full((9,), 0.99)
    info = {"hook_point": "toy"}
    dictionary = Dictionary(
        rows.T.contiguous(), torch.zeros(9), rows, torch.zeros(D_IN), threshold, info=info
    )
    tokens = torch.randint(10, (60, 32), generator=generator)
    tokens[tokens == 6] = torch.where(torch.rand((tokens == 6).sum(), generator=generator) < 0.3, 10, 6)
    directions = torch.cat([rows, torch.zeros(1, D_IN), rows[6:7]])
    x = directions[tokens.flatten()] * (1 + 0.05 * torch.rand(tokens.numel(), 1, generator=generator))
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    store = in_memory(
        x.view(60, 32, D_IN),
        tokens=tokens,
        special=nowhere,
        excluded=nowhere,
        documents=[{"source": "toy", "title": "toy"}],
    )
    return dictionary, collect(dictionary, store), store


def test_the_days_are_one_component_of_the_graph():
    dictionary, _, _ = world()
    clusters = cluster_latents(dictionary, method="graph")
    assert clusters.labels.tolist() == [0] * 7 + [-1, -1]
    rows = dictionary.W_dec[:7].double()
    pairs = [float(rows[i] @ rows[j]) for i in range(7) for j in range(i)]
    assert clusters.mean_cosine.tolist() == pytest.approx([np.mean(pairs)])
    assert clusters.summary["n_alone"] == 2


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_similar_directions_are_spectral_clusters(seed):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(4, (50,), generator=generator)
    rows = torch.eye(D_IN)[group] + 0.2 * torch.randn(50, D_IN, generator=generator)
    dictionary = Dictionary.from_weights(rows, rows, d_in=D_IN)
    clusters = cluster_latents(dictionary, n_clusters=4, seed=seed)
    for cluster in range(4):
        assert len(group[clusters.members(cluster)].unique()) == 1
    sizes = clusters.frame["n_latents"].tolist()
    assert sizes == sorted(torch.bincount(group).tolist(), reverse=True)
    assert cluster_latents(dictionary, n_clusters=4, seed=seed).labels.equal(clusters.labels)


def test_the_graph_joins_two_nearest_ones_in_either_direction():
    dictionary = make(width=60, d_in=6)
    theta = 0.6
    cosine = torch.nn.functional.normalize(dictionary.W_dec.double(), dim=1)
    cosine = (cosine @ cosine.T).fill_diagonal_(-2)
    joined = torch.eye(60, dtype=torch.bool)
    for latent in range(60):
        for other in cosine[latent].topk(2).indices.tolist():
            if cosine[latent, other] > theta:
                joined[latent, other] = joined[other, latent] = True
    reach = torch.linalg.matrix_power(joined.double(), 60) > 0
    labels = cluster_latents(dictionary, method="graph", theta=theta).labels
    for latent in range(60):
        expected = reach[latent].nonzero()[:, 0].tolist()
        found = (labels == labels[latent]).nonzero()[:, 0].tolist() if labels[latent] >= 0 else [latent]
        assert found == expected


def test_clusters_drawn_at_random_keep_their_sizes():
    dictionary = make(width=60, d_in=6)
    clusters = cluster_latents(dictionary, n_clusters=6)
    shuffled = shuffled_clusters(clusters, dictionary, seed=1)
    assert shuffled.frame["n_latents"].tolist() == clusters.frame["n_latents"].tolist()
    assert not shuffled.labels.equal(clusters.labels)
    assert clusters.mean_cosine.mean() > shuffled.mean_cosine.mean() + 0.2


def test_points_are_sums_of_activations_times_decoder_rows():
    dictionary, activations, store = world()
    latents = [7, 0, 8, 3]
    positions, points = cluster_points(dictionary, activations, latents)
    dense = dictionary.encode(store.read(slice(None)))[:, latents]
    assert positions.tolist() == (dense > 0).any(1).nonzero()[:, 0].tolist()
    expected = (dense[positions] @ dictionary.W_dec[latents]).double()
    assert torch.allclose(points @ points.T, expected @ expected.T, atol=1e-5)


def test_a_cluster_that_is_a_circle_comes_first():
    dictionary, activations, _ = world()
    clusters = {"week": range(7), "pair": [7, 8], "one": [3], "nothing": []}
    result = measure_irreducibility(dictionary, activations, clusters, min_tokens=50, permutations=9)
    assert result.frame["cluster"].tolist() == ["week", "pair"]
    assert result.n_left_out == 2
    week, pair = result.frame.itertuples()
    assert result.planes.set_index(["cluster", "plane"]).at[("week", 0), "score"] > 1
    assert week.score > 0.6 > pair.score
    assert week.p_value == 0.1
    assert week.share_single == 1.0
    assert week.best_plane == 0  # the radii vary less
    assert week.n_tokens == int((collect_days() > 0).sum())
    planes = result.planes[result.planes["cluster"] == "week"]
    assert week.score == pytest.approx(planes["score"].mean())
    sample = measure_irreducibility(
        dictionary, activations, clusters, min_tokens=50, max_tokens=100, permutations=2
    )
    assert sample.frame["n_tokens"].equals(result.frame["n_tokens"])
    assert sample.frame["score"].iloc[0] > 0.6


def test_a_sample_is_scored_in_the_components_of_all_points():
    """In those of the sample, planes would be others than the ones that the panels show."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(800, 6, generator=generator, dtype=torch.float64)  # no direction stands out
    sample = torch.randperm(800, generator=generator)[:60]
    table, null = score_planes(points, 4, 0.1, 3, 0, sample=sample)
    centred = points - points.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :4]
    coordinates = centred @ axes
    assert table["plane"].tolist() == [0, 1, 2]
    for i in range(3):
        plane = coordinates[:, i : i + 2]
        expected = float(plane.square().sum() / centred.square().sum())
        assert table.at[i, "explained"] == pytest.approx(expected)
        least = min(numpy_information(plane[sample], angle) for angle in QUARTER)
        assert table.at[i, "separability"] == pytest.approx(least, abs=1e-6)
    assert null.dtype == torch.float64  # compared with separability, which ties with it in a coarse histogram
    own = plane_scores(points[sample], components=4, permutations=3)["separability"]
    assert (own - table["separability"]).abs().max() > 0.05


def test_planes_in_which_the_sample_lies_on_a_line_are_left_out():
    """The second latent fires on three tokens, none of which is drawn."""
    points = torch.zeros(300, 2, dtype=torch.float64)
    points[:297, 0], points[297:, 1] = torch.linspace(1, 2, 297), 1.0
    table, null = score_planes(points, 2, 0.1, 3, 0, sample=torch.arange(50))
    assert len(table) == len(null) == 0
    assert len(score_planes(points, 2, 0.1, 3, 0)[0]) == 1


def test_all_scores_rest_on_as_many_points_if_the_bounds_are_equal():
    """The best plane of the scores is the one that the panels show, whatever the sample."""
    dictionary, activations, _ = world()
    result = measure_irreducibility(
        dictionary, activations, {"week": range(7), "pair": [7, 8]}, min_tokens=100, max_tokens=100
    )
    for name, latents in result.latents.items():
        points = cluster_points(dictionary, activations, latents)[1]
        place = list(result.latents).index(name)
        drawn = torch.randperm(len(points), generator=random_stream(0, place))[:100]
        table = result.planes[result.planes["cluster"] == name].set_index("plane")
        plane = int(result.frame.set_index("cluster").at[name, "best_plane"])
        shown = principal_components(points)[drawn, plane : plane + 2]
        least = min(numpy_information(shown, angle) for angle in QUARTER)
        assert table.at[plane, "separability"] == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("method", ["spectral", "graph"])
def test_the_smallest_dictionaries_have_clusters(width, method):
    clusters = cluster_latents(make(width=width, d_in=6), method=method, n_clusters=width)
    assert len(clusters.labels) == width
    assert clusters.summary["n_clusters"] == (width if method == "spectral" else len(clusters))


def collect_days():
    """Positions of a day, brute force."""
    tokens = world()[2].tokens
    return (tokens < 7) | (tokens == 10)


def test_panels_show_the_tokens_of_the_points():
    dictionary, activations, store = world()
    result = measure_irreducibility(
        dictionary, activations, {"week": range(7), "pair": [7, 8]}, permutations=2
    )
    panels = show_clusters(result, dictionary, activations, store, VOCABULARY, max_points=300)
    assert panels.scores["cluster"].tolist() == ["week", "pair"]
    week = panels.frame[panels.frame["cluster"] == "week"]
    assert len(week) == 300
    tokens = store.tokens.flatten()
    assert [VOCABULARY[tokens[p]] for p in week["position"]] == week["token"].tolist()
    assert set(week["token"]) <= {*WEEK, " SUNDAY"}
    means = week.groupby("token")[["x", "y"]].mean()
    # Day rows have length 1 with a circle of radius 1 / sqrt(5), and activations are 1.025 on average.
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1.025 / math.sqrt(5), atol=0.03)
    only = show_clusters(result, dictionary, activations, store, VOCABULARY, clusters=["pair"])
    assert only.scores["cluster"].tolist() == ["pair"]


def test_latents_about_words_are_those_that_fire_on_them():
    dictionary, activations, store = world()
    labels = label_latents(dictionary, activations, store, VOCABULARY)
    assert latents_about(labels, ["monday", "Sunday", "Yesterday"]).tolist() == [0, 6]
    assert latents_about(labels, ["yesterday"]).tolist() == []
    assert word_tokens(VOCABULARY, ["sunday", "the"]) == [(6, 0), (9, 1), (10, 0)]
    assert word_tokens(VOCABULARY, ["the", "The"]) == [(9, 0)]


def test_words_in_order_around_a_circle_are_told_from_words_in_another_order():
    dictionary, activations, store = world()
    positions, points = cluster_points(dictionary, activations, range(7))
    found = dict(word_tokens(VOCABULARY, [day.strip() for day in WEEK]))
    places = [found[int(token)] for token in store.tokens.flatten()[positions]]
    right = measure_circular_order(points, places, WEEK, permutations=199)
    assert right.order > 0.99
    assert right.p_value <= 0.02
    assert right.frame["n_points"].sum() == len(points)
    scrambled = np.array([0, 3, 5, 1, 6, 2, 4])[places]
    wrong = measure_circular_order(points, scrambled, WEEK, permutations=199)
    assert wrong.order < 0.8
    assert wrong.p_value > 0.1
    # Twice round is an order too, but another one.
    twice = measure_circular_order(points, (2 * np.array(places)) % 7, WEEK, permutations=199)
    assert twice.order < 0.5
    backwards = measure_circular_order(points, 6 - np.array(places), WEEK, permutations=199)
    assert backwards.order == pytest.approx(right.order)


def test_the_order_is_that_of_complex_numbers_and_rare_under_chance():
    generator = torch.Generator().manual_seed(0)
    points, places = torch.randn(12, 2, generator=generator), torch.arange(12)
    result = measure_circular_order(points, places, [str(i) for i in range(12)], permutations=99)
    z = torch.view_as_complex(principal_components(points.double()).contiguous()).numpy()
    phase = z / np.abs(z)
    expected = max(abs(np.mean(phase * np.exp(sign * 2j * np.pi * np.arange(12) / 12))) for sign in (1, -1))
    assert result.order == pytest.approx(expected)
    p_values = [
        measure_circular_order(
            torch.randn(12, 3, generator=generator), places, list(map(str, range(12))), permutations=49
        ).p_value
        for _ in range(20)
    ]
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.2)


def test_bad_input_gets_one_sentence():
    dictionary, activations, store = world()
    other = make(width=9, d_in=D_IN)
    circle = Draw(0).circle()
    with pytest.raises(ValueError, match="method must be one of"):
        cluster_latents(dictionary, method="kmeans")
    with pytest.raises(ValueError, match="n_clusters must be between 1 and 9"):
        cluster_latents(dictionary, n_clusters=10)
    clusters = cluster_latents(dictionary, method="graph")
    with pytest.raises(ValueError, match="cluster must be between"):
        clusters.members(5)
    with pytest.raises(ValueError, match="dictionary of the clusters was"):
        measure_irreducibility(other, collect(other, store), clusters)
    with pytest.raises(ValueError, match="dictionary of the activations was"):
        measure_irreducibility(other, activations, {"a": [1]})
    with pytest.raises(ValueError, match="no clusters to score"):
        measure_irreducibility(dictionary, activations, {})
    with pytest.raises(ValueError, match=r"None of 1 clusters is active on 200 tokens"):
        measure_irreducibility(dictionary, activations, {"one": [3]})
    for twice in (measure_irreducibility, lambda *given: cluster_points(*given[:2], given[2]["a"])):
        with pytest.raises(ValueError, match="must hold each latent once, found 3 twice"):
            twice(dictionary, activations, {"a": [3, 1, 3]})
    with pytest.raises(IndexError, match="latents must be between 0 and 8"):
        measure_irreducibility(dictionary, activations, {"a": [9]})
    result = measure_irreducibility(dictionary, activations, clusters, permutations=1)
    with pytest.raises(ValueError, match="cluster 'week' is not among"):
        show_clusters(result, dictionary, activations, store, VOCABULARY, clusters=["week"])
    with pytest.raises(ValueError, match="no clusters to show"):
        show_clusters(result, dictionary, activations, store, VOCABULARY, clusters=[])
    with pytest.raises(ValueError, match="vocabulary"):
        show_clusters(result, dictionary, activations, store, VOCABULARY[:4])
    with pytest.raises(ValueError, match="dictionary of the scores was"):
        show_clusters(result, other, activations, store, VOCABULARY)
    for wrong in (circle[:, 0], circle[:, :1], circle[:5]):
        with pytest.raises(ValueError, match=r"Points must be \[n, d\]"):
            plane_scores(wrong)
    with pytest.raises(ValueError, match="lie on a line"):
        plane_scores(circle[:, :1] * torch.ones(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        plane_scores(circle / 0)
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        plane_scores(circle, epsilon=0)
    with pytest.raises(TypeError, match="words must be a sequence of words"):
        word_tokens(VOCABULARY, "monday")
    with pytest.raises(ValueError, match="at least one word"):
        word_tokens(VOCABULARY, [])
    with pytest.raises(ValueError, match="at least 5 words, found 4"):
        measure_circular_order(circle[:8], [0, 1, 2, 3] * 2, WEEK)
    with pytest.raises(ValueError, match="places must give the place of a word"):
        measure_circular_order(circle[:7], [0, 1, 2, 3, 4, 5, 7], WEEK)
    spoilt = replace(dictionary)
    before = spoilt.W_dec[0, 0].item()
    spoilt.W_dec[0, 0] = float("nan")  # shared with the world
    try:
        with pytest.raises(ValueError, match="not finite"):
            cluster_latents(spoilt)
    finally:
        spoilt.W_dec[0, 0] = before
