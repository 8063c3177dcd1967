"""Words such as days or months: latents about them, and whether they lie around a circle in their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saekit import settings
from saekit.activations import random_stream
from saekit.analysis.irreducibility.scores import as_points, p_value
from saekit.analysis.irreducibility.search import COMPONENTS, principal_components
from saekit.analysis.labels import Labels
from saekit.analysis.latents import display_strings
from saekit.results import Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def latents_about(labels: Labels, words: Iterable[str], *, share: float = 0.5) -> Tensor:
    """Latents whose greatest activations fall mostly on words of a list, ascending.

    Parameters
    ----------
    labels : Labels
        Labels of the latents, with the share of each token in their 50 greatest activations.
    words : iterable of str
        The words, such as the days of the week. Case and surrounding space are ignored; a word that is not
        one token of the vocabulary cannot be found.
    share : float
        Least share of the greatest activations.

    Raises
    ------
    TypeError
        If `words` is one string.
    ValueError
        If the share is not between 0 and 1, or there are no words.

    Examples
    --------
    >>> latents_about(labels, ["river", "stone"]).tolist()
    [2, 3, 8, 9]
    """
    share = settings.share("share", share)
    ids = torch.tensor([i for i, _ in word_tokens(labels.vocabulary, words)], dtype=torch.long)
    found: np.ndarray = np.asarray(labels.tokens[:, ids.numpy()].sum(axis=1)).ravel()
    return torch.from_numpy(np.flatnonzero((found >= share) & (found > 0)))


def word_tokens(
    vocabulary: Sequence[str] | PreTrainedTokenizerBase, words: Iterable[str]
) -> list[tuple[int, int]]:
    """Ids of the tokens that are words of a list, each with the place of its word there.

    Case and surrounding space are ignored.

    Raises
    ------
    TypeError
        If `words` is one string.
    ValueError
        If there are no words.

    Examples
    --------
    >>> word_tokens(vocabulary, ["Moon", "king"])
    [(0, 1), (4, 0)]
    """
    if isinstance(words, str):
        raise TypeError(f"words must be a sequence of words, found the string {words!r}.")
    places = {word.strip().lower(): place for place, word in reversed([*enumerate(words)])}
    if not places:
        raise ValueError("There must be at least one word.")
    shown = display_strings(vocabulary, range(len(vocabulary)))
    return [(i, places[word]) for i, token in enumerate(shown) if (word := token.strip().lower()) in places]


@dataclass(frozen=True, eq=False, repr=False)
class CircularOrder(Result):
    """Whether the mean points of words lie around a circle in the words' order.

    Attributes
    ----------
    frame : DataFrame
        One row per word: `word`, `n_points`, and the mean `x` and `y` of its points in the plane chosen; NaN
        without points.
    plane : int
        Number of the plane's first component, from 0.
    order : float
        Length of the mean of `exp(i (angle - 2 pi place / n))` in the better of the two directions: 1 if the
        words lie at equal angles in their order.
    order_null : float
        Mean of the same with the words in random order.
    p_value : float
        Share of random orders that reach `order`.
    """

    frame: pd.DataFrame
    plane: int
    order: float
    order_null: float
    p_value: float
    _plot: ClassVar[str] = "word_circles"

    @property
    def summary(self) -> dict[str, Any]:
        """`n_words` (with points), `n_points`, `plane`, `order`, `order_null`, `p_value`."""
        return {
            "n_words": int((self.frame["n_points"] > 0).sum()),
            "n_points": int(self.frame["n_points"].sum()),
            "plane": self.plane,
            "order": self.order,
            "order_null": self.order_null,
            "p_value": self.p_value,
        }


def measure_circular_order(
    points: Tensor | np.ndarray,
    places: Tensor | np.ndarray | Sequence[int],
    words: Sequence[str],
    *,
    components: int = COMPONENTS,
    permutations: int = 999,
    seed: int = 0,
) -> CircularOrder:
    """Test whether words such as days or months lie around a circle in their order.

    In each plane of two consecutive principal components of the words' mean points, the angles of the means
    around their centre are compared with the order of the words; the plane of best agreement is
    reported. The null does the same with the words in random order.

    Parameters
    ----------
    points : Tensor or array
        `[n, d]`: activations, or what latents reconstruct.
    places : sequence of int
        For each point, the place of its word in `words`.
    words : sequence of str
        The words in their cyclic order.
    components : int
        Principal components of the means.
    permutations : int
        Random orders.
    seed : int
        Seed of the orders.

    Raises
    ------
    ValueError
        If fewer than five words have points, a place is out of range, or a value is not finite.

    Notes
    -----
    The test is ours; Engels et al. (2024, arXiv:2405.14860) show the circles. With few words the p-value
    cannot be small: seven words have 720 cyclic orders, or 360 up to direction, so a random order is the
    right one in 1 of 360 draws.

    Examples
    --------
    >>> turn = 2 * torch.pi * torch.arange(7) / 7
    >>> week = torch.stack([turn.cos(), turn.sin()], dim=1)
    >>> found = measure_circular_order(week, range(7), ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"])
    >>> round(found.order, 3), found.p_value < 0.01
    (1.0, True)
    """
    points = as_points(points, fewest=5)
    components = settings.whole("components", components, at_least=2)
    permutations = settings.whole("permutations", permutations)
    seed = settings.whole("seed", seed, at_least=0)
    places = torch.as_tensor(places if isinstance(places, Tensor | np.ndarray) else list(places)).long()
    if places.shape != points.shape[:1] or not ((places >= 0) & (places < len(words))).all():
        raise ValueError(
            f"places must give the place of a word, from 0 to {len(words) - 1}, for each of {len(points)} "
            f"points, found {len(places)} of them."
        )
    counts = torch.bincount(places, minlength=len(words))
    present = counts.nonzero()[:, 0]
    if len(present) < 5:
        raise ValueError(f"A circular order needs points of at least 5 words, found {len(present)}.")
    sums = points.new_zeros(len(words), points.shape[1]).index_add_(0, places, points)
    means = principal_components((sums / counts[:, None])[present], components)
    if means.shape[1] < 2:
        raise ValueError("The mean points of the words lie on a line: there is no plane to test.")
    angles = torch.stack([torch.atan2(means[:, i + 1], means[:, i]) for i in range(means.shape[1] - 1)])
    expected = 2 * math.pi * present.double() / len(words)
    order = _agreement(angles, expected)
    plane = int(order.argmax())
    generator = random_stream(seed)
    draws = [torch.randperm(len(present), generator=generator) for _ in range(permutations)]
    null = torch.stack([_agreement(angles, expected[draw]).max() for draw in draws])
    where = pd.Series(present.numpy())
    frame = pd.DataFrame({"word": list(words), "n_points": counts.numpy(), "x": np.nan, "y": np.nan})
    frame.loc[where, ["x", "y"]] = means[:, plane : plane + 2].numpy()
    found = float(order[plane])
    # A hair below, so that the order found counts itself however its cosines are rounded.
    return CircularOrder(frame, plane, found, float(null.mean()), p_value(found - 1e-9, null))


def _agreement(angles: Tensor, expected: Tensor) -> Tensor:
    """Length of the mean phase between angles `[planes, n]` and expected ones, in the better direction."""
    forward, backward = (
        torch.polar(torch.ones_like(angles), angles - way * expected).mean(1).abs() for way in (1, -1)
    )
    return torch.maximum(forward, backward)
