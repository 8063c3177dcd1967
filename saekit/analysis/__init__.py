"""The analyses of the paper, one module each: dictionaries and activations in, results out."""

from saekit.analysis.ablation import Ablation, measure_ablation
from saekit.analysis.detection import Detection, detection_test
from saekit.analysis.edits import Edits, known_facts, measure_edits
from saekit.analysis.effects.circuits import (
    Circuit,
    CircuitComparison,
    ErrorCarriers,
    compare_circuits,
    compare_errors,
    measure_circuit,
)
from saekit.analysis.effects.metrics import TaskAccuracy, task_accuracy
from saekit.analysis.effects.nodes import NodeEffects, measure_node_effects
from saekit.analysis.explain import (
    Endpoint,
    EndpointError,
    Explanations,
    ExplanationScores,
    explain_latents,
    score_explanations,
)
from saekit.analysis.heads import (
    HeadShares,
    SourceAttribution,
    attribute_to_sources,
    family_of_head,
    head_shares,
)
from saekit.analysis.irreducibility.clusters import LatentClusters, cluster_latents, shuffled_clusters
from saekit.analysis.irreducibility.measure import Irreducibility, cluster_points, measure_irreducibility
from saekit.analysis.irreducibility.panels import ClusterPanels, show_clusters
from saekit.analysis.irreducibility.scores import plane_scores
from saekit.analysis.irreducibility.words import CircularOrder, latents_about, measure_circular_order
from saekit.analysis.labels import Labels, label_latents, label_meta_latents
from saekit.analysis.latents import (
    Context,
    Contexts,
    Interval,
    LatentActivations,
    LogitTable,
    TopTokens,
    collect,
    contexts,
    logit_table,
    row_contexts,
    top_contexts,
    top_tokens,
)
from saekit.analysis.maps import (
    ActivationMap,
    Maps,
    carry_dictionary,
    fit_map,
    measure_maps,
    random_map,
)
from saekit.analysis.meta.adjacency import AdjacencyOverlap, adjacency_overlap
from saekit.analysis.meta.baselines import MetaBaselines, matching_pursuit, meta_baselines
from saekit.analysis.meta.ce_rebuilt import CERebuilt, measure_rebuilt_ce
from saekit.analysis.meta.latents import (
    CosineDistributions,
    Decomposition,
    Members,
    MetaSplitting,
    RelatedLatents,
    SideBySide,
    cosine_distributions,
    decomposition,
    members,
    related_latents,
    side_by_side,
    splitting_through_meta,
)
from saekit.analysis.meta.multiple_choice import MultipleChoice, multiple_choice_test
from saekit.analysis.meta.sae import (
    RECIPES,
    MetaSAE,
    MetaSweep,
    Recipe,
    explained_variance,
    meta_sae,
    meta_sweep,
)
from saekit.analysis.novelty import (
    GroupInsertion,
    Insertion,
    InsertionComparison,
    compare,
    group_insertion,
    insertion,
)
from saekit.analysis.nulls import null_dictionary
from saekit.analysis.own_text import TextReading, read_text
from saekit.analysis.probing import LastTokens, Probing, harvest_last_tokens, probe
from saekit.analysis.readability import Readability, measure_readability
from saekit.analysis.similarity import (
    BestMatches,
    FamilySimilarity,
    best_matches,
    family_similarity,
    nearest,
)
from saekit.analysis.specificity import Specificity, measure_specificity
from saekit.analysis.splitting import Splitting, SplittingTree, measure_splitting, splitting_tree
from saekit.analysis.stitching.controls import (
    CECurve,
    MatchedCurve,
    MatchedL0,
    RandomOrders,
    ce_curve,
    matched_curve,
    matched_l0,
    random_orders,
)
from saekit.analysis.stitching.frankenstein import Frankenstein, build_frankenstein
from saekit.analysis.stitching.groups import (
    DictionaryComparison,
    compare_dictionaries,
    insert_latents,
    match_by_density,
)
from saekit.analysis.stitching.mixtures import Mixtures, PairStatistics, Streamed, pair_statistics
from saekit.analysis.stitching.overshoot import Overshoot, measure_overshoot
from saekit.analysis.stitching.path import (
    Move,
    Stitching,
    StitchingChain,
    stitch,
    stitch_chain,
)
from saekit.analysis.uniqueness.codes import CodeUniqueness, compare_codes
from saekit.analysis.uniqueness.effects import Effects, measure_effects
from saekit.analysis.uniqueness.families import FamilyUniqueness, family_uniqueness
from saekit.analysis.uniqueness.matching import Matching, match_latents
from saekit.analysis.uniqueness.seeds import Uniqueness, measure_uniqueness
from saekit.analysis.uniqueness.subspaces import SharedSubspace, measure_shared_subspace
from saekit.analysis.uniqueness.substitution import Substitution, measure_substitution
from saekit.analysis.upstream import UpstreamAttribution, attribute_upstream

