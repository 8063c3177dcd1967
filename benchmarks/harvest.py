"""How fast activations are harvested, beside the bare forward pass to the layer.

    python benchmarks/harvest.py [--dtype float32] [--threads 1] [--rounds 5] [--rows 256]

Harvesting is what `saekit harvest` does: forward passes, norms, checks, a shard a quarter of the
rows, its checksum, the exclusion mask and the manifest, in a new folder every round. The bare pass
is TransformerLens's own, `stop_at_layer`, on the same batches of embedded text; beside it stands
the same pass of the plain transformers model, which no hooks go through. They alternate, and
each round begins with another of them. Printed are the medians over rounds, of throughput and of
its ratio within a round; beside it the ratio of processor time, all threads together, which other
work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import saekit
from saekit.activations import harvest
from saekit.models import resolve_hook_point
from saekit.series.embedded import HOOK_POINT, embedded_rows

BATCH_ROWS = 32


class Stop(Exception):
    """Ends a forward pass."""


def plain_pass(model: torch.nn.Module, layer: int, tokens: Tensor) -> None:
    """Run a transformers model as far as the output of a layer."""

    def stop(*_: object) -> None:
        raise Stop

    handle = model.model.layers[layer].register_forward_hook(stop)
    try:
        model.model(tokens, use_cache=False)
    except Stop:
        handle.remove()


def main() -> None:
    """Time the three in turn and print a row for each."""
    parser = argparse.ArgumentParser(description="Harvest throughput beside the bare forward pass.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=256, help="rows of 128 tokens a round")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)

    from transformers import AutoModelForCausalLM

    model = saekit.load_model(dtype=dtype)
    folder = model.tokenizer.name_or_path
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    _, layer = resolve_hook_point(model, HOOK_POINT)
    assert layer is not None
    rows = embedded_rows(model, part="held-out", n_tokens=128 * options.rows)
    batches = rows.tokens.long().split(BATCH_ROWS)

    def harvested() -> None:
        with tempfile.TemporaryDirectory() as folder:
            shard_rows = BATCH_ROWS * max(1, options.rows // BATCH_ROWS // 4)
            harvest(
                model,
                rows,
                HOOK_POINT,
                path=Path(folder) / "store",
                dtype=dtype,
                batch_rows=BATCH_ROWS,
                shard_rows=shard_rows,
                progress=False,
            )

    def bare() -> None:
        for tokens in batches:
            model(tokens, stop_at_layer=layer + 1, return_type=None, use_cache=False)

    def transformers() -> None:
        for tokens in batches:
            plain_pass(plain, layer, tokens)

    runs: dict[str, Callable[[], None]] = {
        "harvest": harvested,
        "bare pass, stop_at_layer": bare,
        "bare pass, plain transformers": transformers,
    }
    clocks = (time.perf_counter, time.process_time)
    times: dict[str, list[list[float]]] = {name: [] for name in runs}  # by round: wall, processor
    with torch.no_grad():
        for number in range(options.rounds + 1):  # the first round warms up
            order = list(runs)[number % 3 :] + list(runs)[: number % 3]
            for name in order:
                start = [clock() for clock in clocks]
                runs[name]()
                if number:
                    times[name].append([clock() - begun for clock, begun in zip(clocks, start, strict=True)])
    n_tokens = rows.tokens.numel()
    print(f"{options.dtype}, threads: {options.threads}, {options.rounds} rounds of {n_tokens:,} tokens")
    for name, rounds in times.items():
        wall = [seconds for seconds, _ in rounds]
        slowest, median, fastest = (n_tokens / f(wall) for f in (max, statistics.median, min))
        print(f"{name:32s} {median:9,.0f} tokens/s (from {slowest:,.0f} to {fastest:,.0f})")
    for name in list(runs)[1:]:
        by_wall, by_processor = (
            statistics.median(t[i] / h[i] for t, h in zip(times[name], times["harvest"], strict=True))
            for i in range(len(clocks))
        )
        print(f"harvest over {name}: {by_wall:.3f}, by processor time {by_processor:.3f}")


if __name__ == "__main__":
    main()
