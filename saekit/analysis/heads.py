"""Attention-output dictionaries (`attn.hook_z`) by head (Kissane et al. 2024, arXiv:2406.17759).

The activations of such a dictionary are the heads' outputs, concatenated: what each latent reads and
writes falls into the parts of the heads, and since a head's output is a sum over source positions, weighted
by its attention pattern, so does every pre-activation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.agreement import check_agreement
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.family import Family
from saekit.identity import Identity
from saekit.models import capture_each, require_rows
from saekit.results import Result
from saekit.selection import select_latent

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Z = re.compile(r"blocks\.(\d+)\.attn\.hook_z")
TOLERANCE = 1e-3  # of the pre-activation's terms: beyond it, a head's output is no sum over its sources


@dataclass(frozen=True, eq=False, repr=False)
class HeadShares(Result):
    """The part of each latent that each attention head has.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    encoder, decoder : Tensor
        Share of a latent's squared encoder and decoder norm in each head's part, float64
        `[width, heads]`; rows add up to 1, and are 0 for a latent without direction.
    """

    dictionary: Identity
    encoder: Tensor
    decoder: Tensor
    _plot: ClassVar[str] = "head_shares"

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return self.decoder.shape[1]

    @cached_property
    def top_head(self) -> Tensor:
        """The head with the greatest decoder share of each latent, int64 `[width]`."""
        return self.decoder.argmax(dim=1)

    def latents(self, head: int, *, at_least: float = 0.5) -> Tensor:
        """Latents of which a head has at least this decoder share, ascending, int64.

        Raises
        ------
        TypeError, ValueError
            If there is no such head, or the share is not from 0 to 1.
        """
        head = settings.whole("head", head, at_least=0, at_most=self.n_heads - 1)
        return (self.decoder[:, head] >= settings.share("at_least", at_least)).nonzero().flatten()

    @property
    def frame(self) -> pd.DataFrame:
        """One row per latent and head: `latent`, `head`, `encoder_share`, `decoder_share`."""
        width, n_heads = self.decoder.shape
        return pd.DataFrame(
            {
                "latent": torch.arange(width).repeat_interleave(n_heads).numpy(),
                "head": torch.arange(n_heads).repeat(width).numpy(),
                "encoder_share": self.encoder.flatten().numpy(),
                "decoder_share": self.decoder.flatten().numpy(),
            }
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `n_heads`, `median_top_share` (decoder), `share_of_one_head` (at least a half)."""
        top = self.decoder.amax(dim=1)
        return {
            "dictionary": str(self.dictionary),
            "n_heads": self.n_heads,
            "median_top_share": float(top.median()),
            "share_of_one_head": float((top >= 0.5).double().mean()),
        }


def head_shares(dictionary: Dictionary, n_heads: int) -> HeadShares:
    """Share of every head in each latent's encoder and decoder.

    Parameters
    ----------
    dictionary : Dictionary
        Of concatenated heads, such as at `attn.hook_z`.
    n_heads : int
        Number of (query) heads, `model.cfg.n_heads`.

    Raises
    ------
    ValueError
        If the heads do not divide `d_in`, the dictionary is a transcoder, or it records another hook
        point than `hook_z`.

    Examples
    --------
    >>> shares = head_shares(saekit.Dictionary.from_weights(torch.eye(6)[:, :4], torch.eye(6)[:4], d_in=6), 3)
    >>> shares.decoder.argmax(dim=1).tolist()
    [0, 0, 1, 1]
    >>> shares.latents(1).tolist()
    [2, 3]
    """
    _require_heads(dictionary)
    n_heads = settings.whole("n_heads", n_heads)
    if dictionary.d_in % n_heads:
        raise ValueError(
            f"{n_heads} heads do not divide the {dictionary.d_in} dimensions of {dictionary.name}."
        )

    def shares(rows: Tensor) -> Tensor:
        powers = rows.double().unflatten(1, (n_heads, -1)).square().sum(2).cpu()
        total = powers.sum(1, keepdim=True)
        found: Tensor = powers / total.where(total > 0, 1.0)
        return found

    return HeadShares(dictionary.identity, shares(dictionary.W_enc.T), shares(dictionary.W_dec))


