"""Whether the labels of latents detect the text that they fire on, without a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.analysis.labels import WORDS_FROM, by_token, shares
from saekit.analysis.latents import LatentActivations, require_vocabulary
from saekit.analysis.meta.multiple_choice import rarity, unit_rows, weighted
from saekit.analysis.similarity import cosines
from saekit.dictionary import Dictionary
from saekit.identity import Identity
from saekit.results import Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = 1024  # latents at a time
FEWEST = 10  # firing windows, and as many others, that a latent needs to be tested
LABELS = ("own", "neighbour", "common")
STRATA = {"under 0.1%": 0.001, "0.1% to 1%": 0.01, "over 1%": np.inf}  # of density, by upper bound


@dataclass(frozen=True, eq=False, repr=False)
class Detection(Result):
    """How well labels tell the windows that a latent fires in from others.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    window : int
        Tokens per window.
    n_left_out : int
        Latents that are not tested: without a label, or active in too few or in too many windows.
    frame : DataFrame
        One row per latent tested: `latent`, `density`, `stratum` (of the density), `n_windows` (firing ones,
        and as many others), `neighbour` (the latent of most similar direction that has a label); and for
        the latent's own label, its neighbour's, and the common one, `auc_own` and `accuracy_own`
        (balanced), `auc_neighbour`, `accuracy_neighbour`, `auc_common`, `accuracy_common`.
    """

    dictionary: Identity
    window: int
    n_left_out: int
    frame: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """Means of all scores by stratum of density, and over all latents, with `n_latents`."""
        scores = [f"{score}_{label}" for score in ("auc", "accuracy") for label in LABELS]
        parts = {name: self.frame[self.frame["stratum"] == name] for name in STRATA} | {"all": self.frame}
        return pd.DataFrame(
            {name: {"n_latents": len(part), **part[scores].mean()} for name, part in parts.items()}
        ).T.astype({"n_latents": int})

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `n_latents`, `n_left_out`, and the mean of every score, such as `auc_own`."""
        means = self.table.loc["all"].drop("n_latents")
        counts = {"n_latents": len(self.frame), "n_left_out": self.n_left_out}
        return {"dictionary": str(self.dictionary), **counts, **means.astype(float).to_dict()}


