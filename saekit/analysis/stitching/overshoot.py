"""Whether the latents added to a dictionary point the right way and merely go too far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from saekit.activations import Activations
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.moments import fvu
from saekit.passes import Batch, one_pass
from saekit.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Overshoot(Result):
    """The difference between two dictionaries' reconstructions, and the factor that fits it best.

    Attributes
    ----------
    before, after : Identity
        The dictionaries.
    scale : float
        The factor of least squared error.
    fvu_before, fvu_after, fvu_scaled : float
        Without the change, with it, and with the factor on it.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    before: Identity
    after: Identity
    scale: float
    fvu_before: float
    fvu_after: float
    fvu_scaled: float
    n_tokens: int
    n_excluded: int

    @property
    def summary(self) -> dict[str, Any]:
        """All of it, with names for identities."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("before", "after")}
        return {"before": str(self.before), "after": str(self.after), **numbers}

    @property
    def frame(self) -> pd.DataFrame:
        """The summary as one row."""
        return pd.DataFrame([self.summary])


@cached
def measure_overshoot(
    before: Dictionary,
    after: Dictionary,
    activations: Activations,
    *,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Overshoot:
    """Fit one factor to the difference that a change of the dictionary makes to its reconstructions.

    Latents that fire together and point in similar directions each correct the same error, and
    together overcorrect it. If the error rises with the change but falls once the change is scaled by
    a factor under 1, the change points the right way and overshoots; if the best factor is near 0, it
    has nothing to add.

    Parameters
    ----------
    before, after : Dictionary
        Such as a small dictionary, and the same with latents of a larger one inserted.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the two reconstruct every token alike, the inputs do not belong together, or there are no
        tokens.

    Examples
    --------
    >>> import torch
    >>> from saekit import Dictionary, measure_overshoot
    >>> eye, zero = torch.eye(2), torch.zeros(2)
    >>> silent = Dictionary(eye, zero, eye, zero, zero + 1e6)
    >>> twice = Dictionary(2 * eye, zero, eye, zero, zero)  # every latent goes twice as far as it should
    >>> found = measure_overshoot(silent, twice, torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    >>> found.scale, found.fvu_scaled
    (0.5, 0.0)
    """
    require_dictionaries(before=before, after=after)
    sse, along, size = 0.0, 0.0, 0.0

    def add(batch: Batch) -> None:
        nonlocal sse, along, size
        residual = batch.residual(before).double()
        change = residual - batch.residual(after).double()
        sse += float(residual.square().sum())
        along += float((residual * change).sum())
        size += float(change.square().sum())

    tokens = one_pass(
        activations,
        add,
        dictionaries=(before, after),
        purpose="overshoot",
        batch_size=batch_size,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    if not size:
        raise ValueError(f"{before.name} and {after.name} reconstruct every token alike.")
    return Overshoot(
        before=before.identity,
        after=after.identity,
        scale=along / size,
        fvu_before=fvu(sse, tokens.total_variance),
        fvu_after=fvu(sse - 2 * along + size, tokens.total_variance),
        fvu_scaled=fvu(sse - along**2 / size, tokens.total_variance),
        n_tokens=tokens.n_tokens,
        n_excluded=tokens.n_excluded,
    )
