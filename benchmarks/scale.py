"""What each analysis costs as dictionaries and token sets grow, in encodings and in memory.

    python benchmarks/scale.py stitch             # one of the prepared tables (`TABLES`)
    python benchmarks/scale.py --widths 768 1536 3072 6144 --tokens 2048 8192
    python benchmarks/scale.py --d-in 2304 --widths 16384 65536 --only insertion

Families are synthetic (`synthetic_family`), with the sparsity, the spread of densities and the number
of latent pairs that are active together of the bundled ones. Widths are taken in order, and a pair is one
width and the next one given.

Each analysis runs in a process of its own, between two encodings of the same tokens with the
dictionaries that it asks. Printed are its wall time over the mean of the two, its peak resident memory
above what the process held once dictionaries and activations were loaded, and the exponents of both in
the number of tokens and in the width: the slopes of a least-squares fit in logarithms.

An analysis of directions alone asks no tokens: its time is over encoding them with both dictionaries.
`passes` is how many times one dictionary encoded all tokens, at most.
`busy` is the time that processors spent on it, all threads together, and `busy encodings` that over
theirs: what to go by beside other work.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from saekit import ActivationStore, Dictionary, analysis, metrics
from saekit.analysis.meta.sae import MetaSAE, Recipe, meta_sae
from saekit.analysis.stitching.path import plan
from saekit.family import Family
from saekit.files import read_tensors, write_tensors
from saekit.report.report import write_report

L0 = 45.0
DENSITY_SPREAD = 0.75  # standard deviation of the log densities of bundled ReLU dictionaries
N_FITTED = 4096  # tokens that thresholds are fitted on
BATCH = 4096
X = "x.safetensors"
LIMIT = 600.0  # seconds for one analysis
QUICK = Recipe("quick", lr=1e-3, steps=50, batch=4096)


# ---------------------------------------------------------------------- inputs


def synthetic_family(folder: Path, d_in: int, widths: list[int], n_tokens: int) -> None:
    """Write dictionaries of these widths and activations `[n_tokens, d_in]` for them.

    Half of the latents of each width are turned away from latents of the width before it, by cosines
    from 0.5 to 1; the others are new. Activations are sums of about 45 directions of the widest
    dictionary. Thresholds make a latent as dense as a log-normal draw, 45 latents per token in all.
    """
    generator = torch.Generator().manual_seed(0)
    rows: dict[int, Tensor] = {}
    for width in sorted(widths):
        rows[width] = F.normalize(torch.randn(width, d_in, generator=generator))
        if before := sorted(rows)[:-1]:
            n = width // 2
            source = torch.randint(before[-1], (n,), generator=generator)
            cosine = 0.5 + 0.5 * torch.rand(n, 1, generator=generator)
            turned = cosine * rows[before[-1]][source] + (1 - cosine**2).sqrt() * rows[width][:n]
            rows[width][:n] = F.normalize(turned)
    widest = rows[max(widths)]
    popularity = torch.empty(len(widest)).log_normal_(0, DENSITY_SPREAD, generator=generator)
    total = max(n_tokens, N_FITTED)
    chosen = torch.multinomial(popularity, total * int(L0), replacement=True, generator=generator)
    sizes = torch.empty(total, int(L0)).exponential_(generator=generator) + 0.5
    x = F.embedding_bag(chosen.view(total, -1), widest, per_sample_weights=sizes, mode="sum")
    for width, directions in rows.items():
        density = torch.empty(width).log_normal_(0, DENSITY_SPREAD, generator=generator)
        density *= L0 / density.sum()
        threshold = torch.cat(
            [
                _thresholds(part @ x[:N_FITTED].T, share)
                for part, share in zip(directions.split(4096), density.split(4096), strict=True)
            ]
        )
        zeros = torch.zeros(width)
        W_enc = directions.T.contiguous()
        info = {"kind": "synthetic", "hook_point": "blocks.0.hook_resid_post", "seed": width}
        made = Dictionary(W_enc, zeros, directions, torch.zeros(d_in), threshold, info=info)
        made.save(folder / str(width))
    write_tensors(folder / X, {"x": x[:n_tokens].clone()})


def _thresholds(h: Tensor, density: Tensor) -> Tensor:
    """What each row of the pre-activations exceeds on a share of the tokens."""
    n = h.shape[1]
    place = n - 1 - (density * n).round().long().clamp(1, n - 1)
    ordered = torch.from_numpy(np.sort(h.numpy(), axis=1))
    return ordered.gather(1, place[:, None])[:, 0].clamp_min(0)


@dataclass(frozen=True)
class Inputs:
    """Two neighbouring dictionaries, and activations `[n, d_in]`."""

    small: Dictionary
    large: Dictionary
    x: Tensor

    @property
    def family(self) -> Family:
        """The two as a family."""
        return Family([self.small, self.large])


# ---------------------------------------------------------------------- analyses


def insertion(inputs: Inputs) -> Callable[[], object]:
    """`insertion`; the pair's cosines are there already."""
    analysis.best_matches(inputs.small, inputs.large)
    return lambda: analysis.insertion(inputs.small, inputs.large, inputs.x)


