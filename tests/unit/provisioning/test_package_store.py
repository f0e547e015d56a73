"""The store of packages beside a storage that is slow to know its policies, as Azure is, and forgets them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from provisioning import package_store
from provisioning.package_store import PackageStore, new_policy


class Storage:
    """As much of blob storage as containers and their policies take."""

    def __init__(self) -> None:
        self.policies = ""
        self.answers: list[int | None] = []
        """To URLs by a policy, one after the other and the last for good; None: the connection is cut."""
        self.asked = asyncio.Event()
        self.ahead = timedelta(0)
        """How far its clock is."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("restype") != "container":
            self.asked.set()
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if answer is None:
                assert request.transport is not None
                request.transport.abort()
                await asyncio.sleep(0)
            return web.Response(status=answer or 404)
        if request.method == "PUT":
            if request.query.get("comp") == "acl":
                self.policies = re.sub(r"<\?xml.*?\?>", "", await request.text())
                return web.Response()
            return web.Response(status=201, headers={"Date": format_datetime(datetime.now(UTC) + self.ahead)})
        empty = "<SignedIdentifiers />"
        # Azurite says here when the container was changed last.
        return web.Response(
            text=self.policies or empty,
            content_type="application/xml",
            headers={"Date": format_datetime(datetime(2020, 1, 1, tzinfo=UTC))},
        )


@asynccontextmanager
async def store_on(storage: Storage) -> AsyncIterator[PackageStore]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", storage.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with PackageStore(
            connection_string="DefaultEndpointsProtocol=http;AccountName=a;AccountKey=c2VjcmV0LWtleQ==;"
            f"BlobEndpoint=http://127.0.0.1:{port}/a",
            container="packages",
            policy=new_policy(),
            max_concurrent_uploads=1,
            upload_timeout_s=5.0,
        ) as store:
            yield store
    finally:
        await runner.cleanup()


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(package_store, "_CONTAINER_RETRY_INTERVAL_S", 0.01)
    return Storage()


async def test_a_policy_that_is_forgotten_before_it_is_in_force_is_put_again(storage: Storage) -> None:
    storage.answers = [403]
    async with store_on(storage) as store:
        await storage.asked.wait()
        storage.policies = ""
        await store.probe()
        storage.answers = [404]
        await store.share("blob", lifetime_s=60)
        assert not store.revoking
        assert store.policy in storage.policies
        assert await store.probe()


@pytest.mark.parametrize("trouble", [[None, None, None], [503], [403]])
async def test_no_url_is_shared_before_storage_has_accepted_one(
    storage: Storage, trouble: list[int | None]
) -> None:
    storage.answers = [*trouble, 403, 404]
    async with store_on(storage) as store:
        await store.share("blob", lifetime_s=60)
        assert storage.answers == [404]


async def test_times_go_by_storages_clock_and_not_by_that_of_its_answers_about_policies() -> None:
    storage = Storage()
    storage.answers, storage.ahead = [404], timedelta(hours=1)
    async with store_on(storage) as store:
        expires_at = (await store.share("blob", lifetime_s=60)).expires_at
    expected = datetime.now(UTC) + timedelta(hours=1, seconds=60)
    assert abs(expires_at - expected) < timedelta(minutes=1)
