"""Panels of clusters show their points."""

from functools import cache

import numpy as np
import torch
from plot_checks import check_bundle, check_texts
from toy_stores import in_memory

from saekit import plots
from saekit.analysis.irreducibility.measure import measure_irreducibility
from saekit.analysis.irreducibility.panels import show_clusters
from saekit.analysis.irreducibility.words import measure_circular_order
from saekit.analysis.latents import collect
from saekit.dictionary import Dictionary
from saekit.figures import render

VOCABULARY = [" Monday", " $5", "\n", " a&b", " the", " of", " an unusually long token", " Friday", " x"]


@cache
def panels():
    """Four clusters of latents that read known tokens."""
    generator = torch.Generator().manual_seed(0)
    n = len(VOCABULARY)
    rows = torch.nn.functional.normalize(torch.eye(n) + 0.1, dim=1)
    info = {"kind": "relu", "hook_point": "toy"}
    dictionary = Dictionary(rows.T, torch.zeros(n), rows, torch.zeros(n), torch.full((n,), 0.5), info=info)
    tokens = torch.randint(n, (40, 32), generator=generator)
    x = torch.eye(n)[tokens.flatten()] + 0.3 * torch.randn(tokens.numel(), n, generator=generator)
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    documents = [{"source": "toy", "title": "toy"}]
    store = in_memory(
        x.view(40, 32, n), tokens=tokens, special=nowhere, excluded=nowhere, documents=documents
    )
    activations = collect(dictionary, store)
    clusters = {0: range(n), 1: [0, 1, 2], 2: [3, 4, 5], "named": [6, 7, 8]}
    result = measure_irreducibility(dictionary, activations, clusters, permutations=1)
    return show_clusters(result, dictionary, activations, store, VOCABULARY, max_points=200)


def test_figures_are_whole_readable_and_the_same_every_time(tmp_path):
    plot = panels().plot()
    check_texts(plot.figure)
    check_bundle(plot, "panels", tmp_path)
    assert render(plot.figure, "svg") == render(panels().plot().figure, "svg")


def test_every_point_is_drawn_once():
    plot = panels().plot()
    for axes, row in zip(plot.figure.axes, panels().scores.itertuples(), strict=False):
        part = plot.data[plot.data["cluster"] == row.cluster]
        drawn = np.concatenate([points.get_offsets() for points in axes.collections])
        found, expected = (points[np.lexsort(points.T)] for points in (drawn, part[["x", "y"]].to_numpy()))
        np.testing.assert_allclose(found, expected)
    assert plot.caption.startswith("Joint reconstructions of clusters of ReLU 9 latents.")


def circles():
    """A week around a circle, and another one in disorder."""
    week = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    turn = 2 * np.pi * torch.arange(7) / 7
    points = torch.stack([turn.cos(), turn.sin()], 1)
    places = {"in order": range(7), "in disorder": [0, 3, 5, 1, 6, 2, 4]}
    return {name: measure_circular_order(points, each, week, permutations=9) for name, each in places.items()}


def test_words_are_where_their_means_are(tmp_path):
    plot = plots.word_circles(circles())
    check_texts(plot.figure)
    check_bundle(plot, "word_circles", tmp_path)
    for axes, found in zip(plot.figure.axes, circles().values(), strict=True):
        x, y = axes.get_lines()[0].get_data()
        np.testing.assert_allclose(x[:-1], found.frame["x"])
        np.testing.assert_allclose(y[:-1], found.frame["y"])
    assert circles()["in order"].plot().caption.startswith("Words around a circle.")