def group_insertion(inputs: Inputs) -> Callable[[], object]:
    """`group_insertion` of an insertion that is there already."""
    found = analysis.insertion(inputs.small, inputs.large, inputs.x)
    return lambda: analysis.group_insertion(inputs.small, inputs.large, found, inputs.x)


def stitch_in(order: str) -> Callable[[Inputs], Callable[[], object]]:
    """`stitch` in an order; the pair's cosines are there already."""

    def ready(inputs: Inputs) -> Callable[[], object]:
        plan(inputs.small, inputs.large)
        return lambda: analysis.stitch(inputs.small, inputs.large, inputs.x, order=order)

    return ready


def matched_curve(inputs: Inputs) -> Callable[[], object]:
    """`matched_curve` at 12 steps of a curve that is there already."""
    found = analysis.stitch(inputs.small, inputs.large, inputs.x)
    return lambda: analysis.matched_curve(found, inputs.x)


def of_meta(run: Callable[[MetaSAE, Inputs], object]) -> Callable[[Inputs], Callable[[], object]]:
    """An analysis of a meta-SAE of the large dictionary, which is trained for a few steps here."""

    def ready(inputs: Inputs) -> Callable[[], object]:
        meta = meta_sae(inputs.large, recipe=QUICK)
        return lambda: run(meta, inputs)

    return ready


def all_from_cosines(inputs: Inputs) -> Callable[[], object]:
    """Plans for two thetas, best matches and splitting: all from one product of the directions."""

    def run() -> None:
        plan(inputs.small, inputs.large, theta=0.7)
        plan(inputs.small, inputs.large, theta=0.8)
        analysis.best_matches(inputs.small, inputs.large)
        analysis.measure_splitting(inputs.small, inputs.large)

    return run


def report(inputs: Inputs) -> Callable[[], object]:
    """`write_report` on the two, with meta-SAEs that are trained for a few steps."""
    folder = Path(tempfile.mkdtemp())
    point = inputs.small.hook_point
    assert point is not None
    store = ActivationStore.from_array(folder / "store", inputs.x, hook_point=point)
    return lambda: write_report(inputs.family, store, folder=folder / "report", recipe=QUICK)


# Each makes ready what it needs and gives the call that is measured.
ANALYSES: dict[str, Callable[[Inputs], Callable[[], object]]] = {
    "insertion": insertion,
    "group_insertion": group_insertion,
    "stitch": stitch_in("similarity"),
    "stitch static_gain": stitch_in("static_gain"),
    "pair_statistics": lambda i: lambda: analysis.pair_statistics(i.small, i.large, i.x),
    "matched_curve": matched_curve,
    "overshoot": lambda i: lambda: analysis.measure_overshoot(i.small, i.large, i.x),
    "frankenstein": lambda i: lambda: analysis.build_frankenstein(i.family, i.x),
    "specificity": lambda i: lambda: analysis.measure_specificity(i.small, i.large, i.x),
    "cosines": all_from_cosines,
    "uniqueness": lambda i: lambda: analysis.match_latents(i.small, i.large),
    "adjacency_overlap": of_meta(lambda meta, i: analysis.adjacency_overlap(meta, i.small)),
    "meta_baselines": of_meta(lambda meta, i: analysis.meta_baselines(meta, [i.small])),
    "report": report,
}
OF_LARGE: dict[str, Callable[[Inputs], Callable[[], object]]] = {
    "evaluate": lambda i: lambda: metrics.evaluate(i.large, i.x),
    "matched_l0": lambda i: lambda: analysis.matched_l0(i.large, i.x, L0 / 2),
    "collect": lambda i: lambda: analysis.collect(i.large, i.x),
}


PAIR = ("insertion", "stitch", "pair_statistics", "cosines", "uniqueness", "evaluate", "collect")
LADDER = (768, 1536, 3072, 6144, 12_288, 24_576, 49_152, 98_304)

# What the documentation states, each by the options that measure it. The time is for one analysis of
# one pair, in seconds on two idle cores; synthetic inputs of 98,304 latents take two minutes more.
TABLES: dict[str, dict[str, Any]] = {
    "widths": {"widths": LADDER, "tokens": (1024,), "only": ("insertion", "stitch", "evaluate", "collect")},
    "d_in": {"d_in": 2304, "widths": (16_384, 32_768, 65_536), "tokens": (1024,), "only": PAIR[:2]},
    "exponents": {"widths": LADDER[2:5], "tokens": (1024, 4096, 16_384), "only": PAIR},
    "stitch": {"widths": LADDER[-2:], "tokens": (8192,), "only": ("stitch",)},
    "stitch_small": {"widths": (2304, 4608), "tokens": (8192, 32_768), "only": ("stitch",), "threads": 1},
    "insertion": {"widths": LADDER[-2:], "tokens": (8192,), "only": ("insertion",)},
    "meta_baselines": {"widths": LADDER[-3:-1], "tokens": (1024,), "only": ("meta_baselines",)},
    "adjacency": {"widths": LADDER[-3:-1], "tokens": (1024,), "only": ("adjacency_overlap",)},
    "report": {"widths": (1536, 3072), "tokens": (8192,), "only": ("report",)},
}


