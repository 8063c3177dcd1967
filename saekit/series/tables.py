"""Tables of the series, as its commands wrote them: families, kinds, seeds, baselines and probes."""

from __future__ import annotations

import pandas as pd

from saekit.loading.names import BUNDLED
from saekit.settings import choice

CIRCUITS = ("accuracy", "curves", "dictionaries", "carriers")
TRUTH = ("recovery", "novelty", "parts", "hedging", "hedged_by_hand", "family", "bench")


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


def baselines_table() -> pd.DataFrame:
    """Every headline of the series on two trained dictionaries, each beside its baselines.

    Of width 1152, as trained and measured by `saekit.series.baselines_grid`. Novelty and stitching go from
    width 576 to these dictionaries. Uniqueness is the share of their latents with a match in the trained
    ReLU dictionary's second seed, or in the BatchTopK dictionary of width 2304.

    Returns
    -------
    DataFrame
        One row per dictionary, the trained one of each kind first: `dictionary`, `kind`, `width`, `seed`;
        `l0`, `fvu`, `ce_degradation`; `share_novel_cos`, `share_novel_gain`, `novel_auc` (of the cosine for
        the gain; NaN where no latent helps), `fvu_after_insertion` (of all novel latents),
        `share_lowering` (steps of stitching); `meta_explained`, `meta_explained_held_out`;
        `share_shared`; `multiple_choice`, `multiple_choice_error`, `multiple_choice_null`;
        `detection_auc`, `detection_auc_neighbour`; `probing_auc_1`, `probing_auc_5` (mean over the sets
        that were kept out of the training text).

    Examples
    --------
    >>> saekit.baselines_table()["kind"].iloc[:3].tolist()
    ['relu', 'relu-frozen-decoder', 'relu-soft-frozen-decoder']
    """
    return pd.read_csv(BUNDLED / "baselines.csv")


def probing_table() -> pd.DataFrame:
    """k-sparse probes of every bundled dictionary on the 113 sets of sae-probes.

    As made by `saekit.series.probing_grid`, whose `as_result` summarises and draws them. Beside the
    dictionaries there are the novel and the reconstruction latents of two of them alone, stitched
    dictionaries after each phase, random directions at equal L0, and `"activations"`.

    Returns
    -------
    DataFrame
        One row per dictionary, set and number of latents: `dictionary`, `set`, `k`, `auc`, and `latent`,
        the one that differs most between the classes.

    Examples
    --------
    >>> saekit.probing_table()["set"].nunique()
    113
    """
    return pd.read_csv(BUNDLED / "probing.csv")


def facts_table() -> pd.DataFrame:
    """Facts about cities and countries, and whether the embedded model knows them.

    As asked by `saekit.series.facts`: a fact is known if the model ranks its answer above the answers of all
    other entities of the kind, with every template.

    Returns
    -------
    DataFrame
        One row per fact: `kind` (`"city"` or `"country"`), `entity`, `attribute`, `answer`, `n_templates`,
        `n_right`, `known`, `margin` (in logits, the smallest over templates).

    Examples
    --------
    >>> facts = saekit.facts_table()
    >>> facts.loc[facts["known"], "kind"].unique().tolist()
    ['city', 'country']
    """
    return pd.read_csv(BUNDLED / "facts.csv")


def edits_table() -> pd.DataFrame:
    """Edits of facts about cities and countries by latents of bundled dictionaries, beside other means.

    As measured by `saekit.series.edits_grid`, on entities of which the embedded model knows every fact.

    Returns
    -------
    DataFrame
        One row per dictionary, method and number of components: `entities` (`"city"` or `"country"`),
        `kind`, `width`, `n_entities`, `n_pairs`, and the columns of `Edits.table`.

    Examples
    --------
    >>> saekit.edits_table()["entities"].unique().tolist()
    ['city', 'country']
    """
    return pd.read_csv(BUNDLED / "edits.csv")


def circuits_table(name: str) -> pd.DataFrame:
    """Circuits of every bundled dictionary, on the tasks that the embedded model can do.

    As measured by `saekit.series.circuits_grid`, with integrated gradients on pairs of prompts. A dictionary
    has `kind`, `width`, `seed` and `stage`: `"trained"`, or how far it is stitched (then its seed is -1).

    Parameters
    ----------
    name : str
        `"accuracy"` (how well the model does each task), `"curves"` (faithfulness and completeness of
        circuits by number of nodes and treatment of errors, with as many random nodes), `"dictionaries"`
        (shares of errors in effects, and nodes that a faithfulness of 0.8 needs) or `"carriers"` (novel,
        reconstruction and as many random latents as are novel, and the error of a dictionary, beside the
        error of a narrower one or of another seed).

    Raises
    ------
    ValueError
        If there is no such table.

    Examples
    --------
    >>> saekit.circuits_table("curves")["errors"].unique().tolist()
    ['nodes', 'keep', 'remove', 'mean']
    """
    return pd.read_csv(BUNDLED / f"circuits_{choice('name', name, CIRCUITS)}.csv")


def truth_table(name: str) -> pd.DataFrame:
    """The paper's questions where the true features are known, as measured by `saekit truth`.

    Parameters
    ----------
    name : str
        `"recovery"` (scores of each dictionary on the toy worlds), `"novelty"` (novel latents of each pair of
        widths beside the truth), `"parts"` (atoms and parents in dictionaries and meta-SAEs), `"hedging"` and
        `"hedged_by_hand"` (the hedging tree, trained and built), `"family"` (overshoot and hedging of
        the bundled families) or `"bench"` (SynthSAEBench-16k at width 4096).

    Raises
    ------
    ValueError
        If there is no such table.

    Examples
    --------
    >>> saekit.truth_table("family")["kind"].unique().tolist()
    ['relu', 'batchtopk']
    """
    return pd.read_csv(BUNDLED / f"truth_{choice('name', name, TRUTH)}.csv")


def components_table() -> pd.DataFrame:
    """Transcoders of an MLP and SAEs of attention heads, as trained by `saekit.series.components`.

    Returns
    -------
    DataFrame
        `component`, `width`, `seed`, `tokens` of training, and on held-out tokens `l0`, `fvu` (of a
        transcoder's target), `dead_fraction`, `ce_degradation`, `loss_recovered_zero`.

    Examples
    --------
    >>> saekit.components_table()["component"].unique().tolist()
    ['transcoder', 'skip-transcoder', 'attention']
    """
    return pd.read_csv(BUNDLED / "components.csv")
