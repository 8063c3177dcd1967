"""The meta-SAE explorer: both directions, and switching meta-latents off, against dense products."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import traitlets
from toy_meta import DEAD, make_labels, make_meta
from toy_world import WORDS
from widget_checks import live_widgets, shown

from saekit.analysis import MetaSAE, collect
from saekit.charts.model import Link
from saekit.colours import LATENT, META
from saekit.dictionary import Dictionary
from saekit.widgets import Evidence
from saekit.widgets.meta_explorer import N_LOGITS, N_MEMBERS, MetaExplorer


@pytest.fixture(scope="module")
def meta(world):
    return make_meta([world.family[width] for width in world.family.widths])


@pytest.fixture(scope="module")
def head(world):
    return torch.randn(12, len(WORDS), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def explorer(world, meta, head):
    explorer = MetaExplorer(meta, world.evidence, head, labels=make_labels(meta), width=24, latent=1)
    assert explorer.view
    return explorer


def dense(meta, width, latent):
    """Activations of all meta-latents on a latent, by a dense product in float64."""
    row = meta.sources[meta.widths.index(width)].W_dec[latent].double()
    h = row @ meta.dictionary.W_enc.double() + meta.dictionary.b_enc.double()
    return torch.where(h > meta.dictionary.threshold.double(), h, 0.0), row


def rebuilt(meta, width, latent, off):
    activations, row = dense(meta, width, latent)
    activations[list(off)] = 0
    return activations @ meta.dictionary.W_dec.double() + meta.dictionary.b_dec.double(), row


def test_a_latent_is_shown_with_its_meta_latents(meta, explorer):
    for width, latent in ((24, 1), (48, 5), (8, 3)):
        explorer.show(width=width, latent=latent)
        activations, _ = dense(meta, width, latent)
        expected = activations.nonzero()[:, 0].tolist()
        lines = [switch.description for switch in explorer._switches if switch.layout.display != "none"]
        assert len(lines) == len(expected) > 0
        for line in lines:
            activation, _, meta_latent = line.split()[:3]
            assert f"{activations[int(meta_latent)]:.2f}" == activation
        table = explorer.static()
        for meta_latent in expected:
            assert re.search(
                rf"<b>{meta_latent}</b></td><td align=right>{activations[meta_latent]:.2f}", table
            )


def test_switching_off_rebuilds_the_direction(world, meta, head, explorer):
    explorer.show(width=48, latent=13)
    active = dense(meta, 48, 13)[0].nonzero()[:, 0].tolist()
    for off in ((), active[:1], active):
        explorer.state.off = tuple(off)
        direction, row = rebuilt(meta, 48, 13, off)
        text = shown(explorer)
        cosine = float(F.cosine_similarity(direction, row, dim=0))
        assert f"direction <b>{cosine:#.3g}</b>".replace("-", "\u2212") in text
        assert f"<b>{len(active) - len(off)} of {len(active)}</b>" in text
        order = (direction @ head.double()).argsort(descending=True)[:N_LOGITS].tolist()
        table = explorer._effects(explorer._rebuild()[None])[0]
        assert table["top_token"].tolist() == [WORDS[i] for i in order]
        own = (row @ head.double()).argsort(descending=True)[:N_LOGITS].tolist()
        assert f"{len(set(own) & set(order))} of the {N_LOGITS} tokens that it promotes most" in text


def test_boxes_and_state_are_one(explorer):
    explorer.show(width=48, latent=13)
    first = explorer._active(48, 13)[0]
    explorer._switches[0].value = False
    assert explorer.state.off == (first,)
    assert not explorer._all_on.disabled
    explorer._all_on.click()
    assert explorer.state.off == ()
    assert explorer._switches[0].value
    explorer.state.off = (first,)
    assert not explorer._switches[0].value
    assert "stroke-dasharray" in explorer.charts["related"].svg()
    explorer.state.latent = 14
    assert explorer.state.off == ()
    assert all(switch.value for switch in explorer._switches if switch.layout.display != "none")


def test_the_meta_latent_stays_if_it_is_among_the_latents_own(meta, explorer):
    for latent in range(24):
        before = explorer.state.meta_latent
        explorer.state.latent = latent
        activations, _ = dense(meta, 24, latent)
        if activations[before] > 0 or not activations.any():
            assert explorer.state.meta_latent == before
        else:
            assert explorer.state.meta_latent == int(activations.argmax())


def test_a_meta_latent_is_shown_with_its_members(world, meta, explorer):
    explorer.state.meta_latent = 2
    all_of_them = torch.cat(
        [torch.stack([dense(meta, width, i)[0][2] for i in range(width)]) for width in meta.widths]
    )
    text = shown(explorer)
    count = int((all_of_them > 0).sum())
    assert f"Active on <b>{count}</b> of 80 latents" in text
    assert f"greatest <b>{float(all_of_them.max()):#.3g}</b>" in text
    options = [value for _, value in explorer._members.options]
    assert len(options) == min(N_MEMBERS, count)
    offset = dict(zip(meta.widths, np.cumsum([0, *meta.widths[:-1]]), strict=True))
    values = [float(all_of_them[offset[width] + latent]) for width, latent in options]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(values, all_of_them.sort(descending=True).values[: len(options)], rtol=1e-5)
    drawn = re.findall(r"<title>[^<]*: (\d+) latents?</title>", explorer.charts["histogram"].svg())
    assert sum(map(int, drawn)) == count


def test_a_meta_latent_without_a_label_is_named_by_its_members(world, meta, head):
    explorer = MetaExplorer(meta, world.evidence, head, width=24, latent=1)
    for meta_latent in (1, 2, DEAD):
        members = meta.members(meta_latent, 6).itertuples()
        words = dict.fromkeys(w for m in members for w in world.evidence[m.width].words(m.latent, 1))
        explorer.state.meta_latent = meta_latent
        assert f"<h3>Meta-latent {meta_latent}: {' · '.join(words) or 'dead'}</h3>" in shown(explorer)


def test_choosing_a_member_goes_there_and_keeps_the_meta_latent(explorer):
    explorer.state.meta_latent = 2
    target = next(
        v for _, v in explorer._members.options if v != (explorer.state.width, explorer.state.latent)
    )
    explorer._members.value = target
    assert (explorer.state.width, explorer.state.latent) == target
    assert explorer.state.meta_latent == 2


def test_choosing_one_of_the_latents_meta_latents_shows_it(explorer):
    explorer.show(width=48, latent=13)
    chosen = explorer._chooser.options[-1][1]
    explorer._chooser.value = chosen
    assert explorer.state.meta_latent == chosen
    assert f"Meta-latent {chosen}:" in shown(explorer)


def test_the_graph_has_a_line_for_every_relation(world, meta, explorer):
    explorer.show(width=48, latent=1)
    own = meta.of(1, base=2).head(5)
    leaves = 0
    for meta_latent in own["meta_latent"]:
        members = meta.members(meta_latent, meta.width * 9)
        leaves += min(5, sum((m.width, m.latent) != (48, 1) for m in members.itertuples()))
    chart = explorer.charts["related"]
    links = [mark for mark in chart.panels[0].marks if isinstance(mark, Link)]
    assert sum(link.colour == LATENT for link in links) == leaves > 5
    widths = [link.width for link in links if link.colour == META]
    np.testing.assert_allclose(widths, 10 * own["activation"])
    assert chart.svg().count("C") >= len(links)
    assert len(explorer.figure("related").figure.axes[0].patches) >= len(links)


@pytest.mark.slow
def test_every_latent_and_meta_latent_can_be_shown(world, meta, explorer):
    for width in meta.widths:
        for latent in range(width):
            explorer.show(width=width, latent=latent)
            for text in (shown(explorer), explorer.static() if latent < len(WORDS) else ""):
                assert not text or f"Latent {latent} of relu {width}" in text
                assert "<script" not in text.lower()
                assert "<b>source</b>" not in text
                assert "\u202e" not in text, "a direction override would reorder the text around it"
    for meta_latent in range(meta.width):
        explorer.state.meta_latent = meta_latent
        assert f"Meta-latent {meta_latent}:" in shown(explorer)
    assert "Dead: active on none of the 80 latents" in explorer.static()
    explorer.show(width=8, latent=7)
    assert "never active" in shown(explorer)


def test_a_latent_without_meta_latents_says_so(world, meta, head):
    silent = Dictionary(
        W_enc=meta.dictionary.W_enc,
        b_enc=meta.dictionary.b_enc,
        W_dec=meta.dictionary.W_dec,
        b_dec=torch.zeros(12),
        threshold=torch.full((meta.width,), 0.9),
        info=meta.dictionary.info,
    )
    strict = MetaSAE(silent, meta.sources, meta.held_out)
    explorer = MetaExplorer(strict, world.evidence, head, labels=make_labels(strict))
    latent = next(i for i in range(48) if strict.of(i).empty)
    explorer.show(width=48, latent=latent)
    assert "no meta-latent reaches the threshold" in shown(explorer)
    assert "<b>0 of 0</b>" in explorer.static()
    assert "direction <b>\u2013</b>" in explorer.static()  # nothing is left of it


def test_static_form_is_self_contained_and_deterministic(explorer):
    first, second = explorer.static(), explorer.static()
    assert first == second
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:|//)", first)
    assert "@import" not in first


def test_a_link_only_where_the_dictionary_names_its_page(world, head, meta):
    source = world.family[48]
    known = Dictionary(
        source.W_enc, source.b_enc, source.W_dec, source.b_dec, source.threshold,
        info={**source.info, "neuronpedia_id": 'gpt2-small/8-res "fs"'},
    )  # fmt: skip
    linked = make_meta([world.family[8], known])
    evidence = {8: world.evidence[8], 48: Evidence(collect(known, world.x), world.store, WORDS)}
    explorer = MetaExplorer(linked, evidence, head, labels=make_labels(linked), width=48, latent=13)
    url = "https://www.neuronpedia.org/gpt2-small/8-res%20%22fs%22/13"
    assert f'href="{url}"' in shown(explorer)
    explorer.show(width=8, latent=1)
    assert "neuronpedia" not in shown(explorer)


def test_off_the_residual_stream_no_effects_are_shown(world, head):
    """The dimensions agree, but what is inside a block is not read by the unembedding."""
    sources = [
        replace(world.family[w], info={**world.family[w].info, "hook_point": "blocks.3.attn.hook_q"})
        for w in (8, 24)
    ]
    evidence = {s.width: Evidence(collect(s, world.x), world.store, WORDS) for s in sources}
    inside = make_meta(sources)
    for unembedding in (None, head):
        text = shown(MetaExplorer(inside, evidence, unembedding, labels=make_labels(inside)))
        assert text.count("Logit effects need directions in the residual stream") == 2
        assert "suppresses" not in text
        assert "cosine with the latent's own direction" in text


def test_the_code_line_brings_back_the_selection(explorer):
    explorer.show(width=48, latent=13)
    explorer.show(off=tuple(explorer._active(48, 13)[:1]), meta_latent=3)
    line, picture = explorer.code(), explorer.static()
    explorer.show(width=8, latent=1)
    eval(line, {"explorer": explorer})
    assert explorer.code() == line
    assert explorer.static() == picture


def test_random_choices_are_alive_and_the_same_every_time(world, meta, head):
    chosen = []
    for _ in range(2):
        explorer = MetaExplorer(meta, world.evidence, head, labels=make_labels(meta), width=8, latent=0)
        picks = []
        for _ in range(10):
            explorer._any_latent()
            explorer._any_meta_latent()
            picks.append((explorer.state.latent, explorer.state.meta_latent))
        chosen.append(picks)
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 3
    assert all(latent in world.evidence[8].alive and meta_latent != DEAD for latent, meta_latent in chosen[0])


def test_changing_the_width_follows_the_most_similar_direction(world, explorer):
    explorer.show(width=24, latent=3)
    expected = int((world.family[48].W_dec @ world.family[24].W_dec[3]).argmax())
    explorer.state.width = 48
    assert explorer.state.latent == expected


@pytest.mark.slow
def test_a_hundred_updates_make_no_new_widgets_and_closing_leaves_none(world, meta, head):
    before = live_widgets()
    explorer = MetaExplorer(meta, world.evidence, head, labels=make_labels(meta))
    assert explorer.view
    during = live_widgets()
    for i in range(100):
        explorer.show(width=(8, 24, 48)[i % 3], latent=i % 8)
        explorer.state.meta_latent = i % meta.width
    assert live_widgets() == during
    explorer.close()
    assert live_widgets() == before


@pytest.mark.parametrize(
    "selection",
    [{"latent": 24}, {"width": 9}, {"meta_latent": 9}, {"meta_latent": -1}, {"off": (DEAD,)}, {"theta": 0.5}],
)
def test_states_that_do_not_exist_are_refused(explorer, selection):
    before = explorer.code()
    with pytest.raises(traitlets.TraitError):
        explorer.show(**selection)
    assert explorer.code() == before


def test_what_does_not_fit_is_refused(world, meta, head):
    labels = make_labels(meta)
    with pytest.raises(ValueError, match="there is none for 48"):
        MetaExplorer(meta, {w: world.evidence[w] for w in (8, 24)}, head)
    with pytest.raises(ValueError, match=r"that the labels name was meta 9 .*, but relu 8 .* was given"):
        MetaExplorer(meta, world.evidence, head, labels=replace(labels, dictionary=world.family[8].identity))
    with pytest.raises(TypeError, match=r"give saekit\.models\.unembedding"):
        MetaExplorer(meta, world.evidence)
    with pytest.raises(TypeError, match=r"by width, found none: give saekit\.collect_evidence"):
        MetaExplorer(meta)
    with pytest.raises(ValueError, match=r"must be \[12, vocab\], found \[11, 12\]"):
        MetaExplorer(meta, world.evidence, head[:11])
    twice = make_meta([world.family.get(24, 0), world.family.get(24, 1)])
    with pytest.raises(ValueError, match=r"differ in width to be told apart, found \[24, 24\]"):
        MetaExplorer(twice, world.evidence, head, labels=make_labels(twice))
