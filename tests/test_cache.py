"""Results that are kept: read again for the same content, computed for any other."""

import os
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make

from saekit import cache
from saekit.analysis import collect, insertion, logit_table, stitch
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.loading.names import load_family
from saekit.metrics import ce_degradation
from saekit.models import load_model, unembedding
from saekit.passes import one_pass
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import ReLU


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEKIT_CACHE", "1")
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path))
    return tmp_path / "results"


@pytest.fixture
def counted(folder):
    """A kept function and the calls that were computed."""
    calls = []

    @cached
    def counting(value, *, theta=0.7, progress=False):
        calls.append(value)
        return {"theta": theta, "value": value}

    # Its name is that of a function inside a function, which is the same in every test.
    return counting, calls


def files(folder):
    return sorted(folder.rglob("*.pickle"))


@dataclass(frozen=True)
class Foreign:
    value: int


VALUES = [
    (1, 1.0),
    ("a", "b"),
    (True, 1),
    (None, "None"),
    ([1, 2], (1, 2)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),  # the order of a mapping is that of the rows of a table
    (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    (torch.zeros(2, 3), torch.zeros(3, 2)),
    (torch.tensor([0.0]), torch.tensor([-0.0])),
    (np.arange(3), np.arange(3).astype(np.int32)),
    (np.array(["a", None]), np.array(["a", "None"])),
    (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"b": [1, 2]})),
    (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2]}, index=[1, 2])),
    (pd.Series([1.0, None]), pd.Series([1.0, 2.0])),
    (make(), make(seed=1)),
    (make(), replace(make(), info={"kind": "other"})),
    ({"x": [make()]}, {"x": [make(seed=1)]}),
    (Family([make(), make(width=50)]), Family([make(), make(width=60)])),
    (insertion, stitch),
]


@pytest.mark.parametrize(("value", "other"), VALUES, ids=[str(place) for place in range(len(VALUES))])
def test_another_value_is_computed_and_the_same_one_is_read(value, other):
    contents = [cache._content(part, []) for part in (value, other)]
    assert contents[0] != contents[1]
    assert contents[0] == cache._content(value, [])


def test_a_result_is_computed_once(counted, folder):
    counting, calls = counted
    first = counting(3)
    assert counting(3) == first == {"theta": 0.7, "value": 3}
    assert counting(value=3, theta=0.7, progress=True) == first  # the same call
    assert calls == [3]
    counting(3, theta=0.8)
    assert len(calls) == len(files(folder)) == 2


def test_nothing_is_kept_without_the_variable(counted, folder, monkeypatch):
    counting, calls = counted
    monkeypatch.delenv("SAEKIT_CACHE")
    counting(1), counting(1)
    assert len(calls) == 2
    assert not folder.exists()


def test_other_code_computes_again(counted, monkeypatch):
    counting, calls = counted
    counting(1)
    monkeypatch.setattr(cache, "_code", lambda: "of another version")
    counting(1)
    assert len(calls) == 2


def test_only_old_results_of_other_code_are_deleted(counted, folder):
    counting, calls = counted
    counting(1)
    now = time.time()
    for name, days in (("old", 8), ("recent", 6)):
        (folder / name).mkdir()
        (folder / name / "result.pickle").touch()
        os.utime(folder / name, (now - days * 86400,) * 2)
    os.utime(files(folder)[0].parent, (now - 800 * 86400,) * 2)
    cache.forget_old()
    assert not (folder / "old").exists()
    assert (folder / "recent" / "result.pickle").exists()
    counting(1)
    assert len(calls) == 1


def test_a_changed_tensor_computes_again(counted):
    counting, calls = counted
    dictionary = make()
    counting(dictionary)
    dictionary.b_dec[0] += 1
    counting(dictionary)
    assert len(calls) == 2


def test_a_family_counts_by_its_members_whether_read_or_not(counted, tmp_path):
    counting, calls = counted
    for width in (20, 40):
        make(width=width).save(tmp_path / "family" / str(width))
    first = load_family(tmp_path / "family")
    _ = first[20].content_hash
    counting(first)
    counting(load_family(tmp_path / "family"))  # none of it was read
    counting(Family([make(width=20), make(width=40)]))
    assert len(calls) == 1
    counting(Family([make(width=20), make(width=41)]))
    assert len(calls) == 2


