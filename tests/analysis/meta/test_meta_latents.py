"""What meta-latents are: every table against brute force on small planted cases."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make
from scipy.sparse import csr_array
from tqdm import tqdm

from saekit.agreement import MismatchError
from saekit.analysis import splitting_tree
from saekit.analysis.labels import Labels
from saekit.analysis.meta import adjacency
from saekit.analysis.meta.adjacency import adjacency_overlap
from saekit.analysis.meta.ce_rebuilt import measure_rebuilt_ce
from saekit.analysis.meta.latents import (
    cosine_distributions,
    decomposition,
    members,
    related_latents,
    side_by_side,
    splitting_through_meta,
)
from saekit.analysis.meta.multiple_choice import multiple_choice_test
from saekit.analysis.meta.sae import MetaSAE
from saekit.analysis.nulls import turned_dictionary
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.folding import Unfolded

D_IN, META = 12, 9
WIDTHS = (8, 24, 40)


def meta_of(sources, threshold=0.25, n=META, seed=7):
    """A meta-SAE by hand: random directions, active where the cosine exceeds the threshold."""
    d_in = sources[0].d_in
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, d_in, generator=generator), dim=1)
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}, "meta": {"recipe": {"name": "x"}}}
    b_dec = 0.1 * torch.randn(d_in, generator=generator)
    dictionary = Dictionary(
        rows.T.contiguous(), torch.zeros(n), rows, b_dec, torch.full((n,), threshold), info=info
    )
    return MetaSAE(dictionary, tuple(sources), torch.zeros(sum(s.width for s in sources), dtype=torch.bool))


def named(of, name="label"):
    """Labels that say nothing but a name and the latent."""
    frame = pd.DataFrame({"label": [f"{name} {latent}" for latent in range(of.width)]})
    return Labels(of.identity, frame, csr_array((of.width, 1)), ["word"])


@pytest.fixture(scope="module")
def family():
    """Each width repeats the directions of the one before, with noise, and adds others."""
    generator = torch.Generator().manual_seed(0)
    rows, members = (
        torch.nn.functional.normalize(torch.randn(WIDTHS[0], D_IN, generator=generator), dim=1),
        [],
    )
    for width in WIDTHS:
        if members:
            copies = torch.arange(width * 2 // 3) % len(rows)
            near = rows[copies] + 0.15 * torch.randn(len(copies), D_IN, generator=generator)
            rows = torch.cat([near, torch.randn(width - len(near), D_IN, generator=generator)])
        made = make(D_IN, width, seed=width)
        rows = torch.nn.functional.normalize(rows, dim=1)
        members.append(Dictionary(**{**made.tensors(), "W_dec": rows}, info={"kind": "relu", "seed": 0}))
    return Family(members)


@pytest.fixture(scope="module")
def meta(family):
    return meta_of([family[width] for width in WIDTHS])


@pytest.fixture(scope="module")
def dense(meta):
    """Activations of meta-latents on all rows, by brute force."""
    h = meta.rows.double() @ meta.dictionary.W_enc.double()
    return torch.where(h > 0.25, h, 0.0).numpy()


def cosine(a, b):
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# ---------------------------------------------------------------------- a latent and its meta-latents


def test_decomposition_of_every_latent(meta, dense):
    W, b = meta.dictionary.W_dec.double().numpy(), meta.dictionary.b_dec.double().numpy()
    for base, start in ((0, 0), (1, 8), (2, 32)):
        for latent in range(WIDTHS[base]):
            active, row = dense[start + latent], meta.rows[start + latent].double().numpy()
            expected = [m for m in np.argsort(-active) if active[m] > 0]
            result = decomposition(meta, latent, base=base, labels=named(meta))
            frame = result.frame
            assert frame["meta_latent"].tolist() == expected
            assert frame["label"].tolist() == [f"label {m}" for m in expected]
            assert frame["n_latents"].tolist() == [(dense[:, m] > 0).sum() for m in expected]
            np.testing.assert_allclose(frame["activation"], active[expected], atol=1e-6)
            np.testing.assert_allclose(frame["share"], active[expected] / active.sum(), atol=1e-6)
            np.testing.assert_allclose(frame["cosine"], [cosine(W[m], row) for m in expected], atol=1e-6)
            rebuilt = [
                cosine(active[expected[: i + 1]] @ W[expected[: i + 1]] + b, row)
                for i in range(len(expected))
            ]
            np.testing.assert_allclose(frame["rebuilt_cosine"], rebuilt, atol=1e-6)
            if expected:
                assert result.summary["rebuilt_cosine"] == pytest.approx(rebuilt[-1], abs=1e-6)


def test_a_latent_without_meta_latents_has_an_empty_decomposition(family):
    strict = meta_of([family[8]], threshold=5.0)
    result = decomposition(strict, 3)
    assert result.frame.empty
    assert np.isnan(result.summary["rebuilt_cosine"])
    assert related_latents(strict, 3).summary == {
        "latent": 3, "n_meta_latents": 0, "n_related": 0, "n_edges": 0,
    }  # fmt: skip
    assert side_by_side(strict, 3, family[8], n=4).cosines.shape == (0, 4)


def test_members_are_the_reverse(meta, dense):
    labels = [named(source, f"{source.width}") for source in meta.sources]
    for m in range(META):
        result = members(meta, m, n=7, labels=labels, meta_labels=named(meta))
        rows = np.argsort(-dense[:, m])[: min(7, (dense[:, m] > 0).sum())]
        expected = [(int(meta.base[row]), int(meta.latent[row])) for row in rows]
        frame = result.frame
        assert list(zip(frame["base"], frame["latent"], strict=True)) == expected
        assert frame["label"].tolist() == [f"{WIDTHS[base]} {latent}" for base, latent in expected]
        np.testing.assert_allclose(frame["share"], dense[rows, m] / dense[rows].sum(1), atol=1e-6)
        assert result.summary == {
            "meta_latent": m, "label": f"label {m}", "n_latents": (dense[:, m] > 0).sum(),
        }  # fmt: skip
    only = members(meta, 0, base=1).frame
    assert set(only["base"]) == {1}


def test_the_graph_of_related_latents(meta, dense):
    start, latent = 32, 5
    result = related_latents(
        meta,
        latent,
        n_meta=2,
        n_members=3,
        labels=[named(source, f"{source.width}") for source in meta.sources],
        meta_labels=named(meta),
    )
    active = dense[start + latent]
    strongest = [m for m in np.argsort(-active)[:2] if active[m] > 0]
    assert len(strongest) == 2
    edges = {}
    for m in strongest:
        edges[m, (2, latent)] = active[m]
        others = [row for row in np.argsort(-dense[:, m]) if row != start + latent and dense[row, m] > 0][:3]
        edges |= {(m, (int(meta.base[row]), int(meta.latent[row]))): dense[row, m] for row in others}
    nodes = result.nodes.set_index("node")
    places = list(zip(nodes["base"], nodes["latent"], strict=True))
    found = {(places[e.meta_node][1], places[e.latent_node]): e.activation for e in result.edges.itertuples()}
    assert found == pytest.approx(edges, abs=1e-6)
    assert nodes["role"][0] == "latent"
    assert not nodes.duplicated(["base", "latent"]).any()
    for node in nodes.itertuples():
        name = "label" if node.role == "meta-latent" else WIDTHS[node.base]
        assert node.label == f"{name} {node.latent}"
    assert result.summary["n_edges"] == len(edges)


# ---------------------------------------------------------------------- beside nearest latents


def test_side_by_side_lists_nearest_latents_and_compares_directions(meta, family, dense):
    latent, small = 6, family[8]
    own, of_small = named(family[40], "own"), named(small, "small")
    result = side_by_side(meta, latent, small, n=6, labels=own, small_labels=of_small)
    row = family[40].W_dec[latent]
    same = [cosine(row, other) if i != latent else -2 for i, other in enumerate(family[40].W_dec)]
    below = [cosine(row, other) for other in small.W_dec]
    frame = result.frame
    assert frame["same_latent"].tolist() == np.argsort(same)[::-1][:6].tolist()
    assert frame["small_latent"].tolist() == np.argsort(below)[::-1][:6].tolist()
    np.testing.assert_allclose(frame["same_cosine"], np.sort(same)[::-1][:6], atol=1e-6)
    np.testing.assert_allclose(frame["small_cosine"], np.sort(below)[::-1][:6], atol=1e-6)
    assert frame["same_label"].tolist() == [f"own {i}" for i in frame["same_latent"]]
    active = dense[32 + latent]
    own = [m for m in np.argsort(-active)[:6] if active[m] > 0]
    assert 0 < len(own) < 6
    assert frame["meta_latent"].dropna().tolist() == own
    expected = [
        [cosine(meta.dictionary.W_dec[m], small.W_dec[j]) for j in frame["small_latent"]] for m in own
    ]
    np.testing.assert_allclose(result.cosines, expected, atol=1e-6)
    assert result.cosines.index.tolist() == own
    assert result.summary["n_paired"] == (np.array(expected) >= 0.7).any(1).sum()


def test_the_distributions_of_cosines(meta, family):
    result = cosine_distributions(meta, [family[8], family[24]], theta=0.6)
    rows = {meta.name: meta.dictionary.W_dec, **{family[w].name: family[w].W_dec for w in WIDTHS}}
    found = result.frame[~result.frame["null"]].groupby(["panel", "of", "nearest_in"], sort=False)["cosine"]
    assert len(found) == 4 + 3 + 3
    for (panel, of, to), cosines in found:
        products = np.array([[cosine(a, b) for b in rows[to]] for a in rows[of]])
        if panel == "within":
            assert of == to
            np.fill_diagonal(products, -np.inf)
        np.testing.assert_allclose(cosines, products.max(1), atol=1e-6)
        line = result.table.query("panel == @panel and of == @of and nearest_in == @to").iloc[0]
        assert line["median"] == pytest.approx(np.median(products.max(1)), abs=1e-6)
        assert line["share_above_theta"] == pytest.approx((products.max(1) >= 0.6).mean())
        assert result.summary[f"{of} → {to}"]["median"] == pytest.approx(line["median"])
    assert len(result.table) == 10
    # Two thirds of the latents are copies of those of the next smaller width; random ones are not.
    line = result.table.query("panel == 'latents' and nearest_in == @family[24].name").iloc[0]
    assert line["share_above_theta"] > 2 / 3
    assert line["null_median"] < 0.6 < line["median"]
    null = result.frame[result.frame["null"]]
    assert len(null) == len(result.frame) / 2


def test_one_smaller_dictionary_may_be_given_alone(meta, family):
    assert len(cosine_distributions(meta, family[8]).table) == 3 + 2 + 2


# ---------------------------------------------------------------------- two graphs


def edges_of(links):
    """Pairs of rows that share a column, by brute force."""
    return {(i, j) for i, j in combinations(range(len(links)), 2) if (links[i] & links[j]).any()}


@pytest.mark.parametrize("block", [7, 1024])
def test_overlap_equals_brute_force(meta, family, dense, block, monkeypatch):
    monkeypatch.setattr(adjacency, "BLOCK", block)
    result = adjacency_overlap(meta, family[24])
    shared = edges_of(dense[32:] > 0)
    cosines = np.array([[cosine(a, b) for b in family[24].W_dec] for a in family[40].W_dec])
    row = result.frame.iloc[0]
    near = edges_of(cosines > row["tau"] + 1e-7)
    assert row["n_edges_meta"] == len(shared)
    assert row["n_edges"] == len(near)
    assert row["n_shared"] == len(shared & near)
    assert row["overlap"] == len(shared & near) / len(shared)
    assert row["chance"] == len(near) / (40 * 39 / 2)
    assert result.n_pairs == 40 * 39 / 2
    # No other tau comes nearer to as many edges.
    counts = [len(edges_of(cosines > tau + 1e-7)) for tau in np.unique(cosines)]
    assert abs(len(near) - len(shared)) == min(abs(count - len(shared)) for count in counts)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("block", "paths", "sample"), [(512, 1 << 22, 128), (7, 20, 3)])
def test_the_graph_of_a_number_of_edges(share, block, paths, sample, monkeypatch):
    for name, value in (("BLOCK", block), ("BLOCK_PATHS", paths), ("SAMPLE", sample)):
        monkeypatch.setattr(adjacency, name, value)
    random = np.random.default_rng(0)
    for n, m, hub in ((50, 17, 0.0), (30, 40, 2.0), (40, 1, 0.0)):
        rows = torch.from_numpy(random.standard_normal((n, 5)) + hub)
        others = torch.from_numpy(random.standard_normal((m, 5)) + hub)
        links = csr_array(random.random((n, 6)) < 0.2)
        n_edges = max(1, round(share * n * (n - 1) / 2))
        tau, n_near, both = adjacency._matched(rows, others, links, n_edges, tqdm(disable=True))
        cosines = np.array([[cosine(a, b) for b in others] for a in rows])
        pairs = list(combinations(range(n), 2))
        thresholds = np.array([np.minimum(cosines[i], cosines[j]).max() for i, j in pairs])
        counts = [int((thresholds > step + 1e-9).sum()) for step in np.append(-1.1, np.unique(cosines))]
        assert n_near == int((thresholds > tau + 1e-6).sum())
        assert abs(n_near - n_edges) == min(abs(count - n_edges) for count in counts)
        if n_near == n_edges < len(pairs):  # of all such cosines, the lowest
            steps = np.unique(cosines)
            assert tau == pytest.approx(steps[counts[1:].index(n_edges)], abs=1e-6)
        shared = np.array([(links.toarray()[i] & links.toarray()[j]).any() for i, j in pairs])
        assert both == int((shared & (thresholds > tau + 1e-6)).sum())


def test_chance_is_the_overlap_of_shuffled_nodes(meta, family, dense):
    result = adjacency_overlap(meta, family[24])
    shared = edges_of(dense[32:] > 0)
    cosines = np.array([[cosine(a, b) for b in family[24].W_dec] for a in family[40].W_dec])
    near = cosines > result.frame["tau"].iat[0] + 1e-7
    random = np.random.default_rng(0)
    overlaps = [len(shared & edges_of(near[random.permutation(40)])) / len(shared) for _ in range(100)]
    error = np.std(overlaps) / 10
    assert np.mean(overlaps) == pytest.approx(result.frame["chance"].iat[0], abs=3 * error)


def test_graphs_of_the_same_directions_overlap_fully(family):
    """Meta-latents active from cosine 0.4 on, and a smaller dictionary that holds just these."""
    meta = meta_of([family[40]], threshold=0.4)
    directions = meta.dictionary.W_dec
    made = make(D_IN, META)
    small = Dictionary(**{**made.tensors(), "W_dec": directions}, info={"kind": "relu", "seed": 3})
    summary = adjacency_overlap(meta, small).summary
    assert summary["overlap"] == 1
    assert summary["tau"] <= np.float32(0.4)
    assert summary["overlap_random_directions"] < 1


def test_graphs_without_edges_are_refused(family):
    with pytest.raises(ValueError, match="No two latents"):
        adjacency_overlap(meta_of([family[40]], threshold=5.0), family[8])


# ---------------------------------------------------------------------- splitting


def test_what_children_keep(meta, family, dense):
    tree = splitting_tree(family, theta=0.6)
    result = splitting_through_meta(meta, tree)
    first = {8: 0, 24: 8, 40: 32}
    assert len(result.frame) == len(tree.frame) > 10
    for row in result.frame.itertuples():
        parent = dense[first[row.parent_width] + row.parent]
        child = dense[first[row.width] + row.latent]
        assert row.n_parent == (parent > 0).sum()
        assert row.n_child == (child > 0).sum()
        assert row.n_shared == ((parent > 0) & (child > 0)).sum()
        everyone = dense[first[row.width] : first[row.width] + row.width]
        if row.n_parent:
            assert row.kept == row.n_shared / row.n_parent
            chances = [((parent > 0) & (other > 0)).sum() / row.n_parent for other in everyone]
            assert row.kept_chance == pytest.approx(np.mean(chances))
        if row.n_child:
            assert row.inherited == pytest.approx(child[parent > 0].sum() / child.sum(), abs=1e-6)
    split = tree.nodes[tree.nodes["status"] == "split"]
    assert len(result.split) == len(split) > 2
    for row in result.split.itertuples():
        common = dense[first[row.width] + row.latent] > 0
        children = tree.children(row.width, row.latent)
        for child in children:
            common = common & (dense[first[child["width"]] + child["latent"]] > 0)
        assert row.children == len(children)
        assert row.common == tuple(np.flatnonzero(common))
        assert row.n_common == common.sum()
    summary, edges = result.summary, result.frame[result.frame["status"] == "split"]
    assert summary["kept"] == edges["kept"].mean()
    assert summary["share_with_common"] == (result.split["n_common"] > 0).mean()
    assert result.table["n_edges"].sum() == len(result.frame)


def test_number_of_meta_latents_by_width(meta, family, dense):
    result = splitting_through_meta(meta, splitting_tree(family))
    for width, start in ((8, 0), (24, 8), (40, 32)):
        counts = (dense[start : start + width] > 0).sum(1)
        part = result.counts[result.counts["width"] == width].set_index("n_active")
        assert all(part["n_latents"][n] == (counts == n).sum() for n in part.index)
        assert part["share"].sum() == pytest.approx(1)
        assert result.summary["mean_active"][width] == pytest.approx(counts.mean())
        assert result.summary["mode_active"][width] == np.bincount(counts).argmax()


def test_a_tree_of_other_dictionaries_is_refused(meta, family):
    with pytest.raises(ValueError, match=r"widths \[8, 24, 40\].*found \[8, 24\]"):
        splitting_through_meta(meta, splitting_tree(Family([family[8], family[24]])))
    other = replace(family[24], b_enc=family[24].b_enc + 1)  # of the same name, width and seed
    with pytest.raises(ValueError, match=r"tree's dictionary of width 24 was relu 24 .* was given in its"):
        splitting_through_meta(meta, splitting_tree(Family([family[8], other, family[40]])))


# ---------------------------------------------------------------------- what does not belong together


def test_labels_of_another_dictionary_name_nothing(meta, family):
    """Same name, width and seed do not make two dictionaries the same."""
    other = replace(family[40], b_enc=family[40].b_enc + 1)
    assert other.name == family[40].name
    of_bases = [named(source) for source in meta.sources]
    wrong = [*of_bases[:2], named(other)]
    for call in (
        lambda: decomposition(meta, 0, labels=named(family[40])),
        lambda: members(meta, 0, labels=wrong),
        lambda: members(meta, 0, labels=of_bases[:2]),
        lambda: members(meta, 0, meta_labels=of_bases[0]),
        lambda: related_latents(meta, 0, labels=wrong),
        lambda: side_by_side(meta, 0, family[8], labels=named(other)),
        lambda: side_by_side(meta, 0, family[8], small_labels=of_bases[1]),
        lambda: side_by_side(meta, 0, family[8], meta_labels=of_bases[1]),
    ):
        with pytest.raises(ValueError, match=r"was given in its place|has 3 bases, found labels of 2"):
            call()


def test_dictionaries_of_another_place_are_held_against_the_base(family):
    def at(dictionary, place):
        return replace(dictionary, info={**dictionary.info, "hook_point": place})

    meta = meta_of([at(family[40], "blocks.1.hook_resid_post")])
    small = at(family[8], "blocks.2.hook_resid_post")
    for analysis in (
        lambda **options: side_by_side(meta, 0, small, **options),
        lambda **options: cosine_distributions(meta, small, **options),
        lambda **options: adjacency_overlap(meta, small, **options),
    ):
        with pytest.raises(MismatchError, match=r"do not belong together.*hook point"):
            analysis()
        with pytest.warns(UserWarning, match="do not belong together"):
            analysis(allow_mismatch=True)


def test_two_dictionaries_of_one_name_are_told_apart(meta, family):
    other = replace(family[8], b_enc=family[8].b_enc + 1)
    result = cosine_distributions(meta, [family[8], other])
    assert len(result.dictionaries) == 4
    assert [identity.width for identity in result.dictionaries.values()] == [META, 40, 8, 8]
    with pytest.raises(ValueError, match=r"different dictionaries, found relu 8 .* twice"):
        cosine_distributions(meta, [family[8], replace(other, b_enc=family[8].b_enc)])
    assert len(result.table) == 4 + 3 + 3
    names = [name for name, identity in result.dictionaries.items() if identity.width == 8]
    assert all(name.startswith("relu 8 (seed 0) [") for name in names)


@pytest.mark.parametrize("theta", [-1, 1.5, 7, float("nan")])
def test_theta_is_a_cosine(meta, family, theta):
    with pytest.raises(ValueError, match="theta must be"):
        cosine_distributions(meta, family[8], theta=theta)


def test_latents_are_whole_numbers_in_range(meta, family):
    for latent, error in ((40, IndexError), (-1, IndexError), (1.0, TypeError), (True, TypeError)):
        for call in (
            lambda latent: decomposition(meta, latent),
            lambda latent: related_latents(meta, latent),
            lambda latent: side_by_side(meta, latent, family[8]),
            lambda latent: members(meta, latent),
        ):
            with pytest.raises(error):
                call(latent)
    assert decomposition(meta, np.int64(3)).latent == 3
    with pytest.raises(IndexError, match="has no base 3; it has 3"):
        adjacency_overlap(meta, family[8], base=3)


# ---------------------------------------------------------------------- cross-entropy


def test_a_rebuilt_decoder_that_is_the_own_one_costs_the_same(model, store):
    """Meta-latents that are the latents themselves rebuild every direction; others do not."""
    base = make(store.d_in, 20, seed=2)
    rows, zero = base.W_dec, torch.zeros(20)
    info = {"kind": "meta", "training": {"variant": {"k": 1}}}
    exact = Dictionary(
        rows.T.contiguous(), zero, rows, torch.zeros(store.d_in), zero + 0.999, info=info
    )  # active on itself alone, with activation 1
    held_out = torch.zeros(20, dtype=torch.bool)
    result = measure_rebuilt_ce(model, MetaSAE(exact, (base,), held_out), store, max_rows=4)
    frame = result.frame.set_index("decoder")
    assert frame.index.tolist() == ["own", "rebuilt", "turned at random"]
    for decoder in ("rebuilt", "turned at random"):  # nothing to turn where nothing is lost
        assert frame["ce_degradation"][decoder] == pytest.approx(frame["ce_degradation"]["own"], abs=1e-5)
        assert frame["fvu"][decoder] == pytest.approx(frame["fvu"]["own"], abs=1e-5)
    worse = measure_rebuilt_ce(model, meta_of([base]), store, max_rows=4).frame.set_index("decoder")
    assert worse["fvu"]["own"] == frame["fvu"]["own"]
    assert abs(worse["fvu"]["rebuilt"] - frame["fvu"]["own"]) > 1e-3


def test_fvu_of_the_rebuilt_decoder_is_that_of_the_replaced_rows(model, store):
    base = make(store.d_in, 20, seed=2)
    meta = meta_of([base])
    x = torch.cat([x for _, x in store.batches(64)]).double()
    d = {name: tensor.double() for name, tensor in base.tensors().items()}
    h = x @ d["W_enc"] + d["b_enc"]
    latents = torch.where(h > d["threshold"], h, 0.0)
    error = x - latents @ meta.reconstruct().double() - d["b_dec"]
    expected = float(error.square().sum() / (x - x.mean(0)).square().sum())
    found = measure_rebuilt_ce(model, meta, store, max_rows=4).frame.set_index("decoder")["fvu"]
    assert found["rebuilt"] == pytest.approx(expected, rel=1e-4)


def test_the_random_turn_keeps_norms_and_cosines(meta):
    rebuilt = meta.reconstruct()
    widths = sum(meta.widths)
    base = make(D_IN, widths, seed=5)
    base = Dictionary(**{**base.tensors(), "W_dec": meta.rows}, info=base.info)
    made = turned_dictionary(base, rebuilt)
    norms = made.W_enc.double().norm(dim=0) / base.W_enc.double().norm(dim=0)  # folded into the encoder
    turned, rows = made.W_dec.double() * norms[:, None], meta.rows.double()
    torch.testing.assert_close(norms, rebuilt.double().norm(dim=1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close((turned * rows).sum(1), (rebuilt * rows).sum(1), atol=1e-6, rtol=1e-6)
    across = rebuilt.double() - (rebuilt * rows).sum(1, keepdim=True) * rows
    assert torch.nn.functional.cosine_similarity(turned, across).mean().abs() < 0.3


# ---------------------------------------------------------------------- multiple choice


def labels_of(meta, tokens):
    tokens = csr_array(np.asarray(tokens, dtype=float))
    return replace(named(meta.sources[0]), tokens=tokens)


@pytest.fixture(scope="module")
def topical():
    """60 latents on 6 directions; what a latent is about goes with its direction, in part."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(D_IN, 6, generator=generator)).Q.T
    topic = torch.arange(60) % 6
    second = torch.randint(6, (60,), generator=generator)
    rows = directions[topic] + 0.5 * directions[second]
    base = Unfolded(
        W_enc=torch.randn(D_IN, 60, generator=generator), b_enc=torch.zeros(60), W_dec=rows,
        b_dec=torch.zeros(D_IN), info={"kind": "relu", "seed": 0},
    ).fold()  # fmt: skip
    dictionary = Dictionary(
        directions.T.contiguous(), torch.zeros(6), directions, torch.zeros(D_IN), torch.full((6,), 0.2),
        info={"kind": "meta", "training": {"variant": {"k": 2}}},
    )  # fmt: skip
    random = np.random.default_rng(0)
    tokens = (random.random((60, 30)) < 0.1) * random.random((60, 30))
    about = np.repeat(np.eye(6), 5, axis=1)[topic] * random.random((60, 30))
    tokens[:55] += about[:55] * (random.random((55, 30)) < 0.8)
    tokens[7] = 0  # a dead latent
    tokens /= np.maximum(tokens.sum(1, keepdims=True), 1e-12)
    return MetaSAE(dictionary, (base,), torch.zeros(60, dtype=torch.bool)), tokens


