"""Kinds of SAE at equal width and sparsity: the frontier of reconstruction against sparsity.

`saekit kinds` trains a dictionary of every kind, width and sparsity of the grid below on the embedded
store, under `saekit.files.home()`, and writes two tables into the package: the quality of each
dictionary, and the number of latents that its tokens use. A rerun trains only the missing ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from saekit.activations import ActivationStore, batches_of
from saekit.dictionary import Dictionary
from saekit.files import hash_json, home, writable_folder, write_bytes
from saekit.loading.names import BUNDLED
from saekit.series.embedded import embedded_store
from saekit.training.config import TrainingConfig
from saekit.training.side_by_side import measure, train_side_by_side
from saekit.training.variants import VARIANTS

WIDTHS = (1152, 2304)
ACTIVE = (16, 32, 64)  # active latents per token
HISTOGRAM = (2304, 32)  # width and active latents per token of the dictionaries whose tokens are counted
STEPS = 2_500
BATCH_SIZE = 512
LEARNING_RATE = 2e-3  # at width 1152


def configs() -> list[TrainingConfig]:
    """Training settings of every dictionary of the grid, by kind, width and sparsity."""
    return [
        TrainingConfig(
            variant=VARIANTS[kind](**{VARIANTS[kind].sparsity: active}),
            width=width,
            steps=STEPS,
            batch_size=BATCH_SIZE,
            # Wider dictionaries need smaller steps: the square-root rule of Gao et al. (2024).
            lr=LEARNING_RATE * math.sqrt(1152 / width),
            log_every=STEPS // 4,
        )
        for kind, width, active in product(VARIANTS, WIDTHS, ACTIVE)
    ]


def target_l0(config: TrainingConfig) -> int:
    """The number of active latents per token that these settings ask for."""
    return round(getattr(config.variant, config.variant.sparsity))


def trained_folder(config: TrainingConfig, train_store: ActivationStore) -> Path:
    """The folder in which `train_kinds` keeps a dictionary; it depends on settings and data."""
    settings = hash_json([config.describe(), train_store.content_hash])[:12]
    return home() / "kinds" / f"{config.variant.kind}-{config.width}-{target_l0(config)}-{settings}"


def train_kinds(*, progress: bool = True) -> list[tuple[TrainingConfig, Dictionary]]:
    """Train the missing dictionaries of the grid, resuming interrupted runs.

    Returns
    -------
    list of (TrainingConfig, Dictionary)
        The whole grid, in the order of `configs`.
    """
    train_store = embedded_store("train", progress=progress)
    runs = [(config, trained_folder(config, train_store)) for config in configs()]
    # The longest first, so that no core is left with it at the end.
    longest_first = sorted(runs, key=lambda run: (-run[0].width, -target_l0(run[0])))
    train_side_by_side(
        longest_first, train_store, embedded_store("held-out", progress=progress), progress=progress
    )
    return [(config, Dictionary.load(folder)) for config, folder in runs]


def write_tables(*, progress: bool = True) -> pd.DataFrame:
    """Train the grid, measure it on held-out tokens, and write both tables into the package.

    Returns
    -------
    DataFrame
        The table, as in `saekit.series.tables.kinds_table`.
    """
    writable_folder(BUNDLED)
    trained = train_kinds(progress=progress)
    held_out = embedded_store("held-out", progress=progress)
    table = pd.DataFrame(
        {
            "kind": config.variant.kind,
            "width": config.width,
            "target_l0": target_l0(config),
            "tokens": config.steps * config.batch_size,
            "steps": config.steps,
        }
        for config, _ in trained
    )
    table = table.join(measure([dictionary for _, dictionary in trained], held_out, progress=progress))
    counted = [dictionary for config, dictionary in trained if (config.width, target_l0(config)) == HISTOGRAM]
    for name, content in (("kinds", table), ("kinds_l0", active_histogram(counted, held_out))):
        write_bytes(BUNDLED / f"{name}.csv", content.to_csv(index=False).encode())
    return table


def active_histogram(dictionaries: Iterable[Dictionary], activations: ActivationStore) -> pd.DataFrame:
    """How many tokens have how many active latents.

    Returns
    -------
    DataFrame
        `kind`, `width`, `active` (latents) and `tokens` with exactly that many; counts that no token
        has are left out.
    """
    parts = []
    for dictionary in dictionaries:
        counts = torch.cat([dictionary.encode_sparse(x).counts for _, x in batches_of(activations)])
        active, tokens = counts.unique(return_counts=True)
        identity = {"kind": dictionary.kind, "width": dictionary.width}
        parts.append(pd.DataFrame({**identity, "active": active.numpy(), "tokens": tokens.numpy()}))
    return pd.concat(parts, ignore_index=True)
