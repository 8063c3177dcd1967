"""Scores against the truth: which true features a dictionary has found, and how well it detects them.

The definitions of MCC, uniqueness, precision, recall, F1, shrinkage and explained variance are those of
SAELens' `sae_lens.synthetic.evals`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.moments import Moments, fvu
from saekit.results import Result
from saekit.settings import cosine as known_cosine
from saekit.synthetic import Sample

ROWS = 1024  # samples that are held densely at a time
TINY = 1e-6  # norm of an activation under which shrinkage is not defined


@dataclass(frozen=True, eq=False, repr=False)
class Recovery(Result):
    """How well learned directions, and the latents that read them, recover true features.

    Attributes
    ----------
    learned : Identity, optional
        The dictionary; None for plain directions.
    best : Tensor
        True feature of greatest absolute cosine with each latent, int64 `[width]`.
    cosine : Tensor
        That cosine, with its sign, float32 `[width]`.
    match, match_signed : Tensor
        True feature that each latent is assigned, one to one, by absolute and by signed cosine; -1 if none is
        left. Int64 `[width]`.
    match_cosine, match_signed_cosine : Tensor
        The cosines of those pairs, with their sign, NaN without a match, float32 `[width]`.
    found : Tensor
        Greatest absolute cosine of each true feature with a latent, float32 `[n_features]`.
    both, only_latent, only_truth : Tensor, optional
        Samples on which a latent and its best true feature fire both, the latent alone, the feature alone,
        int64
        `[width]`. None without a sample.
    n_samples : int
        Samples used.
    l0, true_l0, shrinkage, explained_variance : float
        Latents and true features that fire per sample; the mean of `||x_hat|| / ||x||`; 1 - FVU. NaN
        without a
        sample.
    """

    learned: Identity | None
    best: Tensor
    cosine: Tensor
    match: Tensor
    match_cosine: Tensor
    match_signed: Tensor
    match_signed_cosine: Tensor
    found: Tensor
    both: Tensor | None = None
    only_latent: Tensor | None = None
    only_truth: Tensor | None = None
    n_samples: int = 0
    l0: float = float("nan")
    true_l0: float = float("nan")
    shrinkage: float = float("nan")
    explained_variance: float = float("nan")

    @property
    def mcc(self) -> float:
        """Mean absolute cosine of the one-to-one matching for which it is greatest."""
        return float(self.match_cosine[self.match >= 0].abs().mean())

    @property
    def mcc_signed(self) -> float:
        """Mean cosine of the matching for which that is greatest: reversed directions count against."""
        return float(self.match_signed_cosine[self.match_signed >= 0].mean())

    @property
    def uniqueness(self) -> float:
        """Distinct best true features, per latent."""
        return len(self.best.unique()) / len(self.best)

    def _ratio(self, *others: Tensor | None) -> Tensor:
        """Samples with both over those with both or the others, 0 where undefined, float64 `[width]`."""
        if self.both is None:
            return torch.full(self.best.shape, float("nan"), dtype=torch.float64)
        both = self.both.double()
        total = both + sum(other.double() for other in others if other is not None)
        return torch.where(total > 0, both / total, 0.0)

    @property
    def precision(self) -> Tensor:
        """Share of a latent's samples on which its best true feature fires, float64 `[width]`."""
        return self._ratio(self.only_latent)

    @property
    def recall(self) -> Tensor:
        """Share of its best true feature's samples on which a latent fires, float64 `[width]`."""
        return self._ratio(self.only_truth)

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of precision and recall, 0 where both are, float64 `[width]`."""
        total = self.precision + self.recall
        return torch.where(total == 0, 0.0, 2 * self.precision * self.recall / total)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per latent: its best feature and match, with cosines, `precision`, `recall`, `f1`."""
        names = ("best", "cosine", "match", "match_cosine", "precision", "recall", "f1")
        columns = {name: getattr(self, name).numpy() for name in names}
        return pd.DataFrame({"latent": range(len(self.best)), **columns})

    def recovered(self, theta: float = 0.9) -> Tensor:
        """True features with an absolute cosine of theta or more with some latent, Boolean `[n_features]`."""
        return self.found >= known_cosine("theta", theta)

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers; precision, recall and F1 are means over latents."""
        macro = {name: float(getattr(self, name).mean()) for name in ("precision", "recall", "f1")}
        numbers = ("l0", "true_l0", "shrinkage", "explained_variance", "n_samples")
        return {
            "learned": None if self.learned is None else str(self.learned),
            "mcc": self.mcc,
            **macro,
            "uniqueness": self.uniqueness,
            "share_recovered": float(self.recovered().float().mean()),
            "mcc_signed": self.mcc_signed,
            **{name: getattr(self, name) for name in numbers},
        }


@cached
def measure_recovery(
    learned: Dictionary | Tensor, directions: Tensor, sample: Sample | None = None
) -> Recovery:
    """Compare a dictionary, or directions that any method found, with true directions.

    Parameters
    ----------
    learned : Dictionary or Tensor
        A dictionary, or directions `[width, d_in]` of any norm but 0.
    directions : Tensor
        True directions `[n_features, d_in]`, such as `World.directions` or `World.atoms`.
    sample : Sample, optional
        Where given, each latent of a dictionary is judged as a detector of its best true feature.

    Raises
    ------
    TypeError
        If a sample is given for plain directions, which have no latents that fire.
    ValueError
        If dimensions or the numbers of features differ, or a direction is 0.

    Notes
    -----
    Several latents may claim one feature in precision, recall and F1; in MCC they may not. With more features
    than latents, MCC is over latents; with fewer, over features.

    Examples
    --------
    >>> from saekit.synthetic import hedging_tree
    >>> world = hedging_tree()
    >>> measure_recovery(world.directions[:2], world.directions).summary["mcc"]
    1.0
    """
    dictionary = learned if isinstance(learned, Dictionary) else None
    rows = learned.W_dec if isinstance(learned, Dictionary) else learned
    if dictionary is None and sample is not None:
        raise TypeError(
            "Only a Dictionary has latents that fire on a sample: leave the sample out for directions."
        )
    if rows.ndim != 2 or rows.shape[1] != directions.shape[1]:
        raise ValueError(f"Directions are {list(rows.shape)}, but the true ones {list(directions.shape)}.")
    if sample is not None and sample.features.width != len(directions):
        raise ValueError(f"The sample is of {sample.features.width} features, not of {len(directions)}.")
    if dictionary is None and not (rows.norm(dim=1) > 0).all():
        raise ValueError("A direction is 0, so it has no cosine with a true one.")
    cosines = F.normalize(rows.detach().float().cpu(), dim=1) @ F.normalize(directions.float(), dim=1).T
    best = cosines.abs().argmax(1)
    match, match_signed = _assign(cosines.abs()), _assign(cosines)
    found = Recovery(
        learned=None if dictionary is None else dictionary.identity,
        best=best,
        cosine=cosines.gather(1, best[:, None])[:, 0],
        match=match,
        match_cosine=_cosine_of(cosines, match),
        match_signed=match_signed,
        match_signed_cosine=_cosine_of(cosines, match_signed),
        found=cosines.abs().amax(0),
    )
    return found if dictionary is None or sample is None else _detected(found, dictionary, sample)


def _assign(cosines: Tensor) -> Tensor:
    """The true feature of each latent in the one-to-one matching of greatest sum, -1 for none."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    match = np.full(len(cosines), -1)
    match[rows] = columns
    return torch.from_numpy(match)


