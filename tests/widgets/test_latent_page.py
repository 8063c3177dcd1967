"""The page of a latent: every number on it, against the results that it shows."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_effects import sae
from toy_meta import make_meta
from toy_stores import in_memory
from toy_world import DEAD, make_atlas
from traitlets import TraitError
from widget_checks import shown

from saekit import html
from saekit.analysis import collect, measure_ablation
from saekit.family import Family
from saekit.models import unembedding
from saekit.widgets import Evidence, LatentExplorer, build_atlas, latent_page
from saekit.widgets.atlas import Atlas
from saekit.wording import number, share, signed

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


@pytest.fixture(scope="module")
def atlas(world):
    return make_atlas(world, meta=make_meta([world.family[width] for width in world.family.widths]))


@pytest.fixture(scope="module")
def live(model, store):
    """An atlas with a model."""
    return build_atlas(Family([sae()]), store, model, keep=False, progress=False)


def test_facts_and_relatives_are_those_of_the_atlas(atlas, world):
    page = latent_page(atlas, 24, 2)
    values = world.activations[24].entries(2)[1]
    for fact in (share(len(values) / 640), f"{len(values)} of 640", number(float(values.max()))):
        assert f"<dd>{fact}</dd>" in page
    for row in atlas.nearest(24, 2).itertuples():
        assert f'<span data-goto="{row.width}/{row.latent}">{row.latent}</span></td>' in page
        assert f">{row.cosine:.2f}</td>" in page
    for child in world.tree.children(24, 2):
        assert f'data-goto="48/{child["latent"]}"' in page
    (seed,) = atlas.seeds(24, 2).itertuples()
    typical = np.median(atlas.table(24)["seed_cosine"])
    assert f"Its best cosine is {seed.cosine:.2f}; a typical latent of this width has {typical:.2f}." in page
    for row in atlas.meta_latents(24, 2).head(3).itertuples():
        assert f"<td align=right>{row.meta_latent}</td><td align=right>{row.activation:.2f}</td>" in page
    dictionary = world.family[24]
    for source in (dictionary.content_hash[:16], world.store.content_hash[:16], "toy", dictionary.name):
        assert source in page


def test_intervals_are_labelled_with_their_shares(atlas, world):
    page = latent_page(atlas, 24, 2)
    for interval in world.activations[24].intervals(2, bins=5, n=3):
        head = f"Interval {number(interval.low)} to {number(interval.high)}"
        assert f"{head}<small> holds {share(interval.share)} of the activations ({interval.count:,})" in page


def test_a_dead_latent_is_shown_as_dead_with_what_its_weights_tell(atlas):
    page = latent_page(atlas, 8, DEAD)
    assert "Dead: never active on these 640 tokens." in page
    assert "Nearest at other widths" in page
    assert "Other seeds" in page
    for absent in ("Top activations", "Interval", '<dl class="facts">', "<svg"):
        assert absent not in page


def test_tokens_tell_their_activation_and_active_ones_can_be_reached_by_keyboard(atlas, world):
    page = latent_page(atlas, 24, 2)
    marks = re.findall(r'<mark tabindex="0" data-told="([\d.]+)"', page)
    assert len(marks) == page.count("<mark")
    everything = {f"{value:.3g}" for value in world.activations[24].entries(2)[1].tolist()}
    assert set(marks) <= everything
    assert marks[0] in everything


def first_text(page):
    """The first example, as it reads with all styles stripped."""
    return re.sub(r"<[^>]+>", "", re.search(r'<span class="tokens">(.*?)</td>', page, re.DOTALL)[1])


def test_rows_are_whole_or_ten_tokens_on_each_side(world):
    atlas, evidence = make_atlas(world), world.evidence[24]
    latent = next(i for i in evidence.alive if evidence.top(i, 1)[0].position % 16 > 11)
    position = evidence.top(latent, 1)[0].position
    words = [evidence.vocabulary[i] for i in world.store.tokens[position // 16].tolist()]
    start = position % 16 - 10
    shown = ["" if word == " " else html.escape(html.visible(word)) for word in words]
    whole, short = (latent_page(atlas, 24, latent, whole_rows=rows) for rows in (True, False))
    assert first_text(short) == "".join(shown[start:])
    assert first_text(whole) == "…" + "".join(shown)
    # Only what is far from the peak is hidden until the box is ticked.
    far = re.search(r'<span class="far">(.*?)</span><(?:mark|span data)', whole, re.DOTALL)[1]
    assert re.sub(r"<[^>]+>", "", far) == "".join(shown[:start])
    assert '<input type="checkbox">' in whole
    assert '<input type="checkbox">' not in short
    assert 'class="far"' not in short


def test_only_contexts_of_the_same_tokens_in_the_same_order_are_folded(world):
    row = torch.tensor([1, 2] * 8)
    tokens = torch.stack([row, row, row, row, row.flip(0)])  # the last has the same tokens in another order
    x = torch.zeros(5, 16, 12)
    x[:, 7] = world.family[24].W_dec[2] * torch.tensor([9.0, 8.9, 8.8, 8.7, 8.6])[:, None]
    x[3, 5] = x[3, 7]  # the same text with another peak
    x[3, 7] = 0
    nowhere = torch.zeros(5, 16, dtype=torch.bool)
    made = in_memory(
        x,
        tokens=tokens,
        special=nowhere,
        excluded=nowhere,
        document=torch.arange(5)[:, None].expand(5, 16).contiguous(),
        documents=[{"source": "s", "title": str(i)} for i in range(5)],
    )
    evidence = {24: Evidence(collect(world.family[24], made), made, world.evidence[24].vocabulary)}
    page = latent_page(Atlas.of_evidence(Family([world.family[24]]), evidence), 24, 2)
    top = page[: page.index("Interval")]
    assert top.count("\N{MULTIPLICATION SIGN}3 the same") == 1
    assert len(re.findall(r"<td align=right><b>", top)) == 3


def test_the_histogram_of_logits_is_over_the_whole_vocabulary(live, model):
    latent = next(iter(live.evidence[20].alive))
    effects = live.dictionary(20).W_dec[latent] @ unembedding(model)
    torch.testing.assert_close(live.logits(20, latent), effects)
    page = latent_page(live, 20, latent)
    assert "Effect on the logits of all tokens" in page
    assert f"Histogram of {len(effects)} tokens" in page


def test_one_s_own_text_lists_every_active_latent(live):
    own = live.read(20, "the king sleeps over the river")
    latent = int(own.frame["latent"].iat[0])
    page = latent_page(live, 20, latent, own=own)
    part = page[page.index("Your own text") : page.index("Top activations")]
    assert f"This latent reaches {number(max(own.of(latent)))}." in part
    for row in own.frame.itertuples():
        assert f'data-goto="20/{row.latent}"' in part
        assert f">{number(row.max)}</td>" in part
    silent = next(i for i in range(20) if i not in set(own.frame["latent"]))
    assert "This latent is silent." in latent_page(live, 20, silent, own=own)
    other = replace(own, dictionary=sae(seed=1).identity)
    with pytest.raises(ValueError, match="The dictionary that read the text was"):
        latent_page(live, 20, latent, own=other)


def test_a_token_tells_what_its_ablation_costs(live, model, store):
    latent = next(iter(live.evidence[20].alive))
    page = latent_page(live, 20, latent, ablation=True)
    position = live.evidence[20].top(latent, 1)[0].position
    found = measure_ablation(model, live.dictionary(20), latent, store, [position]).frame.iloc[0]
    assert f'data-told="{found["activation"]:.3g} · loss {signed(found["change"], 2)}"' in page
    assert "loss" not in re.findall(r'data-told="([^"]+)"', latent_page(live, 20, latent))[0]


def test_what_needs_a_model_says_so(atlas):
    with pytest.raises(ValueError, match="ablates a latent with its model, and this one has none"):
        latent_page(atlas, 24, 2, ablation=True)
    with pytest.raises(ValueError, match="reads a text with its model"):
        atlas.read(24, "king")


def test_the_explorer_reads_a_text_and_measures_ablations_with_its_model(live, world):
    explorer = LatentExplorer(live.family, live.evidence, atlas=live)
    assert explorer.code() == f"explorer.show(width=20, latent={explorer.state.latent})"
    assert explorer.view
    explorer._text.value = "the king"
    own = live.read(20, "the king")
    assert f"{len(own.frame)} latents active on 2 tokens" in shown(explorer)
    explorer.state.ablation = True
    assert "loss" in shown(explorer)
    line = explorer.code()
    assert line.endswith("text='the king', ablation=True)")
    static = explorer.static()
    explorer.show(text="", ablation=False)
    assert explorer._text.value == ""
    eval(line, {"explorer": explorer})
    assert explorer.static() == static
    without = LatentExplorer(world.family, world.evidence)
    assert without.view
    with pytest.raises(TraitError, match="reads a text with its model"):
        without.state.text = "king"
    with pytest.raises(TraitError, match="ablates a latent with its model"):
        without.state.ablation = True
    with pytest.raises(ValueError, match="atlas must be of the family"):
        LatentExplorer(world.family, world.evidence, atlas=live)


def test_what_cannot_be_read_or_ablated_changes_nothing(live, model, store):
    explorer = LatentExplorer(live.family, live.evidence, atlas=live)
    assert explorer.view
    explorer.show(text="the king", latent=3)
    before = explorer.code()
    for text in ("king " * 2000, "\ud800", "<|endoftext|>"):
        with pytest.raises(TraitError, match="The text h"):
            explorer.show(text=text)
        with pytest.raises(TraitError, match="The text h"):
            explorer._text.value = text
        assert explorer.code() == before
    explorer.state.latent = 4  # the next click works
    assert "This latent" in shown(explorer)
    family = Family([replace(live.family[20], k=3)])
    topk = build_atlas(family, store, model, keep=False, progress=False)
    competing = LatentExplorer(family, topk.evidence, atlas=topk)
    with pytest.raises(TraitError, match="do not depend on each other"):
        competing.show(ablation=True)
    assert competing.static()


def test_what_is_no_atlas_and_no_reading_is_refused(atlas):
    with pytest.raises(TypeError, match=r"atlas must be an Atlas .* found dict"):
        latent_page({}, 24, 2)
    with pytest.raises(TypeError, match=r"own must be a TextReading .* found str"):
        latent_page(atlas, 24, 2, own="king")


def test_a_link_only_where_the_dictionary_names_its_public_page(world):
    info = {**world.family[24].info, "neuronpedia_id": "gpt2-small/8-res-jb"}
    family = Family([replace(world.family[24], info=info)])
    evidence = {24: replace_dictionary(world.evidence[24], family[24])}
    page = latent_page(Atlas.of_evidence(family, evidence), 24, 2)
    assert 'href="https://www.neuronpedia.org/gpt2-small/8-res-jb/2"' in page
    assert "href" not in latent_page(Atlas.of_evidence(Family([world.family[24]]), world.evidence), 24, 2)


def replace_dictionary(evidence, dictionary):
    activations = replace(evidence.activations, dictionary=dictionary.identity)
    return Evidence(activations, evidence.store, evidence.vocabulary)


def test_status_and_ranking_are_explained_in_words(atlas, live):
    found = {}
    for width in atlas.widths:
        for latent, status in enumerate(atlas.table(width)["status"]):
            found.setdefault(status, (width, latent))
    told = {
        "split": "Split at the next width: several children.",
        "identical": "Identical at the next width: one child",
        "refined": "Refined at the next width: one child, which is not identical.",
        "lost": "Lost at the next width: no child.",
        "leaf": "This is the greatest width.",
    }
    for status, place in found.items():
        assert told[status] in latent_page(atlas, *place)
    page = latent_page(atlas, 24, 2)
    assert "Fires on <small>(by mean activation" in page
    assert "by their contribution" in page
    dead = latent_page(atlas, 8, DEAD)
    assert "by their contribution" not in dead  # it has no words
    assert "have no null" not in page
    width = live.widths[0]
    assert f"There is no second seed of width {width:,}" in latent_page(live, width, 0)


def test_no_path_links_to_the_page_itself(atlas):
    roots = [i for i in range(48) if not atlas.tree.ancestors(48, i)]
    for width, latent in ((8, 1), *((48, latent) for latent in roots[:1])):
        assert f'data-goto="{width}/{latent}"' not in latent_page(atlas, width, latent)
