"""Labels by a language model, and how well they predict where a latent fires. Nothing else needs them.

Any endpoint that speaks OpenAI's chat completions will do, local or not. Every answer is kept by the
content of its question, so a run that was stopped resumes where it was, and a repeated one costs nothing.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from saekit import settings
from saekit.activations import ActivationStore
from saekit.analysis.latents import LatentActivations, display_strings, require_vocabulary
from saekit.files import hash_json, home, read_json, write_json
from saekit.identity import Identity
from saekit.results import Result
from saekit.selection import Latents, select_latent, select_latents
from saekit.warn import warn

if TYPE_CHECKING:
    import httpx
    from transformers import PreTrainedTokenizerBase

AGAIN = (408, 409, 429, 500, 502, 503, 504)  # status codes of a server that may answer later
LONGEST_WAIT = 60.0  # seconds between two attempts
MARKED = 0.3  # share of a latent's maximum from which a token is marked
PER_PROMPT = 5  # passages judged at a time
COUNTS = ("prompt_tokens", "completion_tokens")
FEWEST = 4  # firing windows, and as many others, that a latent needs to be scored
LABELS = ("own", "another", "empty")
SCORES = ("detection", "fuzzing")

EXPLAIN = (
    "You study one unit of a language model. Below are passages of text in which it is active. The tokens on "
    "which it is most active are marked <<like this>>. Find what the marked tokens, or the text around them, "
    "have in common. Answer with one short phrase and nothing else."
)
JUDGE = {
    "detection": (
        "A unit of a language model is described below, followed by numbered passages of text. Decide for "
        "each passage whether the unit is active anywhere in it."
    ),
    "fuzzing": (
        "A unit of a language model is described below, followed by numbered passages of text in which some "
        "tokens are marked <<like this>>. Decide for each passage whether the marked tokens are those on "
        "which the unit is active."
    ),
}
FORM = (
    " Answer with a JSON list that holds 1 for yes or 0 for no for each passage, in order, and nothing else."
)


# ---------------------------------------------------------------------- the endpoint


class EndpointError(RuntimeError):
    """An endpoint that refuses, fails or gives no usable answer."""


@dataclass(frozen=True)
class Answer:
    """A language model's answer.

    Attributes
    ----------
    text : str
        The answer.
    prompt_tokens, completion_tokens : int or None
        As the endpoint counts them; None if it does not.
    cached : bool
        Whether it was kept from before.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached: bool


