"""The workspace without a browser: one selection over all views, history, tables, a list of one's own."""

import json
import re
import time
from dataclasses import replace
from urllib.parse import parse_qs, urlparse

import numpy as np
import pandas as pd
import pytest
import traitlets
from toy_world import DEAD, WORDS, make_atlas
from widget_checks import live_widgets, shown

from saekit import explore
from saekit.analysis import insertion, stitch
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.widgets import LatentExplorer, Workspace, build_atlas, collect_evidence
from saekit.widgets.workspace import ROWS


@pytest.fixture(scope="module")
def atlas(world):
    return make_atlas(world, stitching=stitch(world.family[24], world.family[48], world.x))


@pytest.fixture
def workspace(atlas):
    workspace = Workspace(atlas, width=24, latent=1)
    assert workspace.view
    return workspace


def send(workspace, **message):
    """What the bridge sends."""
    bridge = workspace.view.children[-1]
    bridge._handle_custom_msg(message, [])


def test_explore_computes_novelty_and_stitching_of_a_pair(world, monkeypatch):
    how = {"vocabulary": WORDS, "keep": False, "progress": False}
    opened = explore(world.family, world.store, pair=(24, 48), tree=world.tree, **how)
    assert {"novelty", "stitching"} <= set(opened.state.views)
    expected = insertion(world.family[24], world.family[48], world.store).frame["mse_change"]
    np.testing.assert_array_equal(opened.atlas.table(48)["mse_change"], expected)
    curve = stitch(world.family[24], world.family[48], world.store).frame
    pd.testing.assert_frame_equal(opened.atlas.stitching.frame, curve)
    smallest = explore(world.family, world.store, insertion=world.insertion, tree=world.tree, **how)
    assert smallest.atlas.insertion is world.insertion
    assert smallest.atlas.stitching.small.identity == world.family[8].identity
    assert smallest.atlas.stitching.large.identity == world.family[24].identity
    with pytest.raises(TypeError, match="family must be a Family, found dict"):
        explore({}, world.store, pair=(24, 48), **how)
    monkeypatch.setattr("saekit.widgets.workspace.build_atlas", None)  # refused before any work
    for wrong in ((48, 24), (24,), (24, 24), 24):
        with pytest.raises(ValueError, match="two widths, the smaller one first"):
            explore(world.family, world.store, pair=wrong, tree=world.tree, **how)
    with pytest.raises(ValueError, match="The family has widths 8, 24 and 48, found 9 in pair"):
        explore(world.family, world.store, pair=(9, 24), tree=world.tree, **how)


def test_explore_leaves_out_what_dependent_latents_do_not_have(world):
    def topk(width):
        d = world.family[width]
        return Dictionary.from_weights(
            d.W_enc, d.W_dec, b_enc=d.b_enc, b_dec=d.b_dec, k=3, info={"hook_point": "toy"}
        )

    family = Family([topk(24), topk(48)])
    opened = explore(family, world.store, vocabulary=WORDS, keep=False, progress=False)
    assert not {"novelty", "stitching"} & set(opened.state.views)
    assert "splitting" in opened.state.views


def test_one_selection_over_all_views(workspace):
    assert workspace.state.views == [
        "latent", "table", "side by side", "splitting", "novelty", "stitching", "my list"
    ]  # fmt: skip
    workspace.show(view="splitting")
    inner = workspace.explorers["splitting"]
    assert inner.selected == (24, 1)
    inner.state.latent = 5  # as a control of the explorer does
    assert workspace.selected == (24, 5)
    workspace.show(view="latent")
    assert workspace.explorers["latent"].selected == (24, 5)
    workspace.goto(48, 7)
    for view in ("splitting", "novelty", "latent"):
        workspace.show(view=view)
        assert workspace.explorers[view].selected == (48, 7)
    workspace.goto(8, 2)
    assert workspace.explorers["latent"].selected == (8, 2)
    workspace.show(view="novelty")  # which has no latents of this width, and keeps its own
    assert workspace.explorers["novelty"].selected == (48, 7)
    assert workspace.selected == (8, 2)


def test_the_own_state_of_an_explorer_stays(workspace, atlas):
    workspace.show(view="novelty", width=48, latent=3)
    workspace.explorers["novelty"].state.theta = 0.5
    assert workspace.selected == (48, 3)
    assert workspace.explorers["novelty"].state.theta == 0.5
    assert "theta=0.5" in workspace.code()
    moves = atlas.stitching.moves
    move = moves[(moves["side"] == "large") & (moves["latent"] == 3)].iloc[0]
    workspace.show(view="stitching")
    stitching = workspace.explorers["stitching"]
    assert stitching.state.step == move["step"]
    stitching.state.step = 0  # scrubbing stays where it was scrubbed to
    workspace.state.query = "king"
    assert stitching.state.step == 0


