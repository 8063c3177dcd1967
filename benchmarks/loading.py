"""Memory that loading takes, beside the size of what was asked for, each case in a process of its own.

    python benchmarks/loading.py
    python benchmarks/loading.py --d-in 128 --widths 768,1536,24576

Eight SAEs of widths 768 to 98,304 on a d_in of 768 are written in SAELens' layout to a temporary
folder (1.2 GB), as the GPT-2 feature-splitting release has them, but random. What is measured is the
peak of the process's anonymous memory over what it had after its imports: pages of the files that
are mapped are the kernel's to drop, and are no part of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import saekit
from saekit.files import write_json, write_tensors

WIDTHS = [768 << n for n in range(8)]
N_LATENTS = 1000


def main() -> None:
    """Write the SAEs, measure each case in a process of its own, and take the SAEs away."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--widths", type=lambda text: [*map(int, text.split(","))], default=WIDTHS)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(*cases(options.folder, options.widths)[options.only])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.d_in, options.widths)
        rows = []
        for index in range(len(cases(Path(folder), options.widths))):
            command = [sys.executable, __file__, "--only", str(index), "--folder", folder]
            command += ["--widths", ",".join(map(str, options.widths))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(pd.DataFrame(rows).round(2).to_string(index=False))


def write(folder: Path, d_in: int, widths: list[int]) -> None:
    """Random SAEs in SAELens' layout, a folder each."""
    for width in widths:
        generator = torch.Generator().manual_seed(width)
        W_dec = torch.nn.functional.normalize(torch.randn(width, d_in, generator=generator))
        write_tensors(
            folder / str(width) / "sae_weights.safetensors",
            {"W_enc": W_dec.T, "b_enc": torch.zeros(width), "W_dec": W_dec, "b_dec": torch.ones(d_in)},
        )
        config = {"architecture": "standard", "d_in": d_in, "d_sae": width, "dtype": "float32"}
        config |= {"apply_b_dec_to_input": True, "metadata": {"sae_lens_version": "6.0.0"}}
        write_json(folder / str(width) / "cfg.json", config)


def cases(folder: Path, widths: list[int]) -> list[tuple[str, Callable[[], int]]]:
    """What is loaded, and a function that loads it and gives the bytes that it asked for at once."""

    def loop() -> int:
        # While one is read, the loop's variable still holds the one before.
        return max(map(sum, pairwise(size(dictionary) for dictionary in saekit.load_family(folder))))

    def pairs() -> int:
        # While the next is read, the loop's variables hold two.
        sizes = []
        small = large = None
        for comparison in saekit.load_family(folder).comparisons(null=False):
            small, large = comparison.small, comparison.large
            sizes += [size(small), size(large)] if not sizes else [size(large)]
        return max(sum(sizes[i : i + 3]) for i in range(len(sizes) - 1))

    def some() -> int:
        return size(saekit.load_sae(folder / str(widths[-1]), latents=range(N_LATENTS)))

    return [
        ("load_family(folder)", lambda: 0 * len(saekit.load_family(folder))),
        *(
            (f"family[{width}]", lambda width=width: size(saekit.load_family(folder)[width]))
            for width in (widths[1], widths[-1])
        ),
        (f"load_sae({widths[-1]}, latents=range({N_LATENTS}))", some),
        ("for dictionary in family", loop),
        ("for comparison in family.comparisons()", pairs),
    ]


def size(dictionary: saekit.Dictionary) -> int:
    """Bytes of a dictionary's tensors."""
    return sum(tensor.nbytes for tensor in dictionary.tensors().values())


def measure(case: str, load: Callable[[], int]) -> dict[str, Any]:
    """Load, while a thread watches the memory."""
    torch.set_num_threads(1)
    saekit.load_family, saekit.load_sae  # noqa: B018 - their imports are not what is measured
    before, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    asked = load()
    elapsed = time.perf_counter() - start
    done.set()
    watcher.join()
    mega = 2**20
    return {"case": case, "asked MiB": asked / mega, "peak MiB": (peak - before) / mega, "seconds": elapsed}


def anonymous() -> int:
    """Anonymous memory of this process, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
