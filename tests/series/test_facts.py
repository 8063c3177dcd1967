"""The command asks for every fact and writes the table; the bundled one holds what it asks for."""

import pandas as pd
import pytest

from saekit import cli
from saekit.analysis.edits import known_facts
from saekit.series import facts, tables

TEMPLATES = {
    "animal": {
        "place": ("the {entity} runs", "an old {entity} over the"),
        "friend": ("and the {entity} sleeps",),
    },
    "thing": {"place": ("under a {entity} of the",)},
}
CANDIDATES = {"animal": "king river moon, queen stone river", "thing": "river moon, stone king"}


def test_the_command_writes_what_the_model_knows(model, tmp_path, monkeypatch):
    for name, value in {"TEMPLATES": TEMPLATES, "CANDIDATES": CANDIDATES, "BUNDLED": tmp_path}.items():
        monkeypatch.setattr(facts, name, value)
    monkeypatch.setattr(facts, "load_model", lambda: model)
    monkeypatch.setattr(tables, "BUNDLED", tmp_path)
    assert cli.main(["--quiet", "facts"]) == 0
    table = tables.facts_table()
    assert table["kind"].tolist() == ["animal"] * 4 + ["thing"] * 2
    assert table["n_templates"].tolist() == [2, 1, 2, 1, 1, 1]
    for kind, templates in TEMPLATES.items():
        found = table[table["kind"] == kind].drop(columns="kind").reset_index(drop=True)
        expected = known_facts(model, facts.candidate_facts(kind), templates).round({"margin": 2})
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_the_bundled_table_holds_every_candidate():
    table = tables.facts_table()
    for kind, templates in facts.TEMPLATES.items():
        part = table[table["kind"] == kind]
        asked = facts.candidate_facts(kind)
        assert part[asked.columns].to_numpy().tolist() == asked.to_numpy().tolist()
        assert part["n_templates"].tolist() == [len(templates[name]) for name in part["attribute"]]
        assert (part["known"] == (part["n_right"] == part["n_templates"])).all()
        assert (part["known"] == (part["margin"] > 0)).all()
        assert part.groupby("entity")["known"].all().sum() >= 20  # enough to edit


def test_facts_of_several_tokens_are_left_out_whole(model, monkeypatch):
    given = {"city": "king river moon runs, queen zzzq river runs, stone moon river runs, zzzq moon river a"}
    monkeypatch.setattr(facts, "CANDIDATES", given)
    found = facts.usable_facts(model.tokenizer, "city")
    assert found["entity"].unique().tolist() == ["king", "stone"]
    assert found["attribute"].tolist() == ["country", "continent", "language"] * 2
    monkeypatch.setattr(facts, "CANDIDATES", {"city": "king river moon runs, zzzq moon river a"})
    with pytest.raises(ValueError, match="too few cities as single tokens"):
        facts.usable_facts(model.tokenizer, "city")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of 'city', 'country', found 'person'"):
        facts.candidate_facts("person")
