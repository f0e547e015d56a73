"""Task hubs: engines on threads of their own, shared by the workers and clients of a process.

A hub is its state file: all who name the same file in one process share one engine. It opens with the
first worker or client that uses it and closes, with everything committed, when the last lets go, or when
the interpreter exits. What breaks the engine ends the hub: whoever holds it is refused from then on, and
whoever comes next opens the file anew.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

from provisioning.engine.engine import Engine
from provisioning.engine.errors import EngineStoppedError
from provisioning.engine.options import EngineOptions
from provisioning.engine.threads import loop_of_caller

R = TypeVar("R")

DEFAULT_HUB_FILE = "taskhub.db"
"""The hub of workers and clients that name none: this file in the working directory."""

_log = logging.getLogger(__name__)


class TaskHub:
    """Names a task hub: a state file, and the options of its engine where it is this one that opens it.

    Workers and clients take one, or just the path. Entered, it holds its hub open: workers may then come
    and go without the file being closed and opened each time.

    Raises TypeError and ValueError for what is no path of a file.
    """

    def __init__(
        self,
        path: Path | str = DEFAULT_HUB_FILE,
        *,
        options: EngineOptions | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        if not isinstance(path, str | Path):
            raise TypeError(f"a hub is a TaskHub or the path of its file, not {path!r}")
        if path in ("", ":memory:"):
            raise ValueError(
                f"a hub is a file, and {path!r} names none: give the path of one, in a temporary directory "
                "where nothing need stay"
            )
        #: Absolute, links followed: the identity of the hub.
        self.path = Path(path).resolve()
        self.options = options
        self.logger = logger
        self._own_hold: HubHold | None = None

    def __repr__(self) -> str:
        return f"TaskHub({str(self.path)!r})"

    def __enter__(self) -> Self:
        """Raises StateError, also as StateInUseError or StateFormatError."""
        if self._own_hold is None:
            hold = HubHold(self)
            hold.open()
            self._own_hold = hold
        return self

    def __exit__(self, *exc: object) -> None:
        hold, self._own_hold = self._own_hold, None
        if hold is not None:
            hold.close()


AnyHub = TaskHub | Path | str
"""How a hub is named: by object or by the path of its file."""


def hub_of(named: AnyHub | None) -> TaskHub:
    """The hub that is meant; None is the default one."""
    if named is None:
        return TaskHub()
    return named if isinstance(named, TaskHub) else TaskHub(named)


class HubHold:
    """One holder's share in a hub: opened by its first use, given up once. From any thread."""

    def __init__(self, hub: TaskHub) -> None:
        self._hub = hub
        self._lock = threading.Lock()
        self._running: _RunningHub | None = None
        self._closed = False

    @property
    def hub(self) -> TaskHub:
        return self._hub

    # Blocking

    def open(self) -> Engine:
        """The engine, once it is open.

        Raises StateError, EngineStoppedError, ValueError where it is open with other options, and
        RuntimeError where waiting would be for ever: in an orchestrator or an asynchronous activity.
        """
        return self._open()[1]

    def call(self, work: Callable[[Engine], Coroutine[Any, Any, R]]) -> R:
        """Run it on the engine's loop, and wait for its end. Raises what it raises, and as :meth:`open`."""
        running, engine = self._open()
        future = running.submit(work, engine)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise running.stopped_error() from None
        except BaseException:
            future.cancel()  # interrupted: nobody waits for it any more
            raise

    def _open(self) -> tuple[_RunningHub, Engine]:
        running = self._join()
        running.refuse_own_thread()
        try:
            return running, running.opened.result()
        except BaseException:
            self._leave(running)
            raise

    def refuse_own_thread(self) -> None:
        """Raises RuntimeError in the hub's own thread, where nothing may be waited for."""
        running = self._running
        if running is not None:
            running.refuse_own_thread()

    def close(self) -> None:
        """Give up the share; where it was the last, returns when the hub is closed. Again: no effect."""
        running = self._give_up()
        if running is not None and _release(running):
            running.refuse_own_thread()
            running.ended.result()

    # On some loop

    async def call_async(self, work: Callable[[Engine], Coroutine[Any, Any, R]]) -> R:
        """As :meth:`call`, without blocking the caller's loop; its cancellation is passed on."""
        running = self._join()
        try:
            # Shielded: others wait for the same opening.
            engine = await asyncio.shield(asyncio.wrap_future(running.opened))
        except BaseException:
            self._leave(running)
            raise
        future = running.submit(work, engine)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise running.stopped_error() from None

    async def close_async(self) -> None:
        """As :meth:`close`, without blocking the caller's loop."""
        running = self._give_up()
        if running is not None and _release(running):
            await asyncio.shield(asyncio.wrap_future(running.ended))

    # The share

    def _join(self) -> _RunningHub:
        if self._running is not None:
            self._running.refuse_other_process()
        with self._lock:
            if self._closed:
                raise EngineStoppedError(f"this client or worker of {self._hub!r} was closed: make a new one")
            if self._running is None:
                self._running = _acquire(self._hub)
            return self._running

    def _leave(self, running: _RunningHub) -> None:
        """After an attempt that failed: the next one begins anew, unless others wait with this one."""
        with self._lock:
            opened = running.opened
            if self._running is not running or not opened.done() or opened.exception() is None:
                return
            self._running = None
        _release(running)

    def _give_up(self) -> _RunningHub | None:
        with self._lock:
            running, self._running = self._running, None
            self._closed = True
        return running


