"""Signals as a flag that every wait can see, so that a stop never lands between two statements.

A KeyboardInterrupt can be raised after a process was started and before its handle was stored, and the
process is then an orphan. Here a signal only counts; ``check`` and ``wait`` raise at places where
everything that was started is known.
"""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol

from provisioning.cli.errors import InterruptedBySignalError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Readable(Protocol):
    """Something that `select` can wait for."""

    def fileno(self) -> int: ...


class Interruption:
    """Counts stop signals while it is entered; the handlers before it come back after it."""

    def __init__(self) -> None:
        self._count = 0
        self._signum = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_wakeup_fd = -1

    def __enter__(self) -> Interruption:
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._previous_wakeup_fd = signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for signum in STOP_SIGNALS:
            # A caller that ignores SIGHUP (nohup) or SIGINT (a background job) means it.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._received)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._previous_wakeup_fd)
        self._wake_reader.close()
        self._wake_writer.close()

    @property
    def count(self) -> int:
        """How many stop signals came so far."""
        return self._count

    def check(self) -> None:
        """Raise InterruptedBySignalError if a stop signal has come."""
        if self._count:
            name = signal.Signals(self._signum).name
            raise InterruptedBySignalError(f"stopped by {name}", signum=self._signum)

    def wait(self, timeout_s: float, readers: Sequence[Readable] = ()) -> list[Readable]:
        """Wait for a reader or the timeout and return the readers that are ready; raises as `check` does."""
        self.check()
        ready = self.wait_quietly(timeout_s, readers)
        self.check()
        return ready

    def wait_quietly(self, timeout_s: float, readers: Sequence[Readable] = ()) -> list[Readable]:
        """As `wait`, but a signal only ends the wait: for the time in which all is being stopped."""
        ready, _, _ = select.select([self._wake_reader, *readers], [], [], timeout_s)
        if self._wake_reader in ready:
            ready.remove(self._wake_reader)
            self._wake_reader.recv(4096)
        return ready

    def _received(self, signum: int, frame: FrameType | None) -> None:
        self._count += 1
        self._signum = self._signum or signum
