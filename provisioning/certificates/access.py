"""Access to a broker by certificate beside that by key: what is revoked for one is for the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from provisioning.enrolment.store import Access

from .authority import Authority
from .eviction import evict

UNFINISHED_S: Final = 100.0
"""Mosquitto gives a connection 90 s for its CONNECT, Aedes 30 s."""


class CertificateAccess:
    """The `Access` of a local broker with a listener for certificates.

    ``accounts`` is the access by key; ``reload`` makes the broker read its files; ``directory`` has the
    certificates of fleets' devices, and ``in_fleet`` says which are these; ``address`` is the listener's.
    ``unfinished_s`` is how long the broker waits for the first word on a connection: a certificate was looked
    at before that.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        accounts: Access,
        reload: Callable[[], Awaitable[None]],
        directory: Path,
        in_fleet: Callable[[str], bool],
        address: tuple[str, int],
        unfinished_s: float = UNFINISHED_S,
    ) -> None:
        self._authority = authority
        self._accounts = accounts
        self._reload = reload
        self._directory = directory
        self._in_fleet = in_fleet
        self._host, self._port = address
        self._unfinished_s = unfinished_s
        self._late: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Leave those alone who may still have a connection on which they have said nothing."""
        for late in tuple(self._late):
            late.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def set(self, keys: Mapping[str, str], *, revoked: Collection[str]) -> None:
        """Let in the devices with ``keys``, and refuse those that are revoked, at a start of the service."""
        gone = await asyncio.to_thread(self._authority.refuse_exactly, revoked)
        await self._accounts.set(keys, revoked=revoked)
        await self._end(gone)

    async def admit(self, keys: Mapping[str, str]) -> None:
        """Let devices in, by certificates issued from now on; one of a fleet's that was revoked gets one."""
        await asyncio.to_thread(self._admit, list(keys))
        await self._accounts.admit(keys)

    async def dismiss(self, device_ids: Iterable[str]) -> None:
        """Disconnect devices and refuse them from now on, however they come in."""
        device_ids = list(device_ids)
        gone = await asyncio.to_thread(self._authority.revoke, device_ids)
        await self._accounts.dismiss(device_ids)
        await self._end(gone)

    def _admit(self, device_ids: list[str]) -> None:
        self._authority.allow(device_ids)
        if of_fleets := [device_id for device_id in device_ids if self._in_fleet(device_id)]:
            self._authority.issue_into(self._directory, of_fleets)

    async def _end(self, device_ids: list[str]) -> None:
        # The list first: who is disconnected comes back at once.
        await self._reload()
        await self._evict(device_ids)
        if device_ids:
            late = asyncio.create_task(self._end_late(device_ids), name="disconnect revoked devices again")
            self._late.add(late)
            late.add_done_callback(self._late.discard)

    async def _end_late(self, device_ids: list[str]) -> None:
        await asyncio.sleep(self._unfinished_s)
        refused = await asyncio.to_thread(self._authority.refused)
        failed = await self._evict([device_id for device_id in device_ids if device_id in refused])
        # The next start tries again with those.
        await asyncio.to_thread(self._authority.finish, set(device_ids).difference(failed))

    async def _evict(self, device_ids: list[str]) -> list[str]:
        return await evict(self._authority, device_ids, host=self._host, port=self._port)
