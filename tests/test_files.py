import json

import pytest
import torch
from safetensors.torch import load_file

from saekit import files


def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "value.txt"
    target.write_text("old")

    def write_half():
        with files.atomic_path(target) as temporary:
            temporary.write_text("half of the new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_replaces_and_makes_folders(tmp_path):
    target = tmp_path / "a" / "b.txt"
    for text in ("one", "two"):
        with files.atomic_path(target) as temporary:
            temporary.write_text(text)
    assert target.read_text() == "two"


def test_tensors_and_json_round_trip(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2], dtype=torch.int32)}
    files.write_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    files.write_json(tmp_path / "v.json", {"é": [1, None]})
    assert files.read_json(tmp_path / "v.json") == {"é": [1, None]}


def test_read_json_names_the_damaged_file(tmp_path):
    (tmp_path / "broken.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"broken\.json is not a JSON file"):
        files.read_json(tmp_path / "broken.json")


def test_hash_json_ignores_key_order_and_sees_values():
    assert files.hash_json({"a": 1, "b": 2}) == files.hash_json(json.loads('{"b": 2, "a": 1}'))
    assert files.hash_json({"a": 1}) != files.hash_json({"a": 2})


def test_hash_tensors_sees_names_shapes_types_and_values():
    base = torch.arange(4.0)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.view(2, 2)},
        {"a": base.to(torch.bfloat16)},
        {"a": base + 1},
    ]
    assert len({files.hash_tensors(v) for v in variants}) == len(variants)
    strided = torch.stack([base, base], dim=1)[:, 0]
    assert files.hash_tensors({"a": strided}) == files.hash_tensors({"a": base})


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path))
    assert files.home() == tmp_path


def test_a_folder_is_tried_before_the_work(tmp_path):
    folder = files.writable_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="Nothing can be written to the folder"):
            files.writable_folder(place)
