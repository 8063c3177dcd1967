"""Published numbers for a profile's SAEs beside the ones found here.

A profile's `checks` name the dictionaries to look at (`Subject`) and, under `expected`, one entry for
each number of `MEASURES`: its description, the published value, the bounds within which a value
agrees, and the source.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from saekit.analysis import (
    MetaSAE,
    adjacency_overlap,
    best_matches,
    cosine_distributions,
    meta_baselines,
    meta_sae,
)
from saekit.convert import Conversion, as_jumprelu
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.files import home
from saekit.loading.check_sae import EXPLAINED_VARIANCE_TOLERANCE, L0_TOLERANCE, check_sae
from saekit.loading.names import load_family, open_sae
from saekit.series.profiles import Profile, Series, build

COLUMNS = ["what", "paper", "low", "high", "found", "holds", "source"]


@dataclass(frozen=True)
class Subject:
    """The dictionaries that the numbers are about.

    Parameters
    ----------
    width, small : int
        Width of the SAE that is decomposed, and of the one that its meta-latents are compared with.
    narrow : sequence of int
        Widths of the SAEs whose latents stand in for meta-latents.
    latent : int
        The latent whose decomposition is published.
    released : str
        The meta-SAE that the authors released, as for `open_sae`.
    theta : float
        Cosine under which a latent is novel.
    """

    width: int
    small: int
    narrow: Sequence[int]
    latent: int
    released: str
    theta: float = 0.7


class Findings:
    """The measurements for the checks, each made once, when it is asked for."""

    def __init__(self, series: Series, subject: Subject) -> None:
        self.series, self.subject = series, subject

    @cached_property
    def family(self) -> Family:
        """The published SAEs."""
        return published(self.series)

    @cached_property
    def base(self) -> Dictionary:
        """The SAE that is decomposed."""
        return self.family[self.subject.width]

    @cached_property
    def meta(self) -> MetaSAE:
        """A meta-SAE trained on all of its directions, by the recipe of the released weights."""
        return meta_sae(self.base, folder=home() / "meta", progress=self.series.progress)

    @cached_property
    def meta_summary(self) -> dict[str, Any]:
        """The meta-SAE's headline numbers."""
        return self.meta.summary

    @cached_property
    def variants(self) -> pd.Series:
        """Explained variance by decoder and encoder, coefficients not negative."""
        narrow = [self.family[width] for width in self.subject.narrow]
        frame = meta_baselines(self.meta, narrow, progress=self.series.progress).frame
        return frame[~frame["signed"]].set_index(["variant", "encoder"])["explained_variance"]

    @cached_property
    def close(self) -> pd.Series:
        """Share of meta-latents with a latent within theta, by the dictionary it is in."""
        table = cosine_distributions(self.meta, self.small, theta=self.subject.theta).table
        return table[table["panel"] == "meta-latents"].set_index("nearest_in")["share_above_theta"]

    @cached_property
    def small(self) -> Dictionary:
        """The SAE that meta-latents are compared with."""
        return self.family[self.subject.small]

    @cached_property
    def novel(self) -> pd.Series:
        """Share of novel latents of the larger SAE, by its width."""
        cosines = {
            pair.large_width: best_matches(pair.small, pair.large).cosine
            for pair in self.family.comparisons(null=False)
        }
        return pd.Series(
            {width: float((c < self.subject.theta).double().mean()) for width, c in cosines.items()}
        )

    @cached_property
    def released(self) -> Conversion:
        """The released meta-SAE, which comes without its threshold, on the SAE's directions."""
        source = self.series.profile.local(self.subject.released)
        return as_jumprelu(open_sae(source), self.base.W_dec)

    @cached_property
    def decomposition(self) -> Sequence[float]:
        """The latent's activations of released meta-latents, strongest first."""
        latent = self.subject.latent
        active = self.released.dictionary.encode_sparse(self.base.W_dec[latent : latent + 1])
        return sorted(active.values.tolist(), reverse=True)


