"""The analyses of the paper, one module each: dictionaries and activations in, results out."""

from saekit.analysis.convert import Conversion, as_jumprelu
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
from saekit.analysis.novelty import (
    CEInsertion,
    GroupInsertion,
    Insertion,
    ce_insertion,
    compare,
    group_insertion,
    insertion,
)
from saekit.analysis.similarity import (
    BestMatches,
    FamilySimilarity,
    best_matches,
    family_similarity,
    nearest,
)
from saekit.analysis.splitting import Splitting, SplittingTree, splitting, splitting_tree
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
    "GroupInsertion",
    "Insertion",
    "Interval",
    "LatentActivations",
    "LogitTable",
    "MetaBaselines",
    "MetaSAE",
    "Recipe",
    "Splitting",
    "SplittingTree",
    "Uniqueness",
    "as_jumprelu",
    "best_matches",
    "ce_insertion",
    "collect",
    "compare",
    "contexts",
    "explained_variance",
    "family_similarity",
    "family_uniqueness",
    "group_insertion",
    "insertion",
    "logit_table",
    "matching_pursuit",
    "meta_baselines",
    "meta_sae",
    "meta_sweep",
    "nearest",
    "null_dictionary",
    "splitting",
    "splitting_tree",
    "top_contexts",
    "top_tokens",
    "uniqueness",
]
