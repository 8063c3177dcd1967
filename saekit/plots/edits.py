"""Causal edits: what each method causes, what it leaves, and what it damages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.charts import edits as drawing
from saekit.figures import Plot
from saekit.plots.common import made_from

if TYPE_CHECKING:
    from saekit.analysis.edits import Edits


def edits_by_method(result: Edits) -> Plot:
    """Cause against isolation, and against the damage to unrelated text, by method.

    Parameters
    ----------
    result : Edits
        The edits.

    Examples
    --------
    >>> saekit.measure_edits(model, sae, facts, templates, store).plot()  # doctest: +SKIP
    """
    chart = drawing.edits_by_method(result)
    data = chart.data
    best = data.sort_values("disentangle", ascending=False)
    found = "; ".join(
        f"{row.method} ({row.n}) cause {row.cause:.2f}, isolation {row.isolation:.2f}, "
        f"damage {row.damage:.2f}"
        for row in best.itertuples()
    )
    first = best.iloc[0]
    return Plot(
        chart.figure(),
        data,
        caption=f"{chart.caption}. Greatest mean: {first['method']} ({first['n']}), "
        f"{first['disentangle']:.2f}.",
        alt="Scatter of cause against isolation, and against damage. By the mean of cause and isolation: "
        f"{found}.",
        made_from=made_from(result),
    )
