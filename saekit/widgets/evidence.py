"""What the latents of a dictionary are about, looked up fast: words, contexts, tables.

The explorers show latents through this; nothing here runs a model.
"""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from saekit import html
from saekit.activations import ActivationStore
from saekit.analysis.labels import WORDS_FROM, words
from saekit.analysis.latents import (
    Context,
    Contexts,
    LatentActivations,
    LogitTable,
    collect,
    contexts,
    display_strings,
    logit_table,
    top_contexts,
)
from saekit.family import Family
from saekit.widgets import svg
from saekit.wording import number, share

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

MIN_COUNT = 5  # occurrences from which a token's mean is more than noise


class Evidence:
    """The data that say what a dictionary's latents are about.

    Parameters
    ----------
    activations : LatentActivations
        Collected over `store`.
    store : ActivationStore
        Holds the tokens and their documents.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    logits : LogitTable, optional
        Tokens that each latent promotes.
    sources : sequence of str, optional
        Show contexts from these sources only (all if left out).

    Raises
    ------
    ValueError
        If `logits` is for another width than `activations`.
    """

    def __init__(
        self,
        activations: LatentActivations,
        store: ActivationStore,
        vocabulary: Sequence[str] | PreTrainedTokenizerBase,
        logits: LogitTable | None = None,
        *,
        sources: Sequence[str] | None = None,
    ) -> None:
        if logits is not None and len(logits.top_ids) != activations.width:
            raise ValueError(
                f"The logit table has {len(logits.top_ids)} latents, "
                f"{activations.name} has {activations.width}."
            )
        self.activations, self.store, self.logits, self.sources = activations, store, logits, sources
        self.vocabulary = vocabulary
        self.counts: list[int] = activations.counts.tolist()
        self._tokens = store.tokens.flatten()
        self._occurrences = np.bincount(self._tokens[store.positions].numpy())
        self._words: dict[int, list[str]] = {}

    @staticmethod
    def require(evidence: Mapping[int, Evidence], widths: Iterable[int]) -> None:
        """Refuse evidence that does not cover these widths.

        Raises
        ------
        ValueError
            If a width has no evidence, or evidence of another width.
        """
        for width in widths:
            found = evidence[width].width if width in evidence else "none"
            if found != width:
                raise ValueError(f"Width {width} needs evidence of that width, found {found}.")

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.activations.width

    @property
    def alive(self) -> list[int]:
        """Latents that are active on some token."""
        return [latent for latent, count in enumerate(self.counts) if count]

    def words(self, latent: int, n: int = 3) -> list[str]:
        """Tokens of the greatest activations, by how much they contribute; none if dead.

        Tokens that differ only in surrounding space count as one word.
        """
        if latent not in self._words:
            positions, values = self.activations.top(latent, WORDS_FROM)
            ids = self._tokens[positions].tolist()
            self._words[latent] = words(ids, values.tolist(), self.vocabulary)
        return self._words[latent][:n]

    def top_tokens(self, latent: int, n: int = 8) -> list[tuple[str, int, int, float]]:
        """Token, occurrences with the latent active, all occurrences, mean activation over these.

        The same as `saekit.analysis.top_tokens`, looking at the latent's own tokens only.
        """
        positions, values = self.activations.entries(latent)
        ids, place = np.unique(self._tokens[positions].numpy(), return_inverse=True)
        n_active, count = np.bincount(place, minlength=len(ids)), self._occurrences[ids]
        mean = np.bincount(place, values.double().numpy(), minlength=len(ids)) / count
        common = np.flatnonzero(count >= MIN_COUNT)
        order = common[np.argsort(-mean[common], kind="stable")][:n]
        strings = display_strings(self.vocabulary, ids[order].tolist())
        columns = (n_active[order].tolist(), count[order].tolist(), mean[order].tolist())
        return list(zip(strings, *columns, strict=True))

    def top(self, latent: int, n: int = 8) -> Contexts:
        """Contexts of greatest activation, at most one from a document."""
        return top_contexts(self.activations, latent, self.store, self.vocabulary, n=n, sources=self.sources)

    def around(self, latent: int, positions: torch.Tensor) -> Contexts:
        """Contexts of given positions."""
        return contexts(
            self.store,
            positions,
            self.vocabulary,
            activations=self.activations,
            latent=latent,
            sources=self.sources,
        )

    # ------------------------------------------------------------------ HTML

    def label(self, latent: int) -> str:
        """Name a latent in one line of plain text: its number and words."""
        words = html.plain(self.words(latent)) if self.counts[latent] else "dead"
        return f"{latent}  {words}"

    def facts(self, latent: int) -> str:
        """Density and greatest activation, or that the latent is dead."""
        count, tokens = self.counts[latent], self.activations.n_tokens
        left_out = f"{self.activations.n_excluded:,} positions left out"
        if not count:
            return f"<p><b>Dead: never active on these {tokens:,} tokens</b> <small>({left_out}).</small></p>"
        greatest = self.activations.entries(latent)[1].max().item()
        return (
            f"<p>Active on <b>{share(count / tokens)}</b> of {tokens:,} tokens "
            f"({count:,}); greatest activation <b>{number(greatest)}</b>. "
            f"<small>{left_out}.</small></p>"
        )

    def contexts_table(self, latent: int, n: int = 8, *, caption: str = "Top contexts") -> str:
        """Top contexts as coloured text with their sources; nothing if the latent is dead."""
        if not self.counts[latent]:
            return ""
        greatest = self.activations.entries(latent)[1].max().item()
        return _contexts_table(self.top(latent, n), greatest, caption)

    def best_context(self, latent: int) -> str:
        """Render the context of greatest activation on its own; nothing if the latent is dead."""
        found = self.top(latent, 1)
        return "".join(html.context(c.tokens, c.values, c.focus, c.values[c.focus]) for c in found)

    def intervals(self, latent: int, *, bins: int = 5, n: int = 2) -> str:
        """Equal intervals of the activation, greatest first, each with its share and examples."""
        if not self.counts[latent]:
            return ""
        intervals = self.activations.intervals(latent, bins=bins, n=n)
        most, greatest = max(interval.share for interval in intervals), intervals[0].high
        rows = []
        for interval in intervals:
            examples = "<br>".join(
                html.context(c.tokens, c.values, c.focus, greatest)
                for c in self.around(latent, interval.positions)
            )
            rows.append(
                (
                    f"{number(interval.low)} to {number(interval.high)}",
                    share(interval.share),
                    html.bar(interval.share / most),
                    examples or "–",
                )
            )
        return html.table(
            ("activation", "share", "", "examples (a random sample)"),
            rows,
            numeric=(1,),
            caption="Activation intervals",
        )

    def histogram(self, latent: int, *, as_image: bool = False) -> str:
        """Histogram of the latent's activations; nothing if it is dead."""
        if not self.counts[latent]:
            return ""
        bins = self.activations.histogram(latent, bins=30)
        edges = np.append(bins["low"], bins["high"].iat[-1])
        label = f"Histogram of {self.counts[latent]:,} activations from 0 to {number(edges[-1])}"
        chart = svg.histogram(bins["count"].to_numpy(), edges, label=label, xlabel="activation")
        return "<h4>Activations</h4>" + (html.image(chart, label) if as_image else chart)

    def tokens_table(self, latent: int, n: int = 8) -> str:
        """Tokens on which the latent is most active, with how often; nothing if it is dead."""
        if not self.counts[latent]:
            return ""
        rows = [
            (html.chip(token), f"{n_active:,} of {count:,}", number(mean))
            for token, n_active, count, mean in self.top_tokens(latent, n)
        ]
        return html.table(("token", "active on", "mean"), rows, numeric=(1, 2), caption="Fires on")

    def logits_table(self, latent: int) -> str:
        """Tokens that the latent promotes and suppresses; nothing without a logit table."""
        return "" if self.logits is None else effect_table(self.logits.latent(latent))


