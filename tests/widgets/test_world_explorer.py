"""The world explorer shows, of a feature, the latents that point at it, live and static."""

import pytest
import torch
import traitlets
from widget_checks import shown

from saekit.recovery import measure_recovery
from saekit.synthetic import nabeshima_tree
from saekit.widgets import WorldExplorer


@pytest.fixture(scope="module")
def world():
    return nabeshima_tree()


@pytest.fixture
def explorer(world):
    order = torch.arange(20).flip(0)
    found = {
        "all <b>": measure_recovery(world.directions[order], world.directions),
        "parents": measure_recovery(world.directions[[0, 4, 8]], world.directions),
    }
    return WorldExplorer(world, found, feature=4)


def test_live_and_static_show_the_same_latents(explorer):
    for form in (shown(explorer), explorer.static()):
        assert "Feature 4: 1" in form
        assert "15 (1.00)" in form  # latent 15 of the turned order is feature 4
        assert "1 (1.00)" in form  # and latent 1 of the parents
        assert "all &lt;b&gt;" in form
        assert "<b>all" not in form.replace("<b>1</b>", "")


def test_a_feature_that_nothing_found(world):
    explorer = WorldExplorer(world, {"parents": measure_recovery(world.directions[:1], world.directions)})
    explorer.show(feature=19)
    assert "no latent's best true feature" in shown(explorer)
    assert "child of 0" not in shown(explorer)
    explorer.show(feature=1)
    assert "child of 0" in shown(explorer)


def test_the_control_sets_the_state(explorer):
    assert explorer.view
    explorer._feature.value = 7
    assert explorer.state.feature == 7
    assert explorer.code() == "explorer.show(feature=7)"


def test_refusals(world, explorer):
    with pytest.raises(traitlets.TraitError):
        explorer.show(feature=20)
    with pytest.raises(ValueError, match="found none"):
        WorldExplorer(world, {})
    with pytest.raises(ValueError, match="of 3 features"):
        WorldExplorer(world, {"x": measure_recovery(torch.eye(3), torch.eye(3))})
