"""Pictures prepared once from results, and drawn alike on a page (SVG) and in a paper (matplotlib).

A function per picture turns a result into a `Chart`: panels with scales, ticks and marks, the numbers shown
and alternative text. `Chart.svg` and `Chart.figure` draw it.
"""

from saekit.charts.chart import Chart
from saekit.charts.histograms import histogram, logit_histogram
from saekit.charts.model import Panel, Scale, scale

__all__ = ["Chart", "Panel", "Scale", "histogram", "logit_histogram", "scale"]
