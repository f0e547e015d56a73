"""Threads beside the loop: plain functions run there, and their ends are told on the loop.

All that the engine does off its loop goes through a :class:`Pool`, so a simulation can do without threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_here = threading.local()


class Pool(Protocol):
    """Runs functions off the loop, begun in the order of :meth:`run`. All methods are the loop's."""

    def run(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Call ``work``, which may not raise, off the loop; then ``done`` on it, never within this call."""

    def clear(self) -> int:
        """Leave what has not begun; returns how many that were."""

    async def stop(self) -> None:
        """Returns when all has ended that was begun or waits. ``run`` may be called again after it."""


class ThreadPool:
    """:class:`Pool` of real threads, at most ``most``, which are started as they are needed."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._threads: list[threading.Thread] = []
        self._ended: asyncio.Future[None] | None = None
        self._waiting: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = SimpleQueue()
        #: Handed over, and the end not told yet.
        self._unfinished = 0
        self._ends: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._announced = False

    def run(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        self._unfinished += 1
        self._waiting.put((work, done))
        if len(self._threads) < min(self._unfinished, self._most):
            self._start_thread()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def clear(self) -> int:
        left = ends = 0
        while True:
            try:
                item = self._waiting.get_nowait()
            except Empty:
                break
            if item is None:
                ends += 1
            else:
                left += 1
        for _ in range(ends):  # a stop is under way, and waits for the threads to see these
            self._waiting.put(None)
        self._unfinished -= left
        return left

    async def stop(self) -> None:
        if not self._threads:
            return
        # No executor waits for the threads: there are none any more while the interpreter shuts down.
        if self._ended is None:
            self._ended = self._loop.create_future()
            for _ in self._threads:
                self._waiting.put(None)
        await asyncio.shield(self._ended)

    def _work(self) -> None:
        _here.loop = self._loop
        while (item := self._waiting.get()) is not None:
            work, done = item
            self._ends.append((done, work()))
            if not self._announced:
                self._announced = True
                if not self._call_on_loop(self._tell):
                    return
        self._call_on_loop(self._forget, threading.current_thread())

    def _call_on_loop(self, callback: Callable[..., None], *arguments: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop was closed without stopping the engine: nobody to tell
            return False
        return True

    def _tell(self) -> None:
        self._announced = False
        while self._ends:
            done, result = self._ends.popleft()
            self._unfinished -= 1
            done(result)

    def _forget(self, thread: threading.Thread) -> None:
        self._threads.remove(thread)
        if self._threads or self._ended is None:
            return
        if self._unfinished:  # it was handed over while all threads were about to end
            self._start_thread()
            self._waiting.put(None)
            return
        self._ended.set_result(None)
        self._ended = None


def loop_of_caller() -> asyncio.AbstractEventLoop | None:
    """The loop beside which the calling thread works, where it is one of a :class:`ThreadPool`."""
    loop: asyncio.AbstractEventLoop | None = getattr(_here, "loop", None)
    return loop
