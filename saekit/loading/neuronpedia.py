"""Neuronpedia: links to pages, lists and embeds of them, and readers of pages and bulk files.

A dictionary records its place there as `info["neuronpedia_id"]`, such as
`"gpt2-small/8-res_fs49152-jb"`: a model and a source. Neuronpedia folds decoder norms when it loads
an SAE, so its activations are in the units of a saekit `Dictionary`. Only `fetch_feature`, and a
browser that shows an `embed`, use the network.
"""

from __future__ import annotations

import gzip
import html
import json
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pandas as pd

from saekit.dictionary import Dictionary
from saekit.files import read_json
from saekit.selection import Latents, select_latent, select_latents

SITE = "https://www.neuronpedia.org"
LIST_LIMIT = 150  # longer quick lists are not found
ANY_WIDTH = 1 << 40  # more latents than any source has, for sources of unknown width
PARTS = ("explanation", "plots", "test", "activations", "link", "steer")


# ------------------------------------------------------------------------------ links


def latent_url(source: Dictionary | str, latent: int) -> str:
    """Address of a latent's page.

    Parameters
    ----------
    source : Dictionary or str
        A dictionary with a `neuronpedia_id`, or such an id, `"model/source"`.
    latent : int
        Its number.

    Raises
    ------
    ValueError
        If the dictionary has no id, or the id is not one.
    IndexError
        If there is no such latent.

    Examples
    --------
    >>> latent_url("gpt2-small/8-res_fs49152-jb", 7)
    'https://www.neuronpedia.org/gpt2-small/8-res_fs49152-jb/7'
    """
    model, place = _place(source)
    return f"{SITE}/{quote(model)}/{quote(place)}/{_checked(source, latent)}"


def quick_list_url(source: Dictionary | str, latents: Latents, *, name: str) -> str:
    """Address of a page that lists several latents.

    Parameters
    ----------
    source : Dictionary or str
        As `latent_url`.
    latents : tensor, array, Series or list
        At most 150, see `saekit.selection.select_latents`.
    name : str
        Title of the list.

    Raises
    ------
    ValueError, IndexError
        As `latent_url`, and if there are more latents than Neuronpedia lists.

    Examples
    --------
    >>> quick_list_url("gpt2-small/8-res-jb", [1, 2], name="two latents").split("?")[0]
    'https://www.neuronpedia.org/quick-list/'
    """
    index = select_latents(latents, source.width if isinstance(source, Dictionary) else ANY_WIDTH)
    return mixed_list_url([(source, latent) for latent in index.tolist()], name=name)


def mixed_list_url(latents: Sequence[tuple[Dictionary | str, int]], *, name: str) -> str:
    """Address of a page that lists latents of several sources.

    Parameters
    ----------
    latents : sequence of tuple
        Source and number of each latent, as for `latent_url`; at most 150.
    name : str
        Title of the list.

    Raises
    ------
    ValueError, IndexError
        As `latent_url`, and if there are more latents than Neuronpedia lists.

    Examples
    --------
    >>> mixed_list_url([("gpt2-small/8-res-jb", 1), ("gpt2-small/9-res-jb", 2)], name="two").split("?")[0]
    'https://www.neuronpedia.org/quick-list/'
    """
    if not 0 < len(latents) <= LIST_LIMIT:
        raise ValueError(f"Neuronpedia lists 1 to {LIST_LIMIT} latents, found {len(latents)}.")
    features = []
    for source, latent in latents:
        model, place = _place(source)
        # The index is text there; a number would not be found.
        features.append({"modelId": model, "layer": place, "index": str(_checked(source, latent))})
    query = urlencode({"name": name, "features": json.dumps(features)}, quote_via=quote)
    return f"{SITE}/quick-list/?{query}"


@dataclass(frozen=True)
class Embed:
    """A page in a frame, which a notebook shows and the browser loads.

    Attributes
    ----------
    url : str
        The page's address.
    height : int
        Height of the frame, in pixels.
    """

    url: str
    height: int

    def _repr_html_(self) -> str:
        address = html.escape(self.url, quote=True)
        return f'<iframe src="{address}" width="100%" height="{int(self.height)}" style="border:0"></iframe>'


