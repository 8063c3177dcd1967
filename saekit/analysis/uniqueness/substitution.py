"""Substitution: what it costs to put the matched latent of another seed in a latent's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from saekit import settings
from saekit.activations import Activations
from saekit.agreement import check_agreement
from saekit.analysis.stitching.mixtures import LatentSums
from saekit.analysis.uniqueness.matching import STATUSES, Matching, Products
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity
from saekit.passes import Measured, Tokens, one_pass
from saekit.results import Result

NEIGHBOURS = 20  # latents of nearest density that a control is drawn from


@dataclass(frozen=True, eq=False, repr=False)
class Substitution(Measured, Result):
    """The change in a dictionary's error with a latent taken out, replaced by its match, or by a control.

    Attributes
    ----------
    a, b : Identity
        The dictionary, and the one that the substitutes come from.
    theta : float
        Cosine from which two matched latents count as the same one.
    tokens : Tokens
        The tokens it was measured on.
    frame : DataFrame
        One row per matched pair that fires: `latent`, `match`, `control` (a random other latent of `b` of
        about the match's density), `matched_cosine`, `status`, `density`, `density_match`,
        `density_control`; the change in MSE with the latent taken out (`removed`), or with the match or
        the control in its place (`substituted`, `substituted_control`).
    """

    a: Identity
    b: Identity
    theta: float
    tokens: Tokens
    frame: pd.DataFrame
    _plot: ClassVar[str] = "substitution_curve"

    @property
    def by_status(self) -> pd.DataFrame:
        """Substitution by status of the pair, and over all of them.

        Returns
        -------
        DataFrame
            `status`, `n_latents`; `quality` and `quality_control` (share of the error that taking the
            latents out, one at a time, adds that the substitutes save: 1 if they do as well as the
            latents themselves, 0 if as badly as nothing, negative if worse, NaN if taking the latents
            out adds none), `share_better` (pairs whose match is better than the control) and
            `share_as_good` (pairs whose match keeps the error as it is, or lowers it).
        """
        rows = []
        for status in (*STATUSES, "all"):
            part = self.frame if status == "all" else self.frame[self.frame["status"] == status]
            removed = part["removed"].sum()
            row = {"status": status, "n_latents": len(part)}
            for name, column in (("quality", "substituted"), ("quality_control", "substituted_control")):
                row[name] = 1 - part[column].sum() / removed if removed > 0 else np.nan
            row["share_better"] = (part["substituted"] < part["substituted_control"]).mean()
            row["share_as_good"] = (part["substituted"] <= 0).mean()
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def summary(self) -> dict[str, Any]:
        """`a`, `b`, `theta`, `n_latents`, and `quality`, `quality_control`, `share_better` over all pairs.

        `quality_shared` and `quality_alone` are the quality of pairs of these statuses.
        """
        by_status = self.by_status.set_index("status")
        everything = by_status.loc["all"]
        return {
            "a": str(self.a),
            "b": str(self.b),
            "theta": self.theta,
            "n_latents": len(self.frame),
            **{name: float(everything[name]) for name in ("quality", "quality_control", "share_better")},
            "quality_shared": float(by_status.loc[STATUSES[0], "quality"]),
            "quality_alone": float(by_status.loc[STATUSES[2], "quality"]),
        }


@cached
def measure_substitution(
    a: Dictionary,
    b: Dictionary,
    matching: Matching,
    activations: Activations,
    *,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> Substitution:
    """Put the matched latent of `b` in the place of each latent of `a`, one at a time.

    One pass for all latents: with the residual `r = x - x_hat` of `a`, taking out `f w` and putting in
    `g v` changes the squared error by exactly
    `f^2 |w|^2 + 2 f <w, r> + g^2 |v|^2 - 2 g <v, r> - 2 f g <w, v>`. Sums are float64.

    Parameters
    ----------
    a, b : Dictionary
        Latents of both must not depend on each other.
    matching : Matching
        Of these two, measured with activations, which give the densities.
    activations : ActivationStore, Tensor or array
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    seed : int
        Seed of the controls.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If a dictionary is TopK, the matching is of other dictionaries or has no densities, or the inputs
        do not belong together.

    Notes
    -----
    The substitution test of "Benchmarking Cross-Seed Feature Correspondence" (2026), here in closed form.
    `measure_effects` measures the same substitution in cross-entropy.

    Examples
    --------
    >>> matching = saekit.match_latents(small, other_seed, activations=x)
    >>> result = measure_substitution(small, other_seed, matching, x)
    >>> result.summary["n_latents"], result.summary["share_better"]
    (8, 0.75)
    """
    seed = settings.whole("seed", seed, at_least=0)
    check_pair(a, b, matching, "Substituting latents")
    check_agreement(activations=activations, dictionaries=[a, b], allow_mismatch=allow_mismatch)
    pairs = matching.pairs
    frame = pd.DataFrame(
        {
            "latent": pairs["latent"],
            "match": pairs["match"],
            "control": equal_density(matching, seed),
            "matched_cosine": pairs["matched_cosine"],
            "status": pairs["status"],
            "density": pairs["density"],
        }
    )
    of_b = matching.frame_b["density"].to_numpy()
    own, other = LatentSums(a, a), LatentSums(b, a)
    columns = {"": "match", "_control": "control"}
    products = {}
    for suffix, column in columns.items():
        frame[f"density_{column}"] = of_b[frame[column]]
        place = np.full(a.width, -1)
        place[frame["latent"]] = frame[column]
        products[suffix] = Products(a, b, torch.from_numpy(place))
    tokens = one_pass(
        activations,
        own,
        other,
        *products.values(),
        dictionaries=[a, b],
        purpose="substitution",
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    taken_out = ((own.power + 2 * own.overlap).sum(0) / tokens.n_tokens).numpy()[frame["latent"]]
    put_in = ((other.power - 2 * other.overlap).sum(0) / tokens.n_tokens).numpy()
    frame["removed"] = taken_out
    latents = torch.from_numpy(frame["latent"].to_numpy(copy=True))
    for suffix, column in columns.items():
        partners = torch.from_numpy(frame[column].to_numpy(copy=True))
        inner = torch.linalg.vecdot(a.W_dec[latents].cpu().double(), b.W_dec[partners].cpu().double()).numpy()
        shared = products[suffix].total.numpy()[frame["latent"]] / tokens.n_tokens
        frame[f"substituted{suffix}"] = taken_out + put_in[frame[column]] - 2 * inner * shared
    alive = (frame["density"] > 0).to_numpy()
    return Substitution(a.identity, b.identity, matching.theta, tokens, frame[alive].reset_index(drop=True))


def check_pair(a: Dictionary, b: Dictionary, matching: Matching, purpose: str) -> None:
    """Refuse dictionaries that a matching is not of, that cannot exchange latents, or without densities.

    Examples
    --------
    >>> check_pair(small, other_seed, saekit.match_latents(small, other_seed, activations=x), "This")
    """
    require_dictionaries(a=a, b=b)
    matching.a.require(a.identity, "The matching's first dictionary")
    matching.b.require(b.identity, "The matching's second dictionary")
    for dictionary in (a, b):
        dictionary.require_independent(purpose)
    if "density" not in matching.frame:
        raise ValueError(f"{purpose} needs densities for the controls: match the latents with activations.")


def equal_density(matching: Matching, seed: int) -> np.ndarray:
    """For each matched pair, a random other latent of the second dictionary of about the match's density.

    It is drawn from the `NEIGHBOURS` nearest in density, dead latents left out.

    Examples
    --------
    >>> matching = saekit.match_latents(small, other_seed, activations=x)
    >>> bool((equal_density(matching, 0) != matching.pairs["match"]).all())
    True
    """
    density = matching.frame_b["density"].to_numpy()
    order = np.argsort(density, kind="stable")
    order = order[density[order] > 0]
    if len(order) < 2:
        raise ValueError(f"A control needs at least two living latents, found {len(order)}.")
    random, controls = np.random.default_rng(seed), []
    for match in matching.pairs["match"]:
        place = int(np.searchsorted(density[order], density[match]))
        start = min(max(0, place - NEIGHBOURS // 2), max(0, len(order) - NEIGHBOURS - 1))
        near = order[start : start + NEIGHBOURS + 1]
        controls.append(random.choice(near[near != match]))
    return np.array(controls)
