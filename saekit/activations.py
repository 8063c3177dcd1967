"""Activations on disk: harvested once, resumed after any interruption, read without loading them whole.

A store is a folder:

- `manifest.json`: the model, the text and the settings, the shards with their hashes, and
  which positions are excluded and why;
- `shard-00000.safetensors`, ...: `activations` `[rows, ctx, d_in]` and `norms` `[rows, ctx]`;
- `positions.safetensors`: `tokens`, `document` and `excluded` (a bit mask), all `[rows, ctx]`;
- `documents.json`: source, title and hash of every document.

A shard appears once it is whole on disk and names the settings it was harvested with; the manifest
lists the shards, and `complete` is true, when all are there. Where harvesting was interrupted in the
middle of a shard, `partial-00003.safetensors` holds the rows that were finished.

Rows are harvested as `saekit.corpora.pack` packed them. By default a row holds the end of one
document, a separator and the beginning of the next, and tokens attend across separators, as in Leask
et al.'s own harvesting: the text before a document in its row changes its activations.
`pack(one_document_per_row=True)` gives rows in which it does not.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from saekit.corpora import TokenRows
from saekit.distributed import all_reduce_sum, barrier, is_main, rank, world_size
from saekit.files import (
    hash_file,
    hash_json,
    hash_tensors,
    read_json,
    writable_folder,
    write_json,
    write_tensors,
)
from saekit.identity import UnrecordedWarning
from saekit.interrupts import Interrupts
from saekit.models import (
    capture,
    compare_models,
    describe_model,
    require_evaluation,
    require_rows,
    resolve_hook_point,
    run_to,
    special_token_ids,
)
from saekit.selection import Latents, select_latents
from saekit.settings import torch_dtype, whole
from saekit.warn import warn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = "saekit-activations-1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32, "U8": torch.uint8}
NORM_MULTIPLE = 10  # of the median norm: activations beyond it are massive
NORM_SAMPLE = 100_000  # the median is over this many tokens, the first ones
EXCLUSION_RULE = (
    f"special tokens, first position of a row, norm over {NORM_MULTIPLE} times the median of the first "
    f"{NORM_SAMPLE} tokens"
)
BUFFER_TOKENS = 1 << 18  # shuffled at a time: 600 MB at d_in 576
ARRAY_SHARD = 1 << 16  # rows per file of a store made from an array

# Why a position is excluded, as bits: one position may have several reasons.
SPECIAL, FIRST, NORM = 1, 2, 4

Activations: TypeAlias = Union["ActivationStore", Tensor, np.ndarray]


# ---------------------------------------------------------------------------------- harvesting


def harvest(
    model: TransformerBridge,
    rows: TokenRows,
    hook_point: str = "blocks.12.hook_resid_post",
    *,
    path: str | Path,
    target: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    batch_rows: int = 32,
    shard_rows: int = 512,
    progress: bool = True,
) -> ActivationStore:
    """Run token rows through a model and store the activations at a hook point.

    With a `target`, the store is for transcoders, which predict the activations there from those at
    `hook_point`: it holds both side by side, from one pass through the model.

    Call it again after an interruption: finished rows are kept, the rest is harvested. A store that
    is complete is opened at once. Special tokens, the first position of each row, and positions whose
    norm exceeds 10 times the median of the first 100k tokens are masked, not dropped.

    Within `saekit.distributed.distributed`, processes share the shards and write the same bytes as
    one process would; they must see the same folder.

    Parameters
    ----------
    model : TransformerBridge
        From `saekit.models.load_model`.
    rows : TokenRows
        From `saekit.corpora.pack`, or token ids of your own as `TokenRows(tokens)`.
    hook_point : str
        Where to read; heads of `attn.hook_z` are concatenated.
    path : str or Path
        Folder of the store.
    target : str, optional
        A later hook point, such as `"blocks.12.hook_mlp_out"` for `"blocks.12.mlp.hook_in"`.
    dtype : torch.dtype
        Stored as float32 or bfloat16.
    batch_rows, shard_rows : int
        Rows per forward pass and rows per file; the former must divide the latter.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If the folder holds a store of another model (compared by weights) or with other settings,
        the model cannot take the rows, an activation is not finite, or a setting is wrong.
    TypeError
        If a setting has the wrong type.
    OSError
        If nothing can be written there, or the disk is full; finished shards are kept.

    Warns
    -----
    UnrecordedWarning
        If the folder holds a store that does not record the weights of its model.

    Examples
    --------
    >>> store = saekit.harvest(model, rows, "blocks.1.hook_resid_post", path="my-store", progress=False)
    >>> store.d_in, store.context_length
    (16, 16)
    >>> saekit.ActivationStore.open("my-store").content_hash == store.content_hash
    True
    """
    path = Path(path)
    batch_rows, shard_rows = whole("batch_rows", batch_rows), whole("shard_rows", shard_rows)
    if shard_rows % batch_rows:
        raise ValueError(f"shard_rows must be a multiple of batch_rows, found {shard_rows} and {batch_rows}.")
    described = describe_harvest(model, rows, hook_point, dtype=dtype, batch_rows=batch_rows, target=target)

    def read(numbers: Tensor) -> tuple[Tensor, Tensor]:
        return harvest_rows(model, rows.tokens[numbers], hook_point, dtype, target)

    def finish(norms: Tensor) -> _Positions:
        limit = norm_limit(norms)
        excluded = exclusion(model, rows.tokens, norms, limit)
        tensors = {"tokens": rows.tokens, "document": rows.document, "excluded": excluded}
        return _Positions(tensors, rows.documents, EXCLUSION_RULE, limit)

    return _write(path, {"format": FORMAT, **described, "shard_rows": shard_rows}, read, finish, progress)


def describe_harvest(
    model: TransformerBridge,
    rows: TokenRows,
    hook_point: str,
    *,
    dtype: torch.dtype,
    batch_rows: int,
    target: str | None = None,
) -> dict[str, Any]:
    """Describe a harvest (model, text, settings) as JSON values: the beginning of a manifest.

    Raises
    ------
    ValueError
        If the model has no such hook point, is in training mode or cannot take the rows, or
        activations are not kept in this dtype.
    TypeError
        If `rows` are not `TokenRows`.

    Examples
    --------
    >>> hook_point = "blocks.1.hook_resid_post"
    >>> record = describe_harvest(model, rows, hook_point, dtype=torch.float32, batch_rows=2)
    >>> record["dtype"], record["context_length"], record["rows"]
    ('float32', 16, 22)
    """
    if not isinstance(rows, TokenRows):
        raise TypeError(
            f"rows must be TokenRows, found {type(rows).__name__}: pack text with saekit.corpora.pack, or "
            "give token ids as TokenRows(tokens)."
        )
    hook_point, _ = resolve_hook_point(model, hook_point)
    require_evaluation(model)
    require_rows(model, rows.tokens)
    settings = {
        "model": describe_model(model),
        "hook_point": hook_point,
        "dtype": _stored_as(dtype),
        "context_length": rows.context_length,
        "rows": rows.n_rows,
        "batch_rows": batch_rows,
        "corpus": dict(rows.info),
        "tokens_hash": rows.content_hash,
    }
    if target is not None:
        predicted = run_to(model, rows.tokens[:1], target, inputs=hook_point).activations
        settings |= {"target": target, "d_out": predicted.shape[2]}
    return json.loads(json.dumps(settings))  # as they will be read back


def _stored_as(dtype: torch.dtype) -> str:
    dtype = torch_dtype(dtype)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"Activations are stored as {' or '.join(DTYPES)}, not as {name}.")
    return name


def harvest_rows(
    model: TransformerBridge, tokens: Tensor, hook_point: str, dtype: torch.dtype, target: str | None = None
) -> tuple[Tensor, Tensor]:
    """Activations `[rows, ctx, d_in]` of token rows in a dtype, and their norms `[rows, ctx]`, float32.

    With a target, both side by side, `[rows, ctx, d_in + d_out]`, and the norms of each, `[rows, ctx, 2]`.

    Examples
    --------
    >>> hook_point = "blocks.1.hook_resid_post"
    >>> activations, norms = harvest_rows(model, rows.tokens[:2], hook_point, torch.bfloat16)
    >>> activations.shape, norms.dtype
    (torch.Size([2, 16, 16]), torch.float32)
    """
    if target is None:
        activations = capture(model, tokens, hook_point).to(dtype)
        return activations, activations.float().norm(dim=2)
    run = run_to(model, tokens, target, inputs=hook_point)
    assert run.inputs is not None
    pair = [activations.to(dtype) for activations in (run.inputs, run.activations)]
    return torch.cat(pair, dim=2), torch.stack([part.float().norm(dim=2) for part in pair], dim=2)


def require_finite(values: Tensor, numbers: Sequence[int] | Tensor, unit: str) -> None:
    """Refuse activations that are not finite: the one rule for stores, streams, tensors and arrays.

    Parameters
    ----------
    values : Tensor
        `[n, ...]`: activations, or their norms.
    numbers : sequence of int
        The number of each of the `n`.
    unit : str
        The unit that is numbered, such as `"position"` or `"row"`.

    Raises
    ------
    ValueError
        If one is not finite; the message names the first.

    Examples
    --------
    >>> require_finite(torch.tensor([1.0, float("nan")]), [17, 18], "position")
    Traceback (most recent call last):
        ...
    ValueError: The activations of position 18 are not finite: check the ...
    """
    finite = values.isfinite().flatten(1).all(dim=1) if values.ndim > 1 else values.isfinite()
    if not finite.all():
        number = int(numbers[int(finite.logical_not().nonzero()[0, 0])])
        raise ValueError(
            f"The activations of {unit} {number} are not finite: check the weights and the dtype of their "
            f"model, or leave the {unit} out."
        )


def norm_limit(norms: Tensor) -> float | list[float]:
    """The norm beyond which positions are excluded: 10 times the median of the first 100k tokens.

    Of inputs and targets `[rows, ctx, 2]`, one for each.

    Examples
    --------
    >>> norm_limit(torch.tensor([1.0, 2.0, 3.0]))
    20.0
    """
    if norms.ndim == 3:
        return [NORM_MULTIPLE * part.flatten()[:NORM_SAMPLE].median().item() for part in norms.unbind(2)]
    return NORM_MULTIPLE * norms.flatten()[:NORM_SAMPLE].median().item()


def exclusion(model: TransformerBridge, tokens: Tensor, norms: Tensor, limit: float | list[float]) -> Tensor:
    """Reasons for excluding positions of token rows `[rows, ctx]`: bits `SPECIAL`, `FIRST` and `NORM`, uint8.

    With the norms and limits of inputs and targets, a position is excluded if either exceeds its limit.

    Examples
    --------
    >>> tokens = torch.tensor([[5, 0, 7]])  # 0 is the separator
    >>> reasons = exclusion(model, tokens, torch.tensor([[1.0, 1.0, 90.0]]), limit=10.0)
    >>> reasons.tolist() == [[FIRST, SPECIAL, NORM]]
    True
    """
    special = torch.isin(tokens, torch.tensor(special_token_ids(model.tokenizer), dtype=tokens.dtype))
    massive = (norms > torch.tensor(limit)).any(-1) if isinstance(limit, list) else norms > limit
    excluded = special.to(torch.uint8) * SPECIAL + massive.to(torch.uint8) * NORM
    excluded[:, 0] += FIRST
    return excluded


# ---------------------------------------------------------------------------------- writing


@dataclass(frozen=True, eq=False)
class _Positions:
    """The description of a store's positions: tensors `[rows, ctx]`, documents, the exclusion rule."""

    tensors: dict[str, Tensor]
    documents: list[dict[str, str]]
    rule: str
    norm_limit: float | list[float] | None