def test_what_was_given_is_referred_to_and_not_copied(counted, folder):
    counting, _ = counted
    given = make(width=2000)
    counting({"one": given})
    same = make(width=2000)
    assert counting({"one": same})["value"]["one"] is same  # the one of this call
    assert files(folder)[0].stat().st_size < 1000


def test_a_new_dictionary_in_a_result_is_kept_whole(folder):
    @cached
    def gathered(dictionary):
        return dictionary.gather([0, 2])

    first, again = gathered(make()), gathered(make())
    assert isinstance(again, Dictionary)
    assert again.identity == first.identity == make().gather([0, 2]).identity


def test_a_call_that_does_more_than_return_always_runs(folder, tmp_path):
    config = TrainingConfig(ReLU(target_l0=4), width=8, steps=3, batch_size=16, log_every=1)
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(0))

    def run(**settings):
        return train(config, x, progress=False, **settings)

    plain = run()
    assert len([*folder.rglob("train-*")]) == 1
    logged = []
    kept = run(checkpoint=tmp_path / "run" / "checkpoint.safetensors", on_log=lambda *_: logged.append(1))
    assert logged
    assert any((tmp_path / "run").iterdir())
    assert len([*folder.rglob("train-*")]) == 1
    again = run()
    assert again.dictionary.identity == plain.dictionary.identity == kept.dictionary.identity
    assert again.log.equals(plain.log)


def test_a_call_on_something_without_content_runs_and_says_so(counted, folder):
    counting, calls = counted
    values = [object(), Foreign(1), lambda: None, (part for part in "ab")]
    for value in values:
        with pytest.warns(UserWarning, match="cannot be kept for an argument of type"):
            counting(value)
    assert calls == values
    assert files(folder) == []


def test_code_that_changed_since_its_import_keeps_and_reads_nothing(counted, folder, monkeypatch):
    counting, calls = counted
    counting(1)
    monkeypatch.setattr(cache, "source_hash", lambda: "edited")
    counting(1), counting(2)
    assert len(calls) == 3
    assert len(files(folder)) == 1


@pytest.mark.parametrize("damage", [b"", b"\x80\x05", b"no pickle at all"])
def test_a_damaged_result_is_written_again(counted, folder, damage):
    counting, calls = counted
    first = counting(1)
    files(folder)[0].write_bytes(damage)
    with pytest.warns(UserWarning, match="is damaged"):
        assert counting(1) == first
    assert counting(1) == first
    assert len(calls) == 2


def test_a_result_that_cannot_be_written_is_not_lost(counted, tmp_path, monkeypatch):
    counting, _ = counted
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="A result is not kept"):
        assert counting(1)["value"] == 1
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path))

    @cached
    def unpicklable(value):
        return lambda: value

    with pytest.warns(UserWarning, match="A result is not kept"):
        assert unpicklable(3)() == 3


def test_a_call_that_warns_warns_every_time(folder):
    @cached
    def warning(value):
        warnings.warn("mind this", UserWarning, stacklevel=1)
        return value

    for _ in range(2):
        with pytest.warns(UserWarning, match="mind this"):
            assert warning(1) == 1
    assert len(files(folder)) == 1


def test_a_model_counts_by_all_of_its_weights_its_mode_and_its_hooks(model_folder, counted, folder):
    counting, calls = counted
    model = load_model(model_folder)
    counting(model), counting(load_model(model_folder))
    assert len(calls) == 1
    weight = next(model.parameters())
    with torch.no_grad():
        weight[0] += weight[0].abs() * 1e-6  # less than the hash of the weights sees
    counting(model)
    model.train()
    counting(model)
    model.eval()
    assert len(calls) == 3
    counting(model)
    assert len(calls) == 3
    model.add_hook("blocks.0.hook_resid_post", lambda x, hook: 2 * x)
    counting(model), counting(model)
    assert len(calls) == 5
    assert len(files(folder)) == 3


def test_a_call_that_fails_keeps_nothing(folder):
    @cached
    def failing(value):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        failing(1)
    assert files(folder) == []


