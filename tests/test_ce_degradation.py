"""CE degradation against plain Hugging Face forward passes with hooks of our own."""

from types import SimpleNamespace

import pytest
import torch
from dictionaries import make
from transformers import AutoModelForCausalLM

from saekit.metrics import ce_degradation


@pytest.fixture(scope="module")
def hf_model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


def cross_entropy(hf_model, store, replace, *, everywhere=False):
    """Mean over targets that are not special, row by row, from log-probabilities in float64."""

    def hook(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        replaced = replace(x[0])[None]
        if not everywhere:
            replaced[0, store.excluded[row]] = x[0, store.excluded[row]]
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    handle = hf_model.model.layers[1].register_forward_hook(hook)
    losses = []
    try:
        for row in range(store.n_rows):
            with torch.no_grad():
                logits = hf_model(store.tokens[row : row + 1]).logits[0].double()
            log_p = logits.log_softmax(-1)
            for position in range(store.context_length - 1):
                target = int(store.tokens[row, position + 1])
                if target > 1:  # 0 and 1 are the special tokens of the tiny tokenizer
                    losses.append(-float(log_p[position, target]))
    finally:
        handle.remove()
    return sum(losses) / len(losses), len(losses)


def test_every_number_equals_plain_forward_passes(model, hf_model, store):
    dictionaries = [make(d_in=16, width=width, seed=width) for width in (12, 30)]
    result = ce_degradation(model, dictionaries, store, max_rows=store.n_rows, batch_rows=5)
    mean = store.read(store.positions).double().mean(0).float()

    original, n_targets = cross_entropy(hf_model, store, lambda x: x.clone())
    zero, _ = cross_entropy(hf_model, store, torch.zeros_like)
    average, _ = cross_entropy(hf_model, store, lambda x: mean.expand_as(x).clone())
    assert result.n_targets == n_targets
    assert result.n_passed_through == int(store.excluded.sum())
    assert result.ce_original == pytest.approx(original, abs=1e-5)
    assert result.ce_zero_ablation == pytest.approx(zero, abs=1e-5)
    assert result.ce_mean_ablation == pytest.approx(average, abs=1e-5)
    for row, dictionary in zip(result.frame.itertuples(), dictionaries, strict=True):
        ce, _ = cross_entropy(hf_model, store, dictionary.reconstruct)
        everywhere, _ = cross_entropy(hf_model, store, dictionary.reconstruct, everywhere=True)
        assert row.ce_degradation == pytest.approx(ce - original, abs=1e-5)
        assert row.ce_degradation_everywhere == pytest.approx(everywhere - original, abs=1e-5)
        assert row.loss_recovered_zero == pytest.approx((zero - ce) / (zero - original), rel=1e-3)
        assert row.loss_recovered_mean == pytest.approx((average - ce) / (average - original), rel=1e-3)
        assert abs(ce - everywhere) > 1e-4, "replacing excluded positions must matter in this test"


def test_a_dictionary_of_another_dimension_is_named(model, store):
    with pytest.raises(ValueError, match="the store tiny do not belong together: the first has d_in 12"):
        ce_degradation(model, make(d_in=12), store)


def test_the_summary_names_the_ce_degradation_of_each_dictionary(model, store):
    narrow, wide, twin = make(d_in=16, width=8), make(d_in=16), make(d_in=16)
    result = ce_degradation(model, [narrow, wide, twin], store, everywhere=False, max_rows=4)
    found = result.summary["ce_degradation"]
    assert list(found) == ["relu 8 (seed 0)", "relu 40 (seed 0) [1]", "relu 40 (seed 0) [2]"]
    assert list(found.values()) == result.frame["ce_degradation"].tolist()
    assert found["relu 40 (seed 0) [1]"] == found["relu 40 (seed 0) [2]"]


def test_swapped_arguments_are_named(model, store):
    with pytest.raises(TypeError, match=r"model must be a model from saekit\.load_model, found Dictionary"):
        ce_degradation(make(d_in=16), model, store)
    with pytest.raises(TypeError, match=r"dictionaries\[0\] must be a Dictionary, found ActivationStore"):
        ce_degradation(model, store, make(d_in=16))
    with pytest.raises(TypeError, match=r"Activations must be .*, found Dictionary"):
        ce_degradation(model, make(d_in=16), make(d_in=16))


def test_without_a_token_to_average_mean_ablation_is_refused(model, store, monkeypatch):
    monkeypatch.setitem(vars(store), "positions", torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="no activations for mean ablation: every position is excluded"):
        ce_degradation(model, make(d_in=16), store)


def test_differences_and_their_errors_are_those_of_single_rows(model, hf_model, store):
    dictionaries = [make(d_in=16, width=width, seed=width) for width in (12, 30)]
    result = ce_degradation(model, dictionaries, store, max_rows=store.n_rows, everywhere=False)
    assert result.frame["ce_degradation_everywhere"].isna().all()
    sums, targets = [], []
    for row in range(store.n_rows):
        one = SimpleNamespace(
            n_rows=1,
            context_length=store.context_length,
            tokens=store.tokens[row : row + 1],
            excluded=store.excluded[row : row + 1],
        )
        means = []
        for dictionary in dictionaries:
            mean, n = cross_entropy(hf_model, one, dictionary.reconstruct)
            means.append(mean)
        sums.append((means[1] - means[0]) * n)
        targets.append(n)
    sums, targets = torch.tensor(sums, dtype=torch.float64), torch.tensor(targets)
    difference = float(sums.sum() / targets.sum())
    residual = sums - difference * targets
    n = store.n_rows
    error = float((residual.square().sum() * n / (n - 1)).sqrt() / targets.sum())
    found = result.compare(0).iloc[1]
    assert found["difference"] == pytest.approx(difference, abs=1e-5)
    assert found["difference_error"] == pytest.approx(error, rel=1e-2, abs=1e-6)
