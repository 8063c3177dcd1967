"""Circuits of every bundled SAE, on each task that the embedded model can do.

`saekit circuits` measures effects and circuits through all members of the bundled families and along a
stitching curve of each, and writes four tables into the package: what the model can do, the circuits by size
beside random sets of nodes, the dictionaries, and what novel latents have in common with the errors of a
narrower dictionary. Each task and kind is kept under `saekit.files.home()`, so a rerun resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from saekit.activations import ActivationStore
from saekit.analysis.effects.circuits import (
    ERRORS,
    compare_circuits,
    compare_errors,
)
from saekit.analysis.effects.metrics import TaskAccuracy, task_accuracy
from saekit.analysis.effects.nodes import NodeEffects
from saekit.analysis.similarity import best_matches
from saekit.analysis.stitching.path import stitch
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import hash_json, home, writable_folder, write_bytes
from saekit.identity import Identity
from saekit.loading.names import BUNDLED, load_family
from saekit.models import load_model
from saekit.prompts import TASKS, Prompts
from saekit.series.embedded import embedded_store
from saekit.series.tables import CIRCUITS as TABLES

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("relu", "batchtopk")
PAIR = (1152, 2304)  # to stitch
THETA = 0.7
TRIED, PROMPTS = 48, 8  # pairs per task that the model is tried on, and that circuits are measured on
ABLE = 0.9  # lower bound of the accuracy from which the model can do a task
METHOD, STEPS = "integrated", 5
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RANDOM_SETS = 1  # per prompt and size
RANDOM_DRAWS = 5  # of as many latents as are novel
FEW = ("nodes", "mean")  # treatments of errors for further seeds and stitched dictionaries
TRAINED = "trained"
SHARES = tuple(
    f"{name}{bound}"
    for name in ("faithfulness", "completeness", "random_faithfulness", "random_completeness")
    for bound in ("", "_low", "_high")
)


class Measured(NamedTuple):
    """A dictionary whose circuits are measured.

    Attributes
    ----------
    dictionary : Dictionary
        The dictionary.
    stage : str
        `"trained"`, or how far it is stitched.
    whole : bool
        Whether every treatment of errors is measured, with random sets.
    """

    dictionary: Dictionary
    stage: str
    whole: bool


def able_prompts(model: TransformerBridge) -> tuple[dict[str, TaskAccuracy], dict[str, Prompts]]:
    """How well the model does each task, and prompts that it answers right, of tasks that it can do.

    Parameters
    ----------
    model : TransformerBridge
        The model.
    """
    accuracies, able = {}, {}
    for name, task in TASKS.items():
        tried = task(model.tokenizer, TRIED)
        accuracies[name] = task_accuracy(model, tried)
        if accuracies[name].summary["accuracy_low"] > ABLE:
            right = accuracies[name].frame["correct"].to_numpy()
            able[name] = tried.select(right).select(range(PROMPTS))
    return accuracies, able


def measured(family: Family, store: ActivationStore) -> Iterator[Measured]:
    """Every dictionary of a family, and steps of the stitching curve between two of its widths.

    Parameters
    ----------
    family : Family
        The family.
    store : ActivationStore
        Activations to stitch on; the order of moves depends on directions alone, so a few are used.
    """
    for width in family.widths:
        for number, seed in enumerate(family.seeds(width)):
            yield Measured(family.get(width, seed), TRAINED, number == 0)
    small, large = (family[width] for width in PAIR)
    stitching = stitch(small, large, next(store.batches(2048))[1], theta=THETA)
    last = stitching.phases.set_index("phase")["last_step"]
    inserted, swapped = int(last["insert"]), int(last["swap"])
    for stage, step in (
        ("novel latents inserted", inserted),
        ("half of the groups swapped", (inserted + swapped) // 2),
    ):
        yield Measured(stitching.dictionary(step), stage, False)


def write_circuits(*, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Measure every circuit of the grid, and write the tables into the package.

    Parameters
    ----------
    progress : bool
        Show a progress bar in dictionaries.

    Returns
    -------
    dict
        The tables by name, as `circuits_table`.
    """
    writable_folder(BUNDLED)
    model, store = load_model(), embedded_store("held-out", progress=progress)
    accuracies, able = able_prompts(model)
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    found["accuracy"] = [
        pd.DataFrame([{"task": name} | result.summary for name, result in accuracies.items()])
    ]
    for task, prompts in able.items():
        for kind in KINDS:
            family = load_family(kind)
            hashes = [member.content_hash for member in family]
            key = hash_json(
                [hashes, prompts.tokens.tolist(), METHOD, STEPS, SIZES, RANDOM_SETS, RANDOM_DRAWS]
            )
            folder = home() / "circuits" / f"{task}-{kind}-{key[:12]}"
            if not all((folder / f"{name}.csv").exists() for name in TABLES[1:]):
                for name, table in _one(model, family, prompts, store, progress=progress).items():
                    table.insert(0, "task", task)
                    _write(folder / f"{name}.csv", table)
            for name in TABLES[1:]:
                found[name].append(pd.read_csv(folder / f"{name}.csv"))
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}
    for name, table in tables.items():
        _write(BUNDLED / f"circuits_{name}.csv", table)
    return tables