Read: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]  # numbers of rows to activations and norms


def _write(
    path: Path,
    settings: dict[str, Any],
    read: Read,
    finish: Callable[[Tensor], _Positions],
    progress: bool,
) -> ActivationStore:
    """Write a store, or whatever is missing from it, and open it."""
    manifest = _begin(path, settings)
    if manifest["complete"]:
        return ActivationStore.open(path)
    writable_folder(path)
    try:
        if is_main():
            write_json(path / "manifest.json", manifest)
        settings_hash = hash_json({name: manifest[name] for name in settings})
        manifest["shards"] = _write_shards(path, manifest, settings_hash, read, progress)
        if is_main():
            _finish(path, manifest, finish)
        barrier()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"The disk is full; {path} keeps its finished shards: make room and repeat the call to resume",
        ) from error
    return ActivationStore.open(path)


def _begin(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Find the manifest to resume from, checked to have the same model and settings."""
    if not (path / "manifest.json").exists():
        return {**settings, "complete": False, "shards": []}
    manifest = _read_manifest(path)
    for name, expected in {"target": None, **settings}.items():
        found = manifest.get(name)
        if name == "model" and found and expected:
            compared = [("dtype", found["dtype"], expected["dtype"]), *compare_models(found, expected)]
            if expected["weights"] and not found.get("weights"):
                warn(
                    f"{path} does not record the weights of its model, so only its name and revision were "
                    "compared.",
                    UnrecordedWarning,
                )
        else:
            compared = [(name, found, expected)]
        for what, there, here in compared:
            if there != here:
                raise ValueError(
                    f"{path} was harvested with other settings, so it is not resumed: {what} is "
                    f"{json.dumps(there)} there, and {json.dumps(here)} was asked for."
                )
    for shard in manifest["shards"]:
        _check_size(path, shard)
    return manifest


def _write_shards(
    path: Path, manifest: dict[str, Any], settings_hash: str, read: Read, progress: bool
) -> list[dict[str, Any]]:
    """Write the missing shards, and return the manifest's entries of all of them.

    Processes share the shards. A shard is written and hashed in a thread while the next one is
    computed. Whatever ends this early, the finished rows of a shard are kept.
    """
    ctx, metadata = manifest["context_length"], {"settings": settings_hash}
    shards = list(torch.arange(manifest["rows"]).split(manifest["shard_rows"]))
    files = [path / f"shard-{number:05d}.safetensors" for number in range(len(shards))]
    partial = [path / f"partial-{number:05d}.safetensors" for number in range(len(shards))]
    present = [number for number, file in enumerate(files) if _settings_of(file) == settings_hash]
    missing = [number for number in range(len(files)) if number not in present]
    barrier()  # nobody writes before everybody has seen the same shards missing
    present, missing = present[rank() :: world_size()], missing[rank() :: world_size()]
    digests = torch.zeros(len(files), 32, dtype=torch.int32)

    def write(number: int, parts: list[tuple[Tensor, Tensor]]) -> None:
        tensors = _joined(parts)
        require_finite(tensors["norms"], shards[number], "row")
        write_tensors(files[number], tensors, metadata)
        partial[number].unlink(missing_ok=True)
        digest(number)

    def digest(number: int) -> None:
        digests[number] = torch.tensor(list(bytes.fromhex(hash_file(files[number]))))

    initial = sum(len(shards[number]) for number in present) * ctx
    bar = tqdm(
        total=initial + sum(len(shards[number]) for number in missing) * ctx,
        initial=initial,
        unit="token",
        unit_scale=True,
        desc=f"harvesting {manifest['hook_point']}",
        disable=not (progress and is_main()),
    )
    parts: list[tuple[Tensor, Tensor]] = []  # finished batches of the shard that is being computed
    with Interrupts(), bar, ThreadPoolExecutor(1) as writer:
        try:
            writing = [writer.submit(digest, number) for number in present]
            for number in missing:
                parts = _finished_part(partial[number], settings_hash)
                done = sum(len(norms) for _, norms in parts)
                bar.update(done * ctx)
                for start in range(done, len(shards[number]), manifest["batch_rows"]):
                    batch = shards[number][start : start + manifest["batch_rows"]]
                    parts.append(read(batch))
                    bar.update(len(batch) * ctx)
                for written in writing:  # one shard at most is being written, and an error ends the harvest
                    written.result()
                writing = [writer.submit(write, number, parts)]
                parts = []
            for written in writing:
                written.result()
        except BaseException:
            if parts:
                with suppress(OSError):  # the first error is the one to report
                    write_tensors(partial[number], _joined(parts), metadata)
            raise
    return [
        {
            "file": file.name,
            "rows": [int(shard[0]), int(shard[-1]) + 1],
            "bytes": file.stat().st_size,
            "sha256": bytes(sha256).hex(),
        }
        for file, shard, sha256 in zip(files, shards, all_reduce_sum(digests).tolist(), strict=True)
    ]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    activations, norms = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
    return {"activations": activations, "norms": norms}


def _finished_part(file: Path, settings_hash: str) -> list[tuple[Tensor, Tensor]]:
    """The rows of a shard that were finished when it was interrupted."""
    if _settings_of(file) != settings_hash:
        return []
    with safe_open(file, framework="pt") as part:
        return [(part.get_tensor("activations"), part.get_tensor("norms"))]


def _settings_of(file: Path) -> str | None:
    """Hash of the settings that a shard was harvested with, if there is one."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as shard:
            return (shard.metadata() or {}).get("settings")
    except SafetensorError:
        return None


def _finish(path: Path, manifest: dict[str, Any], finish: Callable[[Tensor], _Positions]) -> None:
    """Exclude positions, write their description, and mark the store complete."""
    shards = [_map_shard(path / shard["file"]) for shard in manifest["shards"]]
    described = finish(torch.cat([shard["norms"] for shard in shards]))
    excluded = described.tensors["excluded"]
    write_tensors(path / "positions.safetensors", described.tensors)
    write_json(path / "documents.json", described.documents)
    files = [
        {"file": name, **_size_and_hash(path / name)} for name in ("positions.safetensors", "documents.json")
    ]
    manifest |= {
        "complete": True,
        "d_in": shards[0]["activations"].shape[2] - manifest.get("d_out", 0),
        "exclusion": {
            "rule": described.rule,
            "norm_limit": described.norm_limit,
            "counts": {
                "special": int((excluded & SPECIAL).count_nonzero()),
                "first": int((excluded & FIRST).count_nonzero()),
                "norm": int((excluded & NORM).count_nonzero()),
                "total": int(excluded.count_nonzero()),
                "positions": excluded.numel(),
            },
        },
        "files": files,
        "hash": hash_json([entry["sha256"] for entry in (*manifest["shards"], *files)]),
    }
    write_json(path / "manifest.json", manifest)
    for leftovers in ("partial-*.safetensors", ".partial-*.safetensors.*"):
        for leftover in path.glob(leftovers):
            leftover.unlink()
    for entry in (*manifest["shards"], *files, {"file": "manifest.json"}):
        for leftover in path.glob(f".{entry['file']}.*"):  # left by writes that were killed
            leftover.unlink()


# ---------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """Harvested activations, memory-mapped: only the parts that are read are loaded.

    A position is `row * context_length + column`. Excluded positions are stored, but left out of
    `positions`, `batches` and `shuffled`. A store for transcoders has a `target`, and reads as rows of inputs
    and targets side by side, `[n, d_in + d_out]`.

    Parameters
    ----------
    path : Path
        Folder of the store.
    manifest : dict
        Its manifest.

    Examples
    --------
    >>> store = saekit.ActivationStore.from_array("my-store", x, hook_point="toy", progress=False)
    >>> store
    ActivationStore(my-store, toy, d_in=6, 200 of 200 positions used)
    >>> len(store.positions), store.d_in
    (200, 6)
    >>> sum(len(batch) for positions, batch in store.batches(128))
    200
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(
        cls, path: str | Path, *, hook_point: str | None = None, d_in: int | None = None
    ) -> ActivationStore:
        """Open a complete store, and check that every file has its full size.

        Raises
        ------
        FileNotFoundError
            If the folder holds no store.
        ValueError
            If the store is incomplete or damaged, or holds activations of another hook point or
            dimension than asked for.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        if not manifest["complete"]:
            finished = len(list(path.glob("shard-*.safetensors")))
            done = min(finished * manifest["shard_rows"], manifest["rows"])
            raise ValueError(
                f"{path} is incomplete ({done} of {manifest['rows']} rows): harvest again with the same "
                "settings to finish it."
            )
        for name, expected in {"hook_point": hook_point, "d_in": d_in}.items():
            if expected is not None and manifest[name] != expected:
                raise ValueError(
                    f"{path} holds activations with {name} {manifest[name]!r}, expected {expected!r}."
                )
        for entry in (*manifest["shards"], *manifest["files"]):
            _check_size(path, entry)
        return cls(path, manifest)

    @classmethod
    def from_array(
        cls,
        path: str | Path,
        array: Tensor | np.ndarray,
        *,
        hook_point: str,
        model: TransformerBridge | str | None = None,
        targets: Tensor | np.ndarray | None = None,
        target: str | None = None,
        dtype: torch.dtype = torch.float32,
        progress: bool = False,
    ) -> ActivationStore:
        """Make a store from activations that you have, such as a tensor or a memory-mapped NumPy file.

        Nothing is excluded. The store holds no tokens, so analyses that show text or run a
        language model refuse it. As with `harvest`, call it again after an interruption.

        Parameters
        ----------
        path : str or Path
            Folder of the store.
        array : Tensor or array
            `[n, d_in]`, of any real dtype; only a shard of it is in memory at a time.
        hook_point : str
            Where the activations were read, or another name for them: dictionaries trained on the
            store record it, and saekit compares the two.
        model : TransformerBridge or str, optional
            The model that they were read from, or its name.
        targets : Tensor or array, optional
            For transcoders, which predict them from `array`: `[n, d_out]`.
        target : str, optional
            Where the targets were read, or another name for them.
        dtype : torch.dtype
            Stored as float32 or bfloat16.
        progress : bool
            Show a progress bar.

        Raises
        ------
        ValueError
            If an array is empty or has another shape, a value is not finite, only one of `targets` and
            `target` is given, or the folder holds a store of something else.
        TypeError
            If it is not an array of real numbers.
        OSError
            If nothing can be written there, or the disk is full; finished shards are kept.
        """
        x = as_activations(array)
        if not isinstance(x, Tensor) or not x.numel():
            raise ValueError(f"A store needs a tensor or an array that is not empty, found {array!r}.")
        if (targets is None) != (target is None):
            raise ValueError("targets and target, the name of where they were read, are given together.")
        y = x[:, :0] if targets is None else as_activations(targets)
        if not isinstance(y, Tensor) or len(y) != len(x) or (targets is not None and not y.numel()):
            raise ValueError(
                f"There must be one target for each of the {len(x)} activations, found {targets!r}."
            )
        path = writable_folder(path)
        described: dict[str, Any] | None
        if model is None or isinstance(model, str):
            unknown = dict.fromkeys(("revision", "weights", "dtype", "processing"))
            described = None if model is None else {"name": model, **unknown}
        else:
            described = describe_model(model)
        settings = {
            "format": FORMAT,
            "model": described,
            "hook_point": hook_point,
            "dtype": _stored_as(dtype),
            "context_length": 1,
            "rows": len(x),
            "batch_rows": ARRAY_SHARD,
            "corpus": None,
            "array_hash": hash_tensors({"array": x}),
            "shard_rows": ARRAY_SHARD,
        }
        if target is not None:
            settings |= {"target": target, "d_out": y.shape[1], "targets_hash": hash_tensors({"array": y})}

        def read(numbers: Tensor) -> tuple[Tensor, Tensor]:
            here = slice(int(numbers[0]), int(numbers[-1]) + 1)
            pair = [part[here].to(dtype)[:, None] for part in (x, y)]
            norms = torch.stack([part.float().norm(dim=2) for part in pair], dim=2)
            return torch.cat(pair, dim=2), norms if target is not None else norms[..., 0]

        def finish(norms: Tensor) -> _Positions:
            excluded = torch.zeros(norms.shape[:2], dtype=torch.uint8)
            return _Positions({"excluded": excluded}, [], "nothing", None)

        return _write(path, settings, read, finish, progress)

    def verify(self) -> None:
        """Read every file and compare it with its hash.

        Raises
        ------
        ValueError
            If a file was changed; the message names it.
        """
        for entry in (*self.manifest["shards"], *self.manifest["files"]):
            _check_size(self.path, entry)
            if hash_file(self.path / entry["file"]) != entry["sha256"]:
                raise ValueError(f"{self.path / entry['file']} is damaged: its hash is not the manifest's.")

    def __repr__(self) -> str:
        place = self.hook_point if self.target is None else f"{self.hook_point} → {self.target}"
        return (
            f"ActivationStore({self.path.name}, {place}, d_in={self.d_in}, "
            f"{len(self.positions):,} of {self.n_tokens:,} positions used)"
        )

    # ------------------------------------------------------------------ what it holds

    @property
    def hook_point(self) -> str:
        """Where the activations were read."""
        return self.manifest["hook_point"]

    @property
    def model_name(self) -> str | None:
        """Name of the model that they come from; None if it is not recorded."""
        return (self.manifest["model"] or {}).get("name")

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.manifest["d_in"]

    @property
    def target(self) -> str | None:
        """Where the targets of transcoders were read; None if there are none."""
        return self.manifest.get("target")

    @property
    def d_out(self) -> int:
        """Dimension of the targets; 0 if there are none."""
        return self.manifest.get("d_out", 0)

    @property
    def context_length(self) -> int:
        """Tokens per row."""
        return self.manifest["context_length"]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.manifest["rows"]

    @property
    def n_tokens(self) -> int:
        """Number of positions, including excluded ones."""
        return self.n_rows * self.context_length

    @property
    def content_hash(self) -> str:
        """Hash of every file of the store."""
        return self.manifest["hash"]

    @property
    def excluded_counts(self) -> dict[str, int]:
        """Positions excluded as `special`, `first`, `norm` and in `total` (some twice); all `positions`."""
        return dict(self.manifest["exclusion"]["counts"])

    @cached_property
    def tokens(self) -> Tensor:
        """Token ids, `[rows, ctx]`, int64."""
        return self._of_text("tokens").long()

    @cached_property
    def document(self) -> Tensor:
        """Index into `documents`, `[rows, ctx]`, int64; -1 for separators."""
        return self._of_text("document").long()

    @cached_property
    def documents(self) -> list[dict[str, str]]:
        """`source`, `title`, `topic` and `hash` of each document."""
        return read_json(self.path / "documents.json")

    @cached_property
    def excluded(self) -> Tensor:
        """Which positions are excluded, `[rows, ctx]`, Boolean."""
        return self._position_tensors["excluded"] > 0

    @cached_property
    def special(self) -> Tensor:
        """Which tokens are special (separators, beginnings, ends), `[rows, ctx]`, Boolean."""
        return (self._position_tensors["excluded"] & SPECIAL) > 0

    @cached_property
    def positions(self) -> Tensor:
        """Positions that are used, `[n]`, int64, ascending."""
        return self.excluded.flatten().logical_not().nonzero().flatten()

    @cached_property
    def norms(self) -> Tensor:
        """L2 norms of the activations (the targets, where there are some), `[rows, ctx]`, float32."""
        norms = torch.cat([shard["norms"] for shard in self._shards])
        return norms if self.target is None else norms[..., 1]

    def _of_text(self, name: str) -> Tensor:
        if name not in self._position_tensors:
            raise ValueError(f"{self.path} was made from an array, so it holds no tokens.")
        return self._position_tensors[name]

    @cached_property
    def _position_tensors(self) -> dict[str, Tensor]:
        return _map_shard(self.path / "positions.safetensors")

    @cached_property
    def _shards(self) -> list[dict[str, Tensor]]:
        shards = []
        for entry in self.manifest["shards"]:
            file = self.path / entry["file"]
            shards.append(_map_shard(file))
            start, stop = entry["rows"]
            expected = [stop - start, self.context_length, self.d_in + self.d_out]
            found = list(shards[-1]["activations"].shape)
            if found != expected:
                raise ValueError(f"{file} must hold activations of shape {expected}, found {found}.")
        return shards

    # ------------------------------------------------------------------ reading

    def read(self, positions: Latents) -> Tensor:
        """Activations at positions `[n]`, in their order, as float32 `[n, d_in]`, or `[n, d_in + d_out]`.

        Parameters
        ----------
        positions : tensor, array, Series, list or slice
            Whole numbers or a Boolean mask `[n_tokens]`, see `saekit.selection.select_latents`.

        Raises
        ------
        TypeError, IndexError, ValueError
            As `select_latents`.
        """
        return self._gather(positions).float()

    def _gather(self, positions: Latents) -> Tensor:
        """Activations at positions, in the dtype that they are stored in."""
        positions = select_latents(positions, self.n_tokens, what="positions")
        out = torch.empty(len(positions), self.d_in + self.d_out, dtype=DTYPES[self.manifest["dtype"]])
        size = self.manifest["shard_rows"] * self.context_length
        shard_of = positions // size
        for index in shard_of.unique().tolist():
            here = (shard_of == index).nonzero().flatten()
            source = self._shards[index]["activations"].flatten(0, 1)
            out[here] = source.index_select(0, positions[here] - index * size)
        return out

    def rows(self, start: int, stop: int) -> Tensor:
        """Activations of all positions of rows `start` to `stop - 1`, float32 `[rows, ctx, d_in]`.

        Raises
        ------
        TypeError, ValueError
            If they are not whole numbers with `0 <= start <= stop <= n_rows`.
        """
        start = whole("start", start, at_least=0, at_most=self.n_rows)
        stop = whole("stop", stop, at_least=start, at_most=self.n_rows)
        positions = torch.arange(start * self.context_length, stop * self.context_length)
        return self.read(positions).view(-1, self.context_length, self.d_in + self.d_out)

    def batches(self, batch_size: int, *, include_excluded: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions `[n]` and their activations, float32 `[n, d_in]`, in order; the last may be smaller.

        Raises
        ------
        TypeError, ValueError
            If `batch_size` is not a whole number above 0.
        """
        positions = torch.arange(self.n_tokens) if include_excluded else self.positions
        for batch in positions.split(whole("batch_size", batch_size)):
            yield batch, self.read(batch)

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Endless batches `[batch_size, d_in]` of used positions, float32, in random order.

        An epoch visits every used position once; batches are cut from the endless sequence of
        epochs, so one may hold the end of an epoch and the beginning of the next. Rows are permuted
        over the whole store, and positions within buffers of about 2^18. The order depends on
        seed and batch size alone, so `start_step=n` skips the first `n` batches.

        Raises
        ------
        ValueError
            If every position is excluded, or a number is out of range.
        TypeError
            If `batch_size`, `seed` or `start_step` is not a whole number.
        """
        batch_size = whole("batch_size", batch_size)
        start_step = whole("start_step", start_step, at_least=0)
        used = self.excluded.logical_not()
        counts = used.sum(dim=1)
        if not counts.any():
            raise ValueError(f"{self.path} has no positions to train on: all are excluded.")
        epoch, skip = divmod(start_step * batch_size, int(counts.sum()))
        batch: list[Tensor] = []
        missing = batch_size
        while True:
            order = torch.randperm(self.n_rows, generator=random_stream(seed, epoch))
            for number, rows in enumerate(order.split(max(1, BUFFER_TOKENS // self.context_length))):
                size = int(counts[rows].sum())
                if skip >= size:
                    skip -= size
                    continue
                row, column = used[rows].nonzero().T
                buffer = self._gather(rows[row] * self.context_length + column)
                chosen = torch.randperm(size, generator=random_stream(seed, epoch, number))[skip:]
                skip = 0
                while len(chosen):
                    batch.append(buffer[chosen[:missing]])
                    chosen = chosen[missing:]
                    missing -= len(batch[-1])
                    if not missing:
                        yield torch.cat(batch).float()
                        batch, missing = [], batch_size
            epoch += 1


def as_activations(activations: Activations) -> ActivationStore | Tensor:
    """Normalise activations of any kind: a store as it is, anything else as a tensor `[n, d_in]`.

    Tensors are detached from their graph. NumPy arrays are not copied, so memory-mapped ones stay on
    disk until they are read.

    Raises
    ------
    TypeError
        If they are not activations, or not dense real numbers.
    ValueError
        If a tensor or an array is not of shape `[n, d_in]`.

    Examples
    --------
    >>> as_activations(np.ones((2, 3), dtype=np.float32)).shape
    torch.Size([2, 3])
    """
    if isinstance(activations, ActivationStore):
        return activations
    x = _as_tensor(activations) if isinstance(activations, np.ndarray) else activations
    if not isinstance(x, Tensor):
        raise TypeError(
            "Activations must be an ActivationStore, a tensor or a NumPy array, found "
            f"{type(activations).__name__}."
        )
    if x.ndim != 2:
        raise ValueError(f"Activations must be [n, d_in], found shape {list(x.shape)}.")
    if x.dtype == torch.bool or x.is_complex() or x.layout != torch.strided:
        raise TypeError(f"Activations must be dense real numbers, found {x.dtype} ({x.layout}).")
    return x.detach()


def _as_tensor(array: np.ndarray) -> Tensor:
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written
            return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"Activations must be real numbers, found an array of {array.dtype}.") from error


def batches_of(
    activations: Activations,
    batch_size: int = 4096,
    *,
    device: str | torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions `[n]` and float32 activations `[n, d_in]` of a store, a tensor or an array `[n, d_in]`.

    Positions are on the CPU; activations on `device`, or where they are if it is left out.

    Raises
    ------
    ValueError
        If a tensor is not of shape `[n, d_in]`, an activation is not finite, or `batch_size` is below 1.
    TypeError
        As `as_activations`, or if `batch_size` is not a whole number.

    Examples
    --------
    >>> [tuple(batch.shape) for positions, batch in batches_of(x, 128)]
    [(128, 6), (72, 6)]
    """
    for positions, x in _batches(as_activations(activations), whole("batch_size", batch_size)):
        require_finite(x, positions, "position")
        yield positions, x.to(device=device)


def _batches(activations: ActivationStore | Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(activations, ActivationStore):
        yield from activations.batches(batch_size)
    else:
        for positions in torch.arange(len(activations)).split(batch_size):
            yield positions, activations[positions.to(activations.device)].to(torch.float32)


def random_stream(*key: int) -> torch.Generator:
    """An independent random stream for every key of whole numbers.

    Examples
    --------
    >>> one, other = (torch.rand(1, generator=random_stream(*key)) for key in [(0, 1), (1, 0)])
    >>> bool(one == other)
    False
    """
    numbers = [whole("seed", number, at_least=None) for number in key]
    return torch.Generator().manual_seed(int(hash_json(numbers)[:15], 16))


# ---------------------------------------------------------------------------------- files


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.exists():
        raise FileNotFoundError(f"{path} holds no activation store: expected a manifest.json.")
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file} does not have format {FORMAT!r}, so it is not read.")
    if wrong := _wrong_in(manifest):
        raise ValueError(f"{file} does not describe a store: {wrong} is wrong.")
    return manifest


def _wrong_in(manifest: Mapping[str, Any]) -> str | None:
    """The first entry of a manifest that harvesting does not write, if there is one."""
    complete, shards = manifest.get("complete"), manifest.get("shards")
    sizes = ["context_length", "rows", "shard_rows"] + (["d_in"] if complete is True else [])
    sizes += ["d_out"] if "target" in manifest else []
    fits = {
        "complete": isinstance(complete, bool),
        "dtype": manifest.get("dtype") in tuple(DTYPES),
        **{name: type(manifest.get(name)) is int and manifest[name] > 0 for name in sizes},
        "hook_point": isinstance(manifest.get("hook_point"), str),
        "target": isinstance(manifest.get("target"), str | None),
        "model": isinstance(manifest.get("model"), dict | None),
        "shards": _are_files(shards),
    }
    if complete is True:
        fits["files"] = _are_files(manifest.get("files"))
        fits["hash"] = isinstance(manifest.get("hash"), str)
        fits["exclusion"] = isinstance(manifest.get("exclusion"), dict)
        if all(fits.values()):
            starts = range(0, manifest["rows"], manifest["shard_rows"])
            expected = [[start, min(start + starts.step, manifest["rows"])] for start in starts]
            fits["shards"] = [shard.get("rows") for shard in manifest["shards"]] == expected
    return next((name for name, good in fits.items() if not good), None)


def _are_files(entries: Any) -> bool:
    """Whether these are a manifest's entries of files in its own folder."""
    kinds = {"file": str, "bytes": int, "sha256": str}
    return isinstance(entries, list) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())
        and Path(entry["file"]).name == entry["file"]
        for entry in entries
    )


def _check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Compare a file's size with the manifest's: cheap, and finds truncated files."""
    file = path / entry["file"]
    found = file.stat().st_size if file.exists() else None
    if found != entry["bytes"]:
        raise ValueError(
            f"{file} is damaged: expected {entry['bytes']} bytes, "
            + ("but there is no such file." if found is None else f"found {found}.")
        )


def _size_and_hash(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": hash_file(file)}


def _map_shard(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file as views of the memory-mapped file."""
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header runs past the end of the file")
            header = json.loads(handle.read(length))
            # A private mapping: torch wants a writable buffer, but nothing may reach the file.
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        header.pop("__metadata__", None)
        return {
            name: torch.frombuffer(
                mapped,
                dtype=SAFETENSORS_DTYPES[entry["dtype"]],
                count=math.prod(entry["shape"]),
                offset=8 + length + entry["data_offsets"][0],
            ).view(entry["shape"])
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"{file} is damaged or not a safetensors file: {error}.") from error
