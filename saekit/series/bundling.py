"""The bundled families: their training, and how they get into the package.

`saekit families` trains the members that the package lacks, and then wider ones that are too large for
it; it saves them under `saekit.files.home()` and resumes. `saekit families --bundle` trains the lacking
members alone and adds them to the package, with the tables of their quality and convergence. Members
that the package has already stay as they are.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
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
from saekit.series.tables import bundled_table
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
# Width and seed of what the package holds: as much as fits into 120 MB in half precision.
MEMBERS = {
    "relu": ((576, 0), (1152, 0), (1152, 1), (2304, 0), (2304, 1), (2304, 2), (4608, 0), (9216, 0)),
    "batchtopk": ((576, 0), (1152, 0), (2304, 0), (2304, 1), (2304, 2), (4608, 0), (9216, 0)),
}
BEYOND = ((9216, 1), (18432, 0), (9216, 2), (36864, 0))  # too large for the package, most useful first
WIDE = 9216  # from this width on dictionaries are trained on more text
WIDE_TOKENS = 15_000_000
NICENESS = 10  # training takes days, and yields to other processes
HALF_TOLERANCE = 1e-3  # relative change of FVU up to which half precision is used


def config(kind: str, width: int, seed: int) -> TrainingConfig:
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
        data_seed=seed,  # seeds differ in data order as in initialisation, and the record shows it
    )


def trained_folder(kind: str, activations: str) -> Path:
    """The folder in which `train_families` keeps a family; it depends on recipe and data.

    It depends on the recipe at one width, so that members can be added to those that are there.

    Parameters
    ----------
    kind : str
        Kind of the family.
    activations : str
        Content hash of the training store.
    """
    identity = [config(kind, 1152, 0).describe(), activations]
    return home() / "families" / f"{kind}-{hash_json(identity)[:12]}"


def train_families(*, beyond: bool = True, progress: bool = True) -> list[Path]:
    """Train the members that the package lacks, then those beyond it; resume where a run was stopped.

    Parameters
    ----------
    beyond : bool
        Also train the members that are too large for the package.
    progress : bool
        Show a progress bar in tokens.

    Returns
    -------
    list of Path
        The folder of each member, to be read by `Dictionary.load`; members of one kind that were trained
        on the same text share a parent folder, to be read by `load_family`.
    """
    held_out = embedded_store("held-out", progress=progress)
    groups = [[(kind, *member) for kind in MEMBERS for member in MEMBERS[kind] if _lacks(kind, *member)]]
    groups += [[(kind, *member) for kind in MEMBERS] for member in BEYOND if beyond]
    folders = []
    for group in groups:
        for wide in (False, True):
            members = [member for member in group if (member[1] >= WIDE) is wide]
            if not members:
                continue
            train_store = _train_store(members[0][1], progress)
            runs = [(config(*member), _trained(*member, train_store)) for member in members]
            train_side_by_side(
                runs, train_store, held_out, snapshots=True, niceness=NICENESS, progress=progress
            )
            folders += [folder for _, folder in runs]
    return folders


def _train_store(width: int, progress: bool) -> ActivationStore:
    return embedded_store("train", n_tokens=WIDE_TOKENS if width >= WIDE else None, progress=progress)


def _trained(kind: str, width: int, seed: int, train_store: ActivationStore) -> Path:
    return _member_folder(trained_folder(kind, train_store.content_hash), width, seed)


def _member_folder(parent: Path, width: int, seed: int) -> Path:
    return parent / f"{width}-seed{seed}"


def _lacks(kind: str, width: int, seed: int) -> bool:
    """Whether the package lacks a member or its row, which is written last."""
    table = BUNDLED / "members.csv"
    rows = pd.read_csv(table, usecols=["kind", "width", "seed"]) if table.exists() else pd.DataFrame()
    there = (_member_folder(BUNDLED / kind, width, seed) / "dictionary.json").exists()
    return not there or (kind, width, seed) not in {*rows.itertuples(index=False, name=None)}


# ---------------------------------------------------------------------- into the package


def bundle(*, progress: bool = True) -> pd.DataFrame:
    """Add the members that the package lacks, with their rows of the tables.

    Matrices are stored in half precision where that changes FVU by less than 0.1%, in single
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
    folders = train_families(beyond=False, progress=progress)
    held_out = embedded_store("held-out", progress=progress)
    rows, members = [], []
    for folder in folders:
        trained, log = Dictionary.load(folder), pd.read_csv(folder / "log.csv")
        with tempfile.TemporaryDirectory() as tried:
            halved = Dictionary.load(trained.save(tried, half=True))
        change = evaluate(halved, held_out).fvu / evaluate(trained, held_out).fvu - 1
        half = abs(change) < HALF_TOLERANCE
        change = change if half else 0.0
        members.append(Dictionary.load(trained.save(BUNDLED / trained.kind / folder.name, half=half)))
        rows.append(
            {"kind": trained.kind, "width": trained.width, "seed": trained.seed}
            | {"tokens": int(log["tokens"].iloc[-1]), "steps": int(log["step"].iloc[-1])}
            | {"distinct_tokens": _train_store(trained.width, progress).n_tokens}
            | {"half_precision_fvu_change": change}
        )
    if rows:
        added = pd.DataFrame(rows).join(measure(members, held_out, progress=progress))
        _add("members.csv", added, ["kind", "width", "seed"])
    # Always, since a second seed that is too large for the package may have been trained meanwhile.
    bundled = [member for kind in MEMBERS for member in load_family(kind)]
    parents = {trained_folder(m.kind, m.info["training"]["activations"]) for m in bundled}
    _add("convergence.csv", convergence(parents), ["kind", "width", "step"])
    return bundled_table()


