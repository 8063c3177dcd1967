"""Hook points with a dictionary, the state of their nodes on prompts, and what nodes are set to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.agreement import check_agreement
from saekit.dictionary import Dictionary
from saekit.models import PartialRun, device_of, require_rows, resolve_hook_point, run_to
from saekit.prompts import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BASELINES = ("patch", "mean", "zero")


@dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of one hook point on some prompts: latents, and what no latent explains.

    Attributes
    ----------
    latents : Tensor
        `[n, ctx, width]`.
    error : Tensor
        `[n, ctx, d]`: latents times decoder rows, `b_dec` and this are the activation (so the skip
        connection of a transcoder is part of it).
    """

    latents: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """A dictionary at its hook point in a model.

    Attributes
    ----------
    dictionary : Dictionary
        On the model's device.
    reads, writes : str
        Hook points of what it encodes and of what it explains: the same, except for transcoders.
    layer : int
        The block of `reads`.
    """

    dictionary: Dictionary
    reads: str
    writes: str
    layer: int

    def run(self, model: TransformerBridge, tokens: Tensor) -> PartialRun:
        """Prompts run as far as this place."""
        inputs = self.reads if self.dictionary.transcoder else None
        return run_to(model, tokens, self.writes, inputs=inputs)

    def nodes(self, inputs: Tensor, activations: Tensor) -> Nodes:
        """The nodes of activations `[n, ctx, d]`."""
        latents = self.dictionary.encode(inputs.flatten(0, 1)).view(*inputs.shape[:2], -1)
        x = activations.to(self.dictionary.W_dec.dtype)
        return Nodes(latents, x - latents @ self.dictionary.W_dec - self.dictionary.b_dec)

    def of(self, run: PartialRun) -> Nodes:
        """The nodes of a run."""
        inputs = run.activations if run.inputs is None else run.inputs
        return self.nodes(inputs, run.activations)

    def activations(self, nodes: Nodes) -> Tensor:
        """The activations that nodes make up, `[n, ctx, d]`."""
        return nodes.latents @ self.dictionary.W_dec + self.dictionary.b_dec + nodes.error


def sites_of(
    model: TransformerBridge, dictionaries: Dictionary | Sequence[Dictionary], *, allow_mismatch: bool
) -> list[Site]:
    """Check dictionaries, each at its own hook point.

    Raises
    ------
    TypeError, ValueError
        If there are none, one records no hook point, normalises every row or has another dimension than
        its hook point, or two explain the same one.
    MismatchError
        If one is of another model.

    Examples
    --------
    >>> [site.writes for site in sites_of(model, saes[16], allow_mismatch=False)]
    ['blocks.1.hook_resid_post']
    """
    members = [dictionaries] if isinstance(dictionaries, Dictionary) else list(dictionaries)
    sites: list[Site] = []
    if not members:
        raise ValueError("Effects need at least one dictionary, found none.")
    for member in members:
        check_agreement(model=model, dictionaries=[member], allow_mismatch=allow_mismatch)
        writes = member.target if member.transcoder else member.hook_point
        if member.hook_point is None or writes is None:
            raise ValueError(f"{member.name} records no hook point, so its place in the model is unknown.")
        if member.normalization is not None:
            raise ValueError(
                f"{member.name} measures each row in its own unit ({member.normalization}), so its latents "
                "cannot be set: convert it with saekit.as_jumprelu(dictionary, activations)."
            )
        _, layer = resolve_hook_point(model, member.hook_point)
        if layer is None:
            raise ValueError(f"{member.name} is at {member.hook_point}, outside the model's blocks.")
        if writes in [site.writes for site in sites]:
            raise ValueError(f"Two dictionaries explain {writes}: give one per hook point.")
        site = Site(member.to(device_of(model)), member.hook_point, writes, layer)
        held = site.run(model, torch.zeros(1, 1, dtype=torch.long)).activations.shape[-1]
        if held != member.d_out:
            raise ValueError(
                f"{member.name} has {member.d_out} dimensions, but {writes} of the model holds {held}."
            )
        sites.append(site)
    return sites


def counted_positions(prompts: Prompts, start: int) -> Tensor:
    """Positions whose nodes count: from `start` to the last token of each prompt, Boolean `[n, ctx]`."""
    place = torch.arange(prompts.tokens.shape[1])
    return (place >= start) & (place < prompts.lengths[:, None])


def baseline_of(
    model: TransformerBridge, site: Site, prompts: Prompts, clean: Nodes, baseline: str, counted: Tensor
) -> Nodes:
    """The nodes that an ablation or patch sets in the place of the clean ones.

    `"zero"`: nothing; `"patch"`: those of the corrupted prompt; `"mean"`: their mean over the corrupted
    prompts (the clean ones, if there are none) at the same position.
    """
    if baseline == "zero":
        return Nodes(torch.zeros_like(clean.latents), torch.zeros_like(clean.error))
    found = clean
    if prompts.corrupted is not None:
        found = site.of(site.run(model, prompts.corrupted))
    if baseline == "patch":
        return found
    weights = counted.to(found.error)[:, :, None]
    total = weights.sum(0).clamp(min=1)

    def mean(part: Tensor) -> Tensor:
        return ((part * weights).sum(0) / total).expand_as(part)

    return Nodes(mean(found.latents), mean(found.error))


def require_prompts(model: TransformerBridge, prompts: Prompts, baseline: str) -> None:
    """Refuse prompts that a model cannot take, or that lack what the baseline needs."""
    if not isinstance(prompts, Prompts):
        raise TypeError(
            f"prompts must be saekit.Prompts, found {type(prompts).__name__}: make them with "
            "saekit.Prompts.from_texts(model.tokenizer, texts)."
        )
    if baseline == "patch" and prompts.corrupted is None:
        raise ValueError(
            'baseline="patch" needs a corrupted prompt for each clean one, and these have none: give them, '
            'or choose baseline="mean" or "zero".'
        )
    require_rows(model, prompts.tokens)
    if prompts.corrupted is not None:
        require_rows(model, prompts.corrupted)
