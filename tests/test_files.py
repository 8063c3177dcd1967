import json
import os
import re
from pathlib import Path

import numpy as np
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


def test_a_place_that_cannot_be_is_named_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "page.html"
    with pytest.raises(OSError, match=f"{re.escape(str(target))} cannot be written"):
        files.write_bytes(target, b"x")


def test_a_folder_is_tried_before_the_work(tmp_path):
    folder = files.writable_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="Nothing can be written to the folder"):
            files.writable_folder(place)


def test_home_expands_the_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAEKIT_HOME", "~/x")
    assert files.home() == tmp_path / "x"
    monkeypatch.setenv("SAEKIT_HOME", "relative")
    assert files.home().is_absolute()


def test_tensors_that_share_memory_are_written_in_full(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"a": whole, "b": whole, "rows": whole[1:], "transposed": whole.T, "gradient": whole * 2}
    tensors["gradient"].requires_grad_()
    files.write_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_values_of_numpy_and_torch_are_written_as_json(tmp_path):
    value = {"width": np.int64(512), "share": np.float32(0.5), "on": np.bool_(True)}
    value |= {"seed": torch.tensor(3), "path": tmp_path, "dtype": torch.float32, "pair": (1, 2)}
    expected = {"width": 512, "share": 0.5, "on": True, "seed": 3, "path": str(tmp_path)}
    expected |= {"dtype": "torch.float32", "pair": [1, 2]}
    assert files.as_json(value, "info") == expected
    files.write_json(tmp_path / "v.json", value)
    assert files.read_json(tmp_path / "v.json") == expected
    assert files.hash_json(value) == files.hash_json(expected)
    assert files.as_json({576: {"a": [np.int8(1)]}}, "info") == {"576": {"a": [1]}}
    with pytest.raises(TypeError, match=r"info\['a'\]\[1\] must be a value that JSON can hold, found set"):
        files.as_json({"a": [1, {2}]}, "info")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\x00", "NaNN"], ids=["deep", "long", "zero", "word"]
)
def test_whatever_is_no_json_is_one_sentence(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json is not a JSON file") as caught:
        files.read_json(tmp_path / "broken.json")
    assert "\n" not in str(caught.value)


def test_json_of_windows_may_begin_with_a_mark(tmp_path):
    (tmp_path / "v.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "v.json") == {"a": 1}


def test_only_a_file_open_for_writing_is_flushed(tmp_path, monkeypatch):
    """Windows refuses to flush a handle that cannot write."""
    modes = []

    def fsync(descriptor):
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(os, "fsync", fsync)
    files.write_bytes(tmp_path / "a", b"1")
    assert modes == [os.O_RDWR]


def test_written_files_have_the_usual_permissions(tmp_path):
    files.write_bytes(tmp_path / "a", b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_place_is_tried_before_work(tmp_path, monkeypatch):
    assert files.writable_folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"Nothing can be written to .*file.inside .*choose another one"):
        files.writable_folder(tmp_path / "file" / "inside")
    with pytest.raises(OSError, match="MB free, but 1,000,000,000,000 MB will be written"):
        files.writable_folder(tmp_path, needed=10**18)

    def read_only(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(PermissionError, match="Nothing can be written to"):
        files.writable_folder(tmp_path)


def test_a_full_disk_names_the_file(tmp_path):
    def full():
        with files.atomic_path(tmp_path / "weights"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"weights cannot be written: No space left"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_read_tensors_does_not_depend_on_the_file_afterwards(tmp_path):
    path = tmp_path / "t.safetensors"
    files.write_tensors(path, {"a": torch.arange(50_000.0)})
    tensors = files.read_tensors(path)
    os.truncate(path, 0)
    assert torch.equal(tensors["a"], torch.arange(50_000.0))
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged or not a safetensors file"):
        files.read_tensors(path)