def effect_table(effect: pd.DataFrame, caption: str = "Direct effect on the logits") -> str:
    """Tokens that a direction promotes and suppresses, from `LogitTable.latent`."""
    rows = [
        (
            html.chip(row.top_token),
            number(row.top_logit, 2),
            html.chip(row.bottom_token),
            number(row.bottom_logit, 2),
        )
        for row in effect.itertuples()
    ]
    return html.table(("promotes", "logit", "suppresses", "logit"), rows, numeric=(1, 3), caption=caption)


def _contexts_table(found: Sequence[Context], greatest: float, caption: str) -> str:
    copies: dict[tuple[str, ...], int] = {}
    for context in found:
        copies[context.tokens] = copies.get(context.tokens, 0) + 1
    rows = []
    for context in found:
        again = copies.pop(context.tokens, 0)
        if not again:
            continue
        same = f" <small>×{again} the same</small>" if again > 1 else ""
        origin = ": ".join(html.escape(part) for part in (context.source, context.title) if part)
        rows.append(
            (
                f"<b>{number(context.values[context.focus])}</b>",
                html.context(context.tokens, context.values, context.focus, greatest) + same,
                f"<small>{origin}</small>",
            )
        )
    title = f"{caption} <small>(colour: activation, deepest at {number(greatest)}; bold: the peak)</small>"
    return html.table(("peak", "text", "from"), rows, numeric=(0,), caption=title)


def collect_evidence(
    family: Family,
    store: ActivationStore,
    model: TransformerBridge,
    *,
    sources: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[int, Evidence]:
    """Evidence for every width of a family: its activations on a store, and its logits.

    Parameters
    ----------
    family : Family
        At a hook point on the residual stream.
    store : ActivationStore
        Activations of the same model and hook point.
    model : TransformerBridge
        Its unembedding gives the logits and its tokenizer the display strings.
    sources : sequence of str, optional
        Show contexts from these sources only.
    progress : bool
        Show progress in tokens.

    Returns
    -------
    dict
        An `Evidence` for each width.
    """
    from saekit.models import unembedding

    head = unembedding(model)
    return {
        width: Evidence(
            collect(family[width], store, progress=progress),
            store,
            model.tokenizer,
            logit_table(family[width], head, model.tokenizer),
            sources=sources,
        )
        for width in family.widths
    }
