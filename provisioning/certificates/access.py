"""Access to a broker by certificate beside that by key: what is revoked for one is for the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from provisioning.enrolment.store import Access

from .authority import Authority
from .eviction import evict


class CertificateAccess:
    """The `Access` of a local broker with a listener for certificates.

    ``accounts`` is the access by key; ``reload`` makes the broker read its files; ``directory`` has the
    certificates of fleets' devices, ``address`` is the listener's.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        accounts: Access,
        reload: Callable[[], None],
        directory: Path,
        address: tuple[str, int],
    ) -> None:
        self._authority = authority
        self._accounts = accounts
        self._reload = reload
        self._directory = directory
        self._host, self._port = address

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
        of_fleets = [name for name in device_ids if (self._directory / f"{name}.pem").exists()]
        if of_fleets:
            self._authority.issue_into(self._directory, of_fleets)

    async def _end(self, device_ids: list[str]) -> None:
        # The list first: who is disconnected comes back at once.
        self._reload()
        await evict(self._authority, device_ids, host=self._host, port=self._port)
