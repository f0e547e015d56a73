"""Downloads from a real Azurite by SAS: whole, resumed, expired, missing, and away for a while."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from azure.storage.blob import BlobSasPermissions, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient

from broker.messages import Package
from devices.behaviours import HEALTHY
from devices.download import Download, DownloadLimits, Interrupted
from devices.errors import DownloadError
from provisioning.azurite import ACCOUNT, ACCOUNT_KEY, LocalAzurite, start_azurite
from tests.integration.devices.fake_service import eventually, package_content, pausing_at

pytestmark = pytest.mark.real

CONTENT = package_content()


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=2)) as session:
        yield session


async def put(storage: LocalAzurite, container: str, blob: str) -> None:
    async with BlobServiceClient.from_connection_string(storage.connection_string) as service:
        client = service.get_container_client(container)
        if not await client.exists():
            await client.create_container()
        await client.upload_blob(blob, CONTENT, overwrite=True)


def package_at(storage: LocalAzurite, container: str, blob: str, *, valid_for_s: float = 600) -> Package:
    expiry = datetime.now(UTC) + timedelta(seconds=valid_for_s)
    sas = generate_blob_sas(
        ACCOUNT,
        container,
        blob,
        account_key=ACCOUNT_KEY,
        permission=BlobSasPermissions(read=True),
        expiry=expiry,
    )
    return Package(
        instance_id="run-1:dev-1",
        package_id="pkg-1",
        release="demo-1.0.0",
        attempt=1,
        url=f"{storage.blob_endpoint}/{container}/{quote(blob)}?{sas}",
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        signature="A" * 86 + "==",
        key_id="k",
        expires_at=expiry,
    )


def download(wanted: Package, *, interrupt_at: float | None = None) -> Download:
    return Download(
        wanted,
        seed=1,
        clock=asyncio.get_running_loop().time,
        limits=DownloadLimits(first_backoff_s=0.05, max_backoff_s=0.2, stall_timeout_s=30),
        on_progress=lambda _: None,
        combined=HEALTHY if interrupt_at is None else pausing_at(interrupt_at),
    )


async def test_a_package_is_resumed_though_its_blob_was_written_over_with_itself(
    azurite: LocalAzurite, http: aiohttp.ClientSession, unique: str
) -> None:
    await put(azurite, unique, "a b.zip")
    one = download(package_at(azurite, unique, "a b.zip"), interrupt_at=0.4)
    with pytest.raises(Interrupted):
        await one.run(http)
    await put(azurite, unique, "a b.zip")
    await one.run(http)
    assert (one.received_bytes, one.restarts) == (len(CONTENT), 0)


async def test_an_expired_url_and_a_missing_blob_fail_as_expired(
    azurite: LocalAzurite, http: aiohttp.ClientSession, unique: str
) -> None:
    await put(azurite, unique, "a.zip")
    for wanted in (
        package_at(azurite, unique, "a.zip", valid_for_s=-60),
        package_at(azurite, unique, "missing.zip"),
    ):
        with pytest.raises(DownloadError) as caught:
            await download(wanted).run(http)
        assert caught.value.reason == "expired-url"
        assert "sig=" not in str(caught.value)


async def test_a_download_outlives_a_restart_of_its_storage(
    tmp_path: Path, http: aiohttp.ClientSession, stack_cache: object, unique: str
) -> None:
    async with await start_azurite(state_dir=tmp_path, port=0) as first:
        await put(first, unique, "a.zip")
        wanted = package_at(first, unique, "a.zip")
        one = download(wanted, interrupt_at=0.5)
        with pytest.raises(Interrupted):
            await one.run(http)
    running = asyncio.create_task(one.run(http))
    await eventually(lambda: one.retries >= 2)
    async with await start_azurite(state_dir=tmp_path, port=first.port):
        await running
    assert one.restarts == 0
