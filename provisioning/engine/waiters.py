"""Who waits for what: futures by instance, and how they are refused when the engine ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from provisioning.engine.instances import Instance


class Waiters:
    """Those who wait for one thing to happen to instances, each by its id; it need not exist yet."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        """How many instances are waited for."""
        return len(self._by_id)

    def __iter__(self) -> Iterator[asyncio.Future[None]]:
        return (waiter for waiters in self._by_id.values() for waiter in waiters)

    def wait(self, instance_id: str) -> asyncio.Future[None]:
        """Done at the next :meth:`tell` of the instance. One that is cancelled leaves nothing behind."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._by_id.setdefault(instance_id, [])
        waiters.append(waiter)

        def forget(_: asyncio.Future[None]) -> None:
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters and self._by_id.get(instance_id) is waiters:
                del self._by_id[instance_id]

        waiter.add_done_callback(forget)
        return waiter

    def tell(self, instances: Iterable[Instance]) -> None:
        """It has happened to these."""
        if not self._by_id:
            return
        for instance in instances:
            for waiter in self._by_id.pop(instance.id, ()):
                fulfil(waiter)


def fulfil(waiter: asyncio.Future[None]) -> None:
    """Done; whoever gave up waiting is not told."""
    if not waiter.done():
        waiter.set_result(None)


def refuse(waiter: asyncio.Future[None], error: Exception) -> None:
    """It will never be done, for this reason."""
    if not waiter.done():
        waiter.set_exception(error)
        # Whoever gave up waiting is no defect: mark the error as seen.
        waiter.exception()
