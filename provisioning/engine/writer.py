"""The one thread that writes: takes a batch, commits it, says so on the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from provisioning.engine.store import Batch, Store

Committed = Callable[[BaseException | None], None]
"""Told on the loop when the batch is on disk, or why it never will be."""

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0

_log = logging.getLogger(__name__)


class Writer:
    """Commits batches in order, one at a time. A full disk is waited out: the batch stays whole."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._batches: SimpleQueue[tuple[Batch, Committed] | None] = SimpleQueue()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-writer", daemon=True)
        #: Why commits wait at present, in words; None while all is well.
        self.trouble: str | None = None

    def start(self) -> None:
        self._thread.start()

    def submit(self, batch: Batch, committed: Committed) -> None:
        """Hand over a batch; ``committed`` is called on the loop."""
        self._batches.put((batch, committed))

    async def stop(self, *, give_up: bool) -> None:
        """End after what was handed over; with ``give_up`` a batch that can't be written is let go."""
        if give_up:
            self._given_up.set()
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (item := self._batches.get()) is not None:
            batch, committed = item
            error = self._commit(batch)
            try:
                self._loop.call_soon_threadsafe(committed, error)
            except RuntimeError:  # the loop was closed without stopping the engine: nobody is left to tell
                return

    def _commit(self, batch: Batch) -> BaseException | None:
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                self._store.commit(batch)
            except OSError as error:
                if self.trouble is None:
                    _log.error("the engine waits: %s; free some space, it goes on by itself", error)
                self.trouble = str(error)
                if self._given_up.wait(delay_s):
                    return error
                delay_s = min(delay_s * 2, _LONGEST_RETRY_S)
            except BaseException as error:  # told to the loop, which ends the engine with it
                return error
            else:
                if self.trouble is not None:
                    _log.warning("the engine goes on: its state file can be written again")
                    self.trouble = None
                return None
