"""The data and figure of an explorer are those on its screen."""

import hashlib
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from plot_checks import check_texts
from toy_edits import make_edits
from toy_effects import pairs, sae
from toy_meta import make_labels, make_meta
from widget_checks import shown

from saekit import charts
from saekit.analysis import insertion
from saekit.analysis.effects.nodes import measure_node_effects
from saekit.analysis.probing import LastTokens, probe
from saekit.analysis.stitching.path import stitch
from saekit.charts.model import Dots, Line, Link, Text
from saekit.charts.novelty import insertion_axes, insertion_panel
from saekit.figures import Plot, render
from saekit.recovery import measure_recovery
from saekit.synthetic import nabeshima_tree
from saekit.widgets import (
    CircuitExplorer,
    EditExplorer,
    LatentExplorer,
    MetaExplorer,
    NoveltyExplorer,
    ProbingExplorer,
    SplittingExplorer,
    StitchingExplorer,
    WorldExplorer,
)
from saekit.widgets.base import _caption_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def made(world, model):
    """Every explorer, and a selection to change to."""
    family, evidence = world.family, world.evidence
    tree = nabeshima_tree()
    tokens = world.store.tokens.flatten()
    probing = probe(list(family), [LastTokens("kings", world.x, tokens == 1)], ks=[1], dense=False)
    meta = make_meta([family[width] for width in family.widths])
    path = stitch(family[24], family[48], world.x, theta=0.95)
    effects = measure_node_effects(model, sae(), pairs(model), n_exact=5, steps=2)
    result = insertion(family[8], family[48], world.x)  # some help, most hurt
    null = insertion(family[8], family.get(8, 1), world.x)
    novelty = NoveltyExplorer(result, evidence[48], null=null, small_evidence=evidence[8])
    return {
        "latent": (LatentExplorer(family, evidence), {"width": 48, "latent": 13}),
        "splitting": (SplittingExplorer(world.tree, evidence), {"width": 24, "latent": 1}),
        "novelty": (novelty, {"theta": 0.9, "group": "clear reconstruction", "latent": 13}),
        "stitching": (StitchingExplorer(path, evidence[24], evidence[48]), {"step": 7}),
        "meta": (
            MetaExplorer(meta, evidence, torch.randn(world.family[8].d_in, 12), labels=make_labels(meta)),
            {"width": 48, "latent": 1, "meta_latent": 2, "off": (1,)},
        ),
        "probing": (ProbingExplorer(probing, family, evidence), {"width": 24, "latent": 1}),
        "world": (
            WorldExplorer(tree, {"all": measure_recovery(tree.directions, tree.directions)}),
            {"feature": 4},
        ),
        "circuit": (CircuitExplorer(effects), {"prompt": 1, "method": "relp"}),
        "edit": (EditExplorer(make_edits()), {}),
    }


NAMES = ("latent", "splitting", "novelty", "stitching", "meta", "probing", "world", "circuit", "edit")


