"""Whether other libraries compute what saekit computes, of what `saekit.save_sae` writes for them.

    python benchmarks/interop.py
    python benchmarks/interop.py --tokens 50000 --out interop.json

The first call builds an environment with SAELens and dictionary_learning (requirements/peers.txt);
the script then runs inside it. Bundled dictionaries and what saekit makes of them (a stitched one, a
Frankenstein, a meta-SAE) and random TopK and layer-normalised ones are written in both layouts,
loaded by the libraries' own functions, and run on held-out activations of the embedded model; the
meta-SAE on decoder directions of another seed.

**latents** and **reconstruction** are the largest differences over tokens, as shares of the norm of
the token's latents (of its activation, where none is active) and of its reconstruction. Where rounding
decides, within `BAND` of such a norm from a threshold or from the last of the k places, a latent may
be on in one library and off in the other: it does not count, nor does the reconstruction of such a
token. **same support** is the share of tokens with the very same active latents, **outside the band**
that of tokens without any other difference. The script fails where a difference exceeds `BAND`, or a
latent outside it differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import environment
import pandas as pd
import torch
from torch import Tensor

import saekit
from saekit.files import write_json
from saekit.folding import Unfolded
from saekit.loading.formats.writing import WRITERS

BAND = 1e-5
SMALL, LARGE = 576, 1152
Run = Callable[[Tensor], tuple[Tensor, Tensor]]  # activations to latents and reconstruction


def main() -> None:
    """Write, load, compare, print."""
    options = parse()
    environment.enter(options.environment)
    store = saekit.embedded_store("held-out")
    x = store.read(store.positions[: options.tokens])
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"dictionary": name, "library": library} | compare(dictionary, load(library, path), inputs)
            for name, dictionary, inputs in dictionaries(x)
            for library, path in written(dictionary, Path(folder) / name)
        ]
    table = pd.DataFrame(rows)
    print(f"sae-lens {version('sae-lens')}, dictionary-learning {version('dictionary-learning')}, ", end="")
    print(f"{len(x):,} tokens of {store.hook_point}, float32")
    print(
        table.to_string(index=False, formatters=dict.fromkeys(("latents", "reconstruction"), "{:.1e}".format))
    )
    if options.out:
        write_json(options.out, rows)
    right = (table[["latents", "reconstruction"]] <= BAND).all(axis=1) & (table["outside the band"] == 1)
    if not right.all():
        sys.exit(f"{(~right).sum()} of {len(table)} differ by more than {BAND:.0e}.")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens")
    parser.add_argument("--environment", type=Path, help="folder of the peers' environment")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    return parser.parse_args()


def dictionaries(x: Tensor) -> Iterator[tuple[str, saekit.Dictionary, Tensor]]:
    """What is written, and activations `[n, d_in]` to run it on."""
    relu, batchtopk = saekit.load_family("relu"), saekit.load_family("batchtopk")
    small, large = relu[SMALL], relu[LARGE]
    yield "relu", small, x
    yield "batchtopk", batchtopk[LARGE], x
    stitching = saekit.stitch(small, large, x)
    yield "stitched", stitching.dictionary(stitching.n_steps // 2), x
    yield "frankenstein", saekit.build_frankenstein(batchtopk, x[:2048]).dictionaries[-1], x
    # Its input is decoder directions: here those of a seed it has not seen.
    yield "meta-SAE", saekit.meta_sae(large).dictionary, relu.get(LARGE, 1).W_dec
    plain = random_sae(x)
    yield "topk", replace(plain, k=32, rescaled=True).fold(), x
    yield "topk, ranked", replace(plain, k=32).fold(), x
    yield "topk, layer norm", replace(plain, k=32, pre_bias=None, normalization="layer_norm").fold(), x
    threshold = torch.rand(LARGE, generator=torch.Generator().manual_seed(1))
    yield (
        "jumprelu, constant norm",
        replace(plain, threshold=threshold, normalization="constant_norm").fold(),
        x,
    )


def random_sae(x: Tensor) -> Unfolded:
    """An untrained SAE with decoder rows of norms from 0.5 to 2."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(LARGE, x.shape[1], generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    norms = 2 ** (2 * torch.rand(LARGE, 1, generator=generator) - 1)
    b_enc, mean = torch.randn(LARGE, generator=generator), x.mean(dim=0)
    return Unfolded(directions.T, b_enc, norms * directions, mean, pre_bias=mean, info={"kind": "random"})


def written(dictionary: saekit.Dictionary, folder: Path) -> Iterator[tuple[str, Path]]:
    """The dictionary in each layout that has a place for it."""
    for format in WRITERS:
        if dictionary.normalization is None or format == "saelens":
            yield format, saekit.save_sae(dictionary, folder / format, format=format)


def load(library: str, folder: Path) -> Run:
    """The SAE as the library itself loads and runs it."""
    if library == "saelens":
        from sae_lens import SAE

        sae = SAE.load_from_disk(folder)
        return lambda x: (sae.encode(x), sae(x))
    from dictionary_learning.utils import load_dictionary

    ae, _ = load_dictionary(str(folder), device="cpu")
    return lambda x: (ae.encode(x), ae(x))


@torch.no_grad()
def compare(dictionary: saekit.Dictionary, run: Run, x: Tensor) -> dict[str, float]:
    """How far a library's latents and reconstructions of `x` are from saekit's."""
    expected, expected_x = dictionary.encode(x), dictionary.reconstruct(x)
    latents, x_hat = run(x)
    if dictionary.rank_scale is not None:  # libraries show them in the units in which they compete
        latents = latents / dictionary.rank_scale
    norm = expected.norm(dim=1, keepdim=True)
    norm = torch.where(norm > 0, norm, x.norm(dim=1, keepdim=True))  # where no latent is active
    decided = (dictionary.pre_activations(x) - cut(dictionary, x)).abs() > BAND * norm
    differs = (latents > 0) != (expected > 0)
    same = ~differs.any(dim=1)
    latent_error = ((latents - expected).abs() * decided / norm).amax()
    error = (x_hat - expected_x).norm(dim=1) / expected_x.norm(dim=1)
    return {
        "latents": latent_error.item(),
        "reconstruction": error[same].amax().item(),
        "same support": same.double().mean().item(),
        "outside the band": 1 - (differs & decided).any(dim=1).double().mean().item(),
    }


def cut(dictionary: saekit.Dictionary, x: Tensor) -> Tensor:
    """What a pre-activation must exceed to be active: `[d_sae]`, or `[batch, d_sae]` of a TopK dictionary."""
    if dictionary.k is None:
        return dictionary.threshold
    scale = torch.ones(dictionary.width) if dictionary.rank_scale is None else dictionary.rank_scale
    rank = (dictionary.pre_activations(x) * scale).topk(dictionary.k + 1, dim=1).values
    return (rank[:, -2:].mean(dim=1, keepdim=True) / scale).clamp(min=0)


if __name__ == "__main__":
    main()
