"""Tables of the series: the bundled families, and a comparison of every kind of SAE."""

from __future__ import annotations

import pandas as pd

from saekit.loading.names import BUNDLED


def bundled_table() -> pd.DataFrame:
    """The bundled dictionaries: one row for each, as measured when they were bundled.

    Returns
    -------
    DataFrame
        `kind`, `width`, `seed`, `tokens` and `steps` of training, `distinct_tokens` (of the training
        text), on the embedded held-out tokens `l0`, `fvu`, `dead_fraction`, `ce_degradation`,
        `loss_recovered_zero`, `half_precision_fvu_change` (relative change of FVU due to half
        precision), `seed_overlap` (share of the first seed's latents with a best cosine of 0.7 or more
        in the second, at the end of training; nan where a width was trained once) and `bytes` of the
        weights.

    Examples
    --------
    >>> saekit.bundled_table()[["kind", "width", "seed"]].head(2)
       kind  width  seed
    0  relu    576     0
    1  relu   1152     0
    """
    table = pd.read_csv(BUNDLED / "members.csv")
    last = convergence_table().sort_values("step").groupby(["kind", "width"])["share_under_0.7"].last()
    table = table.join(1 - last.rename("seed_overlap"), on=["kind", "width"])
    folders = [BUNDLED / row.kind / f"{row.width}-seed{row.seed}" for row in table.itertuples()]
    table["bytes"] = [sum(file.stat().st_size for file in it.glob("*.safetensors")) for it in folders]
    return table


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


def order_table() -> pd.DataFrame:
    """How far training runs agree that share their initialisation, the order of their data, or neither.

    Every pair of four small ReLU runs, as trained by `saekit.series.seeds_and_order`.

    Returns
    -------
    DataFrame
        `width` and `tokens` of training; `seed_a`, `order_a`, `seed_b`, `order_b` (seeds of initialisation
        and data order); `fvu_a`, `fvu_b`; `differ` (what differed between the two); and, as in
        `Uniqueness.pairs`, `pw_mcc_signed`, `pw_mcc_absolute`, `share_shared`, `mean_correlation`.

    Examples
    --------
    >>> sorted(saekit.order_table()["differ"].unique())
    ['both', 'data order', 'initialisation']
    """
    return pd.read_csv(BUNDLED / "order.csv")