def test_answers_equal_brute_force(topical):
    meta, tokens = topical
    result = multiple_choice_test(
        meta, labels_of(meta, tokens), n_options=6
    )  # every other meta-latent, or fewer
    activation = meta.decomposition.dense().double().numpy()
    idf = np.log(60 / np.maximum((tokens > 0).sum(0), 1))
    weighted = tokens * idf
    norms = np.linalg.norm(weighted, axis=1, keepdims=True)
    weighted = weighted / np.where(norms > 0, norms, 1)
    asked = result.frame.set_index("latent")
    for latent in range(60):
        active = activation[latent]
        if not tokens[latent].any() or (active > 0).sum() > 1:
            assert latent not in asked.index  # dead, or with fewer than five distractors
            continue
        own = int(active.argmax())
        similarities = {}
        for m in range(6):
            about = sum(activation[i, m] * weighted[i] for i in range(60) if i != latent)
            similarities[m] = cosine(about, weighted[latent])
        row = asked.loc[latent]
        assert row["meta_latent"] == own
        others = [i for i in range(60) if i != latent and activation[i, own] > 0 and tokens[i].any()]
        assert row["n_others"] == len(others)
        assert row["similarity"] == pytest.approx(similarities[own])
        best = max(value for m, value in similarities.items() if m != own)
        assert row["best_other"] == pytest.approx(best)
        assert row["right"] == (similarities[own] > best)
    assert result.summary["n_latents"] == len(asked)
    assert result.n_left_out == 60 - len(asked)


