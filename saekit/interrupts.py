"""Ctrl-C and SIGTERM, held back while work is in a state that must not be left behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal that asks the work to stop, delivered by `Interrupts` once the work has been saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupts:
    """Lets work stop between two steps and never within one.

    Inside the `with` block SIGINT and SIGTERM raise `Stopped` at once, but inside `held()` only when
    that block ends. Catch `Stopped` to save the work, and raise it again: at the end of the
    `with` block the signal then takes its usual course (KeyboardInterrupt, or the end of the
    process). Signals that come after the first change nothing.

    Signals reach only the main thread, so in another thread this does nothing. Signals that the
    process ignores stay ignored.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._pending: int | None = None
        self._holding = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self._before[signum] = signal.signal(signum, self._arrived)
        return self

    def _arrived(self, signum: int, _: FrameType | None) -> None:
        if self._pending is None:
            self._pending = signum
            if not self._holding:
                raise Stopped(signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals back until the block ends."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending is not None:
            raise Stopped(self._pending)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._pending is not None:
            signal.raise_signal(self._pending)
            raise KeyboardInterrupt  # where the process's own handler returned
