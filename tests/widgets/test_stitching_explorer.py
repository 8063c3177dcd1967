"""The stitching explorer without a browser: every step shows what it moved and what that changed."""

import re
from itertools import pairwise

import numpy as np
import pytest
import traitlets
from widget_checks import live_widgets, shown

from saekit import wording
from saekit.analysis.stitching.path import stitch
from saekit.widgets import StitchingExplorer

THETA = 0.95  # novel latents, groups and lost latents, gains and costs


@pytest.fixture(scope="module")
def stitching(world):
    return stitch(world.family[24], world.family[48], world.x, theta=THETA)


@pytest.fixture
def explorer(world, stitching):
    explorer = StitchingExplorer(stitching, world.evidence[24], world.evidence[48])
    assert explorer.view
    return explorer


def test_every_step_shows_the_latents_it_moved(world, stitching, explorer):
    similar = world.family[48].W_dec @ world.family[24].W_dec.T
    for step in stitching.frame["step"]:
        explorer.state.step = int(step)
        text = shown(explorer)
        moves = stitching.moves[stitching.moves["step"] == step]
        removed, inserted = (
            moves.loc[moves["side"] == side, "latent"].tolist() for side in ("small", "large")
        )
        for n, verb in ((len(removed), "removed"), (len(inserted), "inserted")):
            assert (f"{n:,} {verb}:" in text) == (n > 0)
        if len(removed) == 1 and len(inserted) == 1:
            cosine = similar[inserted[0], removed[0]]
            assert re.search(
                rf'<b>{inserted[0]}</b>.*data-goto="24/{removed[0]}">{removed[0]}<.*>{cosine:.2f}<', text
            )
        elif len(inserted) == 1 and not removed:
            cosine, nearest = similar[inserted[0]].max(dim=0)
            assert re.search(
                rf'<b>{inserted[0]}</b>.*data-goto="24/{nearest}">{nearest}<.*>{cosine:.2f}<', text
            )


def test_a_step_shows_the_error_before_and_after(stitching, explorer):
    frame = stitching.frame
    for (_, before), (step, after) in pairwise(frame.iterrows()):
        explorer.state.step = int(step)
        text = shown(explorer)
        for measure in ("mse", "fvu", "l0"):
            row = (
                rf">{re.escape(wording.number(before[measure], 4))}<.*"
                rf">{re.escape(wording.number(after[measure], 4))}<.*"
                rf"<b>{re.escape(wording.signed(after[measure] - before[measure]))}</b>"
            )
            assert re.search(row, text), (step, measure)


def test_the_dot_is_on_the_curve(stitching, explorer):
    """It moves in straight proportion to the step and, in each panel, to the quantity."""
    places = []
    for step in stitching.frame["step"]:
        explorer.state.step = int(step)
        moving = "".join(re.findall(r'<g class="sk-moving">(.*?)</g>', shown(explorer)))
        dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', moving)
        places.append([*dots[0], dots[1][1]])
    for place, measure in zip(np.array(places, dtype=float).T, ("step", "fvu", "l0"), strict=True):
        fit = np.polynomial.Polynomial.fit(stitching.frame[measure], place, 1)
        np.testing.assert_allclose(fit(stitching.frame[measure]), place, atol=0.06)
        upwards = measure != "step"
        assert fit.convert().coef[1] < 0 if upwards else fit.convert().coef[1] > 0


def test_gains_and_costs_lead_to_the_steps_that_change_most(stitching, explorer):
    changes = stitching.frame.set_index("step")["mse_change"].iloc[1:]
    gains, costs = ([step for _, step in jump.options] for jump in explorer._jumps)
    assert changes[gains[0]] == changes.min()
    assert costs == [] or changes[costs[0]] == changes.max()
    assert list(changes[gains]) == sorted(changes[gains])
    for jump in explorer._jumps:
        for _, step in jump.options:
            jump.value = step
            assert explorer.state.step == step


def test_next_phase_visits_all_phases_and_comes_back(stitching, explorer):
    explorer.state.step = 0
    button = next(
        b for b in explorer.view.children[2].children if getattr(b, "description", "") == "Next phase"
    )
    visited = []
    for _ in range(len(stitching.phases) + 1):
        button.click()
        visited.append(explorer.state.step)
    assert visited == [*stitching.phases["first_step"], 0]


def test_a_dead_latent_can_be_moved(world):
    result = stitch(world.family[8], world.family[24], world.x)
    explorer = StitchingExplorer(result, world.evidence[8], world.evidence[24])
    moves = result.moves
    for side, latent in (("small", 7), ("large", 7)):  # dead in both
        explorer.state.step = int(
            moves.loc[(moves["side"] == side) & (moves["latent"] == latent), "step"].iloc[0]
        )
        assert "dead" in shown(explorer)
        assert "never active" in explorer.static()


def test_token_text_is_escaped_and_the_static_form_stands_alone(stitching, explorer):
    for step in stitching.frame["step"]:
        explorer.show(step=int(step))
        for text in (shown(explorer), explorer.static()):
            assert "<script" not in text.lower()
            assert "<b>source</b>" not in text
            assert "\u202e" not in text
    page = explorer.static()
    assert page == explorer.static()
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:|//)", page)


def test_the_code_line_brings_back_the_selection(explorer):
    explorer.state.step = 5
    line = explorer.code()
    explorer.state.step = 2
    eval(line, {"explorer": explorer})
    assert explorer.state.step == 5


def test_steps_that_do_not_exist_are_refused(stitching, explorer):
    for step in (-1, len(stitching.frame)):
        with pytest.raises(traitlets.TraitError, match="step must be between 0 and"):
            explorer.show(step=step)


def test_updates_make_no_widgets(stitching, explorer):
    before = live_widgets()
    for step in stitching.frame["step"]:
        explorer.state.step = int(step)
    assert live_widgets() == before
    explorer.close()


def test_evidence_must_be_of_the_same_widths(world, stitching):
    with pytest.raises(ValueError, match=r"evidence about relu 24 .*, found evidence about relu 48"):
        StitchingExplorer(stitching, world.evidence[48], world.evidence[48])
