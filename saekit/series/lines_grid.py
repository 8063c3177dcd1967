"""Features that are not lines, and maps between layers, where they need more text or time than a notebook.

`saekit lines` writes three tables into the package: whether days, months and years lie around circles, in the
activations and in their reconstructions by bundled dictionaries, at every occurrence in the training text;
the mean point of each word; and maps between layers. The stores that activations are mapped between are kept
under `saekit.files.home()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import ActivationStore, harvest, random_stream
from saekit.analysis.irreducibility.scores import plane_scores
from saekit.analysis.irreducibility.words import CircularOrder, measure_circular_order, word_tokens
from saekit.analysis.maps import RANKS, Maps, measure_maps
from saekit.dictionary import Dictionary
from saekit.files import home, write_bytes
from saekit.loading.names import BUNDLED, load_family
from saekit.models import load_model, token_strings
from saekit.series.embedded import HOOK_POINT, embedded_rows, embedded_store
from saekit.settings import choice

WORDS = {
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "months": (
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    ),
    "years": tuple(str(year) for year in range(1900, 2000)),
}
KINDS, WIDTHS = ("relu", "batchtopk"), (2304, 9216)
SAMPLED = 20_000  # training tokens that tell what else a latent fires on
ABOUT = 0.5  # share of a latent's activation that must fall on the words
ACTIVATIONS, RECONSTRUCTION, LATENTS = "activations", "reconstruction", "its latents"

MAP_TOKENS = 12_000
CARRIED = ("batchtopk", 2304)
MAP_ROWS = 8  # held-out rows that the model is run on
OF_SAES = 12  # the layer of the bundled dictionaries
PAIRS = (  # of layers, source and target
    *((OF_SAES, target) for target in (6, 11, 13, 18, 24)),
    *((source, OF_SAES) for source in (6, 18, 24)),
)
TABLES = ("words", "circles", "maps")


# ------------------------------------------------------------------------------ words in circles


def words_rows(*, progress: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Whether words lie around circles: one row per test, and one per word of each.

    Parameters
    ----------
    progress : bool
        Show a progress bar in dictionaries.
    """
    store = embedded_store("train", progress=progress)
    model = load_model(dtype=torch.bfloat16)
    vocabulary = token_strings(model.tokenizer, range(len(model.tokenizer)))
    sample = store.read(
        store.positions[torch.randperm(len(store.positions), generator=random_stream(0))[:SAMPLED]]
    )
    scale = len(store.positions) / SAMPLED
    rows, circles = [], []
    for words, names in WORDS.items():
        positions, places = _occurrences(store, vocabulary, names)
        if not len(positions):
            rows.append({"words": words, "points": ACTIVATIONS, "n_points": 0, "n_words": 0})
            continue
        x = store.read(positions)
        for label, points in _points(x, sample, scale, progress=progress):
            row: dict[str, Any] = {"words": words, **label}
            if points is not None and len(places[points.any(dim=1)].unique()) >= 5:
                active = points.any(dim=1)
                found = measure_circular_order(points[active], places[active], names)
                scores = plane_scores(points[active], permutations=19)
                row |= found.summary | {"score": scores["score"].mean(), "mixture": scores["mixture"].mean()}
                circles.append(found.frame.assign(words=words, **label))
            rows.append(row)
    return pd.DataFrame(rows), pd.concat(circles, ignore_index=True)


