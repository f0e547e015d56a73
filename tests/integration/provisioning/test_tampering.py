"""Whoever can write to blob storage, or has an old key or an old package, runs nothing on a device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from azure.storage.blob.aio import ContainerClient

from broker.local import LocalBroker, start_broker
from provisioning.azurite import LocalAzurite
from provisioning.packages import InstallationPackage
from provisioning.releases.records import NewRelease
from provisioning.service import Service
from provisioning.settings import ServiceSettings
from provisioning.signing import TRUSTED_KEYS

from .driving import Api, Json, fleet

pytestmark = pytest.mark.real

FLIPPED, SWAPPED, UNTOUCHED = DEVICES = ("dev-00001", "dev-00002", "dev-00003")


@pytest_asyncio.fixture
async def own_broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    """A broker that knows no devices of other tests."""
    async with await start_broker(state_dir=tmp_path / "broker", port=0) as broker:
        yield broker


async def outcomes(
    api: Api, *device_ids: str, release: str | None = None, **options: object
) -> dict[str, Json]:
    """What becomes of devices in a run of one attempt each."""
    named = {} if release is None else {"release": release}
    run_id = await api.provision(
        device_ids=list(device_ids), options={"max_attempts": 1, "ack_timeout_s": 30, **options}, **named
    )
    await api.wait_ended(run_id)
    return {device["device_id"]: device for device in await api.devices(run_id)}


async def test_nothing_is_activated_that_was_tampered_with_replayed_or_signed_by_a_retired_key(
    tmp_path: Path,
    own_broker: LocalBroker,
    azurite: LocalAzurite,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ServiceSettings(
        state_dir=tmp_path / "state",
        broker_url=own_broker.url,
        blob_connection_string=azurite.connection_string,
        container=unique,
        api_port=0,
    )
    api = Api(settings.state_dir)
    async with (
        Service(settings) as service,
        ContainerClient.from_connection_string(azurite.connection_string, unique) as blobs,
    ):
        upload = service._store.upload

        async def overwritten(package: InstallationPackage) -> None:
            """As the service does; then somebody else who has the account writes over the blob."""
            await upload(package)
            device_id = Path(package.blob_name).stem
            if device_id == FLIPPED:
                bad = bytearray(package.content)
                bad[100] ^= 1
                await blobs.upload_blob(package.blob_name, bytes(bad), overwrite=True)
            elif device_id == SWAPPED:
                another = package.content.replace(SWAPPED.encode(), UNTOUCHED.encode())
                await blobs.upload_blob(package.blob_name, another, overwrite=True)

        async with fleet(own_broker.url, settings.state_dir / TRUSTED_KEYS, count=len(DEVICES)):
            await api.wait_registered(len(DEVICES))
            with monkeypatch.context() as patched:
                patched.setattr(service._store, "upload", overwritten)
                found = await outcomes(api, *DEVICES)
            assert {device_id: device["state"] for device_id, device in found.items()} == {
                FLIPPED: "failed",
                SWAPPED: "failed",
                UNTOUCHED: "provisioned",
            }
            for device_id in (FLIPPED, SWAPPED):
                assert "hash-mismatch" in found[device_id]["error"]

            # A new key signs, and devices know it at once; a retired one they refuse.
            old = service.keys.current
            status, new = await api.call("POST", "/api/keys")
            assert status == 201
            assert (await api.get("/api/health"))["trust"]["key_id"] == new["key_id"] != old.key_id
            found = await outcomes(api, *DEVICES)
            assert {device["state"] for device in found.values()} == {"provisioned"}
            assert (await api.call("DELETE", f"/api/keys/{new['key_id']}"))[0] == 409
            status, retired = await api.call("DELETE", f"/api/keys/{old.key_id}")
            assert (status, retired["state"]) == (200, "retired")
            with monkeypatch.context() as patched:
                patched.setattr(service.keys, "current", old)
                found = await outcomes(api, FLIPPED)
            assert found[FLIPPED]["state"] == "failed"
            assert "bad-signature" in found[FLIPPED]["error"]

            # An older version is refused, unless its package allows it.
            fields = {"name": "demo-0.9.9", "version": "demo-0.9.9", "generated_size_bytes": "1000"}
            await service.releases.add(NewRelease.read(**fields), None)
            (device,) = (await outcomes(api, UNTOUCHED, release="demo-0.9.9")).values()
            assert device["state"] == "rejected"
            assert device["error"].startswith("rejected the package: older-version")
            (device,) = (await outcomes(api, UNTOUCHED, release="demo-0.9.9", allow_downgrade=True)).values()
            assert (device["state"], device["firmware_version"]) == ("provisioned", "demo-0.9.9")
