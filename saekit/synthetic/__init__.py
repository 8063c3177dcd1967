"""Worlds whose true features are known: activations drawn from given directions and a given firing law.

A `World` is a source of activations like any other: `saekit.train` draws endless fresh samples from it, and
`World.sample` gives a fixed sample, activations and true features, for every analysis that takes a tensor.
"""

from saekit.synthetic.classic import CLASSICS, classic_directions
from saekit.synthetic.presets import (
    PRESETS,
    hedging_tree,
    nabeshima_tree,
    orthogonalise,
    shapes_and_colours,
    synth_sae_bench,
    toy_superposition,
)
from saekit.synthetic.world import BLOCK, Sample, World, draw_probabilities

__all__ = [
    "BLOCK",
    "CLASSICS",
    "PRESETS",
    "Sample",
    "World",
    "classic_directions",
    "draw_probabilities",
    "hedging_tree",
    "nabeshima_tree",
    "orthogonalise",
    "shapes_and_colours",
    "synth_sae_bench",
    "toy_superposition",
]
