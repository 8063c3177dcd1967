"""The explorers without a browser: what they show follows their state, and nothing else."""

import ast
import gc
import os
import re
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from jupyter_client import KernelManager
from toy_world import WORDS
from widget_checks import live_widgets, shown

from saekit.agreement import MismatchError
from saekit.analysis import collect, insertion, splitting_tree
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.widgets import Evidence, LatentExplorer, NoveltyExplorer, SplittingExplorer, collect_evidence

DEAD = 7


@pytest.fixture
def latent_explorer(world):
    return LatentExplorer(world.family, world.evidence, width=24)


@pytest.fixture
def splitting_explorer(world):
    return SplittingExplorer(world.tree, world.evidence)


@pytest.fixture
def novelty_explorer(world):
    return NoveltyExplorer(
        world.insertion, world.evidence[48], null=world.null, small_evidence=world.evidence[24]
    )


def test_only_a_null_of_the_insertion_stands_beside_it(world):
    seeds, x = (world.family[24], world.family.get(24, 1)), world.x
    for wrong, null in {
        "needs the result's theta": insertion(*seeds, x, theta=0.61),
        "tokens": insertion(*seeds, x[:-1], theta=world.insertion.theta),
        "A null is between": world.insertion,
    }.items():
        with pytest.raises(ValueError, match=wrong):
            NoveltyExplorer(world.insertion, world.evidence[48], null=null)


@pytest.fixture(params=["latent", "splitting", "novelty"])
def explorer(request):
    return request.getfixturevalue(f"{request.param}_explorer")


def test_a_latent_is_shown_with_its_words_and_greatest_activation(world, latent_explorer):
    latent_explorer.state.latent = 2
    text = shown(latent_explorer)
    assert "queen" in text
    assert f"{float(world.activations[24].max[2]):.3g}" in text
    latent_explorer.state.latent = 10
    assert "river" in shown(latent_explorer)
    assert "queen" not in latent_explorer.evidence[24].words(10, 1)


def test_changing_the_width_follows_the_most_similar_direction(world, latent_explorer):
    latent_explorer.state.latent = 3
    expected = int((world.family[48].W_dec @ world.family[24].W_dec[3]).argmax())
    latent_explorer.state.width = 48
    assert latent_explorer.state.latent == expected


def test_a_dead_latent_says_so(world, latent_explorer):
    latent_explorer.show(width=8, latent=DEAD)
    assert re.search(r"never active", shown(latent_explorer))
    assert "never active" in latent_explorer.static()


def test_every_latent_can_be_shown(world, latent_explorer, splitting_explorer):
    for width in world.family.widths:
        for latent in range(width):
            latent_explorer.show(width=width, latent=latent)
            splitting_explorer.show(width=width, latent=latent)
            assert str(latent) in shown(splitting_explorer)


def test_splitting_shows_parent_and_children(world, splitting_explorer):
    start = world.tree.most_split(1).iloc[0]
    splitting_explorer.show(width=int(start["width"]), latent=int(start["latent"]))
    text = splitting_explorer.static()
    children = world.tree.children(int(start["width"]), int(start["latent"]))
    assert len(children) == start["children"] >= 2
    for child in children:
        assert re.search(rf"\b{child['latent']}\b", text)
        assert f"{child['cosine']:.2f}" in text


def test_a_tree_without_splits_starts_at_the_narrowest_width(world):
    tree = splitting_tree(Family([world.family[8], world.family[24]]), theta=1)
    explorer = SplittingExplorer(tree, {width: world.evidence[width] for width in (8, 24)})
    assert (explorer.state.width, explorer.state.latent) == (8, 0)
    assert "Lost" in shown(explorer)


def test_theta_moves_the_partition(world, novelty_explorer):
    counts = {}
    for theta in (0.5, 0.9):
        novelty_explorer.state.theta = theta
        at = world.insertion.at(theta)
        novel = int(((world.insertion.frame["best_cosine"] < theta) & ~world.insertion.frame["dead"]).sum())
        counts[theta] = novel
        assert at["share_novel_cos"] == pytest.approx(novel / at["n_latents"])
        text = shown(novelty_explorer)
        frame = world.insertion.frame[~world.insertion.frame["dead"]]
        helped = int((frame["novel_gain"] & (frame["best_cosine"] < theta)).sum())
        assert re.search(rf">\s*{helped}\s*<", text), "the confusion table counts novel latents that help"
    assert counts[0.5] < counts[0.9]


