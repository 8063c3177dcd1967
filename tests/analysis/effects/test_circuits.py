"""Circuits: faithfulness by brute force, treatments of errors, and comparisons of dictionaries."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from toy_effects import HOOK_POINT, double, everywhere, random, sae

from saekit.analysis.effects.circuits import compare_circuits, compare_errors, measure_circuit
from saekit.analysis.effects.metrics import METRICS
from saekit.analysis.effects.nodes import measure_node_effects
from saekit.dictionary import Transcoder
from saekit.models import capture, logits_with_replacement

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")
SIZES = (1, 3, 9)


@pytest.fixture(scope="module")
def effects(model, prompts):
    return measure_node_effects(model, sae(), prompts, methods=["attribution"])


def brute_force(model, prompts, dictionary, inside, *, keep_errors):
    """Mean logit difference with every node outside a set of (position, latent) patched; -1 is an error."""
    found = []
    for prompt in range(len(prompts)):
        length = int(prompts.lengths[prompt])
        x, other = (
            capture(model, tokens[prompt, :length][None], HOOK_POINT)[0]
            for tokens in (prompts.tokens, prompts.corrupted)
        )
        f, g = dictionary.encode(x), dictionary.encode(other)
        errors = x - dictionary.reconstruct(x), other - dictionary.reconstruct(other)
        changed = x.clone()
        for position in range(1, length):
            kept = [latent for at, latent in inside if at == position]
            latents = g[position].clone()
            latents[[latent for latent in kept if latent >= 0]] = f[position][[i for i in kept if i >= 0]]
            error = errors[0 if keep_errors or -1 in kept else 1][position]
            changed[position] = latents @ dictionary.W_dec + dictionary.b_dec + error
        logits = logits_with_replacement(
            model, prompts.tokens[prompt, :length][None], HOOK_POINT, lambda _, to=changed: to[None]
        )[0, -1]
        right, wrong = (
            logits[side[prompt][side[prompt] >= 0]].logsumexp(0) for side in (prompts.answers, prompts.wrong)
        )
        found.append(float(right - wrong))
    return np.mean(found)


@pytest.mark.parametrize("errors", ["nodes", "keep"])
def test_faithfulness_and_completeness_equal_brute_force(model, prompts, effects, errors):
    dictionary = sae()
    circuit = measure_circuit(model, dictionary, effects, errors=errors, sizes=SIZES, batch_rows=2)
    nodes = circuit.nodes[["position", "latent"]].itertuples(index=False, name=None)
    nodes = list(nodes)
    assert (errors == "nodes") == any(latent < 0 for _, latent in nodes)
    options = {"keep_errors": errors == "keep"}
    empty = brute_force(model, prompts, dictionary, [], **options)
    full = brute_force(model, prompts, dictionary, nodes, **options)
    assert circuit.empty_metric == pytest.approx(empty, abs=1e-4)
    assert circuit.model_metric == pytest.approx(full, abs=1e-4)
    for row in circuit.frame.itertuples():
        inside = brute_force(model, prompts, dictionary, nodes[: row.n_nodes], **options)
        outside = brute_force(model, prompts, dictionary, nodes[row.n_nodes :], **options)
        assert row.metric == pytest.approx(inside, abs=1e-4)
        assert row.metric_without == pytest.approx(outside, abs=1e-4)
        assert row.faithfulness == pytest.approx((inside - empty) / (full - empty), abs=1e-3)
        assert row.completeness == pytest.approx((outside - empty) / (full - empty), abs=1e-3)
        assert row.n_latents + row.n_errors == row.n_nodes
        assert row.faithfulness_low <= row.faithfulness + 1e-6
        assert row.faithfulness_high >= row.faithfulness - 1e-6


def test_without_errors_all_latents_are_not_the_model(model, prompts, effects):
    found = {
        errors: measure_circuit(model, sae(), effects, errors=errors, sizes=[4])
        .frame["faithfulness"]
        .iloc[-1]
        for errors in ("nodes", "keep", "remove", "mean")
    }
    assert found["nodes"] == pytest.approx(1, abs=1e-4)
    assert found["keep"] == pytest.approx(1, abs=1e-4)
    assert abs(found["remove"] - 1) > 0.01
    assert abs(found["mean"] - 1) > 0.01
    assert found["remove"] != found["mean"]


def test_later_hook_points_follow_what_earlier_ones_have_become(model, prompts):
    """Hooks written out: the transcoder encodes what the changed stream brings it."""
    transcoder = Transcoder.from_weights(
        random(16, 20, seed=7) / 4,
        random(20, 16, seed=8),
        info={"hook_point": "blocks.2.mlp.hook_in", "target": "blocks.2.hook_mlp_out"},
    )
    one = prompts.select([0])
    both = [sae(), transcoder]
    effects = measure_node_effects(model, both, one, methods=["attribution"], baseline="zero")
    circuit = measure_circuit(model, both, effects, sizes=[8])
    assert circuit.frame["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-4)
    kept = circuit.nodes.head(8)
    assert kept["place"].nunique() == 2
    read = []

    def replace(dictionary, place, inputs, x):
        inside = kept[kept["place"] == place]
        f = dictionary.encode(inputs[0])
        error = x[0] - f @ dictionary.W_dec - dictionary.b_dec
        latents, left = f.clone(), error.clone()
        latents[1:], left[1:] = 0, 0  # the first position stays
        for row in inside.itertuples():
            if row.kind == "error":
                left[row.position] = error[row.position]
            else:
                latents[row.position, row.latent] = f[row.position, row.latent]
        return (latents @ dictionary.W_dec + dictionary.b_dec + left)[None]

    with model.hooks(
        [
            (HOOK_POINT, lambda x, **_: replace(both[0], HOOK_POINT, x, x)),
            (transcoder.hook_point, lambda x, **_: read.append(x)),
            (transcoder.target, lambda x, **_: replace(transcoder, transcoder.target, read[0], x)),
        ]
    ):
        logits = model(one.tokens, return_type="logits")[0, -1]
    expected = logits[one.answers[0, 0]] - logits[one.wrong[0, 0]]
    assert circuit.frame["metric"].iloc[1] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    "place", ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_pre"]
)
def test_every_hook_point_begins_at_the_corrupted_prompt_and_ends_at_the_model(model, prompts, place):
    """Hook points inside a block, in heads, and before the first block."""
    one = prompts.select([0])  # of full length, so that the whole corrupted activation is patched
    dictionary = sae(place)
    effects = measure_node_effects(model, dictionary, one, methods=["attribution"], start=0)
    circuit = measure_circuit(model, dictionary, effects, sizes=[2])
    other = capture(model, one.corrupted, place).flatten(2)
    metric = METRICS["logit_difference"].of(one)
    ends = [
        float(metric(logits_with_replacement(model, one.tokens, place, change)[:, -1]))
        for change in (lambda x: other.view_as(x), None)
    ]
    assert circuit.empty_metric == pytest.approx(ends[0], abs=1e-4)
    assert circuit.model_metric == pytest.approx(ends[1], abs=1e-4)
    assert circuit.frame["faithfulness"].tolist()[::2] == pytest.approx([0, 1], abs=1e-4)
    assert effects.totals["total"].item() == pytest.approx(ends[0] - ends[1], abs=1e-4)


def test_on_a_linear_model_faithfulness_is_the_share_of_effects(linear_model, prompts):
    dictionary = double(sae())
    effects = measure_node_effects(
        linear_model, dictionary, prompts, methods=["attribution"], metric=everywhere
    )
    circuit = measure_circuit(linear_model, dictionary, effects, metric=everywhere, sizes=SIZES)
    total = circuit.nodes["effect"].sum()
    for row in circuit.frame.itertuples():
        inside = circuit.nodes["effect"].head(row.n_nodes).sum()
        assert row.faithfulness == pytest.approx(inside / total, abs=1e-6)
        assert row.completeness == pytest.approx(1 - inside / total, abs=1e-6)
    with pytest.raises(ValueError, match="Give the metric of the effects, everywhere"):
        measure_circuit(linear_model, dictionary, effects)


def test_random_sets_equal_brute_force(model, prompts, effects):
    """The sets found again from the seed: per prompt a random order, of latents and of errors."""
    dictionary, n_sets, seed = sae(), 2, 3
    options = {"sizes": SIZES, "batch_rows": 2, "random_sets": n_sets, "seed": seed}
    circuit = measure_circuit(model, dictionary, effects, **options)
    again = measure_circuit(model, dictionary, effects, **options)
    pd.testing.assert_frame_equal(circuit.frame, again.frame)
    nodes = circuit.nodes
    found = {size: [] for size in SIZES}
    for draw in range(n_sets):
        random = np.random.default_rng(seed + draw)
        for prompt in range(len(prompts)):
            order = nodes.iloc[random.permutation(len(nodes))][["kind", "position", "latent"]]
            one = prompts.select([prompt])
            for row in circuit.frame[circuit.frame["n_nodes"].isin(SIZES)].itertuples():
                errors = order[order["kind"] == "error"].head(row.n_errors)
                drawn = pd.concat([errors, order[order["kind"] == "latent"].head(row.n_latents)])
                inside = [*drawn[["position", "latent"]].itertuples(index=False, name=None)]
                every = [*nodes[["position", "latent"]].itertuples(index=False, name=None)]
                outside = [node for node in every if node not in inside]
                found[row.n_nodes].append(
                    [
                        brute_force(model, one, dictionary, which, keep_errors=False)
                        for which in (inside, outside)
                    ]
                )
    effect = circuit.model_metric - circuit.empty_metric
    for row in circuit.frame[circuit.frame["n_nodes"].isin(SIZES)].itertuples():
        expected = (np.mean(found[row.n_nodes], axis=0) - circuit.empty_metric) / effect
        assert row.random_faithfulness == pytest.approx(expected[0], abs=1e-3)
        assert row.random_completeness == pytest.approx(expected[1], abs=1e-3)
    # No node and all nodes leave nothing to chance.
    ends = circuit.frame.iloc[[0, -1]]
    np.testing.assert_allclose(ends["random_faithfulness"], ends["faithfulness"], atol=1e-6)
    np.testing.assert_allclose(ends["random_completeness"], ends["completeness"], atol=1e-6)


def test_the_nodes_that_a_faithfulness_needs(model, effects):
    circuit = measure_circuit(model, sae(), effects, sizes=SIZES)
    sizes = circuit.frame["n_nodes"]
    reached = circuit.frame["faithfulness"]
    needed = circuit.nodes_for(0.7)
    assert (reached[sizes >= needed] >= 0.7).all()
    before = reached[sizes < needed]
    assert before.empty or before.iloc[-1] < 0.7
    assert circuit.nodes_for(-1e9) == 0
    assert circuit.nodes_for(1e9) == np.inf


def test_dictionaries_side_by_side(model, prompts):
    members = {"narrow": sae(width=10), "wide": sae(width=40, seed=3)}
    compared = compare_circuits(model, members, prompts, sizes=SIZES, errors=("nodes", "remove"), target=0.5)
    for row in compared.frame.itertuples():
        assert row.width == members[row.name].width
        circuit = compared.circuits[row.name, "nodes"]
        assert row.nodes_nodes == circuit.nodes_for(0.5)
        assert row.faithfulness_nodes == pytest.approx(1, abs=1e-4)
        one = measure_node_effects(model, members[row.name], prompts, methods=["attribution"]).frame
        errors = one["kind"] == "error"
        share = one.loc[errors, "attribution"].abs().sum() / one["attribution"].abs().sum()
        assert row.error_share == pytest.approx(share)
        assert row.error_effect + row.latent_effect == pytest.approx(1)
    assert compared.summary["nodes_nodes"].keys() == {"narrow", "wide"}


def test_a_metric_of_your_own_is_compared_like_a_named_one(model, prompts):
    def difference(logits, prompts):
        return METRICS["logit_difference"].function(logits[range(len(logits)), prompts.last], prompts)

    both = [
        compare_circuits(
            model, {"one": sae()}, prompts, metric=metric, sizes=SIZES, random_sets=1, target=0.3
        )
        for metric in ("logit_difference", difference)
    ]
    assert both[1].metric == "difference"
    pd.testing.assert_frame_equal(both[0].frame, both[1].frame)
    circuit = both[0].circuits["one", "nodes"].frame.set_index("n_nodes")
    row = both[0].frame.iloc[0]
    assert row["random_nodes"] == circuit.loc[row["nodes_nodes"], "random_faithfulness"]


def test_novel_latents_beside_the_error_of_the_small_dictionary(model, prompts):
    """A large dictionary that is a small one and its error's main directions, so novel latents carry it."""
    large = sae(width=40, seed=3)
    small = large.gather(range(20))
    both = [measure_node_effects(model, one, prompts, methods=["attribution"]) for one in (small, large)]
    found = compare_errors(*both, np.arange(20, 40))
    frame = found.frame
    # The latents of the small one stay: its error is the large one's and what the novel ones do.
    np.testing.assert_allclose(frame["error_small"], frame["error_large"] + frame["novel"], atol=1e-4)
    np.testing.assert_allclose(frame["latents_small"], frame["reconstruction"], atol=1e-4)
    assert found.n_novel == 20
    expected = np.corrcoef(frame["error_small"], frame["novel"])[0, 1]
    assert found.table.loc["novel", "correlation"] == pytest.approx(expected)
    assert found.summary["correlation_novel"] == pytest.approx(expected)


