"""Text that would act on a page or hide in it is literal in every explorer, list, static page and report."""

import re
import unicodedata
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
import toy_edits
from ipywidgets import widgets as controls
from markupsafe import Markup
from toy_effects import HOOK_POINT, pairs, sae
from toy_meta import make_labels, make_meta
from toy_world import make_world
from widget_checks import shown

import saekit
from saekit import html, widgets
from saekit.analysis.effects.nodes import measure_node_effects
from saekit.analysis.own_text import TextReading
from saekit.analysis.probing import LastTokens, probe
from saekit.analysis.stitching.path import stitch
from saekit.recovery import measure_recovery
from saekit.report.page import Section, Table, write_page
from saekit.synthetic import nabeshima_tree
from saekit.widgets import build_atlas, latent_page

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")

LONG = " " + "x" * 500
VOCABULARY = [
    " <script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "\u202eevil", "zero\u200bwidth\ufeff",
    "\x00\x1b[31m", LONG, "\n\r\n", "\U0001f469\u200d\U0001f469", "&amp;", "{{ 7 * 7 }}{0}",
    "\u2066iso\u2069", "soft\u00adhyphen\u2028",
]  # fmt: skip
NAME = "<b onclick=alert(1)>\u202e\"'&amp;\n\x07{0}\u2060</b>"
ALLOWED = {
    *("style", "div", "span", "small", "b", "u", "i", "h3", "h4", "p", "br", "code", "mark", "ul", "li", "a"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "img"),
    *("svg", "rect", "path", "text", "title", "circle", "g"),
    *("article", "header", "section", "dl", "dt", "dd", "label", "input"),
}
# What may not be on a page as it is: it cannot be seen, and most of it changes what is around it.
ACTING = {
    chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
} - {"\n", "\u200d"}


