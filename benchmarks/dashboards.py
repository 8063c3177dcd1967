"""How fast the data of dashboards are made, saekit's and SAEDashboard's, in one process.

    python benchmarks/dashboards.py
    python benchmarks/dashboards.py --width 1152 --tokens 50000 --rounds 3

The first call builds an environment with the peers' packages (requirements/peers.txt); the script then
runs inside it. Needs the held-out store that `make reproduce` prepares.

Both get the same ReLU dictionary and the same kept activations of the same rows, so that neither runs the
model, and make for **every** latent the data that a dashboard shows: density, greatest activation, the
histogram of activations, the tokens that it promotes and suppresses, 20 top contexts, and 5 examples from
each of 10 equal intervals of the activation. SAEDashboard's runner also computes correlated neurons and
latents; saekit also keeps every active entry and counts the latents' tokens. The unembedding is random: it
takes the same time. The two take turns, and which goes first alternates.

Before the times are printed, the two must agree on the density and the greatest activation of each latent.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import environment
import torch
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.analysis.latents import collect, logit_table
from saekit.dictionary import Dictionary
from saekit.files import home
from saekit.loading.names import load_family

TOP, INTERVALS, OF_EACH, BINS = 20, 10, 5, 50  # SAEDashboard's defaults
ROWS = 64  # of a minibatch, SAEDashboard's default
VOCABULARY = 49_152

Answer = tuple[Tensor, Tensor]  # density and greatest activation of each latent


class Ours:
    """What an explorer or an exported page looks up, for every latent."""

    def __init__(self, dictionary: Dictionary, store: ActivationStore, unembedding: Tensor) -> None:
        self.dictionary, self.store, self.unembedding = dictionary, store, unembedding
        self.vocabulary = [f" token{i}" for i in range(VOCABULARY)]

    def __call__(self) -> Answer:
        """Make the data of every latent, as an exported page needs them."""
        from saekit.widgets.evidence import Evidence

        collected = collect(self.dictionary, self.store)
        logits = logit_table(self.dictionary, self.unembedding, self.vocabulary)
        evidence = Evidence(collected, self.store, self.vocabulary, logits)
        for latent in evidence.alive:
            collected.histogram(latent, bins=BINS)
            logits.latent(latent)
            evidence.top(latent, TOP)
            evidence.top_tokens(latent)
            for interval in collected.intervals(latent, bins=INTERVALS, n=OF_EACH):
                evidence.around(latent, interval.positions)
        return torch.tensor(evidence.counts) / collected.n_tokens, collected.max


class Theirs:
    """`SaeVisRunner.run` of SAEDashboard with its default layout, from activations cached on disk."""

    def __init__(
        self, dictionary: Dictionary, store: ActivationStore, unembedding: Tensor, folder: Path
    ) -> None:
        from sae_lens.saes import StandardSAE, StandardSAEConfig

        self.hook, self.tokens, self.folder = store.hook_point, store.tokens, folder
        plain = {"apply_b_dec_to_input": False}  # folded into the bias of the encoder
        self.sae = StandardSAE(StandardSAEConfig(d_in=dictionary.d_in, d_sae=dictionary.width, **plain))
        # A latent is active above its threshold; SAELens knows no threshold but that of its ReLU.
        if dictionary.threshold.count_nonzero():
            raise SystemExit("The dictionary has thresholds, which a ReLU SAE cannot have.")
        state = {name: getattr(dictionary, name).float() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        self.sae.load_state_dict(state)
        # The runner looks at the hook points and the unembedding, and runs nothing.
        self.model: Any = SimpleNamespace(hook_dict={self.hook: None}, W_U=unembedding)
        positions = torch.arange(self.tokens.numel())
        rows = store.read(positions).float().view(*self.tokens.shape, -1)
        for i, part in enumerate(rows.split(ROWS)):
            torch.save({self.hook: part.clone()}, folder / f"model_activations_{i}.pt")

    def __call__(self) -> Answer:
        """Run the runner, which returns the data of every latent."""
        from sae_dashboard.sae_vis_data import SaeVisConfig
        from sae_dashboard.sae_vis_runner import SaeVisRunner

        config = SaeVisConfig(
            hook_point=self.hook,
            features=range(self.sae.cfg.d_sae),
            minibatch_size_tokens=ROWS,
            cache_dir=self.folder,
        )
        found = SaeVisRunner(config).run(self.sae, self.model, self.tokens)
        stats = found.feature_stats
        return torch.tensor(stats.frac_nonzero), torch.tensor(stats.max)


def first_rows(store: ActivationStore, n_tokens: int) -> ActivationStore:
    """The first rows of a store with every position in use, since SAEDashboard counts them all."""
    n_rows = min(n_tokens // store.tokens.shape[1], len(store.tokens))
    part = ActivationStore(store.path, {**store.manifest, "rows": n_rows})
    for name in ("tokens", "special", "document"):
        part.__dict__[name] = getattr(store, name)[:n_rows].clone()
    part.__dict__["excluded"] = torch.zeros_like(part.tokens, dtype=torch.bool)
    return part


def timed(run: Callable[[], Answer]) -> tuple[float, Answer]:
    """Seconds of a run, and its answer."""
    start = time.perf_counter()
    answer = run()
    return time.perf_counter() - start, answer


def agree(ours: Answer, theirs: Answer, n_tokens: int) -> None:
    """Stop unless both found the same densities and greatest activations.

    Their matrix products add up in another order, so a token or two at the threshold may differ.
    """
    names, least = ("density", "greatest activation"), (2 / n_tokens + 6e-6, 0.0)
    for what, a, b, atol in zip(names, ours, theirs, least, strict=True):
        if not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=atol):
            worst = (a - b).abs().argmax().item()
            sys.exit(f"They differ in {what} of latent {worst}: {a[worst]:g} and {b[worst]:g}.")


def main() -> None:
    """Time both on the same dictionary and tokens, and print the ratio."""
    parser = argparse.ArgumentParser(description="saekit and SAEDashboard on the same SAE and tokens")
    parser.add_argument("--width", type=int, default=1152, help="of the bundled ReLU family")
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    environment.enter()
    warnings.filterwarnings("ignore")
    store = ActivationStore.open(home() / "stores" / "held-out-100000-float32")
    store = first_rows(store, options.tokens)
    dictionary = load_family("relu")[options.width]
    unembedding = torch.randn(dictionary.d_in, VOCABULARY, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {"saekit": [], "SAEDashboard": []}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "saekit": Ours(dictionary, store, unembedding),
            "SAEDashboard": Theirs(dictionary, store, unembedding, Path(folder)),
        }
        for round_ in range(options.rounds):
            answers = {}
            for name in list(sides)[:: 1 if round_ % 2 else -1]:
                taken, answers[name] = timed(sides[name])
                seconds[name].append(taken)
            agree(answers["saekit"], answers["SAEDashboard"], store.tokens.numel())
    n = store.tokens.numel()
    print(f"{dictionary.width:,} latents, {n:,} tokens, {torch.get_num_threads()} threads")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{name:13s} {middle:8.1f} s  {n / middle:10,.0f} tokens per second")
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    print(f"saekit is {statistics.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
