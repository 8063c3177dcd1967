"""Activations on disk: harvested once, resumed after any interruption, read without loading them whole.

A store is a folder:

- `manifest.json`: what was harvested from which model and text, the shards with their hashes, and
  which positions are excluded and why;
- `shard-00000.safetensors`, ...: `activations` `[rows, ctx, d_in]` and `norms` `[rows, ctx]`;
- `positions.safetensors`: `tokens`, `document` and `excluded` (a bit mask), all `[rows, ctx]`;
- `documents.json`: source, title and hash of every document.

A shard appears once it is whole on disk and names the settings it was harvested with; the manifest
lists the shards, and says `complete`, when all are there.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from saekit.corpora import TokenRows
from saekit.distributed import all_reduce_sum, barrier, is_main, rank, world_size
from saekit.files import hash_file, hash_json, read_json, write_json, write_tensors
from saekit.models import capture, describe_model, resolve_hook_point, special_token_ids

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = "saekit-activations-1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32, "U8": torch.uint8}
NORM_MULTIPLE = 10  # of the median norm: activations beyond it are massive
NORM_SAMPLE = 100_000  # the median is over the first so many tokens
EXCLUSION_RULE = (
    f"special tokens, first position of a row, norm over {NORM_MULTIPLE} times the median of the first "
    f"{NORM_SAMPLE} tokens"
)
BUFFER_TOKENS = 1 << 18  # shuffled at a time: 600 MB at d_in 576

# Why a position is excluded, as bits: one position may have several reasons.
SPECIAL, FIRST, NORM = 1, 2, 4


# ---------------------------------------------------------------------------------- harvesting


def harvest(
    model: TransformerBridge,
    rows: TokenRows,
    hook_point: str = "blocks.12.hook_resid_post",
    *,
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    batch_rows: int = 32,
    shard_rows: int = 512,
    progress: bool = True,
) -> ActivationStore:
    """Run token rows through a model and store the activations at a hook point.

    Call it again after an interruption: finished shards are kept, the rest is harvested. A store
    that is complete is opened at once. Excluded by mask, not dropped, are special tokens, the
    first position of each row, and norms over 10 times the median of the first 100k tokens.

    Within `saekit.distributed.distributed` the processes share the shards out, to the same bytes;
    they must see the same folder.

    Parameters
    ----------
    model : TransformerBridge
        From `saekit.models.load_model`.
    rows : TokenRows
        From `saekit.corpora.pack`.
    hook_point : str
        Where to read; heads of `attn.hook_z` are concatenated.
    path : str or Path
        Folder of the store.
    dtype : torch.dtype
        Stored as float32 or bfloat16.
    batch_rows, shard_rows : int
        Rows a forward pass and rows a file; the former must divide the latter.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If the folder holds a store with other settings, an activation is not finite, or a
        setting is wrong.
    OSError
        If the disk is full; finished shards are kept.
    """
    path = Path(path)
    if batch_rows < 1 or shard_rows % batch_rows:
        raise ValueError(f"shard_rows must be a multiple of batch_rows, found {shard_rows} and {batch_rows}.")
    described = describe_harvest(model, rows, hook_point, dtype=dtype, batch_rows=batch_rows)
    settings = {"format": FORMAT, **described, "shard_rows": shard_rows}
    manifest = _begin(path, settings)
    if manifest["complete"]:
        return ActivationStore.open(path)
    try:
        if is_main():
            write_json(path / "manifest.json", manifest)
        manifest["shards"] = _harvest_shards(model, rows, path, manifest, hash_json(settings), progress)
        if is_main():
            _finish(model, rows, path, manifest)
        barrier()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"The disk is full; {path} keeps its finished shards, and harvesting again with the same "
            "settings goes on from there",
        ) from error
    return ActivationStore.open(path)


def describe_harvest(
    model: TransformerBridge, rows: TokenRows, hook_point: str, *, dtype: torch.dtype, batch_rows: int
) -> dict[str, Any]:
    """What is harvested from which model and text, as JSON values; the beginning of a manifest.

    Raises
    ------
    ValueError
        If the model has no such hook point, or activations are not kept in this dtype.
    """
    hook_point, _ = resolve_hook_point(model, hook_point)
    dtype_name = str(dtype).removeprefix("torch.")
    if dtype_name not in DTYPES:
        raise ValueError(f"Activations are stored as {' or '.join(DTYPES)}, not as {dtype_name}.")
    settings = {
        "model": describe_model(model),
        "hook_point": hook_point,
        "dtype": dtype_name,
        "context_length": rows.context_length,
        "rows": rows.n_rows,
        "batch_rows": batch_rows,
        "corpus": dict(rows.info),
        "tokens_hash": rows.content_hash,
    }
    return json.loads(json.dumps(settings))  # as they will be read back


def harvest_rows(
    model: TransformerBridge, tokens: Tensor, hook_point: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Activations `[rows, ctx, d_in]` of token rows in a dtype, and their norms `[rows, ctx]`, float32."""
    activations = capture(model, tokens, hook_point).to(dtype)
    return activations, activations.float().norm(dim=2)


