"""Edits of facts about cities and countries, by latents of bundled SAEs of either kind and several widths.

`saekit edits` measures them beside neurons, principal components and random directions, and writes a table
into the package. Each dictionary is kept under `saekit.files.home()`, so a rerun resumes.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from saekit.analysis.edits import measure_edits
from saekit.files import hash_json, home, writable_folder, write_bytes
from saekit.loading.names import BUNDLED, load_family
from saekit.models import load_model
from saekit.series.embedded import embedded_store
from saekit.series.facts import TEMPLATES
from saekit.series.tables import facts_table

KINDS, WIDTHS = ("relu", "batchtopk"), (1152, 9216)
SIZES = (2, 8, 32)  # components to swap
PAIRS = 8  # of a base and a source
TEXT_ROWS = 4  # on which damage is measured


def editable_facts(entities: str) -> pd.DataFrame:
    """The facts of entities of which the embedded model knows every one.

    Parameters
    ----------
    entities : {"city", "country"}
        What the entities are.
    """
    facts = facts_table()
    facts = facts[facts["kind"] == entities]
    return facts[facts.groupby("entity")["known"].transform("all")]


def write_edits(*, progress: bool = True) -> pd.DataFrame:
    """Measure the edits of every dictionary of the grid, and write the table into the package.

    Parameters
    ----------
    progress : bool
        Show a progress bar in dictionaries.

    Returns
    -------
    DataFrame
        As `saekit.series.tables.edits_table`.
    """
    writable_folder(BUNDLED)
    model, store = load_model(), embedded_store("held-out", progress=progress)
    parts = []
    for entities, kind, width in tqdm([*product(TEMPLATES, KINDS, WIDTHS)], disable=not progress, unit="SAE"):
        dictionary, facts = load_family(kind)[width], editable_facts(entities)
        prompts = {attribute: several[0] for attribute, several in TEMPLATES[entities].items()}
        settings: dict[str, Any] = {"sizes": SIZES, "n_pairs": PAIRS, "n_text": TEXT_ROWS}
        key = hash_json([dictionary.content_hash, facts.to_dict("list"), prompts, settings])
        file = home() / "edits" / f"{entities}-{kind}-{width}-{key[:12]}.csv"
        if not file.exists():
            edits = measure_edits(model, dictionary, facts, prompts, store, **settings)
            label = {"entities": entities, "kind": kind, "width": width}
            label |= {"n_entities": len(edits.entities), "n_pairs": edits.summary["n_pairs"]}
            table = edits.table.assign(**label)[[*label, *edits.table.columns]]
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, table.to_csv(index=False, float_format="%.4g").encode())
        parts.append(pd.read_csv(file))
    table = pd.concat(parts, ignore_index=True)
    write_bytes(BUNDLED / "edits.csv", table.to_csv(index=False).encode())
    return table
