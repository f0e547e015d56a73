"""The enrolments of one service: on disk first, then told to the broker.

So after a crash in between, the next start tells the broker what is on disk. Who is revoked is in memory too:
a broker that lets in anybody delivers what such a device says, and the service drops it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from broker.errors import BadIdError
from broker.identity import device_key
from broker.topics import check_device_id
from provisioning.errors import ProvisioningError
from provisioning.registry import Registry, statements

from .records import (
    MAX_AT_ONCE,
    MAX_ENROLMENTS,
    OPERATOR,
    Enrolment,
    EnrolmentRefusedError,
    NotEnrolledError,
)

_LOG: Final = logging.getLogger(__name__)

_SQL: Final = statements(__package__, "statements.sql")
_RETRY_S: Final = 2.0


class Access(Protocol):
    """Who lets devices in by their keys, base64: `broker.local.AccessControl`, or that with certificates."""

    async def set(self, keys: Mapping[str, str], *, revoked: Collection[str]) -> None: ...
    async def admit(self, keys: Mapping[str, str]) -> None: ...
    async def dismiss(self, device_ids: Iterable[str]) -> None: ...


class Enrolments:
    """Who may connect; ``access`` is None where the broker is somebody else's, or open to all."""

    def __init__(
        self,
        *,
        registry: Registry,
        group_key: bytes,
        access: Access | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._group_key = group_key
        self._access = access
        self._clock = clock
        self._revoked: set[str] = set()
        # On disk and at the broker in the same order.
        self._changing = asyncio.Lock()
        self._telling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read what is there, and tell the broker of it, which is not waited for: it may be away."""

        def work(database: sqlite3.Connection) -> tuple[list[str], set[str]]:
            admitted, revoked = (
                [row[0] for row in database.execute(_SQL[name])] for name in ("admitted", "revoked")
            )
            return admitted, set(revoked)

        admitted, self._revoked = await self._registry.ask(work)
        if self._access is not None:
            await self._changing.acquire()
            self._telling = asyncio.create_task(self._tell(self._access, admitted), name="tell the broker")

    async def close(self) -> None:
        """Tell nobody any more."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])

    async def _tell(self, access: Access, admitted: Sequence[str]) -> None:
        """With the lock held: no change is to come before it."""
        try:
            while True:
                try:
                    await access.set(self._keys(admitted), revoked=frozenset(self._revoked))
                    return
                except ProvisioningError as error:
                    # Who is enrolled next would else be the only one at the broker.
                    _LOG.error("the broker can't be told who may connect (%s); trying on", error)
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._changing.release()

    # -- questions -----------------------------------------------------------------------------------

    def is_revoked(self, device_id: str) -> bool:
        """Whether a device may no longer connect; at once."""
        return device_id in self._revoked

    async def show(self, device_id: str) -> Enrolment:
        """One; raises NotEnrolledError."""
        rows = await self._registry.ask(lambda db: db.execute(_SQL["enrolment"], (device_id,)).fetchall())
        if not rows:
            raise NotEnrolledError([device_id])
        return _enrolment(rows[0])

    async def page(self, *, after: str | None, revoked: bool | None, limit: int) -> list[Enrolment]:
        """Up to ``limit`` in the order of their ids, those that are revoked, those that are not, or both."""
        rows = await self._registry.ask(
            lambda db: db.execute(_SQL["page"], (after, revoked, limit)).fetchall()
        )
        return [_enrolment(row) for row in rows]

    # -- changes -------------------------------------------------------------------------------------

    async def enrol(self, device_ids: Sequence[str], *, by: str = OPERATOR) -> int:
        """Let devices in; returns how many are new. Who is revoked stays so.

        Raises EnrolmentRefusedError, and then nothing has changed.
        """
        _check(device_ids)
        now = self._clock()

        def work(database: sqlite3.Connection) -> list[str]:
            new = _returned(database, "enrol", ((device_id, by, now) for device_id in device_ids))
            if (there := database.execute(_SQL["count"]).fetchone()[0]) > MAX_ENROLMENTS:
                raise EnrolmentRefusedError(
                    f"There would be {there:,} enrolments, and {MAX_ENROLMENTS:,} is the most: remove some "
                    f"with `muster enrolment remove`."
                )
            return new

        async with self._changing:
            new = await self._registry.transact(work)
            if self._access is not None:
                may = [device_id for device_id in device_ids if device_id not in self._revoked]
                await self._access.admit(self._keys(may))
        return len(new)

    async def revoke(self, device_ids: Sequence[str]) -> list[str]:
        """Disconnect devices and refuse them from now on; returns those of which that is new."""
        _check(device_ids)
        now = self._clock()
        async with self._changing:
            rows = ((device_id, OPERATOR, now) for device_id in device_ids)
            changed = await self._registry.transact(lambda database: _returned(database, "revoke", rows))
            self._revoked.update(device_ids)
            await self._dismiss(device_ids)
        return changed

    async def restore(self, device_ids: Sequence[str]) -> list[str]:
        """Let devices in again that were revoked, with the same keys; returns those of which that is new.

        Raises NotEnrolledError, and then nothing has changed.
        """
        async with self._changing:
            changed = await self._change_known("restore", device_ids)
            self._revoked.difference_update(device_ids)
            if self._access is not None:
                await self._access.admit(self._keys(device_ids))
        return changed

    async def remove(self, device_ids: Sequence[str]) -> list[str]:
        """Forget devices; where the broker asks who is enrolled they are refused until they are again.

        Raises NotEnrolledError, and then nothing has changed.
        """
        async with self._changing:
            changed = await self._change_known("remove", device_ids)
            self._revoked.difference_update(device_ids)
            await self._dismiss(device_ids)
        return changed

    async def _change_known(self, name: str, device_ids: Sequence[str]) -> list[str]:
        _check(device_ids)

        def work(database: sqlite3.Connection) -> list[str]:
            unknown = [
                device_id
                for device_id in device_ids
                if database.execute(_SQL["enrolment"], (device_id,)).fetchone() is None
            ]
            if unknown:
                raise NotEnrolledError(unknown)
            return _returned(database, name, ((device_id,) for device_id in device_ids))

        return await self._registry.transact(work)

    async def _dismiss(self, device_ids: Sequence[str]) -> None:
        if self._access is None:
            return
        await self._access.dismiss(device_ids)
        # Mosquitto publishes no will of those whom it disconnects itself.
        for device_id in device_ids:
            self._registry.presence(device_id, online=False)

    def _keys(self, device_ids: Iterable[str]) -> dict[str, str]:
        return {device_id: device_key(self._group_key, device_id) for device_id in device_ids}


def _returned(database: sqlite3.Connection, name: str, rows: Iterable[tuple[str | float, ...]]) -> list[str]:
    """The ids that a statement gives back, over all rows: `executemany` gives none."""
    return [found[0] for row in rows for found in database.execute(_SQL[name], row).fetchall()]


def _check(device_ids: Sequence[str]) -> None:
    if not 1 <= len(device_ids) <= MAX_AT_ONCE:
        raise EnrolmentRefusedError(f"Name 1 to {MAX_AT_ONCE:,} devices at once, not {len(device_ids):,}.")
    try:
        for device_id in device_ids:
            check_device_id(device_id)
    except BadIdError as error:
        raise EnrolmentRefusedError(f"{error.value!r} can't be a device: {error.problem}.") from error


def _enrolment(row: tuple[str, str, float, float | None]) -> Enrolment:
    return Enrolment(device_id=row[0], by=row[1], enrolled_at=row[2], revoked_at=row[3])