@dataclass(frozen=True)
class Endpoint:
    """A language model behind an OpenAI-compatible endpoint.

    Parameters
    ----------
    url : str
        Address up to the version, such as `"http://localhost:8000/v1"`.
    model : str
        Name of the model there.
    key : str, optional
        Sent as a bearer token, without surrounding space; never shown or kept.
    price : (float, float), optional
        Price of a million prompt tokens and of a million completion tokens, in any currency, to count costs.
    max_tokens : int
        Longest answer, in tokens.
    temperature : float
        0 for the likeliest answer.
    timeout : float
        Seconds to wait for an answer.
    attempts : int
        Number of attempts while the server is busy or fails.

    Raises
    ------
    TypeError, ValueError
        If a setting is out of range.

    Examples
    --------
    >>> Endpoint("http://localhost:8000/v1", "some-model", key="secret")
    Endpoint(url='http://localhost:8000/v1', model='some-model', ...)
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    price: tuple[float, float] | None = None
    max_tokens: int = 200
    temperature: float = 0.0
    timeout: float = 60.0
    attempts: int = 5

    def __post_init__(self) -> None:
        if not str(self.url).startswith(("http://", "https://")):
            raise ValueError(
                f"url must be an address such as 'http://localhost:8000/v1', found {self.url!r}."
            )
        rule = settings.several(lambda name, value: settings.real(name, value, at_least=0))
        settings.normalise(
            self,
            {
                "price": settings.optional(rule),
                "max_tokens": settings.whole,
                "temperature": lambda name, value: settings.real(name, value, at_least=0),
                "timeout": settings.positive,
                "attempts": settings.whole,
            },
        )
        if self.price is not None and len(self.price) != 2:
            raise ValueError(f"price must be that of prompt and of completion tokens, found {self.price}.")
        if self.key is not None:
            object.__setattr__(self, "key", str(self.key).strip())
            if not (self.key.isascii() and self.key.isprintable()):
                raise ValueError("key must consist of printable ASCII characters.")  # and is not shown

    def ask(self, system: str, question: str) -> Answer:
        """One answer, read from disk if the same model was asked the same with the same settings before.

        Answers are kept under `saekit.files.home()`.

        Raises
        ------
        EndpointError
            If the endpoint cannot be reached, refuses, stays busy, or answers in another form.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        key = hash_json([self.url.rstrip("/"), body])
        file = home() / "answers" / key[:2] / f"{key}.json"
        if (kept := _kept(file)) is not None:
            return kept
        found = self._post(body)
        try:
            text, usage = found["choices"][0]["message"]["content"], found.get("usage") or {}
            counts = {name: None if usage.get(name) is None else int(usage[name]) for name in COUNTS}
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            text = None
        if not isinstance(text, str):
            raise EndpointError(
                f"{self.url} must answer with choices[0].message.content, found {str(found)[:200]}."
            )
        text = text.encode("utf-8", "replace").decode()  # an answer may end in half an emoji
        write_json(file, {"text": text, **counts})
        return Answer(text, **counts, cached=False)

    def _post(self, body: dict[str, Any]) -> Any:
        """The server's answer, as JSON, after as many attempts as it takes."""
        import httpx

        address = f"{self.url.rstrip('/')}/chat/completions"
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        for attempt in range(self.attempts):
            wait = 2.0**attempt
            try:
                answer = _client().post(address, json=body, headers=headers, timeout=self.timeout)
            except httpx.InvalidURL as error:
                raise EndpointError(f"{address} is no address: {error}.") from None
            except httpx.HTTPError as error:
                problem = f"{address} cannot be reached: {error or type(error).__name__}"
            else:
                if answer.is_success:
                    try:
                        return answer.json()
                    except ValueError:
                        raise EndpointError(
                            f"{address} must answer with JSON, found {answer.text[:200]!r}."
                        ) from None
                if answer.status_code in (401, 403):
                    given = (
                        "no key was given" if self.key is None else "the key that was given is not accepted"
                    )
                    raise EndpointError(f"{address} refuses access ({answer.status_code}): {given}.")
                problem = f"{address} answers with status {answer.status_code}: {answer.text[:200]!r}"
                if answer.status_code not in AGAIN:
                    raise EndpointError(f"{problem}.")
                wait = _asked_wait(answer.headers.get("Retry-After"), wait)
            if attempt + 1 < self.attempts:
                time.sleep(min(wait, LONGEST_WAIT))
        raise EndpointError(f"{problem}, after {self.attempts} attempts; answers so far are kept.")


def _kept(file: Path) -> Answer | None:
    """An answer from before; None if there is none, or its file is damaged."""
    try:
        kept = read_json(file)
        prompt_tokens, completion_tokens = (kept[name] for name in COUNTS)
        return Answer(kept["text"], prompt_tokens, completion_tokens, cached=True)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        warn(f"{file} is damaged ({error!r}): the endpoint is asked again.")
        return None


@cache
def _client() -> httpx.Client:
    """One client for all questions: each would load the certificates of the machine anew."""
    import httpx

    return httpx.Client()


def _asked_wait(header: str | None, otherwise: float) -> float:
    """Seconds that a server asks to wait; a date, which it may also give, is not read."""
    try:
        asked = float(header or "")
    except ValueError:
        return otherwise
    return asked if math.isfinite(asked) and asked >= 0 else otherwise