def family_of_head(family: Family, n_heads: int, head: int, *, at_least: float = 0.5) -> Family:
    """The members of a family, restricted to the latents that mostly write to one head.

    Every analysis of families takes it: splitting, stitching or uniqueness within a head.

    Parameters
    ----------
    family : Family
        At `attn.hook_z`; latents must not depend on each other.
    n_heads, head : int
        Number of heads, and the one of interest.
    at_least : float
        Decoder share that the head has of each latent.

    Raises
    ------
    ValueError
        If a member keeps no latent, two of one seed keep equally many, or as `head_shares` and
        `Dictionary.gather`.

    Examples
    --------
    >>> eye = torch.eye(9)
    >>> one, other = (saekit.Dictionary.from_weights(eye[:, :n], eye[:n], d_in=9) for n in (7, 8))
    >>> family_of_head(saekit.Family([one, other]), 3, 2).widths
    [1, 2]
    """
    members = []
    for member in family:
        kept = head_shares(member, n_heads).latents(head, at_least=at_least)
        if not len(kept):
            raise ValueError(
                f"No latent of {member.name} has a decoder share of {at_least:g} in head {head}."
            )
        members.append(member.gather(kept))
    return Family(members)


@dataclass(frozen=True, eq=False, repr=False)
class SourceAttribution(Result):
    """A latent's pre-activation at one token, as a sum over source positions and heads.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    latent, position : int
        The latent, and the token at which it is attributed (the destination).
    attribution : Tensor
        `pattern * <v, w>` with the head's part `w` of the latent's encoder, float64
        `[position + 1, heads]`.
    bias : float
        The encoder's bias, which belongs to no source.
    pre_activation : float
        The latent's own pre-activation there: all attributions plus the bias, up to rounding.
    activation : float
        The latent's activation there.
    tokens : Tensor
        Ids of the source tokens, int64 `[position + 1]`.
    """

    dictionary: Identity
    latent: int
    position: int
    attribution: Tensor
    bias: float
    pre_activation: float
    activation: float
    tokens: Tensor

    @property
    def frame(self) -> pd.DataFrame:
        """One row per source and head: `source`, `token` (id), `head`, `attribution`."""
        sources, n_heads = self.attribution.shape
        return pd.DataFrame(
            {
                "source": torch.arange(sources).repeat_interleave(n_heads).numpy(),
                "token": self.tokens.repeat_interleave(n_heads).numpy(),
                "head": torch.arange(n_heads).repeat(sources).numpy(),
                "attribution": self.attribution.flatten().numpy(),
            }
        )

    @property
    def by_source(self) -> Tensor:
        """Summed over heads, float64 `[position + 1]`."""
        return self.attribution.sum(1)

    @property
    def by_head(self) -> Tensor:
        """Summed over sources, float64 `[heads]`."""
        return self.attribution.sum(0)

    @property
    def summary(self) -> dict[str, Any]:
        """Latent, position, pre-activation, activation, bias, `top_source` and `top_head`."""
        return {
            "dictionary": str(self.dictionary),
            "latent": self.latent,
            "position": self.position,
            "pre_activation": self.pre_activation,
            "activation": self.activation,
            "bias": self.bias,
            "top_source": int(self.by_source.argmax()),
            "top_head": int(self.by_head.argmax()),
        }


