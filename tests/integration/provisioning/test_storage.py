"""Packages in the real Azurite: what a shared URL may do, and a storage that forgets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from azure.storage.blob import AccessPolicy, ContainerSasPermissions
from azure.storage.blob.aio import ContainerClient

from provisioning.azurite import LocalAzurite
from provisioning.errors import StorageAwayError
from provisioning.package_store import PackageStore, new_policy
from provisioning.packages import InstallationPackage, Release, build_package
from provisioning.signing import SigningKey
from tests.conftest import free_port

pytestmark = pytest.mark.real


@pytest.fixture
async def store(azurite: LocalAzurite, unique: str) -> AsyncIterator[PackageStore]:
    async with PackageStore(
        connection_string=azurite.connection_string,
        container=unique,
        policy=new_policy(),
        max_concurrent_uploads=4,
        upload_timeout_s=15,
    ) as opened:
        yield opened


@pytest.fixture
def package(tmp_path: Path) -> InstallationPackage:
    key = SigningKey.generate()
    return build_package(Release.demo("demo-1.0.0", 4096), device_id="dev-1", configuration={}, key=key)


async def test_a_shared_url_reads_its_blob_and_does_nothing_else(
    store: PackageStore, package: InstallationPackage
) -> None:
    await store.upload(package)
    await store.upload(package)  # an activity that runs twice
    url = (await store.share(package.blob_name, lifetime_s=60)).url
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).content == package.content
        part = await client.get(url, headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, package.content[100:200])
        assert (
            await client.put(url, content=b"x", headers={"x-ms-blob-type": "BlockBlob"})
        ).status_code == 403
        assert (await client.delete(url)).status_code == 403
        other = url.replace("dev-1.zip", "dev-2.zip")
        assert (await client.get(other)).status_code == 403
        assert (await client.get(store.url_of(package.blob_name))).status_code in (403, 404, 409)
    assert (store.uploads, store.reachable) == (2, True)
    assert await store.probe()


async def test_an_expired_url_reads_nothing(store: PackageStore, package: InstallationPackage) -> None:
    await store.upload(package)
    url = (await store.share(package.blob_name, lifetime_s=-120)).url
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 403


async def test_urls_that_are_revoked_read_nothing_and_new_ones_do(
    store: PackageStore, package: InstallationPackage, azurite: LocalAzurite, unique: str
) -> None:
    async with ContainerClient.from_connection_string(azurite.connection_string, unique) as container:
        await store.upload(package)
        # Of somebody else's, which stay as they are.
        until = datetime.now(UTC) + timedelta(hours=1)
        ours = (await container.get_container_access_policy())["signed_identifiers"]
        foreign = AccessPolicy(permission=ContainerSasPermissions(list=True), expiry=until)
        await container.set_container_access_policy(
            {**{known.id: known.access_policy for known in ours}, "foreign": foreign}
        )
        first = (await store.share(package.blob_name, lifetime_s=60)).url
        async with httpx.AsyncClient() as client:
            assert (await client.get(first)).status_code == 200
            await store.revoke(new_policy(store.policy))
            assert not store.revoking
            assert (await client.get(first)).status_code == 403
            second = (await store.share(package.blob_name, lifetime_s=60)).url
            assert (await client.get(second)).content == package.content
            # Nor without a policy, by leaving it out of the URL.
            bare = re.sub(r"si=[^&]*&", "", second)
            assert bare != second
            assert (await client.get(bare)).status_code == 403
        policies = (await container.get_container_access_policy())["signed_identifiers"]
        assert {known.id for known in policies} == {"foreign", store.policy}


async def test_a_revocation_that_a_crash_has_cut_off_is_made_up_for_by_the_next_start(
    store: PackageStore, package: InstallationPackage, azurite: LocalAzurite, unique: str
) -> None:
    await store.upload(package)
    url = (await store.share(package.blob_name, lifetime_s=60)).url
    async with (
        PackageStore(
            connection_string=azurite.connection_string,
            container=unique,
            policy=new_policy(store.policy),  # as the registry says
            max_concurrent_uploads=1,
            upload_timeout_s=15,
        ) as restarted,
        httpx.AsyncClient() as client,
    ):
        assert (await client.get((await restarted.share(package.blob_name, lifetime_s=60)).url)).is_success
        assert (await client.get(url)).status_code == 403


async def test_a_container_without_room_for_a_policy_says_so(
    package: InstallationPackage, azurite: LocalAzurite, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ContainerClient.from_connection_string(azurite.connection_string, unique) as container:
        await container.create_container()
        read = AccessPolicy(permission=ContainerSasPermissions(read=True))
        await container.set_container_access_policy({f"other-{n}": read for n in range(5)})
        async with PackageStore(
            connection_string=azurite.connection_string,
            container=unique,
            policy=new_policy(),
            max_concurrent_uploads=1,
            upload_timeout_s=1,
        ) as store:
            with pytest.raises(StorageAwayError):
                await store.upload(package)
    assert f"The container {unique} has 5 stored access policies of others" in caplog.text


async def test_a_storage_that_forgot_a_revocation_is_told_again(
    store: PackageStore, package: InstallationPackage, azurite: LocalAzurite, unique: str
) -> None:
    await store.upload(package)
    async with ContainerClient.from_connection_string(azurite.connection_string, unique) as container:
        before = (await container.get_container_access_policy())["signed_identifiers"]
        revoked = (await store.share(package.blob_name, lifetime_s=60)).url
        await store.revoke(new_policy(store.policy))
        await container.set_container_access_policy({known.id: known.access_policy for known in before})
    async with httpx.AsyncClient() as client:
        assert (await client.get(revoked)).is_success
        assert await store.probe()
        url = (await store.share(package.blob_name, lifetime_s=60)).url
        assert (await client.get(url)).is_success
        assert (await client.get(revoked)).status_code == 403


async def test_a_storage_that_forgot_its_container_gets_it_back(
    store: PackageStore, package: InstallationPackage, azurite: LocalAzurite, unique: str
) -> None:
    await store.upload(package)
    async with ContainerClient.from_connection_string(azurite.connection_string, unique) as container:
        await container.delete_container()
    with pytest.raises(StorageAwayError):
        await store.upload(package)
    # The activity's retry policy would come to this a moment later.
    await store.upload(package)
    assert store.reachable


async def test_storage_that_is_not_there_is_an_error_in_time_without_secrets(
    package: InstallationPackage, azurite: LocalAzurite
) -> None:
    nowhere = azurite.connection_string.replace(f":{azurite.port}/", f":{free_port()}/")
    async with PackageStore(
        connection_string=nowhere,
        container="packages",
        policy=new_policy(),
        max_concurrent_uploads=1,
        upload_timeout_s=0.1,
    ) as away:
        with pytest.raises(StorageAwayError, match=r"Blob storage at http://127\.0\.0\.1") as caught:
            await away.upload(package)
        assert "AccountKey" not in str(caught.value)
        assert not away.reachable
        assert not await away.probe()
