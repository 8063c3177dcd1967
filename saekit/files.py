"""Files on disk: written atomically, named and checked by content."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize_tensors

HUB_SECONDS = 10.0  # to wait for the hub's answer

_made: ContextVar[list[Path] | None] = ContextVar("made", default=None)  # for `without_empty_folders`

# ------------------------------------------------------------------------------ writing


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends well.

    The file is flushed to disk before it is renamed, so a reader sees the old file or the
    whole new one. If the block raises (a full disk, an interrupt), `path` is left as it was.

    Raises
    ------
    OSError
        If the file cannot be written; the message names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made here and not by `tempfile`, whose files only their owner can read.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with open(temporary, "r+b") as written:  # Windows flushes only what is open for writing
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.strerror is None or str(path) in str(error):
            raise
        raise type(error)(error.errno, f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # where nothing could be made, its own error would hide the one that counts
            temporary.unlink(missing_ok=True)


def local_only(name: str | Path) -> bool:
    """Whether a name that leads nowhere here is a slip in a path, and no place on a hub to ask for.

    It is spelled as a path, or begins with a folder that is there.

    Examples
    --------
    >>> [local_only(name) for name in ("./my-model", "~/my-model", "gpt2", "organisation/my-model")]
    [True, True, False, False]
    """
    text = str(name)
    first = Path(text).parts[:1]
    spelled = isinstance(name, Path) or text.startswith((".", "~", "/", "\\")) or Path(text).is_absolute()
    return spelled or ("/" in text and Path(*first).is_dir())


def require_on_hub(
    name: str, revision: str | None = None, *, what: str = "model", known: Iterable[str] = ()
) -> None:
    """Refuse a name that the Hugging Face hub does not have, or cannot be asked for, after one request.

    Its clients try again and again, for half a minute, where there is no network.

    Parameters
    ----------
    name : str
        A repository, such as `"gpt2"` or `"organisation/repository"`.
    revision : str, optional
        Branch, tag or commit.
    what : {"model", "dataset"}
        What it should be.
    known : iterable of str
        Names that need no hub, one of which may have been meant; so may a folder beside it.

    Raises
    ------
    FileNotFoundError
        If there is none, or no hub that answers.

    Examples
    --------
    >>> require_on_hub("no such model")
    Traceback (most recent call last):
        ...
    FileNotFoundError: There is no model 'no such model' here, and it cannot be the name of one on a hub.
    """
    from huggingface_hub import HfApi, errors

    hub = HfApi()
    try:
        hub.repo_info(name, revision=revision, repo_type=what, timeout=HUB_SECONDS)
        return
    except errors.HFValidationError:
        reason = "it cannot be the name of one on a hub"
    except errors.RevisionNotFoundError:
        reason = f"none of revision {revision} at {hub.endpoint}"
    except errors.RepositoryNotFoundError:
        reason = f"none at {hub.endpoint} that is seen without logging in"
    except errors.OfflineModeIsEnabled:
        reason = "no hub is asked, since HF_HUB_OFFLINE is set"
    except (errors.HTTPError, OSError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        reason = f"{hub.endpoint} cannot be reached ({why})"
    beside = (str(Path(name).with_name(p.name)) for p in Path(name).absolute().parent.glob("*") if p.is_dir())
    near = {candidate.lower(): candidate for candidate in (*beside, *known)}
    meant = get_close_matches(name.lower(), near, n=1, cutoff=0.8)
    hint = f"; did you mean {near[meant[0]]!r}?" if meant else "."
    raise FileNotFoundError(f"There is no {what} {name!r} here, and {reason}{hint}") from None


def writable_folder(folder: str | Path, *, needed: int = 0) -> Path:
    """Try a place before the work whose results go there starts.

    Parameters
    ----------
    folder : str or Path
        Made if needed.
    needed : int
        Bytes that will be written, if known.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OSError
        If nothing can be written there, or fewer than `needed` bytes are free.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> writable_folder(folder) == Path(folder)
    True
    """
    folder = Path(folder)
    if (made := _made.get()) is not None:
        made += [place for place in (folder, *folder.parents) if not place.exists()]
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"saekit")
        probe.unlink()
    except OSError as error:
        raise type(error)(
            f"Nothing can be written to the folder {folder} ({error.strerror}): choose another one."
        ) from error
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{folder} has {free / 1e6:,.0f} MB free, but {needed / 1e6:,.0f} MB will be written: "
            "choose another one."
        )
    return folder


@contextmanager
def without_empty_folders() -> Iterator[None]:
    """Remove the folders that `writable_folder` makes in the block and that are empty when it ends."""
    made: list[Path] = []  # inner ones first
    token = _made.set(made)
    try:
        yield
    finally:
        _made.reset(token)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON that ends in a newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"
    write_bytes(path, text.encode())


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; tensors that share memory are written in full."""
    separate: dict[str, torch.Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    write_bytes(path, serialize_tensors(separate, metadata))


# ------------------------------------------------------------------------------ reading


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not JSON, is nested too deeply, or gives a name twice.
    """
    path = Path(path)

    twice: dict[str, None] = {}

    def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # the json module would take the last
            times = Counter(name for name, _ in pairs)
            twice.update((name, None) for name in found if times[name] > 1)
        return found

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=named)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    if twice:
        raise ValueError(f"{path} gives {', '.join(twice)} twice.")
    return content


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file into separate memory, so that the file may change afterwards.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged.
    """
    with parsing(path, "a safetensors file"), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in list(file.keys())}


