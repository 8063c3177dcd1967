"""The circuit explorer shows the nodes of a result, and each opens its latent."""

import pytest
import traitlets
from toy_effects import HOOK_POINT, pairs, sae
from widget_checks import live_widgets, shown

import saekit
from saekit.analysis.effects.nodes import measure_node_effects
from saekit.family import Family
from saekit.widgets import CircuitExplorer
from saekit.wording import signed

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


@pytest.fixture(scope="module")
def effects(model):
    return measure_node_effects(
        model, [sae(), sae("blocks.0.hook_resid_post")], pairs(model), n_exact=5, steps=2
    )


@pytest.fixture(scope="module")
def evidence(model, store):
    family = Family([sae()])
    return saekit.collect_evidence(family, store, model)[20]


@pytest.fixture
def explorer(effects, evidence):
    return CircuitExplorer(effects, evidence)


def test_it_starts_at_the_greatest_node(explorer, effects):
    top = effects.nodes("attribution").iloc[0]
    state = explorer.state
    assert (state.place, state.position, state.latent) == (top["place"], top["position"], top["latent"])
    assert explorer.methods == ["attribution", "integrated", "relp"]  # exact effects are of a sample
    assert signed(top["effect"]) in explorer.static()


def test_choosing_a_node_opens_its_latent(explorer, effects, evidence):
    assert explorer.view
    for text, node in explorer._found.options[:12]:
        explorer._found.value = node
        assert (explorer.state.place, explorer.state.position, explorer.state.latent) == node
        page = shown(explorer)
        name = "SAE error" if node[2] < 0 else f"Latent {node[2]}"
        assert f"{name} at {node[0]}, position {node[1]}" in page
        if node[2] >= 0 and node[0] == HOOK_POINT:
            assert evidence.facts(node[2]) in page
            assert evidence.contexts_table(node[2], 6) in page
        assert ("error" in text) == (node[2] < 0)
    frame = effects.frame
    place, position, latent = node
    rows = frame[(frame["place"] == place) & (frame["position"] == position) & (frame["latent"] == latent)]
    assert signed(rows["attribution"].mean()) in shown(explorer)


def test_prompt_and_method_change_what_is_shown(explorer, effects):
    explorer.show(prompt=1, method="relp")
    page = explorer.static()
    own = effects.frame[effects.frame["prompt"] == 1]
    top = own.loc[own["relp"].abs().idxmax()]
    assert signed(top["relp"]) in page
    assert "the old queen runs" in page
    assert explorer.code().startswith("explorer.show(prompt=1, method='relp', place=")
    assert explorer.view
    assert explorer._prompt.value == 1
    explorer._prompt.value = -1
    assert explorer.state.prompt == -1
    assert "averaged over 3 prompts" in shown(explorer)


def test_a_node_that_is_not_there_says_so(explorer):
    explorer.show(place=HOOK_POINT, position=0, latent=3)
    assert "does not differ from its baseline here" in explorer.static()


def test_what_does_not_exist_is_refused(explorer):
    before = explorer.code()
    for wrong, message in (
        ({"prompt": 3}, "prompt must be between -1 and 2"),
        ({"method": "exact"}, "method must be one of 'attribution'"),
        ({"place": "blocks.9.hook_resid_post"}, "place must be one of"),
        ({"position": 99}, "position must be between 0 and 5"),
        ({"latent": 20}, "20"),
    ):
        with pytest.raises(traitlets.TraitError, match=message):
            explorer.show(**wrong)
        assert explorer.code() == before


def test_it_works_without_evidence_and_not_with_that_of_another(model, effects, evidence):
    explorer = CircuitExplorer(effects)
    assert "Greatest effects" in explorer.static()
    other = measure_node_effects(model, sae(seed=5), pairs(model), methods=["attribution"])
    with pytest.raises(ValueError, match="needs evidence about"):
        CircuitExplorer(other, evidence)
    exact = measure_node_effects(model, sae(), pairs(model), methods=["exact"], n_exact=2)
    with pytest.raises(ValueError, match="measured on all nodes"):
        CircuitExplorer(exact)


def test_many_changes_make_no_widgets(explorer):
    assert explorer.view
    before = live_widgets()
    for prompt in (0, 1, 2, -1) * 3:
        explorer.show(prompt=prompt, method="relp" if prompt % 2 else "attribution")
    assert live_widgets() == before