def check_finite(norms: Tensor, numbers: Sequence[int], hook_point: str) -> None:
    """Refuse rows, of these numbers, whose norms `[rows, ctx]` are not all finite.

    Raises
    ------
    ValueError
        It names the first such row.
    """
    finite = norms.isfinite().all(dim=1)
    if not finite.all():
        row = numbers[int(finite.logical_not().nonzero()[0, 0])]
        raise ValueError(f"The activations at {hook_point} of row {row} are not finite.")


def norm_limit(norms: Tensor) -> float:
    """The norm beyond which positions are excluded: 10 times the median of the first 100k tokens."""
    return NORM_MULTIPLE * norms.flatten()[:NORM_SAMPLE].median().item()


def exclusion(model: TransformerBridge, tokens: Tensor, norms: Tensor, limit: float) -> Tensor:
    """Why positions of token rows `[rows, ctx]` are excluded: bits `SPECIAL`, `FIRST` and `NORM`, uint8."""
    special = torch.isin(tokens, torch.tensor(special_token_ids(model.tokenizer), dtype=tokens.dtype))
    excluded = special.to(torch.uint8) * SPECIAL + (norms > limit).to(torch.uint8) * NORM
    excluded[:, 0] += FIRST
    return excluded


def _begin(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Find the manifest to go on from, checked to have been begun with the same settings."""
    if not (path / "manifest.json").exists():
        return {**settings, "complete": False, "shards": []}
    manifest = _read_manifest(path)
    for name, expected in settings.items():
        if manifest.get(name) != expected:
            raise ValueError(
                f"{path} was harvested with other settings, so it is not resumed: {name} is "
                f"{json.dumps(manifest.get(name))} there, and {json.dumps(expected)} was asked for."
            )
    for shard in manifest["shards"]:
        _check_size(path, shard)
    return manifest


def _harvest_shards(
    model: TransformerBridge,
    rows: TokenRows,
    path: Path,
    manifest: dict[str, Any],
    settings_hash: str,
    progress: bool,
) -> list[dict[str, Any]]:
    """Write the shards that are not there yet; the manifest's entries of all of them.

    Processes share the shards out. A shard is written and hashed in a thread while the next one is
    computed.
    """
    ctx, hook_point, dtype = rows.context_length, manifest["hook_point"], DTYPES[manifest["dtype"]]
    shards = list(torch.arange(rows.n_rows).split(manifest["shard_rows"]))
    files = [path / f"shard-{number:05d}.safetensors" for number in range(len(shards))]
    present = [number for number, file in enumerate(files) if _settings_of(file) == settings_hash]
    missing = [number for number in range(len(files)) if number not in present]
    barrier()  # nobody writes before everybody has seen the same shards missing
    present, missing = present[rank() :: world_size()], missing[rank() :: world_size()]
    digests = torch.zeros(len(files), 32, dtype=torch.int32)

    def write(number: int, parts: list[tuple[Tensor, Tensor]]) -> None:
        activations, norms = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
        check_finite(norms, shards[number].tolist(), hook_point)
        tensors = {"activations": activations, "norms": norms}
        write_tensors(files[number], tensors, {"settings": settings_hash})
        digest(number)

    def digest(number: int) -> None:
        digests[number] = torch.tensor(list(bytes.fromhex(hash_file(files[number]))))

    initial = sum(len(shards[number]) for number in present) * ctx
    bar = tqdm(
        total=initial + sum(len(shards[number]) for number in missing) * ctx,
        initial=initial,
        unit="token",
        unit_scale=True,
        desc=f"harvesting {hook_point}",
        disable=not (progress and is_main()),
    )
    with bar, ThreadPoolExecutor(1) as writer:
        writing = [writer.submit(digest, number) for number in present]
        for number in missing:
            parts = []
            for batch in shards[number].split(manifest["batch_rows"]):
                parts.append(harvest_rows(model, rows.tokens[batch], hook_point, dtype))
                bar.update(len(batch) * ctx)
            for written in writing:  # one shard at most is being written, and an error ends the harvest
                written.result()
            writing = [writer.submit(write, number, parts)]
        for written in writing:
            written.result()
    return [
        {
            "file": file.name,
            "rows": [int(shard[0]), int(shard[-1]) + 1],
            "bytes": file.stat().st_size,
            "sha256": bytes(sha256).hex(),
        }
        for file, shard, sha256 in zip(files, shards, all_reduce_sum(digests).tolist(), strict=True)
    ]


def _settings_of(file: Path) -> str | None:
    """Hash of the settings that a shard was harvested with, if there is one."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as shard:
            return (shard.metadata() or {}).get("settings")
    except SafetensorError:
        return None


def _finish(model: TransformerBridge, rows: TokenRows, path: Path, manifest: dict[str, Any]) -> None:
    """Exclude positions, write what describes them, and mark the store complete."""
    shards = [_map_shard(path / shard["file"]) for shard in manifest["shards"]]
    norms = torch.cat([shard["norms"] for shard in shards])
    limit = norm_limit(norms)
    excluded = exclusion(model, rows.tokens, norms, limit)
    write_tensors(
        path / "positions.safetensors",
        {"tokens": rows.tokens, "document": rows.document, "excluded": excluded},
    )
    write_json(path / "documents.json", rows.documents)
    files = [
        {"file": name, **_fingerprint(path / name)} for name in ("positions.safetensors", "documents.json")
    ]
    manifest |= {
        "complete": True,
        "d_in": shards[0]["activations"].shape[2],
        "exclusion": {
            "rule": EXCLUSION_RULE,
            "norm_limit": limit,
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
    for entry in (*manifest["shards"], *files, {"file": "manifest.json"}):
        for leftover in path.glob(f".{entry['file']}.*"):  # of writes that were killed
            leftover.unlink()


# ---------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """Harvested activations, memory-mapped: only what is read comes into memory.

    A position is `row * context_length + column`. Excluded positions are stored, but left out of
    `positions`, `batches` and `shuffled`.

    Parameters
    ----------
    path : Path
        Folder of the store.
    manifest : dict
        Its manifest.
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
        return (
            f"ActivationStore({self.path.name}, {self.hook_point}, d_in={self.d_in}, "
            f"{len(self.positions):,} of {self.n_tokens:,} positions used)"
        )

    # ------------------------------------------------------------------ what it holds

    @property
    def hook_point(self) -> str:
        """Where the activations were read."""
        return self.manifest["hook_point"]

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.manifest["d_in"]

    @property
    def context_length(self) -> int:
        """Tokens a row."""
        return self.manifest["context_length"]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.manifest["rows"]

    @property
    def n_tokens(self) -> int:
        """Number of positions, excluded ones with them."""
        return self.n_rows * self.context_length

    @property
    def content_hash(self) -> str:
        """Hash of every file of the store."""
        return self.manifest["hash"]

    @property
    def excluded_counts(self) -> dict[str, int]:
        """Positions excluded as `special`, `first`, `norm` and in `total` (some twice), of `positions`."""
        return dict(self.manifest["exclusion"]["counts"])

    @cached_property
    def tokens(self) -> Tensor:
        """Token ids, `[rows, ctx]`, int64."""
        return self._position_tensors["tokens"].long()

    @cached_property
    def document(self) -> Tensor:
        """Index into `documents`, `[rows, ctx]`, int64; -1 for separators."""
        return self._position_tensors["document"].long()

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
        """L2 norms of the activations, `[rows, ctx]`, float32."""
        return torch.cat([shard["norms"] for shard in self._shards])

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
            expected = [stop - start, self.context_length, self.d_in]
            found = list(shards[-1]["activations"].shape)
            if found != expected:
                raise ValueError(f"{file} must hold activations of shape {expected}, found {found}.")
        return shards

    # ------------------------------------------------------------------ reading

    def read(self, positions: Tensor) -> Tensor:
        """Activations at positions `[n]`, in their order, as float32 `[n, d_in]`.

        Raises
        ------
        IndexError
            If a position is out of range.
        """
        return self._gather(positions).float()

    def _gather(self, positions: Tensor) -> Tensor:
        """Activations at positions, in the dtype that they are stored in."""
        positions = torch.as_tensor(positions, dtype=torch.long)
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < self.n_tokens:
            raise IndexError(f"Positions must be between 0 and {self.n_tokens - 1}.")
        out = torch.empty(len(positions), self.d_in, dtype=DTYPES[self.manifest["dtype"]])
        size = self.manifest["shard_rows"] * self.context_length
        shard_of = positions // size
        for index in shard_of.unique().tolist():
            here = (shard_of == index).nonzero().flatten()
            source = self._shards[index]["activations"].flatten(0, 1)
            out[here] = source.index_select(0, positions[here] - index * size)
        return out

    def rows(self, start: int, stop: int) -> Tensor:
        """Activations of all positions of rows `start` to `stop`, float32 `[rows, ctx, d_in]`."""
        positions = torch.arange(start * self.context_length, stop * self.context_length)
        return self.read(positions).view(-1, self.context_length, self.d_in)

    def batches(self, batch_size: int, *, include_excluded: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions `[n]` and their activations, float32 `[n, d_in]`, in order; the last may be smaller."""
        positions = torch.arange(self.n_tokens) if include_excluded else self.positions
        for batch in positions.split(batch_size):
            yield batch, self.read(batch)

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Endless batches `[batch_size, d_in]` of used positions, float32, in random order.

        An epoch visits every used position once; batches are cut from the endless sequence of
        epochs, so one may hold the end of an epoch and the beginning of the next. Rows are permuted
        over the whole store, and positions within buffers of about 2^18. The order depends on
        seed and batch size alone, so `start_step=n` gives what would come after `n` batches.

        Raises
        ------
        ValueError
            If every position is excluded.
        """
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


def batches_of(
    activations: ActivationStore | Tensor,
    batch_size: int = 4096,
    *,
    device: str | torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions `[n]` and float32 activations `[n, d_in]` of a store, or of a plain `[n, d_in]` tensor.

    Positions are on the CPU; activations on `device`, or where they are if it is left out.

    Raises
    ------
    ValueError
        If a tensor is not of shape `[n, d_in]`.
    """
    if isinstance(activations, ActivationStore):
        for positions, x in activations.batches(batch_size):
            yield positions, x.to(device=device)
        return
    if activations.ndim != 2:
        raise ValueError(f"Activations must be [n, d_in], found shape {list(activations.shape)}.")
    for positions in torch.arange(len(activations)).split(batch_size):
        yield positions, activations[positions].to(device=device, dtype=torch.float32)


def random_stream(*key: int) -> torch.Generator:
    """A random stream of its own for every key."""
    return torch.Generator().manual_seed(int(hash_json(key)[:15], 16))


# ---------------------------------------------------------------------------------- files


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.exists():
        raise FileNotFoundError(f"{path} holds no activation store: expected a manifest.json.")
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file} does not say format {FORMAT!r}, so it is not read.")
    return manifest


def _check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Compare a file's size with the manifest's: cheap, and finds what was cut short."""
    file = path / entry["file"]
    found = file.stat().st_size if file.exists() else None
    if found != entry["bytes"]:
        raise ValueError(
            f"{file} is damaged: expected {entry['bytes']} bytes, "
            + ("but there is no such file." if found is None else f"found {found}.")
        )


def _fingerprint(file: Path) -> dict[str, Any]:
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
