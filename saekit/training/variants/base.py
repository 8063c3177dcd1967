"""Shared by the training variants: parameters, initialisation, dead latents."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor

from saekit.distributed import all_reduce_mean, all_reduce_sum, world_size
from saekit.settings import normalise, optional, positive, real, whole
from saekit.sparse import Cut, SparseLatents, affine, decode_active, encode_above, encode_active

GAIN = 0.01  # change of a coefficient's logarithm per step, for an L0 that is off by a factor of e


@dataclass
class SAE:
    """A sparse autoencoder in training, on activations that are centred and scaled.

    Parameters
    ----------
    W_enc, b_enc : Tensor
        Encoder by rows, so that its gradient is rows too, `[width, d_in]`; bias, `[width]`.
    W_dec, b_dec : Tensor
        Decoder directions, rows of unit norm, `[width, d_in]`; bias, `[d_in]`. Of a transcoder, `d_out` takes
        the place of `d_in`.
    extra : dict of Tensor
        Further parameters that the variant learns, by name.
    state : dict of Tensor
        Counters of the variant; saved in checkpoints.
    bf16_candidates : bool
        Whether active latents are searched for in bfloat16, see `saekit.sparse.encode_above`.
    W_skip : Tensor, optional
        Of a transcoder with a skip connection: `[d_in, d_out]`.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    bf16_candidates: bool = False
    W_skip: Tensor | None = None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The tensors that the optimiser updates, by name."""
        own = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        skip = {} if self.W_skip is None else {"W_skip": self.W_skip}
        return own | skip | self.extra

    @property
    def width(self) -> int:
        """Number of latents."""
        return len(self.W_enc)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> SAE:
        """The same on another device, or with parameters in another dtype; single numbers stay."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", *(["W_skip"] if self.W_skip is not None else []))
        own = {name: getattr(self, name).to(device, dtype) for name in names}
        extra = {name: tensor.to(device, dtype) for name, tensor in self.extra.items()}
        state = {name: s if s.ndim == 0 else s.to(device) for name, s in self.state.items()}
        return replace(self, **own, extra=extra, state=state)

    def count(self, latents: SparseLatents) -> None:
        """Keep count of the tokens, of all processes, that each latent has been silent for."""
        silent = self.state["silent_tokens"]
        silent += len(latents) * world_size()
        active = all_reduce_sum(torch.bincount(latents.indices, minlength=self.width))
        silent.masked_fill_(active > 0, 0)

    def decode(self, x: Tensor, values: Tensor, latents: SparseLatents) -> Tensor:
        """The prediction of each row, `[batch, d_out]`, from its active latents and, past them, the row."""
        decoded = decode_active(values, self.W_dec, latents) + self.b_dec
        return decoded if self.W_skip is None else decoded + x @ self.W_skip

    def detached(self) -> SAE:
        """The same with a decoder that no gradient reaches."""
        skip = None if self.W_skip is None else self.W_skip.detach()
        return replace(self, W_dec=self.W_dec.detach(), b_dec=self.b_dec.detach(), W_skip=skip)

    def dead(self, dead_after: int) -> Tensor:
        """Latents that have been silent for at least this many tokens, ascending, int64."""
        return (self.state["silent_tokens"] >= dead_after).nonzero().squeeze(1)

    def active_above(
        self, x: Tensor, floor: float | Tensor = 0.0, *, k: int | None = None, cut: Cut | None = None
    ) -> SparseLatents:
        """Latents whose pre-activation `x @ W_enc.T + b_enc` exceeds `floor`, without a graph.

        See `saekit.sparse.encode_above`.
        """
        return encode_above(
            x, self.W_enc, self.b_enc, floor, k=k, cut=cut, bf16_candidates=self.bf16_candidates
        )


