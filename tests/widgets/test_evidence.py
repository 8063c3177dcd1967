"""What the explorers look up: the same as the analyses give, and as brute force gives."""

import re
from copy import copy

import pytest
import torch
from toy_world import DEAD, WORDS

from saekit.analysis import insertion, top_tokens
from saekit.widgets import Evidence, NoveltyExplorer


def test_top_tokens_are_those_of_the_analysis(world):
    for width in world.family.widths:
        for latent in range(width):
            expected = top_tokens(world.activations[width], latent, world.store, WORDS, n=8).frame
            found = world.evidence[width].top_tokens(latent)
            assert [row[:3] for row in found] == list(
                expected[["token", "n_active", "count"]].itertuples(index=False, name=None)
            )
            assert [row[3] for row in found] == pytest.approx(expected["mean"].tolist(), rel=1e-12)


def test_words_are_ordered_by_their_share_of_the_greatest_activations(world):
    evidence, tokens = world.evidence[24], world.store.tokens.flatten()
    for latent in range(24):
        values = world.family[24].encode(world.x)[:, latent]
        totals = {}
        for position in values.argsort(descending=True)[:50].tolist():
            if values[position] > 0:
                word = WORDS[tokens[position]].strip() or WORDS[tokens[position]]
                totals[word] = totals.get(word, 0) + float(values[position])
        ordered = sorted(totals, key=totals.get, reverse=True)
        speaking = {"king", "queen", "the", "of", "a&b", "river", "stone"}  # neither space nor markup
        named = [word for word in ordered if word in speaking]
        heavy = named and totals[named[0]] >= totals[ordered[0]] / 4
        assert evidence.words(latent, 3) == (named if heavy else ordered)[:3]


def test_the_table_of_contexts_starts_at_the_greatest_activation(world):
    values = world.family[24].encode(world.x)
    for latent in (1, 2, 10):
        table = world.evidence[24].contexts_table(latent)
        peaks = [float(peak) for peak in re.findall(r"<td align=right><b>([\d.]+)</b>", table)]
        assert peaks[0] == pytest.approx(float(values[:, latent].max()), rel=5e-3)
        assert peaks == sorted(peaks, reverse=True)


def test_a_dead_latent_has_no_tables_but_its_logits(world):
    evidence = world.evidence[8]
    assert evidence.words(DEAD) == []
    assert evidence.label(DEAD) == f"{DEAD}  dead"
    for part in (evidence.contexts_table, evidence.intervals, evidence.histogram, evidence.tokens_table):
        assert part(DEAD) == ""
    assert "suppresses" in evidence.logits_table(DEAD)
    assert DEAD not in evidence.alive
    assert len(evidence.alive) == 7


def test_a_logit_table_of_another_width_is_refused(world):
    with pytest.raises(ValueError, match=r"logit table was relu 8 .*, but relu 24 "):
        Evidence(world.activations[8], world.store, WORDS, world.evidence[24].logits)


def test_novelty_with_latents_that_help_and_latents_that_hurt(world):
    """The words that the small dictionary lacks help when inserted; the ones it has hurt."""
    result = insertion(world.family[8], world.family[24], world.x)
    null = insertion(world.family[8], world.family.get(8, 1), world.x)
    explorer = NoveltyExplorer(result, world.evidence[24], null=null, small_evidence=world.evidence[8])
    frame = result.frame[~result.frame["dead"]]
    assert 0 < frame["novel_gain"].sum() < len(frame)
    for theta in (0.1, 0.5, 0.9):
        explorer.state.theta = theta
        at = result.at(theta)
        low, helps = frame["best_cosine"] < theta, frame["novel_gain"]
        partition = [(low & helps).sum(), (low & ~helps).sum(), (~low & helps).sum(), (~low & ~helps).sum()]
        text = explorer.static()
        table = text[text.index("Partition at") :]
        assert [int(n) for n in re.findall(r"<b>(\d+)</b> <small>", table)[:4]] == partition
        x, y = at["false_positive_rate"], at["true_positive_rate"]
        assert f"theta {theta:.2f} is at ({x:.2f}, {y:.2f})" in text
        assert str(null.large) in text


def test_a_missing_second_seed_is_said(world):
    assert "no second seed to compare" in NoveltyExplorer(world.insertion, world.evidence[48]).static()


def test_contexts_can_be_limited_to_sources(world):
    documents = [{**d, "source": "a" if i % 2 else "b"} for i, d in enumerate(world.store.documents)]
    store = copy(world.store)
    store.__dict__["documents"] = documents
    evidence = Evidence(world.activations[24], store, WORDS, sources=["a"])
    found = [context for latent in range(6) for context in evidence.top(latent)]
    assert found
    assert {context.source for context in found} == {"a"}
    assert torch.tensor([max(context.values) for context in found]).min() > 0
