import math

import numpy as np
import pytest
import torch

from saekit.analysis import measure_splitting, splitting_tree
from saekit.dictionary import Dictionary
from saekit.family import Family


def dictionary(rows: torch.Tensor, *, seed: int = 0) -> Dictionary:
    rows = torch.nn.functional.normalize(rows.double(), dim=1).float()
    width, d_in = rows.shape
    return Dictionary(
        W_enc=rows.T.contiguous(),
        b_enc=torch.zeros(width),
        W_dec=rows,
        b_dec=torch.zeros(d_in),
        threshold=torch.zeros(width),
        info={"kind": "relu", "seed": seed},
    )


def directions(*angles: float) -> Dictionary:
    """Directions in the plane, in degrees: their cosines are those of the differences."""
    radians = torch.tensor(angles, dtype=torch.float64) * math.pi / 180
    return dictionary(torch.stack([radians.cos(), radians.sin()], dim=1))


def reference(small: Dictionary, large: Dictionary, theta: float) -> tuple[list[int], list[str]]:
    """The definition, latent by latent."""
    cosines = (large.W_dec.double() @ small.W_dec.double().T).numpy()
    parents = [int(row.argmax()) if row.max() >= theta else -1 for row in cosines]
    statuses = []
    for j in range(small.width):
        children = [i for i, parent in enumerate(parents) if parent == j]
        if len(children) >= 2:
            statuses.append("split")
        elif not children:
            statuses.append("lost")
        else:
            mutual = cosines[:, j].argmax() == children[0]
            same = mutual and cosines[children[0], j] >= 0.9
            statuses.append("identical" if same else "refined")
    return parents, statuses


def test_each_status_on_directions_in_the_plane() -> None:
    result = measure_splitting(directions(0, 90, 180, 270), directions(-10, 12, 95, 150))
    assert result.frame["parent"].tolist() == [0, 0, 1, 2]
    assert result.frame_small["status"].tolist() == ["split", "identical", "refined", "lost"]
    assert result.frame_small["children"].tolist() == [2, 1, 1, 0]
    assert result.frame["status"].tolist() == ["split", "split", "identical", "refined"]
    cosines = [math.cos(math.radians(angle)) for angle in (10, 12, 5, 30)]
    assert result.frame["cosine"].tolist() == pytest.approx(cosines, abs=1e-6)


def test_where_nothing_splits_no_latent_is_most_split() -> None:
    tree = splitting_tree(Family([directions(0, 90), directions(1, 91, 45)]), theta=0.9)
    assert set(tree.nodes["status"]) == {"identical", "leaf"}
    found = tree.most_split(3)
    assert found.empty
    assert list(found) == ["width", "latent", "children", "descendants"]


def test_only_child_under_the_identity_cosine_is_refined() -> None:
    result = measure_splitting(directions(0), directions(30))
    assert result.frame_small["status"].tolist() == ["refined"]
    result = measure_splitting(directions(0), directions(25))
    assert result.frame_small["status"].tolist() == ["identical"]


def test_only_child_that_is_not_a_mutual_best_match_is_refined() -> None:
    # The only child of 20 is 44 (cosine 0.91), but 20's own best match is 13, a child of 11.
    small, large = directions(20, 11), directions(13, 44)
    result = measure_splitting(small, large)
    assert result.frame["parent"].tolist() == [1, 0]
    assert result.frame_small["status"].tolist() == ["refined", "identical"]


def test_lost_and_novel() -> None:
    result = measure_splitting(directions(0, 120), directions(5, 230))
    assert result.frame_small["status"].tolist() == ["identical", "lost"]
    assert result.frame["status"].tolist() == ["identical", "novel"]
    assert result.frame["parent"].tolist() == [0, -1]
    assert result.frame["best_match"].tolist() == [0, 1]
    assert result.summary["share_lost"] == result.summary["share_novel"] == 0.5


