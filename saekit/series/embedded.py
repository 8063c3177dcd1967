"""The embedded default: one model, one corpus, and stores of its activations.

Stores are made once, under `saekit.files.home()`, and found again by the settings that made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saekit.activations import ActivationStore, harvest
from saekit.corpora import Document, TokenRows, embedded_corpus, further_prompts, pack, split
from saekit.files import home, read_json
from saekit.models import load_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HOOK_POINT = "blocks.12.hook_resid_post"
CONTEXT_LENGTH = 128
TRAIN_TOKENS = 5_000_000
HELD_OUT_TOKENS = 100_000
EDITION = ""  # edition of the embedded rows: change it ("-2", ...) when they change, which a test notices


def embedded_rows(model: TransformerBridge, *, part: str, n_tokens: int) -> TokenRows:
    """Token rows of the embedded corpus.

    Parameters
    ----------
    model : TransformerBridge
        The model whose tokenizer packs the text.
    part : {"train", "held-out"}
        Which side of the split by documents.
    n_tokens : int
        Number of positions.

    Raises
    ------
    ValueError
        If `part` is neither.
    """
    if part not in ("train", "held-out"):
        raise ValueError(f'part must be "train" or "held-out", found {part!r}.')
    return pack(
        _training_documents() if part == "train" else split(embedded_corpus())[1],
        model.tokenizer,
        context_length=CONTEXT_LENGTH,
        n_tokens=n_tokens,
        name=f"embedded corpus, {part} documents",
    )


def _training_documents() -> Iterator[Document]:
    """The training side of the embedded mix (13 million tokens), then all other text to train on."""
    yield from split(embedded_corpus())[0]
    yield from further_prompts()


def embedded_store(
    part: str,
    *,
    hook_point: str | None = None,
    target: str | None = None,
    n_tokens: int | None = None,
    dtype: torch.dtype | None = None,
    model: TransformerBridge | None = None,
    progress: bool = True,
) -> ActivationStore:
    """Activations of the embedded model on the embedded corpus, harvested on the first call.

    Parameters
    ----------
    part : {"train", "held-out"}
        Which side of the split by documents.
    hook_point : str, optional
        Where activations are taken; `blocks.12.hook_resid_post` if left out.
    target : str, optional
        For transcoders: the hook point of the activations that they predict.
    n_tokens : int, optional
        Positions; 5,000,000 for training and 100,000 held out if left out.
    dtype : torch.dtype, optional
        Precision of the model and of the store; bfloat16 for training and float32 for held-out
        tokens if left out.
    model : TransformerBridge, optional
        The embedded model in that precision, if it is loaded already.
    progress : bool
        Show progress in tokens.

    Returns
    -------
    ActivationStore
        In rows of 128 positions.
    """
    if dtype is None:
        dtype = torch.bfloat16 if part == "train" else torch.float32
    hook_point = hook_point or HOOK_POINT
    if n_tokens is None:
        n_tokens = TRAIN_TOKENS if part == "train" else HELD_OUT_TOKENS
    path = _store_folder(part, n_tokens, dtype, hook_point, target)
    if (path / "manifest.json").exists() and read_json(path / "manifest.json")["complete"]:
        return ActivationStore.open(path, hook_point=hook_point)
    if model is None:
        model = load_model(dtype=dtype)
    rows = embedded_rows(model, part=part, n_tokens=n_tokens)
    return harvest(model, rows, hook_point, path=path, target=target, dtype=dtype, progress=progress)


def _store_folder(part: str, n_tokens: int, dtype: torch.dtype, hook_point: str, target: str | None) -> Path:
    place = "" if hook_point == HOOK_POINT else f"{hook_point}-"
    name = f"{part}-{place}{n_tokens}-{str(dtype).removeprefix('torch.')}{EDITION}"
    return home() / "stores" / (f"{name}-to-{target}" if target else name)