MEASURES: dict[str, Callable[[Findings], float]] = {
    "meta_l0": lambda f: f.meta_summary["l0"],
    "meta_explained_variance": lambda f: f.meta_summary["explained_variance"],
    "released_l0": lambda f: f.released.summary["l0_after"],
    "released_explained_variance": lambda f: 1 - f.released.summary["fvu_after"],
    "meta_over_refit": lambda f: f.variants["meta-SAE", "own"] - f.variants["nearest small latents", "refit"],
    "refit_over_kept": lambda f: (
        f.variants["nearest small latents", "refit"] - f.variants["nearest small latents", "kept"]
    ),
    "kept_over_random": lambda f: (
        f.variants["nearest small latents", "kept"] - f.variants["random directions", "kept"]
    ),
    "meta_latents_close_in_small": lambda f: f.close[f.small.name],
    "meta_latents_close_in_base": lambda f: f.close[f.base.name],
    "adjacency_overlap": lambda f: adjacency_overlap(f.meta, f.small).summary["overlap"],
    "novel_share": lambda f: f.novel.median(),
    "latent_n_meta_latents": lambda f: len(f.decomposition),
    "latent_strongest": lambda f: max(f.decomposition, default=math.nan),
    "latent_weakest": lambda f: min(f.decomposition, default=math.nan),
}


@dataclass(frozen=True)
class Expected:
    """A published number, and the bounds within which a value found here agrees with it.

    Parameters
    ----------
    measure : str
        One of `MEASURES`.
    what : str
        Its description, for the table.
    paper : float or str
        The published value.
    source : str
        The source.
    low, high : float, optional
        The least and the greatest value that agrees.
    """

    measure: str
    what: str
    paper: float | str
    source: str
    low: float | None = None
    high: float | None = None

    def agrees(self, found: float) -> bool:
        """Whether it is a number between the bounds."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= found <= high


def expectations(profile: Profile) -> tuple[Subject, list[Expected]] | None:
    """The checks of a profile; None if it has none.

    Raises
    ------
    ValueError
        If a key or a measure is unknown, or a key is missing.
    """
    if not profile.checks:
        return None
    where = f"{profile.file}, checks"
    subject = build(Subject, {k: v for k, v in profile.checks.items() if k != "expected"}, where)
    expected = [build(Expected, entry, f"{where}, expected") for entry in profile.checks.get("expected", ())]
    if unknown := sorted({entry.measure for entry in expected} - set(MEASURES)):
        raise ValueError(f"{where}: unknown measure {', '.join(unknown)}; expected {', '.join(MEASURES)}.")
    return subject, expected


def published(series: Series) -> Family:
    """The published SAEs: the members that the profile's first family does not train itself."""
    plan = next(iter(series.profile.families.values()))
    return load_family([series.profile.local(source) for source in plan.sources])


def recorded(series: Series) -> pd.DataFrame:
    """Every published SAE beside its record (`check_sae`), one at a time in memory.

    Returns
    -------
    DataFrame
        `what`, `paper` (the recorded value), `low` and `high` (the bounds within which a number
        agrees), `found`, `holds`, `source`.
    """
    rows = []
    for member in published(series):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table shows it
            frame = check_sae(member, series.held_out).frame
        for what, row in frame.iterrows():
            paper = row["recorded"]
            if what in ("l0", "explained_variance"):
                slack = L0_TOLERANCE * paper if what == "l0" else EXPLAINED_VARIANCE_TOLERANCE
                bounds = [paper - slack, paper + slack]
            else:
                bounds = [None, None]
            values = [f"{member.name}: {what}", _say(paper), *bounds, _say(row["found"]), row["agrees"]]
            rows.append([*values, "recorded with the SAE"])
    return pd.DataFrame(rows, columns=COLUMNS)


def measured(series: Series) -> pd.DataFrame:
    """The profile's expected numbers beside those found here.

    Returns
    -------
    DataFrame
        As for `recorded`; empty if the profile expects nothing.

    Raises
    ------
    ValueError
        As `expectations`.
    """
    rows = []
    if asked := expectations(series.profile):
        subject, expected = asked
        findings = Findings(series, subject)
        for entry in tqdm(expected, unit="check", disable=not series.progress):
            found = float(MEASURES[entry.measure](findings))
            bounds = [entry.low, entry.high]
            rows.append([entry.what, entry.paper, *bounds, found, entry.agrees(found), entry.source])
    return pd.DataFrame(rows, columns=COLUMNS)


def _say(value: Any) -> Any:
    """Weight processing as the flags that are on; anything else as it is."""
    return ", ".join(name for name in value if value[name]) or "none" if isinstance(value, dict) else value
