"""Controls of a stitching: random orders, equal sparsity, and cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.activations import Activations, ActivationStore, as_activations
from saekit.analysis.stitching.path import Stitching, curves, shuffled
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.metrics import ce_degradation
from saekit.moments import fvu
from saekit.passes import Batch, one_pass
from saekit.results import Result

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DIGIT = 16  # bits of a value that one pass decides
AS_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


# ---------------------------------------------------------------------- random orders


@dataclass(frozen=True, eq=False, repr=False)
class RandomOrders(Result):
    """The moves of a stitching in random orders.

    Attributes
    ----------
    stitching : Stitching
        The curve that it belongs to.
    frame : DataFrame
        One row per draw and step: `draw`, `step`, `phase`, `width`, `fvu`, `l0`.
    """

    stitching: Stitching
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`n_draws`, and the greatest spread of FVU over the draws at one step, `fvu_spread`."""
        of_step = self.frame.groupby("step")["fvu"]
        return {
            "n_draws": int(self.frame["draw"].nunique()),
            "fvu_spread": float((of_step.max() - of_step.min()).max()),
        }


@cached
def random_orders(stitching: Stitching, *, n: int = 10, seed: int = 0) -> RandomOrders:
    """The same moves in random orders within their phases: a control.

    Parameters
    ----------
    stitching : Stitching
        A curve.
    n : int
        Draws; all are measured in one pass over the tokens.
    seed : int
        Seed of the draws.

    Raises
    ------
    TypeError, ValueError
        If a setting is invalid.

    Examples
    --------
    >>> path = saekit.stitch(small, large, x)
    >>> orders = saekit.random_orders(path, n=3)
    >>> orders.frame.columns.tolist()
    ['draw', 'step', 'phase', 'width', 'fvu', 'l0']
    """
    n, seed = settings.whole("n", n), settings.whole("seed", seed, at_least=0)
    random = np.random.default_rng(seed)
    orders = [shuffled(stitching.moves_made, random) for _ in range(n)]
    frames = [
        drawn.frame[["step", "phase", "width", "fvu", "l0"]].assign(draw=draw)
        for draw, drawn in enumerate(curves(stitching.mixtures, orders, stitching.bias))
    ]
    columns = ["draw", "step", "phase", "width", "fvu", "l0"]
    return RandomOrders(stitching, pd.concat(frames, ignore_index=True)[columns])


# ---------------------------------------------------------------------- at equal sparsity


@dataclass(frozen=True, eq=False, repr=False)
class MatchedL0(Result):
    """A dictionary whose L0 has been lowered to a target.

    Attributes
    ----------
    dictionary : Dictionary
        With each threshold at least `threshold`.
    threshold : float
        The least threshold, common to all latents, that reaches the target; 0 if L0 is low enough already.
    l0, l0_target : float
        Mean number of active latents per token, reached and targeted.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    dictionary: Dictionary
    threshold: float
    l0: float
    l0_target: float
    n_tokens: int
    n_excluded: int

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `threshold`, `l0`, `l0_target`, `n_tokens`, `n_excluded`."""
        return {
            "dictionary": str(self.dictionary.identity),
            "threshold": self.threshold,
            "l0": self.l0,
            "l0_target": self.l0_target,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
        }

    @property
    def frame(self) -> pd.DataFrame:
        """The summary as one row."""
        return pd.DataFrame([self.summary])


