"""One package on its way to a device: streamed, hashed, resumed, never stored.

A `Download` outlives interruptions: its hash state and the number of bytes that went into it are all
there is to keep, so a retry asks by Range for the rest. Where the server can't give the rest the download
begins again, and so it does, once, when the parts of several answers do not add up to the hash: the blob
may have been written anew between them. (If-Match would say so at once, but each new attempt writes the same
bytes over the blob, and a slow device would never come to an end.)
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NoReturn

import aiohttp
from yarl import URL

from broker.messages import Package
from devices.archive import ArchiveReader
from devices.behaviours import HEALTHY, Combined
from devices.behaviours.base import Way
from devices.errors import DownloadError
from devices.pacing import backoff_s

_EXPIRED_STATUSES: Final = frozenset({401, 403, 404, 410})
_RETRIED_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MIN_CHUNK_BYTES: Final = 1024
# A paced download reads this share of a second's worth, or of the package, at a time.
_CHUNKS_PER_SECOND: Final = 8
_CHUNKS_PER_PACKAGE: Final = 16


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """How long a device tries. The defaults fit the service's 60 s wait for an acknowledgement."""

    stall_timeout_s: float = 45.0
    """Give up when no byte has arrived for so long, retries included."""
    total_timeout_s: float = 600.0
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 15.0
    first_backoff_s: float = 0.25
    max_backoff_s: float = 3.0
    max_tries_without_progress: int = 30


class Interrupted(Exception):  # noqa: N818 (no error: the device's behaviour has a say here)
    """The download has come to ``share``, as the device's behaviour asked; ``run`` again to go on."""

    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.share = share