def test_groups_hold_the_latents_they_name(world, novelty_explorer):
    frame = world.insertion.frame[~world.insertion.frame["dead"]]
    novelty_explorer.state.theta = 0.9
    rules = {
        "clear novel": (frame["best_cosine"] < 0.9) & frame["novel_gain"],
        "clear reconstruction": (frame["best_cosine"] >= 0.9) & ~frame["novel_gain"],
        "low but hurts": (frame["best_cosine"] < 0.9) & ~frame["novel_gain"],
        "high but helps": (frame["best_cosine"] >= 0.9) & frame["novel_gain"],
    }
    for group, rule in rules.items():
        novelty_explorer.state.group = group
        members = set(frame["latent"][rule])
        assert set(novelty_explorer._members(group, 0.9)["latent"]) == members
        if members:
            assert novelty_explorer.state.latent in members


def test_token_text_is_escaped_everywhere(world, explorer):
    states = (
        [{"width": w, "latent": i} for w in (8, 24) for i in range(8)]
        if "width" in explorer.state.trait_names()
        else [{"latent": i} for i in range(12)]
    )
    for state in states:
        explorer.show(**state)
        for text in (shown(explorer), explorer.static()):
            assert "<script" not in text.lower()
            assert "<b>source</b>" not in text
            assert "\u202e" not in text, "a direction override would reorder the text around it"


def test_static_form_is_self_contained_and_deterministic(explorer):
    first, second = explorer.static(), explorer.static()
    assert first == second
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:|//)", first)
    assert "@import" not in first


def displayed(explorer):
    """The outputs that a notebook would get."""
    with capture_output() as captured:
        explorer._ipython_display_()
    return [output.data for output in captured.outputs]


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def test_the_static_form_is_an_output_of_its_own(shell, explorer, monkeypatch):
    """So that it is still there where the live widget's model is not found."""
    static, live = displayed(explorer)
    assert explorer.static() in static["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in static
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.view.model_id
    assert "text/html" not in live
    # The live widget hides the static form beside it, and none else.
    assert f"saekit-static-{explorer.view.model_id}" in static["text/html"]
    assert f".saekit-static-{explorer.view.model_id}, " in explorer.view.children[0].value


def test_only_the_static_form_is_displayed_if_that_is_asked_for(shell, explorer, monkeypatch):
    monkeypatch.setenv("SAEKIT_STATIC", "1")
    before = live_widgets()
    (output,) = displayed(explorer)
    assert output == {"text/html": explorer.static(), "text/plain": repr(explorer)}
    assert live_widgets() == before


def test_the_code_line_brings_back_the_selection(world, latent_explorer, novelty_explorer):
    latent_explorer.show(width=48, latent=13)
    line = latent_explorer.code()
    latent_explorer.show(width=8, latent=1)
    eval(line, {"explorer": latent_explorer})
    assert (latent_explorer.state.width, latent_explorer.state.latent) == (48, 13)
    novelty_explorer.state.theta = 0.8
    line = novelty_explorer.code()
    novelty_explorer.state.theta = 0.3
    eval(line, {"explorer": novelty_explorer})
    assert novelty_explorer.state.theta == 0.8


def test_a_hundred_updates_make_no_new_widgets(world, latent_explorer, novelty_explorer):
    assert latent_explorer.view
    assert novelty_explorer.view
    before = live_widgets()
    for i in range(100):
        latent_explorer.show(width=(8, 24, 48)[i % 3], latent=i % 8)
        novelty_explorer.state.theta = 0.2 + 0.006 * i
    assert live_widgets() == before


def test_closing_leaves_nothing_and_displaying_again_makes_it_anew(world):
    before = live_widgets()
    explorer = LatentExplorer(world.family, world.evidence, width=24, latent=2)
    assert live_widgets() == before, "nothing is displayed yet"
    text = shown(explorer)
    assert live_widgets() > before
    explorer.close()
    assert live_widgets() == before
    explorer.state.latent = 10
    assert "river" in shown(explorer)
    explorer.state.latent = 2
    assert shown(explorer).count("queen") == text.count("queen")


def test_an_explorer_that_is_not_displayed_is_freed(world):
    explorer = weakref.ref(LatentExplorer(world.family, world.evidence))
    gc.collect()
    assert explorer() is None


RERUN = """
import gc, sys
sys.path[:0] = {paths!r}
from ipywidgets.widgets import widget
from toy_world import make_world
from saekit.agreement import MismatchError
from saekit.analysis import collect
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.widgets import Evidence, collect_evidence, LatentExplorer, NoveltyExplorer
world = make_world()

def alive():
    gc.collect()
    explorers = sum(isinstance(thing, (LatentExplorer, NoveltyExplorer)) for thing in gc.get_objects())
    return explorers, len(widget._instances)
"""
LATENT, NOVELTY = (
    "LatentExplorer(world.family, world.evidence)",
    "NoveltyExplorer(world.insertion, world.evidence[48])",
)


class Kernel:
    """A real kernel that runs cells by their names, as JupyterLab does."""

    def __init__(self, client):
        self.client = client

    def run(self, cell, code, **asked):
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": asked}
        content |= {"allow_stdin": False, "stop_on_error": True}
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell})
        self.client.shell_channel.send(message)
        while True:
            reply = self.client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                assert reply["content"]["status"] == "ok", reply["content"]
                return {
                    name: value["data"]["text/plain"]
                    for name, value in reply["content"]["user_expressions"].items()
                }

    def alive(self):
        return ast.literal_eval(self.run("count", "", alive="alive()")["alive"])


