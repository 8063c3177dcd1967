"""Labels of latents and meta-latents against brute force over dense latents."""

from copy import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_world import DEAD, WORDS, make_world

from saekit.analysis import collect, logit_table, top_tokens
from saekit.analysis.labels import label_latents, label_meta_latents, words
from saekit.analysis.meta.sae import MetaSAE
from saekit.dictionary import Dictionary
from saekit.widgets import Evidence

WIDTHS = (8, 24)
WHOLE = {"king", "queen", "the", "of", "a&b", "river", "stone"}
INFO = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}}


@pytest.fixture(scope="module")
def world():
    """The toy world, and an embedding whose directions promote the word that a latent reads."""
    world = make_world()
    generator = torch.Generator().manual_seed(0)
    world.head = torch.linalg.qr(torch.randn(len(WORDS), world.x.shape[1], generator=generator)).Q.T
    world.logits = {w: logit_table(world.family[w], world.head, WORDS, n=6) for w in WIDTHS}
    world.labels = {
        w: label_latents(world.family[w], world.activations[w], world.store, WORDS, world.logits[w])
        for w in WIDTHS
    }
    return world


@pytest.fixture(scope="module")
def meta(world):
    """Meta-latents by hand: each active on latents near a random direction, the last one dead."""
    generator = torch.Generator().manual_seed(3)
    sources = tuple(world.family[width] for width in WIDTHS)
    rows = torch.nn.functional.normalize(torch.randn(5, world.x.shape[1], generator=generator), dim=1)
    threshold = torch.tensor([0.1, 0.1, 0.1, 0.1, 10.0])
    zero = torch.zeros(5), torch.zeros(world.x.shape[1])
    dictionary = Dictionary(rows.T.contiguous(), zero[0], rows, zero[1], threshold, info=INFO)
    return MetaSAE(dictionary, sources, torch.zeros(sum(WIDTHS), dtype=torch.bool))


def word(token):
    return token.strip() or token


def shares(world, width, latent):
    """Share of each token in the sum of a latent's 50 greatest activations, by brute force."""
    values = world.family[width].encode(world.x)[:, latent].double()
    tokens, found = world.store.tokens.flatten(), np.zeros(len(WORDS))
    for position in values.argsort(descending=True)[:50].tolist():
        found[tokens[position]] += float(values[position])
    return found / found.sum() if found.any() else found


def by_word(share):
    totals = {}
    for token, value in zip(WORDS, share, strict=True):
        totals[word(token)] = totals.get(word(token), 0) + value
    found = [found for found in sorted(totals, key=totals.get, reverse=True) if totals[found] > 0]
    # Spaces and markup are named only where no word has a quarter of their weight.
    whole = [w for w in found if w in WHOLE]
    return whole if whole and totals[whole[0]] >= totals[found[0]] / 4 else found


# ---------------------------------------------------------------------- latents