def detection_test(
    dictionary: Dictionary,
    activations: LatentActivations,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    window: int = 32,
    n_windows: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> Detection:
    """Label latents on the first half of the rows, and detect with the labels where they fire in the second.

    A label stands for the tokens that its words come from: those of the latent's 50 greatest activations,
    by their share of the sum, weighted by inverse document frequency over all latents and scaled to norm 1
    (as in `multiple_choice_test`). Its similarity to a window is the cosine with the window's tokens,
    weighted likewise. The AUC is the share of pairs of a firing and another window that the similarity
    ranks right. For balanced accuracy, the half of the windows that is most similar counts as firing.

    Two other labels are scored on the same windows: that of the latent's nearest *neighbour*, which a
    label must beat to be about this latent; and the *common* one, the mean of all labels, which must be
    beaten to be about any. An empty label, which is as similar to every window, scores 0.5.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary.
    activations : LatentActivations
        Its activations, collected over `store`.
    store : ActivationStore
        Holds the tokens.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    window : int
        Tokens per window; what is left of a row is not used.
    n_windows : int
        Firing windows per latent, and as many others, drawn at random; 10 at least are needed.
    seed : int
        Seed of the draw.
    progress : bool
        Show a progress bar in latents.

    Raises
    ------
    ValueError
        If activations or store are of something else, a row has no whole window, or a setting is out of
        its range.

    Notes
    -----
    After the detection score of Paulo et al. (2024), in which a language model judges windows of 32 tokens;
    the scoring without one is ours.

    Examples
    --------
    >>> result = saekit.detection_test(small, collected, store, vocabulary, window=2)
    >>> bool(result.summary["auc_own"] > 0.9)
    True
    """
    window = settings.whole("window", window, at_most=store.context_length)
    n_windows = settings.whole("n_windows", n_windows, at_least=FEWEST)
    seed = settings.whole("seed", seed, at_least=0)
    activations.dictionary.require(dictionary.identity, "The dictionary of the activations")
    activations.require_store(store)
    tokens = store.tokens.flatten()
    require_vocabulary(vocabulary, int(tokens.max()) + 1)
    half = store.n_rows // 2
    labels = _labels(activations, tokens, half * store.context_length, len(vocabulary))
    weights = rarity(labels)
    about = unit_rows(weighted(labels, weights))
    found = unit_rows(weighted(_windows(store, half, window, len(vocabulary)), weights))
    described = np.diff(about.indptr) > 0
    neighbour = _neighbours(dictionary, described)
    common = np.asarray(about.mean(axis=0)).ravel()
    common_similarity = found @ (common / max(np.linalg.norm(common), 1e-12))
    usable = np.diff(found.indptr) > 0
    random = np.random.default_rng(seed)
    rows = []
    with tqdm(total=dictionary.width, disable=not progress, unit="latent", desc="detection") as bar:
        for start in range(0, dictionary.width, BLOCK):
            block = np.arange(start, min(start + BLOCK, dictionary.width))
            own, near = ((found @ about[which].T).toarray() for which in (block, neighbour[block]))
            for place, latent in enumerate(block.tolist()):
                fires = _fires(activations, latent, store, half, window)
                sides = [np.flatnonzero(usable & fires), np.flatnonzero(usable & ~fires)]
                n = min(n_windows, *map(len, sides))
                if described[latent] and n >= FEWEST:
                    chosen = np.concatenate([random.choice(side, n, replace=False) for side in sides])
                    scores = {"own": own[:, place], "neighbour": near[:, place], "common": common_similarity}
                    row: dict[str, float] = {
                        "latent": latent,
                        "n_windows": n,
                        "neighbour": int(neighbour[latent]),
                    }
                    for label, similarity in scores.items():
                        auc, accuracy = _scores(similarity[chosen[:n]], similarity[chosen[n:]])
                        row |= {f"auc_{label}": auc, f"accuracy_{label}": accuracy}
                    rows.append(row)
            bar.update(len(block))
    columns = ["latent", "n_windows", "neighbour"]
    columns += [f"{score}_{label}" for label in LABELS for score in ("auc", "accuracy")]
    frame = pd.DataFrame(rows, columns=columns)
    density = activations.density.numpy()[frame["latent"].to_numpy(int)]
    frame.insert(1, "density", density)
    frame.insert(2, "stratum", np.array([*STRATA])[np.searchsorted([*STRATA.values()], density)])
    return Detection(dictionary.identity, window, dictionary.width - len(frame), frame)


def _labels(activations: LatentActivations, tokens: torch.Tensor, end: int, n_vocabulary: int) -> csr_array:
    """Shares of tokens in each latent's greatest activations before a position, `[width, vocabulary]`."""
    where, values, counts = [], [], [0]
    for latent in range(activations.width):
        positions, found = activations.entries(latent)
        found = found[positions < end]
        greatest = found.argsort(descending=True, stable=True)[:WORDS_FROM]
        where.append(tokens[positions[: len(found)][greatest]].numpy())
        values.append(found[greatest].double().numpy())
        counts.append(len(greatest))
    return shares(by_token(np.concatenate(where), np.concatenate(values), np.cumsum(counts), n_vocabulary))


def _windows(store: ActivationStore, first_row: int, window: int, n_vocabulary: int) -> csr_array:
    """Counts of the tokens of each window from a row on, excluded positions left out."""
    per_row = store.context_length // window
    tokens, excluded = (
        part[first_row:, : per_row * window].reshape(-1, window).numpy()
        for part in (store.tokens, store.excluded)
    )
    kept = excluded == 0
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return by_token(tokens[kept], np.ones(kept.sum()), offsets, n_vocabulary)


def _fires(
    activations: LatentActivations, latent: int, store: ActivationStore, first_row: int, window: int
) -> np.ndarray:
    """In which windows from a row on a latent is active anywhere, Boolean."""
    per_row = store.context_length // window
    fires = np.zeros((store.n_rows - first_row) * per_row, dtype=bool)
    rows, columns = np.divmod(activations.entries(latent)[0].numpy(), store.context_length)
    inside = (rows >= first_row) & (columns < per_row * window)
    fires[(rows[inside] - first_row) * per_row + columns[inside] // window] = True
    return fires


def _neighbours(dictionary: Dictionary, described: np.ndarray) -> np.ndarray:
    """For each latent, another one of most similar direction; one with a label where two of them have one."""
    with_label = np.flatnonzero(described)
    if len(with_label) < 2:
        return np.roll(np.arange(dictionary.width), 1)
    of_label = dictionary.W_dec[torch.from_numpy(with_label)]
    found = cosines(dictionary.W_dec, of_label, k=2)
    index = with_label[found.up[1].cpu().numpy()]
    own = index[:, 0] == np.arange(dictionary.width)
    nearest: np.ndarray = np.where(own, index[:, 1], index[:, 0])
    return nearest


def _scores(firing: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """AUC, and balanced accuracy where the more similar half of equally many windows counts as firing."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, firing, side="left") + np.searchsorted(ordered, firing, side="right")
    auc = float(below.mean() / (2 * len(other)))
    cut = np.sort(np.concatenate([firing, other]))[-len(firing)]
    above, tied = (firing > cut).sum(), (firing == cut).sum()
    all_tied = tied + (other == cut).sum()
    places = len(firing) - above - (other > cut).sum()  # of those that tie at the cut, drawn at random
    return auc, float((above + places * tied / all_tied) / len(firing))
