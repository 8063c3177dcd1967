"""The edit explorer shows the answers of an edit, live and static."""

import pytest
import traitlets
from toy_edits import ANSWERS, make_edits
from widget_checks import shown

from saekit import html
from saekit.widgets import EditExplorer


@pytest.fixture(scope="module")
def edits():
    return make_edits()


def test_live_and_static_show_the_answers_of_the_edit(edits):
    explorer = EditExplorer(edits)
    frame = edits.frame
    for pair in explorer.options["pair"]:
        base, source = pair.split(" to ")
        for attribute in ANSWERS:
            explorer.show(pair=pair, attribute=attribute, method="latents, 8")
            rows = frame[(frame["base"] == base) & (frame["source"] == source) & (frame["n"] == 8)]
            rows = rows[rows["attribute"] == attribute]
            assert rows["asked"].tolist() == list(ANSWERS)
            live, static = shown(explorer), explorer.static()
            for index, row in rows.iterrows():
                place = frame.index[frame["asked"] == row["asked"]].get_loc(index)
                before = edits.before[row["asked"]][edits.entities.index(base)]
                for form in (live, static):
                    for i, name in enumerate(ANSWERS[row["asked"]]):
                        assert html.escape(name) in form
                        assert f"{before[i]:.2f}" in form
                        assert f"{edits.after[row['asked']][place][i]:.2f}" in form
                    assert ("yes" if row["reached"] else f"{html.escape(row['wanted'])} was wanted") in form
    assert "<b>France" not in explorer.static()


def test_controls_set_the_state_and_the_code_restores_it(edits):
    explorer = EditExplorer(edits, pair="Rome to Tokyo")
    assert explorer.view
    table = edits.table
    best = table[table["disentangle"] == table["disentangle"].max()]
    assert explorer.state.method in (best["method"] + ", " + best["n"].astype(str)).tolist()
    explorer._controls["attribute"].value = "continent"
    assert explorer.state.attribute == "continent"
    explorer._controls["pair"].value = "Tokyo to Rome"
    other = EditExplorer(edits)
    exec(explorer.code(), {"explorer": other})
    assert other.code() == explorer.code()
    assert "Tokyo to Rome: edit the continent" in shown(other)


def test_values_that_do_not_exist_are_refused(edits):
    explorer = EditExplorer(edits)
    before = explorer.code()
    for name, value in (("pair", "Paris to Rome"), ("attribute", "mayor"), ("method", "latents, 3")):
        with pytest.raises(traitlets.TraitError, match=f"{name} must be one of"):
            explorer.show(**{name: value})
    assert explorer.code() == before
    with pytest.raises(traitlets.TraitError):
        EditExplorer(edits, attribute="mayor")
