"""Which latents to show first: a stated rule instead of a choice by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from saekit import settings
from saekit.activations import ActivationStore
from saekit.analysis.labels import N_WORDS, Labels, words
from saekit.analysis.latents import LatentActivations, display_strings
from saekit.identity import Identity
from saekit.results import Result

WORD = 3  # letters from which a token counts as a word
ALIKE = 4  # letters by which words begin alike ("church", "churches"), fewer if one is shorter
WHOLE = 0.75  # least share of whole words in the evidence
DENSEST = 2.0  # greatest density, over the mean of the dictionary
AGREEING = 2  # label words that must be among the top tokens, and that must begin differently
APOSTROPHES = ("'", "\u2019")


@dataclass(frozen=True, eq=False, repr=False)
class Readability(Result):
    """The latents of a dictionary, those to show first on top.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    frame : DataFrame
        One row per latent, greatest score first: `latent`, `label`, `n_active` and `density` (tokens
        on which it is active, and their share), `whole` (share of whole words in its strongest
        evidence), `agreeing` (number of label words among its top tokens), `different` (label words
        that begin differently), `lift` (how many times more frequent the tokens of its strongest
        evidence are there than in the text, as a geometric mean), `rebuilt` where it was given, and
        `score` (NaN if the rule leaves the latent out; these come last).
    """

    dictionary: Identity
    frame: pd.DataFrame

    @property
    def scores(self) -> np.ndarray:
        """Score of each latent, in the order of the dictionary; NaN if the rule leaves it out."""
        return np.asarray(self.frame.set_index("latent")["score"].sort_index())

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `width`, `n_readable`, and `first`, the label on top."""
        readable = self.frame["score"].notna()
        return {
            "dictionary": str(self.dictionary),
            "width": len(self.frame),
            "n_readable": int(readable.sum()),
            "first": str(self.frame["label"].iat[0]) if readable.any() else None,
        }


def measure_readability(
    labels: Labels,
    activations: LatentActivations,
    store: ActivationStore,
    rebuilt: Sequence[float] | np.ndarray | Tensor | None = None,
    *,
    min_active: int = 100,
) -> Readability:
    """Rank latents for showing: specific, coherently labelled and well rebuilt ones first.

    A latent is left out unless it is active on enough tokens to judge it and at most twice as
    often as the mean latent of the dictionary; at least three quarters of its strongest evidence
    are whole words; and two words of its label begin differently, and two are among its top tokens,
    so that its strongest activations and its means agree. Those that remain are ranked by
    their weaker side: the percentile of their lift, or of `rebuilt`.

    Parameters
    ----------
    labels : Labels
        Labels of the latents.
    activations : LatentActivations
        Activations of the same dictionary, collected over `store`.
    store : ActivationStore
        Holds the tokens.
    rebuilt : sequence of float, array or Tensor, optional
        How well each latent is rebuilt, greater being better, such as the cosine of its direction
        with what its meta-latents rebuild, `[width]`.
    min_active : int
        Tokens on which a latent must be active.

    Raises
    ------
    ValueError
        If labels, activations and store do not belong together, or `rebuilt` is not one finite
        number per latent.

    Notes
    -----
    Ours: Leask et al. (ICLR 2025) do not state how their examples were chosen. A whole word has at
    least three letters, begins after a space or with a capital, and is most often not continued by
    the next token, so the rule is meant for languages written with spaces.

    Examples
    --------
    >>> of_large = saekit.collect(large, store)
    >>> ranked = measure_readability(labels, of_large, store, min_active=20)
    >>> ranked.frame[["latent", "label", "lift", "score"]].round(2).head(2)
       latent          label  lift  score
    0       9   stone · moon  4.05   1.00
    1       8  river · stone  3.82   0.83
    """
    min_active = settings.whole("min_active", min_active)
    activations.dictionary.require(labels.dictionary, "The dictionary of the activations")
    activations.require_store(store)
    labels.require_store(store)
    sides = {"lift": _lift(labels, store)}
    if rebuilt is not None:
        sides["rebuilt"] = np.asarray(rebuilt, dtype=float)
        if sides["rebuilt"].shape != (len(labels),) or not np.isfinite(sides["rebuilt"]).all():
            raise ValueError(
                f"rebuilt must be {len(labels)} finite numbers, one per latent, found shape "
                f"{sides['rebuilt'].shape}."
            )
    vocabulary = display_strings(labels.vocabulary, range(labels.tokens.shape[1]))
    named = [_label_words(labels, latent, vocabulary) for latent in range(len(labels))]
    top = [{token.strip().casefold() for token in tokens} for tokens in labels.frame["top_tokens"]]
    frame = pd.DataFrame(
        {
            "latent": range(len(labels)),
            "label": labels.frame["label"],
            "n_active": activations.counts.numpy(),
            "density": activations.density.numpy(),
            "whole": labels.tokens @ _whole_words(store, vocabulary).astype(float),
            "agreeing": [len(own & found) for own, found in zip(named, top, strict=True)],
            "different": [_n_different(own) for own in named],
            **sides,
        }
    )
    shown = (
        (frame["n_active"] >= min_active)
        & (frame["density"] <= DENSEST * frame["density"].mean())
        & (frame["whole"] >= WHOLE)
        & (frame[["agreeing", "different"]] >= AGREEING).all(axis=1)
    )
    frame["score"] = frame.loc[shown, list(sides)].rank(pct=True).min(axis=1)
    frame = frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    return Readability(labels.dictionary, frame)


def _lift(labels: Labels, store: ActivationStore) -> np.ndarray:
    """Geometric mean of the tokens' shares in the evidence over those in the text, `[width]`."""
    evidence = labels.tokens
    ids = store.tokens.flatten()[store.positions].numpy()
    usual = np.bincount(ids, minlength=evidence.shape[1]) / len(ids)
    rows = np.repeat(np.arange(evidence.shape[0]), np.diff(evidence.indptr))
    logs = evidence.data * np.log(evidence.data / usual[evidence.indices])
    lift: np.ndarray = np.exp(np.bincount(rows, logs, minlength=evidence.shape[0]))
    lift[labels.frame["dead"].to_numpy()] = np.nan
    return lift


def _label_words(labels: Labels, latent: int, vocabulary: Sequence[str]) -> set[str]:
    """The different words of a label, without capitals."""
    part = slice(labels.tokens.indptr[latent], labels.tokens.indptr[latent + 1])
    ids, shares = labels.tokens.indices[part].tolist(), labels.tokens.data[part].tolist()
    return {word.casefold() for word in words(ids, shares, vocabulary)[:N_WORDS]}


def _n_different(named: set[str]) -> int:
    """How many words there are, not counting those that begin alike."""
    letters = min([ALIKE, *map(len, named)])
    return len({word[:letters] for word in named})


def _whole_words(store: ActivationStore, vocabulary: Sequence[str]) -> np.ndarray:
    """Which tokens are whole words, Boolean `[vocabulary]`."""
    continues = np.array([token[:1].isalpha() or token[:1] in APOSTROPHES for token in vocabulary])
    before, after = store.tokens[:, :-1].flatten().numpy(), store.tokens[:, 1:].flatten().numpy()
    n = np.bincount(before, minlength=len(vocabulary))
    n_continued = np.bincount(before[continues[after]], minlength=len(vocabulary))
    begins = [
        token.strip().isalpha()
        and len(token.strip()) >= WORD
        and (token[0].isspace() or not token[0].islower())
        for token in vocabulary
    ]
    return np.array(begins) & (2 * n_continued <= n)
