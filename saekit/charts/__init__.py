"""Pictures prepared once from results, and drawn alike on a page (SVG) and in a paper (matplotlib).

A function per picture turns a result into a `Chart`: panels with scales, ticks and marks, the numbers shown
and alternative text. `Chart.svg` and `Chart.figure` draw it.
"""

from saekit.charts.chart import Chart
from saekit.charts.circuits import circuit
from saekit.charts.edits import at_method, edits_by_method
from saekit.charts.histograms import histogram, logit_histogram
from saekit.charts.model import Panel, Scale, scale
from saekit.charts.novelty import insertion_axes, insertion_keys, insertion_panel, roc_at, roc_panel
from saekit.charts.scores import scores
from saekit.charts.stitching import Curve, at_step, stitching_keys, stitching_panels, stitching_scales
from saekit.charts.trees import related_latents, splitting_tree

__all__ = [
    "Chart",
    "Curve",
    "Panel",
    "Scale",
    "at_method",
    "at_step",
    "circuit",
    "edits_by_method",
    "histogram",
    "insertion_axes",
    "insertion_keys",
    "insertion_panel",
    "logit_histogram",
    "related_latents",
    "roc_at",
    "roc_panel",
    "scale",
    "scores",
    "splitting_tree",
    "stitching_keys",
    "stitching_panels",
    "stitching_scales",
]
