"""The bundled families: their training, and how they get into the package.

`saekit families` trains the `WIDE` members, which the package lacks, on 15 million tokens; `saekit
families --again` trains the bundled `MEMBERS` again, on their 5 million tokens. Both keep the results
under `saekit.files.home()` and resume. `saekit families --bundle` writes `MEMBERS` into the package,
in half precision, with tables of their properties and convergence.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.files import hash_json, home, writable_folder, write_bytes
from saekit.loading.names import BUNDLED, load_family
from saekit.metrics import evaluate
from saekit.series.embedded import embedded_store
from saekit.settings import choice
from saekit.training.config import TrainingConfig
from saekit.training.side_by_side import measure, snapshot_path, train_side_by_side
from saekit.training.variants import BatchTopK, ReLU

TARGET_L0 = 36.0
K = 32
STEPS = 30_000
BATCH_SIZE = 512
SNAPSHOT_EVERY = 2_000  # steps between decoder snapshots, which show how training converges
LEARNING_RATE = {"relu": 2e-3, "batchtopk": 3e-3}  # at width 1152
MEMBERS = {
    "relu": ((576, 0), (1152, 0), (1152, 1), (2304, 0), (2304, 1), (4608, 0)),
    "batchtopk": ((576, 0), (1152, 0), (2304, 0), (2304, 1), (4608, 0)),
}
# Trained on more text. Further seeds differ in initialisation and data order.
WIDE = ((36864, 0), (18432, 0), (9216, 0), (9216, 1), (9216, 2), (2304, 2))
WIDE_TOKENS = 15_000_000
NICENESS = 10  # training takes days, and yields to other processes
HALF_TOLERANCE = 1e-3  # relative change of FVU up to which half precision is used


def config(kind: str, width: int, seed: int, *, data_seed: int | None = None) -> TrainingConfig:
    """Training settings of a member of a family: one recipe for all widths.

    Raises
    ------
    ValueError
        If there is no bundled family of this kind.
    """
    choice("kind", kind, MEMBERS)
    return TrainingConfig(
        variant=ReLU(target_l0=TARGET_L0) if kind == "relu" else BatchTopK(k=K),
        width=width,
        seed=seed,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        # Wider dictionaries need smaller steps: the square-root rule of Gao et al. (2024).
        lr=LEARNING_RATE[kind] * math.sqrt(1152 / width),
        log_every=SNAPSHOT_EVERY,
        data_seed=data_seed,
    )


def trained_folder(kind: str, train_store: ActivationStore) -> Path:
    """The folder in which `train_families` keeps a family; it depends on recipe and data.

    It depends on the recipe at one width, so that members can be added to those that are there.
    """
    identity = [config(kind, 1152, 0).describe(), train_store.content_hash]
    return home() / "families" / f"{kind}-{hash_json(identity)[:12]}"


def train_families(*, again: bool = False, progress: bool = True) -> dict[str, Path]:
    """Train the members that the package lacks, the longest first; resume where a run was stopped.

    Parameters
    ----------
    again : bool
        Train the bundled members instead.
    progress : bool
        Show a progress bar in tokens.

    Returns
    -------
    dict
        The folder of each kind, to be read by `load_family`.
    """
    held_out = embedded_store("held-out", progress=progress)
    members: list[tuple[str, int, int, int | None]]
    if again:
        train_store = embedded_store("train", progress=progress)
        members = [(kind, width, seed, None) for kind in MEMBERS for width, seed in MEMBERS[kind]]
    else:
        train_store = embedded_store("train", n_tokens=WIDE_TOKENS, progress=progress)
        members = [(kind, width, seed, seed) for kind in MEMBERS for width, seed in WIDE]
    folders = {kind: trained_folder(kind, train_store) for kind in MEMBERS}
    runs = [
        (config(kind, width, seed, data_seed=data_seed), _member_folder(folders[kind], width, seed))
        for kind, width, seed, data_seed in members
    ]
    # The longest first, so that no core is left alone with it at the end.
    runs.sort(key=lambda run: -run[0].width)
    train_side_by_side(runs, train_store, held_out, snapshots=True, niceness=NICENESS, progress=progress)
    return folders


def _member_folder(parent: Path, width: int, seed: int) -> Path:
    return parent / f"{width}-seed{seed}"


# ---------------------------------------------------------------------- into the package


def bundle(*, progress: bool = True) -> pd.DataFrame:
    """Write the trained members and their tables into the package.

    Matrices are stored in half precision where that changes FVU by less than 0.1 %, in single
    precision otherwise.

    Returns
    -------
    DataFrame
        The table of members, as in `saekit.series.tables.bundled_table`.

    Raises
    ------
    OSError
        If the package cannot be written to.
    """
    writable_folder(BUNDLED)
    folders = train_families(again=True, progress=progress)
    held_out = embedded_store("held-out", progress=progress)
    rows = []
    for kind, folder in folders.items():
        for width, seed in MEMBERS[kind]:
            trained = Dictionary.load(_member_folder(folder, width, seed))
            log = pd.read_csv(_member_folder(folder, width, seed) / "log.csv")
            target = _member_folder(BUNDLED / kind, width, seed)
            fvu = evaluate(trained, held_out).fvu
            stored = Dictionary.load(trained.save(target, half=True))
            change = evaluate(stored, held_out).fvu / fvu - 1
            if abs(change) >= HALF_TOLERANCE:
                stored = Dictionary.load(trained.save(target))
                change = 0.0
            rows.append(
                {"kind": kind, "width": width, "seed": seed}
                | {"tokens": int(log["tokens"].iloc[-1]), "steps": int(log["step"].iloc[-1])}
                | {"half_precision_fvu_change": change}
            )
    table = pd.DataFrame(rows)
    members = [member for kind in MEMBERS for member in load_family(BUNDLED / kind)]
    table = table.join(measure(members, held_out, progress=progress))
    write_bytes(BUNDLED / "members.csv", table.to_csv(index=False).encode())
    write_bytes(BUNDLED / "convergence.csv", convergence(folders).to_csv(index=False).encode())
    return table


def convergence(folders: dict[str, Path]) -> pd.DataFrame:
    """Seed overlap and FVU over training, for every width trained with two seeds.

    Returns
    -------
    DataFrame
        `kind`, `width`, `step`, `tokens`, `fvu` (of the first seed), and of the best cosine of
        each latent of the first seed with a latent of the second: `median_cosine`,
        `share_under_0.7`.
    """
    rows = []
    for kind, folder in folders.items():
        for width in sorted({width for width, seed in MEMBERS[kind] if seed}):
            first, second = (_member_folder(folder, width, seed) for seed in (0, 1))
            for row in pd.read_csv(first / "log.csv").itertuples():
                cosines = _best_cosines(*(_snapshot(member, row.step) for member in (first, second)))
                rows.append(
                    {"kind": kind, "width": width, "step": row.step, "tokens": row.tokens, "fvu": row.fvu}
                    | {"median_cosine": cosines.median().item()}
                    | {"share_under_0.7": (cosines < 0.7).double().mean().item()}
                )
    return pd.DataFrame(rows)


def _snapshot(folder: Path, step: int) -> Tensor:
    return load_file(snapshot_path(folder, step))["W_dec"].float()


def _best_cosines(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T).amax(dim=1)
