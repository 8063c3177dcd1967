"""Whether a large dictionary's latents carry something that a small one lacks.

Two answers that are never mixed: `novel_cos`, the best cosine with a small latent is under theta,
and `novel_gain`, inserting the latent into the small dictionary lowers its error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from saekit import settings
from saekit.activations import Activations
from saekit.analysis.nulls import require_null
from saekit.analysis.similarity import BestMatches, best_matches, check_order
from saekit.analysis.stitching.mixtures import (
    NEVER,
    Directions,
    GroupGains,
    LatentSums,
    Path,
    SquaredError,
)
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.moments import fvu
from saekit.passes import Batch, Measured, Tokens, one_pass
from saekit.results import Result

# ---------------------------------------------------------------------- one latent at a time


@dataclass(frozen=True, eq=False, repr=False)
class Insertion(Measured, Result):
    """The effect of inserting each latent of a large dictionary, alone, into a small one.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    theta : float
        Cosine under which a latent is `novel_cos`.
    matches : BestMatches
        Best small latent of each large one.
    active : Tensor
        Tokens on which each latent is active, by half of the tokens, int64 `[2, width]`.
    power : Tensor
        Sum over tokens of `f_i^2 ||w_i||^2`, by half, float64 `[2, width]`.
    overlap : Tensor
        Sum over tokens of `f_i <w_i, r>` with the small dictionary's residual `r`, by half,
        float64 `[2, width]`.
    half_tokens : tuple of int
        Tokens of each half.
    tokens : Tokens
        Number and moments of the tokens, which tell them from others.
    mse_small, mse_large, fvu_small, fvu_large, l0_small, l0_large : float
        The two dictionaries on these tokens. MSE: squared error summed over dimensions,
        averaged over tokens.
    """

    _plot: ClassVar[str] = "insertion_scatter"

    small: Identity
    large: Identity
    theta: float
    matches: BestMatches
    active: Tensor
    power: Tensor
    overlap: Tensor
    half_tokens: tuple[int, int]
    tokens: Tokens
    mse_small: float
    mse_large: float
    fvu_small: float
    fvu_large: float
    l0_small: float
    l0_large: float

    @property
    def mse_change(self) -> Tensor:
        """MSE with the latent minus MSE without, float64 `[width]`: negative helps."""
        return (self.power - 2 * self.overlap).sum(0) / self.n_tokens

    @property
    def dead(self) -> Tensor:
        """Latents that are active on none of the tokens, Boolean `[width]`."""
        return self.active.sum(0) == 0

    @property
    def novel_cos(self) -> Tensor:
        """Latents whose best cosine is under theta, Boolean `[width]`."""
        return self.matches.cosine < self.theta

    @property
    def novel_gain(self) -> Tensor:
        """Latents whose insertion lowers the MSE, Boolean `[width]`."""
        return self.mse_change < 0

    @property
    def frame(self) -> pd.DataFrame:
        """One row per large latent.

        `latent`, `best_cosine`, `best_match`, `mse_change` (negative helps; 0 if dead),
        `density` (share of tokens active), `dead`, `novel_cos`, `novel_gain`.
        """
        return pd.DataFrame(
            {
                "latent": range(len(self.mse_change)),
                "best_cosine": self.matches.cosine.numpy(),
                "best_match": self.matches.index.numpy(),
                "mse_change": self.mse_change.numpy(),
                "density": self.active.sum(0).numpy() / self.n_tokens,
                "dead": self.dead.numpy(),
                "novel_cos": self.novel_cos.numpy(),
                "novel_gain": self.novel_gain.numpy(),
            }
        )

    def _labelled(self, half: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and `novel_gain` of the latents that are active, on one half or on all tokens."""
        part = slice(None) if half is None else slice(half, half + 1)
        gain = (self.power[part] - 2 * self.overlap[part]).sum(0) < 0
        alive = self.active[part].sum(0) > 0
        return self.matches.cosine[alive].numpy(), gain[alive].numpy()

    def roc(self) -> pd.DataFrame:
        """ROC curve of the cosine as a predictor of the gain: `theta`, `fpr`, `tpr`.

        Positive: `novel_gain`; predicted positive: best cosine under `theta`. Dead latents are
        left out.

        Raises
        ------
        ValueError
            If all latents help, or none does.
        """
        return _roc(*self._labelled())

    def at(self, theta: float) -> dict[str, Any]:
        """How well `best cosine < theta` predicts `novel_gain` on the latents that are not dead.

        Returns
        -------
        dict
            `theta`, `n_latents`, `share_novel_cos`, `share_novel_gain` (the base rates),
            `true_positive_rate`, `false_positive_rate`, `accuracy`, `balanced_accuracy`. Rates
            over no latents are NaN.
        """
        return _prediction(settings.real("theta", theta), *self._labelled())

    @property
    def auc(self) -> float:
        """Area under the ROC curve (see `roc`); NaN if all latents help, or none does."""
        cosine, gain = self._labelled()
        return float(roc_auc_score(gain, -cosine)) if 0 < gain.sum() < len(gain) else float("nan")

    @property
    def without_auc(self) -> str:
        """Why `auc` is not a number, such as "every latent helps"; empty if it is one."""
        _, gain = self._labelled()
        if not len(gain):
            return "every latent is dead"
        return "" if 0 < gain.sum() < len(gain) else "every latent helps" if gain.all() else "no latent helps"

    @property
    def best_theta(self) -> dict[str, float]:
        """The theta of greatest balanced accuracy on half of the tokens, judged on the other half.

        Returns
        -------
        dict
            `theta`, `balanced_accuracy_chosen` (on the half that chose it) and
            `balanced_accuracy` (on the other half). NaN if a half has only latents that help,
            or none that does.
        """
        halves = [self._labelled(half) for half in (0, 1)]
        if any(not 0 < gain.sum() < len(gain) for _, gain in halves):
            return dict.fromkeys(("theta", "balanced_accuracy_chosen", "balanced_accuracy"), float("nan"))
        curve = _roc(*halves[0])
        theta = float(curve["theta"][(curve["tpr"] - curve["fpr"]).idxmax()])
        chosen, other = (_prediction(theta, *half)["balanced_accuracy"] for half in halves)
        return {"theta": theta, "balanced_accuracy_chosen": chosen, "balanced_accuracy": other}

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers; shares, AUC and accuracies are over latents that are not dead.

        `small`, `large`, `theta`, `n_latents` (not dead), `n_dead`, `n_tokens`, `n_excluded`,
        `auc`, `share_novel_cos`, `share_novel_gain`, `accuracy`, `balanced_accuracy` (at theta),
        `best_theta`, `best_theta_balanced_accuracy` (theta chosen on half of the tokens,
        accuracy on the other half), `median_cosine`, `mse_small`, `mse_large`, `fvu_small`,
        `fvu_large`, `l0_small`, `l0_large`, `same_index_share`, `same_index_chance`.
        """
        at_theta, best = self.at(self.theta), self.best_theta
        shares = ("share_novel_cos", "share_novel_gain", "accuracy", "balanced_accuracy")
        cosine, _ = self._labelled()
        return {
            "small": str(self.small),
            "large": str(self.large),
            "theta": self.theta,
            "n_latents": len(cosine),
            "n_dead": int(self.dead.sum()),
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "auc": self.auc,
            **{name: at_theta[name] for name in shares},
            "best_theta": best["theta"],
            "best_theta_balanced_accuracy": best["balanced_accuracy"],
            "median_cosine": float(np.median(cosine)) if len(cosine) else float("nan"),
            "mse_small": self.mse_small,
            "mse_large": self.mse_large,
            "fvu_small": self.fvu_small,
            "fvu_large": self.fvu_large,
            "l0_small": self.l0_small,
            "l0_large": self.l0_large,
            "same_index_share": self.matches.same_index_share,
            "same_index_chance": self.matches.chance,
        }


@cached
def insertion(
    small: Dictionary,
    large: Dictionary,
    activations: Activations,
    *,
    theta: float = 0.7,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Insertion:
    """Change in MSE when each latent of `large` alone is added to the reconstruction of `small`.

    One pass for all latents: with the residual `r = x - x_hat` of the small dictionary,
    inserting latent i changes the squared error by exactly `f_i^2 ||w_i||^2 - 2 f_i <w_i, r>`,
    and only tokens on which it is active count. Sums are float64.

    The seed null is the same call with two seeds of one width.

    Parameters
    ----------
    small, large : Dictionary
        Latents of both must not depend on each other.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    theta : float
        Cosine under which a latent is `novel_cos`.
    batch_size : int
        Tokens at a time; the result does not depend on it beyond rounding.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If a dictionary is TopK, `small` is wider than `large`, theta is not a cosine from 0 to 1, the
        inputs do not belong together, an activation is not finite, or there are no tokens.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching, Eq. 5: the large dictionary's latents are
    added to the whole reconstruction of the small one, which keeps its own decoder bias.

    Examples
    --------
    >>> import torch
    >>> from saekit import Dictionary, insertion
    >>> def toy(rows):
    ...     n = len(rows)
    ...     return Dictionary(rows.T, torch.zeros(n), rows, torch.zeros(2), torch.zeros(n))
    >>> eye = torch.eye(2)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    >>> insertion(toy(eye[:1]), toy(eye), x).frame[["latent", "best_cosine", "mse_change", "novel_gain"]]
       latent  best_cosine  mse_change  novel_gain
    0       0          1.0         5.0       False
    1       1          0.0        -2.5        True
    """
    adding = InsertionPass(small, large, theta=theta, allow_mismatch=allow_mismatch)
    tokens = one_pass(
        activations,
        adding,
        dictionaries=(small, large),
        purpose="insertion",
        batch_size=batch_size,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    return adding.finished(tokens)


class InsertionPass:
    """`insertion` as a part of a pass that others share."""

    def __init__(
        self, small: Dictionary, large: Dictionary, *, theta: float = 0.7, allow_mismatch: bool = False
    ) -> None:
        require_dictionaries(small=small, large=large)
        self.small, self.large, self.theta = small, large, settings.cosine("theta", theta)
        self.allow_mismatch = allow_mismatch
        for dictionary in (small, large):
            dictionary.require_independent("Inserting latents")
        check_order(small, large)
        self._sums, self._errors = LatentSums(large, small), (SquaredError(small), SquaredError(large))

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        for part in (self._sums, *self._errors):
            part(batch)

    def finished(self, tokens: Tokens) -> Insertion:
        """The insertion, once the pass is over."""
        matches = best_matches(self.small, self.large, allow_mismatch=self.allow_mismatch)
        sums, errors, n = self._sums, self._errors, tokens.n_tokens
        return Insertion(
            small=self.small.identity,
            large=self.large.identity,
            theta=self.theta,
            matches=replace(matches, cosine=matches.cosine.cpu(), index=matches.index.cpu()),
            active=sums.active,
            power=sums.power,
            overlap=sums.overlap,
            half_tokens=(int(sums.tokens[0]), int(sums.tokens[1])),
            tokens=tokens,
            mse_small=errors[0].value / n,
            mse_large=errors[1].value / n,
            fvu_small=fvu(errors[0].value, tokens.total_variance),
            fvu_large=fvu(errors[1].value, tokens.total_variance),
            l0_small=errors[0].n_active / n,
            l0_large=errors[1].n_active / n,
        )


@dataclass(frozen=True, eq=False, repr=False)
class InsertionComparison(Result):
    """An insertion beside those between seeds.

    Attributes
    ----------
    result : Insertion
        Between two widths.
    nulls : tuple of Insertion
        Between two seeds of one width each.
    """

    result: Insertion
    nulls: tuple[Insertion, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per measure (the keys of `Insertion.summary`), one column per insertion.

        A column is named after the widths, or after the width and the other seed: `"24 → 48"`,
        `"24, seed 1"`. Where two nulls would have the same name, the beginnings of their hashes follow.
        """
        columns = {f"{self.result.small.width} → {self.result.large.width}": self.result}
        names = [f"{null.small.width}, seed {null.large.seed}" for null in self.nulls]
        for name, null in zip(names, self.nulls, strict=True):
            hashes = f" [{null.small.hash[:8]}, {null.large.hash[:8]}]" if names.count(name) > 1 else ""
            columns[name + hashes] = null
        index = pd.Index(list(self.result.summary), name="measure")
        return pd.DataFrame(
            {name: pd.Series(found.summary, index=index, dtype=object) for name, found in columns.items()}
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`small`, `large`, `auc`, `share_novel_cos`, `share_novel_gain`; nulls as `null_<measure>`."""
        measures, found = ("auc", "share_novel_cos", "share_novel_gain"), self.result.summary
        return {
            **{name: found[name] for name in ("small", "large", *measures)},
            **{f"null_{name}": [null.summary[name] for null in self.nulls] for name in measures},
        }


def compare(result: Insertion, *nulls: Insertion) -> InsertionComparison:
    """Set an insertion's numbers beside those between seeds; nothing is subtracted.

    Parameters
    ----------
    result : Insertion
        Between two widths.
    *nulls : Insertion
        Between two seeds of the small or of the large width, any number of them.

    Raises
    ------
    ValueError
        If a null is not between two seeds of one of the two widths, compares a dictionary with itself,
        has another theta or other tokens, or is given twice.

    Examples
    --------
    >>> result, null = saekit.insertion(small, large, x), saekit.insertion(small, other_seed, x)
    >>> saekit.compare(result, null).frame.columns.tolist()
    ['8 → 12', '8, seed 1']
    """
    for place, null in enumerate(nulls):
        require_null(result, null, "theta")
        if any((null.small, null.large) == (other.small, other.large) for other in nulls[:place]):
            raise ValueError(f"The null with {null.large.described} is given twice.")
    return InsertionComparison(result, nulls)


def _roc(cosine: np.ndarray, gain: np.ndarray) -> pd.DataFrame:
    if not 0 < gain.sum() < len(gain):
        raise ValueError(
            f"A ROC curve needs latents that help and latents that do not: {int(gain.sum())} of "
            f"{len(gain)} help."
        )
    fpr, tpr, score = roc_curve(gain, -cosine, drop_intermediate=False)
    # A latent is predicted novel if its cosine is at most -score, which is below the next float.
    theta = np.nextafter(-score.astype(np.float32), np.float32(np.inf))
    return pd.DataFrame({"theta": theta, "fpr": fpr, "tpr": tpr})


def _prediction(theta: float, cosine: np.ndarray, gain: np.ndarray) -> dict[str, Any]:
    novel = cosine < theta

    def share(condition: np.ndarray) -> float:
        return float(condition.mean()) if len(condition) else float("nan")

    true_positive, false_positive = share(novel[gain]), share(novel[~gain])
    return {
        "theta": theta,
        "n_latents": len(gain),
        "share_novel_cos": share(novel),
        "share_novel_gain": share(gain),
        "true_positive_rate": true_positive,
        "false_positive_rate": false_positive,
        "accuracy": share(novel == gain),
        "balanced_accuracy": (true_positive + 1 - false_positive) / 2,
    }


# ---------------------------------------------------------------------- groups of latents


@dataclass(frozen=True, eq=False, repr=False)
class GroupInsertion(Result):
    """The effect of inserting whole groups of latents into a small dictionary.

    Attributes
    ----------
    small, large : Identity
        The dictionaries.
    frame : DataFrame
        One row per group: `group`, `n_latents` (inserted, not dead), `mse`, `fvu`, `l0`,
        `mse_change` (against the small dictionary), `sum_of_single_changes` (of inserting each
        latent alone), `additivity` (their ratio: the real change as a share of that sum; 1 if
        gains add up). The groups are `"small"` (nothing inserted), `"novel_cos"`,
        `"reconstruction_cos"` (all others by cosine), `"novel_gain"`, `"not novel_gain"`,
        `"all"` and, for comparison, the `"large"` dictionary itself; the last has no single
        changes.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    _plot: ClassVar[str] = "group_insertion_bars"

    small: Identity
    large: Identity
    frame: pd.DataFrame
    n_tokens: int
    n_excluded: int

    @property
    def summary(self) -> dict[str, Any]:
        """`small`, `large`, `n_tokens`, `n_excluded`, and FVU and L0 by group."""
        frame = self.frame.set_index("group")
        return {
            "small": str(self.small),
            "large": str(self.large),
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "fvu": {str(group): float(value) for group, value in frame["fvu"].items()},
            "l0": {str(group): float(value) for group, value in frame["l0"].items()},
        }


@cached
def group_insertion(
    small: Dictionary,
    large: Dictionary,
    insertion: Insertion,
    activations: Activations,
    *,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> GroupInsertion:
    """MSE, FVU and L0 after inserting all novel latents, all others, or all, by both labels.

    Parameters
    ----------
    small, large : Dictionary
        The dictionaries that `insertion` compared.
    insertion : Insertion
        Decides which latents are novel, and gives the effect of each alone.
    activations : ActivationStore, Tensor or array
        The tokens that `insertion` was measured on: a store (its excluded positions are left out and
        counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If a dictionary is TopK or is not the one that `insertion` compared, the tokens are not those that
        it was measured on, the inputs do not belong together, an activation is not finite, or there are
        no tokens.

    Notes
    -----
    Leask et al. (ICLR 2025), section on SAE stitching: inserting the novel latents improves the
    reconstruction, inserting the reconstruction latents harms it. The decoder bias is the small
    dictionary's (Eq. 5).

    Examples
    --------
    >>> alone = saekit.insertion(small, large, x)
    >>> saekit.group_insertion(small, large, alone, x).frame.columns.tolist()
    ['group', 'n_latents', 'mse', 'fvu', 'l0', 'mse_change', 'sum_of_single_changes', 'additivity']
    """
    adding = GroupInsertionPass(small, large, insertion, allow_mismatch=allow_mismatch)
    tokens = one_pass(
        activations,
        adding,
        dictionaries=(small, large),
        purpose="group insertion",
        batch_size=batch_size,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    return adding.finished(tokens)


class GroupInsertionPass:
    """`group_insertion` as a part of a pass that others share."""

    def __init__(
        self, small: Dictionary, large: Dictionary, insertion: Insertion, *, allow_mismatch: bool = False
    ) -> None:
        require_dictionaries(small=small, large=large)
        _check_same(small, large, insertion)
        self.small, self.large, self.insertion = small, large, insertion
        self.allow_mismatch = allow_mismatch
        alive = ~insertion.dead
        novel_cos, novel_gain = alive & insertion.novel_cos, alive & insertion.novel_gain
        partitions = {
            ("novel_cos", "reconstruction_cos"): (novel_cos, alive & ~novel_cos),
            ("novel_gain", "not novel_gain"): (novel_gain, alive & ~novel_gain),
            ("all",): (alive,),
        }
        directions = Directions.coming_in(large)
        self._groups = {"small": torch.zeros_like(alive)}
        self._sums: dict[tuple[str, ...], GroupGains] = {}
        for names, masks in partitions.items():
            self._groups |= dict(zip(names, masks, strict=True))
            # Each group is a separate step from the start.
            step = torch.full((large.width,), NEVER)
            for number, mask in enumerate(masks, start=1):
                step[mask] = number
            path = Path(step.numpy(), np.zeros(len(masks) + 1, dtype=np.int64))
            self._sums[names] = GroupGains(path, directions)
        self._errors = SquaredError(small), SquaredError(large)
        self._active = torch.zeros(large.width, dtype=torch.long)

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        latents, residual = batch.latents(self.large), batch.residual(self.small)
        self._active += torch.bincount(latents.indices, minlength=latents.width).cpu()
        for part in self._sums.values():
            part.add(latents, residual)
        for error in self._errors:
            error(batch)

    def finished(self, tokens: Tokens) -> GroupInsertion:
        """The groups, once the pass is over.

        Raises
        ------
        ValueError
            If the tokens are not those of the insertion.
        """
        self.insertion.tokens.require(tokens, "The insertion", allow_mismatch=self.allow_mismatch)
        of_small, of_large = self._errors
        gains = {"small": 0.0}
        for names, part in self._sums.items():
            gains |= dict(zip(names, part.gain[1:].tolist(), strict=True))
        gains["large"] = of_large.value - of_small.value
        n, changes = tokens.n_tokens, self.insertion.mse_change
        rows = []
        for name, gain in gains.items():
            inserted = self._groups.get(name, ~self.insertion.dead)
            single = float("nan") if name == "large" else float(changes[inserted].sum())
            n_active = int(self._active[inserted].sum()) + (0 if name == "large" else of_small.n_active)
            error = of_small.value + gain
            rows.append(
                {
                    "group": name,
                    "n_latents": int(inserted.sum()),
                    "mse": error / n,
                    "fvu": fvu(error, tokens.total_variance),
                    "l0": n_active / n,
                    "mse_change": gain / n,
                    "sum_of_single_changes": single,
                    "additivity": gain / n / single if single else float("nan"),
                }
            )
        frame = pd.DataFrame(rows)
        return GroupInsertion(self.small.identity, self.large.identity, frame, n, tokens.n_excluded)


def _check_same(small: Dictionary, large: Dictionary, insertion: Insertion) -> None:
    for dictionary in (small, large):
        dictionary.require_independent("Inserting latents")
    insertion.small.require(small.identity, "The insertion's small dictionary")
    insertion.large.require(large.identity, "The insertion's large dictionary")
