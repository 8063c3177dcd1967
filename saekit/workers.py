"""Independent jobs in parallel processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

SPAWN = multiprocessing.get_context("spawn")


def in_processes(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    names: Sequence[str],
    workers: int,
    threads: int = 1,
    niceness: int = 0,
    on_end: Callable[[int, Any], None],
) -> None:
    """Call a function once per job, in parallel processes.

    A job that fails, or whose process is killed, does not stop the others: its error is raised once they
    have ended. An interrupt reaches every process, and each ends in its own way.

    Parameters
    ----------
    function : callable
        A function of a module, which a fresh process can import.
    jobs : sequence of tuple
        The positional arguments of each call, in starting order.
    names : sequence of str
        What each job is called in an error.
    workers : int
        Greatest number of processes at a time.
    threads : int
        The threads of each process, and of the processes that it starts.
    niceness : int
        Priority of the processes, as for the command `nice`.
    on_end : callable
        Called with the position of each finished job and the function's return value.

    Raises
    ------
    Exception
        The error of the first job that failed; those of others are its notes.
    RuntimeError
        If a process was killed; the sentence names its job and the probable cause.
    """
    left = list(enumerate(jobs))[::-1]
    idle: list[_Worker] = []
    busy: dict[_Worker, int] = {}
    errors: list[BaseException] = []
    with _terminated_as_interrupted():
        try:
            while left or busy:
                while left and len(busy) < workers:
                    worker = idle.pop() if idle else _Worker(function, threads, niceness)
                    busy[worker], job = left.pop()
                    worker.begin(job)
                for worker in _Worker.ready(busy):
                    position = busy.pop(worker)
                    try:
                        done, result = worker.result()
                    except EOFError:
                        errors.append(RuntimeError(f"The process of {names[position]} {worker.cause()}"))
                        continue
                    idle.append(worker)
                    if done:
                        on_end(position, result)
                    else:
                        errors.append(result)
        except (KeyboardInterrupt, SystemExit):
            for worker in (*idle, *busy):
                worker.process.terminate()  # each saves its state first
            raise
        finally:
            for worker in (*idle, *busy):
                worker.end()
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"Another job failed, too: {other}")
        raise errors[0]


class _Worker:
    """A process that does one job after the other."""

    def __init__(self, function: Callable[..., Any], threads: int, niceness: int) -> None:
        self.connection, there = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(there, function, threads, niceness))
        self.process.start()
        there.close()

    @staticmethod
    def ready(workers: Collection[_Worker]) -> list[_Worker]:
        """The workers that have ended their job or have died, once there is one."""
        found = wait([end for worker in workers for end in (worker.connection, worker.process.sentinel)])
        return [w for w in workers if w.connection in found or w.process.sentinel in found]

    def begin(self, job: tuple[Any, ...]) -> None:
        with suppress(BrokenPipeError):  # it has died, which shows when the result is awaited
            self.connection.send(job)

    def result(self) -> tuple[bool, Any]:
        """Whether the job is done, and what it returned or raised.

        Raises
        ------
        EOFError
            If the process has died.
        """
        try:
            if not self.connection.poll():
                raise EOFError
            done, result = self.connection.recv()
        except ConnectionResetError:
            raise EOFError from None
        return done, result

    def cause(self) -> str:
        """Why the process has died: the rest of a sentence."""
        self.process.join()
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL), most likely because memory ran out"
        else:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"{how}; the other jobs went on. Start it again: what was saved is kept."

    def end(self) -> None:
        with suppress(BrokenPipeError):
            self.connection.send(None)
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, function: Callable[..., Any], threads: int, niceness: int) -> None:
    """Do the jobs that come in, until there are no more or the other end is gone."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "nice"):
        os.nice(niceness)
    # Ctrl-C ends a worker once its job is saved: the next job must not begin.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while (job := connection.recv()) is not None:
            try:
                connection.send((True, function(*job)))
            except Exception as error:
                connection.send((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """An error that survives the way to another process, with its traceback as a note."""
    notes = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"In the process of the job:\n{notes}")
    return copy


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