def embed(source: Dictionary | str, latent: int, *, without: Sequence[str] = (), height: int = 400) -> Embed:
    """A latent's page in a frame.

    Parameters
    ----------
    source : Dictionary or str
        As `latent_url`.
    latent : int
        Its number.
    without : sequence of str
        Parts to leave out: `explanation`, `plots`, `test`, `activations`, `link`, `steer`.
    height : int
        Height of the frame, in pixels.

    Raises
    ------
    ValueError, IndexError
        As `latent_url`, and if there is no such part.

    Examples
    --------
    >>> embed("gpt2-small/8-res-jb", 42, height=300).height
    300
    """
    if unknown := sorted(set(without) - set(PARTS)):
        raise ValueError(f"A page has the parts {', '.join(PARTS)}, found {', '.join(unknown)}.")
    shown = {f"embed{part}": str(part not in without).lower() for part in PARTS}
    return Embed(f"{latent_url(source, latent)}?{urlencode({'embed': 'true'} | shown)}", height)


def _place(source: Dictionary | str) -> tuple[str, str]:
    """Model and source of an id."""
    identity = source if isinstance(source, str) else source.info.get("neuronpedia_id")
    if identity is None:
        raise ValueError(
            f"{source.name if isinstance(source, Dictionary) else source} has no neuronpedia_id in its info: "
            'give the id itself, such as "gpt2-small/8-res_fs49152-jb".'
        )
    parts = str(identity).split("/")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f'A Neuronpedia id is "model/source", found {identity!r}.')
    return parts[0], parts[1]


def _checked(source: Dictionary | str, latent: int) -> int:
    return select_latent(latent, source.width if isinstance(source, Dictionary) else ANY_WIDTH)


# ------------------------------------------------------------------------------ pages


@dataclass(frozen=True)
class Feature:
    """A latent as Neuronpedia shows it.

    Attributes
    ----------
    source : str
        Its id, `"model/source"`.
    latent : int
        Its number there.
    descriptions : tuple of str
        Explanations, in Neuronpedia's order.
    density : float or None
        Share of tokens on which it is active.
    max_activation : float or None
        Greatest activation seen.
    logits : DataFrame
        `token`, `logit` and `promoted`: the tokens promoted most and suppressed most.
    activations : tuple of DataFrame
        One per context: `token`, `activation`.
    """

    source: str
    latent: int
    descriptions: tuple[str, ...] = ()
    density: float | None = None
    max_activation: float | None = None
    logits: pd.DataFrame = field(default_factory=lambda: _logits({}))
    activations: tuple[pd.DataFrame, ...] = ()


def read_feature(source: str | Path | Mapping[str, Any]) -> Feature:
    """A latent's page, from the JSON of Neuronpedia's API.

    Parameters
    ----------
    source : path or mapping
        A saved answer, or its content.

    Raises
    ------
    ValueError
        If it does not name its latent, or a part has another form.

    Examples
    --------
    >>> page = {"modelId": "gpt2-small", "layer": "8-res-jb", "index": "7", "frac_nonzero": 0.01}
    >>> feature = read_feature(page)
    >>> feature.source, feature.latent, feature.density
    ('gpt2-small/8-res-jb', 7, 0.01)
    """
    if isinstance(source, Mapping):
        answer, where = source, "The answer"
    else:
        answer, where = read_json(source), str(source)
    if not isinstance(answer, Mapping):
        raise ValueError(f"{where} must describe one latent, found {type(answer).__name__}.")
    identity = [answer.get(name) for name in ("modelId", "layer", "index")]
    if not all(isinstance(part, str | int) for part in identity) or not str(identity[2]).isdecimal():
        raise ValueError(f"{where} must give modelId, layer and index, found {identity}.")
    try:
        return Feature(
            source=f"{identity[0]}/{identity[1]}",
            latent=int(str(identity[2])),
            descriptions=tuple(
                str(found["description"])
                for found in answer.get("explanations") or ()
                if found.get("description")
            ),
            density=_number(answer.get("frac_nonzero")),
            max_activation=_number(answer.get("maxActApprox")),
            logits=_logits(answer),
            activations=tuple(
                pd.DataFrame({"token": found["tokens"], "activation": found["values"]})
                for found in answer.get("activations") or ()
            ),
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} is not a page of Neuronpedia as saekit knows it: {error!r}.") from error


