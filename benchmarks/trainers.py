"""saekit's trainer and a dense reference, behind one interface that the peers' trainers share.

Every trainer takes batches that are centred and scaled already, as saekit does it itself. saekit's
own step still includes it, so it subtracts a mean of nothing and multiplies by one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saekit.training.config import TrainingConfig
from saekit.training.trainer import _Run
from saekit.training.variants import VARIANTS, Variant

FIXED_SPARSITY = ("topk", "batchtopk")  # kinds whose weights are the same four tensors everywhere


class Weights(NamedTuple):
    """A dictionary that encodes `x @ W_enc.T + b_enc` and decodes `latents @ W_dec + b_dec`.

    Both matrices are by rows, `[width, d_in]`.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def of_centred_input(self) -> Weights:
        """The same function for trainers that encode `x - b_dec`."""
        return self._replace(b_enc=self.b_enc + self.W_enc @ self.b_dec)

    def of_input(self) -> Weights:
        """The same function for `x`, of weights that encode `x - b_dec`."""
        return self._replace(b_enc=self.b_enc - self.W_enc @ self.b_dec)


@dataclass(frozen=True)
class Task:
    """What every trainer is told.

    Parameters
    ----------
    kind : str
        A name in `saekit.training.variants.VARIANTS`.
    d_in, width, k : int
        Sizes; `k` is the target L0 of kinds that do not fix it.
    batch_size, steps : int
        Tokens a step, and the length of the learning rate's schedule.
    dead_after : int
        A latent is dead once it has been silent for this many tokens.
    lr, decay : float
        Learning rate, and the last part of training over which it falls to zero.
    device : str
        Where to train.
    """

    kind: str
    d_in: int
    width: int
    k: int
    batch_size: int
    steps: int
    dead_after: int
    lr: float = 1e-3
    decay: float = 0.2
    device: str = "cpu"

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate rises."""
        return max(1, self.steps // 10)

    @property
    def variant(self) -> Variant:
        """The saekit variant of this kind and sparsity."""
        variant = VARIANTS[self.kind]
        wanted = {"k": self.k, "target_l0": float(self.k), "dead_after": self.dead_after}
        return variant(**{f.name: wanted[f.name] for f in fields(variant) if f.name in wanted})  # type: ignore[arg-type]  # they are dataclasses

    def config(self, *, bf16_candidates: bool = False) -> TrainingConfig:
        """The training config for saekit."""
        return TrainingConfig(
            variant=self.variant,
            width=self.width,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup=self.warmup,
            decay=self.decay,
            bf16_candidates=bf16_candidates,
        )


class Trainer(ABC):
    """One way to train, with whole steps; `load` and `weights` are for TopK and BatchTopK only."""

    label: str
    kinds: tuple[str, ...]

    @abstractmethod
    def step(self, z: Tensor) -> Any:
        """One whole training step on centred and scaled activations `[batch, d_in]`."""

    @abstractmethod
    def load(self, weights: Weights, silent_tokens: Tensor) -> None:
        """Go on from these weights, and from how long each latent has been silent, `[width]`."""

    @abstractmethod
    def weights(self) -> Weights:
        """Copies of the weights as they stand."""

    @property
    @abstractmethod
    def dead(self) -> int | None:
        """Number of dead latents, where the trainer keeps count of them."""


class Saekit(Trainer):
    """saekit's own run, step by step as `saekit.training.trainer.train` makes it."""

    kinds = tuple(VARIANTS)

    def __init__(self, task: Task, source: Any, *, bf16_candidates: bool = False) -> None:
        self.label = "saekit, bf16 candidates" if bf16_candidates else "saekit"
        config = task.config(bf16_candidates=bf16_candidates)
        self.run = _Run(config, source, source, torch.device(task.device))

    def step(self, z: Tensor) -> None:
        """Normalisation, loss with AuxK, gradients, their projection, Adam, schedule, unit norms."""
        self.run.train_step(z)

    def load(self, weights: Weights, silent_tokens: Tensor) -> None:
        """See `Trainer`."""
        with torch.no_grad():
            for name, tensor in weights._asdict().items():
                self.run.sae.parameters[name].copy_(tensor)
        self.silent_tokens.copy_(silent_tokens)

    def weights(self) -> Weights:
        """See `Trainer`."""
        sae = self.run.sae
        return Weights(*(t.detach().clone() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)))

    @property
    def silent_tokens(self) -> Tensor:
        """Tokens that each latent has been silent for, int64 `[width]`."""
        return self.run.sae.state["silent_tokens"]

    @property
    def dead(self) -> int:
        """See `Trainer`."""
        return len(self.run.sae.dead(self.run.config.variant.dead_after))


