"""The analyses of the paper, one module each: dictionaries and activations in, results out."""

from saekit.analysis.detection import Detection, detection_test
from saekit.analysis.heads import (
    HeadShares,
    SourceAttribution,
    attribute_to_sources,
    family_of_head,
    head_shares,
)
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
    top_contexts,
    top_tokens,
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
    "AdjacencyOverlap",
    "BestMatches",
    "CECurve",
    "CERebuilt",
    "CodeUniqueness",
    "Context",
    "Contexts",
    "CosineDistributions",
    "Decomposition",
    "Detection",
    "DictionaryComparison",
    "Effects",
    "FamilySimilarity",
    "FamilyUniqueness",
    "Frankenstein",
    "GroupInsertion",
    "HeadShares",
    "Insertion",
    "InsertionComparison",
    "Interval",
    "Labels",
    "LastTokens",
    "LatentActivations",
    "LogitTable",
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
    "TopTokens",
    "Uniqueness",
    "UpstreamAttribution",
    "adjacency_overlap",
    "attribute_to_sources",
    "attribute_upstream",
    "best_matches",
    "build_frankenstein",
    "ce_curve",
    "collect",
    "compare",
    "compare_codes",
    "compare_dictionaries",
    "contexts",
    "cosine_distributions",
    "decomposition",
    "detection_test",
    "explained_variance",
    "family_of_head",
    "family_similarity",
    "family_uniqueness",
    "group_insertion",
    "harvest_last_tokens",
    "head_shares",
    "insert_latents",
    "insertion",
    "label_latents",
    "label_meta_latents",
    "logit_table",
    "match_by_density",
    "match_latents",
    "matched_curve",
    "matched_l0",
    "matching_pursuit",
    "measure_effects",
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
    "probe",
    "random_orders",
    "related_latents",
    "side_by_side",
    "splitting_through_meta",
    "splitting_tree",
    "stitch",
    "stitch_chain",
    "top_contexts",
    "top_tokens",
]