def test_a_click_in_an_explorer_opens_the_latent_everywhere(workspace):
    send(workspace, goto="48/11")
    assert workspace.selected == (48, 11)
    assert workspace.explorers["latent"].selected == (48, 11)
    send(workspace, goto="16/1")
    assert "widths 8, 24 and 48, found 16" in workspace._alert.value
    send(workspace, goto="24/24")
    assert "latent of width 24" in workspace._alert.value
    assert workspace.selected == (48, 11)
    workspace.explorers["splitting"].goto(24, 2)  # of one that is not displayed
    assert workspace.selected == (24, 2)


def test_a_drawing_links_the_latents_that_it_names(workspace, atlas):
    start = atlas.tree.most_split(1, width=24).iloc[0]
    workspace.show(width=24, latent=int(start["latent"]), view="splitting")
    drawn = workspace.explorers["splitting"]._drawing.value
    for child in atlas.tree.children(24, int(start["latent"])):
        assert re.search(rf'<text [^>]*data-goto="48/{child["latent"]}"', drawn)


def test_an_explorer_on_its_own_says_what_it_cannot_show(world):
    explorer = LatentExplorer(world.family, world.evidence, width=24, latent=1)
    assert explorer.view
    send(explorer, goto="48/11")
    assert explorer.selected == (48, 11)
    send(explorer, key="next")
    assert explorer.selected == (48, 12)
    send(explorer, goto="16/0")
    assert "does not show latent 0 of width 16: saekit.explore does" in explorer._alert.value


def test_back_and_forward(workspace):
    for place in [(24, 2), (48, 3), (8, 4)]:
        workspace.goto(*place)
    workspace.show(view="table")
    for expected in [
        ("latent", 8, 4),
        ("latent", 48, 3),
        ("latent", 24, 2),
        ("latent", 24, 1),
        ("latent", 24, 1),
    ]:
        send(workspace, key="back")
        assert (workspace.state.view, *workspace.selected) == expected
    assert workspace._back.disabled
    send(workspace, key="forward")
    assert workspace.selected == (24, 2)
    workspace.goto(24, 9)  # what came later is gone
    assert workspace._forth.disabled
    workspace.forward()
    assert workspace.selected == (24, 9)
    workspace.back()
    assert workspace.selected == (24, 2)


def test_keys_step_through_the_latents(workspace):
    send(workspace, key="next")
    assert workspace.selected == (24, 2)
    send(workspace, key="previous")
    send(workspace, key="previous")
    send(workspace, key="previous")
    assert workspace.selected == (24, 23)


def test_a_search_lists_links_and_enter_opens_the_first(workspace, atlas):
    workspace._search.value = "QUEEN"
    found = atlas.search("queen", 1).iloc[0]
    assert f'data-goto="{found["width"]}/{found["latent"]}"' in workspace._results.value
    send(workspace, key="first", query="queen")
    assert workspace.selected == (found["width"], found["latent"])
    workspace._search.value = "<b>nothing"
    assert "No latent has" in workspace._results.value
    assert "<b>nothing" not in workspace._results.value.replace("&lt;b&gt;nothing", "")
    send(workspace, key="first", query="<b>nothing")  # nowhere to go
    assert workspace.selected == (found["width"], found["latent"])


@pytest.mark.parametrize(
    ("terms", "column", "descending"),
    [("", "latent", False), ("density>0.05", "density", True), ("dead=no king", "max", True),
     ("dead=yes", "label", False), ("status=split children>=2", "children", True),
     ("seed_cosine<0.9", "seed_cosine", False)],
)  # fmt: skip
def test_the_table_is_filtered_and_sorted(workspace, atlas, terms, column, descending):
    workspace.show(view="table", filter=terms, sort=column, descending=descending)
    table = atlas.table(24)
    keep = {
        "": table["latent"] >= 0,
        "density>0.05": table["density"] > 0.05,
        "dead=no king": ~table["dead"] & table["label"].map(lambda label: "king" in label.casefold()),
        "dead=yes": table["dead"],
        "status=split children>=2": (table["status"] == "split") & (table["children"] >= 2),
        "seed_cosine<0.9": table["seed_cosine"] < 0.9,
    }[terms]
    rows = sorted(table[keep].itertuples(), key=lambda row: getattr(row, column), reverse=descending)
    assert workspace.frame[column].tolist() == [getattr(row, column) for row in rows]
    shown_rows = workspace._table.value.count("<tr>") - 1
    assert shown_rows == min(ROWS, len(rows))
    assert workspace.selected == (24, 1)


