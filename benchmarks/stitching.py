"""What a stitching curve costs, beside encoding once and beside evaluating every step anew.

    python benchmarks/stitching.py [--kind relu] [--small 2304] [--large 4608] [--tokens 50000]

**Encoding** is `encode_sparse` of both dictionaries over all tokens. **A curve** is everything from
activations to FVU and L0 after every step: the plan, and one pass that encodes both and follows every
token's residual along the path. **Statistics** are `pair_statistics`, from which further curves of the
same pair, in other orders, need no tokens.
**Evaluating** a step anew is `evaluate` of the stitched dictionary; it is timed at sampled steps and
taken times the number of steps, since all of them would take hours. Encoding and curves alternate, and
medians of `--rounds` are printed.

At the sampled steps the error of the curve is held against `evaluate`: the largest deviation as a share
of 1e-5 times the terms that the change from the small dictionary is the difference of.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

import saekit
from saekit.activations import batches_of
from saekit.analysis.stitching.mixtures import PairStatistics
from saekit.analysis.stitching.path import ORDERS, Stitching, stitch
from saekit.metrics import evaluate

BOUND = 1e-5
BATCH = 4096


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def deviation(result: Stitching, statistics: PairStatistics, step: int, mse: float) -> float:
    """How far the curve is from an evaluation of a step, as a share of the bound."""
    moved = result.moves[result.moves["step"] <= step]
    latents = moved["latent"] + np.where(moved["side"] == "small", 0, result.small.width)
    sizes = statistics.power[latents] + 2 * np.abs(statistics.overlap[latents])
    return abs(result.frame["mse"].iloc[step] - mse) / (BOUND * sizes.sum() / result.n_tokens)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="relu", help="a bundled family, or a folder")
    parser.add_argument("--small", type=int, default=2304)
    parser.add_argument("--large", type=int, default=4608)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8, help="steps that are evaluated anew")
    parser.add_argument("--threads", type=int, help="torch's own choice if left out")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    family = saekit.load_family(options.kind)
    small, large = family[options.small], family[options.large]
    store = saekit.embedded_store("held-out", progress=False)
    x = torch.cat([batch for _, batch in batches_of(store, BATCH)])[: options.tokens].clone()

    def encode() -> None:
        for batch in x.split(BATCH):
            small.encode_sparse(batch)
            large.encode_sparse(batch)

    encode()
    encoding, whole = [], []
    for _ in range(options.rounds):
        encoding.append(seconds(encode))
        whole.append(seconds(lambda: stitch(small, large, x)))
    start = time.perf_counter()
    pair = saekit.pair_statistics(small, large, x)
    statistics_of_pair = time.perf_counter() - start
    further = {
        order: seconds(lambda order=order: stitch(small, large, pair, order=order)) for order in ORDERS
    }

    result, quadratic = stitch(small, large, x), stitch(small, large, pair)
    apart = float((result.frame["fvu"] / quadratic.frame["fvu"] - 1).abs().max())
    steps = np.linspace(0, result.n_steps, options.samples + 1).round().astype(int)[1:]
    anew, worst = [], 0.0
    for step in steps:
        stitched = result.dictionary(int(step))
        start = time.perf_counter()
        mse = evaluate(stitched, x).mse
        anew.append(time.perf_counter() - start)
        worst = max(worst, deviation(result, pair, int(step), mse))

    once, curve = statistics.median(encoding), statistics.median(whole)
    every = statistics.mean(anew) * result.n_steps
    rows = [
        ("encoding with both once", once),
        ("a curve, from activations", curve),
        ("statistics of the pair", statistics_of_pair),
        *((f"a further curve, {order}", time_) for order, time_ in further.items()),
        ("evaluating one step anew", statistics.mean(anew)),
        (f"evaluating all {result.n_steps:,} steps anew (extrapolated)", every),
    ]
    print(f"{small.name} → {large.name}, {len(x):,} tokens, {torch.get_num_threads()} threads")
    table = pd.DataFrame(rows, columns=["what", "seconds"])
    table["over encoding"] = table["seconds"] / once
    print(table.round(3).to_string(index=False))
    print(f"evaluating every step anew over the curve: {every / curve:,.0f}")
    print(f"the curve over encoding once: {curve / once:.2f} (medians of {options.rounds} rounds)")
    print(f"largest relative difference between the streamed and the quadratic FVU: {apart:.1e}")
    print(f"largest deviation at {len(steps)} steps: {worst:.3f} of the bound {BOUND:g}")


if __name__ == "__main__":
    main()
