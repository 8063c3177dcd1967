"""saekit: are the latents of sparse autoencoders unique, complete and atomic?"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Names are looked up on first use, so that importing saekit costs nothing and neither
# TransformerLens nor the widgets are loaded before they are needed.
_EXPORTS = {
    "saekit.models": ("load_model",),
    "saekit.formats": ("load_sae", "open_sae"),
    "saekit.formats.writing": ("save_sae",),
    "saekit.releases": ("releases_table",),
    "saekit.corpora": ("pack", "split"),
    "saekit.activations": ("ActivationStore", "harvest"),
    "saekit.checks": ("check_sae",),
    "saekit.dictionary": ("Dictionary",),
    "saekit.families": (
        "Family",
        "bundled_table",
        "convergence_table",
        "kinds_l0_table",
        "kinds_table",
        "load_family",
    ),
    "saekit.embedded": ("embedded_rows", "embedded_store", "figures_folder"),
    "saekit.profiles": ("series", "store_for"),
    "saekit.streaming": ("StreamedActivations",),
    "saekit.variants": ("BatchTopK", "Gated", "JumpReLU", "Matryoshka", "ReLU", "TopK"),
    "saekit.training": ("TrainingConfig", "train"),
    "saekit.metrics": ("ce_degradation", "evaluate"),
    "saekit.analysis": (
        "adjacency_overlap",
        "as_jumprelu",
        "best_matches",
        "ce_curve",
        "ce_insertion",
        "ce_rebuilt",
        "collect",
        "compare",
        "cosine_distributions",
        "decomposition",
        "family_uniqueness",
        "frankenstein",
        "group_insertion",
        "insertion",
        "labels",
        "logit_table",
        "matched_curve",
        "meta_baselines",
        "meta_labels",
        "meta_sae",
        "meta_sweep",
        "multiple_choice",
        "overshoot",
        "pair_statistics",
        "random_orders",
        "related_latents",
        "side_by_side",
        "splitting",
        "splitting_through_meta",
        "splitting_tree",
        "stitch",
        "stitch_chain",
        "uniqueness",
    ),
    "saekit.record": ("provenance",),
    "saekit.widgets": (
        "LatentExplorer",
        "MetaExplorer",
        "NoveltyExplorer",
        "SplittingExplorer",
        "StitchingExplorer",
    ),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = ("figures", "neuronpedia", "plots")

__all__ = ["__version__", *sorted(_HOMES), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"saekit.{name}")
    raise AttributeError(f"module 'saekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
