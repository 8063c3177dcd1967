"""Whether the tokens of meta-latents tell them apart, without a language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, diags_array
from tqdm.auto import tqdm

from saekit import settings
from saekit.analysis.labels import Labels
from saekit.analysis.meta.latents import decomposition_matrix
from saekit.analysis.meta.sae import MetaSAE
from saekit.identity import Identity
from saekit.results import Result

BLOCK = 1024  # latents that are asked about at once


@dataclass(frozen=True, eq=False, repr=False)
class MultipleChoice(Result):
    """Whether tokens tell a latent's own meta-latent from others.

    Attributes
    ----------
    dictionary, meta : Identity
        The dictionary whose latents are asked about, and the meta-SAE.
    n_options : int
        Meta-latents to choose from, one of them the latent's own.
    n_left_out : int
        Latents without a question: dead, without a meta-latent, the only one that has it, or with
        too few distractors.
    frame : DataFrame
        One row per latent asked about: `latent`, `meta_latent` (its strongest), `activation`,
        `n_others` (latents that this is told from), `similarity` (with the latent), `best_other`
        (the greatest similarity with a distractor), `right` (1, or 0, or one over the number of
        options that tie at the top).
    null : DataFrame
        The same with memberships shuffled among the latents.
    """

    dictionary: Identity
    meta: Identity
    n_options: int
    n_left_out: int
    frame: pd.DataFrame
    null: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`accuracy` and `accuracy_null`, `standard_error` and `standard_error_null`, `chance`.

        Also `n_options`, `n_latents` and `n_left_out`. Answers about one meta-latent depend on
        each other, so the standard error is that of a sample of meta-latents, not of latents.
        """
        return {
            "accuracy": float(self.frame["right"].mean()),
            "standard_error": _clustered_error(self.frame),
            "accuracy_null": float(self.null["right"].mean()),
            "standard_error_null": _clustered_error(self.null),
            "chance": 1 / self.n_options,
            "n_options": self.n_options,
            "n_latents": len(self.frame),
            "n_left_out": self.n_left_out,
        }


