"""A text of one's own, read by the model: what each latent does on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit.agreement import check_agreement
from saekit.cache import cached
from saekit.corpora import separator_of
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.models import capture, require_rows, special_token_ids, token_strings
from saekit.results import Result
from saekit.selection import select_latent

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False, repr=False)
class TextReading(Result):
    """The active latents of a dictionary on every token of a text.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    tokens : tuple of str
        Display strings of the text's tokens.
    places : Tensor
        Index of the token of each entry, int64 `[entries]`.
    latents : Tensor
        The latent that is active there, int64 `[entries]`.
    values : Tensor
        Its activation, float32 `[entries]`.
    special : tuple of int
        Indices of special tokens in the text, at which no latent counts as active.
    """

    dictionary: Identity
    tokens: tuple[str, ...]
    places: Tensor
    latents: Tensor
    values: Tensor
    special: tuple[int, ...] = ()

    def of(self, latent: int) -> list[float]:
        """A latent's activation on each token, 0 where it is silent.

        Raises
        ------
        TypeError, IndexError
            If there is no such latent.
        """
        here = self.latents == select_latent(latent, self.dictionary.width)
        found = torch.zeros(len(self.tokens))
        found[self.places[here]] = self.values[here]
        return found.tolist()

    @property
    def strongest(self) -> list[int]:
        """The latent of greatest activation on each token, -1 where none is active."""
        found, best = [-1] * len(self.tokens), [0.0] * len(self.tokens)
        entries = zip(self.places.tolist(), self.latents.tolist(), self.values.tolist(), strict=True)
        for place, latent, value in entries:
            if value > best[place]:
                found[place], best[place] = latent, value
        return found

    @property
    def frame(self) -> pd.DataFrame:
        """One row per latent that is active, greatest first.

        `latent`, `max`, `mean` (where it is active), `n_active` (tokens), `place` and `token` of the
        greatest activation.
        """
        order = np.lexsort((self.places, -self.values.numpy(), self.latents))
        entries = pd.DataFrame(
            {
                "latent": self.latents[order].numpy(),
                "value": self.values[order].numpy(),
                "place": self.places[order].numpy(),
            }
        )
        found = entries.groupby("latent", sort=False).agg(
            max=("value", "first"),
            mean=("value", "mean"),
            n_active=("value", "size"),
            place=("place", "first"),
        )
        found = found.reset_index().sort_values(["max", "latent"], ascending=[False, True])
        found["token"] = [self.tokens[place] for place in found["place"]]
        return found.reset_index(drop=True)

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `n_tokens`, `n_latents` (active on some token), `l0` (special tokens apart)."""
        return {
            "dictionary": str(self.dictionary),
            "n_tokens": len(self.tokens),
            "n_latents": len(self.latents.unique()),
            "l0": len(self.values) / (len(self.tokens) - len(self.special)),
        }


@cached
@torch.no_grad()
def read_text(
    model: TransformerBridge, dictionary: Dictionary, text: str, *, allow_mismatch: bool = False
) -> TextReading:
    """Run the model on a text and find every latent that is active on it.

    The text follows a separator, as documents do in packed rows. The separator itself is left out, as every
    analysis leaves out special tokens and the first position of a row; special tokens in the text are read
    by the model, but no latent counts as active on them.

    Parameters
    ----------
    model : TransformerBridge
        The model that the dictionary was trained on.
    dictionary : Dictionary
        Any kind, at any hook point of the model.
    text : str
        At most as long as the model's context.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    TypeError
        If `text` is not text.
    ValueError
        If it holds no token, only special ones, more than the model takes, or half of a surrogate pair; or
        the dictionary names no hook point.
    MismatchError
        If model and dictionary do not belong together.

    Examples
    --------
    >>> reading = saekit.read_text(model, saes[16], "the king sleeps")
    >>> reading.tokens
    ('the', ' king', ' sleeps')
    >>> reading.frame.columns.tolist()
    ['latent', 'max', 'mean', 'n_active', 'place', 'token']
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, found {type(text).__name__}.")
    require_dictionaries(dictionary=dictionary)
    check_agreement(model=model, dictionaries=[dictionary], allow_mismatch=allow_mismatch)
    if dictionary.hook_point is None:
        raise ValueError(f"{dictionary.identity.described} names no hook point to read the text at.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text holds half of a surrogate pair at character {error.start}, which no tokenizer reads."
        ) from error
    ids: Sequence[int] = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    apart = {*special_token_ids(model.tokenizer)}
    special = torch.tensor([token in apart for token in ids], dtype=torch.bool)
    if special.all():
        holds = "only special tokens" if ids else "no token"
        raise ValueError(f"The text holds {holds}: give at least one word.")
    row = torch.tensor([[separator_of(model.tokenizer), *ids]])
    if row.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"The text has {len(ids):,} tokens, but the model takes at most {model.cfg.n_ctx - 1:,} after "
            "the separator: give a shorter one."
        )
    require_rows(model, row)
    activations = capture(model, row, dictionary.hook_point)[0, 1:]
    found = dictionary.encode_sparse(activations.to(dictionary.W_enc))
    kept = ~special.to(found.rows.device)[found.rows.long()]
    return TextReading(
        dictionary.identity,
        tuple(token_strings(model.tokenizer, ids)),
        found.rows[kept].long().cpu(),
        found.indices[kept].long().cpu(),
        found.values[kept].float().cpu(),
        tuple(special.nonzero()[:, 0].tolist()),
    )
