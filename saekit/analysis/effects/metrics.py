"""Metrics: functions of the logits that give one number per prompt, and how well a model does a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor

from saekit import settings
from saekit.models import require_rows, run_to
from saekit.prompts import NONE, Prompts
from saekit.results import Result

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Of your own: from logits `[n, ctx, vocab]` and their prompts to one number each, `[n]`.
MetricFunction: TypeAlias = Callable[[Tensor, Prompts], Tensor]


def log_mass(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logarithm of the summed exponentials of some tokens' logits, which of one token is its logit.

    Parameters
    ----------
    logits : Tensor
        `[n, vocab]`.
    tokens : Tensor
        Ids, int64 `[n, most]`, filled up with -1.

    Examples
    --------
    >>> log_mass(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2, -1]]))
    tensor([2.])
    """
    tokens = tokens.to(logits.device)
    found = logits.gather(1, tokens.clamp(min=0))
    return found.masked_fill(tokens == NONE, -torch.inf).logsumexp(1)


def _logit_difference(logits: Tensor, prompts: Prompts) -> Tensor:
    assert prompts.answers is not None
    assert prompts.wrong is not None
    return log_mass(logits, prompts.answers) - log_mass(logits, prompts.wrong)


def _log_probability(logits: Tensor, prompts: Prompts) -> Tensor:
    assert prompts.answers is not None
    return log_mass(logits.log_softmax(1), prompts.answers)


def _loss(logits: Tensor, prompts: Prompts) -> Tensor:
    targets = prompts.tokens[:, 1:].to(logits.device)
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
    counts = torch.arange(targets.shape[1], device=logits.device) < prompts.last.to(logits.device)[:, None]
    return (losses * counts).sum(1) / counts.sum(1)


@dataclass(frozen=True)
class Metric:
    """A function of the logits, and what it needs.

    Attributes
    ----------
    name : str
        Its name.
    function : callable
        From logits and prompts to one number per prompt, `[n]`.
    needs : tuple of str
        Attributes of `Prompts` that it reads and that may be missing.
    at_last : bool
        Whether it reads the logits of the last position alone, `[n, vocab]`, instead of `[n, ctx, vocab]`.
    """

    name: str
    function: MetricFunction
    needs: tuple[str, ...] = ()
    at_last: bool = False

    def of(self, prompts: Prompts) -> Callable[[Tensor], Tensor]:
        """The metric as a function of the logits of these prompts."""

        def metric(logits: Tensor) -> Tensor:
            return self.function(logits.to(torch.promote_types(logits.dtype, torch.float32)), prompts)

        return metric


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_difference", _logit_difference, ("answers", "wrong"), at_last=True),
        Metric("log_probability", _log_probability, ("answers",), at_last=True),
        Metric("loss", _loss),
    )
}


def metric_of(given: str | MetricFunction, prompts: Prompts, n_vocab: int, *, differentiable: bool) -> Metric:
    """A metric by name, or a function of your own, checked on logits of zeros.

    Parameters
    ----------
    given : {"logit_difference", "log_probability", "loss"} or callable
        Several right or wrong tokens count by their summed probability (`log_mass`); `"loss"` is the
        mean cross-entropy of the prompt's own tokens, in nats.
    prompts : Prompts
        The prompts that it is for.
    n_vocab : int
        Size of the vocabulary.
    differentiable : bool
        Refuse a metric without a gradient.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If there is no such metric, the prompts lack what it needs (the loss needs two tokens), or it does not
        give one number per prompt.

    Examples
    --------
    >>> pair = Prompts("one", torch.tensor([[3, 4]]), torch.tensor([2]), ((" a", " b"),))
    >>> metric_of(lambda logits, prompts: logits.mean(), pair, 10, differentiable=True)
    Traceback (most recent call last):
        ...
    ValueError: A metric must give one number per prompt, a tensor [1], found a tensor [] from <lambda>.
    """
    if callable(given):
        metric = Metric(getattr(given, "__name__", "metric"), given)
    else:
        metric = METRICS[settings.choice("metric", given, METRICS)]
    for what in metric.needs:
        if getattr(prompts, what) is None:
            raise ValueError(f"The metric {metric.name} needs {what} of the prompts, and these have none.")
    if metric.function is _loss and int(prompts.lengths.min()) < 2:
        raise ValueError(
            f"The loss needs prompts of at least two tokens, found one token in prompt "
            f"{int(prompts.lengths.argmin())}."
        )
    few = prompts.select(range(min(len(prompts), 2)))
    shape = (len(few), n_vocab) if metric.at_last else (*few.tokens.shape, n_vocab)
    with torch.enable_grad():
        found = metric.of(few)(torch.zeros(shape, requires_grad=True))
    if not isinstance(found, Tensor) or found.shape != (len(few),) or found.dtype == torch.bool:
        shown = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"A metric must give one number per prompt, a tensor [{len(few)}], found {shown} from "
            f"{metric.name}."
        )
    if differentiable and not found.requires_grad:
        raise ValueError(
            f"The metric {metric.name} has no gradient by the logits: measure its exact effects alone, "
            'methods=("exact",).'
        )
    return metric


