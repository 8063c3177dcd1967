"""Dictionaries that learnt little or nothing, to set beside trained ones.

Each is a `Dictionary` like any other, of a kind of its own, so every analysis takes it in place of the
trained one; `compare_with_baselines` makes the table. A headline that a baseline reaches too does not
show that training has found anything (Korznikov et al. 2026, arXiv 2602.14111).

| baseline | decoder directions | encoder and thresholds |
|---|---|---|
| `frozen_decoder` | random, never trained | trained |
| `soft_frozen_decoder` | trained, within a cosine of random ones | trained |
| `permuted_decoder` | those of the dictionary, each given to another latent | the dictionary's |
| `random_at_equal_l0` | random | the same directions, as dense as the dictionary's latents |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.activations import Activations, ActivationStore, as_activations, random_stream
from saekit.agreement import check_agreement
from saekit.analysis.nulls import random_directions
from saekit.dictionary import Dictionary
from saekit.folding import with_directions
from saekit.identity import distinct_names
from saekit.sparse import affine
from saekit.training.config import TrainingConfig
from saekit.training.sources import spread
from saekit.training.trainer import train

SOFT = 0.8  # least cosine of a soft-frozen decoder row with its initial direction
MATCHES = ("density", "l0")
SAMPLE = 16_384  # tokens on which densities are matched
LATENTS = 128  # matched at a time


def frozen_decoder(config: TrainingConfig, activations: Activations, **options: Any) -> Dictionary:
    """Train an encoder and biases over random decoder directions that stay as they are.

    Parameters
    ----------
    config : TrainingConfig
        How the dictionary that this is the baseline of was trained.
    activations : ActivationStore, StreamedActivations, Tensor or array
        What it was trained on.
    **options
        As for `saekit.train`, such as `held_out` and `checkpoint`.

    Raises
    ------
    TypeError, ValueError, OSError, FloatingPointError
        As `saekit.train`; ValueError also if the variant leaves the norms of decoder rows free.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.BatchTopK(k=1), width=8, steps=50, batch_size=64)
    >>> saekit.frozen_decoder(config, x, progress=False)
    Dictionary(batchtopk-frozen-decoder 8 (seed 0), d_in=6, width=8)
    """
    return train(replace(config, decoder_cosine=1.0), activations, **options).dictionary


def soft_frozen_decoder(
    config: TrainingConfig, activations: Activations, *, cosine: float = SOFT, **options: Any
) -> Dictionary:
    """Train a dictionary whose decoder rows stay within a cosine of their random initial directions.

    Parameters
    ----------
    config, activations, **options
        As for `frozen_decoder`.
    cosine : float
        Least cosine of a row with its initial direction, at every step of training.

    Raises
    ------
    TypeError, ValueError, OSError, FloatingPointError
        As `frozen_decoder`.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.BatchTopK(k=1), width=8, steps=50, batch_size=64)
    >>> saekit.soft_frozen_decoder(config, x, progress=False)
    Dictionary(batchtopk-soft-frozen-decoder 8 (seed 0), d_in=6, width=8)
    """
    return train(replace(config, decoder_cosine=cosine), activations, **options).dictionary


def permuted_decoder(dictionary: Dictionary, *, seed: int = 0) -> Dictionary:
    """The dictionary with every decoder direction given to another latent.

    Whatever depends on the encoder alone (when latents are active, probes, labels) or on the directions
    as a set (best cosines, meta-SAEs) is the dictionary's own.

    Parameters
    ----------
    dictionary : Dictionary
        With two latents at least.
    seed : int
        Seed of the permutation, which is one cycle: no latent keeps its direction.

    Raises
    ------
    ValueError
        If there are fewer than two latents, or the seed is negative.

    Examples
    --------
    >>> saekit.permuted_decoder(dictionary)
    Dictionary(relu-permuted-decoder 8 (seed 0), d_in=6, width=8)
    """
    seed = settings.whole("seed", seed, at_least=0)
    if dictionary.width < 2:
        raise ValueError(
            f"A decoder to permute needs at least two latents, {dictionary.name} has one or none."
        )
    cycle = torch.randperm(dictionary.width, generator=random_stream(seed, dictionary.width))
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    rows = dictionary.W_dec[order.to(dictionary.W_dec.device)]
    permuted = with_directions(dictionary, rows, kind=f"{dictionary.kind}-permuted-decoder")
    return replace(permuted, info={**permuted.info, "baseline_of": dictionary.content_hash})


@torch.no_grad()
def random_at_equal_l0(
    dictionary: Dictionary,
    activations: Activations,
    *,
    match: str = "density",
    seed: int = 0,
    allow_mismatch: bool = False,
) -> Dictionary:
    """Random directions that fire as often as the latents of a dictionary.

    Encoder and decoder are the same directions, on activations from which their mean is subtracted. The
    threshold of each latent is such that, on these activations (at most 16,384, spread evenly), it is
    active on exactly as many tokens as the dictionary's latent, or on as many as its latents on average.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary whose width and sparsity to match.
    activations : ActivationStore, Tensor or array
        Tokens to match it on.
    match : {"density", "l0"}
        Match latent by latent, or the mean number of active latents with the same density for all.
    seed : int
        Seed of the directions.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If there is no such match, the seed is negative, or the inputs do not belong together.

    Examples
    --------
    >>> random = saekit.random_at_equal_l0(dictionary, x)
    >>> random
    Dictionary(relu-random-at-equal-l0 8 (seed 0), d_in=6, width=8)
    >>> counts = [(sae.encode(x) > 0).sum(0) for sae in (dictionary, random)]
    >>> torch.equal(*counts)
    True
    """
    match, seed = settings.choice("match", match, MATCHES), settings.whole("seed", seed, at_least=0)
    activations = as_activations(activations)
    check_agreement(activations=activations, dictionaries=[dictionary], allow_mismatch=allow_mismatch)
    if isinstance(activations, ActivationStore):
        activations = activations.read(spread(activations.positions, SAMPLE))
    x = activations[spread(torch.arange(len(activations)), SAMPLE)].to(dictionary.W_enc)
    active = torch.bincount(dictionary.encode_sparse(x).indices, minlength=dictionary.width)
    if match == "l0":  # as even as whole numbers of tokens allow
        total, places = int(active.sum()), torch.arange(dictionary.width, device=active.device)
        active = (places + 1) * total // dictionary.width - places * total // dictionary.width
    mean = x.double().mean(0).to(x)
    rows = random_directions(dictionary.width, dictionary.d_in, seed=seed).to(x)
    bias = -(rows @ mean)
    parts = zip(rows.split(LATENTS), bias.split(LATENTS), active.split(LATENTS), strict=True)
    cut = torch.cat([_cuts(affine(x, W, b), n) for W, b, n in parts])
    return Dictionary(
        W_enc=rows.T.contiguous(),
        b_enc=bias - cut.clamp(max=0),  # a latent that is active on most tokens: thresholds are not negative
        W_dec=rows,
        b_dec=mean,
        threshold=cut.clamp(min=0),
        info={
            **dictionary.info,
            "kind": f"{dictionary.kind}-random-at-equal-l0",
            "baseline_of": dictionary.content_hash,
        },
    )


def _cuts(h: Tensor, n_active: Tensor) -> Tensor:
    """Values that exactly so many of each column of `h` `[tokens, latents]` exceed, `[latents]`.

    Half-way between two neighbouring values, so that rounding elsewhere does not matter.
    """
    ordered = h.sort(dim=0, descending=True).values
    ordered = torch.cat([ordered[:1] + 2, ordered, ordered[-1:] - 2])
    above, below = (ordered.gather(0, (n_active + step)[None])[0] for step in (0, 1))
    return (above + below) / 2


def compare_with_baselines(
    dictionary: Dictionary,
    baselines: Sequence[Dictionary],
    measure: Callable[[Dictionary], Mapping[str, Any]],
) -> pd.DataFrame:
    """Headline numbers of a dictionary beside those of its baselines.

    Parameters
    ----------
    dictionary : Dictionary
        The trained dictionary.
    baselines : sequence of Dictionary
        Of its width.
    measure : callable
        Gives the headline numbers of a dictionary by name, such as
        `lambda sae: saekit.evaluate(sae, x).summary`.

    Returns
    -------
    DataFrame
        One row per dictionary, the trained one first: `dictionary`, `kind`, `width`, `seed`, and a column
        per headline.

    Raises
    ------
    ValueError
        If a baseline has another width or `d_in`.

    Examples
    --------
    >>> baselines = [saekit.permuted_decoder(dictionary), saekit.random_at_equal_l0(dictionary, x)]
    >>> table = saekit.compare_with_baselines(
    ...     dictionary, baselines, lambda sae: {"FVU": saekit.evaluate(sae, x).fvu}
    ... )
    >>> table["FVU"].idxmin()
    0
    """
    members = [dictionary, *baselines]
    for one in baselines:
        if (one.width, one.d_in) != (dictionary.width, dictionary.d_in):
            raise ValueError(
                f"A baseline of {dictionary.name} has width {dictionary.width} and d_in {dictionary.d_in}, "
                f"found {one.name} with {one.width} and {one.d_in}."
            )
    names = distinct_names(one.identity for one in members)
    return pd.DataFrame(
        {"dictionary": name, "kind": one.kind, "width": one.width, "seed": one.seed, **measure(one)}
        for name, one in zip(names, members, strict=True)
    )
