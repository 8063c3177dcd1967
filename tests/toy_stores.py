"""Activation stores held in memory, for tests."""

from pathlib import Path

import torch

from saekit.activations import ActivationStore
from saekit.files import hash_tensors


def in_memory(x, *, tokens, special, excluded, document=None, documents=()):
    """A store of activations `[rows, ctx, d_in]` without files."""
    rows, context_length, d_in = x.shape
    manifest = {
        "d_in": d_in,
        "rows": rows,
        "context_length": context_length,
        "hook_point": "toy",
        "model": None,
        "dtype": "float32",
        "shard_rows": rows,
        "exclusion": {"counts": {"total": int(excluded.sum())}},
        "hash": hash_tensors({"x": x, "tokens": tokens, "excluded": excluded}),
    }
    store = ActivationStore(Path("toy"), manifest)
    store.__dict__.update(
        tokens=tokens,
        special=special,
        excluded=excluded,
        document=torch.zeros_like(tokens) if document is None else document,
        documents=list(documents),
        _shards=[{"activations": x}],
    )
    return store