class _RunningHub:
    """An engine with its thread and loop."""

    def __init__(self, hub: TaskHub, before: _RunningHub | None) -> None:
        self.hub = hub
        #: Who must have let go of the file first.
        self._before = before
        self.pid = os.getpid()
        #: Guarded by ``_lock`` of the module, as is ``closing``.
        self.holds = 1
        #: No new holds: it ends, or has ended.
        self.closing = False
        self.abandon_threads = False
        self.opened: Future[Engine] = Future()
        self.ended: Future[None] = Future()
        self._gate = threading.Lock()
        self._shut = False
        self._calls: set[Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end_wanted: asyncio.Event | None = None
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"task-hub {hub.path.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # From any thread

    def submit(self, work: Callable[[Engine], Coroutine[Any, Any, R]], engine: Engine) -> Future[R]:
        """Run it on the loop. The future is cancelled if the hub ends before it does."""
        with self._gate:
            if self._shut or self._loop is None:
                raise self.stopped_error()
            future = asyncio.run_coroutine_threadsafe(work(engine), self._loop)
            self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return future

    def ask_to_end(self) -> None:
        """As soon as it is open."""
        self.opened.add_done_callback(lambda _: self._ask_to_end())

    def _ask_to_end(self) -> None:
        if self._loop is not None and self._end_wanted is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._end_wanted.set)

    def refuse_own_thread(self) -> None:
        """Raises RuntimeError in the hub's own thread: to wait there is to wait for oneself."""
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"{self.hub!r} can't be waited for in its own thread, where orchestrators and asynchronous "
                "activities run: use AsyncTaskHubClient in an asynchronous activity, or a plain activity"
            )

    def refuse_own_activity(self) -> None:
        """Raises EngineStoppedError in a plain activity of a hub that has to end first, and waits for it."""
        caller = loop_of_caller()
        ending: _RunningHub | None = self
        while caller is not None and ending is not None:
            if ending.closing and ending._loop is caller:
                raise ending.stopped_error()
            ending = ending._before

    def refuse_other_process(self) -> None:
        """Raises EngineStoppedError after a fork: the engine stayed behind."""
        if self.pid != os.getpid():
            raise EngineStoppedError(
                f"{self.hub!r} belongs to process {self.pid}, of which this one is a fork: "
                "make workers and clients after the fork"
            )

    def stopped_error(self) -> EngineStoppedError:
        if self._failed is None:
            return EngineStoppedError(f"{self.hub!r} has been closed")
        error = EngineStoppedError(f"{self.hub!r} has stopped: {self._failed!r}")
        error.__cause__ = self._failed
        return error

    # Its thread

    def _run(self) -> None:
        if self._before is not None:
            self._before.ended.result()
            self._before = None
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # what user code may raise through a loop, or a defect
            self._failed = self._failed or error
            _log.critical("%r has ended: %r", self.hub, error, exc_info=error)
        finally:
            self._shut_gate()
            _forget(self)
            if not self.opened.done():
                self.opened.set_exception(self.stopped_error())
            self.ended.set_result(None)

    async def _serve(self) -> None:
        self._end_wanted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        engine = Engine(self.hub.path, options=self.hub.options, logger=self.hub.logger, own_functions=False)
        try:
            await engine.start()
        except Exception as error:
            self._refuse_holds()
            self.opened.set_exception(error)
            return
        self.opened.set_result(engine)
        broken = asyncio.create_task(engine.wait_broken(), name="hub-broken")
        wanted = asyncio.create_task(self._end_wanted.wait(), name="hub-end-wanted")
        try:
            await asyncio.wait([broken, wanted], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._failed = broken.result() if broken.done() and not broken.cancelled() else None
            self._refuse_holds()
            await engine.stop(abandon_threads=self.abandon_threads)
            self._shut_gate()

    def _refuse_holds(self) -> None:
        with _lock:
            self.closing = True

    def _shut_gate(self) -> None:
        """Whoever waits is told; nobody comes any more."""
        with self._gate:
            self._shut = True
        for call in list(self._calls):
            call.cancel()


# The hubs of this process

_lock = threading.Lock()
_running: dict[Path, _RunningHub] = {}
_left_behind: list[_RunningHub] = []
"""In a forked process: its parent's hubs, whose files and loops must not be touched, nor collected."""


def _acquire(hub: TaskHub) -> _RunningHub:
    """The running hub of that file, or a new one that is opening.

    Raises ValueError for other options, and EngineStoppedError in an activity of a hub that ends.
    """
    with _lock:
        running = _running.get(hub.path)
        if running is not None:
            running.refuse_own_activity()
        if running is not None and not running.closing:
            if hub.options is not None and hub.options != (running.hub.options or EngineOptions()):
                raise ValueError(f"{hub!r} is open with other options: close it first, or give none")
            running.holds += 1
            return running
        opening = _RunningHub(hub, before=running)
        opening.start()
        _running[hub.path] = opening  # not before it has a thread: there are none at the interpreter's end
        return opening


def _release(running: _RunningHub) -> bool:
    """Give up one hold; True if it was the last, and the hub ends now."""
    if running.pid != os.getpid():
        return False
    with _lock:
        running.holds -= 1
        last = running.holds == 0
        running.closing = running.closing or last
    if last:
        running.ask_to_end()
    return last


def _forget(running: _RunningHub) -> None:
    with _lock:
        running.closing = True
        if _running.get(running.hub.path) is running:
            del _running[running.hub.path]


@atexit.register
def _close_all() -> None:
    """Everything is committed; user code that still runs in threads is not waited for."""
    with _lock:
        left = list(_running.values())
        for running in left:
            running.closing = running.abandon_threads = True
    for running in left:
        running.ask_to_end()
        running.ended.result()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # whoever held it did not come along
    _left_behind.extend(_running.values())
    _running.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