@pytest.mark.parametrize("theta", [0.2, 0.7, 0.95])
def test_agrees_with_the_definition_on_random_directions(theta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    small = dictionary(torch.randn(40, 3, generator=generator))
    large = dictionary(torch.randn(70, 3, generator=generator))
    result = measure_splitting(small, large, theta=theta)
    parents, statuses = reference(small, large, theta)
    assert result.frame["parent"].tolist() == parents
    assert result.frame_small["status"].tolist() == statuses
    flows = result.flows.set_index("status")
    assert flows["small_latents"].sum() == 40
    assert flows["large_latents"].sum() == 70
    for status in flows.index[:4]:
        assert flows.loc[status, "small_latents"] == statuses.count(status) == result.summary[f"n_{status}"]
        inside = [parent for parent in parents if parent >= 0 and statuses[parent] == status]
        assert flows.loc[status, "large_latents"] == len(inside)
    assert flows.loc["novel", "large_latents"] == parents.count(-1) == result.summary["n_novel"]


@pytest.fixture(scope="module")
def tree():
    generator = torch.Generator().manual_seed(1)
    members = [dictionary(torch.randn(width, 3, generator=generator)) for width in (6, 15, 40)]
    members.append(dictionary(torch.randn(15, 3, generator=generator), seed=1))
    return splitting_tree(Family(members), theta=0.8)


def test_walking_the_tree_agrees_with_its_edges(tree) -> None:
    edges = {
        (row.width, row.latent): (row.parent_width, row.parent, row.cosine) for row in tree.frame.itertuples()
    }
    for width in tree.widths:
        for latent in range(width):
            parent = tree.parent(width, latent)
            if (width, latent) not in edges:
                assert parent is None
                continue
            assert (parent["width"], parent["latent"], parent["cosine"]) == edges[width, latent]
    for width in tree.widths[:-1]:
        for latent in range(width):
            children = tree.children(width, latent)
            expected = {key for key, value in edges.items() if value[:2] == (width, latent)}
            assert {(child["width"], child["latent"]) for child in children} == expected
            cosines = [child["cosine"] for child in children]
            assert cosines == sorted(cosines, reverse=True)
    assert tree.children(40, 0) == []


def test_ancestors_and_subtree_are_two_views_of_one_tree(tree) -> None:
    def walk(node, path):
        ancestors = [(a["width"], a["latent"]) for a in tree.ancestors(node["width"], node["latent"])]
        assert ancestors == path
        here = (node["width"], node["latent"])
        return 1 + sum(walk(child, [here, *path]) for child in node["children"])

    sizes = {latent: walk(tree.subtree(6, latent), []) for latent in range(6)}
    split = tree.most_split(100, width=6).set_index("latent")
    assert {latent: sizes[latent] - 1 for latent in split.index} == split["descendants"].to_dict()
    assert split["children"].is_monotonic_decreasing
    assert (tree.most_split(3)["children"] >= 2).all()


def test_most_readable_is_the_mean_score_over_whole_trees(tree) -> None:
    random = np.random.default_rng(0)
    scores = {width: random.random(width) for width in tree.widths}
    scores[15][::4] = np.nan

    def of_tree(node):
        own = scores[node["width"]][node["latent"]]
        return [0 if np.isnan(own) else own, *(s for child in node["children"] for s in of_tree(child))]

    found = tree.most_readable(scores, descendants=(3, 9))
    every = tree.most_split(1000)
    wanted = every[(every["descendants"] >= 3) & (every["descendants"] <= 9)]
    assert len(found) == len(wanted) > 3
    assert set(zip(found["width"], found["latent"], strict=True)) == set(
        zip(wanted["width"], wanted["latent"], strict=True)
    )
    for row in found.itertuples():
        assert row.score == pytest.approx(np.mean(of_tree(tree.subtree(row.width, row.latent))))
    assert found["score"].is_monotonic_decreasing
    assert tree.most_readable(scores, descendants=(1000, 2000)).empty


def test_most_readable_needs_a_score_for_every_latent(tree) -> None:
    scores = {width: np.ones(width) for width in tree.widths}
    with pytest.raises(ValueError, match=r"each of the 15 latents of width 15, found shape \(14,\)"):
        tree.most_readable(scores | {15: np.ones(14)})
    with pytest.raises(ValueError, match=r"latents of width 6, found none"):
        tree.most_readable({15: np.ones(15), 40: np.ones(40)})


def test_nodes_and_flows_count_every_latent(tree) -> None:
    nodes = tree.nodes
    assert nodes.groupby("width").size().to_dict() == {6: 6, 15: 15, 40: 40}
    assert (nodes.loc[nodes["width"] == 40, "status"] == "leaf").all()
    assert nodes.loc[nodes["width"] == 6, "cosine"].isna().all()
    children = tree.frame.groupby(["parent_width", "parent"]).size()
    for row in nodes.itertuples():
        assert row.children == children.get((row.width, row.latent), 0)
    flows = tree.flows.groupby("small_width")[["small_latents", "large_latents"]].sum()
    assert flows.loc[6].tolist() == [6, 15]
    assert flows.loc[15].tolist() == [15, 40]


def test_nulls_stand_beside_the_pairs(tree) -> None:
    table = tree.table.set_index(["pair", "measure"])
    (null,) = (found.summary for found in tree.nulls[15])
    for measure in ("split", "identical", "refined", "lost", "novel"):
        first, second = table.loc[("6 → 15", measure)], table.loc[("15 → 40", measure)]
        assert first["null_large"] == second["null_small"] == null[f"share_{measure}"]
        assert np.isnan(first["null_small"])
        assert np.isnan(second["null_large"])
        assert first["note"] == "no second seed of 6"
        assert first["share"] == tree.pairs[6].summary[f"share_{measure}"]
    assert tree.summary["pairs"]["15 → 40"]["novel"] == tree.pairs[15].summary["share_novel"]


def test_asking_for_a_latent_that_is_not_there(tree) -> None:
    with pytest.raises(ValueError, match=r"widths \[6, 15, 40\], found 7"):
        tree.children(7, 0)
    with pytest.raises(IndexError, match="A latent of width 6 must be between 0 and 5, found 6"):
        tree.subtree(6, 6)
    with pytest.raises(ValueError, match="at least two widths"):
        splitting_tree(Family([directions(0, 1)]))


def test_every_other_seed_is_a_null_and_the_table_averages_them() -> None:
    generator = torch.Generator().manual_seed(2)
    members = [dictionary(torch.randn(width, 3, generator=generator)) for width in (6, 15)]
    members += [dictionary(torch.randn(6, 3, generator=generator), seed=seed) for seed in (1, 2)]
    tree = splitting_tree(Family(members), theta=0.8)
    assert [[found.large.seed for found in tree.nulls[width]] for width in (6, 15)] == [[1, 2], []]
    shares = [found.summary["share_novel"] for found in tree.nulls[6]]
    row = tree.table.set_index("measure").loc["novel"]
    assert shares[0] != shares[1]
    assert row["null_small"] == pytest.approx(sum(shares) / 2)
    assert np.isnan(row["null_large"])


def test_the_small_dictionary_comes_first() -> None:
    with pytest.raises(ValueError, match="swap them"):
        measure_splitting(directions(0, 90, 180), directions(0, 90))
