"""What every reader shares: files of named tensors, each taken once, with the shape it must have."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saekit.files import read_json
from saekit.folding import Unfolded


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Parameters
    ----------
    name : str
        As it is said in messages and kept in `info["format"]`.
    files : str
        What a file or folder of this format looks like, for the message that lists them all.
    recognises : callable
        Whether a path holds an SAE of this format; looks at names and keys, never at tensors.
    read : callable
        Reads a path that was recognised.
    """

    name: str
    files: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Unfolded]


class TensorFile:
    """The entries of one file, each to be taken once.

    Used as a context: on leaving it, an entry that nobody took is an error, since a tensor that a
    reader ignores is a function that it gets wrong.

    Parameters
    ----------
    path : Path
        A `.safetensors`, `.npz`, `.pt` or `.pth` file; nothing in it is unpickled but tensors and
        plain values, and tensors are not read before they are used.
    **sizes : int
        Sizes known from elsewhere, by the names that `take` uses.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or holds more than tensors and plain values.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any] | None = None, **sizes: int | None) -> None:
        self.path = path
        self.sizes = {name: size for name, size in sizes.items() if size is not None}
        self._entries = dict(read_entries(path) if entries is None else _by_name(path, entries))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._entries:
            raise ValueError(
                f"{self.path} holds {', '.join(sorted(self._entries))}, which has no place in such an SAE: "
                "it might not be the same function without."
            )

    def take(self, name: str, *shape: str) -> Tensor:
        """A floating-point tensor, with a name for the size of each dimension.

        The first tensor that names a size sets it for the others.

        Raises
        ------
        ValueError
            If there is no such tensor, or it has another type or shape.
        """
        tensor = self.value(name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{self.path}: {name} must be a floating-point tensor, found {found}.")
        expected = [self.sizes.get(size) for size in shape]
        if len(shape) != tensor.ndim or any(
            size is not None and size != found for size, found in zip(expected, tensor.shape, strict=True)
        ):
            sizes = ", ".join(
                name if size is None else f"{name}={size}" for name, size in zip(shape, expected, strict=True)
            )
            raise ValueError(f"{self.path}: {name} must have shape [{sizes}], found {list(tensor.shape)}.")
        if tensor.ndim == 1 and not torch.isfinite(tensor).all():  # matrices when they are folded
            raise ValueError(f"{self.path}: {name} holds values that are not finite.")
        self.sizes |= dict(zip(shape, tensor.shape, strict=True))
        return tensor

    def value(self, name: str) -> Any:
        """An entry of any type.

        Raises
        ------
        ValueError
            If there is none of this name.
        """
        if name not in self._entries:
            others = ", ".join(sorted(self._entries)) or "nothing else"
            raise ValueError(f"{self.path} must hold {name}; found {others}.")
        return self._entries.pop(name)

    def number(self, name: str) -> float:
        """An entry that is one number, in a tensor or plain.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        value = self.value(name)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{self.path}: {name} must be one number, found {_say(value)}.")
        return value

    def drop(self, *names: str) -> None:
        """Leave out what does not act on the function, where it is there."""
        for name in names:
            self._entries.pop(name, None)


def _say(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


# ------------------------------------------------------------------------------ files


def read_entries(path: Path) -> Mapping[str, Any]:
    """The entries of a file by name, mapped into memory rather than read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or holds more than named tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pt": _pickled, ".pth": _pickled}
    return _by_name(path, readers[path.suffix](path))


def _by_name(path: Path, entries: Any) -> Mapping[str, Any]:
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise ValueError(f"{path} must hold tensors by name, found {type(entries).__name__}.")
    return entries


def is_pickled(path: Path) -> bool:
    """Whether a path is a file that torch wrote."""
    return path.suffix in (".pt", ".pth") and path.is_file()


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}.") from error


def _pickled(path: Path) -> Any:
    try:
        # Weights only: no object is built, no code is run. Files of old versions cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values, which saekit does not unpickle."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged or not a file of tensors: {reason}") from error


def _npz(path: Path) -> Mapping[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                Path(member.filename).stem: torch.from_numpy(_npy(path, archive, member))
                for member in archive.infolist()
            }
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not a file of plain arrays: {error}") from error


def _npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive: mapped where it is stored as it is, read where it is compressed."""
    with archive.open(member) as file:
        if member.compress_type != zipfile.ZIP_STORED:
            return np.lib.format.read_array(file, allow_pickle=False)
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds objects, which saekit does not unpickle.")
    with open(path, "rb") as raw:  # the local header's name and extra field vary in length
        raw.seek(member.header_offset + 26)
        name, extra = np.frombuffer(raw.read(4), dtype="<u2").tolist()
    return np.memmap(
        path,
        dtype,
        mode="c",
        offset=member.header_offset + 30 + name + extra + header,
        shape=shape,
        order="F" if fortran else "C",
    )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file that holds settings by name.

    Raises
    ------
    ValueError
        If it holds anything else.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold settings by name, found {type(config).__name__}.")
    return config


def setting(
    config: Mapping[str, Any], path: Path, name: str, kind: type | UnionType, default: Any = None
) -> Any:
    """A setting of the type it must have; `default` where it is not there.

    Raises
    ------
    ValueError
        If it has another type, or there is neither a setting nor a default.
    """
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(
            f"{path}: {name} must be of type {getattr(kind, '__name__', kind)}, found {value!r}."
        )
    return value


def choice(value: Any, path: Path, name: str, options: Iterable[Any]) -> Any:
    """`value`, if it is one of the options.

    Raises
    ------
    ValueError
        If it is not.
    """
    options = list(options)
    if value not in options:
        raise ValueError(f"{path}: {name} must be one of {', '.join(map(str, options))}, found {value!r}.")
    return value
