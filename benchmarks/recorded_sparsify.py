"""sparsify: what `SparseCoder.save_to_disk` writes, and what the class computes from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from recorded import D_IN, WIDTH, Case, K, Run, fill
from sparsify import SparseCoder, SparseCoderConfig
from torch import Generator, Tensor

HOOK_POINT = "layers.5.mlp"  # folders have the names of the model's modules


def cases() -> Iterator[Case]:
    """TopK in the precisions and sizes that exist, and what is no TopK SAE."""
    yield case("topk", "encoder.weight and W_dec both have a row for each latent", num_latents=WIDTH)
    shows = "bfloat16 in the file, expected in float32"
    yield case("bf16", shows, torch.bfloat16, num_latents=WIDTH)
    yield case("expansion", "num_latents 0: the width is 3 d_in", expansion_factor=3)
    width = {"num_latents": WIDTH}
    shows = "predicts one hook point from another; b_dec is not subtracted"
    yield case("transcode", shows, transcode=True, **width)
    shows = "predicts its own input, and adds x @ W_skip.T"
    yield case("skip_connection", shows, skip_connection=True, **width)
    shows = "predicts one hook point from another, and adds x @ W_skip.T"
    yield case("transcode_skip", shows, transcode=True, skip_connection=True, **width)
    shows = "refused: one latent of each of k groups"
    yield case("groupmax", shows, refused="GroupMax", activation="groupmax", **width)


def case(
    name: str,
    shows: str,
    dtype: torch.dtype = torch.float32,
    refused: str | None = None,
    **settings: Any,
) -> Case:
    """A sparse coder with random parameters."""

    def write(folder: Path, generator: Generator) -> Run | None:
        k = 8 if settings.get("activation") == "groupmax" else K  # groups must have equal sizes
        coder = SparseCoder(D_IN, SparseCoderConfig(k=k, **settings), dtype=dtype)
        fill(coder, generator)
        coder.save_to_disk(folder / HOOK_POINT)
        return None if refused else running(SparseCoder.load_from_disk(folder / HOOK_POINT).float())

    return Case(f"sparsify/{name}", shows, write, HOOK_POINT, refused)


def running(coder: SparseCoder) -> Run:
    """How the library computes, its latents made dense."""
    inputs: list[Tensor] = []

    def encode(x: Tensor) -> Tensor:
        inputs[:] = [x]
        top = coder.encode(x)
        return torch.zeros(len(x), coder.num_latents).scatter(1, top.top_indices, top.top_acts)

    def decode(latents: Tensor) -> Tensor:
        if coder.W_skip is not None:  # only the whole function adds it
            return coder(inputs[0]).sae_out
        top = latents.topk(coder.cfg.k)
        return coder.decode(top.values, top.indices)

    return Run(encode, decode, coder.W_dec.detach())
