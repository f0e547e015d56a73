"""The blob container that packages are in: they are stored there, and shared by SAS URL.

A SAS URL reads one blob for a short time. It names a stored access policy of the container, which holds what
it may do: reading. Start and expiry are in the URL, since a policy has one of each for all. A policy that is
replaced by one of another name revokes all URLs at once; `revoke` does, and the name to be is kept by the
caller, so that what a crash has cut off is made up for on entering.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import IO, Any, Self, cast

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob import AccessPolicy, ContainerSasPermissions, ContentSettings, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient, ContainerClient
from yarl import URL

from broker.masking import masked

from .errors import SettingsError, StorageAwayError
from .packages import InstallationPackage
from .settings import ServiceSettings

_LOG = logging.getLogger(__name__)
# The Azure SDK logs each request and answer at INFO: a cost per device, and noise where INFO is on.
_AZURE_LOG = "azure.core.pipeline.policies.http_logging_policy"

# What is larger is sent in blocks of this size: so an upload holds a block, and no package whole.
_BLOCK_BYTES = 4 * 1024 * 1024
# A try may take longer, the larger the package is: by the second for so many bytes.
_SLOW_UPLOAD_BYTES_PER_S = 1024 * 1024
# Clocks of devices and of storage differ a little; the URL is good from this long ago.
_SAS_START_SKEW = timedelta(minutes=5)
_POLICY_PREFIX = "muster-"
_MAX_POLICIES = 5
_POLICY_IN_FORCE_S = 40.0
"""Azure takes up to 30 s before it knows a new policy; until then its URLs are refused."""
_CONTENT = ContentSettings(content_type="application/zip")
_CONTAINER_RETRY_INTERVAL_S = 1.0


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
        policy: str,
        max_concurrent_uploads: int,
        upload_timeout_s: float,
    ) -> None:
        """``policy``: the name of the stored access policy that URLs are shared under, by `new_policy`."""
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
                "The blob connection string has no AccountName or no AccountKey, which SAS URLs are signed "
                "with (a SharedAccessSignature can't sign); check MUSTER_BLOB."
            )
        self._account_name: str = self._account.account_name
        self._account_key: str = key
        self._connection_string = connection_string
        self._container_name = container
        self._policy = policy
        self._max_concurrent_uploads = max_concurrent_uploads
        self._upload_timeout_s = upload_timeout_s
        self._uploads = asyncio.Semaphore(max_concurrent_uploads)
        self._container_there = asyncio.Event()
        self._policy_in_force = asyncio.Event()
        self._session: ClientSession | None = None
        self._container: ContainerClient | None = None
        self._opener: asyncio.Task[None] | None = None
        self._reachable = False
        self._clock_ahead = timedelta(0)
        self.uploads = 0
        self.upload_failures = 0

    @classmethod
    def of(cls, settings: ServiceSettings, *, policy: str) -> Self:
        """The store that a service's settings say."""
        return cls(
            connection_string=settings.blob_connection_string,
            container=settings.container,
            policy=policy,
            max_concurrent_uploads=settings.max_concurrent_uploads,
            upload_timeout_s=settings.upload_timeout_s,
        )

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
            raw_response_hook=self._note_clock,
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
        self._policy_in_force.clear()
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
                    await self._put_policy()
            except (AzureError, OSError, TimeoutError, StorageAwayError) as error:
                if not warned:
                    _LOG.warning(
                        "blob storage at %s can't be used yet (%s); trying on", self.endpoint, _brief(error)
                    )
                    warned = True
                await asyncio.sleep(_CONTAINER_RETRY_INTERVAL_S)
            else:
                self._reachable = True
                self._container_there.set()
                await self._wait_in_force()
                if self._container_there.is_set():
                    self._policy_in_force.set()
                    return
                # Meanwhile it was found to be gone, or to have another policy: once more.

    async def _put_policy(self) -> None:
        """Let the policy be there, and no other of ours: one call puts the new one and takes the old away."""
        assert self._container is not None
        others, ours = await self._policies()
        if ours == [self._policy]:
            return
        if len(others) >= _MAX_POLICIES:
            # Azure has no room for more. Those of other services on this container go on working.
            raise StorageAwayError(
                f"The container {self._container_name} has {len(others)} stored access policies of others: "
                f"remove one, or use a container of its own"
            )
        await self._container.set_container_access_policy(
            {**others, self._policy: AccessPolicy(permission=ContainerSasPermissions(read=True))}
        )

    async def _policies(self) -> tuple[dict[str, AccessPolicy], list[str]]:
        """The container's policies of others, and the names of this service's."""
        assert self._container is not None
        answer = await self._container.get_container_access_policy()
        found = {known.id: known.access_policy for known in answer["signed_identifiers"]}
        ours = [name for name in found if name.startswith(_tag_of(self._policy))]
        return {name: policy for name, policy in found.items() if name not in ours}, ours

    async def _wait_in_force(self) -> None:
        """Wait until a URL under the policy is accepted: one that finds nothing is, and not refused."""
        trouble: Exception | None = None
        try:
            async with asyncio.timeout(_POLICY_IN_FORCE_S):
                while self._container_there.is_set():
                    try:
                        if await self._accepts_urls():
                            return
                        await asyncio.sleep(_CONTAINER_RETRY_INTERVAL_S)
                        # What was sent before it, and cut off, may have come after it.
                        await self._put_policy()
                    except (AzureError, ClientError, OSError, StorageAwayError) as error:
                        trouble = error
                        await asyncio.sleep(_CONTAINER_RETRY_INTERVAL_S)
        except TimeoutError as error:
            _LOG.warning(
                "blob storage at %s may refuse new SAS URLs (%s)", self.endpoint, _brief(trouble or error)
            )

    async def _accepts_urls(self) -> bool:
        """Whether a URL under the policy is not refused, nor put off, but finds nothing."""
        assert self._session is not None
        url = self.sign("none", lifetime_s=_POLICY_IN_FORCE_S).url
        async with self._session.get(URL(url, encoded=True)) as answer:
            return answer.status != HTTPStatus.FORBIDDEN and answer.status < HTTPStatus.INTERNAL_SERVER_ERROR

    def _note_clock(self, answer: PipelineResponse[Any, Any]) -> None:
        """Times in a URL are for storage to judge, so they go by its clock.

        Azurite's answers about access policies have the time when the container was changed last.
        """
        if "comp=acl" in str(answer.http_request.url):
            return
        with contextlib.suppress(TypeError, ValueError):
            date = parsedate_to_datetime(answer.http_response.headers.get("Date"))
            self._clock_ahead = date - datetime.now(UTC)

    @property
    def policy(self) -> str:
        """Under which one URLs are shared."""
        return self._policy

    @property
    def revoking(self) -> bool:
        """Whether storage has yet to take the policy, so that URLs under the one before are still good."""
        return not self._container_there.is_set()

    async def revoke(self, policy: str) -> None:
        """Make all URLs useless that were shared, by sharing under another policy from now on.

        It is tried until storage has taken it, which `revoking` tells of. Where storage is there, that is
        waited for.
        """
        self._policy = policy
        if self._opener is not None:
            self._opener.cancel()
            await asyncio.wait([self._opener])
        self._open_container()
        if self._reachable:
            with contextlib.suppress(StorageAwayError):
                await self._wait_for(self._container_there, "the new access policy")

    async def probe(self) -> bool:
        """Ask storage whether it is there, and has the policy; the answer is kept in `reachable`."""
        if not self._container_there.is_set():
            return False
        try:
            async with asyncio.timeout(self._upload_timeout_s):
                _, ours = await self._policies()
            self._reachable = True
        except (AzureError, OSError, TimeoutError):
            self._reachable = False
        else:
            if ours != [self._policy]:
                # A storage that crashed may have forgotten a revocation: what the registry says is put again.
                _LOG.warning("blob storage at %s has another access policy; putting it right", self.endpoint)
                self._open_container()
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
        await self._wait_for(self._container_there, blob_name)
        async with self._uploads:
            yield

    async def _wait_for(self, opened: asyncio.Event, what: str) -> None:
        """StorageAwayError, which says that ``what`` was not taken, if it takes too long."""
        if opened.is_set():
            return
        try:
            async with asyncio.timeout(self._upload_timeout_s):
                await opened.wait()
        except TimeoutError as error:
            raise self._away(what, error) from error

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

    async def share(self, blob_name: str, *, lifetime_s: float) -> SharedAccess:
        """A URL that reads this one blob for `lifetime_s`; HTTPS only where the endpoint is HTTPS.

        StorageAwayError where the policy that it would name is not in force in time.
        """
        await self._wait_for(self._policy_in_force, f"the access policy for {blob_name}")
        return self.sign(blob_name, lifetime_s=lifetime_s)

    def sign(self, blob_name: str, *, lifetime_s: float, now: datetime | None = None) -> SharedAccess:
        """The same, whether its policy is in force or not."""
        moment = (now or datetime.now(UTC)) + self._clock_ahead
        expires_at = (moment + timedelta(seconds=lifetime_s)).replace(microsecond=0) + timedelta(seconds=1)
        token = generate_blob_sas(
            self._account_name,
            self._container_name,
            blob_name,
            account_key=self._account_key,
            policy_id=self._policy,
            start=moment - _SAS_START_SKEW,
            expiry=expires_at,
            protocol="https" if self.endpoint.startswith("https://") else None,
        )
        return SharedAccess(url=f"{self.url_of(blob_name)}?{token}", expires_at=expires_at)


def new_policy(earlier: str | None = None) -> str:
    """A name for a policy that no other has; ``earlier`` is the one that it comes after, of this service."""
    tag = f"{_POLICY_PREFIX}{secrets.token_hex(4)}-" if earlier is None else _tag_of(earlier)
    return f"{tag}{secrets.token_hex(4)}"


def _tag_of(policy: str) -> str:
    """How the names of all policies of one service begin."""
    return policy[: policy.rindex("-") + 1]


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
    return masked(f"{type(error).__name__}: {text}" if text else type(error).__name__)