class Parsed(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.tags, self.text = set(), [], [], ""
        self.feed(str(page))

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += attrs
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


def pages_in(page):
    """A page, and the images within it."""
    yield page
    for image in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        yield b64decode(image).decode()


def require_literal(page, allowed=ALLOWED):
    """Nothing of a hostile string acts, and nothing is escaped twice; returns the text and what it tells."""
    text = ""
    for part in pages_in(page):
        assert not ACTING & set(part)
        parsed = Parsed(part)
        assert parsed.elements <= allowed, parsed.elements - allowed
        assert not [name for name, _ in parsed.attributes if name.startswith("on")]
        assert not re.search(r"(data-told|title)=\"[^\"]*\"[^>]*>\s?x{60}", part), "a long token is cut"
        told = " ".join(value for name, value in parsed.attributes if name in ("data-told", "title", "alt"))
        text += f"{parsed.text} {told}"
    assert not re.search(r"&(lt|gt|#3[49]|amp;amp);", text), "escaped twice"
    return text


def options_of(widget):
    """Texts of all lists and controls below a widget."""
    for child in getattr(widget, "children", ()):
        yield from options_of(child)
    if isinstance(widget, (controls.Select, controls.Dropdown)):
        for option in widget.options:
            yield option[0] if isinstance(option, tuple) else str(option)
    yield getattr(widget, "description", "")


@pytest.fixture(scope="module")
def hostile():
    return make_world(VOCABULARY, kind=NAME, source=NAME, title=NAME)


def latent(world, _model, _store):
    return widgets.LatentExplorer(world.family, world.evidence), [
        {"width": 24, "latent": i} for i in range(12)
    ]


def splitting(world, _model, _store):
    return widgets.SplittingExplorer(world.tree, world.evidence), [
        {"width": 24, "latent": i} for i in range(12)
    ]


def novelty(world, _model, _store):
    explorer = widgets.NoveltyExplorer(
        world.insertion, world.evidence[48], null=world.null, small_evidence=world.evidence[24]
    )
    return explorer, [{"latent": i} for i in range(12)]


def stitching(world, _model, _store):
    path = stitch(world.family[24], world.family[48], world.x, theta=0.95)
    explorer = widgets.StitchingExplorer(path, world.evidence[24], world.evidence[48])
    return explorer, [{"step": i} for i in range(0, len(path.frame), 4)]


def meta(world, _model, _store):
    found = make_meta([world.family[width] for width in world.family.widths])
    labels = make_labels(found)
    labels.frame["label"] = [VOCABULARY[i % len(VOCABULARY)] for i in range(found.width)]
    head = torch.randn(12, len(VOCABULARY), generator=torch.Generator().manual_seed(5))
    explorer = widgets.MetaExplorer(found, world.evidence, head, labels=labels, width=24, latent=1)
    return explorer, [{"width": 24, "latent": i, "meta_latent": i % 8} for i in range(12)]


def circuit(_world, model, store):
    effects = measure_node_effects(model, [sae()], pairs(model), n_exact=1, steps=2)
    strings = tuple(tuple(VOCABULARY[: len(row)]) for row in effects.prompts.strings)
    effects = replace(effects, prompts=replace(effects.prompts, name=NAME, strings=strings))
    evidence = saekit.collect_evidence(saekit.Family([sae()]), store, model)[20]
    evidence.vocabulary = [VOCABULARY[i % len(VOCABULARY)] for i in range(model.cfg.d_vocab)]
    explorer = widgets.CircuitExplorer(effects, evidence)
    return explorer, [{"place": HOOK_POINT, "position": 2, "latent": i, "prompt": i % 3} for i in range(8)]


def edit(_world, _model, _store):
    patch = pytest.MonkeyPatch()
    answers = {
        f"{NAME}{attribute}": tuple(f"{name}{VOCABULARY[i]}" for i, name in enumerate(names))
        for attribute, names in toy_edits.ANSWERS.items()
    }
    renamed = {
        old: new
        for old_names, names in zip(toy_edits.ANSWERS.values(), answers.values(), strict=True)
        for old, new in zip(old_names, names, strict=True)
    }
    facts = [(entity, *(renamed[name] for name in own)) for entity, *own in toy_edits.FACTS]
    with patch.context() as patched:
        patched.setattr(toy_edits, "ANSWERS", answers)
        patched.setattr(toy_edits, "FACTS", facts)
        edits = toy_edits.make_edits()
    names = {name: f"{name}{NAME}" for name in edits.entities}
    edits = replace(edits, frame=edits.frame.replace(names), facts=edits.facts.replace(names))
    explorer = widgets.EditExplorer(edits)
    return explorer, [{"pair": pair} for pair in explorer.options["pair"]]


def world(_world, _model, _store):
    tree = nabeshima_tree()
    labels = tuple(VOCABULARY[i % len(VOCABULARY)] for i in range(tree.n_features))
    tree = replace(tree, labels=labels)
    found = {NAME: measure_recovery(tree.directions, tree.directions)}
    return widgets.WorldExplorer(tree, found), [{"feature": i} for i in range(12)]


def probing(world, _model, _store):
    tokens = world.store.tokens.flatten()
    sets = [LastTokens(NAME, world.x, tokens == 1), LastTokens(LONG, world.x, tokens == 10)]
    probed = probe(list(world.family), sets, ks=[1], dense=False)
    explorer = widgets.ProbingExplorer(probed, world.family, world.evidence)
    return explorer, [{"width": 24, "latent": i} for i in range(12)]


MAKERS = {
    widgets.LatentExplorer: latent,
    widgets.SplittingExplorer: splitting,
    widgets.NoveltyExplorer: novelty,
    widgets.StitchingExplorer: stitching,
    widgets.MetaExplorer: meta,
    widgets.CircuitExplorer: circuit,
    widgets.EditExplorer: edit,
    widgets.WorldExplorer: world,
    widgets.ProbingExplorer: probing,
}


def test_every_explorer_is_tried():
    assert {name for name in widgets.__all__ if name.endswith("Explorer")} == {
        explorer.__name__ for explorer in MAKERS
    }


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_hostile_text_is_literal_in_every_explorer(kind, hostile, model, store):
    explorer, states = MAKERS[kind](hostile, model, store)
    live = static = listed = ""
    for state in states:
        explorer.show(**state)
        live += require_literal(shown(explorer))
        static += require_literal(explorer.static())
        listed += " ".join(options_of(explorer.view))
    assert not ACTING & set(listed)
    assert not re.search(r"x{70}", listed)
    for text in (live, static):
        assert "⟨U+202E⟩" in text
        assert "<script>alert(1)</script>" in text or "onclick=alert(1)" in text


def test_hostile_text_is_literal_in_every_view_of_the_workspace(hostile):
    given = {"tree": hostile.tree, "insertion": hostile.insertion}
    atlas = build_atlas(
        hostile.family, hostile.store, vocabulary=VOCABULARY, keep=False, progress=False, **given
    )
    workspace = widgets.Workspace(atlas)
    listed = text = ""
    for view in workspace.state.views:
        for query in ("", "script", "evil", NAME):
            workspace.show(view=view, width=24, latent=3, query=query)
            text += require_literal(shown(workspace)) + require_literal(workspace.static())
            listed += " ".join(options_of(workspace.view))
    assert not ACTING & set(listed)
    assert "<script>alert(1)</script>" in text
    for control in controls_of(workspace.view):
        assert is_labelled(control), type(control)


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_every_control_and_picture_has_a_label(kind, hostile, model, store):
    """So that assistive technology can name it."""
    explorer, states = MAKERS[kind](hostile, model, store)
    explorer.show(**states[0])
    for control in controls_of(explorer.view):
        assert is_labelled(control), type(control)
    for page in (shown(explorer), explorer.static()):
        parsed = Parsed(page)
        pictures = [dict(attributes) for tag, attributes in parsed.tags if tag in ("svg", "img")]
        for picture in pictures:
            assert picture.get("aria-label") or picture.get("alt")
        for tag, attributes in parsed.tags:
            if dict(attributes).get("tabindex") == "0":
                assert tag == "mark", "what can be reached can be told"
                assert dict(attributes)["data-told"]
        assert not [value for name, value in parsed.attributes if name == "tabindex" and int(value) > 0]


def is_labelled(control):
    """Whether a control, or each button of a group, has a name."""
    tooltips = getattr(control, "tooltips", [])
    each = len(tooltips) == len(getattr(control, "options", [])) and all(tooltips)
    return bool(control.description.strip() or control.tooltip or (tooltips and each))


def controls_of(widget):
    """The controls below a widget."""
    for child in getattr(widget, "children", ()):
        yield from controls_of(child)
    if hasattr(widget, "description") and not isinstance(widget, controls.HTML):
        yield widget


def test_hostile_text_is_literal_on_the_page_of_a_latent(hostile):
    atlas = build_atlas(
        hostile.family,
        hostile.store,
        vocabulary=VOCABULARY,
        tree=hostile.tree,
        meta=make_meta([hostile.family[width] for width in hostile.family.widths]),
        keep=False,
        progress=False,
    )
    places = torch.arange(len(VOCABULARY))
    own = TextReading(
        hostile.family[24].identity, tuple(VOCABULARY), places, places % 24, torch.ones(len(VOCABULARY))
    )
    text = ""
    for latent in range(12):
        for page in (latent_page(atlas, 24, latent, own=own), latent_page(atlas, 24, latent, as_image=True)):
            assert isinstance(page, Markup)
            text += require_literal(page)
    for literal in (
        "⟨U+202E⟩evil",
        "<script>alert(1)</script>",
        "␀␛[31m",
        "\U0001f469\u200d\U0001f469",
        "{{ 7 * 7 }}",
    ):
        assert literal in text


def test_the_whole_of_a_long_token_can_be_read(hostile):
    explorer = widgets.LatentExplorer(hostile.family, hostile.evidence, width=24, latent=5)
    page = explorer.static()
    assert LONG.strip() in " ".join(value or "" for _, value in Parsed(page).attributes)


def test_hostile_text_is_literal_in_a_report(tmp_path):
    for text in (*VOCABULARY, NAME):
        frame = pd.DataFrame({"name": [text], "n": [1234]})
        parts = [Table("data", text, frame, {"name": text, "n": "n"})]
        page = write_page(
            tmp_path,
            [Section(text, text, text, parts, {}, value=text or "-", unit=text)],
            title=text,
            subtitle=text,
            settings={text: text},
            inputs={text: {"what": text, "model": text, "hook_point": text, "hash": "0" * 64}},
        ).read_text()
        assert not ACTING & set(page)
        parsed = Parsed(page)
        assert "script" not in parsed.elements
        assert not [name for name, _ in parsed.attributes if name.startswith("on")]
        assert parsed.text.count(html.harmless(text)) >= 6


@pytest.mark.parametrize("text", [*VOCABULARY, NAME])
def test_every_builder_escapes_text_and_keeps_markup(text):
    shown, kept = html.escape(text), Markup("<i>kept</i>")
    builders = [
        html.panel, html.columns, html.bold, html.small, html.page,
        lambda part: html.join([part], part), lambda part: html.markup("<p>{}</p>", part),
        lambda part: html.table([part], [[part]], caption=part), lambda part: html.details(part, part),
    ]  # fmt: skip
    for build in builders:
        assert shown in build(text)
        assert kept in build(kept)
        for made in (build(text), build(kept)):
            assert isinstance(made, Markup)
            assert html.escape(made) == made
            require_literal(made)
    for made in (html.chip(text), html.context([text], [1.0], 0, 1.0), html.alert(text)):
        require_literal(made)
