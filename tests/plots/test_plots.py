"""Every plot shows its data: artists are compared with the CSV, and the CSV with the results."""

import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import StepPatch
from plot_checks import check_bundle, check_texts

import saekit.analysis
from saekit import plots
from saekit.analysis import group_insertion, insertion, splitting_tree
from saekit.analysis.similarity import family_similarity
from saekit.charts.paper import fit_text
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.figures import house_style, kind_style, render
from saekit.identity import Identity
from saekit.metrics import CEDegradation, Evaluation, evaluate
from saekit.plots.common import pair_name, pair_names, spread_labels
from saekit.results import Result
from saekit.training.trainer import TrainingResult

D_IN, WIDTHS, THETA = 16, (12, 24, 48), 0.7
LABEL = "a label that is far too long for the room there is, with $5 and $10 in it"


def dictionary(rows, kind, seed):
    """A dictionary whose encoder is its decoder, with a threshold that keeps a few latents active."""
    rows = rows / rows.norm(dim=1, keepdim=True)
    width = len(rows)
    info = {"kind": kind, "seed": seed, "hook_point": "blocks.0.hook_resid_post"}
    zero = torch.zeros(D_IN)
    threshold = torch.full((width,), 1.5)
    threshold[0] = 1e6  # a dead latent
    return Dictionary(rows.T.contiguous(), torch.zeros(width), rows, zero, threshold, info=info)


def descend(rows, width, generator):
    """Twice as many rows: near copies of the first ones, some of them split, and new ones."""
    parents = torch.cat([torch.arange(len(rows)), torch.tensor([0, 0, 1, 2])])
    near = rows[parents] + 0.15 * torch.rand(len(parents), 1, generator=generator) * torch.randn(
        len(parents), D_IN, generator=generator
    )
    return torch.cat([near, torch.randn(width - len(near), D_IN, generator=generator)])


@cache
def results():
    generator = torch.Generator().manual_seed(0)
    rows = {WIDTHS[0]: torch.nn.functional.normalize(torch.randn(WIDTHS[0], D_IN, generator=generator))}
    for small, large in pairwise(WIDTHS):
        rows[large] = torch.nn.functional.normalize(descend(rows[small], large, generator))
    family = Family(
        [dictionary(rows[width], "relu", 0) for width in WIDTHS]
        + [dictionary(rows[24] + 0.3 * torch.randn(24, D_IN, generator=generator), "relu", 1)]
    )
    other = [dictionary(rows[width], "batchtopk", 0) for width in (12, 24)]
    x = torch.randn(3000, D_IN, generator=generator)
    relu = insertion(family[12], family[24], x, theta=THETA)
    batchtopk = insertion(*other, x, theta=THETA)
    return SimpleNamespace(
        family=family,
        x=x,
        evaluations=[evaluate(member, x) for member in [*family, *other]],
        similarity=family_similarity(family, theta=THETA),
        tree=splitting_tree(family, theta=THETA),
        relu=relu,
        null=insertion(family.get(24, 0), family.get(24, 1), x, theta=THETA),
        groups=[
            group_insertion(family[12], family[24], relu, x),
            group_insertion(*other, batchtopk, x),
        ],
        batchtopk=batchtopk,
        other=other,
    )


def trained():
    steps = np.arange(0, 500, 100)
    members = [results().family[12], results().family[24], results().family.get(24, 1), results().other[1]]
    return [
        TrainingResult(
            member,
            pd.DataFrame(
                {"step": steps, "fvu": 0.2 + 1 / (n + 2 + steps), "l0": 40 - n - steps / 99, "loss": 1.0}
            ),
        )
        for n, member in enumerate(members)
    ]


def ce_degradation():
    dictionaries = tuple(e.dictionary for e in results().evaluations)
    names, changes = list(map(str, dictionaries)), np.linspace(0.4, 0.2, len(dictionaries))
    frame = pd.DataFrame({"dictionary": names, "ce_degradation": changes})
    return CEDegradation(
        dictionaries, frame, 3.0, 9.0, 8.0, 1000, 10, torch.zeros(len(frame), 1), torch.ones(1)
    )


def store():
    norms = np.random.default_rng(0).lognormal(5, 0.2, (50, 20))
    norms[:, 0] = 20_000.0
    norms[3, 4] = 0.0
    excluded = norms > 1500
    excluded[7, 7] = True
    counts = {"special": 1, "first": 50, "norm": 50, "total": 51, "positions": 1000}
    return SimpleNamespace(
        norms=torch.tensor(norms),
        excluded=torch.tensor(excluded),
        excluded_counts=counts,
        manifest={"exclusion": {"norm_limit": 1500.0}},
        hook_point="blocks.0.hook_resid_post",
    )


