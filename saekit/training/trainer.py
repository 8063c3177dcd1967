"""Train a dictionary: config, trainer, checkpoints.

Activations are centred and scaled to norm `sqrt(d_in)` on average before they reach a variant,
so one set of hyper-parameters fits every hook point; the result is folded back to raw
activations. On the CPU with a fixed thread count the same config and data give the same bits,
whether or not training was interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from saekit.dictionary import Dictionary
from saekit.distributed import all_reduce_mean, is_main, local_slice, world_size
from saekit.files import hash_json, hash_tensors, write_tensors
from saekit.folding import Unfolded
from saekit.metrics import evaluate
from saekit.training.variants import Variant

FORMAT = "saekit-checkpoint-1"
SAMPLE = 32_768  # positions that the input's mean and scale are estimated from
EVALUATION_SAMPLE = 16_384  # positions of an evaluation during training
BLOCK = 1024  # decoder rows that stay in cache between two passes over them


class Source(Protocol):
    """What training needs of activations: an `ActivationStore` and `StreamedActivations` are such."""

    @property
    def d_in(self) -> int: ...  # noqa: D102

    @property
    def manifest(self) -> dict[str, Any]: ...  # noqa: D102

    @property
    def content_hash(self) -> str: ...  # noqa: D102

    @property
    def positions(self) -> Tensor: ...  # noqa: D102

    def read(self, positions: Tensor) -> Tensor: ...  # noqa: D102

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]: ...  # noqa: D102


@dataclass(frozen=True)
class TrainingConfig:
    """How to train one dictionary.

    Parameters
    ----------
    variant : Variant
        The kind with its settings, such as `ReLU(target_l0=36)` or `BatchTopK(k=32)`.
    width : int
        Number of latents.
    seed : int
        Of the initialisation, together with kind and width, and of the data order.
    steps, batch_size : int
        Optimiser steps, and tokens a step.
    lr : float
        Adam's learning rate at its plateau.
    warmup : int
        Steps over which the learning rate rises to it.
    decay : float
        Last part of training, from 0 to 1, over which the learning rate falls to zero.
    log_every : int
        Steps between evaluations, each a row of the log.
    bf16_candidates : bool
        Look for active latents in bfloat16 and compute their values in float32, see
        `saekit.sparse.encode_above`: faster for wide dictionaries where the device has bfloat16.

    Raises
    ------
    ValueError
        If a setting is out of its range.
    """

    variant: Variant
    width: int
    seed: int = 0
    steps: int = 6000
    batch_size: int = 512
    lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.2
    log_every: int = 500
    bf16_candidates: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be positive, found {self.lr}.")
        if self.warmup < 0 or not 0 <= self.decay <= 1:
            raise ValueError(
                f"warmup must be at least 0 and decay from 0 to 1, found {self.warmup} and {self.decay}."
            )

    def describe(self) -> dict[str, Any]:
        """The config as JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"variant": self.variant.describe()}

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, plateau, linear decay to zero."""
        rising = (step + 1) / self.warmup if self.warmup else 1.0
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.lr * min(1.0, rising, falling)


@dataclass(frozen=True)
class TrainingResult:
    """A trained dictionary and how training went.

    Attributes
    ----------
    dictionary : Dictionary
        Folded: raw activations in, raw reconstructions out.
    log : DataFrame
        A row every `log_every` steps and at the end: `step`, `tokens`, `loss` (training loss,
        averaged since the last row), `fvu` and `l0` (of the folded dictionary on a held-out
        sample), `dead` (latents silent for long on the training tokens), and the variant's own
        numbers, such as the L1 coefficient `l1`.
    """

    dictionary: Dictionary
    log: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The log."""
        return self.log

    @property
    def summary(self) -> dict[str, Any]:
        """The last row of the log, with the dictionary's name."""
        return {"dictionary": self.dictionary.name, **self.log.to_dict("records")[-1]}