def _add(name: str, rows: pd.DataFrame, key: list[str]) -> None:
    """Write a table of the package with these rows in place of those of the same key, ordered by it."""
    if rows.empty:
        return
    file = BUNDLED / name
    kept = pd.read_csv(file, float_precision="round_trip") if file.exists() else rows[:0]
    table = pd.concat([kept, rows]).drop_duplicates(key, keep="last")
    order = table["kind"].map(list(MEMBERS).index)
    table = table.assign(order=order).sort_values(["order", *key[1:]]).drop(columns="order")
    if not table.reset_index(drop=True).equals(kept):
        write_bytes(file, table.to_csv(index=False).encode())


def convergence(parents: Iterable[Path]) -> pd.DataFrame:
    """Seed overlap and FVU over training, for every width that was trained with two seeds.

    Parameters
    ----------
    parents : iterable of Path
        Folders that `train_families` keeps a family in.

    Returns
    -------
    DataFrame
        `kind`, `width`, `step`, `tokens`, `fvu` (of the first seed), and of the best cosine of
        each latent of the first seed with a latent of the second: `median_cosine`,
        `share_under_0.7`.
    """
    rows = []
    for parent in sorted({*parents}):
        for second in sorted(parent.glob("*-seed1/dictionary.json")):
            width = int(second.parent.name.split("-")[0])
            seeds = [_member_folder(parent, width, seed) for seed in (0, 1)]
            if not (seeds[0] / "log.csv").exists():
                continue
            for row in pd.read_csv(seeds[0] / "log.csv").itertuples():
                cosines = _best_cosines(*(_snapshot(member, row.step) for member in seeds))
                rows.append(
                    {"kind": parent.name.split("-")[0], "width": width, "step": row.step}
                    | {"tokens": row.tokens, "fvu": row.fvu}
                    | {"median_cosine": cosines.median().item()}
                    | {"share_under_0.7": (cosines < 0.7).double().mean().item()}
                )
    columns = ["kind", "width", "step", "tokens", "fvu", "median_cosine", "share_under_0.7"]
    return pd.DataFrame(rows, columns=columns)


def _snapshot(folder: Path, step: int) -> Tensor:
    return load_file(snapshot_path(folder, step))["W_dec"].float()


def _best_cosines(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T).amax(dim=1)
