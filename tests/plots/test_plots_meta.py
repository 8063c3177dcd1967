"""Plots of meta-SAEs show their data, and their data the results."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import PathPatch, StepPatch
from plot_checks import check_bundle, check_texts
from scipy.sparse import csr_array

from saekit import plots
from saekit.analysis import MetaSAE
from saekit.analysis.labels import Labels
from saekit.analysis.meta.baselines import MetaBaselines
from saekit.analysis.meta.latents import MetaSplitting, cosine_distributions, side_by_side
from saekit.analysis.meta.latents import related_latents as graph_of
from saekit.analysis.meta.sae import MetaSweep
from saekit.colours import PALETTE
from saekit.dictionary import Dictionary
from saekit.figures import kind_style
from saekit.plots.meta import FLOOR, _most_shared

NO_SPLITS = pd.DataFrame({"n_common": [0]})
D_IN, WIDTHS, THRESHOLD = 12, (10, 30), 0.02
LABEL = "a label that is far too long for the room there is, with $5 and $10 in it"


def dictionary(rows, threshold, kind):
    rows = F.normalize(rows, dim=1)
    width = len(rows)
    info = {"kind": kind, "seed": 0, "training": {"variant": {"k": 3}}, "meta": {"recipe": {"name": "toy"}}}
    return Dictionary(
        rows.T.contiguous(),
        torch.zeros(width),
        rows,
        torch.zeros(D_IN),
        torch.full((width,), threshold),
        info=info,
    )


@cache
def meta(threshold=THRESHOLD):
    generator = torch.Generator().manual_seed(0)
    sources = [dictionary(torch.randn(width, D_IN, generator=generator), 0.0, "relu") for width in WIDTHS]
    own = dictionary(torch.randn(8, D_IN, generator=generator), threshold, "meta")
    return MetaSAE(own, tuple(sources), torch.zeros(sum(WIDTHS), dtype=torch.bool))


def labels(name):
    of = {"small": meta().sources[0], "large": meta().sources[1], "meta": meta()}[name]
    frame = pd.DataFrame({"label": [f"{name} {latent} {LABEL}" for latent in range(of.width)]})
    return Labels(of.identity, frame, csr_array((of.width, 1)), ["word"])


def child(width, latent, cosine, *children):
    return {"width": width, "latent": latent, "cosine": cosine, "children": list(children)}


ROOT = child(10, 2, np.nan, child(30, 4, 0.95), child(30, 7, 0.72), child(30, 8, 0.8))


def tree(root=ROOT):
    pair = SimpleNamespace(small=meta().bases[0], large=meta().bases[1])
    return SimpleNamespace(theta=0.7, widths=WIDTHS, pairs={10: pair}, subtree=lambda width, latent: root)


@cache
def cosines():
    return cosine_distributions(meta(), meta().sources[0], theta=0.6)


@cache
def counted():
    """The number of active meta-latents, counted on the dense product."""
    active = (meta().rows.double() @ meta().dictionary.W_enc.double() > THRESHOLD).sum(1)
    parts = []
    for width, of_base in zip(WIDTHS, active.split(WIDTHS), strict=True):
        found = np.bincount(of_base.numpy(), minlength=meta().width + 1)
        parts.append(pd.DataFrame({"width": width, "n_active": range(len(found)), "n_latents": found}))
    counts = pd.concat(parts, ignore_index=True)
    counts["share"] = counts["n_latents"] / counts["width"]
    return MetaSplitting(
        pd.DataFrame(columns=["status", "kept", "kept_chance", "inherited"]),
        NO_SPLITS,
        counts,
        (meta().identity, *meta().bases),
    )


@cache
def baselines(held_out=True):
    rows = [
        ("meta-SAE", "own", False, False, 8, 0.4),
        ("meta-SAE", "matching pursuit", False, False, 8, 0.39),
        ("meta-SAE", "matching pursuit", True, False, 8, 0.41),
        ("nearest small latents", "kept", False, False, 8, 0.2),
        ("random directions", "kept", False, False, 8, -0.6),
        ("relu 10 (seed 0)", "matching pursuit", False, False, 10, 0.5),
        ("relu 10 (seed 0)", "matching pursuit", True, False, 10, 0.52),
        ("PCA", "projection", True, False, 3, 0.1),
        ("columns permuted", "own", False, True, 8, 0.25),
        ("Gaussian", "own", False, True, 8, 0.27),
    ]
    columns = ["variant", "encoder", "signed", "null", "dictionary_width", "explained_variance"]
    frame = pd.DataFrame(rows, columns=columns).assign(terms=3, n_terms=3.0, note="")
    frame["explained_variance_uncentred"] = frame["explained_variance"] + 0.01
    frame["explained_variance_held_out"] = frame["explained_variance"] - 0.05 if held_out else np.nan
    frame["difference"] = frame["explained_variance"] - 0.4
    small = meta().sources[0].identity
    return MetaBaselines(meta().identity, 3, {str(small): small}, frame)


@cache
def sweep(held_out=True):
    table = pd.DataFrame([{"width": width, "k": k} for width in (8, 16, 64) for k in (2, 4)])
    table["explained_variance"] = 0.05 * np.log2(table["width"]) * np.sqrt(table["k"])
    table["explained_variance_held_out"] = table["explained_variance"] - 0.1 if held_out else np.nan
    table = table.assign(l0=table["k"] + 0.1, dead_fraction=0.02, recipe="lesswrong")
    return MetaSweep(meta().bases, table)


BUILD = {
    "related_latents": lambda: plots.related_latents(
        graph_of(meta(), 4, labels=[labels("small"), labels("large")], meta_labels=labels("meta"))
    ),
    "related_latents_bare": lambda: plots.related_latents(graph_of(meta(), 3, base=0, n_meta=2, n_members=3)),
    "meta_cosines": lambda: plots.meta_cosines(cosines()),
    "side_by_side": lambda: plots.side_by_side(
        side_by_side(
            meta(),
            4,
            meta().sources[0],
            labels=labels("large"),
            meta_labels=labels("meta"),
            small_labels=labels("small"),
        )
    ),
    "side_by_side_bare": lambda: plots.side_by_side(side_by_side(meta(), 5, meta().sources[0], n=3)),
    "meta_baselines": lambda: plots.meta_baselines(baselines()),
    "meta_baselines_published": lambda: plots.meta_baselines(baselines(held_out=False)),
    "meta_splitting": lambda: plots.meta_splitting(
        meta(), tree(), 10, 2, labels=[labels("small"), labels("large")], meta_labels=labels("meta")
    ),
    "meta_splitting_bare": lambda: plots.meta_splitting(meta(), tree(), 10, 2),
    "active_meta_latents": lambda: plots.active_meta_latents(counted()),
    "meta_sweep": lambda: plots.meta_sweep(sweep()),
    "meta_sweep_published": lambda: plots.meta_sweep(sweep(held_out=False)),
}


@cache
def plot(name):
    return BUILD[name]()


@pytest.mark.parametrize("name", BUILD)
def test_bundle(name, tmp_path):
    check_bundle(plot(name), name, tmp_path)


@pytest.mark.parametrize("name", BUILD)
def test_no_text_overlaps_or_leaves_the_figure(name):
    check_texts(plot(name).figure)


def test_a_tree_of_other_dictionaries_is_not_drawn_with_a_meta_sae():
    stranger = dictionary(torch.ones(30, D_IN), 0.0, "relu").identity
    other = tree()
    other.pairs[10].large = stranger
    with pytest.raises(ValueError, match="The tree's dictionary of width 30"):
        plots.meta_splitting(meta(), other, 10, 2)


def test_related_latents_are_drawn_as_wide_as_their_activations():
    found = plot("related_latents")
    rows = meta().rows.double()
    dense = rows @ meta().dictionary.W_enc.double()
    dense[dense <= THRESHOLD] = 0
    own = dense[WIDTHS[0] + 4]
    shown = found.data.drop_duplicates("meta_latent")
    order = own.argsort(descending=True)[: len(shown)].tolist()
    assert shown["meta_latent"].tolist() == order
    assert len(shown) == min(5, int((own > 0).sum())) >= 3
    np.testing.assert_allclose(shown["meta_activation"], own[order], rtol=1e-5)
    for meta_latent, members in found.data.groupby("meta_latent"):
        column = dense[:, meta_latent].clone()
        column[WIDTHS[0] + 4] = 0  # the latent itself is on the left already
        best = [int(row) for row in column.argsort(descending=True)[:5] if column[row] > 0]
        row_of = members["latent"] + np.where(members["width"] == WIDTHS[1], WIDTHS[0], 0)
        assert row_of.tolist() == best
        np.testing.assert_allclose(members["activation"], column[best], rtol=1e-5)
        assert members["label"].str.startswith(("small", "large")).all()
    edges = [patch for patch in found.figure.axes[0].patches if isinstance(patch, PathPatch)]
    expected = []
    for meta_latent in order:
        members = found.data[found.data["meta_latent"] == meta_latent]
        expected += [10 * members["meta_activation"].iat[0], *(4 * members["activation"])]
    np.testing.assert_allclose([edge.get_linewidth() for edge in edges], expected)


def test_cosines_are_histograms_against_brute_force():
    found = plot("meta_cosines")
    small, large = (source.W_dec.double() for source in meta().sources)
    own = meta().dictionary.W_dec.double()
    within = large @ large.T
    within.fill_diagonal_(-1)
    expected = {
        ("within", "relu 30 (seed 0)"): within,
        ("meta-latents", "relu 10 (seed 0)"): own @ small.T,
        ("latents", meta().name): large @ own.T,
    }
    for (panel, name), cosine in expected.items():
        bins = found.data[
            (found.data["panel"] == panel) & (found.data["nearest_in"] == name) & ~found.data["null"]
        ]
        assert bins["share"].sum() == pytest.approx(1)
        above = float((cosine.max(1).values >= 0.6).double().mean())
        assert bins.loc[bins["cosine_from"] >= 0.6 - 1e-9, "share"].sum() == pytest.approx(above)
        if panel != "within":
            told = "meta-SAE" if name == meta().name else "ReLU 10"
            assert f"{panel} in {told} {100 * above:.0f}% (random" in found.caption
    for axes, panel in zip(found.figure.axes, ("within", "meta-latents", "latents"), strict=True):
        stairs = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        assert len(stairs) == 2 * (3 if panel == "within" else 2)
        drawn = np.concatenate([step.get_data().values for step in stairs])
        np.testing.assert_array_equal(drawn, found.data.loc[found.data["panel"] == panel, "share"])


def test_side_by_side_cells_are_cosines():
    found = plot("side_by_side")
    direction = meta().sources[1].W_dec[4].double()
    small, own = meta().sources[0].W_dec.double(), meta().dictionary.W_dec.double()
    nearest = (small @ direction).argsort(descending=True)[:6]
    active = direction @ meta().dictionary.W_enc.double()
    parts = active.argsort(descending=True)[: min(6, int((active > THRESHOLD).sum()))]
    expected = own[parts] @ small[nearest].T
    cells = found.figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(cells), expected, atol=1e-6)
    texts = [text.get_text().replace("\u2212", "-") for text in found.figure.axes[0].texts]
    np.testing.assert_allclose(np.array(texts, float), expected.flatten(), atol=0.0051)
    by_pair = found.data.set_index(["meta_latent", "small_latent"])["cosine"]
    for row, part in enumerate(parts.tolist()):
        for column, latent in enumerate(nearest.tolist()):
            assert by_pair[part, latent] == pytest.approx(float(expected[row, column]), abs=1e-6)
    names = [label.get_text().split()[0] for label in found.figure.axes[0].get_yticklabels()]
    assert names == [str(part) for part in parts.tolist()]


def test_dictionaries_of_one_kind_and_width_have_labels_of_their_own():
    result = cosine_distributions(meta(), [meta().sources[0], dictionary(torch.eye(10, D_IN), 0.0, "relu")])
    figure = plots.meta_cosines(result).figure
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == len(set(texts))
    assert sum(text.startswith("relu 10 (seed 0) [") for text in texts) == 2


def test_dictionaries_have_the_colour_of_their_kind_darkest_where_widest():
    figure = plots.meta_cosines(cosines()).figure
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    colours = dict(zip(texts, [line.get_color() for line in legend.get_lines()], strict=True))
    assert to_hex(colours["ReLU 30"]) == kind_style("relu").colour
    pale, full = (np.array(to_rgb(colours[f"ReLU {width}"])) for width in (10, 30))
    np.testing.assert_allclose(pale, full + 0.45 * (1 - full), atol=0.003)


def test_baseline_bars_are_the_table():
    found, frame = plot("meta_baselines"), baselines().frame
    for axes, signed in zip(found.figure.axes, (False, True), strict=True):
        part = frame[frame["signed"] == signed]
        np.testing.assert_array_equal([bar.get_width() for bar in axes.patches], part["explained_variance"])
        hatched = [bar.get_hatch() is not None for bar in axes.patches]
        assert hatched == part["null"].tolist()
        diamonds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
        held_out = part["explained_variance_held_out"]
        assert diamonds == held_out[held_out > FLOOR].tolist()
        # The same variant and encoder stand at one height in both panels.
        places = [bar.get_y() for bar in axes.patches]
        names = found.figure.axes[0].get_yticklabels()
        at = dict(zip((round(float(y), 3) for y in found.figure.axes[0].get_yticks()), names, strict=True))
        for place, row in zip(places, part.itertuples(), strict=True):
            label = at[round(place + 0.41, 3)].get_text()
            assert label.lower().startswith(row.variant.removesuffix(" (seed 0)").lower())
    assert "relu 10 (seed 0), matching pursuit 0.500" in found.caption
    assert "columns permuted 0.250, Gaussian 0.270" in found.caption
    assert "cut off at -0.15" in found.caption
    assert "Diamonds" not in plot("meta_baselines_published").caption


def test_splitting_bars_share_out_each_latents_activation():
    found = plot("meta_splitting")
    dense = (meta().rows.double() @ meta().dictionary.W_enc.double()).clamp(min=0)
    dense[dense <= THRESHOLD] = 0
    rows = [2, *(WIDTHS[0] + latent for latent in (4, 7, 8))]
    bars = found.figure.axes[1].patches
    np.testing.assert_array_equal([bar.get_width() for bar in bars], found.data["share"])
    for place, row in enumerate(rows):
        part = found.data[found.data["row"] == place]
        own = dense[row]
        assert set(part["meta_latent"]) == set(own.nonzero()[:, 0].tolist())
        np.testing.assert_allclose(part["share"], (own / own.sum())[part["meta_latent"].tolist()], rtol=1e-5)
    # One meta-latent has one colour, and those without a colour of their own are grey.
    named = {handle.get_text().split()[0] for handle in found.figure.legends[0].get_texts()}
    for meta_latent, part in found.data.groupby("meta_latent"):
        colours = {bars[i].get_facecolor() for i in part.index}
        assert len(colours) == 1
        assert (str(meta_latent) in named) == (len(part) > 1)
    lines = [line for line in found.figure.axes[0].lines if line.get_ydata()[0] == line.get_ydata()[1]]
    thickness = [line.get_linewidth() for line in lines]
    assert thickness[0] > thickness[2] > thickness[1]


def test_active_meta_latents_are_counted_by_width():
    found = plot("active_meta_latents")
    dense = meta().rows.double() @ meta().dictionary.W_enc.double() > THRESHOLD
    counts = dense.sum(1).split(WIDTHS)
    for line, of_base, width in zip(found.figure.axes[0].lines, counts, WIDTHS, strict=True):
        expected = [float((of_base == n).double().mean()) for n in range(meta().width + 1)]
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert f"{of_base.double().mean():.2f} at width {width}" in found.caption


def test_sweep_lines_are_the_table():
    found, table = plot("meta_sweep"), sweep().frame
    lines = iter(found.figure.axes[0].lines)
    for k in (2, 4):
        part = table[table["k"] == k]
        for column, style in (("explained_variance", "-"), ("explained_variance_held_out", "--")):
            line = next(lines)
            assert line.get_linestyle() == style
            np.testing.assert_array_equal(line.get_xdata(), part["width"])
            np.testing.assert_array_equal(line.get_ydata(), part[column])
    assert len(plot("meta_sweep_published").figure.axes[0].lines) == 2
    assert "held-out" not in plot("meta_sweep_published").caption


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.meta_sweep(MetaSweep((), sweep().frame[:0])), "at least one meta-SAE"),
        (
            lambda: plots.related_latents(graph_of(meta(threshold=2.0), 4)),
            "No meta-latent is active on latent 4",
        ),
        (
            lambda: plots.side_by_side(side_by_side(meta(threshold=2.0), 4, meta().sources[0])),
            r"No meta-latent is active on latent 4 of relu 30",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_largest_meta_latent_of_the_root_has_the_first_colour():
    data = pd.DataFrame(
        {
            "row": [0, 0, 1, 1, 2, 2, 2],
            "meta_latent": [3, 7, 7, 3, 7, 9, 1],
            "share": [0.2, 0.8, 0.9, 0.1, 0.5, 0.3, 0.2],
        }
    )
    assert _most_shared(data) == {7: PALETTE[0], 3: PALETTE[1]}  # 9 and 1 are of one latent only