KINDS = ("relu", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")


def kinds_table():
    random = np.random.default_rng(0)
    grid = [(kind, width, target) for kind in KINDS for width in (24, 48) for target in (4, 8, 16)]
    table = pd.DataFrame(grid, columns=["kind", "width", "target_l0"])
    table["l0"] = table["target_l0"] * random.uniform(0.9, 1.1, len(table))
    table["fvu"] = 0.6 / table["target_l0"] ** 0.5 * random.uniform(0.8, 1.2, len(table))
    table["ce_degradation"] = 1.5 * table["fvu"]
    return table.assign(dead_fraction=0.0)


def active_latents():
    """Active latents of 5000 tokens of each kind; TopK has 8 for all but a few."""
    random = np.random.default_rng(0)
    counts = {kind: random.negative_binomial(2, 0.2, 5000) for kind in KINDS}
    counts["topk"] = np.minimum(8, random.poisson(30, 5000) // 2)
    return counts


def active_table():
    parts = []
    for kind, counts in active_latents().items():
        active, tokens = np.unique(counts, return_counts=True)
        parts.append(pd.DataFrame({"kind": kind, "width": 48, "active": active, "tokens": tokens}))
    return pd.concat(parts, ignore_index=True)


def convergence_table():
    steps = np.arange(2000, 30001, 2000)
    parts = [
        pd.DataFrame({"kind": kind, "width": width, "step": steps, "tokens": 512 * steps}).assign(
            fvu=0.2 + 0.1 * np.exp(-steps / rate),
            median_cosine=0.95 - 0.5 * np.exp(-steps / rate),
            **{"share_under_0.7": 0.1 + 0.6 * np.exp(-steps / rate)},
        )
        for kind, width, rate in (("relu", 24, 3000), ("relu", 48, 5000), ("batchtopk", 48, 8000))
    ]
    return pd.concat(parts, ignore_index=True)


def big_tree():
    """A tree of three widths with 24 leaves."""
    child = {"cosine": 0.8, "children": []}
    leaves = [{**child, "width": 48, "latent": i, "status": "leaf"} for i in range(21)]
    lost = [{**child, "width": 24, "latent": i, "status": "lost"} for i in (20, 21, 22)]
    inner = [
        {"width": 24, "latent": i, "cosine": 0.95, "status": "split", "children": leaves[3 * i : 3 * i + 3]}
        for i in range(7)
    ]
    root = {"width": 12, "latent": 3, "cosine": float("nan"), "status": "split"}
    root["children"] = [inner[0], lost[0], *inner[1:5], lost[1], *inner[5:], lost[2]]
    return SimpleNamespace(
        widths=WIDTHS, theta=THETA, pairs=results().tree.pairs, subtree=lambda width, latent: root
    )


LABELS = {(width, latent): LABEL for width in WIDTHS for latent in range(width)}
BUILD = {
    "activation_norms": lambda: plots.activation_norms(store()),
    "training_curves": lambda: plots.training_curves(trained(), target_l0=36),
    "frontier": lambda: plots.frontier(results().evaluations, ce_degradation()),
    "kinds_frontier": lambda: plots.kinds_frontier(kinds_table()),
    "active_histogram": lambda: plots.active_histogram(active_table()),
    "convergence": lambda: plots.convergence(convergence_table()),
    "density_histogram": lambda: plots.density_histogram(results().evaluations),
    "max_cosine_distribution": lambda: plots.max_cosine_distribution(results().similarity),
    "splitting_flow": lambda: plots.splitting_flow(results().tree),
    "splitting_tree_plot": lambda: plots.splitting_tree_plot(results().tree, 12, 0, LABELS),
    "big_tree": lambda: plots.splitting_tree_plot(big_tree(), 12, 3, LABELS),
    "insertion_scatter": lambda: plots.insertion_scatter(results().relu, results().null),
    "roc": lambda: plots.roc([results().relu, results().batchtopk], [results().null]),
    "group_insertion_bars": lambda: plots.group_insertion_bars(results().groups),
}
NAMES = list(BUILD)


@cache
def plot(name):
    return BUILD[name]()


def hashes(name, folder):
    plot(name).save(name, inputs={}, settings={"theta": THETA}, folder=folder)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


# ---------------------------------------------------------------------- all plots


@pytest.mark.parametrize("name", NAMES)
def test_bundle(name, tmp_path):
    check_bundle(plot(name), name, tmp_path)


def test_plots_of_a_family_record_the_dictionaries_that_they_show():
    family = results().family
    seeds = {member.content_hash for member in family}
    from_24 = {family[width].content_hash for width in (24, 48)}
    tree = plots.splitting_tree_plot(results().tree, 24, results().tree.most_split(1)["latent"].iat[0])
    for found, expected in ((plot("max_cosine_distribution"), seeds), (tree, from_24)):
        assert {entry["hash"] for entry in found.made_from.values()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_no_text_overlaps_or_leaves_the_figure(name):
    check_texts(plot(name).figure)


@pytest.mark.slow
def test_labels_that_are_too_long_lose_whole_words():
    label = "4371  mathematician · philosopher · physicist"
    assert fit_text(label, 5) == label
    assert fit_text(label, 1.6) == "4371  mathematician · philosopher …"
    assert fit_text(label, 1.1) == "4371  mathematician …"
    assert fit_text(label, 0.7).startswith("4371  math")
    assert fit_text(label, 0.7).endswith("…")
    assert fit_text("a text without words to spare", 0.7).endswith("…")
    assert fit_text("$5 · $6", 5) == r"\$5 · \$6"


def test_another_process_writes_the_same_bytes(tmp_path):
    names = ["splitting_tree_plot", "insertion_scatter", "max_cosine_distribution", "activation_norms"]
    here = {name: hashes(name, tmp_path / "here" / name) for name in names}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from plots import test_plots\n"
        "for name in sys.argv[3:]: test_plots.hashes(name, f'{sys.argv[2]}/{name}')"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(tmp_path / "there"), *names]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "5"}, timeout=200)
    for name in names:
        for suffix in ("pdf", "svg", "png", "csv"):
            path = tmp_path / "there" / name / f"{name}.{suffix}"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == here[name][path.name], path.name


# ---------------------------------------------------------------------- one by one


def curves(axes):
    return [line for line in axes.lines if len(line.get_xdata()) and line.get_linestyle() != "None"]


def test_training_curves_are_the_logs():
    found = plot("training_curves")
    for axes, column in zip(found.figure.axes, ("fvu", "l0"), strict=True):
        lines = [line for line in curves(axes) if len(line.get_xdata()) == 5]
        for line, result in zip(lines, trained(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), result.log["step"])
            np.testing.assert_array_equal(line.get_ydata(), result.log[column])
    labels = [line.get_label() for line in found.figure.axes[1].lines]
    assert labels == ["ReLU 12", "ReLU 24", "ReLU 24, seed 1", "BatchTopK 24", "target L0 36"]
    target = found.figure.axes[1].lines[-1]
    assert set(target.get_ydata()) == {36}
    assert len(found.data) == 4 * 5


def test_frontier_draws_every_dictionary_once():
    found = plot("frontier")
    columns = ("fvu", "ce_degradation", "l0")
    for axes, column in zip(found.figure.axes, columns, strict=True):
        drawn = [
            point for line in axes.lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)
        ]
        expected = list(zip(found.data["width"], found.data[column], strict=True))
        assert sorted(drawn) == sorted(expected)
        open_markers = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert sum(len(line.get_xdata()) for line in open_markers) == 1  # the second seed of width 24
    by_name = {str(e.dictionary): e.fvu for e in results().evaluations}
    assert dict(zip(found.data["dictionary"], found.data["fvu"], strict=True)) == by_name
    ends = by_name["relu 12 (seed 0)"], by_name["relu 48 (seed 0)"]
    assert f"ReLU {ends[0]:.3f} to {ends[1]:.3f}" in found.caption


def test_kinds_frontier_draws_the_table():
    found, table = plot("kinds_frontier"), kinds_table()
    pd.testing.assert_frame_equal(found.data, table.drop(columns="dead_fraction"))
    panels = [(column, width) for column in ("fvu", "ce_degradation") for width in (24, 48)]
    for axes, (column, width) in zip(found.figure.axes, panels, strict=True):
        assert len(axes.lines) == len(KINDS)
        for line, kind in zip(axes.lines, KINDS, strict=True):
            part = table[(table["kind"] == kind) & (table["width"] == width)]
            np.testing.assert_array_equal(line.get_xdata(), part["l0"])
            np.testing.assert_array_equal(line.get_ydata(), part[column])
            assert line.get_color() == kind_style(kind).colour
            assert axes.get_xlim()[0] < part["l0"].min() <= part["l0"].max() < axes.get_xlim()[1]
    best = table[(table["width"] == 48) & (table["target_l0"] == 8)].sort_values("fvu").iloc[0]
    said = f"{best['fvu']:.3f} and {best['ce_degradation']:.3f} at L0 {best['l0']:.1f}"
    assert f"width 48, trained to 8: {kind_style(best['kind']).label} {said}; " in found.caption


def test_active_histogram_counts_every_token():
    found = plot("active_histogram")
    pd.testing.assert_frame_equal(found.data, active_table())
    for axes, (kind, counts) in zip(found.figure.axes, active_latents().items(), strict=True):
        (steps,) = axes.findobj(StepPatch)
        edges = np.arange(counts.max() + 2) - 0.5
        np.testing.assert_array_equal(steps.get_data().edges, edges)
        np.testing.assert_array_equal(steps.get_data().values, np.histogram(counts, edges)[0])
        assert axes.lines[0].get_xdata()[0] == pytest.approx(counts.mean(), rel=1e-12)
        low, high = (int(np.quantile(counts, q, method="inverted_cdf")) for q in (0.05, 0.95))
        assert axes.texts[0].get_text() == f"L0 {counts.mean():.1f}\n90% of tokens: {low} to {high}"
        assert f"{kind_style(kind).label} 48 {counts.mean():.1f}, {low} to {high}, at most" in found.caption
        assert (counts > axes.get_xlim()[1]).mean() <= 1e-4


def test_convergence_draws_the_table():
    found, table = plot("convergence"), convergence_table()
    pd.testing.assert_frame_equal(found.data, table[found.data.columns.tolist()])
    assert set(found.data) == set(table)
    for axes, column in zip(found.figure.axes, ("median_cosine", "share_under_0.7", "fvu"), strict=True):
        for line, (_, part) in zip(axes.lines, table.groupby(["kind", "width"], sort=False), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), part["step"] / 1000)
            np.testing.assert_array_equal(line.get_ydata(), part[column])
    widths = {line.get_label(): line.get_linestyle() for line in found.figure.axes[0].lines}
    assert widths == {"ReLU 24": "--", "ReLU 48": "-", "BatchTopK 48": "-"}
    relu = table[(table["kind"] == "relu") & (table["width"] == 48)].set_index("step")["median_cosine"]
    assert f"ReLU 48 cosine {relu[14000]:.3f} and {relu[30000]:.3f}" in found.caption


def test_density_histogram_counts_all_latents():
    found = plot("density_histogram")
    steps = [patch for axes in found.figure.axes for patch in axes.findobj(StepPatch)]
    for step, evaluation in zip(steps, results().evaluations, strict=True):
        part = found.data[found.data["dictionary"] == str(evaluation.dictionary)]
        np.testing.assert_array_equal(step.get_data().values, part["share"])
        assert part["share"].sum() + evaluation.dead_fraction == pytest.approx(1, abs=1e-12)
        assert evaluation.dead_fraction > 0


def test_max_cosine_distribution_against_brute_force():
    found = plot("max_cosine_distribution")
    family = results().family
    cosine = (family[24].W_dec.double() @ family[12].W_dec.double().T).max(1).values
    first = found.data[found.data["comparison"] == "12 → 24"]
    under = first.loc[first["cosine_to"] <= THETA + 1e-9, "share"].sum()
    assert under == pytest.approx(float((cosine < THETA).double().mean()), abs=1e-12)
    heights = [bar.get_height() for bar in found.figure.axes[0].patches if hasattr(bar, "get_height")]
    np.testing.assert_allclose(heights, first["share"], atol=0)
    assert f"{100 * under:.0f}%" in found.figure.axes[0].get_title(loc="left")
    # The seeds of 24 are the null of the larger width in the first panel, of the smaller in the next.
    null = found.data[found.data["comparison"] == "24, other seed"]["share"]
    styles = []
    for axes in found.figure.axes:
        (outline,) = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        np.testing.assert_array_equal(outline.get_data().values, null)
        styles.append(outline.get_linestyle())
    assert styles[0] != styles[1]
    assert "There is no second seed of width 12 and 48" in found.caption
    titles = [axes.get_title(loc="left") for axes in found.figure.axes]
    assert all("\nseeds: " in title for title in titles)
    alone = plots.max_cosine_distribution(family_similarity(Family([family[12], family[24]]), theta=THETA))
    assert alone.figure.axes[0].get_title(loc="left").endswith("\nno second seed")


def test_only_shares_on_hatched_bars_have_a_ground():
    figure = plot("splitting_flow").figure
    with house_style():
        figure.canvas.draw()
    n_hatched = 0
    for axes in figure.axes:
        for text in axes.texts:
            (bar,) = [bar for bar in axes.patches if bar.get_bbox().contains(*text.get_position())]
            assert (bar.get_hatch() is not None) == (text.get_bbox_patch() is not None)
            n_hatched += bar.get_hatch() is not None
    assert n_hatched


def test_splitting_flow_bars_are_the_shares():
    found, tree = plot("splitting_flow"), results().tree
    for axes, side in zip(found.figure.axes, ("small", "large"), strict=True):
        expected = found.data.loc[found.data["latents_of"] == side, "share"]
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], expected, atol=1e-12)
    sums = found.data.groupby(["comparison", "latents_of"])["share"].sum()
    np.testing.assert_allclose(sums, 1)
    table = tree.table.set_index(["pair", "measure"])["share"]
    shares = found.data.set_index(["comparison", "status"])["share"]
    for pair in ("12 → 24", "24 → 48"):
        for measure in ("split", "identical", "refined", "lost", "novel"):
            assert shares[pair, measure] == pytest.approx(table[pair, measure])
    assert list(dict.fromkeys(found.data["comparison"])) == ["12 → 24", "24, other seed", "24 → 48"]


def test_splitting_tree_draws_every_descendant():
    found, tree = plot("splitting_tree_plot"), results().tree
    data = found.data
    assert data["label"].eq(LABEL).all()
    root, edges = data.iloc[0], data.iloc[1:]
    assert (root["width"], root["latent"], root["parent"]) == (12, 0, -1)
    assert root["n_children"] == len(tree.children(12, 0)) >= 3
    for edge in edges.itertuples():
        parent = tree.parent(edge.width, edge.latent)
        assert (parent["width"], parent["latent"]) == (edge.parent_width, edge.parent)
        assert parent["cosine"] == edge.cosine
    axes = found.figure.axes[0]
    places = np.concatenate([np.asarray(marker.get_offsets()) for marker in axes.collections])
    assert places[:, 1].tolist() == data["row"].tolist()
    by_width = [set(places[data["width"] == width, 0]) for width in WIDTHS]
    assert all(len(found) == 1 for found in by_width)
    leaves = data.loc[data["n_children"] == 0, "row"]
    assert sorted(leaves) == list(range(len(leaves)))
    # Thicker where the cosine is greater.
    thickness = {
        line.get_ydata()[0]: line.get_linewidth()
        for line in axes.lines
        if line.get_ydata()[0] == line.get_ydata()[1] and line.get_xdata()[1] in by_width[2]
    }
    deepest = edges[edges["width"] == 48].sort_values("cosine")
    drawn = [thickness[row] for row in deepest["row"]]
    assert drawn == sorted(drawn)
    assert drawn[0] < drawn[-1]


def test_insertion_scatter_leaves_out_the_dead():
    found = plot("insertion_scatter")
    for axes, result in zip(found.figure.axes, (results().relu, results().null), strict=True):
        drawn = np.concatenate([np.asarray(points.get_offsets()) for points in axes.collections])
        frame = result.frame[~result.frame["dead"]]
        expected = frame[["best_cosine", "mse_change"]].to_numpy()
        assert len(frame) == len(result.frame) - result.summary["n_dead"] < len(result.frame)
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
        assert f"AUC {result.auc:.2f}" in axes.get_title(loc="left")
        corners = [t.get_text() for t in axes.texts]
        both = (frame["novel_cos"] & frame["novel_gain"]).mean()
        assert f"{100 * both:.0f}% help" in corners
    assert f"{results().relu.n_tokens:,} tokens" in found.caption


def test_roc_area_is_the_auc():
    found = plot("roc")
    everything = [results().relu, results().batchtopk, results().null]
    for result, (name, part) in zip(everything, found.data.groupby("comparison", sort=False), strict=True):
        curve = part[part["point"] == "curve"]
        assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(result.auc)
        assert f"{name} {result.auc:.3f}" in found.caption
        marked = part[part["point"] == "theta"].iloc[0]
        at = result.at(THETA)
        assert (marked["fpr"], marked["tpr"]) == (at["false_positive_rate"], at["true_positive_rate"])
    drawn = [line for line in found.figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert [tuple(line.get_xdata()) for line in drawn] == [
        tuple(part.loc[part["point"] == "curve", "fpr"])
        for _, part in found.data.groupby("comparison", sort=False)
    ]


def test_group_bars_and_what_they_would_be_if_gains_added_up():
    found, family, x = plot("group_insertion_bars"), results().family, results().x.double()
    axes, result = found.figure.axes[0], results().relu
    fvu = results().groups[0].summary["fvu"]
    order = ["novel_cos", "reconstruction_cos", "novel_gain", "not novel_gain", "all"]
    assert [bar.get_height() for bar in axes.patches] == [fvu[group] for group in order]
    variance = ((x - x.mean(0)) ** 2).sum()
    error = ((x - family[12].reconstruct(results().x).double()) ** 2).sum()
    changes = result.mse_change * len(x)
    diamonds = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "D"]
    masks = [result.novel_cos, ~result.novel_cos, changes < 0, changes >= 0, changes == changes]
    expected = [float((error + changes[mask].sum()) / variance) for mask in masks]
    np.testing.assert_allclose(diamonds, expected, rtol=1e-6)
    levels = {line.get_ydata()[0] for line in axes.lines if line.get_marker() == "None"}
    assert levels == {fvu["small"], fvu["large"], 0}


def test_activation_norms_count_every_position():
    found = plot("activation_norms")
    data, norms = found.data, store().norms.numpy()
    # All but the one that is zero, which a logarithmic axis cannot show.
    assert data["used"].sum() == (~store().excluded.numpy()).sum() - 1
    assert data["excluded"].sum() == 51
    edge = np.isclose(data["norm_from"], 1500)
    assert edge.sum() == 1  # no bin is on both sides of the limit
    assert data.loc[data["norm_from"] >= 1499.99, "excluded"].sum() == (norms > 1500).sum()
    used, excluded = found.figure.axes[0].findobj(StepPatch)
    np.testing.assert_array_equal(used.get_data().values, data["used"])
    np.testing.assert_array_equal(excluded.get_data().values, data["excluded"])


# ---------------------------------------------------------------------- names


def identity(kind, width, seed=0, hook_point="blocks.0.hook_resid_post", content=""):
    """The identity of a dictionary that is nowhere."""
    name = f"{kind} {width}" if seed is None else f"{kind} {width} (seed {seed})"
    digest = hashlib.sha256(f"{name} {hook_point} {content}".encode()).hexdigest()
    return Identity(name, kind, width, seed, hook_point, digest)


def pair(small, large):
    return SimpleNamespace(small=small, large=large)


A, B = "blocks.2.hook_resid_post", "blocks.5.hook_resid_post"


@pytest.mark.parametrize(
    ("small", "large", "name"),
    [
        (identity("relu", 48), identity("relu", 96), "ReLU 48 → 96"),
        (identity("relu", 48), identity("relu", 48, 1), "ReLU 48, other seed"),
        (identity("relu", 48), identity("batchtopk", 48), "ReLU 48 → BatchTopK 48"),
        (identity("relu", 48), identity("batchtopk", 48, 1), "ReLU 48 → BatchTopK 48"),
        (identity("relu", 48, None, A), identity("relu", 48, None, B), f"ReLU 48 at {A} → 48 at {B}"),
        (
            identity("relu", 48, None, A),
            identity("relu", 96, None, None),
            f"ReLU 48 at {A} → 96 at an unknown hook point",
        ),
        (identity("relu", 48), identity("relu", 48), "ReLU 48 with itself"),
        (identity("home made", 48), identity("home made", 96), "home made 48 → 96"),
        (identity("frankenstein", 48), identity("relu", 96), "Frankenstein 48 → ReLU 96"),
        # A name that looks like another kind, width and seed is a name and nothing else.
        (
            Identity("relu 12 (seed 3)", "topk", 48, 0, A, "a" * 64),
            identity("topk", 96, 0, A),
            "TopK 48 → 96",
        ),
    ],
)
def test_a_pair_is_named_by_what_tells_the_two_apart(small, large, name):
    assert pair_name(pair(small, large)) == name


def test_two_of_one_kind_and_width_without_seeds_are_told_apart_by_content():
    small, large = identity("relu", 48, None, content="a"), identity("relu", 48, None, content="b")
    name = pair_name(pair(small, large))
    assert "other seed" not in name
    assert small.hash[:6] in name
    assert large.hash[:6] in name


def test_pairs_of_one_name_are_told_apart():
    first, *others = (identity("relu", 48, seed) for seed in range(3))
    assert pair_names([pair(first, other) for other in others]) == [
        "ReLU 48, seeds 0 and 1",
        "ReLU 48, seeds 0 and 2",
    ]
    at = [pair(identity("relu", 48, 0, hook), identity("relu", 96, 0, hook)) for hook in (A, B)]
    assert pair_names(at) == [f"ReLU 48 → 96, {hook} (seed 0)" for hook in (A, B)]
    same = pair(first, others[0])
    assert pair_names([same, same]) == ["ReLU 48, other seed"] * 2


def test_two_layers_in_one_frontier_stay_two():
    layers = [
        replace(
            dead_evaluation(),
            fvu=fvu,
            density=torch.ones(4).double(),
            dictionary=identity("relu", 4, None, hook),
        )
        for fvu, hook in ((0.1, A), (0.4, B))
    ]
    found = plots.frontier(layers)
    assert found.data["dictionary"].tolist() == [f"relu 4 at {hook}" for hook in (A, B)]
    assert found.data["fvu"].tolist() == [0.1, 0.4]
    frame = pd.DataFrame({"dictionary": ["relu 4"] * 2, "ce_degradation": [0.2, 0.3]})
    ce = replace(ce_degradation(), dictionaries=tuple(e.dictionary for e in layers), frame=frame)
    assert plots.frontier(layers, ce).data["ce_degradation"].tolist() == [0.2, 0.3]
    assert plots.frontier(layers[::-1], ce).data["ce_degradation"].tolist() == [0.3, 0.2]
    namesake = replace(layers[0], dictionary=replace(layers[0].dictionary, hash="f" * 64))
    with pytest.raises(ValueError, match=r"lacks relu 4 at .* \[ffffffff\]"):
        plots.frontier([namesake], ce)
    assert plots.density_histogram(layers).data["dictionary"].nunique() == 2


def test_any_kind_has_a_style_of_its_own():
    taken = {kind_style(kind).colour for kind in (*KINDS, "meta", "stitched", "frankenstein", "unknown")}
    assert len(taken) == 10
    made_up = kind_style("crosscoder")
    assert made_up == kind_style("crosscoder")
    assert made_up.label == "crosscoder"
    assert made_up.colour not in taken
    assert len({kind_style(f"kind {n}") for n in range(40)}) == 40
    assert len({(s.colour, s.marker) for s in (kind_style(f"kind {n}") for n in range(12))}) > 8


# ---------------------------------------------------------------------- saving and plotting


def test_saving_needs_a_name_only(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEKIT_FIGURES", str(tmp_path / "figures"))
    paths = plot("insertion_scatter").save("fig")
    assert {path.parent for path in paths} == {tmp_path / "figures"}
    made = json.loads(paths[-1].read_text())
    family = results().family
    assert made["settings"] == {"theta": THETA}
    assert {name: entry["hash"] for name, entry in made["inputs"].items()} == {
        member.name: member.content_hash for member in (family[12], family[24], family.get(24, 1))
    }
    monkeypatch.delenv("SAEKIT_FIGURES")
    monkeypatch.chdir(tmp_path)
    assert {path.parent for path in plot("roc").save("fig")} == {tmp_path / "figures"}


def test_what_is_given_is_added_to_the_record(tmp_path):
    paths = plot("insertion_scatter").save(
        "fig", inputs={"store": {"hash": "ab"}}, settings={"theta": 0.5}, folder=tmp_path
    )
    made = json.loads(paths[-1].read_text())
    assert made["settings"] == {"theta": 0.5}
    assert {"store", "relu 12 (seed 0)", "relu 24 (seed 0)"} <= set(made["inputs"])


def test_results_draw_themselves():
    assert results().relu.plot().caption == plots.insertion_scatter(results().relu).caption
    assert results().relu.plot(results().null).caption == plot("insertion_scatter").caption
    for result in (results().tree, results().similarity, results().groups[0], trained()[0]):
        assert len(result.plot().data)
    assert results().evaluations[0].plot().alt


def test_every_result_that_names_a_plot_names_one_that_takes_it():
    """As `result.plot()` calls it: with the result alone."""
    named, todo = [], [Result]
    for module in pkgutil.walk_packages(saekit.analysis.__path__, "saekit.analysis."):
        importlib.import_module(module.name)
    while todo:
        todo += (found := todo.pop()).__subclasses__()
        if found._plot is not None:
            named.append(found)
            parameters = list(inspect.signature(getattr(plots, found._plot)).parameters.values())
            assert found.__name__ in str(parameters[0].annotation), found
            assert all(p.default is not p.empty or p.kind == p.VAR_KEYWORD for p in parameters[1:]), found
    assert len(named) >= 16


# ---------------------------------------------------------------------- what cannot be shown


def dead_evaluation():
    return Evaluation(
        1.0,
        1.0,
        0.0,
        torch.zeros(5, dtype=torch.float64),
        10,
        0,
        identity("relu", 5),
        1.0,
        torch.ones(1),
        torch.ones(1),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.training_curves([]), "at least one result"),
        (lambda: plots.frontier([]), "at least one evaluation"),
        (lambda: plots.frontier([dead_evaluation()], ce_degradation()), r"lacks relu 5 \(seed 0\)"),
        (lambda: plots.kinds_frontier(kinds_table()[:0]), "at least one dictionary"),
        (lambda: plots.active_histogram(active_table()[:0]), "at least one dictionary"),
        (lambda: plots.convergence(convergence_table()[:0]), "at least one pair of seeds"),
        (lambda: plots.density_histogram([]), "at least one evaluation"),
        (lambda: plots.density_histogram([dead_evaluation()]), "every latent is dead"),
        (lambda: plots.roc([]), "at least one insertion"),
        (lambda: plots.group_insertion_bars([]), "at least one result"),
        (lambda: plots.splitting_tree_plot(results().tree, 48, 3), "no children"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_null_is_not_drawn_as_one():
    family, x, other = results().family, results().x, results().other
    seeds = family.get(24, 0), family.get(24, 1)
    for wrong, null in {
        "3000 tokens": insertion(*seeds, x[:-1], theta=THETA),
        "total variance .* were given": insertion(*seeds, 1.01 * x, theta=THETA),
        "A null is between relu 12": insertion(*other, x, theta=THETA),
        "another seed of its width": insertion(family[24], family[24], x, theta=THETA),
    }.items():
        for draw in (plots.insertion_scatter, lambda result, null: plots.roc([result], [null])):
            with pytest.raises(ValueError, match=wrong):
                draw(results().relu, null)
    with pytest.raises(ValueError, match=r"theta 0\.7, found 0\.6"):
        plots.insertion_scatter(results().relu, insertion(*seeds, x, theta=0.6))


def test_a_curve_of_two_thetas_is_refused():
    other = insertion(results().family[24], results().family[48], results().x, theta=0.5)
    with pytest.raises(ValueError, match=r"One figure shows results of one theta, found 0\.7 and 0\.5"):
        plots.roc([results().relu, other])


def test_plots_without_their_optional_parts():
    assert len(plots.frontier(results().evaluations).figure.axes) == 2
    assert len(plots.insertion_scatter(results().relu).figure.axes) == 1
    single = plots.training_curves(trained()[0])
    assert render(single.figure, "png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_missing_auc_is_explained():
    """Where one class is empty, in both directions, and where no latent is left."""
    small, large, x = results().family[12], results().family[24], results().x
    dead, far = torch.full((24,), 1e9), replace(large, W_dec=-large.W_dec)  # their contribution only hurts
    for changed, why in (
        (replace(large, threshold=dead), "every latent is dead"),
        (replace(far, threshold=far.threshold), "no latent helps"),
    ):
        result = insertion(small, changed, x, theta=THETA)
        assert result.without_auc == why
        drawn = plots.insertion_scatter(result)
        assert f"no AUC ({why})" in drawn.caption
        assert f"no AUC ({why})" in drawn.figure.axes[0].get_title("left")
        assert "nan" not in drawn.caption + drawn.alt
    assert not results().relu.without_auc


# ---------------------------------------------------------------------- labels of points


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_points_do_not_overlap(seed):
    """Each other or a point, from points in general and from points in one place."""
    generator = np.random.default_rng(seed)
    for points in (generator.normal(size=(12, 2)), np.repeat(generator.normal(size=(3, 2)), 2, axis=0)):
        size = np.array([0.5, 0.2])
        centres = spread_labels(points, tuple(size))
        apart = np.abs(centres[:, None] - centres[None]) / size
        np.fill_diagonal(apart[..., 0], np.inf)
        assert (apart.max(axis=2) > 0.9).all()
        covered = (np.abs(centres[:, None] - points[None]) < 0.45 * size).all(axis=2)
        assert not covered.any()
        assert np.linalg.norm(centres - points, axis=1).max() < 2.0  # none is led astray
