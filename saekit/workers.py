"""Independent jobs in parallel processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import torch


def in_processes(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    threads: int = 1,
    niceness: int = 0,
    on_end: Callable[[int, Any], None],
) -> None:
    """Call a function once per job, in parallel processes.

    A job that fails does not stop the others. An interrupt reaches every process, and each ends in
    its own way.

    Parameters
    ----------
    function : callable
        A function of a module, which a fresh process can import.
    jobs : sequence of tuple
        The positional arguments of each call, in starting order.
    workers : int
        Greatest number of processes at a time.
    threads : int
        The threads of each process, and of the processes that it starts.
    niceness : int
        Priority of the processes, as for the command `nice`.
    on_end : callable
        Called with the position of each finished job and the function's return value.
    """
    if not jobs:
        return
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(threads, niceness),
    )
    with pool, _terminated_as_interrupted():
        waiting = {pool.submit(function, *job): position for position, job in enumerate(jobs)}
        try:
            for done in as_completed(waiting):
                on_end(waiting[done], done.result())
        except (KeyboardInterrupt, SystemExit):
            for process in {*multiprocessing.active_children()} - {*others}:
                process.terminate()  # each saves its state first
            raise


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends this process through `SystemExit`: by itself it would leave the others at work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(threads: int, niceness: int) -> None:
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "nice"):
        os.nice(niceness)
    # Ctrl-C ends a worker once its job is saved: the next job must not begin.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
