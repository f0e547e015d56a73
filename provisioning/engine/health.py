"""Whether the engine works, is stopping, or has failed, and what its callers are told then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from provisioning.engine.errors import EngineStoppedError


class Health:
    """The one place where an engine that can't go on says so. ``on_failure`` is called at most once."""

    def __init__(self, log: logging.Logger, on_failure: Callable[[], None]) -> None:
        self._log = log
        self._on_failure = on_failure
        self.stopping = False
        #: Why the engine has stopped by itself. After that nothing more may be handed to the writer.
        self.failed: BaseException | None = None
        #: Done when ``failed`` is set.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def working(self) -> bool:
        return not self.stopping and self.failed is None

    def fail(self, error: BaseException) -> None:
        """Something that should never happen has: take no more, say so to all who wait."""
        if self.failed is not None:
            return
        self.failed = error
        self._log.critical("the engine has stopped: %s", error, exc_info=error)
        self._on_failure()
        if not self.broken.done():
            self.broken.set_result(None)

    def stopped_error(self) -> EngineStoppedError:
        """What a caller is refused with."""
        stopped = EngineStoppedError(
            "the engine was stopped" if self.failed is None else f"the engine has stopped: {self.failed}"
        )
        stopped.__cause__ = self.failed
        return stopped

    def check(self) -> None:
        """Raises EngineStoppedError unless the engine works: for what goes on after having waited."""
        if not self.working:
            raise self.stopped_error()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What is begun here is finished, or the engine stops: half of it may never be committed."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise
