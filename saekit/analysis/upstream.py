"""Attribution of a latent to latents upstream, through the residual stream and a frozen norm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.agreement import check_agreement
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.models import capture_each, norm_weights, require_rows
from saekit.results import Result
from saekit.selection import select_latent

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

READS = re.compile(
    r"blocks\.(\d+)\.(ln2\.hook_normalized|ln2\.hook_out|mlp\.hook_in|hook_resid_(?:pre|mid|post))"
)
WRITES = re.compile(r"blocks\.(\d+)\.hook_(attn|mlp)_out")
TOLERANCE = 1e-3  # of a norm, within which the parts of the stream must add up to it


@dataclass(frozen=True, eq=False, repr=False)
class UpstreamAttribution(Result):
    """A latent's pre-activation at one token, as a sum over what was written to the residual stream.

    Attributes
    ----------
    dictionary : Identity
        The downstream dictionary.
    latent, position : int
        Its latent, and the token.
    frame : DataFrame
        One row per term, which add up to the pre-activation: `kind` (`"latent"`, an active upstream
        latent; `"bias"`, `"skip"` and `"error"` of an upstream dictionary; `"component"`, an output that no
        dictionary explains; `"own bias"`), `place` (hook point), `latent` (-1 for other kinds), `activation`
        (NaN for other kinds) and `attribution`.
    pre_activation : float
        The latent's own pre-activation there.
    frozen_scale : float
        The factor of the frozen norm, one over its scale; 1 without a norm.
    """

    dictionary: Identity
    latent: int
    position: int
    frame: pd.DataFrame
    pre_activation: float
    frozen_scale: float
    _plot: ClassVar[str] = "upstream_attribution"

    @property
    def latents(self) -> pd.DataFrame:
        """The rows of upstream latents, largest attribution first."""
        rows = self.frame[self.frame["kind"] == "latent"]
        return rows.sort_values("attribution", ascending=False, kind="stable", ignore_index=True)

    @property
    def summary(self) -> dict[str, Any]:
        """Latent, position, pre-activation, and the sum of attributions by kind."""
        by_kind = self.frame.groupby("kind", sort=False)["attribution"].sum()
        return {
            "dictionary": str(self.dictionary),
            "latent": self.latent,
            "position": self.position,
            "pre_activation": self.pre_activation,
            **{f"from_{str(kind).replace(' ', '_')}": float(total) for kind, total in by_kind.items()},
        }


@torch.no_grad()
def attribute_upstream(
    model: TransformerBridge,
    dictionary: Dictionary,
    upstream: Sequence[Dictionary],
    tokens: Tensor,
    latent: int,
    position: int,
    *,
    allow_mismatch: bool = False,
) -> UpstreamAttribution:
    """Attribute a latent's pre-activation to upstream latents, along the residual stream of its token.

    The stream is a sum of what the blocks before have written to it, and an upstream transcoder writes its
    latents' activations times their decoder rows. With the norm before the MLP frozen at its scale
    on this token, the encoder is linear in the stream, so every term has a share
    `scale * <term, w>` with `w` the encoder column times the norm's weights (and centred, where the norm
    centres), and the shares and biases add up to the pre-activation.

    Parameters
    ----------
    model : TransformerBridge
        The model, whose blocks add to one residual stream.
    dictionary : Dictionary
        A transcoder that reads an MLP's input, or a dictionary on the residual stream.
    upstream : sequence of Dictionary
        Transcoders with the target `hook_mlp_out` (or `hook_attn_out`), or SAEs there; one for each such hook
        point at most, all of them before `dictionary`.
    tokens : Tensor
        Token ids, `[ctx]`.
    latent, position : int
        The latent, and the token at which it is attributed.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If a dictionary is at another kind of place, `upstream` is not before `dictionary`, a number is out of
        range, or the model's stream is not the sum of its blocks' outputs.
    MismatchError
        If a dictionary is of another model.

    Notes
    -----
    Dunefsky et al. (2024, arXiv:2406.11944) freeze the norm too, as the ratio
    `<w, norm(x)> / <w, x>`, which is 0/0 where a stream is orthogonal to `w` and explodes near it. The
    scale taken here is that of the whole row, so it is defined wherever the norm is. What attention carries
    from other tokens is part of the `"component"` of its block.

    Examples
    --------
    >>> def transcoder(layer):
    ...     places = {"hook_point": f"blocks.{layer}.mlp.hook_in", "target": f"blocks.{layer}.hook_mlp_out"}
    ...     return saekit.Transcoder.from_weights(torch.rand(16, 8), torch.rand(8, 16), info=places)
    >>> found = attribute_upstream(model, transcoder(2), [transcoder(0)], rows.tokens[0], 3, position=5)
    >>> found.frame.columns.tolist()
    ['kind', 'place', 'latent', 'activation', 'attribution']
    """
    layer, where = _reads(dictionary)
    check_agreement(model=model, dictionaries=[dictionary], allow_mismatch=allow_mismatch)
    writers = _writers(upstream, layer, where)
    for writer in upstream:
        check_agreement(model=model, dictionaries=[writer], allow_mismatch=allow_mismatch)
    tokens = torch.as_tensor(tokens)
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be the ids of one text, [ctx], found shape {list(tokens.shape)}.")
    require_rows(model, tokens[None])
    latent = select_latent(latent, dictionary.width)
    position = settings.whole("position", position, at_least=0, at_most=len(tokens) - 1)

    stream = where if where.startswith("hook_resid") else "hook_resid_mid"
    places = ["blocks.0.hook_resid_pre", *_written(layer, stream)]
    own, at = f"blocks.{layer}.{where}", f"blocks.{layer}.{stream}"
    inputs = [str(writer.hook_point) for writer in upstream]
    found = capture_each(model, tokens[None], dict.fromkeys([*places, own, at, *inputs]))
    rows = {place: tensor[0, position].flatten().double() for place, tensor in found.items()}
    total = torch.stack([rows[place] for place in places]).sum(0)
    if (total - rows[at]).norm() > TOLERANCE * rows[at].norm():
        raise ValueError(f"The residual stream at {at} is not the sum of what the blocks before wrote to it.")

    w = dictionary.W_enc[:, latent].double().to(total.device)
    direction, constant, scale = _through_norm(model, layer, where, rows[at], rows[own], w)

    def share(term: Tensor) -> float:
        return scale * float(term.double() @ direction)

    terms: list[dict[str, Any]] = []

    def add(kind: str, place: str, value: float, latent: int = -1, activation: float = float("nan")) -> None:
        terms.append(
            {"kind": kind, "place": place, "latent": latent, "activation": activation, "attribution": value}
        )

    for place in places:
        if place not in writers:
            add("component", place, share(rows[place]))
            continue
        writer = writers[place]
        x = rows[str(writer.hook_point)][None].to(writer.W_enc)
        active = writer.encode_sparse(x)
        for index, value in zip(active.indices.tolist(), active.values.tolist(), strict=True):
            add("latent", place, value * share(writer.W_dec[index]), index, value)
        add("bias", place, share(writer.b_dec))
        if (own_scale := writer.row_scale(x)) is not None:
            add("skip", place, share(own_scale.centre[0]))
        add("error", place, share(rows[place] - writer.decode(active, own_scale)[0].double()))
    add("own bias", own, constant + float(dictionary.b_enc[latent]))
    pre_activation = float(rows[own] @ w) + float(dictionary.b_enc[latent])
    return UpstreamAttribution(
        dictionary.identity, latent, position, pd.DataFrame(terms), pre_activation, scale
    )


def _reads(dictionary: Dictionary) -> tuple[int, str]:
    found = READS.fullmatch(dictionary.hook_point or "")
    if found is None or dictionary.normalization is not None:
        raise ValueError(
            f"{dictionary.name} reads {dictionary.hook_point or 'an unknown hook point'}: attribution along "
            "the residual stream needs the input of an MLP (mlp.hook_in, ln2.hook_normalized) or the stream."
        )
    return int(found[1]), found[2]


def _written(layer: int, stream: str) -> list[str]:
    """Hook points that have written to the stream, after the embedding."""
    done = [f"blocks.{i}.hook_{part}_out" for i in range(layer) for part in ("attn", "mlp")]
    own = {"hook_resid_pre": [], "hook_resid_mid": ["attn"], "hook_resid_post": ["attn", "mlp"]}[stream]
    return done + [f"blocks.{layer}.hook_{part}_out" for part in own]


def _writers(upstream: Sequence[Dictionary], layer: int, where: str) -> dict[str, Dictionary]:
    """Upstream dictionaries by the hook point that they explain."""
    stream = where if where.startswith("hook_resid") else "hook_resid_mid"
    before = _written(layer, stream)
    writers: dict[str, Dictionary] = {}
    for writer in upstream:
        place = writer.target if writer.transcoder else writer.hook_point
        if place is None or WRITES.fullmatch(place) is None or writer.hook_point is None:
            raise ValueError(
                f"{writer.name} explains {place or 'an unknown hook point'}: upstream dictionaries explain "
                "what is written to the residual stream, hook_mlp_out or hook_attn_out."
            )
        if writer.normalization is not None:
            raise ValueError(f"{writer.name} normalises every row: convert it with saekit.as_jumprelu.")
        if place not in before:
            raise ValueError(f"{writer.name} explains {place}, which is not before blocks.{layer}.{where}.")
        if place in writers:
            raise ValueError(f"Two upstream dictionaries explain {place}: give one of them.")
        writers[place] = writer
    return writers


def _through_norm(
    model: TransformerBridge, layer: int, where: str, stream: Tensor, normed: Tensor, w: Tensor
) -> tuple[Tensor, float, float]:
    """The direction in the stream that `w` reads through the frozen norm, a constant, and the scale."""
    if where.startswith("hook_resid"):
        return w, 0.0, 1.0
    gain, bias = (part.double().to(w.device) for part in norm_weights(model, f"blocks.{layer}.ln2"))
    centred = str(model.cfg.normalization_type).startswith("LN")
    u = stream - stream.mean() if centred else stream
    # Some hook points hold the input of the norm's weights, others their output: see which.
    for g, b in ((gain, bias), (torch.ones_like(gain), torch.zeros_like(bias))):
        scaled, given = u * g, normed - b
        scale = float(scaled @ given / (scaled @ scaled))
        if (given - scale * scaled).norm() <= TOLERANCE * given.norm():
            direction = w * g
            return direction - direction.mean() if centred else direction, float(b @ w), scale
    raise ValueError(f"blocks.{layer}.{where} is not what a frozen norm makes of the residual stream.")
