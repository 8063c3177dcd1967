"""The analyses of the paper, one module each: dictionaries and activations in, results out."""

from saekit.analysis.convert import Conversion, as_jumprelu
from saekit.analysis.frankenstein import Frankenstein, frankenstein
from saekit.analysis.labels import Labels, labels, meta_labels
from saekit.analysis.latents import (
    Context,
    Interval,
    LatentActivations,
    LogitTable,
    collect,
    contexts,
    logit_table,
    top_contexts,
    top_tokens,
)
from saekit.analysis.meta import RECIPES, MetaSAE, Recipe, explained_variance, meta_sae, meta_sweep
from saekit.analysis.meta_baselines import MetaBaselines, matching_pursuit, meta_baselines
from saekit.analysis.mixtures import PairStatistics, pair_statistics
from saekit.analysis.novelty import (
    CEInsertion,
    GroupInsertion,
    Insertion,
    ce_insertion,
    compare,
    group_insertion,
    insertion,
)
from saekit.analysis.overshoot import overshoot
from saekit.analysis.similarity import (
    BestMatches,
    FamilySimilarity,
    best_matches,
    family_similarity,
    nearest,
)
from saekit.analysis.splitting import Splitting, SplittingTree, splitting, splitting_tree
from saekit.analysis.stitching import (
    Move,
    Stitching,
    StitchingChain,
    ce_curve,
    matched_curve,
    matched_l0,
    random_orders,
    stitch,
    stitch_chain,
)
from saekit.analysis.uniqueness import (
    FamilyUniqueness,
    Uniqueness,
    family_uniqueness,
    null_dictionary,
    uniqueness,
)

__all__ = [
    "RECIPES",
    "BestMatches",
    "CEInsertion",
    "Context",
    "Conversion",
    "FamilySimilarity",
    "FamilyUniqueness",
    "Frankenstein",
    "GroupInsertion",
    "Insertion",
    "Interval",
    "Labels",
    "LatentActivations",
    "LogitTable",
    "MetaBaselines",
    "MetaSAE",
    "Move",
    "PairStatistics",
    "Recipe",
    "Splitting",
    "SplittingTree",
    "Stitching",
    "StitchingChain",
    "Uniqueness",
    "as_jumprelu",
    "best_matches",
    "ce_curve",
    "ce_insertion",
    "collect",
    "compare",
    "contexts",
    "explained_variance",
    "family_similarity",
    "family_uniqueness",
    "frankenstein",
    "group_insertion",
    "insertion",
    "labels",
    "logit_table",
    "matched_curve",
    "matched_l0",
    "matching_pursuit",
    "meta_baselines",
    "meta_labels",
    "meta_sae",
    "meta_sweep",
    "nearest",
    "null_dictionary",
    "overshoot",
    "pair_statistics",
    "random_orders",
    "splitting",
    "splitting_tree",
    "stitch",
    "stitch_chain",
    "top_contexts",
    "top_tokens",
    "uniqueness",
]