def _occurrences(
    store: ActivationStore, vocabulary: list[str], names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Used positions of the words as they are written, and the place of each in the list."""
    place = torch.full((len(vocabulary),), -1)
    for token, number in word_tokens(vocabulary, names):
        if vocabulary[token].strip() in names:  # "may" and "march" are not months
            place[token] = number
    found = place[store.tokens.flatten()[store.positions]]
    return store.positions[found >= 0], found[found >= 0]


def _points(
    x: Tensor, sample: Tensor, scale: float, *, progress: bool
) -> Iterator[tuple[dict[str, Any], Tensor | None]]:
    """The activations, and what bundled dictionaries and their latents about the words make of them."""
    yield {"points": ACTIVATIONS}, x
    members = [load_family(kind)[width] for kind in KINDS for width in WIDTHS]
    for dictionary in tqdm(members, disable=not progress, unit="SAE", desc="words"):
        label = {"kind": dictionary.kind, "width": dictionary.width}
        about = _about(dictionary, x, sample, scale)
        rows = dictionary.W_dec[about]
        n = len(about)
        label |= {"n_latents": n}
        if n > 1:
            label["mean_cosine"] = (float(rows.sum(0).square().sum()) - n) / (n * (n - 1))
        yield {**label, "points": RECONSTRUCTION}, dictionary.reconstruct(x)
        yield {**label, "points": LATENTS}, dictionary.encode(x)[:, about] @ rows if n > 1 else None


def _about(dictionary: Dictionary, x: Tensor, sample: Tensor, scale: float) -> Tensor:
    """Latents at least half of whose activation over the text falls on the words."""
    on_words = dictionary.encode(x).double().sum(0)
    everywhere = torch.zeros_like(on_words)
    for part in sample.split(4096):
        everywhere += scale * dictionary.encode(part).double().sum(0)
    return ((on_words > 0) & (on_words >= ABOUT * torch.maximum(everywhere, on_words))).nonzero()[:, 0]


# ------------------------------------------------------------------------------ maps between layers


def layer_store(layer: int, *, model: Any = None, progress: bool = False) -> ActivationStore:
    """Held-out activations after a block of the embedded model.

    Parameters
    ----------
    layer : int
        Number of the block.
    model : TransformerBridge, optional
        The embedded model in float32, if it is loaded.
    progress : bool
        Show progress in tokens.
    """
    path = home() / "stores" / f"maps-{layer}-{MAP_TOKENS}-float32"
    model = load_model() if model is None else model
    rows = embedded_rows(model, part="held-out", n_tokens=MAP_TOKENS)
    place = HOOK_POINT.replace(f".{OF_SAES}.", f".{layer}.")
    return harvest(model, rows, place, path=path, dtype=torch.float32, progress=progress)


def mapped(source: int, target: int, *, model: Any = None, progress: bool = False) -> Maps:
    """Maps from one layer to another, with a bundled dictionary: carried from its layer, or native at it.

    Parameters
    ----------
    source, target : int
        Numbers of the blocks to map from and to.
    model : TransformerBridge, optional
        The embedded model in float32, if it is loaded.
    progress : bool
        Show progress.
    """
    model = load_model() if model is None else model
    kind, width = CARRIED
    dictionary = load_family(kind)[width]
    stores = [layer_store(layer, model=model, progress=progress) for layer in (source, target)]
    return measure_maps(
        stores[0],
        stores[1],
        dictionary if source == OF_SAES else None,
        native=dictionary if target == OF_SAES else None,
        model=model,
        ranks=RANKS,
        max_rows=MAP_ROWS,
        progress=progress,
    )


def maps_rows(*, progress: bool = False) -> pd.DataFrame:
    """Maps between pairs of layers, one row per map, and per dictionary carried through it.

    Parameters
    ----------
    progress : bool
        Show progress.
    """
    model = load_model()
    parts = []
    for source, target in tqdm(PAIRS, disable=not progress, unit="pair", desc="maps"):
        found = mapped(source, target, model=model)
        maps = found.frame.assign(points=ACTIVATIONS)
        carried = found.carried.assign(points=RECONSTRUCTION)
        label = {"source": source, "target": target}
        sizes = {"n_fitted": found.n_fitted, "n_held_out": found.n_held_out}
        parts += [part.assign(**label, **sizes) for part in (maps, carried) if len(part)]
    table = pd.concat(parts, ignore_index=True)
    first = ["source", "target", "points", "map", "back", "rank", "l0"]
    return table[[*first, *table.columns.difference(first, sort=False)]]


# ------------------------------------------------------------------------------ tables


def write_lines(*, progress: bool = True) -> None:
    """Write the tables into the package.

    Parameters
    ----------
    progress : bool
        Show progress.
    """
    words, circles = words_rows(progress=progress)
    _write("words", words)
    _write("circles", circles)
    _write("maps", maps_rows(progress=progress))


def _write(name: str, table: pd.DataFrame) -> None:
    write_bytes(BUNDLED / f"lines_{name}.csv", table.to_csv(index=False, float_format="%.6g").encode())


def lines_table(name: str) -> pd.DataFrame:
    """A table that `saekit lines` wrote.

    Parameters
    ----------
    name : {"words", "circles", "maps"}
        Tests of words in circles, the mean point of each word, or maps between layers.

    Raises
    ------
    ValueError
        If there is no such table.

    Examples
    --------
    >>> lines_table("words")["words"].unique().tolist()
    ['days', 'months', 'years']
    """
    return pd.read_csv(BUNDLED / f"lines_{choice('name', name, TABLES)}.csv")


def circle_of(words: str, points: str, kind: str | None = None, width: int | None = None) -> CircularOrder:
    """A test of words in a circle, from the tables.

    Parameters
    ----------
    words : {"days", "months"}
        Which words.
    points : str
        `"activations"`, `"reconstruction"` or `"its latents"`.
    kind, width : str and int, optional
        The dictionary, except for activations.

    Raises
    ------
    ValueError
        If it was not tested.

    Examples
    --------
    >>> circle_of("days", "activations").frame["word"].head(2).tolist()
    ['Monday', 'Tuesday']
    """
    chosen = []
    for name in ("words", "circles"):
        table = lines_table(name)
        table = table[(table["words"] == words) & (table["points"] == points)]
        if points != ACTIVATIONS:
            table = table[(table["kind"] == kind) & (table["width"] == width)]
        chosen.append(table)
    row, frame = chosen
    if not len(frame):
        raise ValueError(f"The tables hold no circle of {words} in {points} of {kind} {width}.")
    found = row.iloc[0]
    return CircularOrder(
        frame[["word", "n_points", "x", "y"]].reset_index(drop=True),
        int(found["plane"]),
        float(found["order"]),
        float(found["order_null"]),
        float(found["p_value"]),
    )