@pytest.mark.parametrize("width", WIDTHS)
def test_the_evidence_is_the_share_of_the_greatest_activations(world, width):
    expected = np.stack([shares(world, width, latent) for latent in range(width)])
    np.testing.assert_allclose(world.labels[width].tokens.toarray(), expected, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_labels_are_three_words_on_one_line(world, width):
    for latent in range(width):
        found = by_word(shares(world, width, latent))[:3]
        shown = [repr(w) if w in ("\n", "  ", "\u202eevil") else w for w in found]
        assert world.labels[width].of(latent) == (" · ".join(shown) if latent != DEAD else "dead")
        assert world.labels[width].of(latent).isprintable()


def test_words_are_named_before_punctuation_and_fragments():
    vocabulary = [",", " king", "ing", "\n", "King", "7", "'s", " \u738b", "\u738b"]

    def named(*weights):
        return words(range(len(weights)), weights, vocabulary)

    assert named(4, 1, 3) == ["king"]
    assert named(5, 1, 4) == [",", "ing", "king"]  # it would be misleading to name the king
    assert named(4, 1, 3, 0, 0.01) == ["king", "King"]  # a second word may be rare
    assert named(3, 0, 1, 2) == [",", "\n", "ing", "king"]
    assert named(0, 1, 0, 0, 2, 3) == ["7", "King", "king"]
    assert named(1, 0, 0, 0, 0, 0, 2, 0.5, 0.5)[0] == "\u738b"  # a script without capitals
    assert words([], [], vocabulary) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_words_are_those_of_the_explorers(world, width):
    evidence = Evidence(world.activations[width], world.store, WORDS)
    for latent, label in enumerate(world.labels[width].frame["label"]):
        own = evidence.words(latent, 3)
        assert [w.strip("'") for w in label.split(" · ")] == [repr(w).strip("'") for w in own or ["dead"]]


@pytest.mark.parametrize("width", WIDTHS)
def test_top_tokens_are_those_of_the_analysis(world, width):
    for row in world.labels[width].frame.itertuples():
        expected = top_tokens(world.activations[width], row.latent, world.store, WORDS, n=5)
        assert row.top_tokens == tuple(expected.frame["token"])


def test_labels_do_not_depend_on_how_many_latents_are_counted_at_a_time(world, monkeypatch):
    for entries in (1, 40, 300):
        monkeypatch.setattr("saekit.analysis.labels.ENTRIES", entries)
        found = label_latents(world.family[24], world.activations[24], world.store, WORDS, world.logits[24])
        pd.testing.assert_frame_equal(found.frame, world.labels[24].frame)


@pytest.mark.parametrize("width", WIDTHS)
def test_lift_is_the_rate_on_the_top_tokens_over_the_density(world, width):
    active, tokens = world.family[width].encode(world.x) > 0, world.store.tokens.flatten().tolist()
    for row in world.labels[width].frame.itertuples():
        inside = np.array([WORDS[token] in row.top_tokens for token in tokens])
        fires = active[:, row.latent].numpy()
        expected = fires[inside].mean() / fires.mean() if inside.any() else np.nan
        assert row.lift == pytest.approx(expected, nan_ok=True)


def test_tokens_that_are_rare_are_no_top_tokens(world):
    store = copy(world.store)
    store.__dict__["tokens"] = world.store.tokens.clone()
    once = (store.tokens == 1).nonzero()[:4]
    store.tokens[store.tokens == 1] = 2
    store.tokens[once[:, 0], once[:, 1]] = 1  # " king" occurs four times now
    found = label_latents(world.family[24], world.activations[24], store, WORDS)
    assert not any(WORDS[1] in tokens for tokens in found.frame["top_tokens"])
    with_rare = label_latents(world.family[24], world.activations[24], store, WORDS, min_count=4)
    assert WORDS[1] in with_rare.frame["top_tokens"][1]


def test_promoted_tokens_and_whether_they_are_the_own_ones(world):
    frame = world.labels[24].frame
    logits = (world.family[24].W_dec @ world.head).numpy()
    for row in frame.itertuples():
        order = np.argsort(-logits[row.latent])
        assert row.top_logits == tuple(WORDS[i] for i in order[:5])
        assert row.bottom_logits == tuple(WORDS[i] for i in order[::-1][:5])
        own, pushed = {word(t) for t in row.top_tokens}, {word(t) for t in row.top_logits}
        assert row.agrees == bool(own & pushed)
    assert frame["agrees"].drop(DEAD).all()  # in the toy world a latent promotes what it reads
    away = logit_table(world.family[24], -world.head, WORDS, n=2)
    opposed = label_latents(world.family[24], world.activations[24], world.store, WORDS, away)
    assert opposed.summary["share_agrees"] < 0.5


def test_a_dead_latent_is_labelled_as_such(world):
    row = world.labels[8].frame.loc[DEAD]
    assert row["dead"]
    assert row["label"] == world.labels[8].of(DEAD) == "dead"
    assert row["top_tokens"] == ()
    assert np.isnan(row["lift"])
    assert len(row["top_logits"]) == 5  # its direction still has an effect
    summary = world.labels[8].summary
    assert summary["n_dead"] == 1
    assert summary["n_distinct"] == len(set(world.labels[8].frame["label"]))
    assert summary["share_agrees"] == world.labels[8].frame["agrees"].drop(DEAD).mean()


def test_without_logits_there_are_no_logits(world):
    found = label_latents(world.family[8], world.activations[8], world.store, WORDS)
    assert "top_logits" not in found.frame
    assert "share_agrees" not in found.summary


def test_what_does_not_fit_is_refused(world):
    family, activations = world.family, world.activations
    other = replace(family[24], b_enc=family[24].b_enc + 1)  # of the same name, width and seed
    for dictionary, of_activations, logits in (
        (family[24], activations[8], None),
        (other, activations[24], None),
        (family[24], activations[24], world.logits[8]),
        (family[24], activations[24], logit_table(other, world.head, WORDS)),
    ):
        with pytest.raises(ValueError, match="was given in its place"):
            label_latents(dictionary, of_activations, world.store, WORDS, logits)
    with pytest.raises(ValueError, match=f"needs {len(WORDS)} display strings, found 3"):
        label_latents(family[24], activations[24], world.store, WORDS[:3])
    for latent, error in ((-1, IndexError), (24, IndexError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="latent"):
            world.labels[24].of(latent)


def test_excluded_positions_are_not_counted(world):
    """Positions that the store leaves out are neither evidence nor occurrences."""
    kept = torch.arange(0, len(world.x), 2)
    store = copy(world.store)
    store.__dict__["positions"] = kept
    activations = collect(world.family[24], world.x[kept])
    activations = type(activations)(**{**vars(activations), "positions": kept[activations.positions]})
    frame = label_latents(world.family[24], activations, store, WORDS).frame
    fires, tokens = (world.family[24].encode(world.x) > 0)[kept].numpy(), world.store.tokens.flatten()[kept]
    for row in frame.itertuples():
        if row.latent == DEAD:
            continue
        inside = np.array([WORDS[token] in row.top_tokens for token in tokens.tolist()])
        assert row.lift == pytest.approx(fires[inside, row.latent].mean() / fires[:, row.latent].mean())


# ---------------------------------------------------------------------- meta-latents


def test_meta_latents_are_told_from_their_latents(world, meta):
    found = label_meta_latents(
        meta, [world.labels[w] for w in WIDTHS], logit_table(meta.dictionary, world.head, WORDS)
    )
    of_latents = np.concatenate([[shares(world, w, i) for i in range(w)] for w in WIDTHS])
    activation = meta.dictionary.encode(meta.rows).double().numpy()
    usual = of_latents.sum(0) / of_latents.sum()
    for m, row in enumerate(found.frame.itertuples()):
        strongest = np.argsort(-activation[:, m], kind="stable")[:10]
        expected = activation[strongest, m] @ of_latents[strongest]
        if m == 4:
            assert row.label == "dead"
            assert row.dead
            assert found.tokens[[m]].nnz == 0
            continue
        expected /= expected.sum()
        np.testing.assert_allclose(found.tokens[[m]].toarray()[0], expected, atol=1e-6)
        top = [i for i in np.argsort(-expected)[:5] if expected[i] > 0]
        assert row.top_tokens == tuple(WORDS[i] for i in top)
        assert row.lift == pytest.approx(expected[top].sum() / usual[top].sum(), rel=1e-5)
        shown = [repr(w) if w in ("\n", "  ", "\u202eevil") else w for w in by_word(expected)[:3]]
        assert found.of(m) == " · ".join(shown)
        logits = (meta.dictionary.W_dec[m] @ world.head).numpy()
        assert row.top_logits == tuple(WORDS[i] for i in np.argsort(-logits)[:5])


def test_labels_of_other_bases_are_refused(world, meta):
    of_bases = [world.labels[8], world.labels[24]]
    for wrong in (
        [world.labels[24], world.labels[8]],
        [world.labels[8], replace(world.labels[24], dictionary=world.family[48].identity)],
    ):
        with pytest.raises(ValueError, match=r"dictionary of labels \d was .* given in its place"):
            label_meta_latents(meta, wrong)
    with pytest.raises(ValueError, match="has 2 bases, found labels of 1"):
        label_meta_latents(meta, of_bases[:1])
    with pytest.raises(ValueError, match="logit table was relu 24"):
        label_meta_latents(meta, of_bases, world.logits[24])
    found = label_meta_latents(meta, of_bases)
    assert found.dictionary == meta.identity
    assert found.name == meta.name
    assert len(repr(found)) < 200
