"""What a latent is about: its activations, the text around them and the tokens it promotes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import ActivationStore, batches_of
from saekit.analysis.similarity import largest
from saekit.dictionary import Dictionary
from saekit.metrics import n_excluded
from saekit.models import token_strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CONTEXT = 25  # tokens shown at a time
CHUNK_ELEMENTS = 1 << 25  # logits held at once by logit_table: 128 MB


# ---------------------------------------------------------------------- activations by latent


@dataclass(frozen=True, eq=False)
class LatentActivations:
    """All activations of a dictionary over a set of tokens, by latent.

    Attributes
    ----------
    name : str
        The dictionary's name.
    offsets : Tensor
        Start of each latent's entries, int64 `[width + 1]`.
    positions : Tensor
        Positions where it is active, ascending within a latent, int64 `[entries]`: flat
        positions of the store (`row * context_length + column`), or rows of a plain tensor.
    values : Tensor
        The activations there, float32 `[entries]`.
    n_tokens, n_excluded : int
        Tokens used and positions left out.
    """

    name: str
    offsets: Tensor
    positions: Tensor
    values: Tensor
    n_tokens: int
    n_excluded: int

    @property
    def width(self) -> int:
        """Number of latents."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """Tokens on which each latent is active, int64 `[width]`."""
        return self.offsets.diff()

    @property
    def density(self) -> Tensor:
        """Share of tokens on which each latent is active, float64 `[width]`."""
        return self.counts.double() / self.n_tokens

    @property
    def max(self) -> Tensor:
        """Greatest activation of each latent, `[width]`; 0 if dead."""
        return self._reduce("max")

    @property
    def mean(self) -> Tensor:
        """Mean activation over the tokens on which the latent is active, float64 `[width]`; 0 if dead."""
        return self._reduce("sum").double() / self.counts.clamp(min=1)

    def _reduce(self, how: str) -> Tensor:
        values = self.values.double() if how == "sum" else self.values
        return torch.segment_reduce(values, how, offsets=self.offsets, initial=0)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a latent: `latent`, `n_active`, `density`, `mean`, `max`, `dead`."""
        return pd.DataFrame(
            {
                "latent": range(self.width),
                "n_active": self.counts.numpy(),
                "density": self.density.numpy(),
                "mean": self.mean.numpy(),
                "max": self.max.numpy(),
                "dead": (self.counts == 0).numpy(),
            }
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `width`, `n_tokens`, `n_excluded`, `l0`, `n_dead`, `median_density`."""
        return {
            "dictionary": self.name,
            "width": self.width,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "l0": len(self.values) / self.n_tokens,
            "n_dead": int((self.counts == 0).sum()),
            "median_density": float(self.density.quantile(0.5)),
        }

    def entries(self, latent: int) -> tuple[Tensor, Tensor]:
        """Positions (ascending) where a latent is active, and its values there.

        Raises
        ------
        IndexError
            If there is no such latent.
        """
        if not 0 <= latent < self.width:
            raise IndexError(f"{self.name} has latents 0 to {self.width - 1}, found {latent}.")
        part = slice(int(self.offsets[latent]), int(self.offsets[latent + 1]))
        return self.positions[part], self.values[part]

    def top(self, latent: int, n: int = 10) -> tuple[Tensor, Tensor]:
        """The up to `n` positions of greatest activation, greatest first, and the values there."""
        positions, values = self.entries(latent)
        order = values.argsort(descending=True, stable=True)[:n]
        return positions[order], values[order]

    def values_at(self, latent: int, positions: Tensor) -> Tensor:
        """Value of a latent at any positions, 0 where it is not active."""
        where, values = self.entries(latent)
        if not len(where):
            return torch.zeros(positions.shape)
        place = torch.searchsorted(where, positions).clamp(max=len(where) - 1)
        return torch.where(where[place] == positions, values[place], 0.0)

    def histogram(self, latent: int, bins: int = 40) -> pd.DataFrame:
        """Counts of a latent's activations in equal bins from 0 to its maximum: `low`, `high`, `count`.

        No rows if the latent is dead.
        """
        edges, place = self._bins(latent, bins)
        counts = np.bincount(place, minlength=bins)[: len(edges) - 1]
        return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})

    def intervals(self, latent: int, bins: int = 10, n: int = 5, seed: int = 0) -> list[Interval]:
        """A latent's activations in equal intervals from 0 to its maximum, greatest first.

        Parameters
        ----------
        latent : int
            Which latent.
        bins : int
            Number of intervals.
        n : int
            Positions to sample from each, as far as it has as many.
        seed : int
            Of the samples.

        Returns
        -------
        list of Interval
            Empty if the latent is dead.
        """
        positions, _ = self.entries(latent)
        edges, place = self._bins(latent, bins)
        random = np.random.default_rng([seed, latent])
        found = []
        for i in reversed(range(len(edges) - 1)):
            inside = np.flatnonzero(place == i)
            picked = np.sort(random.permutation(inside)[:n])
            share = len(inside) / len(positions)
            found.append(
                Interval(float(edges[i]), float(edges[i + 1]), len(inside), share, positions[picked])
            )
        return found

    def _bins(self, latent: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the bins, and the bin of each entry; an upper edge belongs to its bin."""
        values = self.entries(latent)[1].double().numpy()
        if not len(values):
            return np.zeros(1), np.zeros(0, dtype=np.int64)
        edges = np.linspace(0, values.max(), bins + 1)
        return edges, np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1)


