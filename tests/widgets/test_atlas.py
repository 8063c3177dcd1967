"""The atlas of a family: its tables beside brute force, its search, and what it refuses."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_stores import in_memory
from toy_world import DEAD, WORDS, make_atlas

from saekit.agreement import MismatchError
from saekit.analysis import MetaSAE, label_latents, splitting_tree
from saekit.dictionary import Dictionary, Transcoder
from saekit.family import Family
from saekit.metrics import evaluate
from saekit.widgets import build_atlas
from saekit.widgets.atlas import Atlas


@pytest.fixture(scope="module")
def atlas(world):
    return make_atlas(world)


def cosines(world, a, b):
    """Between all latents of two dictionaries, in float64."""
    return (world.family.get(*a).W_dec.double() @ world.family.get(*b).W_dec.double().T).numpy()


@pytest.mark.parametrize("width", [8, 24, 48])
def test_a_table_holds_what_brute_force_finds(world, atlas, width):
    table = atlas.table(width)
    dense = world.family[width].encode(world.x)
    active = dense > 0
    assert table["n_active"].tolist() == active.sum(0).tolist()
    assert table["dead"].tolist() == (active.sum(0) == 0).tolist()
    assert table["dead"].iat[DEAD]
    assert np.allclose(table["density"], active.double().mean(0), atol=1e-12)
    assert np.allclose(table["max"], dense.amax(0), atol=1e-6)
    assert np.allclose(table["mean"], dense.double().sum(0) / active.sum(0).clamp(min=1), atol=1e-6)
    neighbours = {8: (None, 24), 24: (8, 48), 48: (24, None)}[width]
    for side, neighbour in zip(("smaller", "larger"), neighbours, strict=True):
        if neighbour:
            found = cosines(world, (width, 0), (neighbour, 0))
            assert np.allclose(table[f"{side}_cosine"], found.max(1), atol=1e-6)
            assert table[f"{side}_match"].tolist() == found.argmax(1).tolist()
        else:
            assert table[f"{side}_cosine"].isna().all()
            assert (table[f"{side}_match"] == -1).all()
    assert np.allclose(table["seed_cosine"], cosines(world, (width, 0), (width, 1)).max(1), atol=1e-6)
    assert table["mse_change"].isna().all() == (width != 48)


def test_what_a_latent_is_near_to(world, atlas):
    near = atlas.nearest(24, 3, n=2)
    for width in (8, 48):
        found = cosines(world, (24, 0), (width, 0))[3]
        of_width = near[near["width"] == width]
        assert of_width["latent"].tolist() == np.argsort(-found, kind="stable")[:2].tolist()
        assert np.allclose(of_width["cosine"], np.sort(found)[:-3:-1], atol=1e-6)
        assert of_width["label"].tolist() == [atlas.label(width, i) for i in of_width["latent"]]
    (seed,) = atlas.seeds(24, 3).itertuples()
    found = cosines(world, (24, 0), (24, 1))[3]
    assert (seed.seed, seed.latent) == (1, found.argmax())
    assert seed.cosine == pytest.approx(found.max(), abs=1e-6)
    assert atlas.meta_latents(24, 3).empty


def slow_search(atlas, word):
    """Latents whose label or tokens contain a word."""
    found = set()
    for width in atlas.widths:
        for row in atlas.labels[width].frame.itertuples():
            tokens = [*row.label.split(" · "), *row.top_tokens]
            if any(word in token.strip().casefold() for token in tokens):
                found.add((width, row.latent))
    return found


@pytest.mark.parametrize("query", ["king", "KING", "ee", "script>", "&b", "evil", "nothing"])
def test_a_search_finds_every_latent_that_has_the_word(atlas, query):
    found = atlas.search(query, n=1000)
    assert set(zip(found["width"], found["latent"], strict=True)) == slow_search(atlas, query.casefold())
    assert found["score"].is_monotonic_decreasing


def test_labels_come_before_tokens_and_whole_words_before_parts(atlas):
    found = atlas.search("king", n=1000)
    whole = [" · ".join(["", *label.split(" · "), ""]) for label in found["label"]]
    is_whole = ["· king ·" in label for label in whole]
    assert is_whole[0]
    assert is_whole == sorted(is_whole, reverse=True)
    assert found["where"].iat[0] == "label"
    part = atlas.search("kin", n=1000)
    assert part["score"].iat[0] < found["score"].iat[0]


def test_every_word_of_a_query_counts(atlas):
    both = atlas.search("king queen", n=1000)
    expected = slow_search(atlas, "king") & slow_search(atlas, "queen")
    assert set(zip(both["width"], both["latent"], strict=True)) == expected
    assert atlas.search("  ").empty
    assert atlas.search("").empty


def test_a_latent_is_found_by_its_number(atlas):
    assert atlas.search("24/17")[["width", "latent"]].to_numpy().tolist() == [[24, 17]]
    assert sorted(atlas.search("17")["width"]) == [24, 48]
    assert atlas.search("24/1700").empty


@pytest.mark.parametrize("query", [",/3", "/3", "3" * 5000, f"{'9' * 5000}/1", "9" * 30, "[(*", "x" * 10_000])
def test_a_query_without_sense_finds_nothing(atlas, query):
    assert atlas.search(query).empty


def test_a_pasted_page_is_searched_no_further_than_its_first_word_without_a_match(atlas, monkeypatch):
    asked = []
    matching = Atlas._matching
    monkeypatch.setattr(Atlas, "_matching", lambda self, word: asked.append(word) or matching(self, word))
    assert atlas.search("king " * 5000 + " ".join(f"nothing{i}" for i in range(5000))).empty
    assert asked == ["king", "nothing0"]
    with pytest.raises(TypeError, match="query must be a str, found int"):
        atlas.search(3)


def test_every_width_has_every_column(atlas):
    assert len({tuple(atlas.table(width).columns) for width in atlas.widths}) == 1
    assert atlas.table(8)["mse_change"].isna().all()
    assert atlas.table(48)["mse_change"].notna().all()


@pytest.mark.parametrize(
    ("widths", "seeds"), [((24,), (0, 1)), ((8, 24), (0,)), ((24,), (0,))], ids=lambda given: str(given)
)
def test_families_of_one_width_and_without_seeds(world, widths, seeds):
    family = Family(world.family.get(width, seed) for width in widths for seed in seeds)
    atlas = build_atlas(family, world.store, vocabulary=WORDS, keep=False, progress=False)
    assert (atlas.tree is None) == (len(widths) == 1)
    table = atlas.table(24)
    assert table["seed_cosine"].isna().all() == (seeds == (0,))
    if seeds == (0, 1):
        assert np.allclose(table["seed_cosine"], cosines(world, (24, 0), (24, 1)).max(1), atol=1e-6)
    assert len(atlas.seeds(24, 0)) == len(seeds) - 1
    assert (table["status"] == ("" if len(widths) == 1 else "leaf")).all()


def test_topk_latents(world):
    topk = replace(
        world.family[8], k=2, threshold=torch.zeros(8), info=world.family[8].info | {"kind": "topk"}
    )
    atlas = build_atlas(Family([topk]), world.store, vocabulary=WORDS, keep=False, progress=False)
    assert atlas.table(8)["density"].sum() == pytest.approx(evaluate(topk, world.store).l0)


def test_a_transcoder_has_no_logit_effects(world):
    sae = world.family[8]
    parts = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    info = {"kind": "relu", "seed": 0, "hook_point": "toy", "target": "elsewhere"}
    transcoder = Transcoder(**parts, info=info)
    x = world.x.view(*world.store.tokens.shape, -1)
    store = in_memory(
        torch.cat([x, x], dim=-1), tokens=world.store.tokens, special=world.store.special,
        excluded=world.store.excluded, documents=world.store.documents,
    )  # fmt: skip
    store.manifest.update(d_in=12, d_out=12, target="elsewhere")
    atlas = build_atlas(Family([transcoder]), store, vocabulary=WORDS, keep=False, progress=False)
    assert atlas.table(8)["n_active"].tolist() == world.activations[8].counts.tolist()
    assert "no logits" in atlas.evidence[8].logits_table(0)


def test_meta_latents_of_a_latent(world):
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}, "meta": {"recipe": {"name": "toy"}}}
    words = Dictionary(
        W_enc=world.family[8].W_dec.T.contiguous(), b_enc=torch.zeros(8), W_dec=world.family[8].W_dec,
        b_dec=torch.zeros(12), threshold=torch.full((8,), 0.15),
        info=info,
    )  # fmt: skip
    meta = MetaSAE(words, (world.family[24],), torch.zeros(24, dtype=torch.bool))
    atlas = make_atlas(world, meta=meta)
    inner = world.family[24].W_dec[3].double() @ world.family[8].W_dec.double().T
    expected = [int(i) for i in inner.argsort(descending=True) if inner[i] > 0.15]
    found = atlas.meta_latents(24, 3)
    assert found["meta_latent"].tolist() == expected
    assert found["label"].tolist() == [atlas.meta_labels.of(i) for i in expected]
    assert atlas.table(24)["meta_latents"].iat[3] == len(expected)
    assert atlas.table(48)["meta_latents"].isna().all()
    assert atlas.meta_latents(48, 3).empty


def test_a_second_call_collects_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path))
    first = build_atlas(world.family, world.store, vocabulary=WORDS, progress=False)
    assert list(tmp_path.rglob("collect-*.pickle"))

    def refuse(*_args, **_kwargs):
        raise AssertionError("encoded again")

    for name in ("encode_sparse", "encode"):
        monkeypatch.setattr(f"saekit.dictionary.Dictionary.{name}", refuse)
    again = build_atlas(world.family, world.store, vocabulary=WORDS, progress=False)
    for width in (8, 24, 48):
        assert again.table(width).equals(first.table(width))
    with pytest.raises(AssertionError, match="encoded again"):
        make_atlas(world)


def test_what_it_refuses(world, atlas):
    family, store = world.family, world.store
    other = Family([family.get(8, 1), family.get(24, 1)])
    pair = Family([family[8], family[24]])
    seedless = Family([family[width] for width in family.widths])
    elsewhere = Family([replace(family[8], info=family[8].info | {"hook_point": "elsewhere"})])
    labels = label_latents(family[8], world.activations[8], store, WORDS)
    for wrong, error, given in [
        ("activations must be an ActivationStore, found Tensor", TypeError, {"activations": world.x}),
        ("family must be a Family", TypeError, {"family": family[8]}),
        ("tree must be a SplittingTree", TypeError, {"tree": world.insertion}),
        ("Without a model, the vocabulary", TypeError, {"vocabulary": None}),
        ("needs 12 display strings", ValueError, {"vocabulary": WORDS[:3]}),
        ("which is not among the family's", ValueError, {"insertion": world.insertion, "family": pair}),
        ("which is not among the family's", ValueError, {"tree": splitting_tree(other)}),
        ("tree has widths 8 and 24", ValueError, {"tree": splitting_tree(pair)}),
        ("tree compares other seeds", ValueError, {"tree": splitting_tree(seedless)}),
        ("labels must be a dict of Labels", TypeError, {"labels": [labels]}),
        ("labels must be a dict of Labels", TypeError, {"labels": {8: "king"}}),
        ("sources must be a list of names, found 'toy'", TypeError, {"sources": "toy"}),
        ("The store has sources", ValueError, {"sources": ["none"]}),
        ("labels has a width 16", ValueError, {"labels": {16: labels}}),
        ("dictionary of width 24 was", ValueError, {"labels": {24: labels}}),
        ("hook point", MismatchError, {"family": elsewhere}),
    ]:
        call = {"family": family, "activations": store, "vocabulary": WORDS, "keep": False, "progress": False}
        with pytest.raises(error, match=wrong):
            build_atlas(**call | given)
    for wrong, error, at in [
        ("widths 8, 24 and 48, found 16", ValueError, (16, 0)),
        ("latent of width 24", IndexError, (24, 24)),
        ("whole number", TypeError, (24, 1.5)),
    ]:
        for look_up in (atlas.label, atlas.nearest, atlas.seeds, atlas.meta_latents):
            with pytest.raises(error, match=wrong):
                look_up(*at)


def test_given_labels_are_used(world):
    labels = label_latents(world.family[8], world.activations[8], world.store, WORDS)
    renamed = replace(labels, frame=labels.frame.assign(label=[f"name {i}" for i in range(8)]))
    atlas = make_atlas(world, labels={8: renamed})
    assert atlas.label(8, 3) == atlas.table(8)["label"].iat[3] == "name 3"
    assert atlas.search("name 3")["latent"].tolist() == [3]
    assert atlas.labels[24].frame["label"].equals(make_atlas(world).labels[24].frame["label"])


def test_tables_of_tens_of_thousands_of_latents_take_seconds(wide_atlas):
    wide_atlas._tables.clear()
    start = time.perf_counter()
    assert len(wide_atlas.table(49_152)) == 49_152
    wide_atlas.search("king")
    assert time.perf_counter() - start < 5
    start = time.perf_counter()
    assert len(wide_atlas.search("king", n=20)) == 20
    assert time.perf_counter() - start < 0.5


def test_a_second_call_reads_what_the_first_has_kept(world, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path))
    call = {"activations": world.store, "vocabulary": WORDS, "progress": False}
    first = build_atlas(world.family, **call)

    def refuse(*_args, **_kwargs):
        raise AssertionError("collects again")

    monkeypatch.setattr("saekit.analysis.latents.one_pass", refuse)
    second = build_atlas(world.family, **call)
    for width in world.family.widths:
        assert second.table(width).equals(first.table(width))
    with pytest.raises(AssertionError, match="collects again"):
        build_atlas(world.family, **call, keep=False)
