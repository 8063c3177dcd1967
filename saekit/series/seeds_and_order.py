"""By how much sharing the order of the data overstates the agreement of two seeds.

Some libraries' seeds change the initialisation alone, so their runs see the same batches in the same order.
`saekit order` trains dictionaries of one width with every combination of two initialisations and two
orders on the embedded store, under `saekit.files.home()`, and writes the agreement of each pair into
the package. A rerun trains only the missing ones.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pandas as pd

from saekit.activations import ActivationStore
from saekit.analysis.uniqueness.seeds import measure_uniqueness
from saekit.dictionary import Dictionary
from saekit.files import hash_json, home, writable_folder, write_bytes
from saekit.loading.names import BUNDLED
from saekit.metrics import evaluate
from saekit.series.embedded import embedded_store
from saekit.training.config import TrainingConfig
from saekit.training.side_by_side import train_side_by_side
from saekit.training.variants import ReLU

WIDTH = 576
SEEDS = (0, 1)  # of the initialisation, and of the order of the data
TARGET_L0 = 36.0
STEPS = 4_000
BATCH_SIZE = 512
LEARNING_RATE = 2e-3  # at width 1152


def configs() -> list[TrainingConfig]:
    """Training settings of every combination of initialisation and order."""
    return [
        TrainingConfig(
            variant=ReLU(target_l0=TARGET_L0),
            width=WIDTH,
            seed=seed,
            data_seed=order,
            steps=STEPS,
            batch_size=BATCH_SIZE,
            lr=LEARNING_RATE * math.sqrt(1152 / WIDTH),
            log_every=STEPS // 4,
        )
        for seed, order in product(SEEDS, SEEDS)
    ]


def trained_folder(config: TrainingConfig, train_store: ActivationStore) -> Path:
    """The folder in which a dictionary is kept; it depends on settings and data."""
    settings = hash_json([config.describe(), train_store.content_hash])[:12]
    return home() / "order" / f"{config.width}-seed{config.seed}-order{config.order_seed}-{settings}"


def write_table(*, progress: bool = True) -> pd.DataFrame:
    """Train the missing dictionaries, compare each pair, and write the table into the package.

    Returns
    -------
    DataFrame
        The table, as in `saekit.series.tables.order_table`.
    """
    writable_folder(BUNDLED)
    train_store = embedded_store("train", progress=progress)
    held_out = embedded_store("held-out", progress=progress)
    runs = [(config, trained_folder(config, train_store)) for config in configs()]
    train_side_by_side(runs, train_store, held_out, progress=progress)
    members = [Dictionary.load(folder) for _, folder in runs]
    unique = measure_uniqueness(*members, activations=held_out, progress=progress)
    fvu = [evaluate(member, held_out).fvu for member in members]
    pairs = unique.pairs
    columns = ["differ", "pw_mcc_signed", "pw_mcc_absolute", "share_shared", "mean_correlation"]
    table = pd.DataFrame(
        {
            "width": WIDTH,
            "tokens": STEPS * BATCH_SIZE,
            **{
                f"{what}_{side}": getattr(configs()[places[index]], name)
                for index, side in enumerate("ab")
                for what, name in (("seed", "seed"), ("order", "order_seed"))
            },
            "fvu_a": fvu[places[0]],
            "fvu_b": fvu[places[1]],
        }
        for places in unique.matchings
    ).join(pairs[columns])
    write_bytes(BUNDLED / "order.csv", table.to_csv(index=False).encode())
    return table