@dataclass(frozen=True, eq=False)
class Interval:
    """An interval of a latent's activations.

    Attributes
    ----------
    low, high : float
        Its bounds; `high` belongs to it.
    count : int
        Activations in it.
    share : float
        Their share of all the latent's activations.
    positions : Tensor
        A sample of the positions.
    """

    low: float
    high: float
    count: int
    share: float
    positions: Tensor


def collect(
    dictionary: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    batch_size: int = 4096,
    progress: bool = False,
) -> LatentActivations:
    """Encode a set of tokens once and keep every active entry, by latent.

    Memory grows with the active entries (16 bytes each), never with tokens times width.

    Parameters
    ----------
    dictionary : Dictionary
        Any kind, TopK too.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens at a time.
    progress : bool
        Show a progress bar in tokens.

    Raises
    ------
    ValueError
        If `d_in` does not fit or there are no tokens.
    """
    latents, positions, values = [], [], []
    n_tokens = 0
    with torch.no_grad(), tqdm(disable=not progress, unit="token", desc=dictionary.name) as bar:
        for where, x in batches_of(activations, batch_size, device=dictionary.W_enc.device):
            batch = dictionary.encode_sparse(x)
            latents.append(batch.indices.int().cpu())
            positions.append(where[batch.rows.cpu()])
            values.append(batch.values.float().cpu())
            n_tokens += len(x)
            bar.update(len(x))
    if not n_tokens:
        raise ValueError("There are no activations to collect: every position is excluded.")
    latent = torch.cat(latents)
    order = latent.argsort(stable=True)  # positions stay ascending within a latent
    return LatentActivations(
        name=dictionary.name,
        offsets=F.pad(torch.bincount(latent, minlength=dictionary.width).cumsum(0), (1, 0)),
        positions=torch.cat(positions)[order],
        values=torch.cat(values)[order],
        n_tokens=n_tokens,
        n_excluded=n_excluded(activations),
    )


# ---------------------------------------------------------------------- the text around a position


@dataclass(frozen=True)
class Context:
    """A window of tokens around a position.

    Attributes
    ----------
    position : int
        Flat position in the store.
    tokens : tuple of str
        Display strings, not escaped for HTML.
    values : tuple of float
        The latent's value at each token, 0 where it is silent, not asked for, or the position
        is excluded.
    focus : int
        Place of the position itself in `tokens`.
    source, title : str
        Where the document comes from.
    """

    position: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    focus: int
    source: str
    title: str


def contexts(
    store: ActivationStore,
    positions: Iterable[int] | Tensor,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    activations: LatentActivations | None = None,
    latent: int | None = None,
    before: int = 12,
    after: int = 12,
    sources: Sequence[str] | None = None,
) -> list[Context]:
    """The tokens around positions of a store, clipped where their row or document ends.

    Parameters
    ----------
    store : ActivationStore
        Holds the tokens.
    positions : sequence of int
        Flat positions, in the order wanted.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    activations, latent : LatentActivations and int, optional
        Give both to get the latent's values at every token shown.
    before, after : int
        Tokens to show on each side, at most 25 in all.
    sources : sequence of str, optional
        Leave out positions whose document comes from elsewhere.

    Raises
    ------
    ValueError
        If more than 25 tokens are asked for, only one of `activations` and `latent` is given,
        or `sources` names a source that the store does not have.
    """
    return list(
        _contexts(
            store,
            positions,
            vocabulary,
            activations=activations,
            latent=latent,
            before=before,
            after=after,
            sources=sources,
        )
    )