@contextmanager
def parsing(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on the bytes of a file into one sentence that names the file.

    Parsers of foreign bytes raise nearly anything: struct errors, index errors, overflows. The error
    for a file that is missing or must not be read stays as it is.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"{path} is damaged or not {kind}: {reason}.") from error


@dataclass(frozen=True)
class Stamp:
    """A file's size and modification time, which tell a later reader whether it is still the same file.

    Tensors that are mapped from a file are read when they are used. A file truncated in the meantime
    would then crash the process, and one that was overwritten would give different numbers.
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The current stamp of a file."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def check(self) -> None:
        """Refuse a file that has changed.

        Raises
        ------
        ValueError
            If the file is gone or has another size or modification time.
        """
        if not self.path.is_file() or Stamp.of(self.path) != self:
            raise ValueError(f"{self.path} has changed since it was opened: open it again.")


# ------------------------------------------------------------------------------ plain values and hashes


def as_json(value: Any, what: str) -> Any:
    """A value made of JSON's own types: NumPy's and torch's numbers become Python's, tuples lists.

    Parameters
    ----------
    value : mapping, sequence, number, string, Path or None
        The value, to be written as JSON later.
    what : str
        Its name in errors.

    Raises
    ------
    TypeError
        If a part of it has no form in JSON; the message names the part.

    Examples
    --------
    >>> as_json({"width": np.int64(512), "seeds": (0, 1)}, "info")
    {'width': 512, 'seeds': [0, 1]}
    """
    if value is None or isinstance(value, str | int | float):
        return _plain(value) if isinstance(value, np.generic) else value
    if isinstance(value, Mapping):
        return {str(key): as_json(part, f"{what}[{str(key)!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part, f"{what}[{place}]") for place, part in enumerate(value)]
    try:
        return _plain(value)
    except TypeError:
        raise TypeError(f"{what} must be a value that JSON can hold, found {type(value).__name__}.") from None


def _plain(value: Any) -> Any:
    """What JSON has for a value that is not one of its types."""
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim:
        return value.tolist()
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.item()
    raise TypeError(f"JSON has no form for {type(value).__name__}.")


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def source_hash() -> str:
    """SHA-256 over the package's own `.py` files and templates: their names and contents, in order.

    Examples
    --------
    >>> len(source_hash())
    64
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    files = [*package.rglob("*.py"), *filter(Path.is_file, (package / "templates").rglob("*"))]
    for path in sorted(files, key=lambda path: path.relative_to(package).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def home() -> Path:
    """The folder for converted models, activation stores and trained families.

    `SAEKIT_HOME` if it is set (`~` is the user's home), else `~/.cache/saekit`.
    """
    return Path(os.environ.get("SAEKIT_HOME") or "~/.cache/saekit").expanduser().absolute()
