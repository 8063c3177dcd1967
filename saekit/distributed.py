"""Several processes as one: a thin layer on `torch.distributed` for runs under `torchrun`.

Code between `distributed()` and its end may call the functions here whether or not there are other
processes: without `torchrun` there is one, and a sum over all processes is the tensor itself. All
processes must make the same calls in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# Processes may wait a long time for each other, as for the last shard; torchrun ends them if one fails.
TIMEOUT = timedelta(days=1)


@contextmanager
def distributed() -> Iterator[None]:
    """Join the processes that `torchrun` started; do nothing where it did not.

    Tensors on the CPU travel over gloo. If every process on the machine can have a GPU of its own,
    it gets it as its current CUDA device (`"cuda"`), and CUDA tensors travel over NCCL.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, which prints and writes for all."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has reached this point."""
    all_reduce_sum(torch.zeros(1))  # dist.barrier() would occupy a GPU where there is one


def local_slice(n: int) -> slice:
    """The share of `n` things that is this process's: contiguous, in the order of ranks, equal up to one."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all processes, in place, and return it.

    The result has the same bits in every process. Shapes must agree.
    """
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Replace a floating-point tensor by its mean over all processes, in place, and return it.

    Gradients of losses that are averages over equal shares of a batch become the gradient of the
    average over the batch.
    """
    return all_reduce_sum(tensor).div_(world_size())


def all_gather(values: Tensor) -> list[Tensor]:
    """Every process's tensor `[n, ...]`, in the order of ranks; only `n` may differ between them."""
    if world_size() == 1:
        return [values]
    sizes = torch.zeros(world_size(), dtype=torch.long)
    sizes[rank()] = len(values)
    longest = int(all_reduce_sum(sizes).max())
    padded = values.new_zeros(longest, *values.shape[1:])
    padded[: len(values)] = values
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    return [tensor[:size] for tensor, size in zip(gathered, sizes.tolist(), strict=True)]
