"""The atlas of a family: everything that its pages and explorers look up, computed once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from saekit import settings
from saekit.activations import ActivationStore
from saekit.agreement import check_agreement
from saekit.analysis.ablation import measure_ablation
from saekit.analysis.labels import Labels, label_latents, label_meta_latents
from saekit.analysis.latents import LogitTable, require_sources
from saekit.analysis.meta.sae import MetaSAE
from saekit.analysis.novelty import Insertion
from saekit.analysis.own_text import TextReading, read_text
from saekit.analysis.similarity import largest
from saekit.analysis.splitting import Splitting, SplittingTree, measure_splitting, splitting_tree
from saekit.analysis.stitching.path import Stitching
from saekit.cache import keeping
from saekit.dictionary import Dictionary
from saekit.family import Family
from saekit.identity import Identity
from saekit.selection import Latents, select_latent
from saekit.widgets.evidence import Evidence, collect_evidence
from saekit.wording import listed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

NEIGHBOURS = 3  # nearest latents at each other width
_SEARCHED = {"label": 3, "fires on": 2, "promotes": 1}  # what is searched; of equal matches the first wins
_MATCHES = {"whole": 30, "start": 20, "inside": 10}  # of a word


@dataclass(frozen=True, eq=False)
class Atlas:
    """Everything that the pages and explorers of a family look up.

    Made by `saekit.widgets.build_atlas`. Methods take a width of the family and a latent of its lowest
    seed, and raise a `ValueError` or an `IndexError` if there is no such width or latent.

    Attributes
    ----------
    family : Family
        The family, with all of its members in memory.
    store : ActivationStore
        The tokens that the evidence was collected on.
    model : TransformerBridge or None
        The model, if one was given.
    evidence : mapping of int to Evidence
        By width: what each latent fires on and promotes.
    labels : mapping of int to Labels
        By width.
    tree : SplittingTree or None
        How latents split; None for a family of one width.
    meta : MetaSAE or None
        A meta-SAE of some of the family's dictionaries, if one was given.
    meta_labels : Labels or None
        Labels of its meta-latents.
    insertion : Insertion or None
        Between two of the family's dictionaries, if one was given.
    stitching : Stitching or None
        Likewise.
    """

    family: Family
    store: ActivationStore
    model: TransformerBridge | None
    evidence: Mapping[int, Evidence]
    labels: Mapping[int, Labels]
    tree: SplittingTree | None
    meta: MetaSAE | None
    meta_labels: Labels | None
    insertion: Insertion | None
    stitching: Stitching | None
    _between_seeds: Mapping[int, Sequence[Splitting]]
    _keep: bool = False
    _tables: dict[int, pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def of_evidence(cls, family: Family, evidence: Mapping[int, Evidence]) -> Atlas:
        """An atlas of nothing but evidence, whose latents are named by the words that they fire on."""
        store = evidence[family.widths[0]].store
        seeds: dict[int, Sequence[Splitting]] = dict.fromkeys(family.widths, ())
        return cls(Family(family), store, None, evidence, {}, None, None, None, None, None, seeds)

    @property
    def widths(self) -> list[int]:
        """The family's widths, ascending."""
        return self.family.widths

    def select(self, width: int, latent: int) -> tuple[int, int]:
        """Width and latent as plain numbers.

        Raises
        ------
        TypeError, ValueError, IndexError
            If the family has no such width, or the width no such latent.
        """
        width = settings.whole("width", width)
        if width not in self.evidence:
            raise ValueError(f"The family has widths {listed(self.widths)}, found {width}.")
        return width, select_latent(latent, width, what=f"A latent of width {width}")

    def dictionary(self, width: int) -> Dictionary:
        """The dictionary of a width (its lowest seed)."""
        return self.family[self.select(width, 0)[0]]

    def label(self, width: int, latent: int) -> str:
        """A latent's label; where its width has none, the words that it fires on."""
        width, latent = self.select(width, latent)
        if width in self.labels:
            return self.labels[width].of(latent)
        return " · ".join(self.evidence[width].words(latent)) or "dead"

    # ------------------------------------------------------------------ tables

    def table(self, width: int) -> pd.DataFrame:
        """One row per latent of a width; the same frame each time, so copy it before changing it.

        Returns
        -------
        DataFrame
            `width`, `latent`, `label`, `dead`, `n_active`, `density`, `mean` and `max` (of its
            activations where it is active); `smaller_match` and `smaller_cosine` (the most similar latent
            of the next smaller width), `novel` (that cosine is under the tree's theta), `larger_match`
            and `larger_cosine`, `children` and `status` (its fate at the next larger width, see
            `SplittingTree.nodes`); `seed_cosine` (greatest cosine in another seed, averaged over the
            other seeds); `meta_latents` (their number) and `mse_change` (on insertion) if the atlas has
            a meta-SAE or an insertion, NaN where it is not of this width. Where there is no such width or
            seed, matches are -1, cosines NaN and the status is empty.
        """
        width, _ = self.select(width, 0)
        if width not in self._tables:
            self._tables[width] = self._table(width)
        return self._tables[width]

    def _table(self, width: int) -> pd.DataFrame:
        activity = self.evidence[width].activations.frame
        table = pd.DataFrame(
            {
                "width": width,
                "latent": activity["latent"],
                "label": self.labels[width].frame["label"],
                **{name: activity[name] for name in ("dead", "n_active", "density", "mean", "max")},
                "smaller_match": -1,
                "smaller_cosine": np.nan,
                "novel": False,
                "larger_match": -1,
                "larger_cosine": np.nan,
                "children": 0,
                "status": "",
                "seed_cosine": np.nan,
                # Every width has every column, so that a filter or an order holds for all of them.
                **({} if self.meta is None else {"meta_latents": np.nan}),
                **({} if self.insertion is None else {"mse_change": np.nan}),
            }
        )
        if self.tree is not None:
            place = self.widths.index(width)
            table["status"] = "leaf"
            if place:
                up = self.tree.pairs[self.widths[place - 1]].frame
                table["smaller_match"], table["smaller_cosine"] = up["best_match"], up["cosine"]
                table["novel"] = up["novel"]
            if width in self.tree.pairs:
                down = self.tree.pairs[width].frame_small
                table["larger_match"], table["larger_cosine"] = down["best_match"], down["cosine"]
                table["children"], table["status"] = down["children"], down["status"]
        if self._between_seeds[width]:
            cosines = [between.frame_small["cosine"] for between in self._between_seeds[width]]
            table["seed_cosine"] = np.mean(cosines, axis=0)
        base = self._base(width)
        if self.meta is not None and base is not None:
            table["meta_latents"] = self.meta.decomposition.counts[self.meta.base == base].numpy()
        if self.insertion is not None and self.insertion.large == self.family[width].identity:
            table["mse_change"] = self.insertion.frame["mse_change"]
        return table

    def nearest(self, width: int, latent: int, n: int = NEIGHBOURS) -> pd.DataFrame:
        """The `n` most similar latents of each other width: `width`, `latent`, `cosine`, `label`."""
        width, latent = self.select(width, latent)
        row = self.family[width].W_dec[latent]
        found = []
        for other in self.widths:
            if other != width:
                # Decoder rows have unit norm, so one product gives the cosines, even at large widths.
                cosines, indices = largest((self.family[other].W_dec @ row)[None], min(n, other))
                found += [
                    (other, index, cosine, self.label(other, index))
                    for cosine, index in zip(cosines[0].tolist(), indices[0].tolist(), strict=True)
                ]
        return pd.DataFrame(found, columns=["width", "latent", "cosine", "label"])

    def seeds(self, width: int, latent: int) -> pd.DataFrame:
        """The most similar latent of each other seed of the width: `seed`, `latent`, `cosine`."""
        width, latent = self.select(width, latent)
        rows = []
        others = self.family.seeds(width)[1:] if self._between_seeds[width] else ()
        for seed, between in zip(others, self._between_seeds[width], strict=True):
            match = between.frame_small.iloc[latent]
            rows.append((seed, int(match["best_match"]), float(match["cosine"])))
        return pd.DataFrame(rows, columns=["seed", "latent", "cosine"])

    def meta_latents(self, width: int, latent: int) -> pd.DataFrame:
        """The latent's meta-latents, greatest first: `meta_latent`, `activation`, `label`.

        No rows if the atlas has no meta-SAE of this width.
        """
        width, latent = self.select(width, latent)
        base = self._base(width)
        if self.meta is None or self.meta_labels is None or base is None:
            return pd.DataFrame(columns=["meta_latent", "activation", "label"])
        found = self.meta.of(latent, base)
        labels = self.meta_labels.frame["label"].iloc[found["meta_latent"]]
        return found.assign(label=labels.to_numpy())

    def _base(self, width: int) -> int | None:
        """The place of a width's dictionary among the bases of the meta-SAE."""
        bases = () if self.meta is None else self.meta.bases
        identity = self.family[width].identity
        return bases.index(identity) if identity in bases else None

    # ------------------------------------------------------------------ with the model

    def logits(self, width: int, latent: int) -> Tensor | None:
        """A latent's direct effect on the logit of every token, `[vocab]`.

        None without a model, or off the residual stream.
        """
        width, latent = self.select(width, latent)
        if self._unembedding is None or not isinstance(self.evidence[width].logits, LogitTable):
            return None
        return self.family[width].W_dec[latent].to(self._unembedding) @ self._unembedding

    @cached_property
    def _unembedding(self) -> Tensor | None:
        from saekit.models import unembedding

        return None if self.model is None else unembedding(self.model)

    def read(self, width: int, text: str) -> TextReading:
        """Run the model on a text of one's own (`saekit.read_text`).

        Raises
        ------
        TypeError, ValueError
            As `saekit.read_text`, and if the atlas has no model.
        """
        return read_text(self._with_model("reads a text"), self.dictionary(width), text)

    def ablation(self, width: int, latent: int, positions: Latents) -> dict[int, float]:
        """Change of the next-token loss when a latent is removed, by position of the store.

        Kept by content; see `saekit.measure_ablation`. NaN where a row ends.

        Raises
        ------
        ValueError
            As `saekit.measure_ablation`, and if the atlas has no model.
        """
        width, latent = self.select(width, latent)
        model = self.require_ablation(width)
        with keeping(self._keep):
            found = measure_ablation(model, self.family[width], latent, self.store, positions)
        return dict(zip(found.frame["position"], found.frame["change"], strict=True))

    def require_ablation(self, width: int) -> TransformerBridge:
        """The model that latents of a width are ablated in.

        Raises
        ------
        ValueError
            If the atlas has none, or the latents depend on each other (see `saekit.as_jumprelu`).
        """
        model = self._with_model("ablates a latent")
        self.dictionary(width).require_independent("Ablation of one latent")
        return model

    def _with_model(self, what: str) -> TransformerBridge:
        if self.model is None:
            raise ValueError(f"An atlas {what} with its model, and this one has none: give build_atlas one.")
        return self.model

    # ------------------------------------------------------------------ searching

    def search(self, query: str, n: int = 50) -> pd.DataFrame:
        """Latents of all widths whose labels or tokens match every word of a query, best first.

        Upper and lower case count as equal. A word may match a whole token, its beginning or a part of it;
        labels count more than the tokens that a latent fires on, and these more than those that it
        promotes. Of equal matches, that of the more frequent latent comes first.

        Parameters
        ----------
        query : str
            Words, separated by spaces. A latent is also found by its number, alone or as `width/latent`.
        n : int
            Greatest number of latents.

        Returns
        -------
        DataFrame
            `width`, `latent`, `label`, `score`, `where` (`"number"`, `"label"`, `"fires on"` or
            `"promotes"`: the best match of the last word).

        Raises
        ------
        TypeError, ValueError
            If `query` is not text, or `n` not a whole number from 1.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a str, found {type(query).__name__}.")
        words = list(dict.fromkeys(query.casefold().split()))
        score, where = self._numbered(words)
        if words and not score.any():
            score = np.ones(len(score))
            for word in words:
                best, where = self._matching(word)
                score = np.where(best > 0, score + best, 0) * (score > 0)
                if not score.any():  # of a pasted page, say, whose other words change nothing
                    break
        found = np.flatnonzero(score)
        rows = self._rows
        order = np.lexsort(
            (rows["latent"][found], rows["width"][found], -rows["density"][found], -score[found])
        )
        found = found[order[: settings.whole("n", n)]]
        names = np.array(["", "promotes", "fires on", "label", "number"], dtype=object)
        return pd.DataFrame(
            {
                "width": rows["width"][found],
                "latent": rows["latent"][found],
                "label": rows["label"][found],
                "score": score[found],
                "where": names[where[found]],
            }
        )

    def _numbered(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Latents that a query names by number."""
        rows = self._rows
        named = np.zeros(len(rows["width"]), dtype=bool)
        # No latent has a number of more digits, and Python converts only so many.
        number = re.fullmatch(r"(?:(\d[\d,]{0,17})/)?(\d{1,18})", words[0]) if len(words) == 1 else None
        if number:
            named = rows["latent"] == int(number[2])
            if number[1]:
                named &= rows["width"] == int(number[1].replace(",", ""))
        return 100.0 * named, np.where(named, 4, 0)

    def _matching(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """The score of each latent for one word of a query, and the kind of text that matches best."""
        size = len(self._rows["width"])
        best, where = np.zeros(size), np.zeros(size, dtype=int)
        for name, weight in _SEARCHED.items():
            text, starts = self._texts[name]
            for how, value in _MATCHES.items():
                # Each token stands between two separators.
                pattern = {"whole": f"\x1f{word}\x1f", "start": f"\x1f{word}", "inside": word}[how]
                places = [match.start() for match in re.finditer(re.escape(pattern), text)]
                here = np.unique(np.searchsorted(starts, places, side="right") - 1)
                better = here[best[here] < value + weight]
                best[better], where[better] = value + weight, weight
        return best, where

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Columns over the latents of all widths."""
        table = pd.concat([self.table(width) for width in self.widths], ignore_index=True)
        return {name: table[name].to_numpy() for name in ("width", "latent", "label", "density")}

    @cached_property
    def _texts(self) -> dict[str, tuple[str, np.ndarray]]:
        """By what is searched: all texts in one string, and where that of each latent starts."""
        frames = [self.labels[width].frame for width in self.widths]
        words = [text.split(" · ") for frame in frames for text in frame["label"]]
        texts: dict[str, Iterable[Iterable[str]]] = {
            "label": words,
            "fires on": [tokens for frame in frames for tokens in frame["top_tokens"]],
            "promotes": [tokens for frame in frames for tokens in frame.get("top_logits", [()] * len(frame))],
        }
        joined = {}
        for name, rows in texts.items():
            lines = [
                "".join(f"\x1f{token.strip().casefold()}\x1f" for token in tokens) + "\n" for tokens in rows
            ]
            lengths = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines))
            joined[name] = "".join(lines), np.cumsum(lengths) - lengths
        return joined

    def __repr__(self) -> str:
        n = sum(self.widths)
        return f"Atlas({self.family!r}, {n:,} latents on {self.store.n_tokens:,} tokens)"


def build_atlas(
    family: Family,
    activations: ActivationStore,
    model: TransformerBridge | None = None,
    *,
    labels: Mapping[int, Labels] | None = None,
    tree: SplittingTree | None = None,
    meta: MetaSAE | None = None,
    insertion: Insertion | None = None,
    stitching: Stitching | None = None,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase | None = None,
    sources: Sequence[str] | None = None,
    keep: bool = True,
    progress: bool = True,
    allow_mismatch: bool = False,
) -> Atlas:
    """Compute everything that the pages and explorers of a family look up.

    Parameters
    ----------
    family : Family
        Of any kind, over one width or several, with or without further seeds; transcoders too.
    activations : ActivationStore
        Activations with their tokens, of the same model and hook point.
    model : TransformerBridge, optional
        Its unembedding gives the tokens that latents promote, and its tokenizer the display strings.
    labels : mapping of int to Labels, optional
        Labels by width; those of other widths are made from data (`saekit.label_latents`).
    tree : SplittingTree, optional
        From `saekit.splitting_tree`; made with its usual theta if left out.
    meta : MetaSAE, optional
        A meta-SAE of dictionaries of the family (the lowest seed of each width).
    insertion, stitching : Insertion, Stitching, optional
        Results between two of the family's dictionaries (the lowest seed of each width).
    vocabulary : sequence of str, or tokenizer, optional
        Display string of each token id; needed without a model.
    sources : sequence of str, optional
        Show contexts from these sources only.
    keep : bool
        Keep what is computed by its content (`saekit.cache`), under `saekit.files.home()`: a second call does
        not collect again, and one that was interrupted goes on from the last width that was finished.
    progress : bool
        Show progress.
    allow_mismatch : bool
        Warn instead of raising where the inputs do not belong together (`saekit.agreement`).

    Raises
    ------
    TypeError
        If an argument is of another type, or there is neither a model nor a vocabulary.
    MismatchError
        If model, activations and family do not belong together.
    ValueError
        If a result is not of this family.

    Examples
    --------
    >>> from saekit.widgets import build_atlas
    >>> atlas = build_atlas(saes, harvested, model, keep=False, progress=False)
    >>> atlas
    Atlas(Family(relu, widths=[16, 32], 3 dictionaries at blocks.1.hook_resid_post), 48 latents on ... tokens)
    >>> atlas.table(32).columns.tolist()[:5]
    ['width', 'latent', 'label', 'dead', 'n_active']
    """
    given = {
        "family": (family, Family),
        "activations": (activations, ActivationStore),
        "tree": (tree, SplittingTree),
        "meta": (meta, MetaSAE),
        "insertion": (insertion, Insertion),
        "stitching": (stitching, Stitching),
    }
    for name, (value, kind) in given.items():
        if not isinstance(value, kind) and (value is not None or name in ("family", "activations")):
            article = "an" if kind.__name__[0] in "AI" else "a"
            raise TypeError(f"{name} must be {article} {kind.__name__}, found {type(value).__name__}.")
    if labels is not None and not (
        isinstance(labels, Mapping) and all(isinstance(one, Labels) for one in labels.values())
    ):
        raise TypeError("labels must be a dict of Labels by width, from saekit.label_latents.")
    require_sources(activations, sources)
    family = Family(family)  # in memory: a click should not have to read a dictionary
    identities = {width: family[width].identity for width in family.widths}
    check_agreement(
        model=model,
        activations=activations,
        dictionaries=[family[width] for width in family.widths],
        allow_mismatch=allow_mismatch,
    )
    _require_members(identities, labels or {}, tree, meta, insertion, stitching)
    if tree is not None:
        _require_seeds(family, tree)
    with keeping(keep):
        if tree is None and len(family.widths) > 1:
            tree = splitting_tree(family, allow_mismatch=allow_mismatch)
        if tree is None:  # of one width
            pairs = family.comparisons(null=True)
            between = {
                family.widths[0]: tuple(
                    measure_splitting(pair.small, pair.large, allow_mismatch=allow_mismatch) for pair in pairs
                )
            }
        else:
            between = tree.nulls
        evidence = collect_evidence(
            family,
            activations,
            model,
            vocabulary=vocabulary,
            sources=sources,
            progress=progress,
            allow_mismatch=allow_mismatch,
        )
        given_labels = labels or {}
        labels = {
            width: given_labels[width] if width in given_labels else _label(family[width], found, progress)
            for width, found in evidence.items()
        }
        meta_labels = None
        if meta is not None:
            of_bases = [labels[base.width] for base in meta.bases]
            meta_labels = label_meta_latents(meta, of_bases, progress=progress)
    return Atlas(
        family,
        activations,
        model,
        evidence,
        labels,
        tree,
        meta,
        meta_labels,
        insertion,
        stitching,
        between,
        keep,
    )


def _label(dictionary: Dictionary, evidence: Evidence, progress: bool) -> Labels:
    logits = evidence.logits if isinstance(evidence.logits, LogitTable) else None
    return label_latents(
        dictionary, evidence.activations, evidence.store, evidence.vocabulary, logits, progress=progress
    )


def _require_members(
    identities: Mapping[int, Identity],
    labels: Mapping[int, Labels],
    tree: SplittingTree | None,
    meta: MetaSAE | None,
    insertion: Insertion | None,
    stitching: Stitching | None,
) -> None:
    """Refuse results of dictionaries that are not in the family."""
    used: dict[str, Iterable[Identity]] = {}
    for width, of_width in labels.items():
        if width not in identities:
            raise ValueError(
                f"labels has a width {width}, but the family has widths {listed(list(identities))}."
            )
        identities[width].require(of_width.dictionary, f"The family's dictionary of width {width}")
    if tree is not None:
        pairs = list(tree.pairs.values())
        used["tree"] = [pairs[0].small, *(pair.large for pair in pairs)]
    if meta is not None:
        used["meta"] = meta.bases
    if insertion is not None:
        used["insertion"] = (insertion.small, insertion.large)
    if stitching is not None:
        used["stitching"] = (stitching.small.identity, stitching.large.identity)
    for name, found in used.items():
        foreign = [identity for identity in found if identities.get(identity.width) != identity]
        if foreign:
            raise ValueError(
                f"{name} is of {foreign[0].described}, which is not among the family's dictionaries: "
                f"{listed([identity.name for identity in identities.values()])}."
            )
    if tree is not None and list(tree.widths) != list(identities):
        raise ValueError(
            f"tree has widths {listed(list(tree.widths))}, but the family has {listed(list(identities))}."
        )


def _require_seeds(family: Family, tree: SplittingTree) -> None:
    """Refuse a tree of other seeds than the family's."""
    for width in family.widths:
        wanted = [family.get(width, seed).identity for seed in family.seeds(width)[1:]]
        if [between.large for between in tree.nulls[width]] != wanted:
            raise ValueError(
                f"tree compares other seeds of width {width} than the family holds: make it with "
                "saekit.splitting_tree(family)."
            )