def top_contexts(
    activations: LatentActivations,
    latent: int,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    n: int = 10,
    before: int = 12,
    after: int = 12,
    sources: Sequence[str] | None = None,
) -> list[Context]:
    """A latent's contexts of greatest activation, at most one from a document.

    Parameters and errors as for `contexts`; `n` is the number of contexts. Empty if the latent
    is dead or silent in `sources`.
    """
    positions, _ = activations.top(latent, len(activations.entries(latent)[0]))
    documents = store.document.flatten()[positions].numpy()
    first = np.sort(np.unique(documents, return_index=True)[1])
    found = _contexts(
        store,
        positions[first],
        vocabulary,
        activations=activations,
        latent=latent,
        before=before,
        after=after,
        sources=sources,
    )
    return [context for context, _ in zip(found, range(n), strict=False)]


def _contexts(
    store: ActivationStore,
    positions: Iterable[int] | Tensor,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    activations: LatentActivations | None,
    latent: int | None,
    before: int,
    after: int,
    sources: Sequence[str] | None,
) -> Iterator[Context]:
    if before < 0 or after < 0 or before + 1 + after > MAX_CONTEXT:
        raise ValueError(
            f"At most {MAX_CONTEXT} tokens are shown at a time, found {before} before and {after} after."
        )
    if (activations is None) != (latent is None):
        raise ValueError("Give both activations and latent, or neither.")
    known = {document["source"] for document in store.documents}
    unknown = sorted(set(sources or ()) - known)
    if unknown:
        raise ValueError(f"The store has sources {sorted(known)}, found {unknown}.")

    tokens, documents = store.tokens.flatten(), store.document.flatten()
    length = store.context_length
    for position in map(int, positions):
        document = int(documents[position])
        origin = store.documents[document] if document >= 0 else {"source": "", "title": ""}
        if sources is not None and origin["source"] not in sources:
            continue
        row = position // length * length
        window = torch.arange(
            max(row, position - before), min(row + length, position + after + 1), dtype=torch.long
        )
        window = window[documents[window] == document]
        if activations is None or latent is None:
            values = torch.zeros(len(window))
        else:
            values = activations.values_at(latent, window)
        yield Context(
            position=position,
            tokens=tuple(display_strings(vocabulary, tokens[window].tolist())),
            values=tuple(values.tolist()),
            focus=int((window == position).nonzero()),
            source=origin["source"],
            title=origin["title"],
        )


