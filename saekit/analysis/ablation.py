"""The loss that a latent's absence at one token costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.models import run_to
from saekit.results import Result
from saekit.selection import Latents, select_latent, select_latents

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """The change of the next-token loss when a latent's contribution at one position is removed.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    latent : int
        Which latent.
    frame : DataFrame
        One row per position, in the order asked for: `position` (flat, in the store), `activation`,
        `loss` and `ablated` (cross-entropy of the token that follows, in nats, without and with the
        ablation) and `change` (their difference; greater than 0 where the latent helps). NaN where
        the row ends.
    """

    dictionary: Identity
    latent: int
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `latent`, `n_positions`, `mean_change`, `greatest_change`."""
        return {
            "dictionary": str(self.dictionary),
            "latent": self.latent,
            "n_positions": len(self.frame),
            "mean_change": float(self.frame["change"].mean()),
            "greatest_change": float(self.frame["change"].max()),
        }


@cached
def measure_ablation(
    model: TransformerBridge,
    dictionary: Dictionary,
    latent: int,
    store: ActivationStore,
    positions: Latents,
    *,
    batch_size: int = 16,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Ablation:
    """Measure the loss that removing a latent at single tokens costs.

    For each position, the model runs on its row up to there, the latent's activation times its decoder
    direction is subtracted at that position alone, and the loss of the next token is compared with that
    of the model itself. All else, the error of the dictionary too, stays. This is the "loss effect" of
    SAE dashboards, with the full forward pass in place of the direct path to the logits.

    Parameters
    ----------
    model : TransformerBridge
        The model that the store was harvested from.
    dictionary : Dictionary
        Whose latents do not depend on each other; of a transcoder, the target is changed.
    latent : int
        Which latent.
    store : ActivationStore
        Holds the tokens.
    positions : tensor, array, Series or list
        Flat positions of the store, or a Boolean mask over all positions.
    batch_size : int
        Positions per forward pass.
    progress : bool
        Show a progress bar in positions.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    MismatchError
        If model, store and dictionary do not belong together.
    ValueError
        If the latents depend on each other or on the row (see `saekit.as_jumprelu`), or the dictionary
        names no hook point.
    TypeError, IndexError
        If the latent or a position is not a whole number, or is out of range.

    Examples
    --------
    >>> found = saekit.measure_ablation(model, saes[16], 0, harvested, [5, 9])
    >>> found.frame.columns.tolist()
    ['position', 'activation', 'loss', 'ablated', 'change']
    """
    require_dictionaries(dictionary=dictionary)
    check_agreement(model=model, activations=store, dictionaries=[dictionary], allow_mismatch=allow_mismatch)
    dictionary.require_independent("Ablation of one latent")
    latent = select_latent(latent, dictionary.width)
    reads = dictionary.hook_point
    writes = dictionary.target if dictionary.transcoder else reads
    if reads is None or writes is None:
        raise ValueError(f"{dictionary.identity.described} names no hook point to ablate it at.")
    chosen = select_latents(positions, store.tokens.numel(), what="positions")
    batch_size, length = settings.whole("batch_size", batch_size), store.context_length
    numbers = torch.full((len(chosen), 3), float("nan"), dtype=torch.float64)
    within = chosen % length
    # Those of similar places in their rows together, so that few tokens are run in vain.
    order = within.argsort(stable=True)
    order = order[within[order] < length - 1]
    with tqdm(total=len(order), disable=not progress, unit="position", desc="ablation") as bar:
        for batch in order.split(batch_size) if len(order) else ():
            place = within[batch]
            rows = store.tokens[chosen[batch] // length]
            run = run_to(model, rows[:, : int(place.max()) + 1], writes, inputs=reads)
            numbers[batch] = _losses(run, dictionary, latent, place, rows).double().cpu()
            bar.update(len(batch))
    value, loss, ablated = numbers.T
    columns = {"position": chosen, "activation": value, "loss": loss, "ablated": ablated}
    columns["change"] = ablated - loss
    frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    return Ablation(dictionary.identity, latent, frame)


def _losses(run: Any, dictionary: Dictionary, latent: int, place: Tensor, rows: Tensor) -> Tensor:
    """Activation, loss and ablated loss of each row at its place, `[rows, 3]`."""
    at = torch.arange(len(place)), place
    following = rows[at[0], place + 1].long().to(run.tokens.device)
    latents = dictionary.encode(run.inputs[at].to(dictionary.W_enc))[:, latent]
    ablated = run.activations.clone()
    ablated[at] -= (latents[:, None] * dictionary.W_dec[latent]).to(ablated)
    losses = [
        F.cross_entropy(run.logits(activations, last=place).float(), following, reduction="none")
        for activations in (run.activations, ablated)
    ]
    return torch.stack([latents.to(losses[0]), *losses], dim=1)