def train(
    config: TrainingConfig,
    activations: Source | Tensor,
    *,
    held_out: Source | Tensor | None = None,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    on_log: Callable[[Dictionary, int], None] | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train one dictionary.

    Within `saekit.distributed.distributed` every process takes its share of each batch, and all
    hold the same parameters after each step: those of one process, up to the order of sums.

    Parameters
    ----------
    config : TrainingConfig
        Variant, width, seed, length and optimiser settings.
    activations : ActivationStore, StreamedActivations or Tensor
        What to train on: a store, activations harvested meanwhile, or raw ones `[n, d_in]`.
    held_out : ActivationStore, StreamedActivations or Tensor, optional
        What the log's FVU and L0 are measured on; a sample of `activations` if left out.
    device : str or torch.device
        Where to train, such as `"cuda"`. The dictionary that is returned is on the CPU.
    checkpoint : path, optional
        A file to keep the state of training in. If it exists, training goes on from it, to the
        same bits as if it had not been interrupted; once training has ended, it holds the result.
    checkpoint_every : int
        Steps between checkpoints; one more is written at the end.
    on_log : callable, optional
        Called with the folded dictionary and the step whenever a row of the log is written.
    progress : bool
        Show a progress bar in tokens.

    Raises
    ------
    ValueError
        If the data does not fit (shape, too few tokens, values that are not finite), or the
        checkpoint is damaged or belongs to another config or other data.
    FloatingPointError
        If the loss stops being finite; the last checkpoint stays.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, found {checkpoint_every}.")
    source = _as_source(activations)
    evaluated = source if held_out is None else _as_source(held_out)
    _check_data(config, source, evaluated)
    run = _Run(config, source, evaluated, device)
    if checkpoint is not None:
        run.resume(Path(checkpoint))
    sample = evaluated.read(_spread(evaluated.positions, EVALUATION_SAMPLE))
    batches = source.shuffled(config.batch_size, seed=config.seed, start_step=run.step)
    with tqdm(
        total=config.steps * config.batch_size,
        initial=run.step * config.batch_size,
        unit="token",
        unit_scale=True,
        desc=run.name,
        disable=not (progress and is_main()),
    ) as bar:
        while run.step < config.steps:
            batch = next(batches)
            run.train_step(batch[local_slice(len(batch))])
            bar.update(config.batch_size)
            if run.step % config.log_every == 0 or run.step == config.steps:
                dictionary = run.dictionary()
                bar.set_postfix(run.log_row(dictionary, sample))
                if on_log is not None:
                    on_log(dictionary, run.step)
            if checkpoint is not None and (run.step % checkpoint_every == 0 or run.step == config.steps):
                run.save(Path(checkpoint))
    return TrainingResult(run.dictionary().to("cpu"), pd.DataFrame(run.log))


class _Run:
    """The state of a training run: everything a checkpoint holds."""

    def __init__(
        self, config: TrainingConfig, source: Source, evaluated: Source, device: str | torch.device = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.origin = _origin(source)
        sae = config.variant.initialise(width=config.width, d_in=source.d_in, seed=config.seed)
        self.sae = sae.to(self.device)
        self.sae.bf16_candidates = config.bf16_candidates
        for parameter in self.sae.parameters.values():
            parameter.requires_grad_()
        mean, self.scale = normalisation(source)
        self.mean = mean.to(self.device)
        self.optimiser = torch.optim.Adam(
            list(self.sae.parameters.values()), lr=config.lr, betas=config.variant.betas, fused=True
        )
        self.step = 0
        self.loss_sum, self.loss_steps = 0.0, 0  # since the last row of the log
        self.log: list[dict[str, float]] = []
        self.identity = {
            "config": config.describe(),
            "activations": source.content_hash,
            "held_out": evaluated.content_hash,
        }

    @property
    def name(self) -> str:
        """A short name for the progress bar."""
        return f"{self.config.variant.kind} {self.config.width} (seed {self.config.seed})"

    def train_step(self, x: Tensor) -> None:
        """One optimiser step on this process's share of a batch of raw activations, `[n, d_in]`."""
        config, sae = self.config, self.sae
        x = x.to(self.device)
        loss = config.variant.loss(sae, (x - self.mean) * self.scale, done=self.step / config.steps)
        value = all_reduce_mean(loss.detach().clone()).item()
        if not math.isfinite(value):
            self._refuse(x, value)
        loss.backward()
        for parameter in sae.parameters.values():
            assert parameter.grad is not None
            all_reduce_mean(parameter.grad)
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr_at(self.step)
        if config.variant.unit_norm:
            _remove_parallel(sae.W_dec)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if config.variant.unit_norm:
            with torch.no_grad():
                sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        self.step += 1
        self.loss_sum += value
        self.loss_steps += 1

    def _refuse(self, x: Tensor, loss: float) -> None:
        bad = int((~torch.isfinite(x)).any(dim=1).sum())
        if bad:
            raise ValueError(
                f"{bad} of the {len(x)} activations of step {self.step + 1} are not finite; "
                "harvest them again or exclude them."
            )
        self._diverged(f"the loss is {loss}")

    def _require_finite(self) -> None:
        """Refuse to keep parameters that a step has just ruined."""
        for name, parameter in self.sae.parameters.items():
            if not torch.isfinite(parameter).all():
                self._diverged(f"{name} holds values that are not finite")

    def _diverged(self, what: str) -> None:
        raise FloatingPointError(
            f"Training {self.name} diverged at step {self.step + 1} ({what}): lower lr, now "
            f"{self.config.lr}; the last checkpoint is kept."
        )

    def log_row(self, dictionary: Dictionary, sample: Tensor) -> dict[str, float]:
        """Append a row to the log, and return what of it the progress bar shows."""
        result = evaluate(dictionary, sample)
        row = {
            "step": self.step,
            "tokens": self.step * self.config.batch_size,
            "loss": self.loss_sum / self.loss_steps,
            "fvu": result.fvu,
            "l0": result.l0,
            **self.config.variant.log(self.sae),
        }
        self.log.append(row)
        self.loss_sum, self.loss_steps = 0.0, 0
        return {name: round(value, 4) for name, value in row.items() if name not in ("step", "tokens")}

    def dictionary(self) -> Dictionary:
        """The SAE as it stands, folded."""
        self._require_finite()
        sae, config = self.sae, self.config
        training = {
            **config.describe(),
            "steps": self.step,
            "tokens": self.step * config.batch_size,
            "activations": self.identity["activations"],
            "input_scale": self.scale,
            "input_mean_norm": float(self.mean.norm()),
            **config.variant.log(sae),
        }
        info = {"kind": config.variant.kind, "seed": config.seed, **self.origin, "training": training}
        with torch.no_grad():
            return Unfolded(mean=self.mean, scale=self.scale, info=info, **config.variant.folding(sae)).fold()

    # ------------------------------------------------------------------ checkpoints

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor of the run by name: parameters, the variant's state, Adam's state."""
        tensors = {**self.sae.parameters, **{f"state.{k}": v for k, v in self.sae.state.items()}}
        for name, parameter in self.sae.parameters.items():
            state = self.optimiser.state[parameter]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                empty = parameter.new_zeros(()) if key == "step" else torch.zeros_like(parameter)
                tensors[f"adam.{key}.{name}"] = state.setdefault(key, empty)
        return tensors

    def save(self, path: Path) -> None:
        """Write everything to one file, or leave the file as it is; one process does it for all."""
        self._require_finite()
        if not is_main():
            return
        counters = {"step": self.step, "loss_sum": self.loss_sum, "loss_steps": self.loss_steps}
        state = {"format": FORMAT, **self.identity, **counters, "log": self.log}
        write_tensors(path, self._tensors(), {"saekit": json.dumps(state)})

    def resume(self, path: Path) -> None:
        """Take up the state of a checkpoint, if there is one.

        Raises
        ------
        ValueError
            If it is damaged, or belongs to another config or other data.
        """
        for leftover in path.parent.glob(f".{path.name}.*"):  # of a write that was killed
            leftover.unlink()
        if not path.exists():
            return
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {}).get("saekit", "null"))
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged or not a checkpoint: {error}.") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path} does not say format {FORMAT!r}, so training does not go on from it.")
        for name, here in _flat(self.identity).items():
            there = _flat(state).get(name)
            if here != there:
                raise ValueError(
                    f"{path} belongs to another run: {name} is {there!r} there and {here!r} here; "
                    "name another checkpoint, or delete this one to start over."
                )
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(saved[name])
        self.step, self.log = state["step"], state["log"]
        self.loss_sum, self.loss_steps = state["loss_sum"], state["loss_steps"]


def normalisation(source: Source) -> tuple[Tensor, float]:
    """Mean and scale that centre activations and give them norm `sqrt(d_in)` on average.

    Estimated from positions spread evenly over the data.

    Returns
    -------
    tuple
        Mean, float32 `[d_in]`, and the factor on centred activations.

    Raises
    ------
    ValueError
        If the sample is not finite or does not vary.
    """
    sample = source.read(_spread(source.positions, SAMPLE)).double()
    mean = sample.mean(0)
    norm = float((sample - mean).norm(dim=1).mean())
    if not (norm > 0 and math.isfinite(norm)):
        found = "do not vary" if norm == 0 else "hold values that are not finite"
        raise ValueError(f"There is nothing to train on: the activations {found}.")
    return mean.float(), math.sqrt(source.d_in) / norm


def _spread(positions: Tensor, n: int) -> Tensor:
    """At most `n` of the positions, spread evenly."""
    if len(positions) <= n:
        return positions
    return positions[torch.arange(n) * len(positions) // n]


def _remove_parallel(W_dec: Tensor) -> None:
    """Remove from the gradient of unit rows the component along the rows.

    It would change their norm, which is fixed, and only disturb Adam's averages.
    """
    assert W_dec.grad is not None
    with torch.no_grad():
        for grad, rows in zip(W_dec.grad.split(BLOCK), W_dec.split(BLOCK), strict=True):
            grad.addcmul_((grad * rows).sum(dim=1, keepdim=True), rows, value=-1)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_data(config: TrainingConfig, source: Source, evaluated: Source) -> None:
    if config.batch_size % world_size():
        raise ValueError(
            f"batch_size must be a multiple of the {world_size()} processes, found {config.batch_size}."
        )
    if isinstance(source, _TensorSource) and len(source.positions) < config.batch_size:
        raise ValueError(
            f"A batch takes {config.batch_size} tokens, but there are only {len(source.positions)} "
            "to train on."
        )
    if evaluated.d_in != source.d_in:
        raise ValueError(
            f"The held-out activations have d_in {evaluated.d_in}, those to train on {source.d_in}."
        )
    here, there = (data.manifest.get("hook_point") for data in (source, evaluated))
    if here != there:
        raise ValueError(f"The held-out activations come from {there!r}, those to train on from {here!r}.")


class _TensorSource:
    """A plain tensor of activations as a source."""

    def __init__(self, x: Tensor) -> None:
        if x.ndim != 2 or not len(x):
            raise ValueError(f"Activations must be [n, d_in] with n above 0, found {list(x.shape)}.")
        self.x = x
        self.d_in = x.shape[1]
        self.positions = torch.arange(len(x))
        self.manifest: dict[str, Any] = {}
        self.content_hash = hash_tensors({"activations": x})

    def read(self, positions: Tensor) -> Tensor:
        return self.x[positions].float()

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Endless batches; the order is a function of seed and epoch."""
        per_epoch = len(self.x) // batch_size
        epoch, step = divmod(start_step, per_epoch)
        while True:
            stream = int(hash_json([seed, epoch])[:15], 16)
            order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(stream))
            for i in range(step, per_epoch):
                yield self.read(order[i * batch_size : (i + 1) * batch_size])
            epoch, step = epoch + 1, 0


def _as_source(activations: Source | Tensor) -> Source:
    return _TensorSource(activations) if isinstance(activations, Tensor) else activations


def _origin(source: Source) -> dict[str, Any]:
    """Model and hook point that the activations come from, as far as they record them."""
    model = source.manifest.get("model") or {}
    origin = {
        "model": model.get("name"),
        "model_revision": model.get("revision"),
        "model_weights": model.get("weights"),
        "model_processing": model.get("processing"),
        "hook_point": source.manifest.get("hook_point"),
    }
    return {what: value for what, value in origin.items() if value is not None}