class _RetryableError(Exception):
    """This request failed and the next may not; ``reason`` is the one to report if none succeeds."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Download:
    """Fetches one package. Single use: after `run` has returned, or has raised `DownloadError`, it is over.

    ``package`` is the newest offer of the same content: a later attempt brings a fresh URL, which
    the next request uses, without a byte being fetched twice. ``fetched_bytes`` counts what came over the
    network, ``received_bytes`` how far it is. ``archive`` has followed what came.
    """

    __slots__ = (
        "_clock",
        "_combined",
        "_delay",
        "_hash",
        "_limits",
        "_on_progress",
        "_parts",
        "_pauses",
        "_rate_bytes_per_s",
        "_seed",
        "archive",
        "fetched_bytes",
        "package",
        "received_bytes",
        "restarts",
        "retries",
    )

    def __init__(
        self,
        package: Package,
        *,
        seed: int,
        clock: Callable[[], float],
        limits: DownloadLimits,
        on_progress: Callable[[int], None],
        rate_bytes_per_s: float | None = None,
        combined: Combined = HEALTHY,
        delay: Callable[[Way], Awaitable[None]] | None = None,
    ) -> None:
        """``combined`` says where it pauses, what it asks for and what it makes of what comes.

        ``delay`` waits for as long as a request, or a chunk, is late.
        """
        self.package = package
        self.received_bytes = 0
        self.fetched_bytes = 0
        self.retries = 0
        self.restarts = 0
        self._seed = seed
        self._clock = clock
        self._limits = limits
        self._on_progress = on_progress
        self._rate_bytes_per_s = rate_bytes_per_s
        self._combined = combined
        self._delay = delay
        self._pauses = combined.pauses()
        self._hash = hashlib.sha256()
        self.archive = ArchiveReader()
        self._parts = 0

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Fetch what is missing and check size and hash.

        Raises `DownloadError` when this attempt is over: ``expired-url``, ``http-error``, ``bad-url``,
        ``server-error``, ``unreachable``, ``timeout``, ``truncated``, ``size-mismatch`` or
        ``hash-mismatch``; raises `Interrupted` where the behaviour asked for it, once for each share.
        """
        try:
            async with asyncio.timeout(self._limits.total_timeout_s):
                await self._fetch_all(http)
                if self._parts > 1 and self._hash.hexdigest() != self.package.sha256:
                    self._restart()
                    await self._fetch_all(http)
        except TimeoutError:
            raise DownloadError("timeout", f"not complete after {self._limits.total_timeout_s:g} s") from None
        digest = self._hash.hexdigest()
        if digest != self.package.sha256:
            raise DownloadError(
                "hash-mismatch", f"SHA-256 begins {digest[:12]}, expected {self.package.sha256[:12]}"
            )

    async def _fetch_all(self, http: aiohttp.ClientSession) -> None:
        tries = 0
        last_progress_s = self._clock()
        # One piece may have passed several shares, the last one all that are left.
        self._pause_if_due()
        while self.received_bytes < self.package.size_bytes:
            before, package = self.received_bytes, self.package
            try:
                await self._fetch_rest(http, self._combined.url(package))
                continue
            except DownloadError:
                # A newer offer of the same content came while this one's URL went stale: use that.
                if self.package is package:
                    raise
                continue
            except _RetryableError as error:
                failure = error
            if self.received_bytes > before:
                tries, last_progress_s = 0, self._clock()
            tries += 1
            delay_s = backoff_s(
                seed=self._seed,
                failures=tries,
                first_s=self._limits.first_backoff_s,
                max_s=self._limits.max_backoff_s,
            )
            stalled = self._clock() + delay_s - last_progress_s > self._limits.stall_timeout_s
            if stalled or tries >= self._limits.max_tries_without_progress:
                raise DownloadError(failure.reason, f"{failure.detail}, after {tries} tries") from failure
            self.retries += 1
            await asyncio.sleep(delay_s)

    async def _fetch_rest(self, http: aiohttp.ClientSession, url: str) -> None:
        headers = {"Range": f"bytes={self.received_bytes}-"} if self.received_bytes else {}
        if self._delay is not None:
            await self._delay("request")
        try:
            # encoded=True: a SAS signature is over the URL as it is; quoting it again would break it.
            async with http.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as response:
                self._check_answer(response)
                await self._take_body(response)
        except (aiohttp.InvalidURL, ValueError):
            raise DownloadError("bad-url", "the package's URL can't be used") from None
        except TimeoutError:
            raise _RetryableError("timeout", "the server stopped answering") from None
        except aiohttp.ClientPayloadError:
            raise _RetryableError("truncated", self._progress_text()) from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise _RetryableError("unreachable", f"no connection ({type(error).__name__})") from None
        except aiohttp.ClientError as error:
            raise _RetryableError("http-error", f"broken answer ({type(error).__name__})") from None
        if self.received_bytes < self.package.size_bytes:
            raise _RetryableError("truncated", self._progress_text())

    def _check_answer(self, response: aiohttp.ClientResponse) -> None:
        """Accept a status and the place where the body begins; restart where it begins at zero."""
        status = response.status
        if status == 206 and self.received_bytes:
            if (response.headers.get("Content-Range") or "").startswith(f"bytes {self.received_bytes}-"):
                return
            self._restart()
            raise _RetryableError("http-error", "the answer's Content-Range is not what was asked for")
        if status == 200:
            self._restart()
            length = response.content_length
            if length is not None and length != self.package.size_bytes:
                self._wrong_size(length)
            return
        if status == 416:
            # The blob is shorter than what we have: nothing of that can be kept.
            self._restart()
            raise _RetryableError("truncated", "the server has less than was received (HTTP 416)")
        if status in _EXPIRED_STATUSES:
            raise DownloadError("expired-url", f"the server refused the URL (HTTP {status})")
        if status in _RETRIED_STATUSES:
            raise _RetryableError("server-error", f"HTTP {status}")
        raise DownloadError("http-error", f"HTTP {status}")

    async def _take_body(self, response: aiohttp.ClientResponse) -> None:
        size_bytes = self.package.size_bytes
        started_s, taken = self._clock(), 0
        chunk_bytes = self._chunk_bytes()
        self._parts += 1
        body = response.content
        while chunk := await (body.readany() if chunk_bytes is None else body.read(chunk_bytes)):
            if self._delay is not None:
                await self._delay("chunk")
            taken += len(chunk)
            self.fetched_bytes += len(chunk)
            if self._combined.damages:
                chunk = self._combined.received(chunk, self.received_bytes, self.package)
            self.received_bytes += len(chunk)
            if self.received_bytes > size_bytes:
                self._wrong_size(self.received_bytes)
            self._hash.update(chunk)
            self.archive.feed(chunk)
            self._on_progress(self.received_bytes)
            self._pause_if_due()
            if self._rate_bytes_per_s is not None:
                ahead_s = taken / self._rate_bytes_per_s - (self._clock() - started_s)
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)

    def _pause_if_due(self) -> None:
        if self._pauses and self.received_bytes >= self._pauses[0] * self.package.size_bytes:
            raise Interrupted(self._pauses.pop(0))

    def _chunk_bytes(self) -> int | None:
        """How much to read at a time; None: whatever has come, which is cheapest."""
        if self._rate_bytes_per_s is not None:
            return max(_MIN_CHUNK_BYTES, int(self._rate_bytes_per_s) // _CHUNKS_PER_SECOND)
        if self._pauses:
            return max(_MIN_CHUNK_BYTES, self.package.size_bytes // _CHUNKS_PER_PACKAGE)
        return None

    def _restart(self) -> None:
        if self.received_bytes:
            self.restarts += 1
        self.received_bytes = 0
        self._hash = hashlib.sha256()
        self.archive = ArchiveReader()
        self._parts = 0

    def _wrong_size(self, size_bytes: int) -> NoReturn:
        raise DownloadError(
            "size-mismatch", f"{size_bytes} bytes or more, expected {self.package.size_bytes}"
        )

    def _progress_text(self) -> str:
        return f"the body ended after {self.received_bytes} of {self.package.size_bytes} bytes"