def require_finite(metric: Metric, values: Tensor) -> Tensor:
    """Refuse a metric that is not a finite number for the untouched model, `[n]`.

    Raises
    ------
    ValueError
        If one is not; its prompt is named.

    Examples
    --------
    >>> require_finite(METRICS["loss"], torch.tensor([1.5, torch.inf]))
    Traceback (most recent call last):
        ...
    ValueError: The metric loss must be finite, found inf for prompt 1.
    """
    for prompt in (~values.isfinite()).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"The metric {metric.name} must be finite, found {float(values[prompt])} for prompt {prompt}."
        )
    return values


@dataclass(frozen=True, eq=False, repr=False)
class TaskAccuracy(Result):
    """How well a model does a task.

    Attributes
    ----------
    name : str
        Name of the prompts.
    frame : DataFrame
        One row per prompt: `prompt`, `logit_difference` (right against wrong tokens),
        `corrupted_logit_difference` (of the same tokens, after the corrupted prompt; NaN without one),
        `correct` (the difference is positive) and `top` (the most probable token of all is a right one).
    """

    name: str
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`prompts`, `n`, `accuracy` with its 95% interval (Wilson), `top`, and mean differences."""
        correct = self.frame["correct"]
        interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
        return {
            "prompts": self.name,
            "n": len(correct),
            "accuracy": float(correct.mean()),
            "accuracy_low": float(interval.low),
            "accuracy_high": float(interval.high),
            "top": float(self.frame["top"].mean()),
            "logit_difference": float(self.frame["logit_difference"].mean()),
            "corrupted_logit_difference": float(self.frame["corrupted_logit_difference"].mean()),
        }


@torch.no_grad()
def task_accuracy(model: TransformerBridge, prompts: Prompts, *, batch_rows: int = 32) -> TaskAccuracy:
    """Measure whether a model can do a task, before its circuit is looked for.

    Parameters
    ----------
    model : TransformerBridge
        The model.
    prompts : Prompts
        With right and wrong answers.
    batch_rows : int
        Rows per forward pass.

    Raises
    ------
    ValueError
        If the prompts lack answers, the model cannot take them, or a setting is out of range.

    Examples
    --------
    >>> answers = {"answers": [" over", " a"], "wrong": [" runs", " the"]}
    >>> prompts = saekit.Prompts.from_texts(model.tokenizer, ["the king sleeps", "the old queen"], **answers)
    >>> task_accuracy(model, prompts).frame.columns.tolist()
    ['prompt', 'logit_difference', 'corrupted_logit_difference', 'correct', 'top']
    """
    batch_rows = settings.whole("batch_rows", batch_rows)
    metric = metric_of("logit_difference", prompts, int(model.cfg.d_vocab), differentiable=False)
    require_rows(model, prompts.tokens)
    every = torch.arange(len(prompts))

    def last(tokens: Tensor) -> Tensor:
        parts = []
        for rows in every.split(batch_rows):
            run = run_to(model, tokens[rows], "blocks.0.hook_resid_pre")
            parts.append(run.logits(run.activations, last=prompts.last[rows]).float().cpu())
        return torch.cat(parts)

    clean = last(prompts.tokens)
    difference = metric.of(prompts)(clean)
    corrupted = torch.full_like(difference, torch.nan)
    if prompts.corrupted is not None:
        corrupted = metric.of(prompts)(last(prompts.corrupted))
    assert prompts.answers is not None
    frame = pd.DataFrame(
        {
            "prompt": every.numpy(),
            "logit_difference": difference.double().numpy(),
            "corrupted_logit_difference": corrupted.double().numpy(),
            "correct": (difference > 0).numpy(),
            "top": (clean.argmax(1)[:, None] == prompts.answers).any(1).numpy(),
        }
    )
    return TaskAccuracy(prompts.name, frame)