# ---------------------------------------------------------------------- measuring


def measure(name: str, folder: Path, small: int, large: int, n_tokens: int, threads: int) -> dict[str, Any]:
    """Time and memory of one analysis, in this process."""
    torch.set_num_threads(threads)
    inputs = Inputs(
        Dictionary.load(folder / str(small)),
        Dictionary.load(folder / str(large)),
        read_tensors(folder / X)["x"][:n_tokens].clone(),
    )
    loaded = resident()
    asked = [inputs.large] if name in OF_LARGE else [inputs.small, inputs.large]

    def encode() -> None:
        for batch in inputs.x.split(BATCH):
            for dictionary in asked:
                dictionary.encode_sparse(batch)

    run = (ANALYSES | OF_LARGE)[name](inputs)
    before = timed(encode)
    with Peak(above=loaded) as peak, Encoded(asked) as encoded:
        wall, cpu = timed(run)
    encoding = (before + timed(encode)) / 2
    return {
        "seconds": wall,
        "busy": cpu,
        "encodings": wall / encoding[0],
        "busy encodings": cpu / encoding[1],
        "passes": encoded.most / n_tokens,
        "GiB": peak.above,
    }


def timed(run: Callable[[], object]) -> np.ndarray:
    """Wall and processor seconds of a call."""
    start = np.array([time.perf_counter(), time.process_time()])
    run()
    return np.array([time.perf_counter(), time.process_time()]) - start


class Encoded:
    """The rows that some dictionaries encode within a block."""

    def __init__(self, dictionaries: list[Dictionary]) -> None:
        self._rows = {dictionary.name: 0 for dictionary in dictionaries}

    def __enter__(self) -> Encoded:
        self._encode = encode = Dictionary.encode_sparse

        def counted(dictionary: Dictionary, x: Tensor, *args: Any, **options: Any) -> Any:
            if dictionary.name in self._rows:  # and not those that are made of them
                self._rows[dictionary.name] += len(x)
            return encode(dictionary, x, *args, **options)

        Dictionary.encode_sparse = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        Dictionary.encode_sparse = self._encode  # type: ignore[method-assign]

    @property
    def most(self) -> int:
        """Those of the dictionary that encoded the most."""
        return max(self._rows.values())


class Peak:
    """Greatest resident memory of this process within a block."""

    def __init__(self, *, above: int) -> None:
        self._start = above

    def __enter__(self) -> Peak:
        self._most = resident()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._follow, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._watch.join()

    def _follow(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, resident())

    @property
    def above(self) -> float:
        """The peak above the start, in GiB."""
        return (self._most - self._start) / 2**30


def resident() -> int:
    """Resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("This benchmark reads /proc, which Linux has.")


def in_own_process(name: str, *arguments: object) -> dict[str, Any]:
    """The same in a process of its own; a note where it fails or takes too long."""
    command = [sys.executable, __file__, "--measure", name, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"note": f"over {LIMIT:.0f} seconds, with what it makes ready"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["killed"]
        return {"note": f"exit status {done.returncode}: {last[0]}"}
    return json.loads(done.stdout.splitlines()[-1])


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """By analysis, the slopes of log time and log memory in log tokens and log width."""
    rows = []
    for name, part in table.dropna(subset=["seconds"]).groupby("analysis", sort=False):
        inputs = {"tokens": part["tokens"], "width": part["large"]}
        varied = {key: np.log(value) for key, value in inputs.items() if value.nunique() > 1}
        design = np.column_stack([np.ones(len(part)), *varied.values()])
        row: dict[str, Any] = {"analysis": name}
        for measured in ("seconds", "GiB"):
            logs = np.log(part[measured].clip(lower=1e-3))
            slopes = np.linalg.lstsq(design, logs, rcond=None)[0][1:]
            for key in inputs:
                found = dict(zip(varied, slopes, strict=True)).get(key, math.nan)
                row[f"{measured} in {key}"] = found
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Parse, measure, print."""
    names = [*ANALYSES, *OF_LARGE]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", choices=TABLES, help="a prepared table, in place of options")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 1536, 3072, 6144, 12_288])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ANALYSIS")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, folder, *numbers = options.measure
        print(json.dumps(measure(name, Path(folder), *map(int, numbers))))
        return
    vars(options).update(TABLES.get(options.table, {}))
    widths, rows = sorted(options.widths), []
    with tempfile.TemporaryDirectory() as folder:
        synthetic_family(Path(folder), options.d_in, widths, max(options.tokens))
        for small, large in pairwise(widths):
            for n_tokens in options.tokens:
                for name in options.only:
                    found = in_own_process(name, folder, small, large, n_tokens, options.threads)
                    row = {"analysis": name, "small": small, "large": large, "tokens": n_tokens, **found}
                    rows.append(row)
                    print(row, file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).sort_values(["analysis", "large", "tokens"], kind="stable")
    print(f"d_in {options.d_in}, {options.threads} threads\n{table.round(3).to_string(index=False)}")
    if "seconds" in table:
        print(f"\nExponents\n{exponents(table).round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
