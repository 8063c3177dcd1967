"""How much faster `ce_degradation` is than a plain loop of forward passes, in one process.

    python benchmarks/cross_entropy.py
    python benchmarks/cross_entropy.py --rows 8 --members 2 --threads 1 --out cross_entropy.json

The plain loop runs the whole model on every batch of rows for every dictionary, with a hook that puts
the reconstruction in the place of the activations, and takes the loss of all logits at once. Both run
alternately on the same rows of the embedded store; the ratio is that of the medians over `--rounds`,
in processor time, which other work on the machine disturbs less than the clock. `difference` is the
largest between the CE degradations of the two, in nats per token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekit import ce_degradation, embedded_store, load_family, load_model
from saekit.activations import ActivationStore
from saekit.dictionary import Dictionary
from saekit.files import write_json


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--members", type=int, default=3, help="dictionaries of the bundled ReLU family")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, store = load_model(), embedded_store("held-out")
    members = list(load_family("relu"))[: options.members]
    times: dict[str, list[float]] = {"plain": [], "saekit": []}
    for _ in range(options.rounds):
        begun = time.process_time()
        expected = plain_loop(model, members, store, options.rows)
        times["plain"].append(time.process_time() - begun)
        begun = time.process_time()
        found = ce_degradation(model, members, store, max_rows=options.rows, everywhere=False)
        times["saekit"].append(time.process_time() - begun)
        print({name: round(values[-1], 2) for name, values in times.items()}, flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    difference = max(
        abs(a - b) for a, b in zip(found.frame["ce_degradation"].tolist(), expected, strict=True)
    )
    result = {
        **{f"{name}_s": round(seconds, 2) for name, seconds in medians.items()},
        "ratio": round(medians["plain"] / medians["saekit"], 2),
        "difference": difference,
        "rows": options.rows,
        "members": len(members),
        "threads": options.threads,
    }
    print(result)
    if options.out is not None:
        write_json(options.out, result)


@torch.no_grad()
def plain_loop(
    model: Any, members: Sequence[Dictionary], store: ActivationStore, n_rows: int, batch_rows: int = 16
) -> list[float]:
    """CE degradation of each dictionary, as one would write it down; ablations as well."""
    rows = torch.linspace(0, store.n_rows - 1, n_rows).round().long()
    mean = store.read(store.positions).mean(0)
    replacements = [
        lambda x: x,
        torch.zeros_like,
        lambda x: mean.expand_as(x),
        *(lambda x, member=member: member.reconstruct(x.flatten(0, 1)).view_as(x) for member in members),
    ]
    totals, n_targets = [0.0] * len(replacements), 0
    for part in rows.split(batch_rows):
        tokens, excluded = store.tokens[part].long(), store.excluded[part, :, None]
        targets = ~store.special[part, 1:]
        n_targets += int(targets.sum())
        for place, replace in enumerate(replacements):

            def hook_function(x: Tensor, replace: Any = replace, kept: Tensor = excluded, **_: Any) -> Tensor:
                return torch.where(kept, x, replace(x))

            logits = model.run_with_hooks(tokens, fwd_hooks=[(store.hook_point, hook_function)])
            loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
            totals[place] += float((loss.double() * targets).sum())
    return [(total - totals[0]) / n_targets for total in totals[3:]]


if __name__ == "__main__":
    main()