def display_strings(vocabulary: Sequence[str] | PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """Display strings of token ids, from a list of them or from a tokenizer."""
    if hasattr(vocabulary, "convert_ids_to_tokens"):
        return token_strings(vocabulary, list(ids))
    return [vocabulary[i] for i in ids]


# ---------------------------------------------------------------------- tokens


@dataclass(frozen=True, eq=False)
class LogitTable:
    """The tokens that each latent's decoder direction promotes and suppresses.

    Attributes
    ----------
    name : str
        The dictionary's name.
    top_ids, top_logits : Tensor
        The `n` tokens of greatest logit, greatest first, `[width, n]` each.
    bottom_ids, bottom_logits : Tensor
        The `n` tokens of least logit, least first, `[width, n]` each.
    vocabulary : sequence of str, or tokenizer
        Display strings.
    """

    name: str
    top_ids: Tensor
    top_logits: Tensor
    bottom_ids: Tensor
    bottom_logits: Tensor
    vocabulary: Sequence[str] | PreTrainedTokenizerBase

    def latent(self, latent: int) -> pd.DataFrame:
        """One row a place: `rank`, `top_token`, `top_logit`, `bottom_token`, `bottom_logit`."""
        return pd.DataFrame(
            {
                "rank": range(1, self.top_ids.shape[1] + 1),
                "top_token": display_strings(self.vocabulary, self.top_ids[latent].tolist()),
                "top_logit": self.top_logits[latent].numpy(),
                "bottom_token": display_strings(self.vocabulary, self.bottom_ids[latent].tolist()),
                "bottom_logit": self.bottom_logits[latent].numpy(),
            }
        )

    @property
    def frame(self) -> pd.DataFrame:
        """One row a latent and place: `latent`, then the columns of `latent()`."""
        width, n = self.top_ids.shape
        return pd.DataFrame(
            {
                "latent": np.repeat(np.arange(width), n),
                "rank": np.tile(np.arange(1, n + 1), width),
                "top_token": display_strings(self.vocabulary, self.top_ids.flatten().tolist()),
                "top_logit": self.top_logits.flatten().numpy(),
                "bottom_token": display_strings(self.vocabulary, self.bottom_ids.flatten().tolist()),
                "bottom_logit": self.bottom_logits.flatten().numpy(),
            }
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `width`, `n`."""
        return {"dictionary": self.name, "width": len(self.top_ids), "n": self.top_ids.shape[1]}


def logit_table(
    dictionary: Dictionary,
    unembedding: Tensor,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    n: int = 10,
    chunk: int | None = None,
) -> LogitTable:
    """The tokens whose logits each decoder direction raises and lowers most.

    Parameters
    ----------
    dictionary : Dictionary
        On the residual stream, so that `d_in` is the model's `d_model`.
    unembedding : Tensor
        `[d_model, vocab]`, such as `saekit.models.unembedding(model)`.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    n : int
        Tokens on each side.
    chunk : int, optional
        Latents at a time; by default as many as keep the logits within 128 MB.

    Raises
    ------
    ValueError
        If the unembedding does not fit the dictionary, or has fewer than `n` tokens.
    """
    if unembedding.ndim != 2 or unembedding.shape[0] != dictionary.d_in:
        raise ValueError(
            f"The unembedding must be [{dictionary.d_in}, vocab] for {dictionary.name}, "
            f"found {list(unembedding.shape)}."
        )
    if not 0 < n <= unembedding.shape[1]:
        raise ValueError(f"n must be between 1 and the {unembedding.shape[1]} tokens, found {n}.")
    chunk = chunk or max(1, CHUNK_ELEMENTS // unembedding.shape[1])
    top, bottom = [], []
    with torch.no_grad():
        for part in dictionary.W_dec.split(chunk):
            logits = part @ unembedding.to(part)
            top.append(largest(logits, n))
            bottom.append(largest(-logits, n))
    top_logits, top_ids = (torch.cat(parts).cpu() for parts in zip(*top, strict=True))
    bottom_logits, bottom_ids = (torch.cat(parts).cpu() for parts in zip(*bottom, strict=True))
    return LogitTable(dictionary.name, top_ids, top_logits, bottom_ids, -bottom_logits, vocabulary)


def top_tokens(
    activations: LatentActivations,
    latent: int,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    n: int = 10,
    by: str = "mean",
    min_count: int = 5,
) -> pd.DataFrame:
    """The tokens on which a latent is most active.

    Parameters
    ----------
    activations : LatentActivations
        Collected over `store`.
    latent : int
        Which latent.
    store : ActivationStore
        Holds the tokens.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    n : int
        Tokens to give.
    by : {"mean", "lift"}
        Greatest mean activation over all occurrences of the token, or greatest lift.
    min_count : int
        Leave out tokens that occur less often: their means and lifts are noise.

    Returns
    -------
    DataFrame
        `token_id`, `token`, `count` (occurrences at used positions), `n_active` (those with the
        latent active), `mean` (activation over all occurrences), `lift` (share of occurrences
        with the latent active over its density). Empty if the latent is dead.

    Raises
    ------
    ValueError
        If `by` is neither `"mean"` nor `"lift"`.
    """
    if by not in ("mean", "lift"):
        raise ValueError(f'by must be "mean" or "lift", found {by!r}.')
    positions, values = activations.entries(latent)
    tokens = store.tokens.flatten()
    counts = torch.bincount(tokens[store.positions])
    active_tokens = tokens[positions]
    n_active = torch.bincount(active_tokens, minlength=len(counts))
    total = torch.bincount(active_tokens, values.double(), minlength=len(counts))
    ids = ((n_active > 0) & (counts >= min_count)).nonzero()[:, 0]
    frame = pd.DataFrame(
        {
            "token_id": ids.numpy(),
            "token": display_strings(vocabulary, ids.tolist()),
            "count": counts[ids].numpy(),
            "n_active": n_active[ids].numpy(),
            "mean": (total[ids] / counts[ids]).numpy(),
            "lift": (n_active[ids] / counts[ids] / max(len(positions), 1) * activations.n_tokens).numpy(),
        }
    )
    return frame.sort_values([by, "token_id"], ascending=[False, True]).head(n).reset_index(drop=True)