def test_analyses_read_what_they_computed(model, store, folder):
    small, large = make(d_in=16, width=12), make(d_in=16, width=24, seed=1)

    def run():
        stitching = stitch(small, large, store)
        return {
            "insertion": insertion(small, large, store).frame,
            "stitch": stitching.frame,
            "moves": stitching.moves,
            "halfway": stitching.dictionary(3).identity,
            "collect": collect(large, store).frame,
            "logits": logit_table(large, unembedding(model), model.tokenizer).frame,
            "ce": ce_degradation(model, [small, large], store, max_rows=4).frame,
        }

    first = run()
    written = {file: file.stat().st_mtime_ns for file in files(folder)}
    again = run()
    assert {file: file.stat().st_mtime_ns for file in files(folder)} == written
    assert len(written) >= 4
    for name, value in first.items():
        assert again[name].equals(value) if isinstance(value, pd.DataFrame) else again[name] == value


def _added(store, dictionary, **options):
    """Latents of a pass, batch by batch, and how often the dictionary encoded."""
    parts = []
    one_pass(
        store,
        lambda batch: parts.append(batch.latents(dictionary)),
        dictionaries=[dictionary],
        purpose="test",
        **options,
    )
    return parts


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of tokens that dictionaries encoded."""
    calls, encode = [], Dictionary.encode_sparse

    def counting(self, x):
        calls.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(Dictionary, "encode_sparse", counting)
    return calls


def _equal(a, b):
    return all(
        torch.equal(getattr(p, name), getattr(q, name))
        for p, q in zip(a, b, strict=True)
        for name in ("offsets", "indices", "values")
    )


def test_the_second_pass_keeps_latents_and_the_third_reads_them(store, folder, encoded):
    dictionary = make(d_in=16)
    first, second = (_added(store, dictionary, batch_size=50) for _ in range(2))
    assert len(list(folder.rglob("latents-*.safetensors"))) == 1
    encoded.clear()
    third = _added(store, dictionary, batch_size=50)
    assert not encoded
    assert len(third) > 1
    assert _equal(first, second)
    assert _equal(second, third)
    _added(store, make(d_in=16, seed=1), batch_size=50)  # another dictionary, and another batch size, encode
    _added(store, dictionary, batch_size=60)
    assert sum(encoded) == 2 * len(store.positions)


def test_the_first_pass_keeps_the_latents_of_a_trained_dictionary(store, folder, encoded):
    trained = make(d_in=16)
    trained = replace(trained, info={**trained.info, "training": {}})
    first = _added(store, trained)
    encoded.clear()
    assert _equal(_added(store, trained), first)
    assert not encoded


def test_latents_that_were_asked_for_in_part_or_are_too_many_are_not_kept(
    store, folder, encoded, monkeypatch
):
    dictionary = make(d_in=16)

    def some(batch):
        if batch.first == 0:
            batch.latents(dictionary)

    for _ in range(3):
        one_pass(store, some, dictionaries=[dictionary], purpose="test", batch_size=50)
    monkeypatch.setattr("saekit.encodings.LARGEST", 10)
    for _ in range(3):
        _added(store, dictionary)
    assert not list(folder.rglob("latents-*"))


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40])
def test_damaged_latents_are_computed_and_written_again(store, folder, encoded, damage, monkeypatch):
    dictionary = make(d_in=16)
    _, expected = (_added(store, dictionary) for _ in range(2))
    (file,) = folder.rglob("latents-*")
    file.write_bytes(damage)
    monkeypatch.setattr("saekit.encodings._asked", set())  # as in another process
    with pytest.warns(UserWarning, match="is damaged"):
        found = _added(store, dictionary)
    assert _equal(found, expected)
    encoded.clear()
    assert _equal(_added(store, dictionary), expected)
    assert not encoded


def test_latents_of_a_plain_tensor_or_without_the_variable_are_not_kept(store, folder, monkeypatch):
    dictionary = make(d_in=16)
    for _ in range(3):
        _added(torch.randn(64, dictionary.d_in), dictionary)
    monkeypatch.delenv("SAEKIT_CACHE")
    for _ in range(3):
        _added(store, dictionary)
    assert not list(folder.rglob("latents-*"))
