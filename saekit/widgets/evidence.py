"""Evidence of what a dictionary's latents respond to, looked up fast: words, contexts, tables.

The explorers show latents through it. Only `collect_evidence` needs a model, for its unembedding and
tokenizer.
"""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from saekit import charts, html
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
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
    require_residual_stream,
    require_vocabulary,
    row_contexts,
    top_contexts,
)
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.identity import Identity
from saekit.selection import Latents, select_latent
from saekit.wording import listed, number, share, signed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from saekit.charts.chart import Chart

MIN_COUNT = 5  # occurrences from which a token's mean is more than noise


class Evidence:
    """The words, contexts and tokens that the latents of one dictionary fire on and promote.

    Its methods take a latent as a whole number and raise an `IndexError` if there is no such latent
    (`saekit.selection.select_latent`).

    Parameters
    ----------
    activations : LatentActivations
        Collected over `store`.
    store : ActivationStore
        Holds the tokens and their documents.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    logits : LogitTable or str, optional
        Tokens that each latent promotes, or the reason why there are none, shown in their place.
    sources : sequence of str, optional
        Show contexts from these sources only (all if left out).

    Raises
    ------
    ValueError
        If the activations were collected over another store, or `logits` is of another dictionary.
    """

    def __init__(
        self,
        activations: LatentActivations,
        store: ActivationStore,
        vocabulary: Sequence[str] | PreTrainedTokenizerBase,
        logits: LogitTable | str | None = None,
        *,
        sources: Sequence[str] | None = None,
    ) -> None:
        if isinstance(logits, LogitTable):
            activations.dictionary.require(logits.dictionary, "The dictionary of the logit table")
        if activations.store is not None and activations.store != store.content_hash:
            raise ValueError(
                f"The activations of {activations.dictionary.described} were collected over another store: "
                "collect them over this one."
            )
        self.activations, self.store, self.logits, self.sources = activations, store, logits, sources
        self.vocabulary = vocabulary
        self.counts: list[int] = activations.counts.tolist()
        self._tokens = store.tokens.flatten()
        self._occurrences = np.bincount(self._tokens[store.positions].numpy())
        self._words: dict[int, list[str]] = {}

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.activations.width

    @property
    def alive(self) -> list[int]:
        """Latents that are active on some token."""
        return [latent for latent, count in enumerate(self.counts) if count]

    def _select(self, latent: int) -> int:
        return select_latent(latent, self.width)

    def words(self, latent: int, n: int = 3) -> list[str]:
        """Tokens of the greatest activations, by their contribution; none if dead.

        Tokens that differ only in surrounding space count as one word.
        """
        latent = self._select(latent)
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
        """Contexts of greatest activation, at most one per document."""
        return top_contexts(self.activations, latent, self.store, self.vocabulary, n=n, sources=self.sources)

    def around(self, latent: int, positions: Latents, *, reach: int = 12) -> Contexts:
        """Contexts of given positions: `reach` tokens on each side."""
        return contexts(
            self.store,
            positions,
            self.vocabulary,
            activations=self.activations,
            latent=latent,
            before=reach,
            after=reach,
            sources=self.sources,
        )

    def rows(self, latent: int, positions: Latents) -> Contexts:
        """Contexts of given positions, as long as their rows."""
        return row_contexts(
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
        latent = self._select(latent)
        words = html.plain(self.words(latent)) if self.counts[latent] else "dead"
        return f"{latent}  {words}"

    def facts(self, latent: int) -> Markup:
        """Density and greatest activation, or a note that the latent is dead."""
        latent = self._select(latent)
        count, tokens = self.counts[latent], self.activations.n_tokens
        excluded = f"{self.activations.n_excluded:,} positions are excluded"
        if not count:
            return html.markup(
                "<p><b>Dead: never active on these {:,} tokens</b> <small>({}).</small></p>", tokens, excluded
            )
        greatest = self.activations.entries(latent)[1].max().item()
        return html.markup(
            "<p>Active on <b>{}</b> of {:,} tokens ({:,}); greatest activation <b>{}</b>. "
            "<small>{}.</small></p>",
            share(count / tokens),
            tokens,
            count,
            number(greatest),
            excluded,
        )

    def contexts_table(self, latent: int, n: int = 8, *, caption: str = "Top contexts") -> Markup:
        """Top contexts as coloured text with their sources; nothing if the latent is dead."""
        latent = self._select(latent)
        if not self.counts[latent]:
            return Markup()
        greatest = self.activations.entries(latent)[1].max().item()
        return _contexts_table(self.top(latent, n), greatest, caption)

    def card(self, latent: int, n: int = 3) -> Markup:
        """The page of a latent in small: its facts and `n` top contexts."""
        return self.facts(latent) + self.contexts_table(latent, n)

    def best_context(self, latent: int) -> Markup:
        """Render the context of greatest activation on its own; nothing if the latent is dead."""
        found = self.top(latent, 1)
        return html.join(html.context(c.tokens, c.values, c.focus, c.values[c.focus]) for c in found)

    def intervals(self, latent: int, *, bins: int = 5, n: int = 2) -> Markup:
        """Equal intervals of the activation, greatest first, each with its share and examples."""
        latent = self._select(latent)
        if not self.counts[latent]:
            return Markup()
        intervals = self.activations.intervals(latent, bins=bins, n=n)
        most, greatest = max(interval.share for interval in intervals), intervals[0].high
        rows = []
        for interval in intervals:
            examples = html.join(
                (
                    html.context(c.tokens, c.values, c.focus, greatest)
                    for c in self.around(latent, interval.positions)
                ),
                Markup("<br>"),
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

    def chart(self, latent: int) -> Chart | None:
        """Histogram of the latent's activations; None if it is dead."""
        latent = self._select(latent)
        if not self.counts[latent]:
            return None
        bins = self.activations.histogram(latent, bins=30)
        return charts.histogram(bins["count"].to_numpy(), np.append(bins["low"], bins["high"].iat[-1]))

    def histogram(self, latent: int, *, as_image: bool = False) -> Markup:
        """Histogram of the latent's activations; nothing if it is dead."""
        chart = self.chart(latent)
        if chart is None:
            return Markup()
        return Markup("<h4>Activations</h4>") + chart.html(as_image=as_image)

    def tokens_table(self, latent: int, n: int = 8) -> Markup:
        """Tokens on which the latent is most active, with counts; nothing if it is dead."""
        latent = self._select(latent)
        if not self.counts[latent]:
            return Markup()
        rows = [
            (html.chip(token), f"{n_active:,} of {count:,}", number(mean))
            for token, n_active, count, mean in self.top_tokens(latent, n)
        ]
        caption = html.join(["Fires on ", html.small("(by mean activation over all occurrences of a token)")])
        return html.table(("token", "active on", "mean"), rows, numeric=(1, 2), caption=caption)

    def logits_table(self, latent: int) -> Markup:
        """Tokens that the latent promotes and suppresses, or the reason why they are not shown."""
        if isinstance(self.logits, LogitTable):
            return effect_table(self.logits.latent(latent))
        return no_effects(self.logits or "")


def no_effects(reason: str) -> Markup:
    """The place of a table of logit effects, where there is a reason not to show one."""
    heading = Markup("<h4>Direct effect on the logits</h4>")
    return heading + html.markup("<p><small>{}</small></p>", reason) if reason else Markup()


def effect_table(effect: pd.DataFrame, caption: str | Markup = "Direct effect on the logits") -> Markup:
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


def _contexts_table(found: Sequence[Context], greatest: float, caption: str) -> Markup:
    title = html.markup(
        "{} <small>(colour: activation, deepest at {}; bold: peak)</small>", caption, number(greatest)
    )
    rows = example_rows(found, greatest)
    return html.table(("peak", "text", "from"), rows, numeric=(0,), caption=title)


def example_rows(
    found: Sequence[Context],
    greatest: float,
    *,
    near: int | None = None,
    losses: Mapping[int, float] | None = None,
) -> list[tuple[Any, ...]]:
    """Peak, coloured text and origin of each context.

    Contexts of exactly the same tokens, in their order and with the same peak, are one row with their number.

    Parameters
    ----------
    found : sequence of Context
        In the order to show.
    greatest : float
        Activation of the deepest colour.
    near : int, optional
        Tokens on each side of the peak that are shown at first, and compared; all if left out.
    losses : mapping of int to float, optional
        What the next token's loss changes by without the latent, by position of the store.
    """
    copies: dict[tuple[int, tuple[str, ...]], list[Context]] = {}
    for context in found:
        start, stop = 0, len(context.tokens)
        if near is not None:
            start, stop = max(0, context.focus - near), context.focus + near + 1
        copies.setdefault((context.focus - start, context.tokens[start:stop]), []).append(context)
    rows: list[tuple[Any, ...]] = []
    for context, *same in copies.values():
        first = context.position - context.focus
        notes = {
            at - first: f"loss {signed(change, 2)}"
            for at, change in (losses or {}).items()
            if first <= at < first + len(context.tokens) and change == change
        }
        text = html.context(context.tokens, context.values, context.focus, greatest, notes=notes, near=near)
        again = html.small(f" ×{len(same) + 1} the same") if same else ""
        origin = ": ".join(part for part in (context.source, context.title) if part)
        peak = html.bold(number(context.values[context.focus]))
        rows.append((peak, html.join([text, again]), html.small(html.cut(html.harmless(origin)))))
    return rows


def collect_evidence(
    family: Family,
    store: ActivationStore,
    model: TransformerBridge | None,
    *,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase | None = None,
    sources: Sequence[str] | None = None,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> dict[int, Evidence]:
    """Evidence for each width of a family: its activations on a store, and its effects on the logits.

    Parameters
    ----------
    family : Family
        A family at any hook point. Off the residual stream there are no logit effects, and the
        explorers show the reason in their place.
    store : ActivationStore
        Activations of the same model and hook point.
    model : TransformerBridge or None
        Its unembedding gives the logits and its tokenizer the display strings. Without a model there are
        no logits.
    vocabulary : sequence of str, or tokenizer, optional
        Display string of each token id; needed without a model.
    sources : sequence of str, optional
        Show contexts from these sources only.
    progress : bool
        Show progress in tokens.
    allow_mismatch : bool
        Warn instead of raising where the inputs contradict each other.

    Returns
    -------
    dict
        An `Evidence` for each width.

    Raises
    ------
    MismatchError
        If model, store and family do not belong together (`saekit.agreement`).
    TypeError
        If there is neither a model nor a vocabulary.

    Examples
    --------
    >>> found = saekit.collect_evidence(saes, harvested, model)
    >>> sorted(found)
    [16, 32]
    """
    from saekit.models import unembedding

    members = [family[width] for width in family.widths]
    check_agreement(model=model, activations=store, dictionaries=members, allow_mismatch=allow_mismatch)
    if vocabulary is None:
        if model is None:
            raise TypeError(
                "Without a model, the vocabulary must be given: a tokenizer, or the display string of each "
                "token id."
            )
        vocabulary = model.tokenizer
    require_vocabulary(vocabulary, int(store.tokens.max()) + 1)
    head = None if model is None else unembedding(model)

    def logits(member: Dictionary) -> LogitTable | str:
        if head is None:
            return "Without a model there are no logits."
        try:
            require_residual_stream(member, allow_mismatch=allow_mismatch)
        except ValueError as error:
            return str(error)
        return logit_table(member, head, vocabulary, progress=progress, allow_mismatch=allow_mismatch)

    return {
        member.width: Evidence(
            collect(member, store, progress=progress, allow_mismatch=allow_mismatch),
            store,
            vocabulary,
            logits(member),
            sources=sources,
        )
        for member in members
    }


def require_evidence(evidence: object, wanted: Identity, explorer: str) -> Evidence:
    """Refuse anything but evidence about one dictionary.

    Raises
    ------
    TypeError
        If it is not evidence.
    ValueError
        If it is about another dictionary.
    """
    if not isinstance(evidence, Evidence):
        found = "none" if evidence is None else f"a {type(evidence).__name__}"
        raise TypeError(
            f"{explorer} needs evidence of what the latents of {wanted} fire on, found {found}: give "
            f"saekit.collect_evidence(family, store, model)[{wanted.width}]."
        )
    found_in = evidence.activations.dictionary
    if found_in != wanted:
        raise ValueError(
            f"{explorer} needs evidence about {wanted.described}, found evidence about {found_in.described}."
        )
    return evidence


def require_evidence_of_each(
    evidence: Mapping[int, Evidence] | None, wanted: Iterable[Identity], explorer: str
) -> Mapping[int, Evidence]:
    """Refuse anything but evidence about each of several dictionaries, by width.

    Raises
    ------
    TypeError
        If it is not a mapping, or holds something that is not evidence.
    ValueError
        If a width has no evidence, or evidence about another dictionary.
    """
    wanted = list(wanted)
    widths = [identity.width for identity in wanted]
    if not isinstance(evidence, Mapping):
        found = "none" if evidence is None else f"a {type(evidence).__name__}"
        raise TypeError(
            f"{explorer} needs evidence of what the latents of widths {listed(widths)} fire on, by width, "
            f"found {found}: give saekit.collect_evidence(family, store, model)."
        )
    missing = [width for width in widths if width not in evidence]
    if missing:
        raise ValueError(
            f"{explorer} needs evidence for widths {listed(widths)}, but there is none for "
            f"{listed(missing)}: give saekit.collect_evidence(family, store, model) of the whole family."
        )
    for identity in wanted:
        require_evidence(evidence[identity.width], identity, explorer)
    return evidence
