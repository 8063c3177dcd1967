"""The probing explorer opens the latents of its probes."""

import pytest
from toy_world import DEAD, make_world
from widget_checks import shown

from saekit.analysis.probing import LastTokens, probe
from saekit.widgets import ProbingExplorer

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


@pytest.fixture(scope="module")
def world():
    made = make_world()
    tokens = made.store.tokens.flatten()
    sets = [
        LastTokens("<b>kings</b>", made.x, tokens == 1, kept_out=True),
        LastTokens("rivers", made.x, tokens == 10),
        LastTokens("leaks", made.x, tokens == 1, leaky=True),
    ]
    made.probing = probe(list(made.family), sets, ks=[1, 2], dense=False)
    return made


def test_choosing_a_probe_opens_its_latent(world):
    explorer = ProbingExplorer(world.probing, world.family, world.evidence, width=24)
    name, auc, latent = explorer.probes[24][0]
    assert auc == max(auc for _, auc, _ in explorer.probes[24])
    assert explorer.state.latent == latent
    frame = world.probing.frame
    row = frame[(frame["dictionary"] == world.family[24].name) & (frame["k"] == 1) & (frame["set"] == name)]
    assert row["latents"].iloc[0] == (latent,)
    assert explorer.view
    _, value = explorer._found.options[1]
    explorer._found.value = value
    assert explorer.state.latent == explorer.probes[24][1][2]
    assert f"Latent {explorer.state.latent} of relu 24" in shown(explorer)
    explorer.state.width = 48
    assert {width for _, (width, _) in explorer._found.options} == {48}
    explorer.show(width=8, latent=DEAD)
    assert explorer._found.value in (None, (8, DEAD))


def test_the_static_twin_shows_the_same_and_escapes_names(world):
    explorer = ProbingExplorer(world.probing, world.family, world.evidence)
    page = explorer.static()
    assert "&lt;b&gt;kings" in page
    assert "<b>kings" not in page
    assert "kings&lt;/b&gt; (kept out)" in page
    assert "rivers (kept out)" not in page
    assert "leaks" not in page
    for name, auc, latent in explorer.probes[explorer.state.width]:
        assert f"{auc:.3f}" in page
        assert str(latent) in page
        assert name.strip("<b>/")[:4] in page


def test_dictionaries_that_were_not_probed_are_refused(world):
    sets = [LastTokens("x", world.x, world.store.tokens.flatten() == 1)]
    with pytest.raises(ValueError, match="k = 1"):
        ProbingExplorer(probe(list(world.family), sets, ks=[2], dense=False), world.family, world.evidence)
