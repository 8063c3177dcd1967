"""Causal edits: what each method causes, what it leaves, and what it damages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.charts import edits as drawing
from saekit.figures import Plot
from saekit.plots.common import made_from
from saekit.wording import fixed

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
    most = data.sort_values("cause", ascending=False).groupby("method", sort=False).first()
    found = "; ".join(f"{name} {fixed(row.cause)}" for name, row in most.head(4).iterrows())
    first = best.iloc[0]
    return Plot(
        chart.figure(),
        data,
        caption=f"{chart.caption}. Greatest mean: {first['method']} ({first['n']}), "
        f"{first['disentangle']:.2f}.",
        alt=f"Scatter of cause against isolation, and against damage, for {len(data)} edits. Greatest mean "
        f"of cause and isolation: {first['method']} ({first['n']}), {fixed(first['disentangle'])}; leaving "
        f"everything as it is has 0.50. Greatest cause: {found}.",
        made_from=made_from(result),
    )
