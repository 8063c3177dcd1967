"""Train a dictionary: the loop, its state and its checkpoints.

Activations are centred and scaled to norm `sqrt(d_in)` on average before they reach a variant,
so one set of hyper-parameters fits every hook point; the result is folded back to raw
activations. On the CPU with a fixed thread count the same config and data give the same bits,
whether or not training was interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Activations
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.distributed import all_reduce_mean, is_main, local_slice, world_size
from saekit.files import writable_folder, write_tensors
from saekit.folding import Unfolded
from saekit.interrupts import Interrupts
from saekit.metrics import evaluate
from saekit.models import compare_models
from saekit.results import Result
from saekit.settings import device as known_device
from saekit.settings import whole
from saekit.training.config import TrainingConfig
from saekit.training.loggers import CSVLogger, Logger
from saekit.training.sources import Source, TensorSource, as_source, normalisation, sides, spread
from saekit.training.variants.base import with_target

FORMAT = "saekit-checkpoint-1"
EVALUATION_SAMPLE = 16_384  # positions of an evaluation during training
BLOCK = 1024  # decoder rows that stay in cache between two passes over them
HELD_WITHIN = 1e-6  # rounding of the cosine that decoder rows keep with their initial directions


@dataclass(frozen=True, eq=False, repr=False)
class TrainingResult(Result):
    """A trained dictionary and the log of its training.

    Attributes
    ----------
    dictionary : Dictionary
        Folded: raw activations in, raw reconstructions out.
    log : DataFrame
        One row every `log_every` steps and one at the end: `step`, `tokens`, `loss` (training loss,
        averaged since the last row), `fvu` and `l0` (of the folded dictionary on a held-out
        sample), `dead` (latents silent for long on the training tokens), and the variant's own
        numbers, such as the L1 coefficient `l1`.
    """

    dictionary: Dictionary
    log: pd.DataFrame
    _plot: ClassVar[str] = "training_curves"

    @property
    def frame(self) -> pd.DataFrame:
        """The log."""
        return self.log

    @property
    def summary(self) -> dict[str, Any]:
        """The last row of the log, with the dictionary's name."""
        return {"dictionary": self.dictionary.name, **self.log.to_dict("records")[-1]}