@cached
def matched_l0(
    dictionary: Dictionary,
    activations: Activations,
    l0: float,
    *,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> MatchedL0:
    """The dictionary with one more threshold, common to all latents, raised until L0 is at most `l0`.

    Exact, in the memory of a batch: each pass over the tokens decides 16 bits of the threshold.

    Parameters
    ----------
    dictionary : Dictionary
        Its latents must not depend on each other.
    activations : ActivationStore, Tensor or array
        Tokens to match on.
    l0 : float
        Mean number of active latents per token to reach.
    progress : bool
        Show a progress bar in tokens, per pass.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionary is TopK, `l0` is negative, the inputs do not belong together, or there are
        no tokens.

    Examples
    --------
    >>> import torch
    >>> from saekit import Dictionary
    >>> from saekit.analysis import matched_l0
    >>> eye = torch.eye(2)
    >>> identity = Dictionary(eye, torch.zeros(2), eye, torch.zeros(2), torch.zeros(2))
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> matched_l0(identity, x, 0.5).threshold  # of four active values, one may be left
    3.0
    """
    require_dictionaries(dictionary=dictionary)
    l0 = settings.real("l0", l0, at_least=0)
    dictionary.require_independent("Raising thresholds")
    selection = _Selection()
    tokens = None
    while not selection.decided:

        def add(batch: Batch) -> None:
            selection.add(batch.latents(dictionary).values)

        tokens = one_pass(
            activations,
            add,
            dictionaries=[dictionary],
            purpose="matching L0",
            progress=progress,
            allow_mismatch=allow_mismatch,
        )
        selection.decide(round(l0 * tokens.n_tokens))
    assert tokens is not None
    return MatchedL0(
        dictionary=replace(dictionary, threshold=dictionary.threshold.clamp(min=selection.threshold)),
        threshold=selection.threshold,
        l0=selection.n_above / tokens.n_tokens,
        l0_target=l0,
        n_tokens=tokens.n_tokens,
        n_excluded=tokens.n_excluded,
    )


class _Selection:
    """The least value that at most a given number of the positive values exceed; 0 if there are no more.

    Positive floats sort like the integers that their bits make, so each pass over the values counts
    them by the next digit, among those that share the digits found so far.
    """

    def __init__(self) -> None:
        self.decided = False
        self.threshold = 0.0
        self.n_above = (
            0  # values above all that share the digits found so far; in the end, above the threshold
        )
        self._digits: list[int] = []
        self._dtype = torch.float32
        self._counts = torch.zeros(1 << DIGIT, dtype=torch.long)

    def add(self, values: Tensor) -> None:
        """Count some of the values."""
        self._dtype = values.dtype
        bits = values.view(AS_INTEGERS[values.element_size()]).long()
        shift = 8 * values.element_size() - DIGIT * (len(self._digits) + 1)
        prefix = 0
        for digit in self._digits:
            prefix = (prefix << DIGIT) | digit
        inside = bits[bits >> (shift + DIGIT) == prefix] if self._digits else bits
        digits = (inside >> shift) & ((1 << DIGIT) - 1)
        self._counts += torch.bincount(digits, minlength=1 << DIGIT).cpu()

    def decide(self, n: int) -> None:
        """Find the next digit, once all values were counted, where `n` may exceed the threshold."""
        if not self._digits and int(self._counts.sum()) <= n:
            self.decided, self.n_above = True, int(self._counts.sum())
            return
        from_above = self._counts.flip(0).cumsum(0)
        place = int((from_above > n - self.n_above).nonzero()[0])
        self.n_above += int(from_above[place] - self._counts.flip(0)[place])
        self._digits.append((1 << DIGIT) - 1 - place)
        self._counts.zero_()
        size = torch.empty(0, dtype=self._dtype).element_size()
        if DIGIT * len(self._digits) == 8 * size:
            bits = 0
            for digit in self._digits:
                bits = (bits << DIGIT) | digit
            exact = torch.tensor([bits], dtype=AS_INTEGERS[size]).view(self._dtype)
            self.decided, self.threshold = True, float(exact)


@dataclass(frozen=True, eq=False, repr=False)
class MatchedCurve(Result):
    """FVU at the small dictionary's L0, along a stitching.

    Attributes
    ----------
    stitching : Stitching
        The curve that it belongs to.
    frame : DataFrame
        One row per step: `step`, `phase`, `width`, `l0`, `fvu`, `threshold`, `l0_matched`,
        `fvu_matched`.
    """

    stitching: Stitching
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`l0` that was matched, and the least `fvu_matched` with the `step` that has it."""
        best = self.frame.loc[self.frame["fvu_matched"].idxmin()]
        return {
            "l0": float(self.frame["l0"].iloc[0]),
            "fvu_matched": float(best["fvu_matched"]),
            "step": int(best["step"]),
        }


@cached
def matched_curve(
    stitching: Stitching,
    activations: Activations,
    *,
    n_points: int = 12,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> MatchedCurve:
    """FVU at the small dictionary's L0, at steps spread evenly over the curve: a control.

    Inserting latents raises L0, which alone lowers the error. Here one more threshold, common to all
    latents, is raised until L0 is the small dictionary's again.

    Parameters
    ----------
    stitching : Stitching
        A curve.
    activations : ActivationStore, Tensor or array
        The tokens that it was measured on.
    n_points : int
        Steps to look at; the ends of phases are among them.
    progress : bool
        Show a progress bar in tokens, per pass.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the inputs do not belong together, these are not the tokens of the curve, or the
        tensors of a dictionary have changed since it was stitched.

    Examples
    --------
    >>> path = saekit.stitch(small, large, x)
    >>> saekit.matched_curve(path, x, n_points=2).frame[["phase", "l0", "l0_matched"]].round(2)
       phase   l0  l0_matched
    0  start  1.8         1.8
    1   swap  3.0         1.8
    2   bias  3.0         1.8
    """
    stitching.mixtures.require_unchanged()
    n_points = settings.whole("n_points", n_points)
    activations = as_activations(activations)
    found = len(activations if isinstance(activations, Tensor) else activations.positions)
    if found != stitching.n_tokens:
        raise ValueError(f"The curve was measured on {stitching.n_tokens} tokens, found {found}.")
    steps = np.linspace(0, stitching.n_steps, n_points).round().astype(int)
    steps = np.unique([*steps, *stitching.phases["last_step"]])
    mixtures, inside = stitching.mixtures, [stitching.inside(step) for step in steps]
    n_active = round(stitching.frame["l0"].iloc[0] * stitching.n_tokens)
    selections = [_Selection() for _ in steps]
    errors = np.zeros(len(steps))
    options: dict[str, Any] = {
        "dictionaries": (stitching.small, stitching.large),
        "purpose": "matching L0",
        "progress": progress,
        "allow_mismatch": allow_mismatch,
    }
    measured_on = mixtures.totals.tokens

    def count(batch: Batch) -> None:
        latents = mixtures.side_by_side(batch)
        for selection, latent in zip(selections, inside, strict=True):
            if not selection.decided:
                selection.add(latents.values[latent.to(latents.indices.device)[latents.indices]])

    def measure(batch: Batch) -> None:
        latents = mixtures.side_by_side(batch)
        for place, (selection, latent) in enumerate(zip(selections, inside, strict=True)):
            keep = latent.to(latents.indices.device)[latents.indices] & (latents.values > selection.threshold)
            x_hat = latents.where(keep).matmul(rows) + biases[place]
            if (skip := skips[place]) is not None:
                x_hat = x_hat + batch.x @ skip
            errors[place] += float((batch.target - x_hat).double().square().sum())

    while not all(selection.decided for selection in selections):
        tokens = one_pass(activations, count, **options)
        measured_on.require(tokens, "The curve", allow_mismatch=allow_mismatch)
        for selection in selections:
            if not selection.decided:
                selection.decide(n_active)
    rows, biases = mixtures.directions.rows, [stitching.bias_at(int(step)) for step in steps]
    skips = [stitching.skip_at(int(step)) for step in steps]
    tokens = one_pass(activations, measure, **options)
    frame = stitching.frame.iloc[steps][["step", "phase", "width", "l0", "fvu"]].reset_index(drop=True)
    return MatchedCurve(
        stitching,
        frame.assign(
            threshold=[selection.threshold for selection in selections],
            l0_matched=[selection.n_above / tokens.n_tokens for selection in selections],
            fvu_matched=[fvu(error, tokens.total_variance) for error in errors],
        ),
    )


# ---------------------------------------------------------------------- in cross-entropy


@dataclass(frozen=True, eq=False, repr=False)
class CECurve(Result):
    """CE degradation along a stitching.

    Attributes
    ----------
    stitching : Stitching
        The curve that it belongs to.
    frame : DataFrame
        One row per step: `step`, `phase`, `width`, `fvu`, `l0`, `ce_degradation` (nats per token),
        `ce_degradation_error` (its standard error over rows of tokens), `loss_recovered_zero`.
    n_targets, n_passed_through : int
        Predicted tokens averaged over, and excluded positions, where the original activation stays.
    """

    stitching: Stitching
    frame: pd.DataFrame
    n_targets: int
    n_passed_through: int

    @property
    def summary(self) -> dict[str, Any]:
        """`ce_degradation` at the first and the last step, `n_targets`, `n_passed_through`."""
        first, last = (float(self.frame["ce_degradation"].iloc[row]) for row in (0, -1))
        return {
            "ce_degradation_first": first,
            "ce_degradation_last": last,
            "n_targets": self.n_targets,
            "n_passed_through": self.n_passed_through,
        }


def ce_curve(
    model: TransformerBridge,
    stitching: Stitching,
    store: ActivationStore,
    *,
    steps: Sequence[int] | None = None,
    max_rows: int = 16,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> CECurve:
    """CE degradation of the stitched dictionary at chosen steps, by real forward passes.

    Parameters
    ----------
    model : TransformerBridge
        The language model that the store was harvested from.
    stitching : Stitching
        A curve.
    store : ActivationStore
        Tokens to run.
    steps : sequence of int, optional
        The start and the end of each phase if left out.
    max_rows : int
        Rows of tokens, spread evenly over the store.
    progress : bool
        Show a progress bar in rows.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If there is no such step, or the inputs do not belong together.

    Examples
    --------
    >>> path = saekit.stitch(saes[16], saes[32], harvested)
    >>> curve = saekit.ce_curve(model, path, harvested, steps=[0, path.n_steps], max_rows=4)
    >>> curve.frame["phase"].tolist()
    ['start', 'bias']
    """
    chosen = [
        settings.whole("steps", step, at_least=0, at_most=stitching.n_steps)
        for step in ([0, *stitching.phases["last_step"]] if steps is None else steps)
    ]
    found = ce_degradation(
        model,
        [stitching.dictionary(step) for step in chosen],
        store,
        max_rows=max_rows,
        everywhere=False,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    frame = stitching.frame.iloc[chosen][["step", "phase", "width", "fvu", "l0"]].reset_index(drop=True)
    columns = ["ce_degradation", "ce_degradation_error", "loss_recovered_zero"]
    return CECurve(
        stitching,
        pd.concat([frame, found.frame[columns].reset_index(drop=True)], axis=1),
        found.n_targets,
        found.n_passed_through,
    )
