"""Ways in which a file of tensors goes wrong on its way."""

import io
import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def read(path: Path) -> dict:
    """All entries of a file, as they are."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return dict(torch.load(path, weights_only=True))


def write(path: Path, entries: dict) -> None:
    """The same kind of file with other entries."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in entries.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in entries.items()})
    else:
        torch.save(entries, path)


def without(name):
    def damage(entries):
        return {key: value for key, value in entries.items() if key != name}

    return damage


def changed(name, change):
    def damage(entries):
        return {key: change(value) if key == name else value for key, value in entries.items()}

    return damage


def extra(entries):
    return entries | {"surplus": torch.ones(3)}


def not_a_number(tensor):
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[tensor.numel() // 2] = torch.nan
    return tensor


def damages(entries):
    """Every tensor missing, transposed, cut, of another type, with a NaN; and one tensor too many."""
    yield "extra tensor", extra
    for name, value in entries.items():
        yield f"{name} missing", without(name)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        yield f"{name} NaN", changed(name, not_a_number)
        yield f"{name} complex", changed(name, lambda tensor: tensor.to(torch.complex64))
        if value.ndim:
            yield f"{name} of integers", changed(name, lambda tensor: tensor.to(torch.int64))
            yield f"{name} cut", changed(name, lambda tensor: tensor[:-1])
            yield f"{name} of one more dimension", changed(name, lambda tensor: tensor[None])
        if value.ndim == 2:
            yield f"{name} transposed", changed(name, lambda tensor: tensor.T)


class Hostile:
    """What unpickling would run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def hostile(path: Path, marker: Path) -> None:
    """Put an object into a file that runs code when it is unpickled."""
    if path.suffix == ".npz":
        np.savez(path, **read(path) | {"W_enc": np.array([Hostile(marker)], dtype=object)})
    elif path.suffix in (".pt", ".pth"):
        torch.save(read(path) | {"config": Hostile(marker)}, path)
    else:
        buffer = io.BytesIO()
        pickle.dump(Hostile(marker), buffer)
        path.write_bytes(buffer.getvalue())
