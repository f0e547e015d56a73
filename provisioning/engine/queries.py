"""What clients ask about many instances: answered from disk, in portions, so that the loop serves others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from provisioning.engine.health import Health
from provisioning.engine.records import InstanceFilter, InstanceRow, Outline
from provisioning.engine.store import Store

OUTLINES_AT_ONCE = 1_000
"""Instances looked at before the loop serves others."""
_SEPARATOR = "|"
_MAX_KEY_DIGITS = 18
"""More are no key of SQLite's, nor fit one."""


def token_of(last: InstanceRow | Outline) -> str:
    """For the page after the one that ends with this instance."""
    return f"{last.key}{_SEPARATOR}{last.id}"


def parse_token(token: str | None) -> int:
    """The key of the instance that a page ended with; 0 to begin. Raises ValueError for what is no token."""
    if not token:
        return 0
    key, separator, instance_id = token.partition(_SEPARATOR)
    if not (separator and instance_id and key.isascii() and key.isdecimal() and len(key) <= _MAX_KEY_DIGITS):
        raise ValueError(f"{token!r} is no continuation token: pass one as it was given")
    return int(key)


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

    async def page(
        self, which: InstanceFilter, *, after: int, size: int, payloads: bool, max_chars: int
    ) -> tuple[list[InstanceRow], bool]:
        """The next ``size`` instances, whole, that the filter fits, and whether there are more.

        They are fewer where what they hold (with ``payloads``: input and output too) comes to more than
        ``max_chars``; one there is at least.
        """
        rows: list[InstanceRow] = []
        chars = 0
        async for outline in self.outlines(which, after=after, first=size + 1):
            if len(rows) == size or chars > max_chars:
                return rows, True
            row = self._read(outline.id)
            if row is not None:
                rows.append(row)
                texts = (row.custom_status, row.input, row.output)[: 3 if payloads else 1]
                chars += sum(len(text or "") for text in texts)
        return rows, False

    async def rows(self, which: InstanceFilter) -> AsyncIterator[InstanceRow]:
        """All instances that the filter fits, whole. One that is gone by then is left out."""
        async for outline in self.outlines(which):
            row = self._read(outline.id)
            if row is not None:
                yield row
