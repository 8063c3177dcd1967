"""Prompts for causal analyses: pairs that differ in what decides the next token, with its answers.

Three small generators make the usual tasks from templates: indirect objects, subject-verb agreement and
greater-than. `Prompts.from_texts` takes any list of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saekit import settings
from saekit.models import token_strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NONE = -1  # fills rows of answers that have fewer than the others


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as tokens, alone or in pairs, with the tokens that may follow.

    Attributes
    ----------
    name : str
        Name of the set.
    tokens : Tensor
        Ids of the clean prompts, int64 `[n, ctx]`. Shorter ones are filled up on the right, which a
        causal model does not see.
    lengths : Tensor
        Tokens of each, int64 `[n]`.
    strings : tuple of tuple of str
        Display strings of the tokens of each prompt.
    corrupted : Tensor or None
        Ids of the corrupted prompts, of the same lengths.
    answers, wrong : Tensor or None
        Right and wrong next tokens of each clean prompt, int64 `[n, most]`, filled up with -1.

    Examples
    --------
    >>> prompts = Prompts.from_texts(model.tokenizer, ["the king", "the old queen"], answers=[" the", " a"])
    >>> len(prompts), prompts.last.tolist()
    (2, [1, 2])
    """

    name: str
    tokens: Tensor
    lengths: Tensor
    strings: tuple[tuple[str, ...], ...]
    corrupted: Tensor | None = None
    answers: Tensor | None = None
    wrong: Tensor | None = None

    @classmethod
    def from_texts(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        clean: Sequence[str],
        *,
        corrupted: Sequence[str] | None = None,
        answers: Sequence[str | Sequence[str]] | None = None,
        wrong: Sequence[str | Sequence[str]] | None = None,
        name: str = "prompts",
        prepend_bos: bool = False,
    ) -> Prompts:
        """Tokenise prompts.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            The model's.
        clean, corrupted : sequence of str
            One text per prompt, and its corrupted twin of as many tokens.
        answers, wrong : sequence of str, or of sequences of str
            The right and the wrong next token of each clean prompt, or several; with their leading space.
        name : str
            Name of the set.
        prepend_bos : bool
            Begin every prompt with the beginning-of-sequence token.

        Raises
        ------
        TypeError
            If a prompt is not text.
        ValueError
            If there are no prompts, a list has another length than `clean`, the prompts of a pair have
            different numbers of tokens, an answer is not a single token, a token is both right and wrong, or
            the tokenizer has no beginning-of-sequence token to begin with.

        Examples
        --------
        >>> texts, others = ["the king sleeps", "the old queen"], ["the queen sleeps", "the old king"]
        >>> found = Prompts.from_texts(model.tokenizer, texts, corrupted=others, answers=[" over", " runs"])
        >>> found
        Prompts(prompts, 2 pairs of 3 tokens)
        """
        if prepend_bos and tokenizer.bos_token_id is None:
            raise ValueError(
                "The tokenizer has no beginning-of-sequence token, so prompts cannot begin with one."
            )
        bos = [tokenizer.bos_token_id] if prepend_bos else []

        def ids(texts: Sequence[str], what: str) -> list[list[int]]:
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{what} must be a sequence of texts, found {texts!r:.60}.")
            return [bos + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

        rows = ids(clean, "clean")
        for what, given in {"corrupted": corrupted, "answers": answers, "wrong": wrong}.items():
            if given is not None and len(given) != len(rows):
                raise ValueError(f"{what} must have one entry per prompt, {len(rows)}, found {len(given)}.")
        if not rows or not all(rows):
            raise ValueError("Prompts need at least one text, and no empty one.")
        others = None if corrupted is None else ids(corrupted, "corrupted")
        pairs = zip(clean, rows, clean if corrupted is None else corrupted, others or rows, strict=True)
        for place, (text, row, other_text, other) in enumerate(pairs):
            if len(row) != len(other):
                raise ValueError(
                    f"The prompts of pair {place} must have equally many tokens, found {len(row)} "
                    f"({text!r}) and {len(other)} ({other_text!r})."
                )
        right, false = (
            None if side is None else _single_tokens(tokenizer, side) for side in (answers, wrong)
        )
        for place, both in enumerate(zip(right or [], false or [], strict=False)):
            if shared := set.intersection(*map(set, both)):
                text = tokenizer.decode([min(shared)])
                raise ValueError(f"{text!r} is both a right and a wrong answer of prompt {place}.")
        return cls(
            name=str(name),
            tokens=_filled(rows, 0),
            lengths=torch.tensor([len(row) for row in rows]),
            strings=tuple(tuple(token_strings(tokenizer, row)) for row in rows),
            corrupted=None if others is None else _filled(others, 0),
            answers=None if right is None else _filled(right, NONE),
            wrong=None if false is None else _filled(false, NONE),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        low, high = (int(bound) for bound in self.lengths.aminmax())
        lengths = f"{low} to {high}" if low < high else f"{low}"
        what = "prompts" if self.corrupted is None else "pairs"
        return f"Prompts({self.name}, {len(self)} {what} of {lengths} tokens)"

    @property
    def last(self) -> Tensor:
        """Position of the last token of each prompt, int64 `[n]`."""
        return self.lengths - 1

    def select(self, rows: Tensor | Sequence[int] | np.ndarray) -> Prompts:
        """Some of the prompts, by their numbers or as a Boolean mask `[n]`.

        Raises
        ------
        ValueError
            If none is left.
        """
        wanted = np.asarray(rows)
        chosen = torch.from_numpy(np.arange(len(self))[wanted if wanted.size else slice(0)])
        if not len(chosen):
            raise ValueError(f"None of the {len(self)} prompts of {self.name} is left.")

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[chosen]

        return replace(
            self,
            tokens=self.tokens[chosen],
            lengths=self.lengths[chosen],
            strings=tuple(self.strings[row] for row in chosen.tolist()),
            corrupted=part(self.corrupted),
            answers=part(self.answers),
            wrong=part(self.wrong),
        )


def _filled(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of different lengths as one tensor, filled up on the right."""
    most = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (most - len(row))] for row in rows])


def _single_tokens(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str | Sequence[str]]
) -> list[list[int]]:
    rows = []
    for place, given in enumerate(answers):
        texts = [given] if isinstance(given, str) else list(given)
        if not texts:
            raise ValueError(f"Prompt {place} has no answer.")
        for text in texts:
            found = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(found) != 1:
                parts = ", ".join(map(repr, token_strings(tokenizer, found)))
                raise ValueError(
                    f"An answer must be a single token, found {text!r} of prompt {place}, which is "
                    f"{len(found)}: {parts}."
                )
        rows.append([tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts])
    return rows


# ------------------------------------------------------------------------------ tasks

NAMES = (
    *("Mary", "John", "Tom", "James", "Dan", "Anna", "Paul", "Peter", "Mark", "Sarah"),
    *("Robert", "David", "Michael", "Kate", "Laura", "George", "Simon", "Alice", "Jane", "Henry"),
)
SCENES = (
    *(("store", "drink"), ("park", "ball"), ("school", "book"), ("station", "ticket")),
    *(("office", "letter"), ("garden", "flower"), ("library", "map"), ("market", "basket")),
)
NOUNS = (
    *(("key", "keys"), ("book", "books"), ("letter", "letters"), ("picture", "pictures"), ("boy", "boys")),
    *(("girl", "girls"), ("student", "students"), ("doctor", "doctors"), ("farmer", "farmers")),
    *(("car", "cars"), ("house", "houses"), ("tree", "trees"), ("dog", "dogs"), ("ship", "ships")),
)
PLACES = ("near the door", "behind the wall", "in the garden", "on the table", "by the river", "in the room")
EVENTS = ("war", "siege", "voyage", "reign", "strike", "famine", "expedition", "campaign")


def indirect_object(
    tokenizer: PreTrainedTokenizerBase, n: int = 24, *, seed: int = 0, prepend_bos: bool = False
) -> Prompts:
    """Who was given something: "When Mary and John went to the store, John gave a drink to" (Mary).

    The corrupted prompt repeats the other name, which turns the answer round (Wang et al. 2023,
    arXiv:2211.00593, with the symmetric corruption of Zhang and Nanda 2024, arXiv:2309.16042). Half of the
    prompts name the indirect object first.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The model's; names that are not single tokens are left out.
    n : int
        Number of pairs.
    seed : int
        Seed of the choice among templates.
    prepend_bos : bool
        Begin every prompt with the beginning-of-sequence token, as for dictionaries trained on such rows.

    Raises
    ------
    ValueError
        If the tokenizer has too few of the words as single tokens, or a number is out of range.

    Examples
    --------
    >>> indirect_object.__name__ in TASKS
    True
    """
    names = _known(tokenizer, [f" {name}" for name in NAMES], "names")
    scenes = [scene for scene in SCENES if _is_token(tokenizer, f" {scene[0]}", f" {scene[1]}")]

    def one(draw: np.random.Generator) -> tuple[str, str, str, str]:
        a, b = draw.permutation(names)[:2].tolist()
        place, thing = scenes[draw.integers(len(scenes))]
        giver, taker = (a, b) if draw.integers(2) else (b, a)
        start = f"When{a} and{b} went to the {place},"
        return f"{start}{giver} gave a {thing} to", f"{start}{taker} gave a {thing} to", taker, giver

    if not scenes:
        raise ValueError("The tokenizer has none of the scenes of this task as single tokens.")
    return _drawn(tokenizer, "indirect object", one, n, seed, prepend_bos)


def agreement(
    tokenizer: PreTrainedTokenizerBase, n: int = 24, *, seed: int = 0, prepend_bos: bool = False
) -> Prompts:
    """Subject and verb: "The keys near the door" (are), against "The key near the door" (is).

    The prompts of a pair differ in the number of the subject; half are plural (Marks et al. 2025,
    arXiv:2403.19647, "across a prepositional phrase").

    Parameters, errors : see `indirect_object`.

    Examples
    --------
    >>> agreement.__name__ in TASKS
    True
    """
    nouns = [pair for pair in NOUNS if _is_token(tokenizer, f" {pair[0]}", f" {pair[1]}")]
    if not nouns:
        raise ValueError("The tokenizer has none of the nouns of this task as single tokens.")

    def one(draw: np.random.Generator) -> tuple[str, str, str, str]:
        forms, verbs = nouns[draw.integers(len(nouns))], (" is", " are")
        place, plural = PLACES[draw.integers(len(PLACES))], int(draw.integers(2))
        texts = [f"The {form} {place}" for form in forms]
        return texts[plural], texts[1 - plural], verbs[plural], verbs[1 - plural]

    return _drawn(tokenizer, "agreement", one, n, seed, prepend_bos)


def greater_than(
    tokenizer: PreTrainedTokenizerBase, n: int = 24, *, seed: int = 0, prepend_bos: bool = False
) -> Prompts:
    """Years: "The war lasted from the year 1732 to the year 17" (a later one).

    Right are tokens with which only later years go on, wrong those of only earlier ones; so it works for
    tokenizers of single digits and of pairs. Years that the tokenizer writes in another way, such as one
    token, are left out. The corrupted prompt starts in 1701 (Hanna et al. 2023, arXiv:2305.00586).

    Parameters, errors : see `indirect_object`.

    Examples
    --------
    >>> greater_than.__name__ in TASKS
    True
    """

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    century, first = ids(" 17"), ids(" 1701")
    written = {year: ids(f" 17{year:02d}") for year in range(100)}
    follows = {
        year: tokens[len(century)]
        for year, tokens in written.items()
        if tokens[: len(century)] == century and len(tokens) == len(first) > len(century)
    }
    starts = [year for year in range(20, 80) if year in follows]
    if 1 not in follows or not starts:
        raise ValueError("The tokenizer does not write 1732 and 1701 as 17 and more, which this task needs.")
    strings = {token: tokenizer.decode([token]) for token in follows.values()}

    def one(draw: np.random.Generator) -> tuple[str, str, list[str], list[str]]:
        event, year = EVENTS[draw.integers(len(EVENTS))], starts[draw.integers(len(starts))]
        earlier = {token for other, token in follows.items() if other < year}
        later = {token for other, token in follows.items() if other > year}
        text = f"The {event} lasted from the year 17{{:02d}} to the year 17"
        right, wrong = (
            sorted(strings[token] for token in side) for side in (later - earlier, earlier - later)
        )
        return text.format(year), text.format(1), right, wrong

    return _drawn(tokenizer, "greater than", one, n, seed, prepend_bos)


Task = Callable[..., Prompts]
TASKS: Mapping[str, Task] = {task.__name__: task for task in (indirect_object, agreement, greater_than)}


def _drawn(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    one: Callable[[np.random.Generator], tuple[str, str, str | list[str], str | list[str]]],
    n: int,
    seed: int,
    prepend_bos: bool,
) -> Prompts:
    """Different pairs from a template."""
    n, seed = settings.whole("n", n), settings.whole("seed", seed, at_least=0)
    draw = np.random.default_rng(seed)
    found: dict[str, tuple[str, str, str | list[str], str | list[str]]] = {}
    for _ in range(50 * n):
        pair = one(draw)
        found.setdefault(pair[0], pair)
        if len(found) == n:
            break
    if len(found) < n:
        raise ValueError(f"The templates of this task make only {len(found)} different prompts, not {n}.")
    clean, corrupted, answers, wrong = zip(*found.values(), strict=True)
    sides = {"corrupted": corrupted, "answers": answers, "wrong": wrong}
    return Prompts.from_texts(tokenizer, clean, name=name, prepend_bos=prepend_bos, **sides)


def _is_token(tokenizer: PreTrainedTokenizerBase, *texts: str) -> bool:
    return all(len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1 for text in texts)


def _known(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], what: str) -> list[str]:
    known = [text for text in texts if _is_token(tokenizer, text)]
    if len(known) < 2:
        raise ValueError(f"The tokenizer has too few of the {what} of this task as single tokens.")
    return known
