"""Labels for latents and meta-latents, from data alone: no language model writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, vstack
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.analysis.latents import (
    LatentActivations,
    LogitTable,
    display_strings,
    require_vocabulary,
)
from saekit.analysis.meta.sae import MetaSAE
from saekit.cache import cached
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.results import Result
from saekit.selection import select_latent
from saekit.wording import SEPARATOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS_FROM = 50  # greatest activations that a latent's words are taken from
MEMBERS_FROM = 10  # latents that a meta-latent's words are taken from
N_WORDS = 3  # in a label
LEAST_WORD = 0.25  # weight, relative to the heaviest token, from which words replace punctuation
ENTRIES = 1 << 22  # active entries whose tokens are counted at a time
N_TOKENS = 5  # top tokens, and tokens promoted and suppressed


@dataclass(frozen=True, eq=False, repr=False)
class Labels(Result):
    """A description of every latent of a dictionary, or of every meta-latent.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    frame : DataFrame
        One row per latent: `latent`; `label` (up to three words, or `"dead"`); `dead`;
        `top_tokens` (a tuple, see `label_latents` and `label_meta_latents`) and `lift` (of these taken
        together, NaN without any). With a logit table also `top_logits` and `bottom_logits`
        (tuples of the tokens most promoted and suppressed) and `agrees` (whether one of the top
        tokens is among those promoted, surrounding space aside).
    tokens : csr_array
        The source of the words: the share of each token in the latent's strongest evidence,
        float64 `[width, vocabulary]`. Rows sum to 1; those of dead latents are empty.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    store : str or None
        Content hash of the store that the words come from; None for meta-latents whose latents were
        described from several stores.
    """

    dictionary: Identity
    frame: pd.DataFrame
    tokens: csr_array
    vocabulary: Sequence[str] | PreTrainedTokenizerBase
    store: str | None = None

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return str(self.dictionary)

    def __len__(self) -> int:
        return len(self.frame)

    def of(self, latent: int) -> str:
        """A latent's label.

        Raises
        ------
        TypeError, IndexError
            If the latent is not a whole number, or is out of range.
        """
        return str(self.frame["label"].iat[select_latent(latent, len(self))])

    def require_store(self, store: ActivationStore) -> None:
        """Refuse a store other than the one that the words come from, if that is known.

        Raises
        ------
        ValueError
            If the two stores differ in content, so that the words are those of another text.
        """
        if self.store is not None and self.store != store.content_hash:
            raise ValueError(
                f"The labels of {self.dictionary.described} were taken from the store [{self.store[:8]}], "
                f"but the store [{store.content_hash[:8]}] was given."
            )

    @property
    def summary(self) -> dict[str, Any]:
        """`name`, `width`, `n_dead`, `n_distinct` labels, `median_lift`, `share_agrees` if known.

        The share is that of the latents with top tokens.
        """
        described = self.frame[self.frame["lift"].notna()]
        summary = {
            "name": self.name,
            "width": len(self),
            "n_dead": int(self.frame["dead"].sum()),
            "n_distinct": int(self.frame["label"].nunique()),
            "median_lift": float(described["lift"].median()),
        }
        if "agrees" in self.frame:
            summary["share_agrees"] = float(described["agrees"].mean())
        return summary


# ---------------------------------------------------------------------- latents


@cached
def label_latents(
    dictionary: Dictionary,
    activations: LatentActivations,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    logits: LogitTable | None = None,
    *,
    min_count: int = 5,
    progress: bool = False,
) -> Labels:
    """Describe every latent of a dictionary by the tokens it is active on and those it promotes.

    A latent's words are the tokens of its 50 greatest activations, by how much they contribute to
    their sum (see `words` for what is left out). Its top tokens are those of greatest mean activation
    over all their occurrences (`top_tokens`); their lift is the share of their occurrences with the
    latent active, over its density.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary whose latents to describe.
    activations : LatentActivations
        Activations of this dictionary, collected over `store`.
    store : ActivationStore
        Holds the tokens.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    logits : LogitTable, optional
        Logit table of this dictionary.
    min_count : int
        Leave tokens that occur less often out of the top tokens: their means are noise.
    progress : bool
        Show a progress bar in latents.

    Raises
    ------
    ValueError
        If activations or logits are those of another dictionary, the activations were collected
        over another store, or the vocabulary is shorter than the store's token ids reach.

    Notes
    -----
    In Leask et al. (ICLR 2025) a language model writes the descriptions; these are our own and need none.

    Examples
    --------
    >>> labels = label_latents(dictionary, collected, store, vocabulary)
    >>> labels.of(0)
    'king'
    """
    min_count = settings.whole("min_count", min_count, at_least=0)
    activations.dictionary.require(dictionary.identity, "The dictionary of the activations")
    if logits is not None:
        logits.dictionary.require(dictionary.identity, "The dictionary of the logit table")
    activations.require_store(store)
    tokens = store.tokens.flatten()
    require_vocabulary(vocabulary, int(tokens.max()) + 1)
    evidence = [activations.top(latent, WORDS_FROM) for latent in range(dictionary.width)]
    texts = [
        _text(words(tokens[positions].tolist(), values.tolist(), vocabulary))
        for positions, values in tqdm(evidence, disable=not progress, unit="latent", desc="labels")
    ]
    strongest = by_token(
        np.concatenate([tokens[positions].numpy() for positions, _ in evidence]),
        np.concatenate([values.double().numpy() for _, values in evidence]),
        np.cumsum([0, *(len(values) for _, values in evidence)]),
        len(vocabulary),
    )
    top, lift = _top_tokens(activations, store, len(vocabulary), min_count)
    found = _labels(dictionary.identity, texts, shares(strongest), top, lift, vocabulary, logits)
    return replace(found, store=store.content_hash)


def words(
    ids: Iterable[int], weights: Iterable[float], vocabulary: Sequence[str] | PreTrainedTokenizerBase
) -> list[str]:
    """Words to name a latent by: tokens by the sum of their weights, greatest first.

    Tokens that differ only in surrounding space count as one word; ties go by the alphabet.
    Spaces, punctuation and fragments (which neither follow a space nor begin with a capital or a
    digit) are left out, unless every word weighs less than a quarter of the heaviest token.

    Examples
    --------
    >>> words([0, 1, 0], [1.0, 3.0, 0.5], vocabulary)
    ['queen', 'king']
    >>> words([0, 1, 2], [5.0, 3.0, 4.0], [",", " king", "ing"])
    ['king']
    >>> words([0, 1, 2], [5.0, 0.1, 4.0], [",", " king", "ing"])
    [',', 'ing', 'king']
    """
    totals: dict[str, float] = {}
    named: set[str] = set()
    for token, weight in zip(display_strings(vocabulary, list(ids)), weights, strict=True):
        word = _word(token)
        totals[word] = totals.get(word, 0.0) + weight
        if word[:1].isalnum() and (token[0].isspace() or not word[0].islower()):
            named.add(word)
    ordered = sorted(totals, key=lambda word: (-totals[word], word))
    whole = [word for word in ordered if word in named]
    return whole if whole and totals[whole[0]] >= LEAST_WORD * totals[ordered[0]] else ordered


def _top_tokens(
    activations: LatentActivations, store: ActivationStore, n_vocabulary: int, min_count: int
) -> tuple[csr_array, np.ndarray]:
    """Tokens of greatest mean activation of every latent (the means), and their lift together."""
    tokens = store.tokens.flatten()
    occurrences = np.bincount(tokens[store.positions].numpy(), minlength=n_vocabulary)
    offsets, tops, rates = activations.offsets.numpy(), [], []
    # Taken at a time: latents with this many active entries between them.
    limits = np.searchsorted(offsets, np.arange(ENTRIES, offsets[-1] + ENTRIES, ENTRIES))
    limits = np.unique([0, *np.minimum(limits, activations.width), activations.width])
    for first, stop in pairwise(limits.tolist()):
        here = slice(offsets[first], offsets[stop])
        where, within = tokens[activations.positions[here]].numpy(), offsets[first : stop + 1] - here.start
        mean = by_token(where, activations.values[here].double().numpy(), within, n_vocabulary)
        n_active = by_token(where, np.ones(len(where)), within, n_vocabulary)
        mean.data /= occurrences[mean.indices]
        frequent = occurrences[mean.indices] >= min_count
        chosen = _largest(np.where(frequent, mean.data, -np.inf), mean.indptr, N_TOKENS)
        chosen &= frequent
        with np.errstate(invalid="ignore"):  # 0 / 0 where a latent has no top tokens
            rates.append(_row_sums(n_active, chosen) / _row_sums(mean, chosen, occurrences[mean.indices]))
        tops.append(_where(mean, chosen))
    with np.errstate(invalid="ignore"):
        lift: np.ndarray = np.concatenate(rates) / activations.density.numpy()
    return vstack(tops, format="csr"), lift


# ---------------------------------------------------------------------- meta-latents


def label_meta_latents(
    meta: MetaSAE,
    labels: Sequence[Labels],
    logits: LogitTable | None = None,
    *,
    progress: bool = False,
) -> Labels:
    """Describe every meta-latent by the tokens of its latents and those its own direction promotes.

    Words and top tokens are those with the greatest share in the evidence of the 10 latents that
    the meta-latent is most active on, weighted by its activation on them. Their lift is their
    share, over that in the evidence of all latents taken equally.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    labels : sequence of Labels
        Labels of the latents of each of its bases, in order.
    logits : LogitTable, optional
        Logit table of `meta.dictionary`.
    progress : bool
        Show a progress bar in meta-latents.

    Raises
    ------
    ValueError
        If the labels are not those of the bases in their order, or the logits are those of another
        dictionary.

    Notes
    -----
    The dashboard published with Leask et al. (ICLR 2025) describes a meta-latent, in a language
    model's words, by what its five most active latents have in common; the weighting is ours.

    Examples
    --------
    >>> label_meta_latents(meta, [labels]).of(1)
    'queen · king · river'
    """
    require_labels(meta, labels)
    if logits is not None:
        logits.dictionary.require(meta.identity, "The dictionary of the logit table")
    members = meta.decomposition.transpose()
    offsets = members.offsets.numpy()
    activation = csr_array(
        (members.values.double().numpy(), members.indices.numpy(), offsets), (meta.width, len(meta.rows))
    )
    activation = _where(activation, _largest(activation.data, offsets, MEMBERS_FROM))
    of_latents = vstack([of_base.tokens for of_base in labels], format="csr")
    tokens = shares(activation @ of_latents)
    chosen = _largest(tokens.data, tokens.indptr, N_TOKENS)
    usual = shares(csr_array(np.ones((1, len(meta.rows)))) @ of_latents).toarray()[0]
    with np.errstate(invalid="ignore"):  # 0 / 0 where a meta-latent has no tokens
        lift = _row_sums(tokens, chosen) / _row_sums(tokens, chosen, usual[tokens.indices])
    vocabulary = labels[0].vocabulary
    bar = tqdm(range(meta.width), disable=not progress, unit="meta-latent", desc="labels")
    texts = []
    for row in bar:
        ids, weights = _row(tokens, row)
        texts.append(_text(words(ids.tolist(), weights.tolist(), vocabulary)))
    found = _labels(meta.identity, texts, tokens, _where(tokens, chosen), lift, vocabulary, logits)
    stores = {of_base.store for of_base in labels}
    return replace(found, store=stores.pop() if len(stores) == 1 else None)


def require_labels(meta: MetaSAE, labels: Sequence[Labels]) -> None:
    """Refuse labels that are not those of a meta-SAE's bases.

    Raises
    ------
    ValueError
        If there is not one for each base, in order.

    Examples
    --------
    >>> require_labels(meta, [labels])  # the labels of the one base that meta has
    >>> require_labels(meta, [])
    Traceback (most recent call last):
        ...
    ValueError: meta 6 (k 2) of relu 12 (seed 0) has 1 bases, found labels of ...
    """
    if len(labels) != len(meta.bases):
        raise ValueError(f"{meta.name} has {len(meta.bases)} bases, found labels of {len(labels)}.")
    for place, (base, of_base) in enumerate(zip(meta.bases, labels, strict=True)):
        of_base.dictionary.require(base, f"The dictionary of labels {place}")


# ---------------------------------------------------------------------- helpers


def _labels(
    dictionary: Identity,
    texts: list[str],
    tokens: csr_array,
    top: csr_array,
    lift: np.ndarray,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    logits: LogitTable | None,
) -> Labels:
    top_tokens = [
        display_strings(vocabulary, ids[np.argsort(-weights, kind="stable")].tolist())
        for ids, weights in (_row(top, row) for row in range(len(texts)))
    ]
    frame = pd.DataFrame(
        {
            "latent": range(len(texts)),
            "label": texts,
            "dead": np.diff(tokens.indptr) == 0,
            "top_tokens": [tuple(found) for found in top_tokens],
            "lift": lift,
        }
    )
    if logits is not None:
        promoted, suppressed = (
            [tuple(display_strings(logits.vocabulary, ids[:N_TOKENS])) for ids in side.tolist()]
            for side in (logits.top_ids, logits.bottom_ids)
        )
        agrees = [
            not set(map(_word, own)).isdisjoint(map(_word, pushed))
            for own, pushed in zip(top_tokens, promoted, strict=True)
        ]
        frame = frame.assign(top_logits=promoted, bottom_logits=suppressed, agrees=agrees)
    return Labels(dictionary, frame, tokens, vocabulary)


def _text(found: Sequence[str]) -> str:
    """A label made of words: one line, whatever the tokens are."""
    shown = (word if word.isprintable() and word.strip() else repr(word) for word in found[:N_WORDS])
    return SEPARATOR.join(shown) or "dead"


def _word(token: str) -> str:
    """A token without the space around it, unless there is nothing else."""
    return token.strip() or token


def by_token(ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, n_vocabulary: int) -> csr_array:
    """Values summed by row and token, tokens ascending: `[rows, vocabulary]`.

    Examples
    --------
    >>> by_token(np.array([2, 0, 2]), np.array([1.0, 2.0, 3.0]), np.array([0, 3]), 3).toarray()
    array([[2., 0., 4.]])
    """
    summed = csr_array((values, ids, offsets), (len(offsets) - 1, n_vocabulary), copy=True)
    summed.sum_duplicates()
    return summed


def shares(matrix: csr_array) -> csr_array:
    """Rows divided by their sums; empty rows stay empty.

    Examples
    --------
    >>> shares(csr_array([[1.0, 3.0], [0.0, 0.0]])).toarray()
    array([[0.25, 0.75],
           [0.  , 0.  ]])
    """
    shares = csr_array(matrix)
    shares.sort_indices()
    shares.data = shares.data / np.repeat(shares.sum(1), np.diff(shares.indptr))
    return shares


def _row(matrix: csr_array, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of a row."""
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[part], matrix.data[part]


def _largest(values: np.ndarray, offsets: np.ndarray, n: int) -> np.ndarray:
    """Which entries are among the `n` largest of their row, Boolean `[entries]`; the first of equals."""
    counts = np.diff(offsets)
    order = np.lexsort((-values, np.repeat(np.arange(len(counts)), counts)))
    rank = np.arange(len(values)) - np.repeat(offsets[:-1], counts)
    largest = np.zeros(len(values), dtype=bool)
    largest[order[rank < n]] = True
    return largest


def _where(matrix: csr_array, keep: np.ndarray) -> csr_array:
    """The entries for which the Boolean `keep` `[entries]` holds."""
    offsets = np.concatenate([[0], np.cumsum(keep)])[matrix.indptr]
    return csr_array((matrix.data[keep], matrix.indices[keep], offsets), matrix.shape)


def _row_sums(matrix: csr_array, keep: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Sums by row of the entries to keep, of the matrix's own or other values, `[rows]`."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[keep]
    values = matrix.data if values is None else values
    return np.bincount(rows, values[keep], minlength=matrix.shape[0])