def test_pages_of_the_table(workspace):
    workspace.show(width=48, view="table")
    assert workspace.state.page == 0
    assert 'data-goto="48/0"' in workspace._table.value
    workspace._turn(1)
    assert 'data-goto="48/0"' not in workspace._table.value
    assert f'data-goto="48/{ROWS}"' in workspace._table.value
    with pytest.raises(traitlets.TraitError, match="page"):
        workspace.state.page = 2
    workspace.state.filter = "king"
    assert workspace.state.page == 0
    send(workspace, sort="density")
    assert (workspace.state.sort, workspace.state.descending) == ("density", True)
    send(workspace, sort="density")
    assert not workspace.state.descending


@pytest.mark.parametrize(
    ("wrong", "change"),
    [
        ("A filter compares one of", {"filter": "weight>3"}),
        ("with a number, found 'much'", {"filter": "density>much"}),
        ("dead in a filter", {"filter": "dead=perhaps"}),
        ("with a number, found 'nan'", {"filter": "density>nan"}),
        ("sort", {"sort": "weight"}),
        ("view", {"view": "weight"}),
        ("second must be None or a pair", {"second": 3}),
        ("found 16", {"second": (16, 0)}),
        ("page", {"page": -1}),
    ],
)
def test_what_does_not_exist_is_refused_and_changes_nothing(workspace, wrong, change):
    before = workspace.code()
    with pytest.raises(traitlets.TraitError, match=wrong):
        workspace.show(**change)
    assert workspace.code() == before


def test_a_filter_of_one_width_holds_no_other_width_back(workspace):
    workspace.show(width=48, view="table", filter="mse_change>0", sort="mse_change")
    assert len(workspace.rows)
    send(workspace, goto="8/3")
    assert workspace.selected == (8, 3)
    assert workspace.rows.empty
    assert workspace._sort.value == "latent"
    workspace.show(filter="latent==3")
    assert workspace.rows["latent"].tolist() == [3]
    workspace.show(filter="", sort="larger_cosine", descending=True)
    assert workspace.rows["larger_cosine"].is_monotonic_decreasing
    workspace.show(width=48)  # the widest, which has no such column
    assert workspace.rows["latent"].is_monotonic_decreasing
    workspace.state.width = 8
    assert workspace._sort.value == "larger_cosine"


def test_two_latents_side_by_side(world, workspace):
    workspace.show(view="side by side", width=24, latent=2)
    cosines = world.family[24].W_dec[2].double() @ world.family[48].W_dec.double().T
    assert workspace._second() == (48, int(cosines.argmax()))
    assert f"Cosine <b>{float(cosines.max()):.2f}</b>" in workspace._sides.value
    workspace.show(second=(8, 3))
    a, b = (world.family[w].encode(world.x)[:, i] > 0 for w, i in ((24, 2), (8, 3)))
    assert f"Both are active on {int((a & b).sum())} token" in workspace._sides.value
    assert workspace.frame[["width", "latent"]].to_numpy().tolist() == [[24, 2], [8, 3]]
    workspace._swap()
    assert workspace.selected == (8, 3)
    assert workspace._second() == (24, 2)
    workspace._other.value = 4
    assert workspace.state.second == (24, 4)
    workspace._other_width.value = 48
    assert workspace.state.second[0] == 48
    assert list(workspace.charts) == ["8/3", f"48/{workspace.state.second[1]}"]
    for name, chart in workspace.charts.items():
        width, latent = map(int, name.split("/"))
        assert chart.data["count"].sum() == workspace.atlas.evidence[width].counts[latent]
    assert len(workspace.figure().figure.axes) == 2
    workspace.show(width=8, latent=DEAD)
    assert "none of those of the first" in workspace._sides.value
    assert len(workspace.charts) == 1


def test_one_width_is_compared_within_itself(world):
    atlas = build_atlas(
        Family([world.family[24]]),
        world.store,
        vocabulary=world.evidence[24].vocabulary,
        keep=False,
        progress=False,
    )
    workspace = Workspace(atlas, latent=3)
    assert workspace.view
    workspace.show(view="side by side")
    cosines = world.family[24].W_dec @ world.family[24].W_dec[3]
    assert workspace._second() == (24, int(cosines.argsort(descending=True)[1]))
    assert "splitting" not in workspace.state.views


