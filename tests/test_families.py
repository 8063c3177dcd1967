import pytest
from dictionaries import make

from saekit.dictionary import Dictionary
from saekit.families import Family


def member(width, seed, kind="relu", d_in=12):
    tensors = make(d_in=d_in, width=width, seed=seed).tensors()
    return Dictionary(**tensors, info={"kind": kind, "seed": seed, "hook_point": "blocks.0.hook_resid_post"})


def test_widths_seeds_and_pairs():
    family = Family([member(40, 0), member(10, 0), member(20, 1), member(20, 0)])
    assert family.widths == [10, 20, 40]
    assert family.seeds(20) == [0, 1]
    assert family[20].seed == 0
    assert family.second_seed(20).seed == 1
    assert family.second_seed(10) is None
    assert [(a.width, b.width) for a, b in family.pairs()] == [(10, 20), (20, 40)]
    assert len(family) == 4


def test_missing_members_are_named():
    family = Family([member(10, 0)])
    with pytest.raises(KeyError, match="no width 20"):
        family[20]
    with pytest.raises(KeyError, match="no seed 3"):
        family.get(10, 3)


def test_members_must_belong_together():
    with pytest.raises(ValueError, match="kind"):
        Family([member(10, 0), member(20, 0, kind="topk")])
    with pytest.raises(ValueError, match="two dictionaries"):
        Family([member(10, 0), member(10, 0)])
    with pytest.raises(ValueError, match="at least one"):
        Family([])


def test_round_trip(tmp_path):
    family = Family([member(10, 0), member(20, 0), member(20, 1)])
    loaded = Family.load(family.save(tmp_path / "family"))
    assert [m.content_hash for m in loaded] == [m.content_hash for m in family]
    with pytest.raises(FileNotFoundError, match="holds no dictionaries"):
        Family.load(tmp_path / "nothing")
