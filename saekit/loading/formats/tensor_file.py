"""Shared by all readers: files of named tensors, each taken once, with the shape it must have."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from saekit.files import Stamp, parsing, read_json
from saekit.folding import Unfolded

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_opened: ContextVar[list[Stamp] | None] = ContextVar("opened", default=None)


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Parameters
    ----------
    name : str
        Its name in messages and in `info["format"]`.
    files : str
        Its files or folders in words, for the message that lists all formats.
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

    Used as a context manager: an entry that was not taken by its end is an error, since a reader that
    ignores a tensor gets the function wrong.

    Parameters
    ----------
    path : Path
        A `.safetensors`, `.npz`, `.pt` or `.pth` file; only tensors and plain values in it are
        unpickled, and tensors are read when they are used.
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
                "without it this might be another function."
            )

    def take(self, name: str, *shape: str, infinite: bool = False) -> Tensor:
        """A floating-point tensor, with a name for the size of each dimension.

        The first tensor that names a size sets it for the others.

        Parameters
        ----------
        name : str
            Name of the tensor.
        *shape : str
            Names of the sizes.
        infinite : bool
            Whether the values of a vector may be infinite, as thresholds may.

        Raises
        ------
        ValueError
            If there is no such tensor, it has another type or shape, or a vector is not finite.
        """
        tensor = self._dense(name, self.value(name))
        expected = [self.sizes.get(size) for size in shape]
        if len(shape) != tensor.ndim or any(
            size is not None and size != found for size, found in zip(expected, tensor.shape, strict=True)
        ):
            sizes = ", ".join(
                name if size is None else f"{name}={size}" for name, size in zip(shape, expected, strict=True)
            )
            raise ValueError(f"{self.path}: {name} must have shape [{sizes}], found {list(tensor.shape)}.")
        # Matrices are checked when they are folded.
        if tensor.ndim == 1 and not (torch.isfinite(tensor) | (infinite & torch.isinf(tensor))).all():
            raise ValueError(f"{self.path}: {name} holds values that are not finite.")
        self.sizes |= dict(zip(shape, tensor.shape, strict=True))
        return tensor

    def _dense(self, name: str, tensor: Any) -> Tensor:
        """A tensor whose values are all in the file, in a dtype that widens to float32 or float64."""
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{self.path}: {name} must be a tensor of {expected}, found {found}.")
        if tensor.layout != torch.strided or tensor.is_meta:
            found = "no values (a meta tensor)" if tensor.is_meta else str(tensor.layout)
            raise ValueError(f"{self.path}: {name} must be a dense tensor, found {found}.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{self.path}: {name} repeats fewer values than its shape {list(tensor.shape)} has: save "
                "it with .contiguous()."
            )
        return tensor.detach()

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
            raise ValueError(f"{self.path}: {name} must be one number, found {_shown(value)}.")
        return value

    def drop(self, *names: str) -> None:
        """Leave out entries that do not affect the function, if they are there."""
        for name in names:
            self._entries.pop(name, None)


def _shown(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


# ------------------------------------------------------------------------------ files


@contextmanager
def opened_files() -> Iterator[list[Stamp]]:
    """Collect a stamp of every file that is opened within, so that later reads see whether it changed."""
    stamps: list[Stamp] = []
    token = _opened.set(stamps)
    try:
        yield stamps
    finally:
        _opened.reset(token)


def read_entries(path: Path) -> Mapping[str, Any]:
    """The entries of a file by name, mapped into memory rather than read.

    In a zip archive (`.npz`, and `.pt` since torch 1.6), every byte is checked against the archive's
    checksums.

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
    if path.suffix not in readers:
        raise ValueError(f"{path} must end in {', '.join(readers)} to be read as a file of tensors.")
    if (opened := _opened.get()) is not None:
        opened.append(Stamp.of(path))
    return _by_name(path, readers[path.suffix](path))


def _by_name(path: Path, entries: Any) -> Mapping[str, Any]:
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise ValueError(f"{path} must hold tensors by name, found {type(entries).__name__}.")
    return entries


def is_pickled(path: Path) -> bool:
    """Whether a path is a file that torch wrote."""
    return path.suffix in (".pt", ".pth") and path.is_file()


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    with parsing(path, "a safetensors file"), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}


