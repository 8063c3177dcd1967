"""Training runs side by side, and measurements of the resulting dictionaries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.files import writable_folder, write_bytes, write_tensors
from saekit.metrics import ce_degradation, evaluate
from saekit.models import load_model
from saekit.training.config import TrainingConfig
from saekit.training.trainer import before_decay, train
from saekit.workers import in_processes

CE_ROWS = 32  # rows of 128 tokens for cross-entropy


def train_side_by_side(
    runs: Sequence[tuple[TrainingConfig, Path]],
    train_store: ActivationStore,
    held_out: ActivationStore,
    *,
    snapshots: bool = False,
    niceness: int = 0,
    progress: bool = True,
) -> None:
    """Train the missing dictionaries in processes of one thread each, and resume interrupted runs.

    This is faster than one run after the other on all cores, and gives the same bits however many
    cores there are. A run that fails or is killed does not stop the others. An interrupt reaches every
    run, and each saves its state.

    Parameters
    ----------
    runs : sequence of (TrainingConfig, Path)
        The settings of each run and the folder for its dictionary and `log.csv`, in starting order. A
        folder that already holds a dictionary is left as it is.
    train_store, held_out : ActivationStore
        Activations to train on, and those on which the log is measured.
    snapshots : bool
        Keep the decoder at every row of the log, in half precision, as `snapshots/<step>`.
    niceness : int
        Priority of the processes, as for the command `nice`.
    progress : bool
        Show a progress bar in tokens, which moves when a run ends.
    """
    missing = [(config, folder) for config, folder in runs if not (folder / "dictionary.json").exists()]
    if not missing:
        return
    for _, folder in missing:
        writable_folder(folder)
    total = sum(config.steps * config.batch_size for config, _ in missing)
    with tqdm(total=total, disable=not progress, unit="token", unit_scale=True, desc="training") as bar:

        def show(position: int, name: str) -> None:
            config, _ = missing[position]
            bar.set_postfix_str(name)
            bar.update(config.steps * config.batch_size)

        in_processes(
            _run,
            [(config, folder, train_store.path, held_out.path, snapshots) for config, folder in missing],
            names=[f"the run {folder.name}" for _, folder in missing],
            workers=os.cpu_count() or 1,
            niceness=niceness,
            on_end=show,
        )


def _run(config: TrainingConfig, folder: Path, train_path: Path, held_out_path: Path, snapshots: bool) -> str:
    """Train one dictionary in this process and save it; return its name."""
    checkpoint = folder / "checkpoint.safetensors"

    def keep_snapshot(dictionary: Dictionary, step: int) -> None:
        write_tensors(snapshot_path(folder, step), {"W_dec": dictionary.W_dec.half()})

    result = train(
        config,
        ActivationStore.open(train_path),
        held_out=ActivationStore.open(held_out_path),
        checkpoint=checkpoint,
        on_log=keep_snapshot if snapshots else None,
        progress=False,
    )
    write_bytes(folder / "log.csv", result.log.to_csv(index=False).encode())
    result.dictionary.save(folder)
    for file in (checkpoint, before_decay(checkpoint), checkpoint.with_suffix(".csv")):
        file.unlink()
    return result.dictionary.name


def snapshot_path(folder: Path, step: int) -> Path:
    """File in which a run keeps its decoder at this step."""
    return folder / "snapshots" / f"{step:07d}.safetensors"


def measure(
    dictionaries: Sequence[Dictionary], held_out: ActivationStore, *, progress: bool = True
) -> pd.DataFrame:
    """Sparsity and quality of dictionaries of the embedded model on held-out tokens.

    Returns
    -------
    DataFrame
        One row per dictionary: `l0`, `fvu`, `dead_fraction`, `ce_degradation` and
        `loss_recovered_zero`, as in `saekit.metrics`; cross-entropy is over `CE_ROWS` rows.
    """
    evaluations = [evaluate(dictionary, held_out) for dictionary in dictionaries]
    ce = ce_degradation(
        load_model(), dictionaries, held_out, max_rows=CE_ROWS, everywhere=False, progress=progress
    )
    table = pd.DataFrame(
        {name: getattr(evaluation, name) for name in ("l0", "fvu", "dead_fraction")}
        for evaluation in evaluations
    )
    return table.join(ce.frame[["ce_degradation", "loss_recovered_zero"]])
