"""The bundled families: how they were trained, and how they came into the package.

`saekit families` trains them all again, and a wider dictionary of each kind, under
`saekit.files.home()`; `saekit families --bundle` then writes those of `MEMBERS` into the package,
in half precision, with the tables that say what they are and how far they have converged.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.embedded import embedded_store
from saekit.families import BUNDLED, Family
from saekit.files import hash_json, home, write_bytes, write_tensors
from saekit.metrics import ce_degradation, evaluate
from saekit.models import load_model
from saekit.training import TrainingConfig, train
from saekit.variants import BatchTopK, ReLU

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
WIDEST = 9216  # trained beside them, too large to bundle
HALF_TOLERANCE = 1e-3  # relative change of FVU up to which half precision will do
CE_ROWS = 48  # rows of 128 tokens for cross-entropy


def configs(kind: str) -> list[TrainingConfig]:
    """Training settings of a family, the bundled members first, then the widest.

    Raises
    ------
    ValueError
        If there is no bundled family of this kind.
    """
    if kind not in MEMBERS:
        raise ValueError(f"There is no bundled family {kind!r}; there are {', '.join(MEMBERS)}.")
    return [
        TrainingConfig(
            variant=ReLU(target_l0=TARGET_L0) if kind == "relu" else BatchTopK(k=K),
            width=width,
            seed=seed,
            steps=STEPS,
            batch_size=BATCH_SIZE,
            # Wider dictionaries need smaller steps: the square-root rule of Gao et al. (2024).
            lr=LEARNING_RATE[kind] * math.sqrt(1152 / width),
            log_every=SNAPSHOT_EVERY,
        )
        for width, seed in (*MEMBERS[kind], (WIDEST, 0))
    ]


def trained_folder(kind: str, train_store: ActivationStore) -> Path:
    """Where `train_families` keeps a family; other settings or data, another folder."""
    settings = [config.describe() for config in configs(kind)]
    return home() / "families" / f"{kind}-{hash_json([settings, train_store.content_hash])[:12]}"


def train_families(*, progress: bool = True) -> dict[str, Path]:
    """Train what is missing of the families, resuming where a run was stopped.

    Dictionaries are trained side by side, one thread each: this is faster than one after the
    other on all cores, and gives the same bits however many cores there are. The widest come
    last.

    Returns
    -------
    dict
        The folder of each kind, to be read by `load_family`.
    """
    stores = embedded_store("train", progress=progress), embedded_store("held-out", progress=progress)
    folders = {kind: trained_folder(kind, stores[0]) for kind in MEMBERS}
    jobs = [
        (config, folder)
        for kind, parent in folders.items()
        for config in configs(kind)
        if not ((folder := _member_folder(parent, config.width, config.seed)) / "dictionary.json").exists()
    ]
    # The longest first, so that no core is left with it at the end.
    jobs.sort(key=lambda job: (job[0].width == WIDEST, -job[0].width))
    total = sum(config.steps * config.batch_size for config, _ in jobs)
    workers = ProcessPoolExecutor(os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn"))
    with (
        workers,
        tqdm(total=total, disable=not progress, unit="token", unit_scale=True, desc="training") as bar,
    ):
        waiting = {
            workers.submit(_train_member, config, folder, *(store.path for store in stores)): config
            for config, folder in jobs
        }
        for done in as_completed(waiting):
            bar.set_postfix_str(done.result())
            bar.update(waiting[done].steps * waiting[done].batch_size)
    return folders


def _member_folder(parent: Path, width: int, seed: int) -> Path:
    return parent / f"{width}-seed{seed}"


def _train_member(config: TrainingConfig, folder: Path, train_path: Path, held_out_path: Path) -> str:
    """Train one dictionary in this process and save it; its name."""
    torch.set_num_threads(1)
    checkpoint = folder / "checkpoint.safetensors"

    def keep_snapshot(dictionary: Dictionary, step: int) -> None:
        write_tensors(folder / "snapshots" / f"{step:07d}.safetensors", {"W_dec": dictionary.W_dec.half()})

    result = train(
        config,
        ActivationStore.open(train_path),
        held_out=ActivationStore.open(held_out_path),
        checkpoint=checkpoint,
        on_log=keep_snapshot,
        progress=False,
    )
    write_bytes(folder / "log.csv", result.log.to_csv(index=False).encode())
    result.dictionary.save(folder)
    checkpoint.unlink()
    return result.dictionary.name


# ---------------------------------------------------------------------- into the package


def bundle(*, progress: bool = True) -> pd.DataFrame:
    """Write the trained members and their tables into the package.

    Matrices are stored in half precision where that changes FVU by less than 0.1 %, in single
    precision otherwise.

    Returns
    -------
    DataFrame
        The table of members, as in `saekit.families.bundled_table`.
    """
    folders = train_families(progress=progress)
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
                | {name: int(log[name].iloc[-1]) for name in ("tokens", "steps") if name in log}
                | {"half_precision_fvu_change": change}
            )
    table = pd.DataFrame(rows)
    members = [member for kind in MEMBERS for member in Family.load(BUNDLED / kind)]
    evaluations = [evaluate(member, held_out) for member in members]
    ce = ce_degradation(load_model(), members, held_out, max_rows=CE_ROWS)
    table["l0"] = [e.l0 for e in evaluations]
    table["fvu"] = [e.fvu for e in evaluations]
    table["dead_fraction"] = [e.dead_fraction for e in evaluations]
    table = table.join(ce.frame[["ce_degradation", "loss_recovered_zero"]])
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
    return load_file(folder / "snapshots" / f"{step:07d}.safetensors")["W_dec"].float()


def _best_cosines(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T).amax(dim=1)
