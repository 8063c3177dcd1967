"""How long the explorers take to answer, and whether they grow while they are used.

    python benchmarks/explorers.py
    python benchmarks/explorers.py --width 49152 --tokens 20000 --interactions 1000

Makes a synthetic family of two widths, the given one and half of it, over a world of words (each latent
reads one direction, with noise), so that it needs no model and no data; `--bundled` takes the two widest
members of the bundled ReLU family on the held-out store that `make reproduce` prepares.

Every explorer is displayed and its state is changed at random. Prints, for each, the median, the 95th
percentile and the slowest answer in milliseconds of processor time (other programs may share the machine),
the size of its page, the number of live widgets before and after, and the growth of the process's memory
over the second half of the interactions.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from dashboards import first_rows
from ipywidgets.widgets import widget

import saekit
from saekit.activations import ActivationStore
from saekit.analysis.effects.nodes import NodeEffects
from saekit.analysis.latents import collect, logit_table
from saekit.analysis.meta.sae import MetaSAE
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.widgets import (
    CircuitExplorer,
    EditExplorer,
    Evidence,
    LatentExplorer,
    MetaExplorer,
    NoveltyExplorer,
    ProbingExplorer,
    SplittingExplorer,
    StitchingExplorer,
    WorldExplorer,
)
from saekit.widgets.base import Explorer

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from toy_edits import make_edits
from toy_stores import in_memory

D_IN, WORDS, CONTEXT = 256, 5000, 128


def memory() -> float:
    """Memory of the process at this moment, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(name: str, explorer: Explorer, draw: Callable[[], dict[str, Any]], n: int) -> None:
    """Change the state of a displayed explorer `n` times and print a row of the table."""
    assert explorer.view
    gc.collect()
    widgets, times, halfway = len(widget._instances), [], 0.0
    for step in range(n):
        selection = draw()
        start = time.process_time()
        explorer.show(**selection)
        times.append(1000 * (time.process_time() - start))
        if step == n // 2:
            gc.collect()
            halfway = memory()
    gc.collect()
    assert not explorer._alert.value, explorer._alert.value
    print(
        f"| {name} | {np.median(times):.1f} | {np.quantile(times, 0.95):.1f} | {max(times):.1f} "
        f"| {len(explorer.static()) / 1024:.0f} | {widgets} | {len(widget._instances)} "
        f"| {memory() - halfway:+.1f} |",
        flush=True,
    )
    explorer.close()