__all__ = [
    "RECIPES",
    "Ablation",
    "ActivationMap",
    "AdjacencyOverlap",
    "BestMatches",
    "CECurve",
    "CERebuilt",
    "Circuit",
    "CircuitComparison",
    "CircularOrder",
    "ClusterPanels",
    "CodeUniqueness",
    "Context",
    "Contexts",
    "CosineDistributions",
    "Decomposition",
    "Detection",
    "DictionaryComparison",
    "Edits",
    "Effects",
    "Endpoint",
    "EndpointError",
    "ErrorCarriers",
    "ExplanationScores",
    "Explanations",
    "FamilySimilarity",
    "FamilyUniqueness",
    "Frankenstein",
    "GroupInsertion",
    "HeadShares",
    "Insertion",
    "InsertionComparison",
    "Interval",
    "Irreducibility",
    "Labels",
    "LastTokens",
    "LatentActivations",
    "LatentClusters",
    "LogitTable",
    "Maps",
    "MatchedCurve",
    "MatchedL0",
    "Matching",
    "Members",
    "MetaBaselines",
    "MetaSAE",
    "MetaSplitting",
    "MetaSweep",
    "Mixtures",
    "Move",
    "MultipleChoice",
    "NodeEffects",
    "Overshoot",
    "PairStatistics",
    "Probing",
    "RandomOrders",
    "Readability",
    "Recipe",
    "RelatedLatents",
    "SharedSubspace",
    "SideBySide",
    "SourceAttribution",
    "Specificity",
    "Splitting",
    "SplittingTree",
    "Stitching",
    "StitchingChain",
    "Streamed",
    "Substitution",
    "TaskAccuracy",
    "TextReading",
    "TopTokens",
    "Uniqueness",
    "UpstreamAttribution",
    "adjacency_overlap",
    "attribute_to_sources",
    "attribute_upstream",
    "best_matches",
    "build_frankenstein",
    "carry_dictionary",
    "ce_curve",
    "cluster_latents",
    "cluster_points",
    "collect",
    "compare",
    "compare_circuits",
    "compare_codes",
    "compare_dictionaries",
    "compare_errors",
    "contexts",
    "cosine_distributions",
    "decomposition",
    "detection_test",
    "explain_latents",
    "explained_variance",
    "family_of_head",
    "family_similarity",
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
    "latents_about",
    "logit_table",
    "match_by_density",
    "match_latents",
    "matched_curve",
    "matched_l0",
    "matching_pursuit",
    "measure_ablation",
    "measure_circuit",
    "measure_circular_order",
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
    "members",
    "meta_baselines",
    "meta_sae",
    "meta_sweep",
    "multiple_choice_test",
    "nearest",
    "null_dictionary",
    "pair_statistics",
    "plane_scores",
    "probe",
    "random_map",
    "random_orders",
    "read_text",
    "related_latents",
    "row_contexts",
    "score_explanations",
    "show_clusters",
    "shuffled_clusters",
    "side_by_side",
    "splitting_through_meta",
    "splitting_tree",
    "stitch",
    "stitch_chain",
    "task_accuracy",
    "top_contexts",
    "top_tokens",
]
