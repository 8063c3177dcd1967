"""Figures of effects and circuits show the tables of their results."""

import numpy as np
import pandas as pd
import pytest
from plot_checks import check_bundle, check_texts
from toy_effects import pairs, sae

from saekit import plots
from saekit.analysis.effects.circuits import compare_circuits, measure_circuit
from saekit.analysis.effects.nodes import measure_node_effects

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


@pytest.fixture(scope="module")
def effects(model):
    return measure_node_effects(model, sae(), pairs(model), n_exact=15, steps=2)


@pytest.fixture(scope="module")
def circuits(model, effects):
    treatments = ("nodes", "keep", "mean", "remove")  # in the order of the panels
    return [measure_circuit(model, sae(), effects, errors=errors, sizes=[1, 4, 16]) for errors in treatments]


def test_estimates_stand_against_the_exact_effects_of_the_sample(effects, tmp_path):
    plot = effects.plot()
    sample = effects.frame.dropna()
    assert len(plot.data) == 3 * len(sample)
    for axes, method in zip(plot.figure.axes, ("attribution", "integrated", "relp"), strict=True):
        for points, kind in zip(axes.collections, ("latent", "error"), strict=True):
            expected = sample.loc[sample["kind"] == kind, ["exact", method]]
            np.testing.assert_allclose(points.get_offsets(), expected)
        correlation = effects.agreement.set_index(["kind", "method"]).loc[("latent", method), "correlation"]
        assert f"r = {correlation:.2f}".replace("-", "\N{MINUS SIGN}") in axes.get_title(loc="left")
    check_texts(plot.figure)
    check_bundle(plot, "effects_agreement", tmp_path)
    with pytest.raises(ValueError, match="place must be one of"):
        plots.effects_agreement(effects, "blocks.0.hook_resid_post")


def test_estimates_alone_cannot_be_compared(model):
    alone = measure_node_effects(model, sae(), pairs(model), methods=["attribution"])
    with pytest.raises(ValueError, match="needs exact effects"):
        alone.plot()


def test_curves_are_those_of_the_circuits(circuits, tmp_path):
    plot = plots.faithfulness_curves(circuits)
    for axes, circuit in zip(plot.figure.axes, circuits, strict=True):
        faithfulness, completeness = (
            line for line in axes.lines if len(line.get_xdata()) == len(circuit.frame)
        )
        np.testing.assert_allclose(faithfulness.get_xydata(), circuit.frame[["n_nodes", "faithfulness"]])
        np.testing.assert_allclose(completeness.get_xydata(), circuit.frame[["n_nodes", "completeness"]])
    assert set(plot.data["errors"]) == {"nodes", "keep", "remove", "mean"}
    check_texts(plot.figure)
    check_bundle(plot, "faithfulness_curves", tmp_path)
    alone = circuits[0].plot()
    assert len(alone.figure.axes) == 1
    check_texts(alone.figure)


def test_random_nodes_are_drawn_dotted_beside_the_circuit(model, effects):
    circuit = measure_circuit(model, sae(), effects, sizes=[1, 4, 16], random_sets=1)
    plot = circuit.plot()
    (axes,) = plot.figure.axes
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    for line, column in zip(dotted, ("random_faithfulness", "random_completeness"), strict=True):
        np.testing.assert_allclose(line.get_xydata(), circuit.frame[["n_nodes", column]])
    assert "as many random nodes" in [text.get_text() for text in plot.figure.legends[0].get_texts()]
    check_texts(plot.figure)


def test_dictionaries_that_never_get_there_are_marked(model, tmp_path):
    members = {"ReLU 10": sae(width=10), "ReLU 40, after inserting": sae(width=40, seed=3)}
    result = compare_circuits(
        model, members, pairs(model), errors=("nodes", "mean"), sizes=[1, 4], target=0.99
    )
    assert np.isinf(result.frame["nodes_mean"]).any()
    plot = result.plot()
    pd.testing.assert_series_equal(plot.data["nodes_nodes"], result.frame["nodes_nodes"])
    left, right = plot.figure.axes
    drawn = sorted(x for line in left.lines[:-1] for x in line.get_xdata())
    finite = result.frame[["nodes_nodes", "nodes_mean"]].to_numpy().ravel()
    assert [x for x in drawn if x in finite] == sorted(finite[np.isfinite(finite)])
    np.testing.assert_allclose([bar.get_width() for bar in right.patches], result.frame["error_share"])
    assert "never" in plot.caption
    check_texts(plot.figure)
    check_bundle(plot, "circuits_by_dictionary", tmp_path)
