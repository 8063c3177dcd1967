"""Peak resident memory of training, each trainer in a process of its own.

    python benchmarks/memory.py
    python benchmarks/memory.py --d-in 576 --width 9216 --peers

The first form trains saekit at a width of 98,304 on a d_in of 768. `--peers` adds the peers' trainers, in
the environment that benchmarks/training.py builds. The peak is the process's own, so Python, the
libraries and the activations (synthetic ones) are part of it; what they had taken before the trainer
was made stands beside it, but for libraries that only it imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import environment
import pandas as pd
import torch
from data import synthetic
from peers import PEERS
from trainers import Saekit, Task, Trainer

from saekit.files import write_json
from saekit.training.sources import as_source

SAEKIT = {"saekit": False, "saekit-bf16": True}  # whether with candidates in bfloat16


def main() -> None:
    """Train each trainer in a process of its own, or one of them in this one."""
    options = parse()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    if options.peers and not options.here:
        environment.enter(options.environment)
    rows = []
    for kind in options.kinds:
        for name in [*SAEKIT, *(PEERS if options.peers else ())]:
            if name in SAEKIT or kind in PEERS[name].kinds:
                rows.append({"kind": kind, "trainer": name, **run(name, kind, options)})
                print(f"{kind} {name}: {rows[-1]}", file=sys.stderr, flush=True)
    print(
        f"d_in {options.d_in}, width {options.width}, batch {options.batch_size}, k {options.k}, "
        f"{options.steps} steps\n{pd.DataFrame(rows).to_string(index=False)}"
    )
    if options.out:
        write_json(options.out, rows)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["topk", "batchtopk"])
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--width", type=int, default=98_304)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch's own choice if left out")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--environment", type=Path, help="folder of the peers' environment")
    parser.add_argument("--here", action="store_true", help="stay in the present environment")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one trainer in a process of its own."""
    arguments = ["--only", name, "--kinds", kind]
    for option in ("d_in", "width", "batch_size", "k", "steps", "threads"):
        if (value := getattr(options, option)) is not None:
            arguments += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["killed"]
        return {"peak GiB": None, "note": f"exit status {done.returncode}: {last[0]}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train for a few steps; peak resident memory, and milliseconds of the last step."""
    if options.threads:
        torch.set_num_threads(options.threads)
    task = Task(
        kind=options.kinds[0],
        d_in=options.d_in,
        width=options.width,
        k=options.k,
        batch_size=options.batch_size,
        steps=max(options.steps, 10),  # of the learning rate's schedule
        dead_after=2 * options.batch_size,  # so that the auxiliary loss is at work
    )
    source = as_source(synthetic(2 * task.batch_size, task.d_in))
    before = peak()
    trainer: Trainer = (
        Saekit(task, source, bf16_candidates=SAEKIT[name]) if name in SAEKIT else PEERS[name](task)
    )
    batches = source.shuffled(task.batch_size, seed=0)
    for _ in range(options.steps):
        z = next(batches)
        start = time.perf_counter()
        trainer.step(z)
    elapsed = time.perf_counter() - start
    return {
        "before GiB": round(before, 2),
        "peak GiB": round(peak(), 2),
        "last step ms": round(1000 * elapsed),
        "dead": trainer.dead,
    }


def peak() -> float:
    """Peak resident memory of this process so far, in GiB."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / 2**30 if sys.platform == "darwin" else found / 2**20


if __name__ == "__main__":
    main()
