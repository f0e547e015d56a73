"""Downloads against a real HTTP server that misbehaves: resumed, restarted, or failed with a reason."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import aiohttp.web
import pytest
import pytest_asyncio

from broker.messages import Package
from devices.download import Download, DownloadLimits, Interrupted
from devices.errors import DownloadError
from tests.conftest import free_port
from tests.integration.devices.fake_service import BlobServer, eventually, package_content, pausing_at

CONTENT = package_content()
QUICK = DownloadLimits(
    first_backoff_s=0.01, max_backoff_s=0.02, stall_timeout_s=5, max_tries_without_progress=4
)


@pytest_asyncio.fixture
async def blobs() -> AsyncIterator[BlobServer]:
    async with BlobServer(content=CONTENT).serve() as server:
        yield server


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=2)
    ) as session:
        yield session


def package(url: str, **changes: Any) -> Package:
    fields: dict[str, Any] = {
        "instance_id": "run-1:dev-00001",
        "package_id": "pkg-1",
        "release": "demo-1.0.0",
        "attempt": 1,
        "url": url,
        "size_bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "signature": "A" * 86 + "==",
        "key_id": "k",
        "expires_at": "2030-01-01T00:00:00Z",
    }
    return Package(**(fields | changes))


def download(wanted: Package, *, limits: DownloadLimits = QUICK, **options: Any) -> Download:
    clock = asyncio.get_running_loop().time
    return Download(
        wanted,
        seed=1,
        clock=clock,
        limits=limits,
        on_progress=options.pop("on_progress", lambda _: None),
        **options,
    )


async def test_a_whole_package_takes_one_request(blobs: BlobServer, http: aiohttp.ClientSession) -> None:
    progress: list[int] = []
    one = download(package(f"{blobs.url}/a"), on_progress=progress.append)
    await one.run(http)
    assert blobs.requests == [("/a", None)]
    assert one.received_bytes == len(CONTENT) == progress[-1]
    assert progress == sorted(progress)


async def test_a_sas_url_arrives_as_it_was_signed(http: aiohttp.ClientSession) -> None:
    seen: list[str] = []

    class Recording(BlobServer):
        async def _answer(self, request: aiohttp.web.Request, path: str) -> aiohttp.web.StreamResponse:
            seen.append(request.raw_path)
            return await super()._answer(request, path)

    async with Recording(content=CONTENT).serve() as blobs:
        await download(package(f"{blobs.url}/a%20b?se=2030-01-01T00%3A00%3A00Z&sig=a%2Fb%2B%3D")).run(http)
    assert seen == ["/a%20b?se=2030-01-01T00%3A00%3A00Z&sig=a%2Fb%2B%3D"]


async def test_a_body_cut_short_is_resumed_where_it_ended(
    blobs: BlobServer, http: aiohttp.ClientSession
) -> None:
    blobs.faults["/a"] = ["truncate", "truncate"]
    one = download(package(f"{blobs.url}/a"))
    await one.run(http)
    (_, first), (_, second), (_, third) = blobs.requests
    assert (first, second) == (None, f"bytes={len(CONTENT) // 2}-")
    assert third == f"bytes={len(CONTENT) // 2 + len(CONTENT) // 4}-"
    assert (one.retries, one.restarts) == (2, 0)


async def test_a_server_that_cannot_resume_is_asked_for_all_again(
    blobs: BlobServer, http: aiohttp.ClientSession
) -> None:
    blobs.faults["/a"] = ["truncate", "no-range"]
    one = download(package(f"{blobs.url}/a"))
    await one.run(http)
    assert one.restarts == 1


async def test_a_blob_that_changed_between_two_parts_is_fetched_anew(
    blobs: BlobServer, http: aiohttp.ClientSession
) -> None:
    blobs.faults["/a"] = ["truncate", "corrupt"]
    await download(package(f"{blobs.url}/a")).run(http)
    assert [asked for _, asked in blobs.requests] == [None, f"bytes={len(CONTENT) // 2}-", None]


async def test_a_blob_that_became_shorter_is_fetched_anew(
    blobs: BlobServer, http: aiohttp.ClientSession
) -> None:
    blobs.faults["/a"] = ["truncate", "416"]
    await download(package(f"{blobs.url}/a")).run(http)
    assert [asked for _, asked in blobs.requests] == [None, f"bytes={len(CONTENT) // 2}-", None]


async def test_server_errors_are_retried(blobs: BlobServer, http: aiohttp.ClientSession) -> None:
    blobs.faults["/a"] = ["503", "500", "429"]
    await download(package(f"{blobs.url}/a")).run(http)
    assert len(blobs.requests) == 4


@pytest.mark.parametrize(
    ("faults", "reason", "requests"),
    [
        (["403"], "expired-url", 1),
        (["404"], "expired-url", 1),
        (["400"], "http-error", 1),
        (["302"], "http-error", 1),
        (["corrupt"], "hash-mismatch", 1),
        (["short"], "size-mismatch", 1),
        (["503"] * 9, "server-error", 4),
    ],
)
async def test_what_cannot_be_had_fails_with_a_reason(
    blobs: BlobServer, http: aiohttp.ClientSession, faults: list[str], reason: str, requests: int
) -> None:
    blobs.faults["/a"] = faults
    with pytest.raises(DownloadError) as caught:
        await download(package(f"{blobs.url}/a?sig=SECRET")).run(http)
    assert caught.value.reason == reason
    assert "SECRET" not in str(caught.value)
    assert len(blobs.requests) == requests


async def test_a_package_larger_than_announced_is_refused_before_it_is_read(
    blobs: BlobServer, http: aiohttp.ClientSession
) -> None:
    with pytest.raises(DownloadError, match="size-mismatch"):
        await download(package(f"{blobs.url}/a", size_bytes=100)).run(http)


async def test_storage_that_is_away_for_a_while_is_waited_for(http: aiohttp.ClientSession) -> None:
    port = free_port()
    patient = DownloadLimits(first_backoff_s=0.05, max_backoff_s=0.05, stall_timeout_s=20)
    one = download(package(f"http://127.0.0.1:{port}/a"), limits=patient)
    running = asyncio.create_task(one.run(http))
    await eventually(lambda: one.retries >= 3)
    async with BlobServer(content=CONTENT).serve(port):
        await running
    assert one.received_bytes == len(CONTENT)


async def test_storage_that_stays_away_fails_within_the_bound(http: aiohttp.ClientSession) -> None:
    with pytest.raises(DownloadError, match="unreachable"):
        await download(package(f"http://127.0.0.1:{free_port()}/a")).run(http)


async def test_an_interruption_closes_the_connection_and_the_rest_comes_by_range(
    blobs: BlobServer, http: aiohttp.ClientSession
) -> None:
    one = download(package(f"{blobs.url}/a"), combined=pausing_at(0.5))
    with pytest.raises(Interrupted):
        await one.run(http)
    assert len(CONTENT) // 2 <= one.received_bytes < len(CONTENT)
    at = one.received_bytes
    await one.run(http)
    assert blobs.requests[1:] == [("/a", f"bytes={at}-")]


async def test_a_newer_url_for_the_same_content_is_used_without_losing_bytes(
    blobs: BlobServer, http: aiohttp.ClientSession
) -> None:
    blobs.faults = {"/old": ["truncate", "403"]}
    one: Download

    def renew(_: int) -> None:
        # The fresh offer comes while the old URL's bytes still do.
        one.package = package(f"{blobs.url}/new", attempt=2)

    one = download(package(f"{blobs.url}/old"), on_progress=renew)
    await one.run(http)
    assert blobs.requests == [("/old", None), ("/new", f"bytes={len(CONTENT) // 2}-")]


async def test_a_cap_on_bandwidth_is_kept(blobs: BlobServer, http: aiohttp.ClientSession) -> None:
    clock = asyncio.get_running_loop().time
    began_s = clock()
    await download(package(f"{blobs.url}/a"), rate_bytes_per_s=len(CONTENT) * 4).run(http)
    assert clock() - began_s >= 0.24


async def test_an_url_that_is_none_is_named_as_such(http: aiohttp.ClientSession) -> None:
    with pytest.raises(DownloadError, match="bad-url"):
        await download(package("http://[broken/a")).run(http)
