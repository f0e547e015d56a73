"""Installation packages: built the same every time, signed, stored as blobs, shared by SAS URL.

A package is a ZIP (stored, not compressed) of

- `firmware.bin`    the release's firmware,
- `manifest.json`   format, release with version and models, device, key, whether the device may go back to it
                    from a newer version, and the size and SHA-256 of each file,
- `manifest.sig`    the Ed25519 signature (64 bytes) of manifest.json,
- `config.json`     the device's own configuration.

The firmware comes first, since it is the same for each device: it is neither copied nor hashed for each.

Same release, same device, same key: same bytes, so that an activity that runs twice overwrites a blob with
itself. A SAS URL reads one blob for a short time; its `sig` is a secret, and `mask_sas` takes it out of
whatever people get to see.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import IO, Self, cast

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob import BlobSasPermissions, ContentSettings, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient, ContainerClient

from .errors import PackageError, SettingsError, StorageAwayError
from .masking import mask_sas
from .releases.archive import Entry, directory
from .releases.firmware import FILE_NAME, Firmware, generated
from .signing import SigningKey

_LOG = logging.getLogger(__name__)
# The Azure SDK logs each request and answer at INFO: a cost per device, and noise where INFO is on.
_AZURE_LOG = "azure.core.pipeline.policies.http_logging_policy"

MAX_PACKAGE_BYTES = 128 * 1024 * 1024
# What is larger is sent in blocks of this size: so an upload holds a block, and no package whole.
_BLOCK_BYTES = 4 * 1024 * 1024
# A try may take longer, the larger the package is: by the second for so many bytes.
_SLOW_UPLOAD_BYTES_PER_S = 1024 * 1024
# Clocks of devices and of storage differ a little; the URL is good from this long ago.
_SAS_START_SKEW = timedelta(minutes=5)
_CONTENT = ContentSettings(content_type="application/zip")
_CONTAINER_RETRY_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Release:
    """A firmware under a name, with what goes into each manifest."""

    name: str
    version: str
    models: tuple[str, ...] = ()
    firmware: Firmware

    @classmethod
    def demo(cls, name: str, size_bytes: int) -> Release:
        """A release whose firmware follows from its name: pseudo-random bytes, the same everywhere."""
        return cls(name=name, version=name, firmware=Firmware.of(b"".join(generated(name, size_bytes))))


@dataclass(frozen=True, kw_only=True)
class InstallationPackage:
    """A built package; many of one release share its firmware."""

    package_id: str
    blob_name: str
    parts: tuple[bytes, ...] = field(repr=False)
    size_bytes: int
    sha256: str
    signature: str
    """Base64 Ed25519 over the 32 raw bytes of the SHA-256."""
    key_id: str
    """The key of that signature, and of the manifest's."""

    @property
    def content(self) -> bytes:
        """The whole of it, copied."""
        return b"".join(self.parts)


def build_package(
    release: Release,
    *,
    device_id: str,
    configuration: Mapping[str, object],
    key: SigningKey,
    allow_downgrade: bool = False,
) -> InstallationPackage:
    """The package of one device: deterministic. PackageError if it is too large.

    ``allow_downgrade``: the device takes it though it runs a newer version.
    """
    firmware = release.firmware
    config = _json({"device_id": device_id, **configuration})
    manifest = _json(
        {
            "format": 1,
            "release": release.name,
            "version": release.version,
            "models": release.models,
            "device_id": device_id,
            "key_id": key.key_id,
            **({"allow_downgrade": True} if allow_downgrade else {}),
            "files": {
                FILE_NAME: {"size_bytes": firmware.entry.size_bytes, "sha256": firmware.sha256},
                "config.json": {"size_bytes": len(config), "sha256": hashlib.sha256(config).hexdigest()},
            },
        }
    )
    entries, own = [firmware.entry], []
    for name, content in (
        ("manifest.json", manifest),
        ("manifest.sig", key.sign(manifest)),
        ("config.json", config),
    ):
        entry = Entry.of(name, content)
        entries.append(entry)
        own += [entry.header(), content]
    tail = b"".join((*own, directory(entries)))
    size_bytes = firmware.entry.length + len(tail)
    if size_bytes > MAX_PACKAGE_BYTES:
        raise PackageError(
            f"The package of {device_id} has {size_bytes:,} bytes; the limit is {MAX_PACKAGE_BYTES:,}. "
            f"Use a smaller release than {release.name}."
        )
    digest = firmware.begun.copy()
    digest.update(tail)
    return InstallationPackage(
        package_id=f"{release.name}-{digest.hexdigest()[:16]}",
        blob_name=blob_name_of(release.name, device_id),
        parts=(firmware.header, firmware.content, tail),
        size_bytes=size_bytes,
        sha256=digest.hexdigest(),
        signature=base64.b64encode(key.sign(digest.digest())).decode(),
        key_id=key.key_id,
    )