def test_a_list_of_ones_own(workspace, tmp_path):
    workspace.pin(note='a "note", <b>')
    workspace.goto(48, 11)
    workspace._pin.click()
    assert workspace._pin.description == "Unpin"
    workspace.show(view="my list")
    workspace._note.value = "of eleven"
    assert workspace.pins.to_dict("records") == [
        {"width": 24, "latent": 1, "label": workspace.atlas.label(24, 1), "note": 'a "note", <b>'},
        {"width": 48, "latent": 11, "label": workspace.atlas.label(48, 11), "note": "of eleven"},
    ]
    assert 'data-goto="24/1"' in workspace._list_shown.value
    assert "note&#34;, &lt;b&gt;" in workspace._list_shown.value
    csv = pd.read_csv(workspace.save_pins(tmp_path / "mine.csv"))
    found = json.loads(workspace.save_pins(tmp_path / "mine.json").read_text())
    assert csv["note"].tolist() == [row["note"] for row in found] == ['a "note", <b>', "of eleven"]
    assert csv["dictionary"].tolist() == [workspace.atlas.family[width].identity.hash for width in (24, 48)]
    with pytest.raises(ValueError, match=r"\.csv and \.json|\.csv or \.json|one of"):
        workspace.save_pins(tmp_path / "mine.xlsx")
    workspace._pin.click()
    assert workspace.pins["width"].tolist() == [24]
    with pytest.raises(KeyError, match="48/11 is not on the list"):
        workspace.unpin(48, 11)
    with pytest.raises(TypeError, match="both"):
        workspace.pin(48)


def test_the_list_at_neuronpedia(world, atlas):
    nowhere = Workspace(atlas)
    nowhere.pin(24, 1)
    with pytest.raises(ValueError, match="neuronpedia_id"):
        nowhere.quick_list()
    members = [
        replace(world.family[width], info=world.family[width].info | {"neuronpedia_id": f"toy/8-res-{width}"})
        for width in (8, 24)
    ]
    vocabulary = world.evidence[8].vocabulary
    workspace = Workspace(
        build_atlas(Family(members), world.store, vocabulary=vocabulary, keep=False, progress=False)
    )
    workspace.pin(24, 1)
    workspace.pin(8, 2)
    query = parse_qs(urlparse(workspace.quick_list("mine & yours")).query)
    assert query["name"] == ["mine & yours"]
    assert json.loads(query["features"][0]) == [
        {"modelId": "toy", "layer": "8-res-24", "index": "1"},
        {"modelId": "toy", "layer": "8-res-8", "index": "2"},
    ]
    assert workspace.view
    workspace.show(view="my list")
    assert "quick-list" in workspace._list_shown.value


@pytest.mark.parametrize(
    "view", ["latent", "table", "side by side", "splitting", "novelty", "stitching", "my list"]
)
def test_the_code_restores_a_selection_and_the_static_form_shows_it(atlas, workspace, view):
    workspace.pin()
    workspace.show(view=view, width=48, latent=11, query="king", second=(8, 1), filter="dead=no", sort="max")
    if view == "novelty":
        workspace.explorers[view].state.theta = 0.4
    other = Workspace(atlas)
    exec(workspace.code(), {"explorer": other})
    assert other.code() == workspace.code()
    other.pin(24, 1)
    assert other.static() == workspace.static()
    assert "latent=11" in workspace.static()
    assert "<script" not in workspace.static()


def test_numbers_and_pictures_are_those_of_the_view(workspace):
    workspace.show(view="splitting")
    inner = workspace.explorers["splitting"]
    assert workspace.frame.equals(inner.frame)
    assert [chart.alt for chart in workspace.charts.values()] == [
        chart.alt for chart in inner.charts.values()
    ]
    workspace.show(view="my list")
    with pytest.raises(ValueError, match="no picture"):
        workspace.figure()


def test_what_is_of_another_type_is_refused(world, atlas, workspace):
    with pytest.raises(TypeError, match="atlas must be an Atlas"):
        Workspace(world.family)
    for explorers in ([1], {"own": "explorer"}):
        with pytest.raises(TypeError, match="explorers must be a dict of explorers"):
            Workspace(atlas, explorers=explorers)
    with pytest.raises(TypeError, match="note must be text, found NoneType"):
        workspace.pin(note=None)
    assert workspace.pins.empty


def test_further_explorers_are_views(world, atlas):
    mine = LatentExplorer(world.family, world.evidence)
    workspace = Workspace(atlas, explorers={"mine": mine})
    assert workspace.view
    workspace.show(view="mine")
    mine.state.latent = 5
    assert workspace.selected == (8, 5)
    with pytest.raises(ValueError, match="a view 'table' already"):
        Workspace(atlas, explorers={"table": mine})