def synthetic(width: int, n_tokens: int) -> tuple[Family, ActivationStore, list[str], torch.Tensor]:
    """Two dictionaries over a vocabulary of directions, and a store of tokens that they fire on."""
    generator = torch.Generator().manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(WORDS, D_IN, generator=generator), dim=1)
    tokens = torch.randint(WORDS, (n_tokens // CONTEXT, CONTEXT), generator=generator)
    x = words[tokens] * (1 + torch.rand(*tokens.shape, 1, generator=generator))
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    documents = [{"source": "made up", "title": "random words"}]
    store = in_memory(x, tokens=tokens, special=nowhere, excluded=nowhere, documents=documents)
    store.manifest["hook_point"] = "blocks.0.hook_resid_post"
    members = []
    for size in (width // 2, width):
        noise = 0.02 * torch.randn(size, D_IN, generator=generator)
        rows = torch.nn.functional.normalize(words[torch.arange(size) % WORDS] + noise, dim=1)
        info = {"kind": "relu", "seed": 0, "hook_point": store.hook_point}
        threshold = torch.full((size,), 0.6)
        members.append(
            Dictionary(rows.T.contiguous(), torch.zeros(size), rows, torch.zeros(D_IN), threshold, info=info)
        )
    return Family(members), store, [f" word{i}" for i in range(WORDS)], words.T.contiguous()


def effects_of(dictionary: Dictionary, n_prompts: int = 40, ctx: int = 15) -> NodeEffects:
    """Effects of 50 latents at each position of each prompt, drawn at random."""
    chance = np.random.default_rng(0)
    names = ["prompt", "position", "i"]
    index = pd.MultiIndex.from_product([range(n_prompts), range(ctx), range(50)], names=names)
    frame = index.to_frame(index=False).drop(columns="i")
    frame["latent"] = chance.integers(0, dictionary.width, len(frame))
    frame = frame.drop_duplicates(["prompt", "position", "latent"], ignore_index=True)
    place = dictionary.info["hook_point"]
    frame = frame.assign(place=place, kind="latent", activation=1.0, baseline=0.0)
    frame["attribution"] = chance.standard_t(2, len(frame))
    totals = pd.DataFrame({"place": place, "prompt": range(n_prompts), "clean": 3.0, "total": -2.0})
    strings = tuple(tuple(f" word{i}" for i in range(ctx)) for _ in range(n_prompts))
    tokens, lengths = torch.zeros(n_prompts, ctx, dtype=torch.int64), torch.full((n_prompts,), ctx)
    prompts = saekit.Prompts("random", tokens, lengths, strings)
    settings = (prompts, "logit_difference", "mean", ("attribution",), {}, 0)
    return NodeEffects((dictionary.identity,), (place,), *settings, frame, totals)


def meta_of(family: Family) -> MetaSAE:
    """A meta-SAE whose directions are the first rows of the smaller dictionary."""
    source = family[family.widths[-1]]
    rows = family[family.widths[0]].W_dec[: max(64, source.width // 16)].clone()
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 4}}, "meta": {"recipe": {"name": "toy"}}}
    threshold = torch.full((len(rows),), 0.15)
    zero = torch.zeros(source.d_in)
    own = Dictionary(rows.T.contiguous(), torch.zeros(len(rows)), rows, zero, threshold, info=info)
    return MetaSAE(own, (source,), torch.zeros(source.width, dtype=torch.bool))


def main() -> None:
    """Make every explorer and measure it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundled", action="store_true", help="the bundled ReLU family, not a synthetic one")
    parser.add_argument("--width", type=int, default=9216, help="of the larger synthetic dictionary")
    parser.add_argument("--tokens", type=int, default=20_000, help="of the store")
    parser.add_argument("--interactions", type=int, default=1000, help="with each explorer")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.bundled:
        model = saekit.load_model()
        store = first_rows(saekit.embedded_store("held-out", model=model), arguments.tokens)
        whole = saekit.load_family("relu")
        family = Family([whole[width] for width in whole.widths[-2:]])
        vocabulary, head = model.tokenizer, saekit.models.unembedding(model)
    else:
        family, store, vocabulary, head = synthetic(arguments.width, arguments.tokens)
    small, large = (family[width] for width in family.widths)
    evidence = {
        member.width: Evidence(
            collect(member, store), store, vocabulary, logit_table(member, head, vocabulary)
        )
        for member in (small, large)
    }
    draw, n = random.Random(0), arguments.interactions
    print(f"{large.width:,} latents, {evidence[large.width].activations.n_tokens:,} tokens, {n} changes\n")
    header = (
        "explorer",
        "median",
        "95th percentile",
        "slowest",
        "page, KiB",
        "widgets",
        "after",
        "memory, MiB",
    )
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)

    def latent() -> dict[str, Any]:
        return {"width": large.width, "latent": draw.randrange(large.width)}

    measure("latent", LatentExplorer(family, evidence, width=large.width), latent, n)
    tree = saekit.splitting_tree(family)
    measure(
        "splitting",
        SplittingExplorer(tree, evidence),
        lambda: {"width": small.width, "latent": draw.randrange(small.width)},
        n,
    )
    result = saekit.insertion(small, large, store)
    novelty = NoveltyExplorer(result, evidence[large.width], small_evidence=evidence[small.width])
    measure("novelty, theta", novelty, lambda: {"theta": round(draw.random(), 2)}, n)
    novelty = NoveltyExplorer(result, evidence[large.width], small_evidence=evidence[small.width])
    measure("novelty, latent", novelty, lambda: {"latent": draw.randrange(large.width)}, n)
    path = saekit.stitch(small, large, store)
    stitching = StitchingExplorer(path, evidence[small.width], evidence[large.width])
    measure("stitching", stitching, lambda: {"step": draw.randrange(path.n_steps)}, n)
    meta = meta_of(family)
    explorer = MetaExplorer(meta, {large.width: evidence[large.width]}, head)
    measure("meta-SAE, latent", explorer, latent, n)
    explorer = MetaExplorer(meta, {large.width: evidence[large.width]}, head)
    measure("meta-SAE, meta-latent", explorer, lambda: {"meta_latent": draw.randrange(meta.width)}, n)
    x = store.read(torch.arange(600)).float()
    sets = [saekit.LastTokens(f"set {i}", x, x @ large.W_dec[i] > x.mean()) for i in range(12)]
    probing = ProbingExplorer(saekit.probe([small, large], sets, ks=[1], dense=False), family, evidence)
    measure("probing", probing, latent, n)
    world = saekit.synthetic.nabeshima_tree()
    found = {"exact": saekit.measure_recovery(world.directions, world.directions)}
    measure("world", WorldExplorer(world, found), lambda: {"feature": draw.randrange(world.n_features)}, n)
    effects = effects_of(large)
    circuit = CircuitExplorer(effects, evidence[large.width])
    measure("circuit", circuit, lambda: {"prompt": draw.randrange(len(effects.prompts))}, n)
    edit = EditExplorer(make_edits())
    measure("edits", edit, lambda: {trait: draw.choice(edit.options[trait]) for trait in edit.options}, n)


if __name__ == "__main__":
    main()
