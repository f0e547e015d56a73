"""Who may use a local broker: the service's account, and the devices that were admitted.

An account may publish and read only what the contract gives to its device, and has its user name for a client
id, so that no device takes the session of another. The broker reads it from files, which are written anew at
each change and taken up at SIGHUP; who is no longer in them is disconnected then.

Changes that come together are written together: each writes all accounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self
from urllib.parse import quote

from broker.identity import DEFAULT_TOKEN_LIFETIME_S, SERVICE_ACCOUNT

_LOG = logging.getLogger(__name__)

# Tokens of devices whose period has ended are replaced together, so often in a period and not more often.
_RENEWALS_PER_LIFETIME: Final = 1_440
_MIN_RENEWAL_INTERVAL_S: Final = 1.0
_GATHER_S: Final = 0.02
_RETRY_S: Final = 1.0


class AccountFiles(Protocol):
    """What one kind of broker reads."""

    def prepare(self, service_password: str) -> None:
        """Before the broker starts: the service's account as it is now, the devices as they were."""

    def write(self, service_password: str, keys: Mapping[str, str], *, now: float) -> None:
        """All accounts; raises OSError, and then the old file is there."""

    def stale(self, now: float) -> bool:
        """Whether the tokens of some device have to be written anew, because its period has ended."""


class AccessControl:
    """The accounts of one local broker. Enter it when the broker runs; ``keys`` are base64, by device id."""

    username: Final = SERVICE_ACCOUNT

    def __init__(
        self,
        *,
        token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.token_lifetime_s = token_lifetime_s
        # Of this start alone, and on no disk: what the files hold is its hash.
        self.password: Final = secrets.token_urlsafe(32)
        self._clock = clock
        self._files: AccountFiles | None = None
        self._reload: Callable[[], None] = lambda: None
        self._keys: dict[str, str] = {}
        self._known = False
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._keeper: asyncio.Task[None] | None = None

    def url(self, broker_url: str) -> str:
        """The broker's address with the service's account in it: a secret."""
        scheme, _, place = broker_url.partition("://")
        return f"{scheme}://{quote(self.username, safe='')}:{self.password}@{place}"

    def prepare(self, files: AccountFiles) -> None:
        """Write what the broker needs to start; raises OSError."""
        self._files = files
        files.prepare(self.password)

    def start(self, reload: Callable[[], None]) -> None:
        """The broker runs; ``reload`` makes it read its files."""
        self._reload = reload
        # One that was found running has the accounts of its last owner.
        reload()
        self._keeper = asyncio.create_task(self._keep(), name="broker accounts")

    async def close(self) -> None:
        """Change nothing any more; who waits for a change is told that it is cancelled."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        for waiting in self._waiting:
            waiting.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def set(self, keys: Mapping[str, str], *, revoked: Collection[str] = ()) -> None:
        """Let in these devices and no others; returns when the broker has been told."""
        self._keys = dict(keys)
        self._known = True
        await self._write_soon()

    async def admit(self, keys: Mapping[str, str]) -> None:
        """Let in these devices too; returns when the broker has been told."""
        if any(self._keys.get(device_id) != key for device_id, key in keys.items()):
            self._keys.update(keys)
            await self._write_soon()

    async def dismiss(self, device_ids: Iterable[str]) -> None:
        """Disconnect these devices and refuse them from now on; returns when the broker has been told."""
        gone = [device_id for device_id in device_ids if self._keys.pop(device_id, None) is not None]
        if gone:
            await self._write_soon()

    async def _write_soon(self) -> None:
        written = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self._changed.set()
        await written

    async def _keep(self) -> None:
        interval_s = max(_MIN_RENEWAL_INTERVAL_S, self.token_lifetime_s / _RENEWALS_PER_LIFETIME)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._changed.wait()
                    await asyncio.sleep(_GATHER_S)
            assert self._files is not None
            if not self._changed.is_set() and not (self._known and self._files.stale(self._clock())):
                continue
            self._changed.clear()
            waiting, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._files.write, self.password, dict(self._keys), now=self._clock())
                self._reload()
            except OSError as error:
                # The old accounts hold, and nobody is told that it is done before it is.
                _LOG.error("the broker's accounts can't be written (%s); trying on", error.strerror)
                self._waiting = waiting + self._waiting
                self._changed.set()
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                self._waiting = waiting + self._waiting
                raise
            else:
                for one in waiting:
                    if not one.done():
                        one.set_result(None)


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)
