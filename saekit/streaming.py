"""Activations without a store: harvested into a bounded buffer while training draws from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.activations import (
    BUFFER_TOKENS,
    EXCLUSION_RULE,
    NORM_SAMPLE,
    describe_harvest,
    exclusion,
    harvest_rows,
    norm_limit,
    random_stream,
    require_finite,
)
from saekit.corpora import TokenRows
from saekit.distributed import all_gather, local_slice
from saekit.files import hash_json
from saekit.models import device_of
from saekit.selection import Latents, select_latents
from saekit.settings import whole

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SAMPLE_TOKENS = 1 << 15  # tokens of the rows whose positions represent all


class StreamedActivations:
    """A source of activations for `saekit.training.trainer.train` that keeps nothing on disk.

    Each epoch permutes the token rows and cuts them into buffers of equal size. A buffer is
    harvested, its used positions are shuffled, and whole batches are drawn from it; then the next one
    takes its place. The same positions as in a store are excluded: special tokens, the first position
    of each row, and norms over 10 times the median of the first 100k tokens.

    The number of batches per buffer follows from its tokens alone: as many as the positions that are
    neither special nor first can fill. So the batch of any step is found without harvesting the
    earlier ones, but

    - positions that do not fill a batch, fewer than one batch per buffer, are left out until another
    epoch shuffles them into another place;
    - if more positions are excluded for their norm than were left out, the last batch of the
      buffer is filled up with the buffer's first positions again.

    Within `saekit.distributed.distributed` the processes share the rows of a buffer and then all hold
    the whole of it, so that all draw the batches that one process would.

    Parameters
    ----------
    model : TransformerBridge
        From `saekit.models.load_model`.
    rows : TokenRows
        From `saekit.corpora.pack`.
    hook_point : str
        Where to read; heads of `attn.hook_z` are concatenated.
    buffer_tokens : int
        Greatest number of positions held, including excluded ones; a buffer consists of whole rows.
    dtype : torch.dtype
        Held as float32 or bfloat16, on the model's device.
    batch_rows : int
        Rows per forward pass.
    target : str, optional
        For transcoders: a later hook point, whose activations stand beside the inputs (`harvest`).

    Raises
    ------
    ValueError
        If the model has no such hook point, a buffer is smaller than one row, or activations are
        not held in this dtype.

    Examples
    --------
    >>> source = saekit.StreamedActivations(model, rows, "blocks.1.hook_resid_post", buffer_tokens=128)
    >>> config = saekit.TrainingConfig(saekit.TopK(k=2), width=16, steps=4, batch_size=32)
    >>> saekit.train(config, source, progress=False).dictionary
    Dictionary(topk 16 (seed 0), d_in=16, width=16, k=2)
    """

    def __init__(
        self,
        model: TransformerBridge,
        rows: TokenRows,
        hook_point: str = "blocks.12.hook_resid_post",
        *,
        buffer_tokens: int = BUFFER_TOKENS,
        dtype: torch.dtype = torch.bfloat16,
        batch_rows: int = 32,
        target: str | None = None,
    ) -> None:
        batch_rows = whole("batch_rows", batch_rows)
        self._described = describe_harvest(
            model, rows, hook_point, dtype=dtype, batch_rows=batch_rows, target=target
        )
        self.model = model
        self.rows = rows
        buffer_tokens = whole("buffer_tokens", buffer_tokens, at_least=rows.context_length)
        self.buffer_rows = buffer_tokens // rows.context_length
        self._dtype = dtype

    def __repr__(self) -> str:
        return (
            f"StreamedActivations({self.hook_point}, {self.rows.n_rows:,} rows of "
            f"{self.rows.context_length}, {self.buffer_rows:,} of them held)"
        )

    # ------------------------------------------------------------------ what it holds

    @property
    def hook_point(self) -> str:
        """Where the activations are read."""
        return self._described["hook_point"]

    @cached_property
    def d_in(self) -> int:
        """Dimension of the activations."""
        _, x, _ = next(self._harvest(torch.arange(1)))
        return x.shape[2] - self.d_out

    @property
    def target(self) -> str | None:
        """Where the targets of transcoders are read; None if there are none."""
        return self._described.get("target")

    @property
    def d_out(self) -> int:
        """Dimension of the targets; 0 if there are none."""
        return self._described.get("d_out", 0)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Description of the harvest (model, text, settings), as in the manifest of a store."""
        return {
            **self._described,
            "buffer_rows": self.buffer_rows,
            "d_in": self.d_in,
            "exclusion": {"rule": EXCLUSION_RULE, "norm_limit": self._norm_limit},
        }

    @cached_property
    def content_hash(self) -> str:
        """Hash of the manifest, without the model's name, which is for people."""
        model = {what: value for what, value in self.manifest["model"].items() if what != "name"}
        return hash_json(self.manifest | {"model": model})

    @cached_property
    def positions(self) -> Tensor:
        """Used positions of rows spread evenly over the data, about 2^15, `[n]`, int64, ascending.

        A sample for estimates: whether the others are used is known only once they are harvested. A
        position is `row * context_length + column`.
        """
        n_rows, ctx = self.rows.n_rows, self.rows.context_length
        n = min(n_rows, max(1, SAMPLE_TOKENS // ctx))
        numbers = torch.arange(n) * n_rows // n
        used = torch.cat([self._used(batch, norms) for batch, _, norms in self._harvest(numbers)])
        row, column = used.nonzero().T
        return numbers[row] * ctx + column

    @cached_property
    def _norm_limit(self) -> float | list[float]:
        numbers = torch.arange(min(self.rows.n_rows, -(-NORM_SAMPLE // self.rows.context_length)))
        return norm_limit(torch.cat([norms for *_, norms in self._harvest(numbers)]))

    # ------------------------------------------------------------------ reading

    def read(self, positions: Latents) -> Tensor:
        """Activations at any positions `[n]`, in their order, as float32 `[n, d_in]` on the CPU.

        Their rows are harvested for this, once per call.

        Raises
        ------
        TypeError, IndexError, ValueError
            As `saekit.selection.select_latents`.
        """
        ctx = self.rows.context_length
        positions = select_latents(positions, self.rows.n_rows * ctx, what="positions")
        out = torch.empty(len(positions), self.d_in + self.d_out)
        row = positions // ctx
        for batch, x, _ in self._harvest(row.unique()):
            here = torch.isin(row, batch).nonzero().flatten()
            at = torch.searchsorted(batch, row[here]) * ctx + positions[here] % ctx
            out[here] = x.flatten(0, 1)[at.to(x.device)].float().cpu()
        return out

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Endless batches `[batch_size, d_in]` of used positions, float32, in random order.

        The order depends on seed and batch size alone, so `start_step=n` skips the first `n` batches
        and harvests only the buffer that the next one is drawn from.

        Raises
        ------
        ValueError
            If no buffer fills a batch, or a number is out of range.
        TypeError
            If `batch_size`, `seed` or `start_step` is not a whole number.
        """
        batch_size = whole("batch_size", batch_size)
        start_step = whole("start_step", start_step, at_least=0)
        candidates = self._used(torch.arange(self.rows.n_rows), torch.zeros(1, 1)).sum(dim=1)
        skip, epoch = start_step, 0
        while True:
            order = torch.randperm(self.rows.n_rows, generator=random_stream(seed, epoch))
            buffers = order.tensor_split(-(-len(order) // self.buffer_rows))
            n_batches = [int(candidates[numbers].sum()) // batch_size for numbers in buffers]
            if not any(n_batches):
                raise ValueError(
                    f"No buffer of {len(buffers[0])} rows fills a batch of {batch_size} positions: raise "
                    "buffer_tokens, or give more rows."
                )
            for number, (numbers, n) in enumerate(zip(buffers, n_batches, strict=True)):
                if skip < n:
                    stream = random_stream(seed, epoch, number)
                    yield from self._batches(numbers, batch_size, stream, range(skip, n))
                skip = max(0, skip - n)
            epoch += 1

    def _batches(
        self, numbers: Tensor, batch_size: int, stream: torch.Generator, which: range
    ) -> Iterator[Tensor]:
        """Some batches of a buffer, counted from its first."""
        buffer = self._fill(numbers)
        order = torch.randperm(len(buffer), generator=stream)
        for i in which:
            chosen = order[torch.arange(i * batch_size, (i + 1) * batch_size) % len(order)]
            yield buffer[chosen.to(buffer.device)].float()

    def _fill(self, numbers: Tensor) -> Tensor:
        """Used activations `[n, d_in]` of rows; the processes share the forward passes."""
        batches = numbers.split(self._described["batch_rows"])
        mine = torch.cat([numbers[:0], *batches[local_slice(len(batches))]])
        size = len(mine) * self.rows.context_length, self.d_in + self.d_out
        buffer = torch.empty(size, dtype=self._dtype, device=device_of(self.model))
        filled = 0
        for batch, x, norms in self._harvest(mine):
            used = x[self._used(batch, norms).to(x.device)]
            buffer[filled : filled + len(used)] = used
            filled += len(used)
        shares = all_gather(buffer[:filled])
        buffer = shares[0] if len(shares) == 1 else torch.cat(shares)
        if not len(buffer):
            raise ValueError(f"All positions of {len(numbers)} rows are excluded: there is no batch to draw.")
        return buffer

    # ------------------------------------------------------------------ harvesting

    def _harvest(self, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Run rows through the model: numbers, activations `[rows, ctx, d_in]` and norms, by batches."""
        if not len(numbers):
            return
        for batch in numbers.split(self._described["batch_rows"]):
            tokens = self.rows.tokens[batch]
            x, norms = harvest_rows(self.model, tokens, self.hook_point, self._dtype, self.target)
            norms = norms.cpu()
            require_finite(norms, batch, "row")
            yield batch, x, norms

    def _used(self, numbers: Tensor, norms: Tensor) -> Tensor:
        """Which positions `[rows, ctx]` of rows are not excluded, given their norms."""
        return exclusion(self.model, self.rows.tokens[numbers], norms, self._norm_limit) == 0