def fetch_feature(source: Dictionary | str, latent: int, *, timeout: float = 10.0) -> Feature:
    """A latent's page, from Neuronpedia itself.

    Parameters
    ----------
    source : Dictionary or str
        As `latent_url`.
    latent : int
        Its number.
    timeout : float
        In seconds.

    Raises
    ------
    ValueError, IndexError
        As `latent_url`, and if the answer is not about this latent.
    FileNotFoundError
        If Neuronpedia has no such latent.
    ConnectionError
        If Neuronpedia cannot be reached.
    """
    address = latent_url(source, latent).replace(SITE, f"{SITE}/api/feature", 1)
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            content = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(f"Neuronpedia has no {address}.") from None
        raise ConnectionError(f"Neuronpedia does not give {address}: {error}.") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise ConnectionError(f"Neuronpedia cannot be reached at {address}: {error}.") from None
    except ValueError as error:
        raise ValueError(f"{address} gave no JSON: {error}.") from error
    feature = read_feature(content)
    expected = "/".join(_place(source)), latent
    if (feature.source, feature.latent) != expected:
        raise ValueError(f"{address} gave {feature.source}/{feature.latent}.")
    return feature


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _logits(answer: Mapping[str, Any]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "token": pd.Series(answer.get(f"{sign}_str") or [], dtype=object),
                "logit": pd.Series(answer.get(f"{sign}_values") or [], dtype=float),
                "promoted": sign == "pos",
            }
        )
        for sign in ("pos", "neg")
    ]
    return pd.concat(parts, ignore_index=True)


# ------------------------------------------------------------------------------ bulk files


def explanations(path: str | Path) -> pd.DataFrame:
    """Explanations of a source's latents, from Neuronpedia's bulk files.

    Parameters
    ----------
    path : str or Path
        A source's folder (with `explanations/batch-*.jsonl.gz`), the folder of the batches, or one
        file, compressed or not.

    Returns
    -------
    DataFrame
        `latent`, `description`, `model` (that wrote it) and `method`, sorted by latent; a latent may
        have several. `frame.groupby("latent")["description"].first()` gives one for each, to compare
        with `saekit.label_latents`.

    Raises
    ------
    FileNotFoundError
        If there are no such files.
    ValueError
        If a line is damaged; the message names file and line.

    Examples
    --------
    >>> entry = {"index": "3", "description": "rivers", "explanationModelName": "gpt", "typeName": "acts"}
    >>> written = Path("batch-0.jsonl").write_text(json.dumps(entry))
    >>> explanations("batch-0.jsonl")
       latent description model method
    0       3      rivers   gpt   acts
    """
    rows = [row for file in _batches(Path(path)) for row in _lines(file)]
    frame = pd.DataFrame(rows, columns=["latent", "description", "model", "method"])
    return frame.sort_values("latent", kind="stable", ignore_index=True)


def _batches(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    inner = path / "explanations" if (path / "explanations").is_dir() else path
    found = sorted(file for pattern in ("*.jsonl", "*.jsonl.gz") for file in inner.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{path} holds no explanations: expected files batch-*.jsonl.gz.")
    return found


def _lines(file: Path) -> Iterator[tuple[int, str, str | None, str | None]]:
    opened = gzip.open if file.suffix == ".gz" else open
    number = 0
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    entry = json.loads(line)
                    yield (
                        int(entry["index"]),
                        str(entry["description"]),
                        entry.get("explanationModelName"),
                        entry.get("typeName"),
                    )
    except (ValueError, KeyError, TypeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file}, line {number}, is not an explanation: {error!r}.") from error