@pytest.mark.parametrize("name", NAMES)
def test_screen_and_figure_have_the_same_ticks_limits_and_points(made, name):
    explorer, selection = made[name]
    explorer.show(**selection)
    screen = shown(explorer)
    for which, chart in explorer.charts.items():
        figure = explorer.figure(which).figure
        for panel, axes in zip(chart.panels, figure.axes, strict=True):
            assert axes.get_xlim() == (panel.x.low, panel.x.high)
            assert axes.get_ylim() == (panel.y.low, panel.y.high)
            if not panel.bare:
                assert axes.get_xticks().tolist() == list(panel.x.ticks)
                assert axes.get_yticks().tolist() == list(panel.y.ticks)
                for text in (*panel.x.texts, *panel.y.texts, panel.x.label, panel.y.label):
                    assert not text or f">{text}</text>" in screen
            marks = [*panel.marks, *panel.moving]
            drawn = [
                np.asarray(c.get_offsets())
                for c in axes.collections
                if len(c.get_offsets()) and hasattr(c, "get_sizes")
            ]
            dots = [
                np.stack([np.atleast_1d(m.x), np.atleast_1d(m.y)], 1) for m in marks if isinstance(m, Dots)
            ]
            for expected, found in zip([d for d in dots if len(d)], drawn, strict=True):
                np.testing.assert_allclose(found, expected)
            assert sum(isinstance(mark, Line) for mark in marks) <= len(axes.lines)
            assert sum(isinstance(mark, Link) for mark in marks) <= len(axes.patches)
        assert chart.svg(stretch=1.4) in screen or chart.svg() in screen


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_is_legible_whole_and_the_same_every_time(made, name, tmp_path):
    explorer, selection = made[name]
    explorer.show(**selection)
    plot = explorer.figure()
    assert plot.modules == (type(explorer).__module__,)
    width = plot.figure.get_size_inches()[0]
    assert width in (pytest.approx(5.5), pytest.approx(2.7))
    sizes = [text.get_fontsize() for text in plot.figure.findobj(match=lambda a: hasattr(a, "get_fontsize"))]
    assert min(sizes) >= 6
    for which in explorer.charts:
        check_texts(explorer.figure(which).figure)
    assert render(plot.figure, "svg") == render(explorer.figure().figure, "svg")
    files = plot.save("screen", folder=tmp_path)
    assert {file.suffix for file in files} == {".pdf", ".svg", ".png", ".csv", ".tex", ".json"}
    again = explorer.figure().save("screen", folder=tmp_path / "again")
    assert [hashlib.sha256(a.read_bytes()).digest() for a in files] == [
        hashlib.sha256(b.read_bytes()).digest() for b in again
    ]
    csv = pd.read_csv(tmp_path / "screen.csv")
    assert len(csv) == len(explorer.frame)
    for column in explorer.frame.select_dtypes("number"):
        np.testing.assert_allclose(csv[column], explorer.frame[column].astype(float), rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_selection_is_a_value_and_a_line_of_code(made, name):
    explorer, selection = made[name]
    explorer.show(**selection)
    chosen, line, page = explorer.selection, explorer.code(), explorer.to_html()
    assert selection.items() <= chosen.items()
    other = made[name][0]
    order = type(explorer.state).order
    before = {trait: getattr(explorer.state, trait) for trait in order}
    for start in ({}, {trait: 0 for trait in order if trait in ("latent", "step", "feature", "prompt")}):
        other.show(**start)
        eval(line, {"explorer": other})
        assert other.selection == chosen == before
        assert other.to_html() == page
        other.show(**start)
        other.show(**chosen)
        assert other.selection == chosen


class Page(HTMLParser):
    """What a page loads from elsewhere, and the elements that it leaves open."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "path", "rect", "circle", "u"):
            self.open.append(tag)
        self.loads += [
            value for name, value in attributes if name in ("src", "href") and ":" in (value or "")
        ]

    def handle_endtag(self, tag):
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag)]


def test_a_page_of_its_own_is_whole_and_loads_nothing(made, tmp_path):
    for explorer, selection in made.values():
        explorer.show(**selection)
        page = explorer.to_html(tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
        parser = Page()
        parser.feed(page)
        assert parser.open == []
        assert all(source.startswith("data:image/svg+xml;base64,") for source in parser.loads)
        assert "<script" not in page
        assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
        assert explorer.code().partition("(")[0] in page
        assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


# ---------------------------------------------------------------------- the numbers, by brute force


def test_novelty_shows_every_latent_that_is_not_dead(made, world):
    explorer, _ = made["novelty"]
    explorer.show(theta=0.9)
    frame, result = explorer.frame, explorer.insertion
    points = frame[frame["panel"] == "insertion"]
    alive = result.frame[~result.frame["dead"]]
    cosine = (world.family[48].W_dec.double() @ world.family[8].W_dec.double().T).max(1).values.numpy()
    cosine = cosine[alive["latent"]]
    assert points["latent"].tolist() == alive["latent"].tolist()
    np.testing.assert_allclose(points["best_cosine"], cosine, atol=1e-6)
    assert points["novel_cos"].tolist() == (cosine < 0.9).tolist()
    assert points["mse_change"].tolist() == alive["mse_change"].tolist()
    helps = (alive["mse_change"] < 0).to_numpy()
    shares = [
        ((cosine < 0.9) == novel) & (helps == gain) for novel in (True, False) for gain in (False, True)
    ]
    assert [int(share) for share in re.findall(r">(\d+)% (?:hurt|help)<", shown(explorer))] == [
        round(100 * both.mean()) for both in shares
    ]
    curve = frame[(frame["panel"] == "roc") & (frame["comparison"] == "this")]
    marked = curve[curve["point"] == "theta"].iloc[0]
    assert marked["tpr"] == pytest.approx((helps & (cosine < 0.9)).sum() / helps.sum())
    assert marked["fpr"] == pytest.approx((~helps & (cosine < 0.9)).sum() / (~helps).sum())
    drawn = curve[curve["point"] == "curve"]
    assert np.trapezoid(drawn["tpr"], drawn["fpr"]) == pytest.approx(result.auc)


def test_of_many_latents_a_sample_is_drawn_and_shares_are_those_of_all(made):
    explorer, _ = made["novelty"]
    axes = insertion_axes([explorer.insertion])
    whole, sample = (insertion_panel(explorer.insertion, 0.9, axes, most=most) for most in (None, 20))
    assert len(sample.data) == 20 < len(whole.data)
    assert set(sample.data["latent"]) <= set(whole.data["latent"])
    assert {sample.data["latent"].iat[place] for place in (0, -1)} == {
        whole.data["latent"].iat[place] for place in (0, -1)
    }
    shares = [[mark.text for mark in panel.moving if isinstance(mark, Text)] for panel in (whole, sample)]
    assert shares[0] == shares[1]


def test_stitching_marks_the_step_on_the_curve(made):
    explorer, _ = made["stitching"]
    explorer.show(step=7)
    frame = explorer.stitching.frame
    stitched = explorer.frame[explorer.frame["series"] == "stitched"]
    assert stitched["fvu"].tolist() == frame["fvu"].tolist()
    for panel, measure in zip(explorer.charts["curve"].panels, ("fvu", "l0"), strict=True):
        rule, dot = panel.moving
        assert (rule.at, dot.x, dot.y) == (7, 7, frame[measure][7])


def test_a_tree_holds_the_descendants_that_are_drawn(made, world):
    explorer, _ = made["splitting"]
    for width in (8, 24):
        for latent in range(8):
            explorer.show(width=width, latent=latent)
            frame = explorer.frame
            expected, todo = [], [(width, latent)]
            while todo:
                node = todo.pop()
                expected.append(node)
                todo += [(c["width"], c["latent"]) for c in world.tree.children(*node)]
            assert sorted(zip(frame["width"], frame["latent"], strict=True)) == sorted(expected)


def test_a_histogram_counts_every_activation(made, world):
    explorer, _ = made["latent"]
    explorer.show(width=24, latent=2)
    values = world.activations[24].entries(2)[1].numpy()
    frame = explorer.frame
    edges = [*frame["low"], frame["high"].iat[-1]]
    assert frame["count"].tolist() == np.histogram(values, edges)[0].tolist()
    assert frame["count"].sum() == len(values) > 0


def test_a_circuit_holds_the_greatest_nodes(made):
    explorer, _ = made["circuit"]
    explorer.show(prompt=1, method="relp")
    own = explorer.effects.frame
    own = own[own["prompt"] == 1].set_index(["place", "position", "latent"])["relp"]
    frame = explorer.frame
    found = frame.set_index(["place", "position", "latent"])["effect"]
    assert own[found.index].tolist() == found.tolist()
    assert found.abs().min() >= own.drop(found.index).abs().max()


def test_a_csv_draws_the_same_picture_again(made, tmp_path):
    latent, world = made["latent"][0], made["world"][0]
    latent.show(width=24, latent=2)
    world.show(feature=4)

    def saved(explorer):
        explorer.figure().save("screen", folder=tmp_path)
        return pd.read_csv(tmp_path / "screen.csv")

    bins, rows = saved(latent), saved(world)
    again = {
        latent: charts.histogram(bins["count"], [*bins["low"], bins["high"].iat[-1]]),
        world: charts.scores(rows, ["cosine", "precision", "recall", "f1"], label="score", alt="again"),
    }
    for explorer, chart in again.items():
        (which,) = explorer.charts
        drawn = Plot(chart.figure(), chart.data, caption="Again.", alt="Again.")
        np.testing.assert_array_equal(pixels(explorer.figure(which)), pixels(drawn))


def pixels(plot):
    return np.asarray(Image.open(BytesIO(render(plot.figure, "png", dpi=100))))


def test_a_selection_without_a_picture_says_so(made):
    explorer, _ = made["latent"]
    explorer.show(width=8, latent=7)  # dead
    assert explorer.charts == {}
    for ask in (lambda: explorer.frame, explorer.figure):
        with pytest.raises(ValueError, match=r"no picture of this selection: explorer\.show\(width=8"):
            ask()
    explorer.show(width=8, latent=1)
    with pytest.raises(ValueError, match="names must be"):
        explorer.figure("circuit")


def test_the_title_names_both_pictures():
    made = _caption_of(["Active: latent 1 of a. Ten tokens", "Effect: latent 1 of a. Few tokens"])
    assert made == "Active and effect: latent 1 of a. Ten tokens. Few tokens."
    assert _caption_of(["One. More", "Two. More"]) == "One. More. Two. More."
    assert _caption_of(["Active: latent 1 of a. Ten tokens"]) == "Active: latent 1 of a. Ten tokens."


def test_the_axis_of_counts_tells_its_unit_and_scale():
    assert charts.histogram([3, 1], [0, 1, 2]).panels[0].y.label == "tokens"
    assert charts.histogram([3, 1], [0, 1, 2], of="latent").panels[0].y.label == "latents"
    assert charts.logit_histogram([3, 1], [-1, 0, 1]).panels[0].y.label == "tokens (√ scale)"
