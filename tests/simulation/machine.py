"""The simulated machine: virtual time, a loop that lives in it, and work off the loop without threads."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
"""Where virtual time begins: 2023-11-14 22:13:20 UTC, in microseconds."""


class StalledError(Exception):
    """Nothing is left that could ever happen, and the scenario has not ended."""


class Time:
    """Virtual time in microseconds. It goes on while nothing is ready; the wall clock may be set."""

    def __init__(self) -> None:
        self.now = 0
        self.wall_offset = START

    def monotonic(self) -> int:
        return self.now

    def wall(self) -> int:
        return self.now + self.wall_offset


class _Selector(selectors.BaseSelector):
    """Never finds a file ready; where the loop would sleep, time is moved on instead."""

    def __init__(self, time: Time, each_round: Callable[[], None]) -> None:
        self._time = time
        self._each_round = each_round
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(
            fileobj, fileobj if isinstance(fileobj, int) else fileobj.fileno(), events, data
        )
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._each_round()
        if timeout is None:
            raise StalledError("nothing is ready, and nothing is planned")
        if timeout > 0:
            self._time.now += math.ceil(timeout * SECOND)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class Loop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. ``each_round`` is called once in each of its rounds.

    Each look at the time takes ``pace`` microseconds, so that what is measured takes long on a slow machine.
    """

    def __init__(self, time: Time, pace: int, each_round: Callable[[], None]) -> None:
        self._virtual = time
        self._pace = pace
        super().__init__(_Selector(time, each_round))
        self.set_exception_handler(lambda loop, context: None)  # of a loop that died, nobody is told

    def time(self) -> float:
        self._virtual.now += self._pace
        return self._virtual.now / SECOND

    def abandon(self) -> None:
        """What the end of the process does: nothing runs on, nobody is told."""
        for left in asyncio.all_tasks(self):
            coroutine = left.get_coro()
            try:
                coroutine.close()
            except (RuntimeError, ValueError):  # it would not go, or is the one that is running: so be it
                continue
        self.close()


class Pool:
    """:class:`provisioning.engine.threads.Pool`: work is done later, and its end told later still."""

    def __init__(self, most: int, dice: random.Random, at_point: Callable[[], None]) -> None:
        self._most = most
        self._dice = dice
        self._at_point = at_point
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._running = 0
        self._idle: asyncio.Future[None] | None = None

    def run(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        self._waiting.append((work, done))
        self._begin()

    def clear(self) -> int:
        left = len(self._waiting)
        self._waiting.clear()
        return left

    async def stop(self) -> None:
        while self._running or self._waiting:
            self._idle = self._loop.create_future()
            await self._idle

    def _begin(self) -> None:
        while self._running < self._most and self._waiting:
            self._running += 1
            work, done = self._waiting.popleft()
            self._loop.call_later(self._delay(), self._work, work, done)

    def _work(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        result = work()
        self._at_point()
        self._loop.call_later(self._delay(), self._end, done, result)

    def _end(self, done: Callable[[Any], None], result: Any) -> None:
        self._running -= 1
        done(result)
        self._begin()
        if not self._running and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _delay(self) -> float:
        return self._dice.choice((0.0, 0.0, 0.0002, 0.001, 0.01))
