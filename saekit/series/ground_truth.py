"""The paper's questions where the true features are known.

`saekit truth` trains the dictionaries of `saekit.series.truth_grid` and writes the tables `truth_*.csv` into
the package; `saekit.truth_table` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from saekit.analysis.hedging import measure_hedging, overshoot_parts
from saekit.analysis.meta.sae import Recipe, meta_sae
from saekit.analysis.novelty import group_insertion, insertion
from saekit.analysis.nulls import random_directions
from saekit.analysis.similarity import best_matches
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import writable_folder, write_bytes
from saekit.loading.names import BUNDLED, load_family
from saekit.recovery import Recovery, measure_recovery
from saekit.series.embedded import embedded_store
from saekit.series.truth_grid import (
    GRIDS,
    HEDGING_GRIDS,
    SEEDS,
    Found,
    Grid,
    bench_dictionary,
    dictionaries,
    kinds,
    meta_folder,
)
from saekit.synthetic import World, classic_directions, hedging_tree, synth_sae_bench

FOUND = 0.8  # absolute cosine from which a latent is one of its best true feature
N_SAMPLES = 20_000
RATES = (0.0, 0.01, 0.03, 0.1, 1.0)  # ends of the ranges of firing rates
META = Recipe("toy", lr=3e-3, steps=1000, batch=1e6)  # all rows at each step
N_ADDED = 64  # novel latents of greatest power, whose span hedging is measured in
N_FAMILY = 8192  # held-out tokens for the bundled families
HEDGED = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)  # children in the parent's latent, by hand
HEDGING_THETA = 0.6  # tells a hedged parent (0.7 or more) from its children (0.5 or less)


def recovery_rows(name: str, grid: Grid, found: Found) -> pd.DataFrame:
    """One row per dictionary: its scores against the truth, and the agreement with another seed.

    `seed_agreement` is the mean best cosine with the next seed; `true_auc` is how well a latent's best cosine
    with the next seed tells whether it is one of a true feature (NaN if all are, or none is).
    """
    world = grid.make()
    sample, rows = world.sample(N_SAMPLES), []
    for (kind, width, seed), dictionary in found.items():
        recovery = measure_recovery(dictionary, world.directions, sample)
        other = found[kind, width, SEEDS[(SEEDS.index(seed) + 1) % len(SEEDS)]]
        agreement = best_matches(other, dictionary).cosine
        row = {"world": name, "kind": kind, "width": width, "seed": seed, **recovery.summary}
        row["seed_agreement"] = float(agreement.mean())
        row["true_auc"] = _auc(recovery.cosine.abs() >= FOUND, agreement)
        rows.append(row)
    for method, width in product(("pca", "fastica", "minibatch_dictionary_learning"), grid.widths):
        if width <= world.d_in:
            directions = classic_directions(sample.x[:2000], width, method)
            summary = measure_recovery(directions, world.directions).summary
            rows.append({"world": name, "kind": method, "width": width, "seed": 0, **summary})
    return pd.DataFrame(rows).drop(columns=["learned"])


def parts_rows(name: str, grid: Grid, found: Found) -> pd.DataFrame:
    """One row per dictionary: the shares of parts and of other features that it, and its meta-SAE, has.

    Parts are the atoms, or the features with children; a world without has no rows. The widest dictionaries
    have a meta-SAE, as wide as the narrowest. So have three controls, as kinds of their own: the true
    directions of everything but the parts, all true directions, and random ones.
    """
    world = grid.make()
    parents = world.parent[world.parent >= 0].unique()
    parts = world.directions[parents] if world.atoms is None else world.atoms
    if not len(parts):
        return pd.DataFrame()
    others = world.directions[(world.directions @ parts.T).amax(1) < 0.99]

    def shares(learned: Dictionary | Tensor, label: str = "") -> dict[str, float]:
        had = _had(measure_recovery(learned, torch.cat([parts, others])))
        return {f"parts{label}": _mean(had[: len(parts)]), f"others{label}": _mean(had[len(parts) :])}

    controls = {"all but the parts": others, "all features": world.directions}
    sources = dict(found)
    for seed in SEEDS:
        controls["random directions"] = random_directions(grid.widths[-1], world.d_in, seed=seed)
        sources |= {(kind, len(rows), seed): _made(rows, world) for kind, rows in controls.items()}
    table = []
    for (kind, width, seed), source in sources.items():
        row = {"world": name, "kind": kind, "width": width, "seed": seed} | shares(source)
        if width == grid.widths[-1] or kind in controls:
            settings: dict[str, Any] = {
                "width": grid.widths[0],
                "k": 2,
                "recipe": META,
                "seed": seed,
                "folder": meta_folder(),
            }
            meta = meta_sae(source, **settings)
            row |= shares(meta.dictionary, "_meta")
            row["explained_meta"] = meta.summary["explained_variance"]
        table.append(row)
    return pd.DataFrame(table)


def novelty_rows(name: str, grid: Grid, found: Found) -> pd.DataFrame:
    """One row per pair of neighbouring widths, kind, seed and group of features.

    A large latent is truly new if it is one of a true feature, and no small latent is. `precision` and
    `recall` are those of `novel_cos` and `novel_gain` for it, over all latents that fire, `auc` that of
    cosine and gain. A latent is in the group (`by`, `group`) of its best true feature. `split_right` is the
    share of the large latents with a true parent whose best small latent is one of that parent.
    """
    world = grid.make()
    x, rows = world.sample(N_SAMPLES).x, []
    kinds_of = dict.fromkeys(kind for kind, _, _ in found)
    for kind, (narrow, wide), seed in product(kinds_of, pairwise(grid.widths), SEEDS):
        small, large = found[kind, narrow, seed], found[kind, wide, seed]
        single = insertion(small, large, x)
        of_small, of_large = (measure_recovery(d, world.directions) for d in (small, large))
        feature, there = of_large.best, _had(of_small)
        known = (of_large.cosine.abs() >= FOUND) & ~single.dead
        new = known & ~there[feature]
        parent = world.parent[feature]
        split = known & (parent >= 0) & there[parent.clamp(min=0)]
        right = of_small.best[single.matches.index] == parent
        pair = {"world": name, "kind": kind, "small": narrow, "large": wide, "seed": seed}
        pair |= {"split_right": _mean(right[split]), "n_split": int(split.sum())}
        for by, group, features in feature_groups(world):
            here = features[feature] & ~single.dead
            row = pair | {"by": by, "group": group, "n": int(here.sum()), "n_new": int((here & new).sum())}
            for label, score in (("cos", -single.matches.cosine), ("gain", -single.mse_change)):
                called = getattr(single, f"novel_{label}")
                row[f"precision_{label}"] = _mean(new[here & called])
                row[f"recall_{label}"] = _mean(called[here & new])
                row[f"auc_{label}"] = _auc(new[here], score[here])
            rows.append(row)
    return pd.DataFrame(rows)


def feature_groups(world: World) -> Iterator[tuple[str, str, Tensor]]:
    """Groups of true features, Boolean: all, those of each depth, and those of each range of rates."""
    yield "all", "all", torch.ones(world.n_features, dtype=torch.bool)
    for depth in world.depth.unique().tolist():
        yield "depth", str(depth), world.depth == depth
    rates = world.rates()
    for low, high in pairwise(RATES):
        if ((rates > low) & (rates <= high)).any():
            yield "rate", f"{low:g} to {high:g}", (rates > low) & (rates <= high)


# ------------------------------------------------------------------------------ hedging


def hedged_by_hand_rows(alphas: tuple[float, ...] = HEDGED) -> pd.DataFrame:
    """The hedging tree with one narrow latent, `parent + alpha * children`, into which the children go.

    Everything else is perfect, so that only hedging differs: `change` is that of the MSE when all three
    children are inserted, with its parts (`overshoot_parts`), and `score` is the hedging score.
    """
    world = hedging_tree()
    x, large, rows = world.sample(N_SAMPLES).x, _made(world.directions, world), []
    for alpha in alphas:
        small = _made(world.directions[:1] + alpha * world.directions[1:].sum(0), world)
        theta = (1 + alpha) / 2 / (1 + 3 * alpha**2) ** 0.5  # between its cosines with parent and children
        rows.append({"alpha": alpha} | hedging_row(small, large, x, theta=theta))
    return pd.DataFrame(rows)


def hedging_rows(child: float, grid: Grid, found: Found) -> pd.DataFrame:
    """The same of narrow dictionaries that were trained, with room for the parents alone.

    Two rows per kind and seed: `large` is the true features, so that only the narrow dictionary is at fault,
    or a trained one with room for everything. `child` is the rate of the children given their parent, which
    decides how far a latent hedges.
    """
    world, (narrow, wide) = grid.make(), grid.widths
    x, rows = world.sample(N_SAMPLES).x, []
    for kind, seed in product(kinds(1), SEEDS):
        for large, dictionary in (
            ("true", _made(world.directions, world)),
            ("trained", found[kind, wide, seed]),
        ):
            parts = hedging_row(found[kind, narrow, seed], dictionary, x, theta=HEDGING_THETA)
            rows.append({"child": child, "kind": kind, "seed": seed, "large": large} | parts)
    return pd.DataFrame(rows)


def family_rows(family: Family, x: Tensor, *, theta: float = 0.7) -> pd.DataFrame:
    """The same of a family: two rows per pair, for the latents that `novel_cos` and `novel_gain` call novel.

    `null` pairs are two seeds of a width.
    """
    rows = []
    for pair in family.comparisons():
        row = {"kind": family.kind, "small": pair.small_width, "large": pair.large_width, "null": pair.null}
        for group in ("novel_cos", "novel_gain"):
            parts = hedging_row(pair.small, pair.large, x, theta=theta, group=group)
            rows.append(row | {"group": group} | parts)
    return pd.DataFrame(rows)


def hedging_row(
    small: Dictionary, large: Dictionary, x: Tensor, *, theta: float, group: str = "novel_cos"
) -> dict[str, float]:
    """The parts of the overshoot, and the hedging score of the small rows.

    Small rows are compared with their best large rows of cosine theta or more; the added rows are the
    `N_ADDED` novel latents of greatest power. The score is NaN if there are none of either.
    """
    single = insertion(small, large, x, theta=theta)
    parts = overshoot_parts(single, group_insertion(small, large, single, x), group)
    kept = (~single.novel_cos & ~single.dead).nonzero().flatten()
    power = single.power.sum(0) * (single.novel_cos & ~single.dead)
    added = power.topk(min(N_ADDED, int((power > 0).sum()))).indices
    if not len(kept) or not len(added):
        return {"score": np.nan, **parts}
    before = small.W_dec[single.matches.index[kept]]
    return {**measure_hedging(before, large.W_dec[kept], large.W_dec[added]).summary, **parts}


# ------------------------------------------------------------------------------ the tables


def write_truth(*, progress: bool = True) -> None:
    """Train what is missing, and write every table but that of SynthSAEBench into the package."""
    writable_folder(BUNDLED)
    found = {name: dictionaries(name, grid, progress=progress) for name, grid in GRIDS.items()}
    tables: dict[str, Callable[..., pd.DataFrame]] = {
        "recovery": recovery_rows,
        "novelty": novelty_rows,
        "parts": parts_rows,
    }
    for table, rows_of in tables.items():
        _write(table, pd.concat([rows_of(name, grid, found[name]) for name, grid in GRIDS.items()]))
    _write("hedged_by_hand", hedged_by_hand_rows())
    trained = [
        hedging_rows(child, grid, dictionaries(f"hedging {child}", grid, progress=progress))
        for child, grid in HEDGING_GRIDS.items()
    ]
    _write("hedging", pd.concat(trained))


def write_family(*, progress: bool = True) -> None:
    """Write the table of the bundled families into the package."""
    store = embedded_store("held-out", progress=progress)
    x = store.read(store.positions[:: len(store.positions) // N_FAMILY][:N_FAMILY])
    _write("family", pd.concat([family_rows(load_family(kind), x) for kind in ("relu", "batchtopk")]))


def write_bench(samples: int, *, progress: bool = True) -> pd.DataFrame:
    """Train each kind on SynthSAEBench-16k on so many samples, resuming, and write and return its scores."""
    writable_folder(BUNDLED)
    world = synth_sae_bench()
    sample, rows = world.sample(N_SAMPLES), []
    for kind in kinds(1):
        dictionary = bench_dictionary(world, kind, samples, progress=progress)
        found = measure_recovery(dictionary, world.directions, sample)
        rows.append({"kind": kind, "samples": dictionary.info["training"]["tokens"], **found.summary})
        _write("bench", pd.DataFrame(rows).drop(columns=["learned"]))
    return pd.DataFrame(rows)


def _write(name: str, table: pd.DataFrame) -> None:
    data = table.to_csv(index=False, float_format="%.6g").encode()
    write_bytes(BUNDLED / f"truth_{name}.csv", data)


def _had(recovery: Recovery) -> Tensor:
    """True features that a latent is one of, Boolean `[n_features]`."""
    had = torch.zeros(len(recovery.found), dtype=torch.bool)
    had[recovery.best[recovery.cosine.abs() >= FOUND]] = True
    return had


def _made(rows: Tensor, world: World) -> Dictionary:
    """A dictionary of given directions, orthogonal ones of which read the features exactly."""
    rows, info = F.normalize(rows, dim=1), {"kind": "made by hand", **world.manifest}
    floor = torch.full((len(rows),), 0.01)  # above rounding
    return Dictionary(rows.T, torch.zeros(len(rows)), rows, torch.zeros(world.d_in), floor, info=info)


def _auc(truth: Tensor, score: Tensor) -> float:
    positive = truth.numpy()
    return float(roc_auc_score(positive, score.numpy())) if 0 < positive.sum() < len(positive) else np.nan


def _mean(values: Tensor) -> float:
    return float(values.float().mean()) if len(values) else np.nan
