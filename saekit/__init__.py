"""Are the latents of sparse autoencoders (SAEs) unique, complete and atomic?

Model and text   load_model, split, pack, Prompts, harvest, ActivationStore, StreamedActivations
SAEs             load_sae, load_family, open_sae, save_sae, Dictionary, Transcoder, Family
Training         train, TrainingConfig, ReLU, Gated, JumpReLU, TopK, BatchTopK, Matryoshka
Checks           evaluate, ce_degradation, measure_rebuilt_ce, check_sae, as_jumprelu
Splitting        best_matches, measure_splitting, splitting_tree, measure_specificity
Novelty          insertion, group_insertion, compare, insert_latents, compare_dictionaries
Stitching        stitch, stitch_chain, random_orders, matched_curve, matched_l0, ce_curve,
                 pair_statistics, measure_overshoot, build_frankenstein, match_by_density
Meta-SAEs        meta_sae, meta_sweep, meta_baselines, decomposition, related_latents,
                 side_by_side, cosine_distributions, adjacency_overlap, splitting_through_meta
Uniqueness       match_latents, measure_uniqueness, compare_codes, measure_substitution,
                 family_uniqueness, measure_shared_subspace, measure_effects, measure_ablation
Lines, maps      cluster_latents, measure_irreducibility, show_clusters, fit_map, measure_maps,
                 carry_dictionary, explain_latents, score_explanations, Endpoint
Worth            World, measure_recovery, measure_hedging, frozen_decoder, soft_frozen_decoder,
                 permuted_decoder, random_at_equal_l0, compare_with_baselines, baselines_table,
                 harvest_last_tokens, LastTokens, probe, ProbingExplorer, WorldExplorer
Latents          collect, logit_table, measure_readability, label_latents, label_meta_latents,
                 multiple_choice_test, detection_test, known_facts, measure_edits, read_text
Circuits, heads  task_accuracy, measure_node_effects, measure_circuit, compare_circuits,
                 head_shares, family_of_head, attribute_upstream, attribute_to_sources
Explorers        explore, build_atlas, collect_evidence, LatentExplorer, SplittingExplorer,
                 NoveltyExplorer, StitchingExplorer, MetaExplorer, CircuitExplorer, EditExplorer
Report, figures  write_report, export_site, plots, figures, figures_folder, provenance_of,
                 provenance_table, neuronpedia, push_to_hub, TensorBoardLogger, WandbLogger
The series       load_series, store_for, embedded_rows, embedded_store, convergence_table,
                 kinds_l0_table, bundled_table, releases_table, probing_table, components_table,
                 circuits_table, kinds_table, facts_table, edits_table, order_table, truth_table

Results have `.summary`, `.plot()`, most `.frame`; modules such as `saekit.corpora` are there.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import Any

__version__ = "0.1.0"

# Threads that spin while they wait starve each other on a machine that others use too; torch reads
# this when it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Names are looked up on first use: importing saekit costs nothing, and neither TransformerLens nor
# the widgets are loaded before they are needed. There is no `__all__`, since with one `help(saekit)`
# would print every docstring of the package.
_EXPORTS = {
    "saekit.models": ("load_model",),
    "saekit.corpora": ("pack", "split"),
    "saekit.activations": ("ActivationStore", "harvest"),
    "saekit.streaming": ("StreamedActivations",),
    "saekit.dictionary": ("Dictionary", "Transcoder"),
    "saekit.family": ("Family",),
    "saekit.loading.names": ("load_family", "load_sae", "open_sae"),
    "saekit.loading.formats.writing": ("save_sae",),
    "saekit.loading.publishing": ("push_to_hub",),
    "saekit.loading.releases": ("releases_table",),
    "saekit.loading.check_sae": ("check_sae",),
    "saekit.training.variants": ("BatchTopK", "Gated", "JumpReLU", "Matryoshka", "ReLU", "TopK"),
    "saekit.training.config": ("TrainingConfig",),
    "saekit.training.loggers": ("TensorBoardLogger", "WandbLogger"),
    "saekit.training.trainer": ("train",),
    "saekit.metrics": ("ce_degradation", "evaluate"),
    "saekit.convert": ("as_jumprelu",),
    "saekit.baselines": (
        "compare_with_baselines",
        "frozen_decoder",
        "permuted_decoder",
        "random_at_equal_l0",
        "soft_frozen_decoder",
    ),
    "saekit.analysis": (
        "adjacency_overlap",
        "attribute_to_sources",
        "attribute_upstream",
        "best_matches",
        "build_frankenstein",
        "carry_dictionary",
        "ce_curve",
        "cluster_latents",
        "collect",
        "compare",
        "compare_circuits",
        "compare_codes",
        "compare_dictionaries",
        "cosine_distributions",
        "decomposition",
        "detection_test",
        "Endpoint",
        "explain_latents",
        "family_of_head",
        "family_uniqueness",
        "fit_map",
        "group_insertion",
        "harvest_last_tokens",
        "head_shares",
        "insert_latents",
        "insertion",
        "known_facts",
        "label_latents",
        "label_meta_latents",
        "LastTokens",
        "logit_table",
        "match_by_density",
        "match_latents",
        "matched_curve",
        "matched_l0",
        "measure_ablation",
        "measure_circuit",
        "measure_edits",
        "measure_effects",
        "measure_irreducibility",
        "measure_maps",
        "measure_node_effects",
        "measure_overshoot",
        "measure_readability",
        "measure_rebuilt_ce",
        "measure_shared_subspace",
        "measure_specificity",
        "measure_splitting",
        "measure_substitution",
        "measure_uniqueness",
        "meta_baselines",
        "meta_sae",
        "meta_sweep",
        "multiple_choice_test",
        "pair_statistics",
        "probe",
        "random_orders",
        "read_text",
        "related_latents",
        "score_explanations",
        "show_clusters",
        "side_by_side",
        "splitting_through_meta",
        "splitting_tree",
        "stitch",
        "stitch_chain",
        "task_accuracy",
    ),
    "saekit.synthetic": ("World",),
    "saekit.recovery": ("measure_recovery",),
    "saekit.analysis.hedging": ("measure_hedging",),
    "saekit.figures": ("figures_folder",),
    "saekit.report.report": ("write_report",),
    "saekit.site.export": ("export_site",),
    "saekit.provenance": ("provenance_of", "provenance_table"),
    "saekit.prompts": ("Prompts",),
    "saekit.widgets": (
        "build_atlas",
        "CircuitExplorer",
        "collect_evidence",
        "EditExplorer",
        "explore",
        "LatentExplorer",
        "MetaExplorer",
        "NoveltyExplorer",
        "ProbingExplorer",
        "SplittingExplorer",
        "StitchingExplorer",
        "WorldExplorer",
    ),
    "saekit.series.embedded": ("embedded_rows", "embedded_store"),
    "saekit.series.profiles": ("load_series", "store_for"),
    "saekit.series.tables": (
        "baselines_table",
        "components_table",
        "edits_table",
        "bundled_table",
        "circuits_table",
        "convergence_table",
        "facts_table",
        "kinds_l0_table",
        "kinds_table",
        "order_table",
        "probing_table",
        "truth_table",
    ),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}
_SHORT = {"neuronpedia": "saekit.loading.neuronpedia"}  # modules that people call by a shorter name


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
    modules = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return sorted({"__version__", *_HOMES, *_SHORT, *modules})
