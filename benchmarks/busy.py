"""How long training takes beside processes that keep every core busy, as threads wait in two ways.

    python benchmarks/busy.py
    python benchmarks/busy.py --steps 200 --busy 3 --out busy.json

OpenMP's threads either spin while they wait for each other or give up their core
(`OMP_WAIT_POLICY=passive`, which saekit sets unless the environment says otherwise). The same
dictionary is trained in a fresh process for each policy and number of threads, on an idle machine
and beside `--busy` processes that multiply matrices; medians over `--rounds`. The bits are the same
with either policy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas as pd

from saekit.files import write_json

LOAD = """
import torch
torch.set_num_threads(1)
x = torch.randn(512, 512)
while True:
    x = torch.nn.functional.normalize(x @ x)
"""

TRAIN = """
import sys, time, torch
from saekit import BatchTopK, TrainingConfig, train
threads, steps, width, d_in = map(int, sys.argv[1:])
torch.set_num_threads(threads)
x = torch.randn(20_000, d_in, generator=torch.Generator().manual_seed(0))
config = TrainingConfig(BatchTopK(k=32), width=width, steps=steps, batch_size=512, log_every=steps)
begun = time.perf_counter()
dictionary = train(config, x, progress=False).dictionary
print(time.perf_counter() - begun, dictionary.content_hash)
"""


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes beside it")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    sizes = [str(size) for size in (options.steps, options.width, options.d_in)]
    rows = []
    for busy, policy, threads in product((0, options.busy), ("active", "passive"), (1, os.cpu_count() or 1)):
        load = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(busy)]
        try:
            runs = [train_once(policy, threads, sizes) for _ in range(options.rounds)]
        finally:
            for process in load:
                process.kill()
                process.wait()
        seconds = statistics.median(run[0] for run in runs)
        rows.append({"busy": busy, "policy": policy, "threads": threads, "seconds": round(seconds, 2)})
        rows[-1]["hash"] = ", ".join(sorted({run[1][:8] for run in runs}))
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False))
    if options.out is not None:
        write_json(options.out, {"load_average": os.getloadavg(), "cores": os.cpu_count(), "rows": rows})


def train_once(policy: str, threads: int, sizes: list[str]) -> tuple[float, str]:
    """Seconds of one training in a process of its own, and the hash of what it trained."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", TRAIN, str(threads), *sizes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, content_hash = done.stdout.split()
    return float(seconds), content_hash


if __name__ == "__main__":
    main()