@partial(cached, unless=("checkpoint", "loggers", "on_log"))
def train(
    config: TrainingConfig,
    activations: Source | Activations,
    *,
    held_out: Source | Activations | None = None,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    loggers: Sequence[Logger] = (),
    on_log: Callable[[Dictionary, int], None] | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train one dictionary.

    With a checkpoint, an interrupted run resumes where it stopped and ends with the same bits as if
    it had not been interrupted. Ctrl-C and SIGTERM take effect after the current step, whose state is
    saved first; after a kill, the run resumes from the last checkpoint.

    A run can be extended: the same config with more steps resumes from the checkpoint and ends with
    the same bits as if it had been that long from the start. The steps so far must be the same in
    both runs, so it resumes from the state before the learning rate began to fall (kept beside the
    checkpoint, as `.before-decay`), and a short run whose warm-up was therefore shorter cannot be
    extended.

    Within `saekit.distributed.distributed` every process takes its share of each batch, and all
    hold the same parameters after each step: those of one process, up to the order of sums.

    Parameters
    ----------
    config : TrainingConfig
        Variant, width, seed, length and optimiser settings.
    activations : ActivationStore, StreamedActivations, Tensor or array
        Activations to train on: a store, activations harvested during training, or raw ones `[n, d_in]`.
        On a store or stream with a `target`, a `Transcoder` is trained.
    held_out : ActivationStore, StreamedActivations, Tensor or array, optional
        Activations on which the log's FVU and L0 are measured; a sample of `activations` if left out.
    device : str or torch.device
        Where to train, such as `"cuda"`. The dictionary that is returned is on the CPU.
    checkpoint : path, optional
        A file for the state of training; once training has ended, it holds the result. The log is
        kept beside it, as `.csv`.
    checkpoint_every : int
        Steps between checkpoints; one more is written at the end.
    loggers : sequence of Logger
        Receivers of the log's rows as they come, such as `TensorBoardLogger(folder)`.
    on_log : callable, optional
        Called with the folded dictionary and the step whenever there is a row of the log.
    progress : bool
        Show a progress bar in tokens.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If the data does not fit (shape, too few tokens, values that are not finite, held-out
        activations of another hook point), torch has no such device, or the checkpoint is damaged
        or belongs to another config or other data.
    OSError
        If the checkpoint cannot be written.
    FloatingPointError
        If the loss stops being finite; the last checkpoint stays.

    Examples
    --------
    >>> config = saekit.TrainingConfig(saekit.TopK(k=1), width=8, steps=100, batch_size=64)
    >>> result = saekit.train(config, x, progress=False)
    >>> result.dictionary
    Dictionary(topk 8 (seed 0), d_in=6, width=8, k=1)
    """
    if not isinstance(config, TrainingConfig):
        raise TypeError(f"config must be a TrainingConfig, found {config!r}.")
    checkpoint_every = whole("checkpoint_every", checkpoint_every)
    place = known_device(device)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None:
        writable_folder(file.parent)
    with _plain_torch(place):
        source = as_source(activations)
        evaluated = source if held_out is None else as_source(held_out)
        _check_data(config, source, evaluated)
        run = _Run(config, source, evaluated, place, file)
        run.resume()
        sample = evaluated.read(spread(evaluated.positions, EVALUATION_SAMPLE))
        bar = tqdm(
            total=config.steps * config.batch_size,
            initial=run.step * config.batch_size,
            unit="token",
            unit_scale=True,
            desc=run.name,
            disable=not (progress and is_main()),
        )
        files = [] if file is None else [CSVLogger(file.with_suffix(".csv"))]
        with Interrupts() as interrupts, bar, _begun([*files, *loggers], run) as listening:

            def write_row() -> None:
                dictionary = run.dictionary()
                bar.set_postfix(run.log_row(dictionary, sample))
                for logger in listening:
                    logger.log(run.log[-1])
                if on_log is not None:
                    on_log(dictionary, run.step)

            batches = source.shuffled(config.batch_size, seed=config.order_seed, start_step=run.step)
            try:
                _go_on(run, batches, interrupts, write_row, bar, checkpoint_every)
            except BaseException:
                if run.between_steps:
                    with suppress(OSError):  # the previous checkpoint is there
                        run.keep()
                raise
        return TrainingResult(run.dictionary().to("cpu"), pd.DataFrame(run.log))


def _go_on(
    run: _Run,
    batches: Iterator[Tensor],
    interrupts: Interrupts,
    write_row: Callable[[], None],
    bar: tqdm,
    checkpoint_every: int,
) -> None:
    """Take the remaining steps, write rows and checkpoints; stop only between steps."""
    config, plateau_end = run.config, run.config.plateau_end
    while True:
        with interrupts.held():
            if run.step == plateau_end:
                run.keep_for_extension()
            if run.owes_row:
                write_row()
            if run.step == config.steps or run.step % checkpoint_every == 0:
                run.keep()
        if run.step == config.steps:
            return
        batch = next(batches)
        with interrupts.held():
            run.train_step(batch[local_slice(len(batch))])
            bar.update(config.batch_size)


@contextmanager
def _plain_torch(device: torch.device) -> Iterator[None]:
    """Torch's settings as training needs them, whatever a notebook has set."""
    dtype = torch.get_default_dtype()
    with ExitStack() as entered:
        for context in (torch.inference_mode(False), torch.enable_grad()):
            entered.enter_context(context)
        entered.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            entered.enter_context(torch.device("cpu"))
        entered.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _begun(loggers: Sequence[Logger], run: _Run) -> Iterator[Sequence[Logger]]:
    """Loggers told of the run's begin, each ended however the run ends; one process logs for all."""
    listening = loggers if is_main() else ()
    with ExitStack() as begun:
        for logger in listening:
            logger.begin(run.name, run.config.describe(), run.log)
            begun.callback(logger.end)
        yield listening


def before_decay(checkpoint: Path) -> Path:
    """The file with the state from which a run can be extended.

    Examples
    --------
    >>> before_decay(Path("run.safetensors")).name
    'run.before-decay.safetensors'
    """
    return checkpoint.with_name(f"{checkpoint.stem}.before-decay{checkpoint.suffix}")


class _Run:
    """The state of a training run: everything a checkpoint holds."""

    def __init__(
        self,
        config: TrainingConfig,
        source: Source,
        evaluated: Source,
        device: torch.device,
        checkpoint: Path | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.checkpoint = checkpoint
        self.origin = _origin(source)
        sae = config.variant.initialise(width=config.width, d_in=source.d_in, seed=config.initial_seed)
        self.sides = sides(source)
        if len(self.sides) == 2:
            sae = with_target(sae, self.sides[1], skip=config.skip, seed=config.initial_seed)
        self.sae = sae.to(self.device)
        self.initial_directions = self.sae.W_dec.clone() if config.decoder_cosine is not None else None
        self.sae.bf16_candidates = config.bf16_candidates
        for parameter in self.sae.parameters.values():
            parameter.requires_grad_()
        # Of inputs and, for a transcoder, of targets.
        self.centring = [(mean.to(self.device), scale) for mean, scale in normalisation(source)]
        self.optimiser = torch.optim.Adam(
            list(self.sae.parameters.values()), lr=config.lr, betas=config.variant.betas, fused=True
        )
        self.step = 0
        self.between_steps = True  # and parameters that are finite: a state that can be saved
        self.unsaved = False
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
        return f"{self.config.kind} {self.config.width} (seed {self.config.seed})"

    def train_step(self, x: Tensor) -> None:
        """One optimiser step on this process's share of a batch of raw activations, `[n, d_in]`."""
        config, sae = self.config, self.sae
        self.between_steps, self.unsaved = False, True
        x = x.to(self.device)
        parts = zip(x.split(self.sides, dim=1), self.centring, strict=True)
        inputs, *targets = ((part - mean) * scale for part, (mean, scale) in parts)
        target = targets[0] if targets else inputs
        loss = config.variant.loss(sae, inputs, target, done=self.step / config.steps)
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
        if self.initial_directions is not None:
            assert config.decoder_cosine is not None
            _hold(sae.W_dec, self.initial_directions, config.decoder_cosine)
        self.step += 1
        self.loss_sum += value
        self.loss_steps += 1
        self.between_steps = True

    def _refuse(self, x: Tensor, loss: float) -> None:
        bad = int((~torch.isfinite(x)).any(dim=1).sum())
        if bad:
            raise ValueError(
                f"{bad} of the {len(x)} activations of step {self.step + 1} are not finite; "
                "harvest them again or exclude them."
            )
        self._diverged(f"the loss is {loss}")

    def _require_finite(self) -> None:
        """Refuse to save parameters that a step has just ruined."""
        for name, parameter in self.sae.parameters.items():
            if not torch.isfinite(parameter).all():
                self._diverged(f"{name} holds values that are not finite")

    def _diverged(self, what: str) -> None:
        self.between_steps = False
        raise FloatingPointError(
            f"Training {self.name} diverged at step {self.step + 1} ({what}): lower lr, now "
            f"{self.config.lr}; the last checkpoint is kept."
        )

    @property
    def owes_row(self) -> bool:
        """Whether the log lacks the row of this step."""
        due = self.step and (self.step % self.config.log_every == 0 or self.step == self.config.steps)
        return bool(due) and (not self.log or self.log[-1]["step"] != self.step)

    def log_row(self, dictionary: Dictionary, sample: Tensor) -> dict[str, float]:
        """Append a row to the log, and return the part of it that the progress bar shows."""
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
        self.unsaved = True
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
            "input_scale": self.centring[0][1],
            "input_mean_norm": float(self.centring[0][0].norm()),
            **config.variant.log(sae),
        }
        info = {"kind": config.kind, "seed": config.seed, **self.origin, "training": training}
        given: dict[str, Any] = dict(zip(("mean", "scale"), self.centring[0], strict=True))
        if len(self.centring) == 2:
            given |= dict(zip(("target_mean", "target_scale"), self.centring[1], strict=True))
            given["transcoder"] = True
        with torch.no_grad():
            return Unfolded(**given, info=info, **config.variant.folding(sae)).fold()

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

    def keep(self) -> None:
        """Write the checkpoint if anything changed since it was last written."""
        if self.checkpoint is None or not self.unsaved:
            return
        try:
            self._save(self.checkpoint)
        except OSError as error:
            raise OSError(
                error.errno,
                f"The checkpoint of step {self.step} cannot be written ({error.strerror}); training again "
                "with the same settings resumes from the previous one",
                str(self.checkpoint),
            ) from error
        self.unsaved = False

    def keep_for_extension(self) -> None:
        """Write the state from which a longer run would resume."""
        if self.checkpoint is not None:
            self._save(before_decay(self.checkpoint))

    def _save(self, path: Path) -> None:
        """Write everything to one file, or leave the file as it is; one process does it for all."""
        self._require_finite()
        if not is_main():
            return
        counters = {"step": self.step, "loss_sum": self.loss_sum, "loss_steps": self.loss_steps}
        state = {"format": FORMAT, **self.identity, **counters, "log": self.log}
        write_tensors(path, self._tensors(), {"saekit": json.dumps(state)})

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one.

        Raises
        ------
        ValueError
            If it is damaged, or belongs to another config or other data.
        """
        path = self.checkpoint
        if path is None:
            return
        for file in (path, before_decay(path), path.with_suffix(".csv")) if is_main() else ():
            for leftover in path.parent.glob(f".{file.name}.*"):  # left by a write that was killed
                leftover.unlink()
        if not path.exists():
            return
        state, saved = _read_checkpoint(path)
        self._require_same_run(path, state)
        if state["config"]["steps"] != self.config.steps:
            path, (state, saved) = self._common(path, state, saved)
        mine = self._tensors()
        if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in mine.items()}:
            raise ValueError(f"{path} is damaged: it does not hold the tensors of this run.")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(saved[name])
        self.step, self.log = state["step"], state["log"]
        self.loss_sum, self.loss_steps = state["loss_sum"], state["loss_steps"]

    def _require_same_run(self, path: Path, state: dict[str, Any]) -> None:
        """Refuse a checkpoint that differs in anything but the number of steps."""
        here, there = _flat(self.identity), _flat({name: state.get(name) or {} for name in self.identity})
        differ = [name for name in here | there if here.get(name) != there.get(name)]
        differ = [name for name in differ if name != "config.steps"]
        if not differ:
            return
        if "config.variant.kind" in differ:  # then its settings differ, too
            differ = ["config.variant.kind"]
        found, given = [], []
        for name in differ:
            setting = name.removeprefix("config.").removeprefix("variant.")
            there_is, here_is = there.get(name), here.get(name)
            derived = name == "config.warmup" and self.config.warmup is None
            note = " (it follows the steps unless it is given)" if derived else ""
            found.append(f"{setting} is {there_is!r} there and {here_is!r} here{note}")
            if name.startswith("config."):
                given.append(_option(setting, there_is))
        advice = f"give {' '.join(given)} to go on with it, " if len(given) == len(found) else ""
        raise ValueError(
            f"{path} belongs to another run: {', '.join(found)}; {advice}name another checkpoint, or delete "
            "this one to start over."
        )

    def _common(
        self, path: Path, state: dict[str, Any], saved: dict[str, Tensor]
    ) -> tuple[Path, tuple[dict[str, Any], dict[str, Tensor]]]:
        """The latest state of a run of another length that this run would also have reached."""
        steps, warmup = state["config"]["steps"], self.config.warmup_steps
        other = replace(self.config, steps=steps, warmup=warmup)
        shared = min(self.config.plateau_end, other.plateau_end)
        earlier = before_decay(path)
        for file in (path, earlier):
            if file.exists():
                state, saved = (state, saved) if file == path else _read_checkpoint(file)
                self._require_same_run(file, state)
                rows = [row["step"] % self.config.log_every for row in state["log"]]
                if state["step"] <= shared and not any(rows):
                    return file, (state, saved)
        raise ValueError(
            f"{path} is of a run of {other.steps} steps, of which the first {shared} are the same in one of "
            f"{self.config.steps}; no state from there is kept in {path.name} or {earlier.name}, so training "
            "cannot resume from it: name another checkpoint, or delete this one to start over."
        )


def _option(setting: str, value: Any) -> str:
    """A setting as the command line takes it."""
    name = setting.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}".lower()


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Counters, log and identity of a checkpoint, and its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {}).get("saekit", "null"))
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {error}.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} does not have format {FORMAT!r}, so training does not resume from it.")
    return state, saved


def _remove_parallel(W_dec: Tensor) -> None:
    """Remove from the gradient of unit rows the component along the rows.

    It would change their norm, which is fixed, and would only disturb Adam's averages.
    """
    assert W_dec.grad is not None
    with torch.no_grad():
        for grad, rows in zip(W_dec.grad.split(BLOCK), W_dec.split(BLOCK), strict=True):
            grad.addcmul_((grad * rows).sum(dim=1, keepdim=True), rows, value=-1)


@torch.no_grad()
def _hold(W_dec: Tensor, initial: Tensor, cosine: float) -> None:
    """Turn unit rows that have moved too far back to this cosine with their initial directions."""
    if cosine == 1:
        W_dec.copy_(initial)
        return
    along = (W_dec * initial).sum(dim=1, keepdim=True)
    far = (along < cosine + HELD_WITHIN).squeeze(1)
    aside = W_dec[far] - along[far] * initial[far]
    held = min(1.0, cosine + 2 * HELD_WITHIN)  # a little closer, so that rounding does not cross the bound
    aside *= math.sqrt(1 - held**2) / aside.norm(dim=1, keepdim=True).clamp(min=1e-12)
    W_dec[far] = held * initial[far] + aside


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
    if isinstance(source, TensorSource) and len(source.positions) < config.batch_size:
        raise ValueError(
            f"A batch takes {config.batch_size} tokens, but there are only {len(source.positions)} "
            "to train on."
        )
    if sides(evaluated) != sides(source):
        found, expected = (" + ".join(map(str, sides(data))) for data in (evaluated, source))
        raise ValueError(f"The held-out activations have d_in {found}, those to train on {expected}.")
    if config.skip and len(sides(source)) == 1:
        raise ValueError(
            "A skip connection is for transcoders, and these activations have no targets: harvest them with "
            "target=, or leave skip out."
        )
    places = [data.manifest.get("hook_point") for data in (source, evaluated)]
    targets = [data.manifest.get("target") for data in (source, evaluated)]
    mine, others = (data.manifest.get("model") or {} for data in (source, evaluated))
    compared = compare_models(mine, others) if mine and others else ()
    for what, here, there in (("hook point", *places), ("target", *targets), *compared):
        if None not in (here, there) and here != there:
            raise ValueError(
                "The held-out activations must be of the same kind as those to train on, but their "
                f"{what} is {there!r}, not {here!r}."
            )


def _origin(source: Source) -> dict[str, Any]:
    """Model, hook point and rows that the activations come from, as far as they are recorded."""
    model, corpus = (source.manifest.get(name) or {} for name in ("model", "corpus"))
    origin = {
        "model": model.get("name"),
        "model_revision": model.get("revision"),
        "model_weights": model.get("weights"),
        "model_processing": model.get("processing"),
        "hook_point": source.manifest.get("hook_point"),
        "target": source.manifest.get("target"),
        "context_length": corpus.get("context_length"),
        "prepend_bos": corpus.get("prepend_bos"),
    }
    return {name: value for name, value in origin.items() if value is not None}
