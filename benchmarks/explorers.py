"""How long the explorers take to answer on the embedded default.

    python benchmarks/explorers.py

Needs what `make reproduce` prepares. Prints the median and the slowest of 60 changes of each
explorer's state, in milliseconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import saekit
from saekit.widgets import LatentExplorer, NoveltyExplorer, SplittingExplorer, collect_evidence

UPDATES = 60


def measure(name: str, update: Callable[[], None]) -> None:
    """Time a change of state and print a row of the table."""
    times = []
    for _ in range(UPDATES):
        start = time.perf_counter()
        update()
        times.append(1000 * (time.perf_counter() - start))
    print(f"{name:42s} median {sorted(times)[UPDATES // 2]:6.1f} ms, slowest {max(times):6.1f} ms")


def main() -> None:
    """Build the three explorers as the notebooks do, and change their state at random."""
    model = saekit.load_model()
    held_out = saekit.embedded_store("held-out", model=model)
    family = saekit.load_family("relu")
    evidence = collect_evidence(family, held_out, model, sources=("Wikipedia", "Presidential address"))
    draw = random.Random(0)
    widest = family.widths[-1]

    latent = LatentExplorer(family, evidence, width=widest)
    measure(
        f"LatentExplorer, another latent of {widest}",
        lambda: latent.show(width=widest, latent=draw.randrange(widest)),
    )
    tree = SplittingExplorer(saekit.splitting_tree(family), evidence)
    measure(
        "SplittingExplorer, another latent of 1152",
        lambda: tree.show(width=1152, latent=draw.randrange(1152)),
    )
    small = family.widths[-2]
    result = saekit.insertion(family[small], family[widest], held_out)
    novelty = NoveltyExplorer(result, evidence[widest], small_evidence=evidence[small])
    measure(f"NoveltyExplorer, another theta, {widest}", lambda: novelty.show(theta=round(draw.random(), 2)))


if __name__ == "__main__":
    main()
