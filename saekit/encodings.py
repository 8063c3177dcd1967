"""Active latents of a store's tokens, kept from one pass to the next while `SAEKIT_CACHE` is set.

The analyses of a series ask the same few dictionaries for the same tokens again and again. The first
pass that asks a trained dictionary writes its latents beside the results of `saekit.cache`; later
passes, of other processes too, read them. Of any other dictionary, such as a stitched one, the second pass
of a process does, since most of them are asked once.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.cache import results_folder
from saekit.dictionary import Dictionary
from saekit.files import hash_json, read_tensors, write_tensors
from saekit.sparse import SparseLatents
from saekit.warn import warn

LARGEST = 1 << 25  # active latents of a dictionary that are kept: 256 MiB
_asked: set[Path] = set()


class Encoder:
    """Encodes the batches of one pass, in order, or reads what an earlier pass kept.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary that encodes.
    activations : ActivationStore or Tensor
        What the pass goes over; latents of a tensor are never kept.
    batch_size : int
        Tokens per batch, which decides the last bits of a product.
    """

    def __init__(
        self, dictionary: Dictionary, activations: ActivationStore | Tensor, batch_size: int
    ) -> None:
        self.dictionary = dictionary
        self._file = _file(dictionary, activations, batch_size)
        self._kept = None if self._file is None else _read(self._file, dictionary)
        # A file that is there and was not read is damaged.
        self._parts: list[SparseLatents] | None = None
        if self._file is not None and self._kept is None:
            again = self._file in _asked or self._file.exists()
            self._parts = [] if again or "training" in dictionary.info else None
        self._size = 0

    def __call__(self, x: Tensor, first: int) -> SparseLatents:
        """Active latents of a batch whose first token is the pass's token number `first`."""
        if self._kept is not None:
            return self._kept.slice(first, first + len(x))
        latents = self.dictionary.encode_sparse(x)
        if self._parts is not None:
            self._parts.append(latents)
            self._size += len(latents.indices)
            if self._size > LARGEST:
                self._parts = None
        return latents

    def finish(self, n_tokens: int) -> None:
        """Keep the latents, if this pass is to and all of its tokens were encoded."""
        if self._file is None:
            return
        _asked.add(self._file)
        if self._parts and sum(map(len, self._parts)) == n_tokens:
            together = SparseLatents.concatenate(self._parts)
            kept = {"counts": together.counts, "indices": together.indices}
            try:
                write_tensors(
                    self._file,
                    {name: one.to(torch.int32) for name, one in kept.items()} | {"values": together.values},
                )
            except OSError as error:
                warn(f"Latents are not kept: {error}")


def _file(dictionary: Dictionary, activations: ActivationStore | Tensor, batch_size: int) -> Path | None:
    folder = results_folder()
    if folder is None or isinstance(activations, Tensor):
        return None
    device = str(dictionary.W_enc.device)
    key = hash_json([dictionary.content_hash, activations.content_hash, batch_size, device])
    return folder / f"latents-{key[:24]}.safetensors"


def _read(file: Path, dictionary: Dictionary) -> SparseLatents | None:
    if not file.exists():
        return None
    try:
        kept = {name: one.to(dictionary.W_enc.device) for name, one in read_tensors(file).items()}
    except ValueError as error:
        warn(f"{error} It is computed and written again.")
        return None
    offsets = F.pad(kept["counts"].long().cumsum(0), (1, 0))
    return SparseLatents(offsets, kept["indices"].long(), kept["values"], dictionary.width)
