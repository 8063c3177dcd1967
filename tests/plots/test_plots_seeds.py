"""Plots of uniqueness over seeds show their data, and their data the results."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries import make
from plot_checks import check_bundle, check_texts

from saekit import plots
from saekit.analysis.uniqueness.codes import compare_codes
from saekit.analysis.uniqueness.effects import Effects
from saekit.analysis.uniqueness.seeds import measure_uniqueness
from saekit.analysis.uniqueness.subspaces import measure_shared_subspace
from saekit.analysis.uniqueness.substitution import measure_substitution
from saekit.figures import render
from saekit.plots.seeds import FEWEST

X = torch.randn(400, 24, generator=torch.Generator().manual_seed(0))


@cache
def seeds():
    """Three runs that share half of their latents."""
    found = []
    for seed in range(3):
        made = make(d_in=24, width=60)
        noise = torch.randn(60, 24, generator=torch.Generator().manual_seed(seed))
        noise[:30] *= 0.03
        rows = torch.nn.functional.normalize(made.W_dec + noise, dim=1)
        info = {"kind": "relu", "seed": seed}
        found.append(replace(made, W_dec=rows, W_enc=rows.T.contiguous(), b_dec=torch.zeros(24), info=info))
    return found


@cache
def unique():
    return measure_uniqueness(*seeds(), theta=0.85, activations=X)


@cache
def subspace():
    return measure_shared_subspace(unique(), seeds(), dimensions=[1, 2, 4, 8], draws=3)


@cache
def substitution():
    return measure_substitution(*seeds()[:2], unique().matchings[0, 1], X)


@cache
def effects():
    """By hand: what they are measured from is tested elsewhere."""
    pairs = unique().matchings[0, 1].pairs.iloc[20:40]
    random = np.random.default_rng(0)
    frame = pairs[["latent", "match", "matched_cosine", "status"]].assign(control=0, n_targets=100)
    for name in ("correlation", "correlation_control", "ablated", "substituted", "substituted_control"):
        frame[name] = random.random(len(frame))
    return Effects(*unique().dictionaries[:2], 0.85, 1, frame)


@cache
def codes(equal="latents"):
    return [compare_codes(each, X, equal=equal, n_tokens=40, iterations=20) for each in seeds()[:2]]


DRAW = {
    "recurrence": lambda: plots.recurrence([unique(), measure_uniqueness(*seeds()[:2], theta=0.85)]),
    "subspace": lambda: plots.shared_subspace(subspace()),
    "substitution": lambda: plots.substitution_curve(substitution()),
    "fingerprints": lambda: plots.fingerprints(effects()),
    "codes": lambda: plots.code_uniqueness(codes()),
    "codes_at_equal_error": lambda: plots.code_uniqueness(codes("error")),
}


@pytest.mark.parametrize("name", DRAW)
def test_figures_are_whole_readable_and_the_same_every_time(name, tmp_path):
    plot = DRAW[name]()
    check_texts(plot.figure)
    check_bundle(plot, name, tmp_path)
    assert render(plot.figure, "svg") == render(DRAW[name]().figure, "svg")


def test_recurrence_bars_add_up_to_all_latents_and_every_pair_has_a_point():
    plot = DRAW["recurrence"]()
    assert plot.data.groupby("n_seeds")["share"].sum().tolist() == pytest.approx([1, 1])
    left, right = plot.figure.axes
    assert sorted(bar.get_width() for bar in left.patches) == pytest.approx(sorted(plot.data["share"]))
    shown = sorted(value for line in right.get_lines() for value in line.get_xdata())
    expected = [unique().pairs, measure_uniqueness(*seeds()[:2], theta=0.85).pairs]
    both = pd.concat(expected)[["pw_mcc_signed", "pw_mcc_absolute"]].to_numpy().ravel()
    assert shown == pytest.approx(sorted(both))
    assert unique().plot().caption.startswith("How many seeds")


def test_subspace_curves_are_means_over_pairs():
    plot = DRAW["subspace"]()
    row = plot.data[(plot.data["group"] == "never recurring") & (plot.data["dimension"] == 4)].iloc[0]
    frame = subspace().frame
    at = frame[(frame["group"] == "never recurring") & (frame["dimension"] == 4)]
    assert len(at) == 3
    assert row["overlap"] == pytest.approx(at["overlap"].mean())
    lines = {line.get_label(): line.get_ydata() for line in plot.figure.axes[0].get_lines()}
    shown = plot.data[plot.data["group"] == "recurring"]["overlap"]
    np.testing.assert_allclose(lines["recurring"], shown)


def test_substitution_bins_hold_every_latent():
    plot = DRAW["substitution"]()
    frame = substitution().frame
    assert plot.data["n_latents"].sum() == len(frame)
    for row in plot.data.itertuples():
        low, high = np.float32(row.cosine_from), np.float32(row.cosine_to) if row.cosine_to < 1 else 2
        inside = frame[(frame["matched_cosine"] >= low) & (frame["matched_cosine"] < high)]
        quality = 1 - inside["substituted"].sum() / inside["removed"].sum()
        assert row.quality == pytest.approx(quality if len(inside) >= FEWEST else np.nan, nan_ok=True)
    assert plot.data["quality"].notna().any()


def test_fingerprint_points_and_code_bars_are_the_data():
    points = DRAW["fingerprints"]().figure.axes[0].get_lines()
    np.testing.assert_allclose(points[1].get_ydata(), effects().frame["correlation"])
    left, right = DRAW["codes"]().figure.axes
    for axes, values in (
        (left, [v for c in codes() for v in c.jaccard["jaccard"]]),
        (right, [v for c in codes() for v in c.frame["fvu"]]),
    ):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(values)
    right = DRAW["codes_at_equal_error"]().figure.axes[1]
    assert right.get_xlabel() == "L0"
    l0 = [v for c in codes("error") for v in c.frame["l0"]]
    assert [bar.get_width() for bar in right.patches] == pytest.approx(l0)
    with pytest.raises(ValueError, match="a figure each"):
        plots.code_uniqueness([codes()[0], codes("error")[0]])
    with pytest.raises(ValueError, match="at least one result, found none"):
        plots.code_uniqueness([])
    with pytest.raises(ValueError, match="at least one result, found none"):
        plots.recurrence([])
