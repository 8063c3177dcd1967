"""Plots of heads and of what is upstream show their data, and their data the results."""

import numpy as np
import pandas as pd
import pytest
import torch
from plot_checks import check_bundle, check_texts

from saekit import plots
from saekit.analysis.heads import SourceAttribution, head_shares
from saekit.analysis.upstream import UpstreamAttribution
from saekit.dictionary import Dictionary

HEADS, D_HEAD = 3, 4


def at_z(width):
    """A dictionary whose latent i is in head i % 3 alone, but for every fourth."""
    rows = torch.zeros(width, HEADS, D_HEAD)
    for i in range(width):
        rows[i, i % HEADS, i % D_HEAD] = 1.0
        if i % 4 == 0:
            rows[i, (i + 1) % HEADS] = 0.5
    flat = rows.flatten(1)
    info = {"kind": "relu", "seed": 0, "hook_point": "blocks.1.attn.hook_z"}
    return Dictionary.from_weights(flat.T.contiguous(), flat, d_in=HEADS * D_HEAD, info=info)


def sources():
    generator = torch.Generator().manual_seed(0)
    attribution = torch.randn(6, HEADS, generator=generator, dtype=torch.float64)
    total = float(attribution.sum()) + 0.5
    identity = at_z(15).identity
    return SourceAttribution(identity, 3, 5, attribution, 0.5, total, max(total, 0.0), torch.arange(6))


def upstream():
    kinds = ["component"] * 3 + ["latent"] * 4 + ["bias", "error", "own bias"]
    frame = pd.DataFrame(
        {
            "kind": kinds,
            "place": [f"blocks.{i}.hook_mlp_out" for i in range(len(kinds))],
            "latent": [-1] * 3 + [5, 6, 7, 8] + [-1] * 3,
            "activation": np.nan,
            "attribution": np.linspace(-1, 2, len(kinds)),
        }
    )
    return UpstreamAttribution(at_z(15).identity, 3, 5, frame, float(frame["attribution"].sum()), 0.3)


TEXTS = ["a", " b", "\n", "<c>", "d" * 60, "$e$"]
MADE = {
    "head_shares": lambda: plots.head_shares([head_shares(at_z(width), HEADS) for width in (15, 24)]),
    "source_attribution": lambda: plots.source_attribution(
        sources(), ["a", " b", "\n", "<c>", "d" * 60, "$e$"]
    ),
    "upstream_attribution": lambda: plots.upstream_attribution(
        upstream(), {("blocks.4.hook_mlp_out", 6): "a label " * 9}, n=8
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_a_plot_is_saved_whole_and_can_be_read(name, tmp_path):
    plot = MADE[name]()
    check_bundle(plot, name, tmp_path)
    check_texts(plot.figure)


def test_top_heads_and_their_shares_are_shown():
    data = MADE["head_shares"]().data.query("dictionary.str.contains('24')")
    assert (data["head"] == [i % HEADS for i in range(24)])[1::2].all()
    assert np.allclose(data["decoder_share"], [0.5 if i % 4 == 0 else 1.0 for i in range(24)])


def test_the_largest_terms_are_shown_in_order():
    shown = MADE["upstream_attribution"]().data["attribution"].abs()
    assert shown.is_monotonic_decreasing
    assert shown.min() == sorted(upstream().frame["attribution"].abs())[-8]


def test_as_many_texts_as_sources_are_needed():
    with pytest.raises(ValueError, match="6 source tokens need as many texts, found 2"):
        plots.source_attribution(sources(), ["a", "b"])