def test_what_goes_with_the_tokens_is_told_and_what_does_not_is_not(topical):
    meta, tokens = topical
    summary = multiple_choice_test(meta, labels_of(meta, tokens), n_options=4).summary
    assert summary["chance"] == 1 / 4
    assert summary["accuracy"] > 0.7
    assert abs(summary["accuracy_null"] - 1 / 4) < 4 * summary["standard_error_null"]
    shuffled = tokens[np.random.default_rng(2).permutation(60)]
    unrelated = multiple_choice_test(meta, labels_of(meta, shuffled), n_options=4).summary
    assert abs(unrelated["accuracy"] - 1 / 4) < 4 * unrelated["standard_error"]


def test_latents_about_nothing_in_particular_share_the_point(topical):
    """All about the same token, which all have: its weight is zero, and every latent is left out."""
    meta, _ = topical
    alone = np.eye(60)  # every latent about a token of its own: no similarity at all
    result = multiple_choice_test(meta, labels_of(meta, alone), n_options=4)
    assert (result.frame["right"] == 1 / 4).all()
    with pytest.raises(ValueError, match="4 options need as many meta-latents, found 0"):
        multiple_choice_test(meta, labels_of(meta, np.ones((60, 1))), n_options=4)


def test_the_standard_error_is_clustered_by_meta_latent(topical):
    meta, tokens = topical
    result = multiple_choice_test(meta, labels_of(meta, tokens), n_options=3)
    right, mean = result.frame["right"], result.frame["right"].mean()
    sums = [(right[result.frame["meta_latent"] == m] - mean).sum() for m in range(6)]
    assert result.summary["standard_error"] == pytest.approx(np.sqrt(np.square(sums).sum()) / len(right))


def test_labels_of_another_dictionary_are_refused(topical):
    meta, tokens = topical
    other = replace(meta.sources[0], b_enc=meta.sources[0].b_enc + 1)
    with pytest.raises(ValueError, match=r"relu 60 .* was given in its place"):
        multiple_choice_test(meta, replace(labels_of(meta, tokens), dictionary=other.identity))
    with pytest.raises(ValueError, match="7 options need as many meta-latents, found 6"):
        multiple_choice_test(meta, labels_of(meta, tokens), n_options=7)


@pytest.mark.parametrize("changed", ["base", "meta-dictionary"])
def test_a_meta_sae_whose_dictionaries_have_changed_is_refused(changed):
    base = make(D_IN, 20, seed=3)
    meta = meta_of((base,))
    expected, kept = decomposition(meta, 0).frame, meta.bases
    tensor = (base if changed == "base" else meta.dictionary).W_dec
    tensor.mul_(-1)
    for use in (lambda: decomposition(meta, 0), lambda: meta.rebuilt(), lambda: meta.reconstruct()):
        with pytest.raises(ValueError, match="was given in its place"):
            use()
    assert meta.bases == kept
    tensor.mul_(-1)
    assert decomposition(meta, 0).frame.equals(expected)