def _pickled(path: Path) -> Any:
    with parsing(path, "a file of tensors"):
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                _check_sums(archive)
        try:
            # Weights only: no object is built, no code runs. Files of old versions cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            raise ValueError(
                "it holds more than tensors and plain values, which saekit does not unpickle"
            ) from error


def _npz(path: Path) -> Mapping[str, Tensor]:
    with parsing(path, "a file of plain arrays"), zipfile.ZipFile(path) as archive:
        _check_sums(archive)
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its arrays have the same name")
        return {name: torch.from_numpy(_npy(path, archive, member)) for name, member in members.items()}


def _check_sums(archive: zipfile.ZipFile) -> None:
    """Read every member to its end, where `zipfile` compares its CRC."""
    for member in archive.infolist():
        with archive.open(member) as file:
            while file.read(1 << 20):
                pass


def _npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive: mapped where it is stored as it is, read where it is compressed."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            # The third version differs from the second only in field names, which plain arrays lack.
            (2, 0): np.lib.format.read_array_header_2_0,
            (3, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"{member.filename} has the unknown npy version {version}")
        shape, fortran, dtype = readers[version](file)
        header = file.tell()
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds objects, which saekit does not unpickle")
        if math.prod(shape) * dtype.itemsize != member.file_size - header:
            raise ValueError(
                f"{member.filename} claims the shape {list(shape)}, but has {member.file_size - header} bytes"
            )
        order: Literal["F", "C"] = "F" if fortran else "C"
        if member.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(bytearray(file.read()), dtype).reshape(shape, order=order)
    with open(path, "rb") as raw:  # the local header's name and extra field vary in length
        raw.seek(member.header_offset + 26)
        name, extra = np.frombuffer(raw.read(4), dtype="<u2").tolist()
    start = member.header_offset + 30 + name + extra + header
    return np.memmap(path, dtype, mode="c", offset=start, shape=shape, order=order)


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
    """A setting of the type it must have; `default` if it is missing.

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


# ------------------------------------------------------------------------------ transcoders

# Settings by which libraries mark transcoders and the like, and the values that an SAE has.
MARKS = (
    "transcode", "is_transcoder", "is_crosscoder", "skip_connection", "affine_connection", "is_skip",
)  # fmt: skip
PLACES = {
    "hook_name_out": "hook_name",
    "hook_point_out": "hook_point",
    "out_hook_point": "hook_point",
    "hf_hook_point_out": "hf_hook_point_in",
    "d_out": "d_in",
}
NAMES = ("architecture", "type", "dict_class", "trainer_class", "sae_type")


OTHER = ("crosscoder", "clt")  # they read or predict several layers


def marks_of(config: Mapping[str, Any]) -> list[str]:
    """The settings that mark a transcoder or crosscoder, if this is one."""
    marks = [name for name in MARKS if config.get(name)]
    marks += [
        name
        for name, own in PLACES.items()
        if config.get(name) is not None and config[name] != config.get(own, config[name])
    ]
    words = ("transcoder", *OTHER)
    return marks + [name for name in NAMES if any(word in str(config.get(name)).lower() for word in words)]


def refuse_crosscoder(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what reads or predicts the activations of several layers.

    Raises
    ------
    ValueError
        If the settings mark such a one; the message names the setting.
    """
    for name in marks_of(config):
        if name == "is_crosscoder" or (name in NAMES and any(w in str(config[name]).lower() for w in OTHER)):
            raise ValueError(
                f"{path} describes a crosscoder ({name} is {config[name]!r}), which reads or predicts "
                "several layers: saekit reads SAEs and transcoders."
            )


def refuse_transcoder(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a transcoder or crosscoder, which each library marks by its own settings.

    Raises
    ------
    ValueError
        If the settings mark one; the message names the setting.
    """
    refuse_crosscoder(config, path)
    if marks := marks_of(config):
        raise ValueError(
            f"{path} describes a transcoder ({marks[0]} is {config[marks[0]]!r}), which predicts one hook "
            "point from another: saekit reads the transcoders of SAELens, sparsify and Gemma Scope, and of "
            "this format SAEs."
        )