class Dense(Trainer):
    """The loss of saekit's TopK and BatchTopK in plain dense autograd: what its FVU has to match."""

    label = "dense reference"
    kinds = FIXED_SPARSITY

    def __init__(self, task: Task) -> None:
        self.task, self.config = task, task.config()
        self.parameters = [
            torch.zeros(task.width, task.d_in, device=task.device),
            torch.zeros(task.width, device=task.device),
            torch.zeros(task.width, task.d_in, device=task.device),
            torch.zeros(task.d_in, device=task.device),
        ]
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.optimiser = torch.optim.Adam(self.parameters, betas=self.config.variant.betas)
        self.silent_tokens = torch.zeros(task.width, dtype=torch.long, device=task.device)
        self.done = 0

    def step(self, z: Tensor) -> None:
        """Loss with AuxK, gradients, their projection, Adam, schedule, unit norms."""
        _, _, W_dec, _ = self.parameters
        self._loss(z).backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
        self.optimiser.param_groups[0]["lr"] = self.config.lr_at(self.done)
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        self.done += 1

    def _loss(self, z: Tensor) -> Tensor:
        W_enc, b_enc, W_dec, b_dec = self.parameters
        h = F.linear(z, W_enc, b_enc)
        latents = fixed_sparsity(h, self.task.kind, self.task.k)
        residual = z - (latents @ W_dec + b_dec)
        loss = residual.square().sum() / len(z)
        self.silent_tokens += len(z)
        self.silent_tokens[(latents > 0).any(dim=0)] = 0
        dead = self.silent_tokens >= self.task.dead_after
        if not dead.any():
            return loss
        k_aux = min(self.task.d_in // 2, int(dead.sum()))
        auxiliary = fixed_sparsity(h[:, dead], "topk", k_aux) @ W_dec[dead]
        auxiliary_loss = (residual.detach() - auxiliary).square().sum() / len(z)
        return loss + self.config.variant.aux_coefficient * auxiliary_loss

    def load(self, weights: Weights, silent_tokens: Tensor) -> None:
        """See `Trainer`."""
        with torch.no_grad():
            for parameter, tensor in zip(self.parameters, weights, strict=True):
                parameter.copy_(tensor)
        self.silent_tokens.copy_(silent_tokens)

    def weights(self) -> Weights:
        """See `Trainer`."""
        return Weights(*(parameter.detach().clone() for parameter in self.parameters))

    @property
    def dead(self) -> int:
        """See `Trainer`."""
        return int((self.silent_tokens >= self.task.dead_after).sum())


def fixed_sparsity(h: Tensor, kind: str, k: int) -> Tensor:
    """Dense latents of pre-activations `[batch, width]`: the `k` largest a row, or a row on average."""
    rows = h if kind == "topk" else h.reshape(1, -1)
    found = rows.topk(k if kind == "topk" else k * len(h), dim=1)
    return torch.zeros_like(rows).scatter(1, found.indices, found.values.relu()).view_as(h)


def fvu(weights: Weights, kind: str, k: int, z: Tensor, *, batch_size: int = 2048) -> float:
    """Fraction of the variance of `z` `[n, d_in]` that is unexplained, one definition for every trainer.

    BatchTopK keeps the largest of each evaluated batch, so no trainer's threshold enters.
    """
    errors = torch.zeros((), dtype=torch.float64, device=z.device)
    with torch.no_grad():
        for rows in z.split(batch_size):
            latents = fixed_sparsity(F.linear(rows, weights.W_enc, weights.b_enc), kind, k)
            errors += (rows - (latents @ weights.W_dec + weights.b_dec)).double().square().sum()
    deviations = (z.double() - z.double().mean(dim=0)).square().sum()
    return float(errors / deviations)
