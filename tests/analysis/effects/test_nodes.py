"""Effects of single nodes: exact by brute force, estimates exact where the model is linear."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from toy_effects import HOOK_POINT, double, everywhere, random, sae

from saekit.agreement import MismatchError
from saekit.analysis.effects.nodes import METHODS, correlate, measure_node_effects
from saekit.dictionary import Transcoder
from saekit.models import logits_with_replacement, run_to
from saekit.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning")


# ------------------------------------------------------------------------------ a linear model


@pytest.mark.parametrize("baseline", ["patch", "mean", "zero"])
@pytest.mark.parametrize("metric", ["logit_difference", everywhere])
def test_on_a_linear_model_all_methods_are_exact_and_add_up(linear_model, prompts, baseline, metric):
    # A logit difference of several tokens, as the third prompt has, is not linear.
    prompts = prompts if metric is everywhere else prompts.select([0, 1])
    effects = measure_node_effects(
        linear_model, double(sae()), prompts, metric=metric, baseline=baseline, n_exact=None, steps=3
    )
    frame = effects.frame
    assert len(frame[frame["kind"] == "latent"]) > 20
    assert frame["exact"].abs().max() > 0.05
    for method in METHODS[1:]:
        np.testing.assert_allclose(frame[method], frame["exact"], atol=1e-7)
    assert (effects.agreement["correlation"] > 0.99999).all()
    np.testing.assert_allclose(effects.agreement["slope"], 1, atol=1e-6)
    # Latents and errors together are the whole change.
    sums = frame.groupby("prompt")["exact"].sum()
    np.testing.assert_allclose(sums, effects.totals.set_index("prompt")["total"], atol=1e-7)
    table = effects.by_kind
    np.testing.assert_allclose(table["attribution"].sum(), table["total"].iloc[0], atol=1e-7)


def test_transcoders_and_saes_at_several_hook_points_stand_beside_each_other(linear_model, prompts):
    transcoder = Transcoder.from_weights(
        random(16, 20) / 4, random(20, 16, seed=1), W_skip=random(16, 16, seed=2) / 8,
        info={"hook_point": "blocks.2.mlp.hook_in", "target": "blocks.2.hook_mlp_out"},
    )  # fmt: skip
    effects = measure_node_effects(
        linear_model, [double(sae()), double(transcoder)], prompts, metric=everywhere, n_exact=None, steps=1
    )
    assert effects.places == (HOOK_POINT, "blocks.2.hook_mlp_out")
    for place in effects.places:
        part = effects.frame[effects.frame["place"] == place]
        assert set(part["kind"]) == {"latent", "error"}
        for method in METHODS[1:]:
            np.testing.assert_allclose(part[method], part["exact"], atol=1e-7)
        total = effects.totals[effects.totals["place"] == place]["total"].sum()
        assert part["exact"].sum() == pytest.approx(total, abs=1e-7)


# ------------------------------------------------------------------------------ any model


@pytest.mark.parametrize(
    "hook_point", ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.hook_mlp_out"]
)
def test_exact_effects_equal_a_naive_loop(model, prompts, hook_point):
    dictionary = sae(hook_point)
    effects = measure_node_effects(model, dictionary, prompts, methods=["exact"], n_exact=25, batch_rows=7)
    frame = effects.frame.dropna()
    assert frame["kind"].value_counts().to_dict() == {"latent": 25, "error": 10}

    def metric(prompt, replace):
        tokens = prompts.tokens[prompt, : prompts.lengths[prompt]][None]
        logits = logits_with_replacement(model, tokens, hook_point, replace)[0, -1]
        right, wrong = (
            logits[side[prompt][side[prompt] >= 0]].logsumexp(0) for side in (prompts.answers, prompts.wrong)
        )
        return float(right - wrong)

    for row in frame.itertuples():
        length = int(prompts.lengths[row.prompt])
        x, other = (
            run_to(model, tokens[row.prompt, :length][None], hook_point).activations[0]
            for tokens in (prompts.tokens, prompts.corrupted)
        )
        f, g = dictionary.encode(x), dictionary.encode(other)
        changed = x.clone()
        if row.kind == "latent":
            change = (g - f)[row.position, row.latent]
            changed[row.position] += change * dictionary.W_dec[row.latent]
            assert row.activation == pytest.approx(float(f[row.position, row.latent]), abs=1e-5)
        else:
            errors = [rows - dictionary.reconstruct(rows) for rows in (x, other)]
            changed[row.position] += (errors[1] - errors[0])[row.position]
        naive = metric(row.prompt, lambda _, to=changed: to[None]) - metric(row.prompt, None)
        assert row.exact == pytest.approx(naive, abs=2e-5)


def test_integrated_gradients_are_complete(model, prompts):
    found = {}
    for rule, steps in (("midpoint", 60), ("left", 4), ("left", 60), ("right", 60)):
        effects = measure_node_effects(model, sae(), prompts, methods=["integrated"], steps=steps, rule=rule)
        sums = effects.frame.groupby("prompt")["integrated"].sum().to_numpy()
        found[rule, steps] = np.abs(sums - effects.totals["total"].to_numpy()).max()
        assert effects.integration == {"steps": steps, "rule": rule, "start": "clean", "end": "patch"}
    assert found["midpoint", 60] < 1e-3
    assert found["midpoint", 60] < found["left", 60] < found["left", 4]


def test_attribution_is_the_derivative(model, prompts):
    """Against differences of the metric in double precision would need a float64 model: small steps do."""
    dictionary = sae()
    effects = measure_node_effects(model, dictionary, prompts, methods=["attribution"], baseline="zero")
    latents = effects.frame[effects.frame["kind"] == "latent"].nlargest(5, "activation")
    step = 1e-2
    for row in latents.itertuples():
        one = prompts.select([row.prompt])
        run = run_to(model, one.tokens, HOOK_POINT)
        values = []
        for sign in (1, -1):
            x = run.activations.clone()
            x[0, row.position] += sign * step * row.activation * dictionary.W_dec[row.latent]
            logits = run.logits(x, last=one.last)
            right, wrong = (
                logits[0][side[0][side[0] >= 0]].logsumexp(0) for side in (one.answers, one.wrong)
            )
            values.append(float(right - wrong))
        derivative = -(values[0] - values[1]) / (2 * step)
        assert row.attribution == pytest.approx(derivative, abs=2e-3, rel=2e-2)


def test_the_first_position_and_the_filling_have_no_nodes(model, prompts):
    effects = measure_node_effects(model, sae(), prompts, methods=["attribution"], baseline="zero")
    last = prompts.last.numpy()[effects.frame["prompt"]]
    assert effects.frame["position"].min() == 1
    assert (effects.frame["position"] <= last).all()
    assert (effects.frame["position"] == last).any()
    # A pair differs from its first different token on.
    patched = measure_node_effects(model, sae(), prompts, methods=["attribution"])
    first = (prompts.tokens != prompts.corrupted).int().argmax(1).numpy()
    assert (patched.frame["position"] >= first[patched.frame["prompt"]]).all()


def test_means_are_over_the_corrupted_prompts_at_a_position(model, prompts):
    dictionary = sae()
    effects = measure_node_effects(model, dictionary, prompts, methods=["attribution"], baseline="mean")
    x = run_to(model, prompts.corrupted, HOOK_POINT).activations
    f = dictionary.encode(x.flatten(0, 1)).view(*x.shape[:2], -1)
    for row in effects.frame[effects.frame["kind"] == "latent"].sample(20, random_state=0).itertuples():
        reach = prompts.lengths > row.position
        assert row.baseline == pytest.approx(float(f[reach, row.position, row.latent].mean()), abs=1e-5)


def test_nodes_are_means_over_prompts(model, prompts):
    effects = measure_node_effects(model, sae(), prompts, methods=["attribution", "exact"], n_exact=3)
    nodes = effects.nodes()
    assert nodes["effect"].abs().is_monotonic_decreasing
    top = nodes.iloc[0]
    same = effects.frame[
        (effects.frame["position"] == top["position"]) & (effects.frame["latent"] == top["latent"])
    ]
    assert top["effect"] == pytest.approx(same["attribution"].sum() / 3)
    assert top["n_prompts"] == len(same)
    with pytest.raises(ValueError, match="those of a sample"):
        effects.nodes("exact")
    with pytest.raises(ValueError, match="method must be one of 'exact', 'attribution'"):
        effects.nodes("relp")


def test_a_loss_needs_no_answers_and_no_pairs(model):
    single = Prompts.from_texts(model.tokenizer, ["the king sleeps over the river", "the old queen"])
    effects = measure_node_effects(model, sae(), single, metric="loss", baseline="mean", n_exact=10)
    expected = torch.nn.functional.cross_entropy(
        model(single.tokens[:1, : single.lengths[0]], return_type="logits")[0, :-1],
        single.tokens[0, 1 : single.lengths[0]],
    )
    assert effects.totals["clean"][0] == pytest.approx(float(expected), abs=1e-5)


def test_correlations_have_an_interval_over_groups():
    generator = np.random.default_rng(3)
    x = generator.normal(size=300)
    y = x + generator.normal(size=300)
    group = np.repeat(np.arange(30), 10)
    found, low, high = correlate(x, y, group)
    assert found == pytest.approx(pearsonr(x, y)[0])
    assert low < found < high
    drawn = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(group == one) for one in generator.integers(30, size=30)])
        drawn.append(pearsonr(x[rows], y[rows])[0])
    assert (low, high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.03)
    assert np.isnan(correlate(x, np.ones(300), group)).all()


# ------------------------------------------------------------------------------ errors


def ratio(logits, prompts):
    """Not finite for the second prompt of the toy pairs, which is shorter than the first."""
    found = logits.sum((1, 2))
    return torch.where(prompts.lengths == 4, found / 0, found)


def test_bad_input_is_refused_before_any_work(model, prompts, monkeypatch):
    monkeypatch.setattr("saekit.analysis.effects.nodes._Measured", None)
    single = Prompts.from_texts(model.tokenizer, ["the king"], answers=[" the"])
    one_token = Prompts.from_texts(model.tokenizer, ["the king", "the"])
    for dictionaries, given, options, message in (
        (sae(), prompts, {"metric": lambda x, _: x.mean()}, r"a tensor \[2\], found a tensor \[\] from"),
        (sae(), prompts, {"metric": lambda x, _: x}, r"found a tensor \[2, 6, 320\]"),
        (sae(), prompts, {"metric": lambda logits, _: 3.0}, "found float"),
        (sae(), prompts, {"metric": lambda x, _: x.argmax(2)[:, 0].float()}, "has no gradient"),
        (sae(), prompts, {"metric": lambda x, _: x.sum((1, 2)) > 0}, r"found a tensor \[2\]"),
        (sae(), prompts, {"metric": lambda x, _: x.sum((1, 2)).tolist()}, "found list"),
        (sae(), one_token, {"metric": "loss", "baseline": "zero"}, "at least two tokens, .* in prompt 1"),
        (sae(), prompts, {"metric": "accuracy"}, "metric must be one of 'logit_difference'"),
        (sae(), single, {}, "needs a corrupted prompt"),
        (sae(), single, {"baseline": "zero"}, "logit_difference needs wrong of the prompts"),
        (sae("blocks.7.hook_resid_post"), prompts, {}, "no hook point 'blocks.7.hook_resid_post'"),
        (sae("blocks.1.mlp.hook_post"), prompts, {}, r"has 16 dimensions, but blocks.1.mlp.hook_post .* 24"),
        (sae(None), prompts, {}, "records no hook point"),
        ([sae(), sae(seed=4)], prompts, {}, "Two dictionaries explain blocks.1.hook_resid_post"),
        ([], prompts, {}, "at least one dictionary"),
        (sae(normalization="layer_norm"), prompts, {}, "measures each row in its own unit"),
        (sae(), prompts, {"start": 7}, "leaves no position"),
        (sae(), prompts, {"methods": []}, "at least one of 'exact'"),
        (sae(), prompts, {"methods": ["gradient"]}, "methods must be one of"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            measure_node_effects(model, dictionaries, given, **options)
    with pytest.raises(TypeError, match=r"prompts must be saekit\.Prompts, found list"):
        measure_node_effects(model, sae(), ["the king"])
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"metric ratio must be finite, found inf for prompt 1"):
        measure_node_effects(model, sae(), prompts, metric=ratio, methods=["exact"])
    other = sae()
    object.__setattr__(other, "info", {**other.info, "model": "another", "model_weights": "f" * 64})
    with pytest.raises(MismatchError, match="do not belong together"):
        measure_node_effects(model, other, prompts)
