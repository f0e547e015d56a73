"""Writes batches: one at a time, in order, off the loop; says so on the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from provisioning.engine.store import Batch, Store
from provisioning.engine.threads import Pool

Committed = Callable[[BaseException | None], None]
"""Told on the loop when the batch is on disk, or why it never will be."""

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0

_log = logging.getLogger(__name__)


class Writer:
    """Commits batches in order, one at a time. A full disk is waited out: the batch stays whole.

    ``pool`` has one thread, which is the only one that writes. All methods are the loop's.
    """

    def __init__(self, store: Store, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._delay_s = _FIRST_RETRY_S
        self._retry: asyncio.TimerHandle | None = None
        #: The batch that waits to be tried again: how to give it up.
        self._refuse: Callable[[], None] | None = None
        self._given_up = False
        #: Why commits wait at present, in words; None while all is well.
        self.trouble: str | None = None

    def submit(self, batch: Batch, committed: Committed) -> None:
        """Hand over a batch, the one before being done; ``committed`` is called on the loop."""
        self._pool.run(partial(self._commit, batch), partial(self._on_end, batch, committed))

    async def stop(self, *, give_up: bool) -> None:
        """End after what was handed over; with ``give_up`` a batch that can't be written is let go."""
        if give_up:
            self._given_up = True
            if self._retry is not None and self._refuse is not None:
                self._retry.cancel()
                self._refuse()
        await self._pool.stop()

    def _commit(self, batch: Batch) -> BaseException | None:
        try:
            self._store.commit(batch)
        except BaseException as error:  # told to the loop, which waits or ends the engine
            return error
        return None

    def _on_end(self, batch: Batch, committed: Committed, error: BaseException | None) -> None:
        if isinstance(error, OSError) and not self._given_up:
            if self.trouble is None:
                _log.error("the engine waits: %s; free some space, it goes on by itself", error)
            self.trouble = str(error)
            self._refuse = partial(committed, error)
            self._retry = self._loop.call_later(self._delay_s, self._try_again, batch, committed)
            self._delay_s = min(self._delay_s * 2, _LONGEST_RETRY_S)
            return
        if error is None and self.trouble is not None:
            _log.warning("the engine goes on: its state file can be written again")
            self.trouble = None
            self._delay_s = _FIRST_RETRY_S
        committed(error)

    def _try_again(self, batch: Batch, committed: Committed) -> None:
        self._retry = self._refuse = None
        self.submit(batch, committed)
