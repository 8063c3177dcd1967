"""A small world whose latents fire on known words: a family, a store's tokens, evidence, results."""

from types import SimpleNamespace

import torch
from toy_stores import in_memory

from saekit.analysis import collect, insertion, logit_table, splitting_tree
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.widgets import Evidence, build_atlas

WORDS = [
    "<s>", " king", " queen", "\n", "<script>alert(1)</script>", " the", " of", "\u202eevil", "  ", " a&b",
    " river", " stone",
]  # fmt: skip
DEAD = 7  # of width 8: has a threshold that nothing reaches
CONTEXT, ROWS, D_IN = 16, 40, 12


def dictionary(width, seed, embedding, kind="relu"):
    """Latent i reads the embedding of word i modulo the vocabulary, with noise that grows with i."""
    generator = torch.Generator().manual_seed(1000 * width + seed)
    word = torch.arange(width) % len(WORDS)
    noise = torch.randn(width, D_IN, generator=generator) * 0.12
    rows = torch.nn.functional.normalize(embedding[word] + noise, dim=1)
    threshold = torch.full((width,), 0.5)
    threshold[DEAD] = 1e6
    return Dictionary(
        W_enc=rows.T.contiguous(),
        b_enc=torch.zeros(width),
        W_dec=rows,
        b_dec=torch.zeros(D_IN),
        threshold=threshold,
        info={"kind": kind, "seed": seed, "hook_point": "toy"},
    )


def make_world(words=WORDS, kind="relu", source="toy <b>source</b>", title="title & "):
    """A family, its store and results, all from fixed seeds."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.linalg.qr(torch.randn(len(words), D_IN, generator=generator)).Q
    tokens = torch.randint(len(words), (ROWS, CONTEXT), generator=generator)
    x = embedding[tokens.flatten()] * (1 + torch.rand(tokens.numel(), 1, generator=generator))
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    store = in_memory(
        x.view(ROWS, CONTEXT, D_IN),
        tokens=tokens,
        special=nowhere,
        excluded=nowhere,
        document=torch.arange(ROWS)[:, None].expand(ROWS, CONTEXT).contiguous(),
        documents=[{"source": source, "title": f"{title}{i}"} for i in range(ROWS)],
    )
    members = [dictionary(width, seed, embedding, kind) for width in (8, 24, 48) for seed in (0, 1)]
    family = Family(members)
    activations = {width: collect(family[width], x) for width in family.widths}
    evidence = {
        width: Evidence(activations[width], store, words, logit_table(family[width], embedding.T, words, n=4))
        for width in family.widths
    }
    return SimpleNamespace(
        x=x,
        store=store,
        family=family,
        activations=activations,
        evidence=evidence,
        tree=splitting_tree(family),
        insertion=insertion(family[24], family[48], x),
        null=insertion(family[24], family.get(24, 1), x),
    )


def make_atlas(world, **given):
    """The atlas of a world, without a model, with its tree and its insertion."""
    results = {"tree": world.tree, "insertion": world.insertion, **given}
    return build_atlas(world.family, world.store, vocabulary=WORDS, keep=False, progress=False, **results)
