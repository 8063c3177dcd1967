"""Headlines of the bundled dictionaries beside dictionaries that learnt nothing.

`saekit baselines` trains the frozen and soft-frozen baselines of the bundled dictionaries of one width,
with their recipe on their text, under `saekit.files.home()`, and resumes. It then measures every
headline of the series on each trained dictionary and each of its baselines, and writes the table into
the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from saekit.activations import ActivationStore
from saekit.analysis import (
    collect,
    detection_test,
    insertion,
    label_latents,
    match_latents,
    meta_sae,
    multiple_choice_test,
)
from saekit.analysis.meta.sae import RECIPES
from saekit.analysis.probing import LastTokens, probe
from saekit.analysis.stitching.path import stitch
from saekit.baselines import SOFT, compare_with_baselines, permuted_decoder, random_at_equal_l0
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import hash_json, home, read_json, source_hash, writable_folder, write_bytes, write_json
from saekit.loading.names import BUNDLED, load_family
from saekit.models import load_model
from saekit.series.bundling import NICENESS, config
from saekit.series.embedded import embedded_store
from saekit.series.probing_grid import harvested
from saekit.training.config import TrainingConfig
from saekit.training.side_by_side import measure as measure_quality
from saekit.training.side_by_side import train_side_by_side

KINDS = ("relu", "batchtopk")
HELD = (1.0, SOFT)  # cosines with their initial directions that decoder rows keep
WIDTH, SMALLER, LARGER = 1152, 576, 2304  # of the baselines, and those that they are compared with
PROBED = (1, 5)  # latents per probe
META_STEPS = 500
WINDOW = 32  # tokens, for detection by labels


def configs() -> list[TrainingConfig]:
    """Training settings of every baseline: those of the bundled dictionary, with the decoder held."""
    return [replace(config(kind, WIDTH, 0), decoder_cosine=cosine) for cosine in HELD for kind in KINDS]


def trained_folder(settings: TrainingConfig, train_store: ActivationStore) -> Path:
    """The folder in which `train_baselines` keeps a dictionary; it depends on settings and data."""
    key = hash_json([settings.describe(), train_store.content_hash])[:12]
    return home() / "baselines" / f"{settings.kind}-{settings.width}-{key}"


def train_baselines(*, progress: bool = True) -> list[Dictionary]:
    """Train the missing baselines, resuming interrupted runs, and read all of them."""
    train_store = embedded_store("train", progress=progress)
    runs = [(settings, trained_folder(settings, train_store)) for settings in configs()]
    held_out = embedded_store("held-out", progress=progress)
    train_side_by_side(runs, train_store, held_out, niceness=NICENESS, progress=progress)
    return [Dictionary.load(folder) for _, folder in runs]


def write_baselines(*, train: bool = True, progress: bool = True) -> pd.DataFrame:
    """Measure the headlines of dictionaries and baselines, and write the table into the package.

    Parameters
    ----------
    train : bool
        Train the frozen and soft-frozen baselines first; without, only those that need no training are
        measured.
    progress : bool
        Show progress bars.

    Returns
    -------
    DataFrame
        One row per dictionary, each trained one followed by its baselines: as `compare_with_baselines`.
    """
    writable_folder(BUNDLED)
    trained = train_baselines(progress=progress) if train else []
    store = embedded_store("held-out", progress=progress)
    sets = [one for one in harvested(progress=progress, kept_out=True) if not one.leaky]
    tables = []
    for kind in KINDS:
        family = load_family(kind)
        dictionary = family[WIDTH]
        held = [one for one in trained if one.kind.startswith(f"{kind}-")]
        baselines = [*held, permuted_decoder(dictionary), random_at_equal_l0(dictionary, store)]
        with tqdm(total=1 + len(baselines), disable=not progress, unit="dictionary", desc=kind) as bar:
            measure = headlines(family, store, sets)

            def kept(sae: Dictionary, measure: Callable = measure, bar: tqdm = bar) -> dict[str, Any]:
                found = _kept(sae, measure)
                bar.update()
                return found

            tables.append(compare_with_baselines(dictionary, baselines, kept))
    table = pd.concat(tables, ignore_index=True)
    write_bytes(BUNDLED / "baselines.csv", table.to_csv(index=False).encode())
    return table


def _kept(sae: Dictionary, measure: Callable[[Dictionary], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before with the same source, or is measured now."""
    file = home() / "baselines" / "measured" / f"{hash_json([sae.content_hash, source_hash()])[:16]}.json"
    if not file.exists():
        write_json(file, measure(sae))
    found: dict[str, Any] = read_json(file)
    return found


def headlines(
    family: Family, store: ActivationStore, sets: list[LastTokens]
) -> Callable[[Dictionary], dict[str, Any]]:
    """A function that measures every headline of the series on a dictionary of one width.

    Novelty and stitching are from the narrower dictionary of the family; uniqueness is against the trained
    dictionary's second seed or, where there is none, the wider dictionary.
    """
    model = load_model()
    small, large = family[SMALLER], family[LARGER]
    other = family.second_seed(WIDTH) or large
    recipe = replace(RECIPES["lesswrong"], steps=META_STEPS)

    def measure(sae: Dictionary) -> dict[str, Any]:
        quality = measure_quality([sae], store, progress=False).iloc[0]
        novel = insertion(small, sae, store).summary
        path = stitch(small, sae, store).summary
        meta = meta_sae(sae, recipe=recipe, held_out_share=0.1)
        collected = collect(sae, store)
        labels = label_latents(sae, collected, store, model.tokenizer)
        choice = multiple_choice_test(meta, labels).summary
        detected = detection_test(sae, collected, store, model.tokenizer, window=WINDOW).summary
        probes = probe(sae, sets, ks=PROBED, dense=False).summary["auc"]
        return {
            **{name: float(quality[name]) for name in ("l0", "fvu", "ce_degradation")},
            "share_novel_cos": novel["share_novel_cos"],
            "share_novel_gain": novel["share_novel_gain"],
            "novel_auc": novel["auc"],
            "fvu_after_insertion": path.get("fvu_insert", path["fvu_small"]),
            "share_lowering": path["share_lowering"],
            "meta_explained": meta.summary["explained_variance"],
            "meta_explained_held_out": meta.summary["explained_variance_held_out"],
            "share_shared": match_latents(sae, other).summary["share_shared"],
            "multiple_choice": choice["accuracy"],
            "multiple_choice_error": choice["standard_error"],
            "multiple_choice_null": choice["accuracy_null"],
            "detection_auc": detected["auc_own"],
            "detection_auc_neighbour": detected["auc_neighbour"],
            **{f"probing_auc_{k}": next(iter(probes.values()))[k] for k in PROBED},
        }

    return measure
