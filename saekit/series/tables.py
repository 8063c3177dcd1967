"""Tables of the series: the bundled families, and a comparison of every kind of SAE."""

from __future__ import annotations

import pandas as pd

from saekit.loading.names import BUNDLED


def bundled_table() -> pd.DataFrame:
    """The bundled dictionaries: one row for each, as measured when they were bundled.

    Returns
    -------
    DataFrame
        `kind`, `width`, `seed`, `tokens` and `steps` of training, on the embedded held-out tokens
        `l0`, `fvu`, `dead_fraction`, `ce_degradation`, `loss_recovered_zero`, and
        `half_precision_fvu_change`, the relative change of FVU due to half precision.

    Examples
    --------
    >>> saekit.bundled_table()[["kind", "width", "seed"]].head(2)
       kind  width  seed
    0  relu    576     0
    1  relu   1152     0
    """
    return pd.read_csv(BUNDLED / "members.csv")


def convergence_table() -> pd.DataFrame:
    """How far training had converged: seed overlap and FVU over steps, see `bundling.convergence`.

    Examples
    --------
    >>> saekit.convergence_table()["kind"].unique().tolist()
    ['relu', 'batchtopk']
    """
    return pd.read_csv(BUNDLED / "convergence.csv")


def kinds_table() -> pd.DataFrame:
    """Every kind of SAE at equal widths and sparsities, as trained by `saekit.series.kinds_grid`.

    Returns
    -------
    DataFrame
        `kind`, `width`, `target_l0` (active latents per token asked for, the k of TopK kinds),
        `tokens` and `steps` of training, and on the embedded held-out tokens `l0`, `fvu`,
        `dead_fraction`, `ce_degradation`, `loss_recovered_zero`.

    Examples
    --------
    >>> sorted(saekit.kinds_table()["width"].unique().tolist())
    [1152, 2304]
    """
    return pd.read_csv(BUNDLED / "kinds.csv")


def kinds_l0_table() -> pd.DataFrame:
    """Number of active latents on held-out tokens, for each kind at one width and sparsity.

    Returns
    -------
    DataFrame
        `kind`, `width`, `active` (latents) and `tokens` with exactly that many.

    Examples
    --------
    >>> saekit.kinds_l0_table().columns.tolist()
    ['kind', 'width', 'active', 'tokens']
    """
    return pd.read_csv(BUNDLED / "kinds_l0.csv")
