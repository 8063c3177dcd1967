"""Dictionaries of parts of a block: transcoders of its MLP, and SAEs of its attention heads.

`saekit components` harvests both places, trains the dictionaries below under `saekit.files.home()`,
resuming, and adds those that the package lacks to it, with the table of their quality.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.files import hash_json, home, writable_folder, write_bytes
from saekit.loading.names import BUNDLED
from saekit.series.bundling import BATCH_SIZE, config
from saekit.series.embedded import embedded_store
from saekit.training.config import TrainingConfig
from saekit.training.side_by_side import measure, train_side_by_side

TOKENS = {"train": 2_000_000, "held-out": 30_000}
STEPS = 8_000


@dataclass(frozen=True)
class Component:
    """A place in the model, and the dictionaries that are trained there.

    Attributes
    ----------
    hook_point : str
        Where activations are encoded.
    target : str or None
        Where those are that transcoders predict.
    members : tuple of (int, int)
        Width and seed of each dictionary.
    skip : bool
        Whether transcoders have a skip connection.
    bundled : bool
        Whether the package holds the dictionaries, and not only their rows of the table.
    """

    hook_point: str
    target: str | None
    members: tuple[tuple[int, int], ...]
    skip: bool = False
    bundled: bool = True

    def store(self, part: str, *, progress: bool = False) -> ActivationStore:
        """Activations there: `"train"` or `"held-out"`, as `embedded_store`."""
        return embedded_store(
            part,
            hook_point=self.hook_point,
            target=self.target,
            n_tokens=TOKENS[part],
            progress=progress,
        )

    def configs(self) -> list[TrainingConfig]:
        """Training settings of each dictionary: the recipe of the bundled BatchTopK SAEs, on fewer steps."""
        return [
            replace(config("batchtopk", width, seed), steps=STEPS, log_every=STEPS // 4, skip=self.skip)
            for width, seed in self.members
        ]


MLP = ("blocks.12.mlp.hook_in", "blocks.12.hook_mlp_out")
COMPONENTS = {
    "transcoder": Component(*MLP, ((576, 0), (576, 1), (1152, 0))),
    "skip-transcoder": Component(*MLP, ((576, 0), (1152, 0)), skip=True, bundled=False),
    "attention": Component("blocks.12.attn.hook_z", None, ((576, 0), (1152, 0))),
}


def train_component(name: str, *, progress: bool = True) -> list[Path]:
    """Train the missing dictionaries of a component; the folder of each."""
    component = COMPONENTS[name]
    store = component.store("train", progress=progress)
    configs = component.configs()
    key = hash_json([configs[0].describe(), store.content_hash])[:12]
    parent = home() / "components" / f"{name}-{key}"
    runs = [(settings, parent / f"{settings.width}-seed{settings.seed}") for settings in configs]
    held_out = component.store("held-out", progress=progress)
    train_side_by_side(runs, store, held_out, progress=progress)
    return [folder for _, folder in runs]


def write_components(*, progress: bool = True) -> pd.DataFrame:
    """Train every component, add the dictionaries to the package that it lacks, and write the table.

    Returns
    -------
    DataFrame
        The table, as in `saekit.series.tables.components_table`.
    """
    writable_folder(BUNDLED)
    tables = []
    for name, component in COMPONENTS.items():
        folders = train_component(name, progress=progress)
        members = [Dictionary.load(folder) for folder in folders]
        for member, folder in zip(members, folders, strict=True):
            place = BUNDLED / name / folder.name
            if component.bundled and not (place / "dictionary.json").exists():
                member.save(place, half=True)
        rows = pd.DataFrame(
            {"component": name, "width": member.width, "seed": member.seed, "tokens": STEPS * BATCH_SIZE}
            for member in members
        )
        held_out = component.store("held-out", progress=progress)
        tables.append(rows.join(measure(members, held_out, progress=progress)))
    table = pd.concat(tables, ignore_index=True)
    write_bytes(BUNDLED / "components.csv", table.to_csv(index=False).encode())
    return table