def test_what_does_not_belong_together_is_refused(model, prompts, effects):
    with pytest.raises(ValueError, match="The effects are those of relu 20"):
        measure_circuit(model, sae(seed=9), effects)
    with pytest.raises(ValueError, match="errors must be one of 'nodes', 'keep'"):
        measure_circuit(model, sae(), effects, errors="zero")
    with pytest.raises(ValueError, match="method must be one of 'attribution'"):
        measure_circuit(model, sae(), effects, method="relp")
    with pytest.raises(ValueError, match=r"sizes\[0\] must be at least 1"):
        measure_circuit(model, sae(), effects, sizes=[0])
    other = measure_node_effects(model, sae(), prompts.select([0, 1]), methods=["attribution"])
    with pytest.raises(ValueError, match="on different prompts"):
        compare_errors(effects, other, [0])
    rearranged = replace(prompts, corrupted=prompts.tokens)
    other = measure_node_effects(model, sae(), rearranged, methods=["attribution"], baseline="mean")
    mean = measure_node_effects(model, sae(), prompts, methods=["attribution"], baseline="mean")
    with pytest.raises(ValueError, match="on different prompts"):  # by their corrupted twins alone
        compare_errors(mean, other, [0])
    zero = measure_node_effects(model, sae(), prompts, methods=["attribution"], baseline="zero")
    with pytest.raises(ValueError, match="different baseline: patch and zero"):
        compare_errors(effects, zero, [0])
    with pytest.raises(ValueError, match="at least one dictionary"):
        compare_circuits(model, {}, prompts)
    with pytest.raises(ValueError, match="errors must name at least one of 'nodes'"):
        compare_circuits(model, {"one": sae()}, prompts, errors=[])
    with pytest.raises(ValueError, match="random_sets must be at least 0"):
        measure_circuit(model, sae(), effects, random_sets=-1)
