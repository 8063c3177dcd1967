"""What it costs the language model to rebuild a dictionary's decoder from meta-latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from saekit.activations import ActivationStore, random_stream
from saekit.analysis.meta.sae import MetaSAE
from saekit.folding import with_directions
from saekit.metrics import CEDegradation, ce_degradation, evaluate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class CERebuilt:
    """What a decoder rebuilt from meta-latents costs the language model.

    Attributes
    ----------
    frame : DataFrame
        One row a decoder: `decoder` (`"own"`, `"rebuilt"`, or `"turned at random"`: directions of
        the same norm and the same cosine with the own ones), `fvu`, and of `ce_degradation` the
        columns `ce`, `ce_degradation`, `loss_recovered_zero`, `loss_recovered_mean`.
    ce : CEDegradation
        The measurement, with its ablations and number of tokens.
    """

    frame: pd.DataFrame
    ce: CEDegradation

    @property
    def summary(self) -> dict[str, Any]:
        """`ce_degradation` and `fvu` by decoder, and `n_targets`."""
        decoders = self.frame.set_index("decoder")
        return {
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
) -> CERebuilt:
    """Measure a dictionary with its decoder rebuilt from meta-latents, its encoder as it was.

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    meta : MetaSAE
        The meta-SAE.
    store : ActivationStore
        Held-out tokens: all for the FVU.
    base : int
        Place in `meta.bases` of the dictionary to measure.
    max_rows : int
        Rows of tokens for the cross-entropy, spread evenly over the store.
    seed : int
        Of the random turn.
    progress : bool
        Show progress bars.

    Raises
    ------
    ValueError
        If the base is a TopK dictionary, or does not fit the store.

    Notes
    -----
    In the authors' code only, without published numbers. The control, an error of the same size in
    a random direction, is ours.
    """
    place = range(len(meta.bases))[base]
    source = meta.sources[place]
    rebuilt = meta.reconstruct()[meta.base == place]
    dictionaries = {
        "own": source,
        "rebuilt": meta.rebuilt(place),
        "turned at random": with_directions(
            source, _turned(source.W_dec, rebuilt, seed), kind=f"turned {source.kind}"
        ),
    }
    ce = ce_degradation(model, list(dictionaries.values()), store, max_rows=max_rows, progress=progress)
    columns = ["ce", "ce_degradation", "loss_recovered_zero", "loss_recovered_mean"]
    frame = ce.frame[columns].assign(
        decoder=list(dictionaries),
        fvu=[evaluate(member, store, progress=progress).fvu for member in dictionaries.values()],
    )
    return CERebuilt(frame[["decoder", "fvu", *columns]], ce)


def _turned(rows: Tensor, rebuilt: Tensor, seed: int) -> Tensor:
    """Directions with the norms of the rebuilt ones and their cosines with the rows, else random."""
    rows, rebuilt = F.normalize(rows.double(), dim=1), rebuilt.double()
    random = torch.randn(rows.shape, generator=random_stream(seed), dtype=rows.dtype).to(rows.device)
    along = (rows * rebuilt).sum(1, keepdim=True)
    across = (rebuilt.square().sum(1, keepdim=True) - along**2).clamp(min=0).sqrt()
    aside = F.normalize(random - (random * rows).sum(1, keepdim=True) * rows, dim=1)
    return along * rows + across * aside