def test_a_thousand_interactions_make_no_new_widgets_and_closing_leaves_none(workspace):
    random, views = np.random.default_rng(0), workspace.state.views
    for view in views:
        workspace.show(view=view)
    before = live_widgets()
    for step in range(1000):
        if step % 50 in (0, 10):  # a tenth of them in the views that take longer
            workspace.show(view="table" if step % 50 else views[step // 50 % len(views)])
        if step % 4 == 0:
            width = int(random.choice([8, 24, 48]))
            send(workspace, goto=f"{width}/{random.integers(width)}")
        elif step % 4 == 1:
            send(workspace, key=str(random.choice(["next", "previous", "back", "forward"])))
        elif step % 4 == 2:
            workspace._search.value = str(random.choice(["king", "queen", "", "e"]))
        else:
            workspace._pin.click()
    assert live_widgets() == before
    assert len(shown(workspace)) < 500_000
    workspace.close()
    assert live_widgets() == 0
    assert workspace.view  # and it can be displayed again
    assert workspace.explorers["latent"].selected


def test_answers_are_fast_at_49_152_latents(wide_atlas):
    width = wide_atlas.widths[0]
    workspace = Workspace(wide_atlas)
    assert workspace.view
    draw = np.random.default_rng(0)
    changes = {
        "another latent": lambda: workspace.show(view="latent", latent=int(draw.integers(width))),
        "a search": lambda: workspace.show(query=str(draw.choice(["king", "queen", "ri", "stone"]))),
        "the table": lambda: workspace.show(view="table", page=int(draw.integers(1900))),
        "an order": lambda: workspace.show(view="table", sort=str(draw.choice(["density", "max", "latent"]))),
        "a filter": lambda: workspace.show(
            view="table", filter=str(draw.choice(["king", "density>0.001", ""]))
        ),
        "side by side": lambda: workspace.show(view="side by side", latent=int(draw.integers(width))),
    }
    for name, change in changes.items():
        change()
        times = []
        for _ in range(7):
            start = time.perf_counter()
            change()
            times.append(time.perf_counter() - start)
        assert sorted(times)[3] < 0.1, (name, times)


def test_a_figure_records_the_explorer_that_draws_it(workspace, atlas, tmp_path):
    workspace.show(view="novelty", width=48, latent=3)
    inner = workspace.explorers["novelty"]
    inner.state.theta = 0.5
    plot = workspace.figure()
    assert plot.settings["theta"] == 0.5
    assert "theta 0.5" in plot.caption
    assert (plot.settings, plot.caption) == (inner.selection, inner.figure().caption)
    assert plot.made_from["store of the evidence"]["hash"] == atlas.store.content_hash
    plot.save("novelty", folder=tmp_path)
    saved = json.loads((tmp_path / "novelty.json").read_text())
    assert saved["settings"]["theta"] == 0.5
    assert saved["inputs"]["store of the evidence"]["hash"] == atlas.store.content_hash
    workspace.show(view="side by side", width=24, latent=1)
    title, _, told = workspace.figure().caption.partition("Selection: ")
    width, latent = workspace._second()
    names = atlas.family[24].name, atlas.family[width].name
    assert title.startswith(
        f"Activations where it is active: latent 1 of {names[0]} and latent {latent} of {names[1]}. Hist"
    )
    assert told == f"width 24, latent 1 and second {workspace._second()}."
    both = {member["hash"] for member in workspace.figure().made_from.values()}
    assert both == {atlas.family[24].content_hash, atlas.family[48].content_hash, atlas.store.content_hash}


def test_a_view_without_pictures_names_those_with_some(workspace):
    workspace.show(view="table")
    with pytest.raises(ValueError, match="'side by side', 'splitting', 'novelty' and 'stitching' have"):
        workspace.figure()


def test_an_explorer_of_another_dictionary_tells_its_own(world, atlas):
    other = Family([world.family.get(8, 1)])
    evidence = collect_evidence(other, world.store, None, vocabulary=world.evidence[8].vocabulary)
    workspace = Workspace(atlas, explorers={"mine": LatentExplorer(other, evidence)}, width=24, latent=1)
    workspace.show(view="mine")
    plot = workspace.figure()
    hashes = {name: entry["hash"] for name, entry in plot.made_from.items()}
    assert other[8].content_hash in hashes.values()
    assert not {atlas.family[width].content_hash for width in atlas.widths} & set(hashes.values())
    assert other[8].name in plot.caption
    assert plot.settings["width"] == 8
