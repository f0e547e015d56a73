"""What clients ask about many instances: answered from disk, in portions, so that the loop serves others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from provisioning.engine.health import Health
from provisioning.engine.records import InstanceFilter, InstanceRow, Outline
from provisioning.engine.store import Store

OUTLINES_AT_ONCE = 1_000
"""Instances looked at before the loop serves others."""


class Queries:
    """Finds instances by filter, in order of their creation. ``read`` gives one as it is on disk now.

    Pages go on from the key of an instance: what was removed or created meanwhile shifts nothing.
    """

    def __init__(self, store: Store, health: Health, read: Callable[[str], InstanceRow | None]) -> None:
        self._store = store
        self._health = health
        self._read = read

    async def outlines(
        self, which: InstanceFilter, *, after: int = 0, first: int = OUTLINES_AT_ONCE
    ) -> AsyncIterator[Outline]:
        """All instances with a key over ``after`` that the filter fits.

        The first portion has ``first``, for callers who want no more if the filter fits all of them.
        """
        limit = min(first, OUTLINES_AT_ONCE)
        while True:
            await asyncio.sleep(0)
            self._health.check()
            portion = self._store.outlines(after, limit)
            if not portion:
                return
            for outline in portion:
                if which.fits(outline):
                    yield outline
            after = portion[-1].key
            limit = min(2 * limit, OUTLINES_AT_ONCE)

    async def rows(self, which: InstanceFilter) -> AsyncIterator[InstanceRow]:
        """All instances that the filter fits, whole. One that is gone by then is left out."""
        async for outline in self.outlines(which):
            row = self._read(outline.id)
            if row is not None:
                yield row
