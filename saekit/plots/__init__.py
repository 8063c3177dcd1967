"""One function per figure: results in, a figure with its numbers, caption and alt text out.

Nothing is computed here that a result does not hold, except for histograms. Captions and alt texts
state the numbers of the data that they are given.
"""

from saekit.plots.baselines import baseline_dots
from saekit.plots.comparison import group_comparison
from saekit.plots.components import head_shares, source_attribution, upstream_attribution
from saekit.plots.edits import edits_by_method
from saekit.plots.effects import (
    circuits_by_dictionary,
    circuits_by_width,
    effects_agreement,
    faithfulness_curves,
)
from saekit.plots.ground_truth import hedging_scatter, overshoot_parts_bars, recovery_by_width
from saekit.plots.irreducibility import cluster_panels, word_circles
from saekit.plots.maps import map_bars, map_pairs
from saekit.plots.meta import (
    active_meta_latents,
    meta_baselines,
    meta_cosines,
    meta_splitting,
    meta_sweep,
    related_latents,
    side_by_side,
)
from saekit.plots.novelty import group_insertion_bars, insertion_scatter, roc
from saekit.plots.panels import compose
from saekit.plots.probing import probing_curves
from saekit.plots.seeds import code_uniqueness, fingerprints, recurrence, shared_subspace, substitution_curve
from saekit.plots.splitting import max_cosine_distribution, splitting_flow, splitting_tree_plot
from saekit.plots.stitching import (
    additivity,
    frankenstein,
    stitching_chain,
    stitching_curve,
    stitching_orders,
)
from saekit.plots.training import (
    activation_norms,
    active_histogram,
    convergence,
    density_histogram,
    frontier,
    kinds_frontier,
    training_curves,
)
from saekit.plots.uniqueness import uniqueness_by_density, uniqueness_distributions, unmatched_curve

__all__ = [
    "activation_norms",
    "active_histogram",
    "active_meta_latents",
    "additivity",
    "baseline_dots",
    "circuits_by_dictionary",
    "circuits_by_width",
    "cluster_panels",
    "code_uniqueness",
    "compose",
    "convergence",
    "density_histogram",
    "edits_by_method",
    "effects_agreement",
    "faithfulness_curves",
    "fingerprints",
    "frankenstein",
    "frontier",
    "group_comparison",
    "group_insertion_bars",
    "head_shares",
    "hedging_scatter",
    "insertion_scatter",
    "kinds_frontier",
    "map_bars",
    "map_pairs",
    "max_cosine_distribution",
    "meta_baselines",
    "meta_cosines",
    "meta_splitting",
    "meta_sweep",
    "overshoot_parts_bars",
    "probing_curves",
    "recovery_by_width",
    "recurrence",
    "related_latents",
    "roc",
    "shared_subspace",
    "side_by_side",
    "source_attribution",
    "splitting_flow",
    "splitting_tree_plot",
    "stitching_chain",
    "stitching_curve",
    "stitching_orders",
    "substitution_curve",
    "training_curves",
    "uniqueness_by_density",
    "uniqueness_distributions",
    "unmatched_curve",
    "upstream_attribution",
    "word_circles",
]
