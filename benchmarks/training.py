"""How long a whole training step takes, saekit's and the peers', and what comes of equal tokens.

    python benchmarks/training.py
    python benchmarks/training.py --kinds topk,batchtopk --rounds 20 --out training.json

The first call builds an environment with the peers' packages (requirements/peers.txt); the script
then runs inside it. `--here` stays in the present one and leaves out the peers that it lacks.

**Time.** For each kind, saekit trains for `--warmup` steps. Of TopK and BatchTopK a share of the
latents (`--dead`) is then silenced by their biases, so that auxiliary losses have work to do, and all
trainers take over these weights and the count of how long each latent has been silent. The other
kinds' peers start from weights of their own: their steps are dense and take the same time with any.
After 3 steps more the rounds begin: in each, every trainer makes one step on the same batch, in an
order that moves on by one, beside the encoder's product alone. The table gives medians.

**FVU.** All trainers of TopK and BatchTopK start from one initialisation and see the same batches in
the same order; one function then takes their FVU on held-out activations. The reference is
the loss of saekit in plain dense autograd.

**Differences.** The share of active latents that the search in bfloat16 picks differently from the
exact one, with the same weights on the same held-out batches.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import environment
import pandas as pd
import torch
import torch.nn.functional as F
from data import activations
from peers import peers
from torch import Tensor
from trainers import FIXED_SPARSITY, Dense, Saekit, Task, Trainer, Weights, fixed_sparsity, fvu

from saekit.files import write_json
from saekit.sparse import affine
from saekit.training.sources import as_source
from saekit.training.variants import VARIANTS

UNTIMED = 3  # steps of every trainer before the rounds
MARGIN = 0.5  # by which silenced latents stay out; pre-activations are about standard normal
KINDS = ("topk", "batchtopk", "relu", "gated", "jumprelu")
PRODUCT = "encoder product, torch"
FASTEST_PRODUCT = "encoder product, saekit"
FVU_LIMIT, DIFFERENCE_LIMIT = 0.005, 1e-4  # the goals


def main() -> None:
    """Parse, measure, print, write."""
    options = parse()
    if not options.here:
        environment.enter(options.environment)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    train, held_out, description = activations(options.d_in)
    train, held_out = train.to(options.device), held_out.to(options.device)
    settings = {**describe(options), "activations": description}
    for name, value in settings.items():
        print(f"{name:20s} {value}")
    results: dict[str, list[dict[str, Any]]] = {"time": [], "difference": [], "fvu": []}
    for kind in options.kinds:
        if kind not in VARIANTS:
            print(f"\nsaekit has no variant {kind!r} yet: left out.")
            continue
        rows, difference = time_kind(kind, train, held_out, options)
        results["time"] += rows
        results["difference"] += difference
        show(f"{kind}, width {options.width}, batch {options.batch_size}, k {options.k}", rows)
    for kind in options.kinds if options.fvu_steps else ():
        if kind in FIXED_SPARSITY:
            rows, difference = fvu_kind(kind, train, held_out, options)
            results["fvu"] += rows
            results["difference"] += difference
            title = f"FVU after {options.fvu_steps} steps of {options.fvu_batch_size}"
            show(f"{kind}, width {options.fvu_width}: {title} (goal: +{FVU_LIMIT:.1%} at most)", rows)
    show(
        f"Active latents that bf16 candidates pick differently (goal: {DIFFERENCE_LIMIT:.0e})",
        results["difference"],
    )
    if options.out:
        write_json(options.out, {"settings": settings, **results})


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--width", type=int, default=9216)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each trainer")
    parser.add_argument("--warmup", type=int, default=100, help="saekit's steps before")
    parser.add_argument("--dead", type=float, default=0.01, help="share of dead latents when timed")
    parser.add_argument("--dead-after", type=int, default=100_000, help="silent tokens of a dead latent")
    parser.add_argument("--fvu-width", type=int, default=2304)
    parser.add_argument("--fvu-batch-size", type=int, default=512)
    parser.add_argument("--fvu-steps", type=int, default=600, help="0 leaves this part out")
    parser.add_argument("--threads", type=int, help="torch's own choice if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--environment", type=Path, help="folder of the peers' environment")
    parser.add_argument("--here", action="store_true", help="stay in the present environment")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    return parser.parse_args()


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on, beside the activations."""
    versions = {}
    for package in ("torch", "sae-lens", "dictionary-learning", "eai-sparsify"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    on_gpu = options.device != "cpu"
    return {
        "device": torch.cuda.get_device_name(options.device) if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
        "rounds": options.rounds,
        "warmup": options.warmup,
        "dead": options.dead,
        "dead_after": options.dead_after,
    }


def processor() -> str:
    """The CPU's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


# ---------------------------------------------------------------------------------- time


def time_kind(
    kind: str, train: Tensor, held_out: Tensor, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the tables of times and of differences for one kind."""
    task = Task(
        kind=kind,
        d_in=options.d_in,
        width=options.width,
        k=options.k,
        batch_size=options.batch_size,
        steps=options.warmup + UNTIMED + options.rounds,
        dead_after=options.dead_after,
        device=options.device,
    )
    source = as_source(train)
    batches = source.shuffled(task.batch_size, seed=0)
    exact, candidates = (Saekit(task, source, bf16_candidates=bf16) for bf16 in (False, True))
    for _ in range(options.warmup):
        exact.step(next(batches))
    others: list[Trainer] = peers(task)
    if kind in FIXED_SPARSITY:
        others = [candidates, Dense(task), *others]
        weights, silent_tokens = silence(exact, next(batches), task, options.dead)
        for trainer in (exact, *others):
            trainer.load(weights, silent_tokens)
    else:  # what saekit's other kinds learn beside weights comes from the same steps
        for _, z in zip(range(options.warmup), source.shuffled(task.batch_size, seed=0), strict=False):
            candidates.step(z)
        others = [candidates, *others]
    trainers = [exact, *others]
    for _ in range(UNTIMED):
        z = next(batches)
        for trainer in trainers:
            trainer.step(z)
    steps = {trainer.label: trainer.step for trainer in trainers}
    times = alternate(products(exact) | steps, batches, options)
    dead = {trainer.label: trainer.dead for trainer in trainers}
    return (
        [time_row(task, label, times, dead.get(label)) for label in times],
        difference(exact, held_out, task),
    )


def silence(trainer: Saekit, z: Tensor, task: Task, share: float) -> tuple[Weights, Tensor]:
    """Weights and silent tokens of a trainer in which a share of the latents is dead.

    The latents that have been silent for longest get biases with which none of them would have been
    active on the batch `z`.
    """
    weights, silent_tokens = trainer.weights(), trainer.silent_tokens.clone()
    dead = silent_tokens.argsort(descending=True, stable=True)[: int(share * task.width)]
    h = F.linear(z, weights.W_enc, weights.b_enc)
    latents = fixed_sparsity(h, task.kind, task.k)
    kept = latents.masked_fill(latents <= 0, torch.inf)
    smallest = kept.amin(dim=1, keepdim=True) if task.kind == "topk" else kept.amin()
    weights.b_enc[dead] -= (h[:, dead] - smallest).amax(dim=0).clamp_min(0) + MARGIN
    silent_tokens[dead] = 2 * task.dead_after
    return weights, silent_tokens


def products(trainer: Saekit) -> dict[str, Callable[[Tensor], Tensor]]:
    """The encoder's product alone, as torch makes it and as saekit does."""
    weights = trainer.weights()
    return {
        PRODUCT: lambda z: F.linear(z, weights.W_enc, weights.b_enc),
        FASTEST_PRODUCT: lambda z: affine(z, weights.W_enc, weights.b_enc),
    }


def alternate(
    steps: dict[str, Callable[[Tensor], Any]], batches: Iterator[Tensor], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Milliseconds of each step in each round."""
    labels, times = list(steps), {label: [] for label in steps}
    for i in range(options.rounds):
        z = next(batches)
        first = i % len(labels)
        for label in labels[first:] + labels[:first]:
            synchronise(options.device)
            start = time.perf_counter()
            steps[label](z)
            synchronise(options.device)
            times[label].append(1000 * (time.perf_counter() - start))
    return times


def synchronise(device: str) -> None:
    """Wait for what a GPU still has to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def time_row(task: Task, label: str, times: dict[str, list[float]], dead: int | None) -> dict[str, Any]:
    """A row of the table of times."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    ms = medians[label]
    return {
        "kind": task.kind,
        "trainer": label,
        "ms": round(ms, 2),
        "fastest ms": round(min(times[label]), 2),
        "tokens/s": round(1000 * task.batch_size / ms),
        "/ saekit": round(ms / medians["saekit"], 3),
        "/ product": round(ms / medians[PRODUCT], 3),
        "/ saekit's product": round(ms / medians[FASTEST_PRODUCT], 3),
        "dead": dead,
    }


# ---------------------------------------------------------------------------------- quality


def fvu_kind(
    kind: str, train: Tensor, held_out: Tensor, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the tables of FVU and of differences for one kind."""
    task = Task(
        kind=kind,
        d_in=options.d_in,
        width=options.fvu_width,
        k=options.k,
        batch_size=options.fvu_batch_size,
        steps=options.fvu_steps,
        dead_after=options.dead_after,
        device=options.device,
    )
    source = as_source(train)
    exact, candidates = (Saekit(task, source, bf16_candidates=bf16) for bf16 in (False, True))
    trainers: list[Trainer] = [Dense(task), exact, candidates, *peers(task)]
    start, silent_tokens = exact.weights(), exact.silent_tokens.clone()
    for trainer in trainers:
        trainer.load(start, silent_tokens)
    for _, z in zip(range(task.steps), source.shuffled(task.batch_size, seed=0), strict=False):
        for trainer in trainers:
            trainer.step(z)
    found = {trainer.label: fvu(trainer.weights(), kind, task.k, held_out) for trainer in trainers}
    rows = [
        {
            "kind": kind,
            "trainer": trainer.label,
            "FVU": round(found[trainer.label], 5),
            "against dense": f"{found[trainer.label] / found[Dense.label] - 1:+.2%}",
            "dead": trainer.dead,
        }
        for trainer in trainers
    ]
    return rows, difference(exact, held_out, task)


def difference(trainer: Saekit, held_out: Tensor, task: Task) -> list[dict[str, Any]]:
    """The row of the table of differences, for kinds that select among latents."""
    if task.kind not in FIXED_SPARSITY:
        return []
    run = trainer.run
    exact, candidates = (
        replace(run.sae, state={k: v.clone() for k, v in run.sae.state.items()}, bf16_candidates=bf16)
        for bf16 in (False, True)
    )
    active = missed = 0
    for z in held_out.split(task.batch_size):
        with torch.no_grad():
            keys = [
                latents.rows * task.width + latents.indices
                for latents in (run.config.variant.select(sae, z) for sae in (exact, candidates))
            ]
        active += len(keys[0])
        missed += max(int((~torch.isin(a, b)).sum()) for a, b in (keys, keys[::-1]))
    return [
        {
            "kind": task.kind,
            "width": task.width,
            "active": active,
            "different": missed,
            "share": missed / active,
        }
    ]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    if rows:
        print(f"\n{title}\n{pd.DataFrame(rows).to_string(index=False)}", flush=True)


if __name__ == "__main__":
    main()