@pytest.fixture(scope="module")
def kernel():
    manager = KernelManager()
    manager.start_kernel(env=os.environ | {"SAEKIT_STATIC": ""})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        tests = Path(__file__).resolve().parents[1]
        running = Kernel(client)
        running.run("setup", RERUN.format(paths=[str(tests), str(tests.parent)]))
        yield running
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_running_a_cell_again_frees_what_it_displayed(kernel):
    kernel.run("first", LATENT)
    kernel.run("second", f"novelty = {NOVELTY}\nnovelty")
    once = kernel.alive()
    assert once[0] == 2
    for _ in range(50):
        kernel.run("first", LATENT)
        kernel.run("second", f"novelty = {NOVELTY}\nnovelty")
    assert kernel.alive() == once


def test_an_explorer_of_the_users_own_survives(kernel):
    """Displayed in two cells, of which one runs again; and again after its last cell showed another one."""
    kernel.run("make", f"mine = {LATENT}")
    kernel.run("a", "mine")
    kernel.run("b", "display(mine)")
    kernel.run("a", LATENT)
    assert kernel.run("count", "", open="mine._view is not None")["open"] == "True"
    kernel.run("b", LATENT)
    assert kernel.run("count", "", open="mine._view is not None")["open"] == "False"
    kernel.run("b", "mine")
    shown = "'queen' in str([getattr(part, 'value', '') for part in mine.view.children])"
    assert kernel.run("count", "", shown=shown)["shown"] == "True"
    assert kernel.run("count", "", open="mine._view is not None")["open"] == "True"


def test_states_that_do_not_exist_are_refused(latent_explorer, novelty_explorer):
    for explorer, selection in [
        (latent_explorer, {"latent": 24}),
        (latent_explorer, {"width": 9}),
        (latent_explorer, {"theta": 0.5}),
        (novelty_explorer, {"theta": 2.0}),
        (novelty_explorer, {"group": "nonsense"}),
    ]:
        before = explorer.code()
        with pytest.raises(traitlets.TraitError):
            explorer.show(**selection)
        assert explorer.code() == before


def test_an_error_is_shown_and_leaves_no_stale_panel(world, latent_explorer, monkeypatch):
    latent_explorer.state.latent = 2
    monkeypatch.setenv("SAEKIT_STRICT", "0")
    assert "queen" in shown(latent_explorer)

    def broken(*args, **kwargs):
        raise RuntimeError("the <evidence> broke")

    with monkeypatch.context() as patch:
        patch.setattr(type(latent_explorer.evidence[24]), "tokens_table", broken)
        latent_explorer.state.latent = 3
        text = shown(latent_explorer)
        assert 'role="alert"' in text
        assert "the &lt;evidence&gt; broke" in text
        assert "queen" not in text
    latent_explorer.state.latent = 2
    text = shown(latent_explorer)
    assert "queen" in text
    assert 'role="alert"' not in text


def test_errors_are_raised_in_strict_mode(latent_explorer, monkeypatch):
    assert latent_explorer.view
    monkeypatch.setattr(
        type(latent_explorer.evidence[24]),
        "tokens_table",
        lambda *_, **__: (_ for _ in ()).throw(RuntimeError("x")),
    )
    with pytest.raises(RuntimeError, match="x"):
        latent_explorer.state.latent = 3