def blob_name_of(release: str, device_id: str) -> str:
    """Where the package of a device is in the container."""
    return f"{release}/{device_id}.zip"


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, kw_only=True)
class SharedAccess:
    """A URL that reads one blob until it expires. It is a secret: its repr is masked."""

    url: str = field(repr=False)
    expires_at: datetime


class PackageStore:
    """The blob container that packages are in.

    Entering does not wait for storage; the container is made as soon as storage answers, and uploads wait
    for that, each for as long as its own time-out.
    """

    def __init__(
        self,
        *,
        connection_string: str,
        container: str,
        max_concurrent_uploads: int,
        upload_timeout_s: float,
    ) -> None:
        try:
            self._account = BlobServiceClient.from_connection_string(connection_string)
        except ValueError:
            # The cause may quote the string, and the string holds the account's key.
            raise SettingsError(
                "The blob connection string can't be used. It needs AccountName, AccountKey and "
                "BlobEndpoint, separated by semicolons; check MUSTER_BLOB."
            ) from None
        key = getattr(self._account.credential, "account_key", None)
        if not self._account.account_name or not key:
            raise SettingsError(
                "The blob connection string has no AccountName or no AccountKey; check MUSTER_BLOB."
            )
        self._account_name: str = self._account.account_name
        self._account_key: str = key
        self._connection_string = connection_string
        self._container_name = container
        self._max_concurrent_uploads = max_concurrent_uploads
        self._upload_timeout_s = upload_timeout_s
        self._uploads = asyncio.Semaphore(max_concurrent_uploads)
        self._container_there = asyncio.Event()
        self._session: ClientSession | None = None
        self._container: ContainerClient | None = None
        self._opener: asyncio.Task[None] | None = None
        self._reachable = False
        self.uploads = 0
        self.upload_failures = 0

    def __repr__(self) -> str:
        return f"PackageStore({self.endpoint!r}, container={self._container_name!r})"

    @property
    def endpoint(self) -> str:
        """The account's URL, without credentials."""
        return str(self._account.primary_endpoint).split("?")[0].rstrip("/")

    def url_of(self, blob_name: str) -> str:
        """The address of a blob; by itself it gives nobody access."""
        return f"{self.endpoint}/{self._container_name}/{blob_name}"

    @property
    def reachable(self) -> bool:
        """Whether storage answered when it was last asked."""
        return self._reachable

    async def __aenter__(self) -> Self:
        self._session = ClientSession(
            connector=TCPConnector(limit=self._max_concurrent_uploads + 4, keepalive_timeout=30),
            timeout=ClientTimeout(total=None, sock_connect=5, sock_read=self._upload_timeout_s),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
        )
        logging.getLogger(_AZURE_LOG).setLevel(logging.WARNING)
        service = BlobServiceClient.from_connection_string(
            self._connection_string,
            transport=AioHttpTransport(session=self._session, session_owner=False),
            # One try here: the orchestration's retry policy has the say about more, and a circuit of
            # retries inside retries would outlast every time-out.
            retry_total=0,
            max_single_put_size=_BLOCK_BYTES,
            max_block_size=_BLOCK_BYTES,
        )
        self._container = service.get_container_client(self._container_name)
        self._open_container()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opener is not None:
            self._opener.cancel()
            await asyncio.wait([self._opener])
        if self._container is not None:
            await self._container.close()
        await self._account.close()
        if self._session is not None:
            await self._session.close()

    def _open_container(self) -> None:
        self._container_there.clear()
        if self._opener is None or self._opener.done():
            self._opener = asyncio.create_task(self._make_container(), name="blob-container")

    async def _make_container(self) -> None:
        assert self._container is not None
        warned = False
        while True:
            try:
                async with asyncio.timeout(self._upload_timeout_s):
                    with contextlib.suppress(ResourceExistsError):
                        await self._container.create_container()
            except (AzureError, OSError, TimeoutError) as error:
                if not warned:
                    _LOG.warning(
                        "no answer from blob storage at %s (%s); trying on", self.endpoint, _brief(error)
                    )
                    warned = True
                await asyncio.sleep(_CONTAINER_RETRY_INTERVAL_S)
            else:
                self._reachable = True
                self._container_there.set()
                return

    async def probe(self) -> bool:
        """Ask storage whether it is there; the answer is kept in `reachable`."""
        if not self._container_there.is_set():
            return False
        assert self._container is not None
        try:
            async with asyncio.timeout(self._upload_timeout_s):
                await self._container.get_container_properties()
            self._reachable = True
        except (AzureError, OSError, TimeoutError):
            self._reachable = False
        return self._reachable

    async def upload(self, package: InstallationPackage) -> None:
        """Store a package, over an earlier one of the same name; StorageAwayError if that failed."""
        async with self._turn(package.blob_name):
            await self._put(package)

    async def upload_made(
        self, blob_name: str, make: Callable[[], Awaitable[InstallationPackage]]
    ) -> InstallationPackage:
        """As `upload`, of a package that is made when its turn has come: so that few are at once."""
        async with self._turn(blob_name):
            package = await make()
            await self._put(package)
        return package

    @contextlib.asynccontextmanager
    async def _turn(self, blob_name: str) -> AsyncGenerator[None, None]:
        """One of the uploads that may be at once."""
        try:
            async with asyncio.timeout(self._upload_timeout_s):
                await self._container_there.wait()
        except TimeoutError as error:
            raise self._away(blob_name, error) from error
        async with self._uploads:
            yield

    async def _put(self, package: InstallationPackage) -> None:
        assert self._container is not None, "enter the store first"
        size_bytes = package.size_bytes
        small = size_bytes <= _BLOCK_BYTES
        # The time counts from one's turn: those before may have taken all of theirs.
        timeout_s = self._upload_timeout_s + size_bytes / _SLOW_UPLOAD_BYTES_PER_S
        try:
            async with asyncio.timeout(timeout_s):
                await self._container.get_blob_client(package.blob_name).upload_blob(
                    package.content if small else cast("IO[bytes]", _PartsReader(package.parts)),
                    length=size_bytes,
                    overwrite=True,
                    content_settings=_CONTENT,
                )
        except (AzureError, OSError, TimeoutError) as error:
            raise self._away(package.blob_name, error) from error
        self.uploads += 1
        self._reachable = True

    def _away(self, blob_name: str, error: Exception) -> StorageAwayError:
        self.upload_failures += 1
        self._reachable = False
        if isinstance(error, ResourceNotFoundError):
            # A storage that crashed may have forgotten the container: the next try finds it again.
            self._open_container()
        return StorageAwayError(f"Blob storage at {self.endpoint} did not take {blob_name}: {_brief(error)}.")

    def share(self, blob_name: str, *, lifetime_s: float, now: datetime | None = None) -> SharedAccess:
        """A URL that reads this one blob for `lifetime_s`; HTTPS only where the endpoint is HTTPS."""
        moment = now or datetime.now(UTC)
        expires_at = (moment + timedelta(seconds=lifetime_s)).replace(microsecond=0) + timedelta(seconds=1)
        token = generate_blob_sas(
            self._account_name,
            self._container_name,
            blob_name,
            account_key=self._account_key,
            permission=BlobSasPermissions(read=True),
            start=moment - _SAS_START_SKEW,
            expiry=expires_at,
            protocol="https" if self.endpoint.startswith("https://") else None,
        )
        return SharedAccess(url=f"{self.url_of(blob_name)}?{token}", expires_at=expires_at)


class _PartsReader:
    """The parts of a package as one stream, for the SDK to read block by block."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._views = [memoryview(part) for part in parts]

    def read(self, size: int = -1) -> bytes:
        """Up to so many bytes; all that are left where none is said."""
        taken, left = [], size if size >= 0 else sum(map(len, self._views))
        while left and self._views:
            taken.append(self._views[0][:left])
            left -= len(taken[-1])
            self._views[0] = self._views[0][len(taken[-1]) :]
            if not self._views[0]:
                self._views.pop(0)
        return b"".join(taken)


def _brief(error: BaseException) -> str:
    """An error in one masked line."""
    text = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    return mask_sas(f"{type(error).__name__}: {text}" if text else type(error).__name__)
