"""The cross-entropy that rebuilding a dictionary's decoder from meta-latents costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.analysis.meta.sae import MetaSAE
from saekit.analysis.nulls import turned_dictionary
from saekit.identity import Identity
from saekit.metrics import CEDegradation, ce_degradation, evaluate
from saekit.results import Result

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False, repr=False)
class CERebuilt(Result):
    """The cross-entropy that a decoder rebuilt from meta-latents costs the language model.

    Attributes
    ----------
    dictionary, meta : Identity
        The dictionary measured, and the meta-SAE that rebuilds its decoder.
    frame : DataFrame
        One row per decoder: `decoder` (`"own"`, `"rebuilt"`, or `"turned at random"`: directions of
        the same norm and the same cosine with the own ones), `fvu`, and of `ce_degradation` the
        columns `ce`, `ce_degradation`, `loss_recovered_zero`, `loss_recovered_mean`.
    ce : CEDegradation
        The measurement, with its ablations and number of tokens.
    """

    dictionary: Identity
    meta: Identity
    frame: pd.DataFrame
    ce: CEDegradation

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `meta`, `ce_degradation` and `fvu` by decoder, and `n_targets`."""
        decoders = self.frame.set_index("decoder")
        return {
            "dictionary": str(self.dictionary),
            "meta": str(self.meta),
            "ce_degradation": {name: float(value) for name, value in decoders["ce_degradation"].items()},
            "fvu": {name: float(value) for name, value in decoders["fvu"].items()},
            "n_targets": self.ce.n_targets,
        }


def measure_rebuilt_ce(
    model: TransformerBridge,
    meta: MetaSAE,
    store: ActivationStore,
    *,
    base: int = -1,
    max_rows: int = 64,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> CERebuilt:
    """Measure a dictionary with its decoder rebuilt from meta-latents and its encoder unchanged.

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    meta : MetaSAE
        The meta-SAE.
    store : ActivationStore
        Held-out tokens; all are used for the FVU.
    base : int
        Place in `meta.bases` of the dictionary to measure.
    max_rows : int
        Rows of tokens for the cross-entropy, spread evenly over the store.
    seed : int
        Seed of the random directions.
    progress : bool
        Show progress bars.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the model, the store and the base do not belong together, or a setting is out of its
        range.
    TypeError, IndexError
        If there is no such base.

    Notes
    -----
    Found only in the authors' code, without published numbers. The control, an error of the same size in
    a random direction, is ours.

    Examples
    --------
    >>> quick = saekit.analysis.meta.sae.Recipe("quick", lr=1e-3, steps=20, batch=1.0, width=0.5)
    >>> meta = saekit.meta_sae(saes[32], width=8, k=2, recipe=quick)
    >>> found = measure_rebuilt_ce(model, meta, harvested, max_rows=2)
    >>> found.frame["decoder"].tolist()
    ['own', 'rebuilt', 'turned at random']
    """
    place, seed = meta.place(base), settings.whole("seed", seed, at_least=0)
    max_rows = settings.whole("max_rows", max_rows)
    source = meta.source(place)
    check_agreement(model=model, activations=store, dictionaries=[source], allow_mismatch=allow_mismatch)
    dictionaries = {
        "own": source,
        "rebuilt": meta.rebuilt(place),
        "turned at random": turned_dictionary(source, meta.reconstruct()[meta.base == place], seed=seed),
    }
    ce = ce_degradation(
        model, list(dictionaries.values()), store, max_rows=max_rows, everywhere=False, progress=progress
    )
    columns = ["ce", "ce_degradation", "loss_recovered_zero", "loss_recovered_mean"]
    frame = ce.frame[columns].assign(
        decoder=list(dictionaries),
        fvu=[evaluate(member, store, progress=progress).fvu for member in dictionaries.values()],
    )
    return CERebuilt(source.identity, meta.identity, frame[["decoder", "fvu", *columns]], ce)
