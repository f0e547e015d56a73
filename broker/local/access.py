"""Who may use a local broker: the service's account, and the devices that were admitted.

An account may publish and read only what the contract gives to its device, and has its user name for a client
id, so that no device takes the session of another. The broker reads it from files, which are written anew at
each change and taken up at SIGHUP; who is no longer in them is disconnected then.

Changes that come together are written together: each writes all accounts.

While the service's account is not connected the broker is not told to read them. Mosquitto (2.0.11) looks
at who is away too: it finds their passwords to be good no more, or has forgotten them where it was started
since, and leaves them without the rights of their names, until they are back. Devices have theirs by a
pattern; the service would lose what devices say meanwhile. So its password stays what it is, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self
from urllib.parse import quote

from broker.identity import DEFAULT_TOKEN_LIFETIME_S, SERVICE_ACCOUNT
from broker.private_files import write_private

_LOG = logging.getLogger(__name__)

# Tokens of devices whose period has ended are replaced together, so often in a period and not more often.
_RENEWALS_PER_LIFETIME: Final = 1_440
_MIN_RENEWAL_INTERVAL_S: Final = 1.0
_GATHER_S: Final = 0.02
_RETRY_S: Final = 1.0
# For so long the service is waited for: one that can't come in may need what is in the files.
_SERVICE_AWAY_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.05
_PASSWORD_CHARS: Final = 43


class AccountFiles(Protocol):
    """What one kind of broker reads."""

    def prepare(self, service_password: str) -> None:
        """Before the broker starts: the service's account as it is now, the devices as they were."""

    def write(self, service_password: str, keys: Mapping[str, str], *, now: float) -> None:
        """All accounts; raises OSError, and then the old file is there."""

    def stale(self, now: float) -> bool:
        """Whether the tokens of some device have to be written anew, because its period has ended."""


class AccessControl:
    """The accounts of one local broker. Enter it when the broker runs; ``keys`` are base64, by device id.

    ``password_file`` keeps the password of the service's account from one start to the next; None: it has
    another one each time. ``service_connected`` says whether that account is connected.
    """

    username: Final = SERVICE_ACCOUNT

    def __init__(
        self,
        *,
        password_file: Path | None = None,
        token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.token_lifetime_s = token_lifetime_s
        self.password = secrets.token_urlsafe(32)
        self.service_connected: Callable[[], bool] = lambda: True
        self._password_file = password_file
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
        if self._password_file is not None:
            self.password = _kept(self._password_file, self.password)
        files.prepare(self.password)

    def start(self, reload: Callable[[], None]) -> None:
        """The broker runs; ``reload`` makes it read its files."""
        self._reload = reload
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

    async def reload(self) -> None:
        """Let the broker read its files again, as soon as that costs the service nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SERVICE_AWAY_S):
                while not self.service_connected():  # noqa: ASYNC110 - it is another's to say
                    await asyncio.sleep(_LOOK_AGAIN_S)
        self._reload()

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
                await self.reload()
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


def _kept(path: Path, new: str) -> str:
    """The password in the file; ``new``, which is written there, where it holds none."""
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        found = path.read_text(encoding="ascii").strip()
        if len(found) == _PASSWORD_CHARS:
            return found
    write_private(path, f"{new}\n", durable=True)
    return new