@torch.no_grad()
def attribute_to_sources(
    model: TransformerBridge,
    dictionary: Dictionary,
    tokens: Tensor,
    latent: int,
    position: int,
    *,
    allow_mismatch: bool = False,
) -> SourceAttribution:
    """Direct feature attribution of an attention-output latent to source positions and heads.

    The encoder is linear, and the output of head `h` is `sum over sources of pattern * v`, so the
    pre-activation is exactly the sum of `pattern[h, position, source] * <v[source, h], w[h]>` and the
    bias. With grouped-query attention, several heads share the values of one key-value head. The pattern
    is taken as it is: what made a head look there is not attributed.

    Parameters
    ----------
    model : TransformerBridge
        The model.
    dictionary : Dictionary
        At `blocks.L.attn.hook_z`.
    tokens : Tensor
        Token ids, `[ctx]`.
    latent, position : int
        The latent, and the token at which it is attributed.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionary is not at `attn.hook_z`, normalises rows, a number is out of range, the model is in
        training mode, or its heads' outputs are not such sums.
    MismatchError
        If the dictionary is of another model.

    Notes
    -----
    Kissane et al. (2024, arXiv:2406.17759), section on direct feature attribution.

    Examples
    --------
    >>> weights = {"W_enc": torch.rand(16, 8), "W_dec": torch.rand(8, 16), "d_in": 16}
    >>> at_z = saekit.Dictionary.from_weights(**weights, info={"hook_point": "blocks.1.attn.hook_z"})
    >>> found = attribute_to_sources(model, at_z, rows.tokens[0], latent=3, position=5)
    >>> list(found.attribution.shape)  # sources, heads
    [6, 4]
    >>> round(float(found.attribution.sum()) + found.bias - found.pre_activation, 4) == 0
    True
    """
    layer = _require_heads(dictionary, needs_place=True)
    if dictionary.normalization is not None:
        raise ValueError(f"{dictionary.name} normalises every row, so its pre-activations are not sums.")
    check_agreement(model=model, dictionaries=[dictionary], allow_mismatch=allow_mismatch)
    tokens = torch.as_tensor(tokens)
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be the ids of one text, [ctx], found shape {list(tokens.shape)}.")
    require_rows(model, tokens[None])
    latent = select_latent(latent, dictionary.width)
    position = settings.whole("position", position, at_least=0, at_most=len(tokens) - 1)
    places = [f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "v", "z")]
    pattern, v, z = (found.double() for found in capture_each(model, tokens[None], places).values())
    n_heads = pattern.shape[1]
    v = v[0].unflatten(1, (-1, z[0].flatten(1).shape[1] // n_heads)) if v.ndim == 3 else v[0]
    v = v.repeat_interleave(n_heads // v.shape[1], dim=1)  # query heads share the values of their group
    w = dictionary.W_enc[:, latent].double().to(v.device).unflatten(0, (n_heads, -1))
    sources = slice(0, position + 1)
    along = torch.einsum("shd,hd->sh", v[sources], w)
    attribution = pattern[0, :, position, sources].T * along
    bias = float(dictionary.b_enc[latent])
    row = z[0, position].flatten()[None]
    pre_activation = float(row @ w.flatten()) + bias
    off = abs(float(attribution.sum()) + bias - pre_activation)
    if off > TOLERANCE * (float(attribution.abs().sum()) + abs(bias)):
        raise ValueError(
            f"The heads' outputs in block {layer} are not sums of their values by attention pattern: "
            f"attributions and bias give {float(attribution.sum()) + bias:.6g}, not {pre_activation:.6g}."
        )
    return SourceAttribution(
        dictionary=dictionary.identity,
        latent=latent,
        position=position,
        attribution=attribution.cpu(),
        bias=bias,
        pre_activation=pre_activation,
        activation=float(dictionary.encode(row.to(dictionary.W_enc))[0, latent]),
        tokens=tokens[sources].cpu(),
    )


def _require_heads(dictionary: Dictionary, *, needs_place: bool = False) -> int | None:
    """The layer of a dictionary of concatenated heads; None if it does not record its hook point."""
    require_dictionaries(dictionary=dictionary)
    if dictionary.transcoder:
        raise ValueError(f"{dictionary.name} predicts another activation than it reads: heads need an SAE.")
    found = Z.fullmatch(dictionary.hook_point or "")
    if found is None and (needs_place or dictionary.hook_point is not None):
        where = dictionary.hook_point or "an unknown hook point"
        raise ValueError(f"{dictionary.name} is at {where}: heads are those of blocks.L.attn.hook_z.")
    return int(found[1]) if found else None
