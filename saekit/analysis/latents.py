"""A latent's activations, the text around them, and the tokens that it promotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import refuse
from saekit.analysis.similarity import largest
from saekit.cache import cached
from saekit.dictionary import Dictionary, require_dictionaries
from saekit.identity import Identity, UnrecordedWarning
from saekit.models import token_strings
from saekit.passes import Batch, Measured, Tokens, one_pass
from saekit.results import Result
from saekit.selection import Latents, select_latent, select_latents
from saekit.warn import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CONTEXT = 25  # tokens shown at a time
CHUNK_ELEMENTS = 1 << 25  # logits held at once by logit_table: 128 MB


# ---------------------------------------------------------------------- activations by latent


@dataclass(frozen=True, eq=False, repr=False)
class LatentActivations(Measured, Result):
    """All activations of a dictionary over a set of tokens, by latent.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    offsets : Tensor
        Start of each latent's entries, int64 `[width + 1]`.
    positions : Tensor
        Positions where it is active, ascending within a latent, int64 `[entries]`: flat
        positions of the store (`row * context_length + column`), or rows of a plain tensor.
    values : Tensor
        The activations there, float32 `[entries]`.
    tokens : Tokens
        Number and moments of the tokens.
    store : str or None
        Content hash of the store; None for a plain tensor.
    """

    dictionary: Identity
    offsets: Tensor
    positions: Tensor
    values: Tensor
    tokens: Tokens
    store: str | None = None

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return str(self.dictionary)

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
        """One row per latent: `latent`, `n_active`, `density`, `mean`, `max`, `dead`."""
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
            "dictionary": str(self.dictionary),
            "width": self.width,
            "n_tokens": self.n_tokens,
            "n_excluded": self.n_excluded,
            "l0": len(self.values) / self.n_tokens,
            "n_dead": int((self.counts == 0).sum()),
            "median_density": float(self.density.quantile(0.5)) if self.width else None,
        }

    def entries(self, latent: int) -> tuple[Tensor, Tensor]:
        """Positions (ascending) where a latent is active, and its values there.

        Raises
        ------
        IndexError
            If there is no such latent.
        """
        latent = select_latent(latent, self.width)
        part = slice(int(self.offsets[latent]), int(self.offsets[latent + 1]))
        return self.positions[part], self.values[part]

    def top(self, latent: int, n: int = 10) -> tuple[Tensor, Tensor]:
        """Up to `n` positions of greatest activation, greatest first, and the values there."""
        n = settings.whole("n", n, at_least=0)
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
            Positions to sample from each, or all of them if there are fewer.
        seed : int
            Seed of the samples.

        Returns
        -------
        list of Interval
            Empty if the latent is dead.
        """
        latent, n = select_latent(latent, self.width), settings.whole("n", n)
        positions, _ = self.entries(latent)
        edges, place = self._bins(latent, bins)
        random = np.random.default_rng([settings.whole("seed", seed, at_least=0), latent])
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
        bins = settings.whole("bins", bins)
        values = self.entries(latent)[1].double().numpy()
        if not len(values):
            return np.zeros(1), np.zeros(0, dtype=np.int64)
        edges = np.linspace(0, values.max(), bins + 1)
        return edges, np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1)

    def require_store(self, store: ActivationStore) -> None:
        """Refuse a store other than the one that these were collected over, if that is known.

        Raises
        ------
        ValueError
            If the two stores differ in content, so that positions mean different tokens.
        """
        if self.store is not None and self.store != store.content_hash:
            raise ValueError(
                f"The activations of {self.dictionary.described} were collected over the store "
                f"[{self.store[:8]}], but the store [{store.content_hash[:8]}] was given."
            )


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


