"""saekit: are the latents of sparse autoencoders unique, complete and atomic?"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Names are looked up on first use, so that importing saekit costs nothing and neither
# TransformerLens nor the widgets are loaded before they are needed.
_EXPORTS = {
    "saekit.models": ("load_model",),
    "saekit.loading.names": ("load_family", "load_sae", "open_sae"),
    "saekit.loading.formats.writing": ("save_sae",),
    "saekit.loading.releases": ("releases_table",),
    "saekit.corpora": ("pack", "split"),
    "saekit.activations": ("ActivationStore", "harvest"),
    "saekit.loading.check_sae": ("check_sae",),
    "saekit.dictionary": ("Dictionary",),
    "saekit.family": ("Family",),
    "saekit.series.tables": ("bundled_table", "convergence_table", "kinds_l0_table", "kinds_table"),
    "saekit.series.embedded": ("embedded_rows", "embedded_store", "figures_folder"),
    "saekit.series.profiles": ("load_series", "store_for"),
    "saekit.streaming": ("StreamedActivations",),
    "saekit.training.variants": ("BatchTopK", "Gated", "JumpReLU", "Matryoshka", "ReLU", "TopK"),
    "saekit.training.trainer": ("TrainingConfig", "train"),
    "saekit.metrics": ("ce_degradation", "evaluate"),
    "saekit.convert": ("as_jumprelu",),
    "saekit.analysis": (
        "adjacency_overlap",
        "best_matches",
        "ce_curve",
        "ce_insertion",
        "measure_rebuilt_ce",
        "collect",
        "compare",
        "compare_dictionaries",
        "cosine_distributions",
        "decomposition",
        "family_uniqueness",
        "build_frankenstein",
        "group_insertion",
        "insert_latents",
        "insertion",
        "label_latents",
        "logit_table",
        "matched_curve",
        "matched_l0",
        "meta_baselines",
        "label_meta_latents",
        "meta_sae",
        "meta_sweep",
        "multiple_choice_test",
        "measure_overshoot",
        "pair_statistics",
        "random_orders",
        "related_latents",
        "side_by_side",
        "measure_specificity",
        "measure_splitting",
        "splitting_through_meta",
        "splitting_tree",
        "stitch",
        "stitch_chain",
        "measure_uniqueness",
    ),
    "saekit.provenance": ("provenance_of",),
    "saekit.widgets": (
        "LatentExplorer",
        "MetaExplorer",
        "NoveltyExplorer",
        "SplittingExplorer",
        "StitchingExplorer",
    ),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = ("figures", "plots")
_SHORT = {"neuronpedia": "saekit.loading.neuronpedia"}  # modules that people call by a shorter name

__all__ = ["__version__", *sorted(_HOMES), *_MODULES, *_SHORT]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    home = _SHORT.get(name, f"saekit.{name}")
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name != home:
            raise
    raise AttributeError(f"module 'saekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