def _write(file: Path, table: pd.DataFrame) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, table.to_csv(index=False, float_format="%.4g").encode())


def _one(
    model: TransformerBridge, family: Family, prompts: Prompts, store: ActivationStore, *, progress: bool
) -> dict[str, pd.DataFrame]:
    """The tables of one task and kind."""
    curves, dictionaries, effects = [], [], {}
    every = list(measured(family, store))
    for one in tqdm(every, disable=not progress, unit="SAE", desc=f"{prompts.name}, {family.kind}"):
        compared = compare_circuits(
            model,
            {one.dictionary.name: one.dictionary},
            prompts,
            method=METHOD,
            steps=STEPS,
            errors=ERRORS if one.whole else FEW,
            sizes=SIZES,
            random_sets=RANDOM_SETS if one.whole else 0,
        )
        ((_, effects[one.dictionary.identity]),) = compared.effects.items()
        label = {"kind": family.kind, "width": one.dictionary.width}
        label |= {"seed": one.dictionary.seed if one.stage == TRAINED else -1, "stage": one.stage}
        columns = ["n_nodes", "n_latents", "n_errors", *SHARES]
        for (_, errors), circuit in compared.circuits.items():
            curves.append(
                circuit.frame.reindex(columns=columns).assign(**label, errors=errors)[
                    [*label, "errors", *columns]
                ]
            )
        row = compared.frame.drop(columns=["name", "width"])
        dictionaries.append(row.assign(**label)[[*label, *row.columns]])
    return {
        "curves": pd.concat(curves, ignore_index=True),
        "dictionaries": pd.concat(dictionaries, ignore_index=True),
        "carriers": _carriers(family, effects),
    }


def _carriers(family: Family, effects: Mapping[Identity, NodeEffects]) -> pd.DataFrame:
    """Parts of the large dictionary beside the small one's error, with as many random latents as novel."""
    rows = []
    for pair in family.comparisons():
        small, large = (effects[one.identity] for one in (pair.small, pair.large))
        novel = best_matches(pair.small, pair.large).cosine < THETA
        found = [compare_errors(small, large, novel, method=METHOD).table.assign(draw=-1)]
        for draw in range(RANDOM_DRAWS):
            chosen = np.random.default_rng(draw).permutation(len(novel))[: int(novel.sum())]
            table = compare_errors(small, large, np.sort(chosen), method=METHOD).table
            found.append(table.loc[["novel"]].rename({"novel": "random"}).assign(draw=draw))
        label = {
            "kind": family.kind,
            "comparison": pair.label,
            "null": pair.null,
            "n_novel": int(novel.sum()),
        }
        rows.append(pd.concat(found).reset_index().assign(**label))
    table = pd.concat(rows, ignore_index=True)
    first = ["kind", "comparison", "null", "n_novel", "part", "draw"]
    return table[[*first, *table.columns.drop(first)]]