@cached
def collect(
    dictionary: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    batch_size: int = 4096,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> LatentActivations:
    """Encode a set of tokens once and keep every active entry, by latent.

    Memory grows with the active entries (12 bytes each, 28 while they are put in order), never with
    tokens times width.

    Parameters
    ----------
    dictionary : Dictionary
        Any kind, TopK too.
    activations : ActivationStore or Tensor
        A store (its excluded positions are left out and counted) or raw activations `[n, d_in]`.
    batch_size : int
        Tokens per batch.
    progress : bool
        Show a progress bar in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionary and the activations do not belong together, an activation is not finite,
        or there are no tokens.

    Examples
    --------
    >>> collected = collect(dictionary, x)
    >>> collected.frame[["latent", "n_active"]].head(2)
       latent  n_active
    0       0        30
    1       1        45
    """
    require_dictionaries(dictionary=dictionary)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    counts = torch.zeros(dictionary.width, dtype=torch.long)

    def keep(batch: Batch) -> None:
        latents = batch.latents(dictionary)
        order, rows, offsets = latents.by_latent
        values = latents.values.index_select(0, order).float()
        parts.append((latents.indices[order].int().cpu(), batch.positions[rows.cpu()], values.cpu()))
        counts.add_(offsets.diff().cpu())

    tokens = one_pass(
        activations,
        keep,
        dictionaries=[dictionary],
        purpose="collecting activations",
        batch_size=batch_size,
        progress=progress,
        allow_mismatch=allow_mismatch,
    )
    offsets = F.pad(counts.cumsum(0), (1, 0))
    n_active = int(offsets[-1])
    positions, values = torch.empty(n_active, dtype=torch.long), torch.empty(n_active)
    filled = offsets[:-1].clone()
    parts.reverse()  # each is freed once it is in place, first to last: positions ascend within a latent
    while parts:
        latent, *part = parts.pop()
        n_here = torch.bincount(latent, minlength=dictionary.width)
        place = torch.arange(len(latent)) + (filled - n_here.cumsum(0) + n_here)[latent]
        positions[place], values[place] = part
        filled += n_here
    return LatentActivations(
        dictionary=dictionary.identity,
        offsets=offsets,
        positions=positions,
        values=values,
        tokens=tokens,
        store=activations.content_hash if isinstance(activations, ActivationStore) else None,
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


@dataclass(frozen=True, eq=False, repr=False)
class Contexts(Result, Sequence[Context]):
    """Windows of tokens around positions of a store, in the order asked for.

    A sequence of `Context`.

    Attributes
    ----------
    found : tuple of Context
        The windows.
    latent : int or None
        The latent whose values they show, if any.
    """

    found: tuple[Context, ...]
    latent: int | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """One row per context.

        `position`, `token` and `value` at it, `text` (all tokens of the window), `source`, `title`.
        """
        return pd.DataFrame(
            [
                {
                    "position": context.position,
                    "token": context.tokens[context.focus],
                    "value": context.values[context.focus],
                    "text": "".join(context.tokens),
                    "source": context.source,
                    "title": context.title,
                }
                for context in self.found
            ],
            columns=["position", "token", "value", "text", "source", "title"],
        )

    @property
    def summary(self) -> dict[str, Any]:
        """`latent`, `n_contexts`, `n_titles` (different ones), `greatest` (value; NaN without contexts)."""
        values = [context.values[context.focus] for context in self.found]
        return {
            "latent": self.latent,
            "n_contexts": len(self.found),
            "n_titles": len({context.title for context in self.found}),
            "greatest": max(values, default=float("nan")),
        }

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, place: int) -> Context: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Context, ...]: ...

    def __getitem__(self, place: int | slice) -> Context | tuple[Context, ...]:
        return self.found[place]


def contexts(
    store: ActivationStore,
    positions: Latents,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    activations: LatentActivations | None = None,
    latent: int | None = None,
    before: int = 12,
    after: int = 12,
    sources: Sequence[str] | None = None,
) -> Contexts:
    """The tokens around positions of a store, clipped where their row or document ends.

    Parameters
    ----------
    store : ActivationStore
        Holds the tokens.
    positions : tensor, array, Series or list
        Flat positions in the order wanted, or a Boolean mask over all positions.
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
        If more than 25 tokens are asked for, only one of `activations` and `latent` is given, the
        activations were collected over another store, or `sources` names a source that the store
        does not have.
    TypeError, IndexError
        If a position or the latent is not a whole number, or is out of range.

    Examples
    --------
    >>> contexts(store, [21], vocabulary, before=1, after=2)[0].tokens
    (' river', ' the', ' the', ' river')
    """
    before, after = _few(before, after)
    chosen = select_latents(positions, store.tokens.numel(), what="positions")
    found = _contexts(
        store,
        chosen,
        vocabulary,
        activations=activations,
        latent=latent,
        before=before,
        after=after,
        sources=sources,
    )
    return Contexts(tuple(found), latent)


