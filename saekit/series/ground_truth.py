"""The paper's questions on worlds whose true features are known.

`saekit truth` trains the dictionaries of the grid below under `saekit.files.home()`, one after the other, and
writes tables into the package; a rerun trains only the missing ones.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from saekit.analysis.hedging import measure_hedging, overshoot_parts
from saekit.analysis.meta.sae import Recipe, meta_sae
from saekit.analysis.novelty import group_insertion, insertion
from saekit.analysis.similarity import best_matches
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import hash_json, home, write_bytes
from saekit.loading.names import BUNDLED
from saekit.recovery import measure_recovery
from saekit.synthetic import (
    World,
    classic_directions,
    hedging_tree,
    nabeshima_tree,
    shapes_and_colours,
    synth_sae_bench,
)
from saekit.training.config import TrainingConfig
from saekit.training.trainer import train
from saekit.training.variants import BatchTopK, Matryoshka, ReLU, Variant

FOUND = 0.8  # absolute cosine from which a latent is one of a true feature
SEEDS = (0, 1, 2)
N_SAMPLES = 20_000
STEPS, BATCH_SIZE, LEARNING_RATE = 1000, 256, 5e-3
# world: how to make it, widths, latents per sample at each
WORLDS: dict[str, tuple[Callable[[], World], tuple[int, ...], tuple[int, ...]]] = {
    "nabeshima_tree": (lambda: nabeshima_tree(d_in=50, deviation=0.2), (5, 10, 20), (1, 1, 1)),
    "shapes_and_colours": (shapes_and_colours, (6, 9, 18), (2, 1, 1)),
}
BENCH_WIDTH, BENCH_L0, BENCH_BATCH, BENCH_LR = 4096, 25, 1024, 3e-4
META = Recipe("toy", lr=3e-3, steps=1000, batch=1e6, width=0.5)  # all rows at each step
N_ADDED = 64  # novel latents of greatest power, whose span hedging is measured in


def kinds(active: int, prefixes: tuple[float, ...]) -> dict[str, Variant]:
    """The kinds that are compared, at an L0."""
    return {
        "relu": ReLU(target_l0=active),
        "batchtopk": BatchTopK(k=active),
        "matryoshka": Matryoshka(k=active, prefixes=prefixes),
    }


def trained(world: World, config: TrainingConfig, *, progress: bool = False) -> Dictionary:
    """The dictionary of a world, read if it was trained before; an interrupted run resumes."""
    folder = home() / "truth" / hash_json([world.content_hash, config.describe()])[:16]
    if not (folder / "dictionary.json").exists():
        result = train(
            config, world, checkpoint=folder / "state.safetensors", checkpoint_every=100, progress=progress
        )
        result.dictionary.save(folder)
    return Dictionary.load(folder)


def grid(name: str, *, progress: bool = False) -> dict[tuple[str, int, int], Dictionary]:
    """The dictionaries of a world by kind, width and seed."""
    make, widths, active = WORLDS[name]
    world, found = make(), {}
    runs = [
        (kind, variant, width, seed)
        for width, k in zip(widths, active, strict=True)
        for kind, variant in kinds(k, (0.5, 1.0)).items()
        for seed in SEEDS
    ]
    for kind, variant, width, seed in tqdm(runs, desc=name, disable=not progress):
        config = TrainingConfig(
            variant, width, seed=seed, steps=STEPS, batch_size=BATCH_SIZE, lr=LEARNING_RATE, log_every=STEPS
        )
        found[kind, width, seed] = trained(world, config)
    return found


def recovery_rows(name: str, dictionaries: dict[tuple[str, int, int], Dictionary]) -> pd.DataFrame:
    """One row per dictionary: its scores against the truth, and the agreement with another seed.

    `seed_agreement` is the mean best cosine with the next seed; `true_auc` is how well a latent's best cosine
    with the next seed tells whether it is one of a true feature (NaN if all are, or none is).
    """
    make, widths, _ = WORLDS[name]
    world = make()
    sample, rows = world.sample(N_SAMPLES), []
    for (kind, width, seed), dictionary in dictionaries.items():
        found = measure_recovery(dictionary, world.directions, sample)
        other = dictionaries[kind, width, SEEDS[(SEEDS.index(seed) + 1) % len(SEEDS)]]
        agreement = best_matches(other, dictionary).cosine
        row = {"world": name, "kind": kind, "width": width, "seed": seed, **found.summary}
        row |= {"seed_agreement": float(agreement.mean()), "true_auc": _auc(found.cosine >= FOUND, agreement)}
        if world.atoms is not None:
            atoms = measure_recovery(dictionary, world.atoms)
            row |= {"mcc_atoms": atoms.mcc, "share_atoms": float(atoms.recovered(FOUND).float().mean())}
            meta = meta_sae(dictionary, width=len(world.atoms), k=2, recipe=META, seed=seed).dictionary
            atoms = measure_recovery(meta, world.atoms)
            row |= {"mcc_meta": atoms.mcc, "share_meta": float(atoms.recovered(FOUND).float().mean())}
        rows.append(row)
    for method, width in product(("pca", "fastica", "minibatch_dictionary_learning"), widths):
        if width <= world.d_in:
            rows_of = classic_directions(sample.x[:2000], width, method)
            score = measure_recovery(rows_of, world.directions)
            rows.append({"world": name, "kind": method, "width": width, "seed": 0, **score.summary})
    return pd.DataFrame(rows).drop(columns=["learned"])


def novelty_rows(name: str, dictionaries: dict[tuple[str, int, int], Dictionary]) -> pd.DataFrame:
    """One row per pair of neighbouring widths, kind, seed and group of features.

    A large latent is truly new if it is one of a true feature (cosine of `FOUND` or more) and no small latent
    is. `precision` and `recall` are those of `novel_cos` and `novel_gain` for it, `auc` that of cosine and
    gain;
    `depth` is the features' depth in the hierarchy, -1 for all. `split_right` is the share of the large
    latents
    with a true parent whose best small latent is one of that parent.
    """
    make, widths, _ = WORLDS[name]
    world = make()
    x, rows = world.sample(N_SAMPLES).x, []
    for kind, (narrow, wide), seed in product(
        sorted({kind for kind, _, _ in dictionaries}), pairwise(widths), SEEDS
    ):
        small, large = dictionaries[kind, narrow, seed], dictionaries[kind, wide, seed]
        single = insertion(small, large, x)
        parts = overshoot_parts(single, group_insertion(small, large, single, x))
        of_small, of_large = (measure_recovery(d, world.directions) for d in (small, large))
        known = (of_large.cosine >= FOUND) & ~single.dead
        new = ~of_small.recovered(FOUND)[of_large.best]
        parent = world.parent[of_large.best]
        chosen = known & (parent >= 0) & of_small.recovered(FOUND)[parent.clamp(min=0)]
        right = of_small.best[single.matches.index] == parent
        common = {"world": name, "kind": kind, "small": narrow, "large": wide, "seed": seed}
        common |= {"split_right": _mean(right[chosen]), "n_split": int(chosen.sum()), **parts}
        for depth in (-1, *range(int(world.depth.max()) + 1)):
            here = known & ((world.depth[of_large.best] == depth) if depth >= 0 else True)
            row = common | {"depth": depth, "n": int(here.sum()), "n_new": int((here & new).sum())}
            scores = {"cos": -single.matches.cosine, "gain": -single.mse_change}
            for label, score in scores.items():
                says = getattr(single, f"novel_{label}")
                row[f"precision_{label}"] = _mean(new[here & says])
                row[f"recall_{label}"] = _mean(says[here & new])
                row[f"auc_{label}"] = _auc(new[here], score[here])
            rows.append(row)
    return pd.DataFrame(rows)


def hedging_rows(alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)) -> pd.DataFrame:
    """The hedging tree with one narrow latent, `parent + alpha * children`, into which the children go.

    Everything else is perfect, so that only hedging differs: `change` is that of the MSE when all three
    children
    are inserted, with its parts (`overshoot_parts`), and `score` is the hedging score.
    """
    world = hedging_tree()
    x = world.sample(N_SAMPLES).x
    rows, zero = [], torch.zeros(world.d_in)
    perfect = Dictionary(world.directions.T, torch.zeros(4), world.directions, zero, torch.full((4,), 0.01))
    for alpha in alphas:
        hedged = world.directions[:1] + alpha * world.directions[1:].sum(0)
        hedged = hedged / hedged.norm()
        small = Dictionary(hedged.T, torch.zeros(1), hedged, zero, torch.full((1,), 0.01))
        theta = (1 + alpha) / 2 / (1 + 3 * alpha**2) ** 0.5  # between its cosines with parent and children
        single = insertion(small, perfect, x, theta=theta)
        parts = overshoot_parts(single, group_insertion(small, perfect, single, x), "novel_cos")
        children = world.directions[1:]
        score = measure_hedging(hedged, world.directions[:1], children).score
        rows.append({"alpha": alpha, "score": score, **parts})
    return pd.DataFrame(rows)


def family_hedging_rows(family: Family, x: torch.Tensor, *, theta: float = 0.7) -> pd.DataFrame:
    """Two rows per pair of a family: the parts of the overshoot, and the hedging score of its rows.

    The two are the latents that `novel_cos` and `novel_gain` call novel; `null` pairs are two seeds of a
    width.

    Small rows are compared with their best large rows of cosine theta or more; the added rows are the
    `N_ADDED` novel latents of greatest power.
    """
    rows = []
    for pair in family.comparisons():
        single = insertion(pair.small, pair.large, x, theta=theta)
        groups = group_insertion(pair.small, pair.large, single, x)
        kept = (~single.novel_cos & ~single.dead).nonzero().flatten()
        power = single.power.sum(0) * (single.novel_cos & ~single.dead)
        added = power.topk(min(N_ADDED, int((power > 0).sum()))).indices
        before = pair.small.W_dec[single.matches.index[kept]]
        score = measure_hedging(before, pair.large.W_dec[kept], pair.large.W_dec[added])
        row = {"kind": family.kind, "small": pair.small_width, "large": pair.large_width, "null": pair.null}
        for group in ("novel_cos", "novel_gain"):
            rows.append(row | {"group": group, **score.summary, **overshoot_parts(single, groups, group)})
    return pd.DataFrame(rows)


def write_truth(*, progress: bool = True) -> None:
    """Train what is missing and write the tables of the toy worlds into the package."""
    dictionaries = {name: grid(name, progress=progress) for name in WORLDS}
    tables = {
        "truth_recovery": pd.concat([recovery_rows(name, found) for name, found in dictionaries.items()]),
        "truth_novelty": pd.concat([novelty_rows(name, found) for name, found in dictionaries.items()]),
        "truth_hedging": hedging_rows(),
    }
    for name, table in tables.items():
        _write(name, table)


def write_bench(samples: int, *, progress: bool = True) -> pd.DataFrame:
    """Train each kind on SynthSAEBench at width 4096 on so many samples, resuming, and write its scores."""
    world = synth_sae_bench()
    sample, rows = world.sample(N_SAMPLES), []
    for kind, variant in kinds(BENCH_L0, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)).items():
        steps = samples // BENCH_BATCH
        config = TrainingConfig(
            variant, BENCH_WIDTH, steps=steps, batch_size=BENCH_BATCH, lr=BENCH_LR, log_every=steps
        )
        found = measure_recovery(trained(world, config, progress=progress), world.directions, sample)
        rows.append({"kind": kind, "samples": steps * BENCH_BATCH, **found.summary})
        _write("truth_bench", pd.DataFrame(rows).drop(columns=["learned"]))
    return pd.DataFrame(rows)


def truth_table(name: str) -> pd.DataFrame:
    """A bundled table of this module: `"recovery"`, `"novelty"`, `"hedging"` or `"family"`.

    Examples
    --------
    >>> truth_table("family")["kind"].unique().tolist()
    ['relu', 'batchtopk']
    """
    return pd.read_csv(BUNDLED / f"truth_{name}.csv")


def _write(name: str, table: pd.DataFrame) -> None:
    write_bytes(BUNDLED / f"{name}.csv", table.to_csv(index=False, float_format="%.6g").encode())


def _auc(truth: torch.Tensor, score: torch.Tensor) -> float:
    positive = truth.numpy()
    return float(roc_auc_score(positive, score.numpy())) if 0 < positive.sum() < len(positive) else np.nan


def _mean(values: torch.Tensor) -> float:
    return float(values.float().mean()) if len(values) else np.nan