def multiple_choice_test(
    meta: MetaSAE,
    labels: Labels,
    *,
    base: int = -1,
    n_options: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> MultipleChoice:
    """Ask of every latent which of several meta-latents is its own, judging by tokens alone.

    A latent stands for the distribution of tokens that its label comes from (`Labels.tokens`),
    weighted by inverse document frequency (the logarithm of the number of
    latents over those that have the token) and scaled to norm 1. A meta-latent is the sum of its
    latents' weighted distributions times its activations on them, with the latent in question
    left out. The answer is the option of greatest cosine; ties share the point.

    Parameters
    ----------
    meta : MetaSAE
        The meta-SAE.
    labels : Labels
        Labels of the base's latents.
    base : int
        Place in `meta.bases` of the dictionary to ask about; its latents alone describe the
        meta-latents.
    n_options : int
        The latent's strongest meta-latent, and distractors drawn uniformly from those that are active
        on other latents but not on it.
    seed : int
        Seed of the distractors, and of the shuffle in the null.
    progress : bool
        Show a progress bar in questions, those of the null included.

    Raises
    ------
    ValueError
        If the labels are not those of the base, a setting is out of its range, or there are too
        few meta-latents to draw from.
    TypeError, IndexError
        If there is no such base.

    Notes
    -----
    Leask et al. (ICLR 2025) have a language model explain meta-latents but give no scores; the test,
    and its scoring without a network, are ours. A frequent meta-latent is the right answer more often
    than a distractor is, and its tokens are broader: the null, in which each latent has another's
    meta-latents, shows how much that alone helps.

    Examples
    --------
    >>> summary = multiple_choice_test(meta, labels, n_options=3).summary
    >>> summary["n_latents"], summary["accuracy"]
    (12, 1.0)
    """
    place, seed = meta.place(base), settings.whole("seed", seed, at_least=0)
    n_options = settings.whole("n_options", n_options, at_least=2)
    labels.dictionary.require(meta.bases[place], "The dictionary of the labels")
    about = unit_rows(weighted(labels.tokens, rarity(labels.tokens)))
    activation = decomposition_matrix(meta, place)
    random = np.random.default_rng(seed)
    with tqdm(total=2 * len(labels), disable=not progress, unit="question", desc="multiple choice") as bar:
        frame = _answers(activation, about, n_options, random, bar)
        shuffled = activation[random.permutation(len(labels))]
        null = _answers(shuffled, about, n_options, random, bar)
    return MultipleChoice(meta.bases[place], meta.identity, n_options, len(labels) - len(frame), frame, null)


def _answers(
    activation: csr_array,
    about: csr_array,
    n_options: int,
    random: np.random.Generator,
    bar: tqdm[Any],
) -> pd.DataFrame:
    """Question and answer for every latent that can be asked about.

    `activation` is `[latents, meta-latents]`; `about` has rows of norm 1, or empty ones.
    """
    described = np.diff(about.indptr) > 0
    has = diags_array(described.astype(float), format="csr") @ activation  # latents with a description
    has.eliminate_zeros()
    n_members = np.bincount(has.indices, minlength=activation.shape[1])
    if (n_members > 0).sum() < n_options:
        raise ValueError(
            f"{n_options} options need as many meta-latents, found {int((n_members > 0).sum())}."
        )
    of_meta = (has.T @ about).tocsr()
    norms = np.sqrt(of_meta.multiply(of_meta).sum(1))
    rows = []
    for start in range(0, has.shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        products, amounts = (about[block] @ of_meta.T).toarray(), has[block].toarray()
        for place in np.flatnonzero(described[block]):
            own = int(amounts[place].argmax())
            amount, n_others = amounts[place, own], int(n_members[own]) - 1
            away = np.flatnonzero((amounts[place] == 0) & (n_members > 0))
            if not amount or not n_others or len(away) < n_options - 1:
                continue
            product = products[place, own] - amount  # the latent itself, of norm 1, left out
            norm = np.sqrt(max(norms[own] ** 2 - 2 * amount * products[place, own] + amount**2, 0))
            others = random.choice(away, n_options - 1, replace=False)
            similarity = product / norm if norm > 1e-9 else 0.0
            rivals = products[place, others] / norms[others]
            tied = np.isclose(rivals, similarity, rtol=0, atol=1e-9).sum()
            right = 0.0 if rivals.max() > similarity + 1e-9 else 1 / (1 + tied)
            rows.append((start + place, own, amount, n_others, similarity, rivals.max(), right))
        bar.update(len(amounts))
    columns = ["latent", "meta_latent", "activation", "n_others", "similarity", "best_other", "right"]
    return pd.DataFrame(rows, columns=columns)


def rarity(tokens: csr_array) -> np.ndarray:
    """Inverse document frequency of every token: the logarithm of all rows over those that have it.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> rarity(csr_array([[0.5, 0.5], [1.0, 0.0]])).round(2)
    array([0.  , 0.69])
    """
    documents = np.bincount(tokens.indices, minlength=tokens.shape[1])
    inverse: np.ndarray = np.log(tokens.shape[0] / np.maximum(documents, 1))
    return inverse


def weighted(tokens: csr_array, weights: np.ndarray) -> csr_array:
    """Columns of `[rows, vocabulary]` times a weight each.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> weighted(csr_array([[1.0, 3.0]]), np.array([2.0, 1.0])).toarray()
    array([[2., 3.]])
    """
    return tokens @ diags_array(weights, format="csr")


def unit_rows(matrix: csr_array) -> csr_array:
    """Rows scaled to norm 1; what is zero is left out.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> unit_rows(csr_array([[3.0, 4.0], [0.0, 0.0]])).toarray()
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    matrix.eliminate_zeros()
    norms = np.sqrt(matrix.multiply(matrix).sum(1))
    matrix.data = matrix.data / np.repeat(norms, np.diff(matrix.indptr))
    return matrix


def _clustered_error(frame: pd.DataFrame) -> float:
    """Standard error of the share of right answers, clustered by meta-latent."""
    deviations = (frame["right"] - frame["right"].mean()).groupby(frame["meta_latent"]).sum()
    return float(np.sqrt((deviations**2).sum()) / len(frame))