def row_contexts(
    store: ActivationStore,
    positions: Latents,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    activations: LatentActivations | None = None,
    latent: int | None = None,
    sources: Sequence[str] | None = None,
) -> Contexts:
    """All of each position's document that is in its row.

    Parameters and errors as for `contexts`.

    Examples
    --------
    >>> row_contexts(store, [21], vocabulary)[0].tokens[:3]
    (' river', ' the', ' the')
    """
    chosen = select_latents(positions, store.tokens.numel(), what="positions")
    reach = store.context_length
    found = _contexts(
        store,
        chosen,
        vocabulary,
        activations=activations,
        latent=latent,
        before=reach,
        after=reach,
        sources=sources,
    )
    return Contexts(tuple(found), latent)


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
) -> Contexts:
    """A latent's contexts of greatest activation, at most one per document.

    Parameters and errors as for `contexts`; `n` is the number of contexts. Empty if the latent
    is dead or silent in `sources`.

    Examples
    --------
    >>> top_contexts(collected, 0, store, vocabulary, n=1, before=1, after=1)[0].tokens
    (' queen', ' king', ' river')
    """
    before, after = _few(before, after)
    latent = select_latent(latent, activations.width)
    n = settings.whole("n", n)
    activations.require_store(store)
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
        n=n,
    )
    return Contexts(tuple(found), latent)


def _few(before: int, after: int) -> tuple[int, int]:
    """Numbers of tokens on both sides that are shown at a time."""
    before, after = (
        settings.whole(name, value, at_least=0) for name, value in (("before", before), ("after", after))
    )
    if before + 1 + after > MAX_CONTEXT:
        raise ValueError(
            f"At most {MAX_CONTEXT} tokens are shown at a time, found {before} before and {after} after."
        )
    return before, after


def _contexts(
    store: ActivationStore,
    positions: Tensor,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    activations: LatentActivations | None,
    latent: int | None,
    before: int,
    after: int,
    sources: Sequence[str] | None,
    n: int | None = None,
) -> list[Context]:
    """The first `n` contexts from the sources; all the windows are cut at once."""
    if (activations is None) != (latent is None):
        raise ValueError("Give both activations and latent, or neither.")
    if activations is not None:
        activations.require_store(store)
        latent = select_latent(latent, activations.width)
    documents, length = store.document.flatten(), store.context_length
    if sources is not None:
        require_sources(store, sources)
        # No document is -1, and so the last of these.
        wanted = torch.tensor([*(document["source"] in sources for document in store.documents), False])
        positions = positions[wanted[documents[positions]]]
    positions = positions[:n]
    windows = positions[:, None] + torch.arange(-before, after + 1)
    inside = torch.div(windows, length, rounding_mode="floor") == positions[:, None] // length
    windows = windows.clamp(0, len(documents) - 1)
    inside &= documents[windows] == documents[positions][:, None]
    values = torch.zeros(windows.shape)
    if activations is not None and latent is not None:
        values = activations.values_at(latent, windows)
    strings = display_strings(vocabulary, store.tokens.flatten()[windows[inside]].tolist())
    shown, ends = values[inside].tolist(), inside.sum(1).cumsum(0).tolist()
    found, start = [], 0
    for place, (position, end) in enumerate(zip(positions.tolist(), ends, strict=True)):
        document = int(documents[position])
        origin = store.documents[document] if document >= 0 else {"source": "", "title": ""}
        found.append(
            Context(
                position=position,
                tokens=tuple(strings[start:end]),
                values=tuple(shown[start:end]),
                focus=int(inside[place, :before].sum()),
                source=origin["source"],
                title=origin["title"],
            )
        )
        start = end
    return found


