"""How well a model does a task, prompt by prompt through the whole model, and the named metrics."""

from dataclasses import replace

import pytest
import torch

from saekit.analysis.effects.metrics import METRICS, log_mass, metric_of, task_accuracy


def logits_of(model, tokens, prompts, prompt):
    """Of the last token of one prompt alone, without filling."""
    return model(tokens[prompt, : prompts.lengths[prompt]][None], return_type="logits")[0, -1].double()


@pytest.mark.parametrize("batch_rows", [1, 32])
def test_accuracy_is_that_of_each_prompt_alone(model, prompts, batch_rows):
    found = task_accuracy(model, prompts, batch_rows=batch_rows)
    for row in found.frame.itertuples():
        right, wrong = (
            [token for token in side[row.prompt].tolist() if token >= 0]
            for side in (prompts.answers, prompts.wrong)
        )
        for tokens, difference in (
            (prompts.tokens, row.logit_difference),
            (prompts.corrupted, row.corrupted_logit_difference),
        ):
            masses = logits_of(model, tokens, prompts, row.prompt).exp()
            expected = (masses[right].sum() / masses[wrong].sum()).log()
            assert difference == pytest.approx(float(expected), abs=1e-4)
        top = int(logits_of(model, prompts.tokens, prompts, row.prompt).argmax())
        assert row.top == (top in right)
        assert row.correct == (row.logit_difference > 0)
    summary = found.summary
    assert summary["accuracy"] == found.frame["correct"].mean()
    assert summary["accuracy_low"] <= summary["accuracy"] <= summary["accuracy_high"]


def test_without_pairs_there_is_no_corrupted_difference(model, prompts):
    alone = task_accuracy(model, replace(prompts, corrupted=None))
    assert alone.frame["corrupted_logit_difference"].isna().all()
    with pytest.raises(ValueError, match="needs wrong of the prompts"):
        task_accuracy(model, replace(prompts, wrong=None))


def test_named_metrics_are_their_definitions(prompts):
    logits = torch.randn(
        len(prompts), prompts.tokens.shape[1], 320, generator=torch.Generator().manual_seed(0)
    )
    last = logits[range(len(prompts)), prompts.last]
    probability = last.softmax(1)
    for name in ("logit_difference", "log_probability"):
        found = metric_of(name, prompts, 320, differentiable=True).of(prompts)(last)
        for prompt in range(len(prompts)):
            right, wrong = (
                probability[prompt, side[prompt][side[prompt] >= 0]].sum()
                for side in (prompts.answers, prompts.wrong)
            )
            expected = right.log() - wrong.log() if name == "logit_difference" else right.log()
            assert float(found[prompt]) == pytest.approx(float(expected), abs=1e-4)
    losses = METRICS["loss"].of(prompts)(logits)
    for prompt in range(len(prompts)):
        length = int(prompts.lengths[prompt])
        targets = prompts.tokens[prompt, 1:length]
        expected = -logits[prompt].log_softmax(1)[range(length - 1), targets].mean()
        assert float(losses[prompt]) == pytest.approx(float(expected), abs=1e-5)
    assert log_mass(torch.zeros(1, 4), torch.tensor([[0, 1, -1]])).exp().item() == pytest.approx(2)