def initialise(*, kind: str, width: int, d_in: int, seed: int) -> SAE:
    """Random decoder directions of unit norm, the encoder equal to them, biases zero.

    The random stream depends on seed, kind and width: a wider dictionary does not begin with a
    narrower one's rows, which would fake similarity across widths.
    """
    digest = hashlib.sha256(f"saekit {kind} {width} {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    directions = torch.randn(width, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    silent = torch.zeros(width, dtype=torch.long)
    return SAE(
        W_enc=directions,
        b_enc=torch.zeros(width),
        W_dec=directions.clone(),
        b_dec=torch.zeros(d_in),
        state={"silent_tokens": silent},
    )


def with_target(sae: SAE, d_out: int, *, skip: bool, seed: int) -> SAE:
    """The same SAE with another target: random decoder directions, and a skip connection of zeros.

    The encoder's directions mean nothing there. The random stream depends on seed, width and `d_out`.

    Examples
    --------
    >>> sae = initialise(kind="relu", width=8, d_in=6, seed=0)
    >>> with_target(sae, 4, skip=True, seed=0).W_dec.shape
    torch.Size([8, 4])
    """
    digest = hashlib.sha256(f"saekit target {sae.width} {d_out} {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    directions = torch.randn(sae.width, d_out, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    W_skip = torch.zeros(sae.W_enc.shape[1], d_out) if skip else None
    return replace(sae, W_dec=directions, b_dec=torch.zeros(d_out), W_skip=W_skip)


class Variant(ABC):
    """A kind of SAE: a frozen dataclass of its settings, with these methods.

    Attributes
    ----------
    kind : str
        Its name in `VARIANTS`, file names and tables.
    label, colour, marker, line : str
        Its look in figures and tables: its name for people, a colour that differs from the others' in
        grey and for the colour-blind, and matplotlib's marker and line style.
    sparsity : str
        The setting that says how many latents a token may use: `"target_l0"` or `"k"`.
    betas : tuple
        Adam's averaging rates.
    dead_after : int
        A latent is dead once it has been silent for this many tokens.
    """

    kind: ClassVar[str]
    label: ClassVar[str]
    colour: ClassVar[str] = "#cc78bc"
    marker: ClassVar[str] = "X"
    line: ClassVar[str] = "-."
    sparsity: ClassVar[str] = "target_l0"
    betas: ClassVar[tuple[float, float]]
    dead_after: int

    @property
    def unit_norm(self) -> bool:
        """Whether the trainer keeps decoder rows at unit norm."""
        return True

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, with its own random stream."""
        return initialise(kind=self.kind, width=width, d_in=d_in, seed=seed)

    def check_width(self, width: int) -> None:  # noqa: B027 (most settings fit any width)
        """Refuse a width that these settings do not fit.

        Raises
        ------
        ValueError
            If they do not.
        """

    @abstractmethod
    def loss(self, sae: SAE, x: Tensor, y: Tensor, *, done: float) -> Tensor:
        """Loss of a batch `[batch, d_in]`, a scalar with a graph; updates the state of `sae`.

        `y` is what is to be predicted, `[batch, d_out]`: `x` itself, except for a transcoder. `done` is the
        part of training completed so far, from 0 to 1.
        """

    def phase(self, done: float) -> Any:
        """The value through which the loss depends on `done`; None if it does not.

        Steps of two runs of different length are the same where this is equal.
        """
        return done

    def folding(self, sae: SAE) -> dict[str, Any]:
        """The SAE as `saekit.folding` takes it: weights, biases, threshold or k."""
        skip = {} if sae.W_skip is None else {"W_skip": sae.W_skip}
        return {"W_enc": sae.W_enc.T, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, **skip}

    def log(self, sae: SAE) -> dict[str, float]:
        """The part of the state that belongs in the training log."""
        return {"dead": len(sae.dead(self.dead_after))}

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        settings = asdict(self)  # type: ignore[call-overload]  # variants are dataclasses
        return {"kind": self.kind} | {n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()}


@dataclass(frozen=True)
class SteeredVariant(Variant):
    """Shared by the kinds with a sparsity penalty, whose coefficient is found rather than given.

    Dictionaries of several widths and kinds compare at equal sparsity. With a `target_l0`, the
    coefficient is steered towards that L0 during a first part of training and then stays as it is.

    Parameters
    ----------
    target_l0 : float or None
        Mean number of active latents per token to end with; None to keep the coefficient fixed.
    steering : float
        The first part of training in which the coefficient is steered, from 0 to 1.
    dead_after : int
        A latent counts as dead in the log once it has been silent for this many tokens.
    """

    target_l0: float | None = 36.0
    steering: float = 0.9
    dead_after: int = 100_000
    penalty: ClassVar[str]  # the field that holds the coefficient to start from, its name in logs

    def __post_init__(self) -> None:
        normalise(
            self,
            {
                self.penalty: positive,
                "target_l0": optional(positive),
                "steering": partial(real, above=0, at_most=1),
                "dead_after": whole,
            },
        )

    def check_width(self, width: int) -> None:
        """Refuse a width that is not above `target_l0`."""
        check_target_l0(self.target_l0, width)

    def phase(self, done: float) -> Any:
        """Whether the coefficient is being steered."""
        return self.target_l0 is not None and done < self.steering

    def initialise(self, *, width: int, d_in: int, seed: int) -> SAE:
        """A new SAE, with its own random stream, and the coefficient to start from."""
        sae = super().initialise(width=width, d_in=d_in, seed=seed)
        start = math.log(getattr(self, self.penalty))
        sae.state[f"log_{self.penalty}"] = torch.tensor(start, dtype=torch.float64)
        return sae

    def start_near_target(self, b_enc: Tensor) -> None:
        """Set biases so that about `target_l0` latents are active at first.

        If half of all latents were active at first, the penalty that drives L0 down would grow large
        enough to harm learning.
        """
        if self.target_l0 is not None:
            b_enc.fill_(-quantile(self.target_l0 / len(b_enc)))

    def coefficient(self, sae: SAE) -> float:
        """The coefficient that the SAE has reached."""
        return math.exp(sae.state[f"log_{self.penalty}"].item())

    def steer(self, sae: SAE, latents: SparseLatents, done: float) -> None:
        """Count the active latents of a batch, and take a step towards the target."""
        sae.count(latents)
        if self.target_l0 is not None and self.phase(done):
            l0 = mean_l0(latents)
            floor = 1 / len(latents)  # without active latents the logarithm does not exist
            sae.state[f"log_{self.penalty}"] += GAIN * math.log(max(l0, floor) / self.target_l0)

    def log(self, sae: SAE) -> dict[str, float]:
        """The coefficient and the dead latents."""
        return {self.penalty: self.coefficient(sae), **super().log(sae)}


@dataclass(frozen=True)
class TopKVariant(Variant):
    """Shared by TopK and BatchTopK: fixed sparsity, and AuxK against dead latents.

    Parameters
    ----------
    k : int
        Active latents per token.
    aux_coefficient : float
        Weight of the auxiliary loss (Gao et al. 2024, section 2.3: 1/32).
    k_aux : int, optional
        Dead latents per token in the auxiliary loss; half of `d_in` if left out.
    dead_after : int
        A latent is dead once it has been silent for this many tokens.
    """

    k: int = 32
    aux_coefficient: float = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000
    sparsity: ClassVar[str] = "k"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.99)

    def __post_init__(self) -> None:
        normalise(
            self,
            {
                "k": whole,
                "dead_after": whole,
                "k_aux": optional(whole),
                "aux_coefficient": partial(real, at_least=0),
            },
        )

    def check_width(self, width: int) -> None:
        """Refuse a width below `k`."""
        if self.k > width:
            raise ValueError(f"k must be at most the width {width}, found {self.k}.")

    def phase(self, done: float) -> Any:  # noqa: ARG002 (as in the base)
        """None: the loss does not depend on the progress of training."""
        return None

    @abstractmethod
    def select(self, sae: SAE, x: Tensor) -> SparseLatents:
        """The latents that stay active on a batch `[batch, d_in]`."""

    def loss(self, sae: SAE, x: Tensor, y: Tensor, *, done: float) -> Tensor:  # noqa: ARG002 (as in the base)
        """Mean squared error plus `aux_coefficient` times the auxiliary loss."""
        latents = self.select(sae, x)
        values = encode_active(x, sae.W_enc, sae.b_enc, latents)
        loss, residual = self.reconstruction_loss(sae, x, y, values, latents)
        sae.count(latents)
        dead = sae.dead(self.dead_after)
        if len(dead) and self.aux_coefficient:
            k_aux = self.k_aux or max(1, y.shape[1] // 2)
            loss = loss + self.aux_coefficient * auxiliary_loss(sae, x, residual, dead, k_aux)
        return loss

    def reconstruction_loss(
        self, sae: SAE, x: Tensor, y: Tensor, values: Tensor, latents: SparseLatents
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error, and the residual `[batch, d_out]` that dead latents are to explain."""
        residual = y - sae.decode(x, values, latents)
        return mean_squared_error(residual), residual


def mean_l0(latents: SparseLatents) -> float:
    """Mean number of active latents per token, over the shares of all processes."""
    return all_reduce_mean(torch.tensor(len(latents.values) / len(latents), dtype=torch.float64)).item()


def mean_squared_error(residual: Tensor) -> Tensor:
    """Squared error summed over dimensions, averaged over tokens."""
    return residual.square().sum() / len(residual)


def auxiliary_loss(sae: SAE, x: Tensor, residual: Tensor, dead: Tensor, k_aux: int) -> Tensor:
    """AuxK (Gao et al. 2024, section 2.3): dead latents reconstruct the residual of the live ones.

    The `k_aux` largest pre-activations of dead latents (all of them where fewer are dead or
    positive) decode the residual, which is a constant here, without the decoder's bias.

    Parameters
    ----------
    sae : SAE
        The SAE.
    x, residual : Tensor
        Inputs, and the residual of the live latents, `[batch, d_in]`.
    dead : Tensor
        The dead latents, ascending, int64.
    k_aux : int
        Dead latents per token.
    """
    # As a separate dictionary, dead latents are dense and their products fast.
    W_enc, b_enc, W_dec = (p.index_select(0, dead) for p in (sae.W_enc, sae.b_enc, sae.W_dec))
    with torch.no_grad():
        h = affine(x, W_enc, b_enc)
    largest = h.topk(min(k_aux, len(dead)), dim=1).indices
    active = torch.zeros_like(h, dtype=torch.bool).scatter_(1, largest, True) & (h > 0)
    latents = SparseLatents.from_mask(active, h)
    values = encode_active(x, W_enc, b_enc, latents)
    return mean_squared_error(residual.detach() - decode_active(values, W_dec, latents))


def quantile(share: float) -> float:
    """The value that this share of pre-activations, at most half, exceeds at first.

    Pre-activations of unit directions are about standard normal.
    """
    return -NormalDist().inv_cdf(min(share, 0.5))


def check_target_l0(target_l0: float | None, width: int) -> None:
    """Refuse a target that is not below the width.

    Raises
    ------
    ValueError
        If it is not.
    """
    if target_l0 is not None and target_l0 >= width:
        raise ValueError(f"target_l0 must be below the width {width}, found {target_l0}.")