class _Counter:
    """Counts answers and their tokens."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.answers: list[Answer] = []

    def ask(self, system: str, question: str) -> str:
        try:
            self.answers.append(self.endpoint.ask(system, question))
        except EndpointError as error:  # a run that goes on later does not count these again
            used = ", ".join(f"{name} {value}" for name, value in self.usage.items() if value is not None)
            error.add_note(f"Used so far: {used}.")
            raise
        return self.answers[-1].text

    @property
    def usage(self) -> dict[str, float | None]:
        """Questions asked and found, tokens of those asked, and their cost; None where not known."""
        asked = [answer for answer in self.answers if not answer.cached]
        tokens = {name: _total(getattr(answer, name) for answer in asked) for name in COUNTS}
        price, cost = self.endpoint.price, None
        if price is not None and None not in tokens.values():
            cost = sum(n * each for n, each in zip(tokens.values(), price, strict=True) if n) / 1e6
        return {"asked": len(asked), "cached": len(self.answers) - len(asked), **tokens, "cost": cost}


def _total(counts: Iterable[int | None]) -> int | None:
    """Their sum; None if one is not known."""
    known = [*counts]
    return None if None in known else sum(n for n in known if n)


# ---------------------------------------------------------------------- explanations


@dataclass(frozen=True, eq=False, repr=False)
class Explanations(Result):
    """Explanations of latents by a language model.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    model : str
        Name of the language model.
    frame : DataFrame
        One row per latent: `latent`, `explanation`, `n_examples` (passages shown).
    usage : dict
        `asked` and `cached` questions; `prompt_tokens` and `completion_tokens` of those asked, None if the
        endpoint does not count them; their `cost`, None without prices or counts.
    """

    dictionary: Identity
    model: str
    frame: pd.DataFrame
    usage: dict[str, float | None]

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `model`, `n_latents`, `n_distinct` explanations, and the usage."""
        return {
            "dictionary": str(self.dictionary),
            "model": self.model,
            "n_latents": len(self.frame),
            "n_distinct": int(self.frame["explanation"].nunique()),
            **self.usage,
        }


