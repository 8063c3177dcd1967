"""The settings of a training run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from saekit.settings import choice, flag, normalise, optional, positive, share, whole
from saekit.training.variants import VARIANTS, Variant

WARMUP, WARMUP_SHARE = 200, 10  # steps of warm-up; the longest, as one part in this many of the run


@dataclass(frozen=True)
class TrainingConfig:
    """How to train one dictionary.

    Every setting is checked when it is given, and kept as a plain Python value.

    Parameters
    ----------
    variant : Variant
        The kind with its settings, such as `ReLU(target_l0=36)` or `BatchTopK(k=32)`.
    width : int
        Number of latents.
    seed : int
        Seed of the initialisation (together with kind and width), and of the data order unless
        `data_seed` is given.
    steps : int
        Optimiser steps.
    batch_size : int
        Tokens per step.
    lr : float
        Adam's learning rate at its plateau.
    warmup : int, optional
        Steps over which the learning rate rises; 200 if left out, but at most a tenth of the run.
    decay : float
        Last part of training, from 0 to 1, over which the learning rate falls to zero.
    log_every : int
        Steps between evaluations; each adds a row to the log.
    bf16_candidates : bool
        Search for active latents in bfloat16 and compute their values in float32, see
        `saekit.sparse.encode_above`: faster for wide dictionaries where the device has bfloat16.
    data_seed : int, optional
        Seed of the data order alone; `seed` if left out. Recorded only if it is given, so that older
        records stay valid.
    decoder_cosine : float, optional
        For a baseline (`saekit.baselines`): every decoder row keeps at least this cosine with its initial
        direction, at every step. 1 freezes the decoder. Recorded only if it is given.
    skip : bool
        Of a transcoder: learn a skip connection, by which the prediction is linear in the input but for
        the latents. Recorded only if it is on.

    Raises
    ------
    TypeError
        If a setting is of the wrong type.
    ValueError
        If a setting is out of range, the variant does not fit the width, or decoder rows of free norm are
        to keep a cosine.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.BatchTopK(k=4), width=32, steps=100)
    >>> config.warmup_steps
    10
    >>> config.lr_at(99)
    5e-05
    """

    variant: Variant
    width: int
    seed: int = 0
    steps: int = 6000
    batch_size: int = 512
    lr: float = 1e-3
    warmup: int | None = None
    decay: float = 0.2
    log_every: int = 500
    bf16_candidates: bool = False
    data_seed: int | None = None
    decoder_cosine: float | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.variant, Variant):
            raise TypeError(
                f"variant must be a kind of SAE with its settings, such as ReLU(target_l0=36.0) or "
                f"BatchTopK(k=32), found {self.variant!r}."
            )
        any_whole = partial(whole, at_least=None)
        normalise(
            self,
            {
                **dict.fromkeys(("width", "steps", "batch_size", "log_every"), whole),
                "seed": any_whole,
                "lr": positive,
                "warmup": optional(partial(whole, at_least=0)),
                "decay": share,
                "bf16_candidates": flag,
                "skip": flag,
                "data_seed": optional(any_whole),
                "decoder_cosine": optional(share),
            },
        )
        self.variant.check_width(self.width)
        if self.decoder_cosine is not None and not self.variant.unit_norm:
            raise ValueError("decoder_cosine needs a variant that keeps decoder rows at norm 1.")

    @property
    def kind(self) -> str:
        """The kind of the dictionary: the variant's, or that of a baseline with its decoder held."""
        held = {None: "", 1.0: "-frozen-decoder"}.get(self.decoder_cosine, "-soft-frozen-decoder")
        return self.variant.kind + held

    @property
    def initial_seed(self) -> int:
        """Seed of the initialisation: a decoder that is held shares no initial rows with a trained one."""
        if self.decoder_cosine is None:
            return self.seed
        return int.from_bytes(hashlib.sha256(f"{self.decoder_cosine} {self.seed}".encode()).digest()[:6])

    @property
    def order_seed(self) -> int:
        """Seed of the data order."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return min(WARMUP, self.steps // WARMUP_SHARE) if self.warmup is None else self.warmup

    def describe(self) -> dict[str, Any]:
        """The config as JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {"variant": self.variant.describe(), "warmup": self.warmup_steps}
        for name in ("data_seed", "decoder_cosine"):
            if plain[name] is None:
                del plain[name]
        if not self.skip:
            del plain["skip"]
        return plain

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, plateau, linear decay to zero."""
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.lr * min(self._rising(step), falling)

    def _rising(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    def schedule(self, step: int) -> tuple[float, Any]:
        """Everything about a step that depends on its number: learning rate and the variant's phase."""
        return self.lr_at(step), self.variant.phase(step / self.steps)

    @property
    def plateau_end(self) -> int:
        """The first step that a longer run, with the same other settings, would take differently.

        Up to it both are the same run, so training can be extended from there, see
        `saekit.training.trainer.train`.
        """
        first = self.variant.phase(0.0)
        for step in range(self.steps):
            if self.schedule(step) != (self.lr * self._rising(step), first):
                return step
        return self.steps


def configure(kind: str, settings: Mapping[str, Any]) -> TrainingConfig:
    """A config from a kind's name and settings by name, as a command line or a file gives them.

    Parameters
    ----------
    kind : str
        One of `VARIANTS`.
    settings : mapping
        Parameters of `TrainingConfig` and of the variant together; `width` is required.

    Raises
    ------
    ValueError
        If there is no such kind or setting, a setting does not apply to this kind, the width is
        missing, or as for `TrainingConfig`.
    TypeError
        As `TrainingConfig`.

    Examples
    --------
    >>> config = configure("batchtopk", {"k": 4, "width": 32, "steps": 100})
    >>> config.variant.k, config.width, config.steps
    (4, 32, 100)
    """
    variant = VARIANTS[choice("kind", kind, VARIANTS)]
    general = {f.name for f in fields(TrainingConfig)} - {"variant"}
    own = _settings_of(variant)
    for name in settings:
        if name not in general | own:
            others = [each for each, other in VARIANTS.items() if name in _settings_of(other)]
            raise ValueError(
                f"{name} does not apply to {kind}, only to {', '.join(others)}; {kind} takes "
                f"{', '.join(sorted(own))}."
                if others
                else f"There is no setting {name}: training takes {', '.join(sorted(general))}, and {kind} "
                f"also {', '.join(sorted(own))}."
            )
    if "width" not in settings:
        raise ValueError(f"The width of the {kind} dictionary to train must be given.")
    return TrainingConfig(
        variant(**{name: value for name, value in settings.items() if name in own}),
        **{name: value for name, value in settings.items() if name in general},
    )


def _settings_of(variant: Any) -> set[str]:
    """Names of the settings of a variant, which is a dataclass."""
    return {field.name for field in fields(variant)}