def display_strings(vocabulary: Sequence[str] | PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Display strings of token ids, from a list of them or from a tokenizer.

    Examples
    --------
    >>> display_strings(vocabulary, [2, 0])
    [' river', ' king']
    """
    if hasattr(vocabulary, "convert_ids_to_tokens"):
        return token_strings(vocabulary, list(ids))
    return [vocabulary[i] for i in ids]


def require_sources(store: ActivationStore, sources: Sequence[str] | None) -> None:
    """Refuse sources of text that a store does not have; None stands for all.

    Raises
    ------
    TypeError
        If they are a single string.
    ValueError
        If there is no such source.

    Examples
    --------
    >>> require_sources(store, ["toy"])
    >>> require_sources(store, "toy")
    Traceback (most recent call last):
        ...
    TypeError: sources must be a list of names, found 'toy'.
    """
    if sources is None:
        return
    if isinstance(sources, str):
        raise TypeError(f"sources must be a list of names, found {sources!r}.")
    known = {document["source"] for document in store.documents}
    if unknown := sorted(set(sources) - known):
        raise ValueError(f"The store has sources {sorted(known)}, found {unknown}.")


def require_vocabulary(vocabulary: Sequence[str] | PreTrainedTokenizerBase, n_tokens: int) -> None:
    """Refuse a list of display strings that is shorter than the token ids reach.

    Raises
    ------
    ValueError
        If it holds fewer than `n_tokens` strings; a tokenizer may hold fewer, since models pad their
        vocabulary.
    TypeError
        If it is neither.

    Examples
    --------
    >>> require_vocabulary(vocabulary, 6)
    >>> require_vocabulary(vocabulary, 7)
    Traceback (most recent call last):
        ...
    ValueError: The vocabulary needs 7 display strings, found 6.
    """
    if hasattr(vocabulary, "convert_ids_to_tokens"):
        return
    if isinstance(vocabulary, str) or not hasattr(vocabulary, "__len__"):
        raise TypeError(
            "vocabulary must be a tokenizer, such as model.tokenizer, or a list of display strings, found "
            f"{type(vocabulary).__name__}."
        )
    if len(vocabulary) < n_tokens:
        raise ValueError(f"The vocabulary needs {n_tokens} display strings, found {len(vocabulary)}.")


# ---------------------------------------------------------------------- tokens


IN_STREAM = re.compile(
    r"(blocks\.\d+\.)?(hook_(resid_(pre|mid|post)|attn_out|mlp_out|mlp_in|in|out|embed|pos_embed)"
    r"|ln[12]\.hook_in|(attn|mlp|attn\.o|mlp\.out)\.hook_out)"
    r"|embed\.hook_out|ln_final\.hook_(in|out|normalized)|unembed\.hook_in"
)  # hook points whose vectors are part of the residual stream, or are added to it
IN_BLOCK = re.compile(r"blocks\.\d+\.(\w+\.)*hook_\w+")


def require_residual_stream(dictionary: Dictionary, *, allow_mismatch: bool = False) -> None:
    """Refuse logit effects of directions that are not in the residual stream.

    Only in the residual stream does the unembedding show which tokens a direction promotes. Inside a
    block (`attn.hook_z`, `attn.hook_q`, `mlp.hook_post`), dimensions may equal `d_model` and mean
    something else.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary whose directions are projected onto tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionary's hook point lies inside a block.

    Warns
    -----
    UnrecordedWarning
        If the hook point is not recorded, or is not one of TransformerLens.

    Examples
    --------
    >>> require_residual_stream(small)
    >>> info = {"hook_point": "blocks.0.attn.hook_z"}
    >>> inside = saekit.Dictionary.from_weights(torch.rand(6, 8), torch.rand(8, 6), d_in=6, info=info)
    >>> require_residual_stream(inside)
    Traceback (most recent call last):
        ...
    saekit.agreement.MismatchError: Logit effects need directions in the residual stream ...
    """
    require_dictionaries(dictionary=dictionary)
    place = dictionary.target if dictionary.transcoder else dictionary.hook_point
    if place is not None and IN_STREAM.fullmatch(place):
        return
    if place is not None and IN_BLOCK.fullmatch(place):
        refuse(
            "Logit effects need directions in the residual stream (hook_resid_pre, hook_resid_post, "
            f"hook_attn_out, hook_mlp_out), but those of {dictionary.identity.described} are inside a block.",
            allow_mismatch=allow_mismatch,
        )
        return
    what = "target" if dictionary.transcoder else "hook point"
    found = f"does not record its {what}" if place is None else f"is on {place!r}, which is not known here"
    warn(
        f"{dictionary.identity.described} {found}: its logit effects mean something only if it is on the "
        "residual stream.",
        UnrecordedWarning,
    )


@dataclass(frozen=True, eq=False, repr=False)
class LogitTable(Result):
    """The tokens that each latent's decoder direction promotes and suppresses.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    top_ids, top_logits : Tensor
        The `n` tokens of greatest logit, greatest first, `[width, n]` each.
    bottom_ids, bottom_logits : Tensor
        The `n` tokens of least logit, least first, `[width, n]` each.
    vocabulary : sequence of str, or tokenizer
        Display strings.
    """

    dictionary: Identity
    top_ids: Tensor
    top_logits: Tensor
    bottom_ids: Tensor
    bottom_logits: Tensor
    vocabulary: Sequence[str] | PreTrainedTokenizerBase

    def latent(self, latent: int) -> pd.DataFrame:
        """One row per rank: `rank`, `top_token`, `top_logit`, `bottom_token`, `bottom_logit`."""
        latent = select_latent(latent, len(self.top_ids))
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
        """One row per latent and rank: `latent`, then the columns of `latent()`."""
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
        return {"dictionary": str(self.dictionary), "width": len(self.top_ids), "n": self.top_ids.shape[1]}


@cached
def logit_table(
    dictionary: Dictionary,
    unembedding: Tensor,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    n: int = 10,
    chunk: int | None = None,
    progress: bool = False,
    allow_mismatch: bool = False,
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
        Latents per matrix product; by default as many as keep the logits within 128 MB.
    progress : bool
        Show a progress bar in latents.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    ValueError
        If the dictionary is not on the residual stream (see `require_residual_stream`), the
        unembedding does not fit it, is not finite, or has fewer than `n` tokens, or the vocabulary
        is shorter than the unembedding.

    Examples
    --------
    >>> table = logit_table(dictionary, unembedding, vocabulary, n=2)
    >>> table.latent(0)[["rank", "top_token", "bottom_token"]]
       rank top_token bottom_token
    0     1      king        stone
    1     2     river         moon
    """
    require_residual_stream(dictionary, allow_mismatch=allow_mismatch)
    if not isinstance(unembedding, Tensor):
        raise TypeError(
            f"unembedding must be a tensor [{dictionary.d_out}, vocab], such as "
            f"saekit.models.unembedding(model), found {type(unembedding).__name__}."
        )
    if unembedding.ndim != 2 or unembedding.shape[0] != dictionary.d_out:
        raise ValueError(
            f"The unembedding must be [{dictionary.d_out}, vocab] for {dictionary.name}, "
            f"found {list(unembedding.shape)}."
        )
    settings.finite("The unembedding holds", unembedding)
    n = settings.whole("n", n, at_most=unembedding.shape[1])
    require_vocabulary(vocabulary, unembedding.shape[1])
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // unembedding.shape[1])
    top, bottom = [], []
    with (
        torch.no_grad(),
        tqdm(total=dictionary.width, disable=not progress, unit="latent", desc="logit effects") as bar,
    ):
        for part in dictionary.W_dec.split(settings.whole("chunk", chunk)):
            logits = part @ unembedding.to(part)
            top.append(largest(logits, n))
            bottom.append(largest(-logits, n))
            bar.update(len(part))
    top_logits, top_ids = (torch.cat(parts).cpu() for parts in zip(*top, strict=True))
    bottom_logits, bottom_ids = (torch.cat(parts).cpu() for parts in zip(*bottom, strict=True))
    return LogitTable(dictionary.identity, top_ids, top_logits, bottom_ids, -bottom_logits, vocabulary)


@dataclass(frozen=True, eq=False, repr=False)
class TopTokens(Result):
    """The tokens on which a latent is most active.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    latent : int
        Which latent.
    by : str
        The order of the tokens: by `"mean"` or `"lift"`.
    frame : DataFrame
        One row per token, greatest first: `token_id`, `token`, `count` (occurrences at used
        positions), `n_active` (those with the latent active), `mean` (activation over all
        occurrences), `lift` (share of occurrences with the latent active over its density). Empty
        if the latent is dead.
    """

    dictionary: Identity
    latent: int
    by: str
    frame: pd.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `latent`, `by`, `n_tokens`, `top` (the first token, or None)."""
        return {
            "dictionary": str(self.dictionary),
            "latent": self.latent,
            "by": self.by,
            "n_tokens": len(self.frame),
            "top": self.frame["token"].iat[0] if len(self.frame) else None,
        }


def top_tokens(
    activations: LatentActivations,
    latent: int,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    n: int = 10,
    by: str = "mean",
    min_count: int = 5,
) -> TopTokens:
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
        Greatest number of tokens.
    by : {"mean", "lift"}
        Greatest mean activation over all occurrences of the token, or greatest lift.
    min_count : int
        Leave out tokens that occur less often: their means and lifts are noise.

    Raises
    ------
    ValueError
        If a setting is out of its range, or the activations were collected over another store.
    TypeError, IndexError
        If the latent is not a whole number, or is out of range.

    Examples
    --------
    >>> top_tokens(collected, 6, store, vocabulary).frame[["token", "n_active", "count"]]
        token  n_active  count
    0    king        30     30
    1   queen        45     45
    """
    latent = select_latent(latent, activations.width)
    by = settings.choice("by", by, ("mean", "lift"))
    n, min_count = settings.whole("n", n), settings.whole("min_count", min_count, at_least=0)
    activations.require_store(store)
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
    frame = frame.sort_values([by, "token_id"], ascending=[False, True]).head(n).reset_index(drop=True)
    return TopTokens(activations.dictionary, latent, by, frame)