def explain_latents(
    endpoint: Endpoint,
    activations: LatentActivations,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    latents: Latents,
    *,
    n_examples: int = 10,
    window: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Explanations:
    """Let a language model explain latents from passages in which they fire, in the first half of the rows.

    Half of the passages are those of greatest activation, the others a random sample of the remaining ones in
    which the latent fires. Tokens on which it reaches 0.3 times its maximum are marked.

    Parameters
    ----------
    endpoint : Endpoint
        The language model.
    activations : LatentActivations
        Activations of the dictionary, collected over `store`.
    store : ActivationStore
        Holds the tokens.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    latents : tensor, array, Series, slice or list
        Latents to explain, see `saekit.selection.select_latents`. Those that do not fire in the first
        half are left out.
    n_examples : int
        Passages per latent.
    window : int
        Tokens per passage.
    seed : int
        Seed of the sample.
    progress : bool
        Show a progress bar in latents.

    Raises
    ------
    ValueError
        If activations, store and vocabulary do not belong together, or a number is out of range.
    TypeError, IndexError
        If latents are not latents of the dictionary.
    EndpointError
        If the endpoint fails, or answers with an empty explanation; answers so far are kept.

    Notes
    -----
    Leask et al. (ICLR 2025) let a language model explain latents and meta-latents. The prompts are ours.
    """
    passages = _Passages(activations, store, vocabulary, window)
    chosen = select_latents(latents, activations.width)
    n_examples, seed = settings.whole("n_examples", n_examples), settings.whole("seed", seed, at_least=0)
    counter = _Counter(endpoint)
    rows = []
    for latent in tqdm(chosen.tolist(), disable=not progress, unit="latent", desc="explanations"):
        values = passages.values(latent, first_half=True)
        firing = np.flatnonzero(values.max(axis=1, initial=0) > 0)
        if not len(firing):
            continue
        random = np.random.default_rng([seed, latent])
        ordered = firing[np.argsort(-values[firing].max(axis=1), kind="stable")]
        top, others = np.split(ordered, [(n_examples + 1) // 2])
        shown = np.concatenate([top, random.permutation(others)[: n_examples // 2]])
        marks = values >= MARKED * values.max()
        texts = [passages.text(place, marks[place], first_half=True) for place in shown.tolist()]
        text = counter.ask(EXPLAIN, _numbered(texts)).strip()
        if not text:  # as of a model whose reasoning takes all of its tokens
            raise EndpointError(
                f"{endpoint.model} explained latent {latent} with an empty answer: raise max_tokens "
                f"(now {endpoint.max_tokens})."
            )
        rows.append({"latent": latent, "explanation": text, "n_examples": len(shown)})
    frame = pd.DataFrame(rows, columns=["latent", "explanation", "n_examples"])
    return Explanations(activations.dictionary, endpoint.model, frame, counter.usage)


class _Passages:
    """Windows of a store's tokens and a latent's values there, by half of the rows."""

    def __init__(
        self,
        activations: LatentActivations,
        store: ActivationStore,
        vocabulary: Sequence[str] | PreTrainedTokenizerBase,
        window: int,
    ) -> None:
        activations.require_store(store)
        self.window = settings.whole("window", window, at_most=store.context_length)
        require_vocabulary(vocabulary, int(store.tokens.max()) + 1)
        if store.n_rows < 2:
            raise ValueError("Explaining on one half and scoring on the other needs 2 rows, found 1.")
        self.activations, self.store, self.vocabulary = activations, store, vocabulary
        self.half = store.n_rows // 2
        self.used = store.context_length // self.window * self.window  # tokens of a row in whole windows

    def _rows(self, *, first_half: bool) -> tuple[int, int]:
        return (0, self.half) if first_half else (self.half, self.store.n_rows)

    def values(self, latent: int, *, first_half: bool) -> np.ndarray:
        """The latent's activations, `[windows, window]`."""
        start, stop = self._rows(first_half=first_half)
        length = self.store.context_length
        flat = np.zeros((stop - start) * length, dtype=np.float32)
        positions, values = (part.numpy() for part in self.activations.entries(latent))
        inside = (positions >= start * length) & (positions < stop * length)
        flat[positions[inside] - start * length] = values[inside]
        return flat.reshape(-1, length)[:, : self.used].reshape(-1, self.window)

    def text(self, place: int, marks: np.ndarray, *, first_half: bool) -> str:
        """A window's text; runs of marked tokens stand between << and >>."""
        start, stop = self._rows(first_half=first_half)
        tokens = self.store.tokens[start:stop, : self.used].reshape(-1, self.window)[place]
        shown = display_strings(self.vocabulary, tokens.tolist())
        parts: list[str] = []
        for i, (token, marked) in enumerate(zip(shown, marks.tolist(), strict=True)):
            before, after = i > 0 and marks[i - 1], i + 1 < len(marks) and marks[i + 1]
            parts.append(
                ("<<" if marked and not before else "") + token + (">>" if marked and not after else "")
            )
        return "".join(parts)


def _numbered(texts: Sequence[str]) -> str:
    return "\n\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(texts, start=1))


# ---------------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False, repr=False)
class ExplanationScores(Result):
    """How well explanations predict where latents fire, beside their floors.

    Attributes
    ----------
    dictionary : Identity
        The dictionary.
    model : str
        Name of the language model that judges.
    frame : DataFrame
        One row per latent: `latent`, `n_windows` (firing ones, and as many others), and the balanced accuracy
        of `detection` and `fuzzing` with the latent's `own` explanation, that of `another` latent, and an
        `empty` one: `detection_own`, `detection_another`, `detection_empty`, `fuzzing_own`, ...; NaN where no
        answer could be read, and for fuzzing where the latent fires too densely.
    n_judged, n_failed : int
        Passages judged, and those whose answer could not be read, which do not count in any score.
    n_left_out : int
        Latents that fire in too few or too many windows.
    usage : dict
        As in `Explanations`.
    """

    dictionary: Identity
    model: str
    frame: pd.DataFrame
    n_judged: int
    n_failed: int
    n_left_out: int
    usage: dict[str, float | None]

    @property
    def summary(self) -> dict[str, Any]:
        """`dictionary`, `model`, `n_latents`, the mean of every score, `n_failed`, and the usage."""
        means = self.frame[[f"{score}_{label}" for score in SCORES for label in LABELS]].mean()
        return {
            "dictionary": str(self.dictionary),
            "model": self.model,
            "n_latents": len(self.frame),
            **means.astype(float).to_dict(),
            "n_failed": self.n_failed,
            **self.usage,
        }


def score_explanations(
    endpoint: Endpoint,
    explanations: Explanations | Mapping[int, str],
    activations: LatentActivations,
    store: ActivationStore,
    vocabulary: Sequence[str] | PreTrainedTokenizerBase,
    *,
    n_windows: int = 20,
    window: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> ExplanationScores:
    """Let a language model predict, from explanations, where latents fire in the second half of the rows.

    - *Detection*: is the latent active in a passage? It is in half of them.
    - *Fuzzing*: are the marked tokens those on which it is active? It is active in all passages; in half of
      them as many tokens on which it is silent, drawn at random, are marked instead. Passages with too few
      silent tokens are left out.

    Balanced accuracy is the mean over both kinds of passages of the share judged right; chance is 0.5. A
    judge may do better than chance without any explanation, so the same questions are asked with an empty
    one and with that of another latent: the worth of an explanation is the difference.

    Parameters
    ----------
    endpoint : Endpoint
        The language model that judges.
    explanations : Explanations or mapping
        Explanations by latent, from `explain_latents` or elsewhere.
    activations : LatentActivations
        Activations of the dictionary, collected over `store`.
    store : ActivationStore
        Holds the tokens.
    vocabulary : sequence of str, or tokenizer
        Display string of each token id.
    n_windows : int
        Firing windows per latent, and as many others, drawn at random; at least 4.
    window : int
        Tokens per passage.
    seed : int
        Seed of the draw.
    progress : bool
        Show a progress bar in latents.

    Raises
    ------
    ValueError
        If the inputs do not belong together, there are fewer than two explanations, or a number is out of
        range.
    TypeError, IndexError
        If a key is not a latent of the dictionary.
    EndpointError
        If the endpoint fails; answers so far are kept.

    Notes
    -----
    The two scores are those of Paulo et al. (2024, arXiv:2410.13928). Their code drops answers that cannot be
    read without counting them; here `n_failed` counts them.
    """
    passages = _Passages(activations, store, vocabulary, window)
    if isinstance(explanations, Explanations):
        activations.dictionary.require(explanations.dictionary, "The dictionary of the activations")
        explanations = dict(zip(explanations.frame["latent"], explanations.frame["explanation"], strict=True))
    texts = {select_latent(latent, activations.width): text for latent, text in explanations.items()}
    if len(texts) < 2:
        raise ValueError(
            f"Scores need the explanations of at least 2 latents, one beside another, found {len(texts)}."
        )
    n_windows = settings.whole("n_windows", n_windows, at_least=FEWEST)
    seed = settings.whole("seed", seed, at_least=0)
    latents = list(texts)
    counter = _Counter(endpoint)
    rows, n_judged, n_failed = [], 0, 0
    for place, latent in enumerate(tqdm(latents, disable=not progress, unit="latent", desc="scores")):
        values = passages.values(latent, first_half=False)
        random = np.random.default_rng([seed, latent])
        sides = [np.flatnonzero((values.max(axis=1) > 0) == fires) for fires in (True, False)]
        n = min(n_windows, *map(len, sides))
        if n < FEWEST:
            continue
        firing, silent = (random.choice(side, n, replace=False) for side in sides)
        given = {"own": texts[latent], "another": texts[latents[place - 1]], "empty": ""}
        row: dict[str, Any] = {"latent": latent, "n_windows": n}
        for score in SCORES:
            asked, truth = _asked(passages, score, values, firing, silent, random)
            order = random.permutation(len(asked))
            for label, text in given.items():
                judged = _judge(counter, score, text, [asked[i] for i in order])
                right = truth[order]
                known = ~np.isnan(judged)
                n_judged, n_failed = n_judged + len(judged), n_failed + int((~known).sum())
                sides_right = [(judged == right)[known & (right == side)] for side in (1, 0)]
                complete = all(map(len, sides_right))
                row[f"{score}_{label}"] = (
                    float(np.mean([s.mean() for s in sides_right])) if complete else np.nan
                )
        rows.append(row)
    columns = ["latent", "n_windows", *(f"{score}_{label}" for score in SCORES for label in LABELS)]
    return ExplanationScores(
        dictionary=activations.dictionary,
        model=endpoint.model,
        frame=pd.DataFrame(rows, columns=columns),
        n_judged=n_judged,
        n_failed=n_failed,
        n_left_out=len(latents) - len(rows),
        usage=counter.usage,
    )


def _asked(
    passages: _Passages,
    score: str,
    values: np.ndarray,
    firing: np.ndarray,
    silent: np.ndarray,
    random: np.random.Generator,
) -> tuple[list[str], np.ndarray]:
    """Passages to judge, and whether the answer is yes."""
    if score == "detection":
        both = np.concatenate([firing, silent])
        nothing = np.zeros(values.shape[1], dtype=bool)
        texts = [passages.text(place, nothing, first_half=False) for place in both.tolist()]
        return texts, np.repeat([1, 0], len(firing))
    # Half of the firing windows keep their marks; the others have as many elsewhere. All have room for that:
    # fewer marks, or none, would give the others away.
    texts, truth = [], []
    threshold = MARKED * values.max()
    marked = {place: values[place] >= min(threshold, values[place].max()) for place in firing.tolist()}
    able = [place for place, marks in marked.items() if marks.sum() <= (values[place] == 0).sum()]
    for i, place in enumerate(random.permutation(np.array(able, dtype=int)).tolist()):
        marks = marked[place]
        if i % 2:
            free = np.flatnonzero(values[place] == 0)
            moved = random.choice(free, int(marks.sum()), replace=False)
            marks = np.isin(np.arange(len(marks)), moved)
        texts.append(passages.text(place, marks, first_half=False))
        truth.append(1 - i % 2)
    return texts, np.array(truth, dtype=int)


def _judge(counter: _Counter, score: str, explanation: str, texts: Sequence[str]) -> np.ndarray:
    """1 for yes and 0 for no, for each passage; NaN where the answer cannot be read."""
    found = []
    for start in range(0, len(texts), PER_PROMPT):
        part = texts[start : start + PER_PROMPT]
        question = f"Description: {explanation or '(none)'}\n\n{_numbered(part)}"
        found += _read_answer(counter.ask(JUDGE[score] + FORM, question), len(part))
    return np.array(found, dtype=float)


def _read_answer(text: str, n: int) -> list[float]:
    """The first JSON list of `n` zeros and ones in an answer, else as many NaN."""
    for found in re.findall(r"\[[^\[\]]*\]", text):
        try:
            values = json.loads(found)
        except ValueError:
            continue
        if len(values) == n and all(value in (0, 1) and not isinstance(value, float) for value in values):
            return [float(value) for value in values]
    return [math.nan] * n
