"""A small meta-SAE over the toy family, with labels."""

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from toy_world import WORDS

from saekit.analysis import Labels, MetaSAE
from saekit.dictionary import Dictionary

DEAD = 8  # a meta-latent with a threshold that nothing reaches
THRESHOLD = 0.15


def make_meta(sources):
    """A meta-SAE whose directions are those of the toy family's smallest dictionary, and a dead one."""
    rows = torch.cat([sources[0].W_dec, F.normalize(torch.ones(1, sources[0].d_in))])
    threshold = torch.full((len(rows),), THRESHOLD)
    threshold[DEAD] = 1e6
    mean = torch.full((rows.shape[1],), 0.02)
    info = {"kind": "meta", "seed": 0, "training": {"variant": {"k": 2}}, "meta": {"recipe": {"name": "toy"}}}
    dictionary = Dictionary(rows.T.contiguous(), -rows @ mean, rows, mean, threshold, info=info)
    n_rows = sum(source.width for source in sources)
    return MetaSAE(dictionary, tuple(sources), torch.zeros(n_rows, dtype=torch.bool))


def make_labels(meta, name="about"):
    texts = [f"{name} {WORDS[i % len(WORDS)]}" for i in range(meta.width)]
    return Labels(meta.identity, pd.DataFrame({"label": texts}), csr_array((meta.width, 1)), ["word"])