def test_evidence_must_cover_the_widths(world):
    with pytest.raises(ValueError, match="there is none for 48: give"):
        LatentExplorer(world.family, {w: world.evidence[w] for w in (8, 24)})
    with pytest.raises(ValueError, match=r"evidence about relu 48 .*found evidence about relu 24"):
        NoveltyExplorer(world.insertion, world.evidence[24])
    with pytest.raises(ValueError, match=r"small_evidence needs evidence about relu 24 .*found .*relu 48"):
        NoveltyExplorer(world.insertion, world.evidence[48], small_evidence=world.evidence[48])


def test_evidence_about_another_dictionary_of_the_same_name_is_refused(world):
    other = replace(world.family[48], b_enc=world.family[48].b_enc + 0.1)
    evidence = Evidence(collect(other, world.x), world.store, WORDS)
    assert evidence.activations.name == world.evidence[48].activations.name
    mixed = {**world.evidence, 48: evidence}
    for explore in (
        lambda: NoveltyExplorer(world.insertion, evidence),
        lambda: LatentExplorer(world.family, mixed),
        lambda: SplittingExplorer(world.tree, mixed),
    ):
        with pytest.raises(ValueError, match="found evidence about relu 48"):
            explore()


@pytest.mark.parametrize(
    ("explore", "message"),
    [
        (lambda w: NoveltyExplorer(w.insertion), r"relu 48 .*found none: .*collect_evidence.*\[48\]"),
        (lambda w: NoveltyExplorer(w.insertion, w.evidence), r"relu 48 .*found a dict: .*\[48\]"),
        (lambda w: LatentExplorer(w.family), "widths 8, 24 and 48 fire on, by width, found none"),
        (lambda w: LatentExplorer(w.family, w.evidence[8]), "found a Evidence: give saekit.collect_evidence"),
        (lambda w: SplittingExplorer(w.tree), "SplittingExplorer needs evidence"),
        (lambda w: LatentExplorer(w.family, dict.fromkeys((8, 24, 48), 3)), "relu 8 .*found a int"),
    ],
)
def test_a_sentence_names_the_evidence_that_is_missing(world, explore, message):
    with pytest.raises(TypeError, match=message):
        explore(world)


@pytest.mark.parametrize("latent", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_latents_are_numbers_of_any_type(world, latent_explorer, novelty_explorer, latent):
    for explorer in (latent_explorer, novelty_explorer):
        explorer.state.latent = latent
        assert type(explorer.state.latent) is int
        assert "latent=3" in explorer.code()
    latent_explorer.show(width=np.int64(48), latent=latent)
    assert latent_explorer.code() == "explorer.show(width=48, latent=3)"
    assert world.evidence[24].words(latent) == world.evidence[24].words(3)


@pytest.mark.parametrize("latent", [-1, 48, 1.0, True, "3", None])
def test_what_is_no_latent_is_refused(world, latent_explorer, latent):
    with pytest.raises(traitlets.TraitError):
        latent_explorer.state.latent = latent
    for look in (world.evidence[24].words, world.evidence[24].facts, world.evidence[24].contexts_table):
        with pytest.raises((TypeError, IndexError)):
            look(latent)


@pytest.mark.parametrize("theta", [-1, 1.5, 7, float("nan"), "0.5"])
def test_theta_is_a_cosine(novelty_explorer, theta):
    with pytest.raises(traitlets.TraitError, match="theta"):
        novelty_explorer.state.theta = theta


def test_effects_on_the_logits_are_shown_on_the_residual_stream_only(model, store):
    """Inside a block dimensions may agree with those of the stream, and mean something else."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(6, store.d_in, generator=generator), dim=1)

    def at(place):
        info = {"kind": "relu", "seed": 0, "hook_point": place}
        bias = torch.zeros(store.d_in)
        return Family(
            [Dictionary(rows.T.contiguous(), torch.zeros(6), rows, bias, torch.zeros(6), info=info)]
        )

    inside = at("blocks.0.attn.hook_z")
    with pytest.raises(MismatchError):
        collect_evidence(inside, store, model)
    with pytest.warns(UserWarning, match="residual stream"):
        assert "suppresses" in collect_evidence(inside, store, model, allow_mismatch=True)[6].logits_table(0)
    found = collect_evidence(at(store.hook_point), store, model)[6]
    assert "suppresses" in found.logits_table(0)
    reason = "Logit effects need directions in the residual stream"
    assert reason in Evidence(found.activations, store, model.tokenizer, reason).logits_table(0)


def test_contexts_show_at_most_25_tokens(world):
    for latent in range(24):
        assert all(len(context.tokens) <= 25 for context in world.evidence[24].top(latent))
