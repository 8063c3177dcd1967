"""What the recorded fixtures share: random parameters, activations, and how a case is written."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

D_IN, WIDTH, TOKENS = 12, 40, 48
D_OUT = 10  # of transcoders, where their library allows another dimension than the input's
K = 6  # latents a token of TopK kinds
ACTIVE = (0.03, 0.6)  # share of latents times tokens that a case must lie between
EXPECTED = "expected.safetensors"
ENCODER_BIASES = ("b_enc", "encoder.bias", "latent_bias", "b_gate", "gate_bias")


class Run(NamedTuple):
    """How a library computes.

    `encode` and `decode` are called in turn on the same activations; some libraries keep an
    activation's norm in between. `decoder` is what a unit of each latent adds to `x_hat`,
    `[d_sae, d_in]`, before a normalised input is scaled back. `default` is the encoder that the
    library would take if it were not told to do as its trainers do, where this is another one.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    decoder: Tensor
    default: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """An SAE to be recorded.

    Parameters
    ----------
    name : str
        Format and case, as `"saelens/standard"`; the random stream follows from it.
    shows : str
        What the case is for.
    write : callable
        Writes the files to a folder, by the library's own code where there is some, and returns
        how the library computes with what it reads from there; None of what is to be refused.
    load : str
        What to load, in the case's folder.
    refused : str, optional
        What the refusal must name, if the case is no SAE that saekit could represent.
    """

    name: str
    shows: str
    write: Callable[[Path, Generator], Run | None]
    load: str = "."
    refused: str | None = None


@torch.no_grad()
def record(case: Case, root: Path) -> dict[str, Any]:
    """Write a case and what the library makes of random activations; a row about it.

    Raises
    ------
    ValueError
        If too few or too many latents are active for the case to show something.
    """
    folder = root / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = Generator().manual_seed(zlib.crc32(case.name.encode()))
    run = case.write(folder, generator)
    row: dict[str, Any] = {"case": case.name, "load": case.load, "refused": case.refused}
    if run is not None:
        x = activations(TOKENS, generator)
        latents = run.encode(x)
        tensors = {"x": x, "latents": latents, "x_hat": run.decode(latents)}
        tensors["decoder_norm"] = run.decoder.norm(dim=1)
        if run.default is not None:
            tensors["latents_default"] = run.default(x)
        save_file({name: t.float().contiguous() for name, t in tensors.items()}, folder / EXPECTED)
        on = latents != 0
        row |= {"active": float(on.float().mean()), "mixed": int((on.any(0) & ~on.all(0)).sum())}
        if not ACTIVE[0] < row["active"] < ACTIVE[1] or row["mixed"] < len(on.T) / 2:
            raise ValueError(f"{case.name} has an active share of {row['active']:.3f}, {row['mixed']} mixed.")
    return row


def activations(n: int, generator: Generator) -> Tensor:
    """Random activations `[n, D_IN]` of different norms, about a mean that is not zero."""
    mean = torch.linspace(-1, 1, D_IN)
    norms = torch.exp(0.3 * torch.randn(n, 1, generator=generator))
    return norms * (torch.randn(n, D_IN, generator=generator) + mean)


def batches(n: int, generator: Generator) -> Iterator[Tensor]:
    """`n` batches of activations."""
    for _ in range(n):
        yield activations(TOKENS, generator)


def fill(module: nn.Module, generator: Generator, **given: float) -> None:
    """Give every floating-point tensor of a module random values, but for those given by name."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in given:
                tensor.fill_(given[name])
            elif tensor.is_floating_point() and tensor.ndim:
                tensor.copy_(draw(name, tensor.shape, generator))


def draw(name: str, shape: torch.Size | tuple[int, ...], generator: Generator) -> Tensor:
    """Random values for a tensor by its name, so that about a fifth of the latents are active.

    Decoder directions have norms from 0.5 to 2, and thresholds are from 0.2 to 1.
    """
    last = name.lower()
    if last in ("w_dec", "decoder.weight"):
        dim = 1 if last == "w_dec" else 0  # the dimension of activations
        directions = torch.randn(shape, generator=generator)
        n = [size if d != dim else 1 for d, size in enumerate(shape)]
        norms = 2 ** (2 * torch.rand(n, generator=generator) - 1)
        return norms * directions / directions.norm(dim=dim, keepdim=True)
    if "threshold" in last:
        thresholds = 0.2 + 0.8 * torch.rand(shape, generator=generator)
        return thresholds.log() if "log" in last else thresholds
    values = torch.randn(shape, generator=generator)
    if len(shape) == 2:
        return values / math.sqrt(D_IN)
    if last == "r_mag":
        return 0.3 * values
    return 0.5 * values - (0.8 if last in ENCODER_BIASES else 0)


def parameters(generator: Generator, *names: str, d_sae: int = WIDTH, d_out: int = D_IN) -> dict[str, Tensor]:
    """Random tensors by the names that most formats use: matrices of inputs by outputs."""
    shapes = {"w_enc": (D_IN, d_sae), "w_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes["affine_skip_connection"] = (D_IN, d_out)
    return {name: draw(name, shapes.get(name.lower(), (d_sae,)), generator) for name in names}


def write_config(path: Path, config: dict[str, Any], indent: int | None = None) -> None:
    """Settings as `json.dump` writes them."""
    path.write_text(json.dumps(config, indent=indent))