def _cosine_of(cosines: Tensor, match: Tensor) -> Tensor:
    chosen = cosines.gather(1, match.clamp(min=0)[:, None])[:, 0]
    return torch.where(match >= 0, chosen, float("nan"))


@torch.no_grad()
def _detected(found: Recovery, dictionary: Dictionary, sample: Sample) -> Recovery:
    """The same, with the latents' detection and the reconstruction of a sample."""
    counts = torch.zeros(3, dictionary.width, dtype=torch.int64)
    moments, squared_error, ratios, norms, active = Moments(dictionary.d_in), 0.0, 0.0, 0, 0
    for start in range(0, len(sample), ROWS):
        part = sample[start : start + ROWS]
        latents = dictionary.encode_sparse(part.x)
        x_hat = dictionary.decode(latents, dictionary.row_scale(part.x))
        fires, truth = latents.dense() != 0, (part.features.dense() > 0)[:, found.best]
        for i, where in enumerate((fires & truth, fires & ~truth, ~fires & truth)):
            counts[i] += where.sum(0)
        moments.update(part.x)
        squared_error += float((part.x - x_hat).double().square().sum())
        norm = part.x.norm(dim=1)
        usable = norm > TINY
        ratios += float((x_hat.norm(dim=1)[usable] / norm[usable]).double().sum())
        norms += int(usable.sum())
        active += len(latents.indices)
    return replace(
        found,
        both=counts[0],
        only_latent=counts[1],
        only_truth=counts[2],
        n_samples=len(sample),
        l0=active / len(sample),
        true_l0=len(sample.features.indices) / len(sample),
        shrinkage=ratios / norms if norms else float("nan"),
        explained_variance=1 - fvu(squared_error, moments.total_variance),
    )
