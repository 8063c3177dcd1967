"""The uniqueness of a family: every width with its other seeds and with the next width, beside nulls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import Activations
from saekit.analysis.nulls import NULLS, null_dictionary
from saekit.analysis.uniqueness.matching import MatchedActivations, Matching, match_latents
from saekit.analysis.uniqueness.seeds import Uniqueness, UniquenessPass
from saekit.family import Comparison, Family
from saekit.passes import Batch, Tokens, one_pass
from saekit.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class FamilyUniqueness(Result):
    """Matchings between seeds and between neighbouring widths, each beside its nulls.

    Attributes
    ----------
    kind : str
        Kind of the family.
    theta : float
        Cosine from which two matched latents count as the same one.
    results : mapping
        By comparison (`Comparison.label`, such as `"1152, other seed"` or `"1152 → 2304"`) and null
        (`""` for the dictionaries themselves, else `"columns permuted"` or `"random directions"` in
        the place of the second one): the `Matching`. Seeds are compared with the lowest one.
    seeds : mapping
        By width with at least two seeds: the `Uniqueness` of all its seeds, over every pair.
    missing : tuple of int
        Widths without a second seed.
    """

    kind: str
    theta: float
    results: dict[tuple[str, str], Matching]
    seeds: dict[int, Uniqueness]
    missing: tuple[int, ...]
    _plot: ClassVar[str] = "uniqueness_distributions"

    @property
    def compared(self) -> pd.DataFrame:
        """What `results` compares: `comparison`, `null`, `width` and `other`.

        `other` is `"other seed"` or `"next width"`.
        """
        return pd.DataFrame(
            [
                {"comparison": comparison, "null": null, "width": result.a.width}
                | {"other": "other seed" if result.between_seeds else "next width"}
                for (comparison, null), result in self.results.items()
            ]
        )

    @property
    def frame(self) -> pd.DataFrame:
        """One row per latent, comparison and null: `comparison`, `null` and `Matching.frame`."""
        parts = [
            result.frame.assign(comparison=comparison, null=null)
            for (comparison, null), result in self.results.items()
        ]
        frame = pd.concat(parts, ignore_index=True)
        return frame[["comparison", "null", *parts[0].columns.drop(["comparison", "null"])]]

    @property
    def table(self) -> pd.DataFrame:
        """One row per comparison and null, and a row with a note for each width without a second seed.

        Columns: `comparison`, `null`, `seeds` (whether it compares two seeds of one width), and
        from `Matching.summary` `n_a`, `n_b`, `mean_matched_cosine`, `median_matched_cosine`,
        `mean_best_cosine`, `mean_best_cosine_b`, `share_shared`, `share_mutual`,
        `share_same_by_encoder`, `share_shared_both`, with activations `mean_correlation` and
        `share_correlated`, then `gap` and `note`.
        """
        rows = [
            {"comparison": comparison, "null": null, "seeds": result.between_seeds, "note": ""}
            | result.summary
            for (comparison, null), result in self.results.items()
        ]
        rows += [
            {"comparison": f"{width}, other seed", "null": "", "seeds": True, "n_a": width}
            | {"n_b": width, "note": "no second seed"}
            for width in self.missing
        ]
        columns = [
            *("comparison", "null", "seeds", "n_a", "n_b", "mean_matched_cosine", "median_matched_cosine"),
            *("mean_best_cosine", "mean_best_cosine_b", "share_shared", "share_mutual"),
            *("share_same_by_encoder", "share_shared_both", "mean_correlation", "share_correlated", "gap"),
            "note",
        ]
        table = pd.DataFrame(rows)
        return table[[column for column in columns if column in table]]

    @property
    def over_seeds(self) -> pd.DataFrame:
        """One row per width with at least two seeds: `width`, `n_seeds`, and `Uniqueness.summary`."""
        rows = []
        for width, result in self.seeds.items():
            summary = {
                k: v for k, v in result.summary.items() if k not in ("n_dictionaries", "width", "theta")
            }
            rows.append({"width": width, "n_seeds": len(result.dictionaries), **summary})
        return pd.DataFrame(rows)

    @property
    def summary(self) -> dict[str, Any]:
        """The headline numbers.

        `kind`, `theta`, `no_second_seed` (widths), `share_shared` by comparison and by null, and
        `over_seeds`: `Uniqueness.summary` by width.
        """
        shares: dict[str, dict[str, float]] = {}
        for (comparison, null), result in self.results.items():
            shares.setdefault(comparison, {})[null or "measured"] = result.summary["share_shared"]
        return {
            "kind": self.kind,
            "theta": self.theta,
            "no_second_seed": list(self.missing),
            "share_shared": shares,
            "over_seeds": {width: result.summary for width, result in self.seeds.items()},
        }


def family_uniqueness(
    family: Family,
    *,
    theta: float = 0.7,
    activations: Activations | None = None,
    seed: int = 0,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> FamilyUniqueness:
    """Match every width with its other seeds and with the next width, beside two nulls each.

    Parameters
    ----------
    family : Family
        Dictionaries of several widths, with any number of further seeds.
    theta : float
        Cosine from which two matched latents count as the same one, from 0 to 1.
    activations : ActivationStore, Tensor or array, optional
        Tokens on which the activations of matched latents are compared; each dictionary encodes
        them once.
    seed : int
        Seed of the nulls (see `null_dictionary`).
    progress : bool
        Show a progress bar in matched pairs of dictionaries.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        As `measure_uniqueness`.

    Notes
    -----
    See `measure_uniqueness`.

    Examples
    --------
    >>> result = family_uniqueness(family)
    >>> result.summary["share_shared"]["8, other seed"]["measured"]
    1.0
    """
    adding = FamilyUniquenessPass(
        family, theta=theta, seed=seed, progress=progress, allow_mismatch=allow_mismatch
    )
    if activations is None or not adding.dictionaries:  # a single dictionary has nothing to match
        return adding.result
    tokens = one_pass(
        activations,
        adding,
        dictionaries=adding.dictionaries,
        purpose="uniqueness",
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    return adding.finished(tokens)


class FamilyUniquenessPass:
    """`family_uniqueness` as a part of a pass that others share: matched, its activations to be added up.

    Attributes
    ----------
    result : FamilyUniqueness
        Without activations.
    dictionaries : list of Dictionary
        Those that are compared.
    """

    def __init__(
        self,
        family: Family,
        *,
        theta: float = 0.7,
        seed: int = 0,
        progress: bool = False,
        allow_mismatch: bool = False,
    ) -> None:
        theta, seed = settings.cosine("theta", theta), settings.whole("seed", seed, at_least=0)
        seeds = {
            width: UniquenessPass(
                [family.get(width, each) for each in family.seeds(width)],
                theta=theta,
                progress=progress,
                allow_mismatch=allow_mismatch,
            )
            for width in family.widths
            if len(family.seeds(width)) > 1
        }
        comparisons = [*family.comparisons(null=True), *family.comparisons(null=False)]
        self._seeds, self._widths = seeds, dict[str, MatchedActivations]()
        results = {}
        total = len(comparisons) * (1 + len(NULLS))
        with tqdm(total=total, disable=not progress, unit="pair", desc="uniqueness") as bar:
            for comparison in comparisons:
                a, b = comparison.small, comparison.large
                for null in ("", *NULLS):
                    if comparison.null and not null:
                        found = self._with_lowest(comparison, seeds[a.width].result)
                    else:
                        second = null_dictionary(b, null, seed=seed) if null else b
                        found = match_latents(a, second, theta=theta, allow_mismatch=allow_mismatch)
                    results[comparison.label, null] = found
                    bar.update()
                if not comparison.null:
                    self._widths[comparison.label] = MatchedActivations(a, b, results[comparison.label, ""])
        self._comparisons = comparisons
        members = [member for c in comparisons for member in (c.small, c.large)]
        self.dictionaries = list({id(member): member for member in members}.values())
        over = {width: part.result for width, part in seeds.items()}
        self.result = FamilyUniqueness(family.kind, theta, results, over, tuple(family.without_null))

    @staticmethod
    def _with_lowest(comparison: Comparison, found: Uniqueness) -> Matching:
        """The matching of the lowest seed with another one."""
        place = comparison.family.seeds(comparison.small_width).index(comparison.large_key[1])
        return found.matchings[0, place]

    def __call__(self, batch: Batch) -> None:
        """Add a batch."""
        for seeds in self._seeds.values():
            seeds(batch)
        for widths in self._widths.values():
            widths(batch)

    def finished(self, tokens: Tokens) -> FamilyUniqueness:
        """The matchings with the sums, once the pass is over."""
        seeds = {width: part.finished(tokens) for width, part in self._seeds.items()}
        measured = {(label, ""): part.finished(tokens) for label, part in self._widths.items()}
        for comparison in self._comparisons:
            if comparison.null:
                found = self._with_lowest(comparison, seeds[comparison.small_width])
                measured[comparison.label, ""] = found
        return replace(self.result, results=self.result.results | measured, seeds=seeds)
