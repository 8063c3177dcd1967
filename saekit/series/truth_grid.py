"""The dictionaries of `saekit truth`: small kinds, widths and seeds on worlds whose features are known.

Each is trained once, under `saekit.files.home()`, and read from then on; an interrupted run resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from tqdm.auto import tqdm

from saekit.dictionary import Dictionary
from saekit.files import hash_json, home
from saekit.synthetic import (
    World,
    hedging_tree,
    nabeshima_tree,
    shapes_and_colours,
    synth_sae_bench,
    toy_superposition,
)
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK, Matryoshka, ReLU, Variant

SEEDS = (0, 1, 2)
BATCH_SIZE, LEARNING_RATE = 256, 5e-3
HALF_AND_WHOLE = (0.5, 1.0)  # prefixes of narrow Matryoshka dictionaries

Found = dict[tuple[str, int, int], Dictionary]  # dictionaries by kind, width and seed


@dataclass(frozen=True)
class Grid:
    """A world and the dictionaries that are trained on it.

    Parameters
    ----------
    make : callable
        Makes the world.
    widths, l0 : tuple
        Widths, and the latents per sample at each.
    steps : int
        Steps of training.
    """

    make: Callable[[], World]
    widths: tuple[int, ...]
    l0: tuple[float, ...]
    steps: int = 1000


GRIDS = {
    "nabeshima_tree": Grid(lambda: nabeshima_tree(d_in=50, deviation=0.2), (5, 10, 20), (1, 1, 1)),
    "toy_superposition": Grid(toy_superposition, (5, 10, 20), (1, 1, 1)),
    # room for the atoms, for the composites, for both; an object takes two atoms or one composite
    "shapes_and_colours": Grid(
        lambda: shapes_and_colours(shapes=5, colours=5, objects=1, alone=0.2), (10, 25, 35), (1.8, 1, 1)
    ),
    # the rates of the features that fire most often, as many as there are latents, add up to these L0
    "synth_sae_bench": Grid(
        lambda: synth_sae_bench(features=128, d_in=32, roots=8), (16, 32, 64), (2, 3, 4), steps=1500
    ),
}

CHILD_RATES = (0.05, 0.15, 0.3, 0.5)  # of children, given their parent
TREES = 4
HEDGING_GRIDS = {  # room for the parents alone, and for everything
    rate: Grid(
        partial(hedging_tree, trees=TREES, child=rate),
        (TREES, 4 * TREES),
        (TREES / 4, TREES / 4 * (1 + 3 * rate)),
        steps=600,
    )
    for rate in CHILD_RATES
}

BENCH_WIDTH, BENCH_L0, BENCH_BATCH, BENCH_LR = 4096, 25, 1024, 3e-4  # as published
BENCH_PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def kinds(l0: float, prefixes: tuple[float, ...] = HALF_AND_WHOLE) -> dict[str, Variant]:
    """The kinds that are compared, at an L0; the k of BatchTopK and Matryoshka is a whole number."""
    return {
        "relu": ReLU(target_l0=l0),
        "batchtopk": BatchTopK(k=round(l0)),
        "matryoshka": Matryoshka(k=round(l0), prefixes=prefixes),
    }


def trained(world: World, config: TrainingConfig, *, progress: bool = False) -> Dictionary:
    """The dictionary of a world, read if it was trained before."""
    folder = home() / "truth" / hash_json([world.content_hash, config.describe()])[:16]
    if not (folder / "dictionary.json").exists():
        state = folder / "state.safetensors"
        train(config, world, checkpoint=state, checkpoint_every=100, progress=progress).dictionary.save(
            folder
        )
        for file in folder.glob("state*"):  # of use to an interrupted run alone
            file.unlink()
    return Dictionary.load(folder)


def dictionaries(name: str, grid: Grid, *, progress: bool = False) -> Found:
    """Every dictionary of a grid, by kind, width and seed."""
    world, found = grid.make(), {}
    runs = [
        (kind, variant, width, seed)
        for width, l0 in zip(grid.widths, grid.l0, strict=True)
        for (kind, variant), seed in product(kinds(l0).items(), SEEDS)
    ]
    for kind, variant, width, seed in tqdm(runs, desc=name, disable=not progress):
        config = TrainingConfig(
            variant,
            width,
            seed=seed,
            steps=grid.steps,
            batch_size=BATCH_SIZE,
            lr=LEARNING_RATE,
            log_every=grid.steps,
        )
        found[kind, width, seed] = trained(world, config)
    return found


def bench_dictionary(world: World, kind: str, samples: int, *, progress: bool = False) -> Dictionary:
    """A dictionary of SynthSAEBench-16k at the published settings, on so many samples."""
    steps = samples // BENCH_BATCH
    variant = kinds(BENCH_L0, BENCH_PREFIXES)[kind]
    config = TrainingConfig(
        variant, BENCH_WIDTH, steps=steps, batch_size=BENCH_BATCH, lr=BENCH_LR, log_every=steps
    )
    return trained(world, config, progress=progress)


def meta_folder() -> Path:
    """The folder that keeps meta-SAEs of these dictionaries."""
    return home() / "truth" / "meta"
