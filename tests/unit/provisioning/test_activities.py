"""CreateInstallationPackage: which release, for whom, and how much of it is in memory at once."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from provisioning.activities import Activities
from provisioning.package_store import SharedAccess
from provisioning.packages import InstallationPackage, Release, build_package
from provisioning.registry import Registry
from provisioning.releases.store import Releases
from provisioning.settings import RunOptions
from provisioning.signing import KeyRing, SigningKey
from tests.unit.releases.making import DEFAULT, add, new, opened, registry_in

Json = dict[str, Any]


class Store:
    """Takes packages down, so many at once."""

    def __init__(self, at_once: int = 2) -> None:
        self.uploaded: list[InstallationPackage] = []
        self.turns = asyncio.Semaphore(at_once)
        self.shared: list[tuple[str, float]] = []
        self.made = 0
        self.most_made = 0

    async def upload(self, package: InstallationPackage) -> None:
        self.uploaded.append(package)

    async def upload_made(
        self, blob_name: str, make: Callable[[], Awaitable[InstallationPackage]]
    ) -> InstallationPackage:
        async with self.turns:
            package = await make()
            self.made += 1
            self.most_made = max(self.most_made, self.made)
            await asyncio.sleep(0)
            self.made -= 1
        assert package.blob_name == blob_name
        self.uploaded.append(package)
        return package

    async def share(self, blob_name: str, *, lifetime_s: float) -> SharedAccess:
        self.shared.append((blob_name, lifetime_s))
        url = f"http://blobs/{blob_name}?sig={len(self.shared)}"
        return SharedAccess(url=url, expires_at=datetime.now(UTC) + timedelta(seconds=lifetime_s))


class Publisher:
    """Takes messages to devices down."""

    def __init__(self) -> None:
        self.sent: list[Json] = []

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float) -> None:
        assert not retain
        self.sent.append(json.loads(payload))


class World:
    def __init__(self, registry: Registry, releases: Releases, keys: KeyRing) -> None:
        self.registry = registry
        self.releases = releases
        self.store = Store()
        self.publisher = Publisher()
        self.activities = Activities(
            registry=registry,
            store=cast(Any, self.store),
            publisher=self.publisher,
            release=DEFAULT,
            releases=releases,
            keys=keys,
            publish_timeout_s=1.0,
        )

    async def create(self, device_id: str = "d1", **more: Any) -> Json:
        request = {
            "run_id": "run-1",
            "device_id": device_id,
            "instance_id": f"run-1:{device_id}",
            "attempt": 1,
            **more,
        }
        return await self.activities.create_installation_package(cast(Any, None), request)

    async def send(self, package: Json, **more: Any) -> Json:
        request = {
            "run_id": "run-1",
            "device_id": "d1",
            "instance_id": "run-1:d1",
            "attempt": 1,
            "package": package,
            **more,
        }
        await self.activities.send_package_url_to_device(cast(Any, None), request)
        return self.publisher.sent[-1]

    def files(self) -> dict[str, Any]:
        with zipfile.ZipFile(io.BytesIO(self.store.uploaded[-1].content)) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with registry_in(tmp_path) as registry, opened(registry, tmp_path) as releases:
        registry.register("d1", model="m1", firmware_version="1", tags={"site": "lab"})
        await registry.flush()
        yield World(registry, releases, KeyRing.open(tmp_path))


async def test_without_a_release_it_is_that_of_the_service(world: World) -> None:
    package = await world.create()
    files = world.files()
    manifest = json.loads(files["manifest.json"])
    assert package["release"] == "demo-1.0.0"
    assert (manifest["version"], manifest["models"]) == ("demo-1.0.0", [])
    assert files["firmware.bin"] == DEFAULT.firmware.content
    assert json.loads(files["config.json"]) == {"device_id": "d1", "model": "m1", "tags": {"site": "lab"}}


async def test_a_package_says_in_its_manifest_that_a_device_may_go_back_to_it(world: World) -> None:
    await add(world.releases)
    for named in ({}, {"release": "fw-2"}):
        await world.create(**named)
        assert "allow_downgrade" not in json.loads(world.files()["manifest.json"])
        await world.create(**named, allow_downgrade=True)
        assert json.loads(world.files()["manifest.json"])["allow_downgrade"] is True


async def test_a_url_is_made_when_it_is_sent_and_each_time_anew(world: World) -> None:
    """So no history holds it: what a history holds is asked for by everybody, and kept for long."""
    package = await world.create()
    assert not {"url", "expires_at"} & package.keys()
    assert world.store.shared == []
    sent = [await world.send(package, sas_lifetime_s=90.0, ack_timeout_s=30.0) for _ in range(2)]
    assert [message["url"] for message in sent] == [f"http://blobs/demo-1.0.0/d1.zip?sig={n}" for n in (1, 2)]
    assert world.store.shared == [("demo-1.0.0/d1.zip", 90.0)] * 2


async def test_what_an_earlier_version_recorded_is_sent_by_a_fresh_url(world: World) -> None:
    recorded = {
        **await world.create(),
        "url": "http://blobs/old?sig=old",
        "expires_at": "2020-01-01T00:00:00Z",
    }
    sent = await world.send(recorded, ack_timeout_s=30.0)
    assert sent["url"] == "http://blobs/demo-1.0.0/d1.zip?sig=1"
    assert datetime.fromisoformat(sent["expires_at"]) > datetime.now(UTC)
    assert world.store.shared == [("demo-1.0.0/d1.zip", 90.0)]


@pytest.mark.parametrize(("longest", "waited_s", "lasts_s"), [(None, 60, 120), (900, 60, 120), (5, 60, 5)])
def test_a_url_lasts_for_as_long_as_the_device_is_waited_for_and_no_longer_than_is_said(
    longest: float | None, waited_s: float, lasts_s: float
) -> None:
    assert RunOptions(sas_lifetime_s=longest).url_lifetime_s(waited_s) == lasts_s


async def test_a_named_one_brings_its_firmware_version_models_and_configuration(world: World) -> None:
    await add(world.releases, models=["m2", "m1"], configuration='{"at": "{tags.site}/{device_id}"}')
    package = await world.create(release="fw-2")
    files = world.files()
    manifest = json.loads(files["manifest.json"])
    assert (package["release"], package["package_id"][:5]) == ("fw-2", "fw-2-")
    assert package["size_bytes"] == len(world.store.uploaded[-1].content)
    assert (manifest["release"], manifest["version"], manifest["models"]) == ("fw-2", "2.0", ["m1", "m2"])
    assert files["firmware.bin"] == b"firmware"
    assert json.loads(files["config.json"]) == {"device_id": "d1", "at": "lab/d1"}
    assert world.store.uploaded[-1].blob_name == "fw-2/d1.zip"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"models": ["m2"]}, "the release fw-2 is for the model m2, and the device's model is m1"),
        (
            {"configuration": '{"a": "{tags.rack}"}'},
            "the configuration of the release fw-2 needs the tag rack, which the device does not have",
        ),
    ],
)
async def test_for_a_device_that_it_does_not_fit_there_is_no_package(
    world: World, changes: Json, reason: str
) -> None:
    await add(world.releases, **changes)
    assert await world.create(release="fw-2") == {"rejected": reason}
    assert world.store.uploaded == []


async def test_a_release_that_is_gone_rejects_the_device_and_brings_no_other(world: World) -> None:
    assert await world.create(release="fw-9") == {"rejected": "there is no release fw-9 any more"}
    assert world.store.uploaded == []


async def test_a_thousand_packages_of_a_release_share_its_firmware_and_are_made_in_turn(
    world: World,
) -> None:
    await world.releases.add(new(generated_size_bytes=str(1024 * 1024)), None)
    await asyncio.gather(*(world.create(release="fw-2") for _ in range(1000)))
    assert world.store.most_made == 2
    firmware = {id(package.parts[1]) for package in world.store.uploaded}
    assert len(firmware) == 1
    assert max(len(package.parts[0]) + len(package.parts[2]) for package in world.store.uploaded) < 2048


def test_the_hash_that_goes_on_from_the_firmware_is_that_of_the_whole(tmp_path: Path) -> None:

    key = SigningKey.generate()
    release = Release.demo("x", 3_000_001)
    for device_id in ("d1", "d2"):
        package = build_package(release, device_id=device_id, configuration={}, key=key)
        assert package.sha256 == hashlib.sha256(package.content).hexdigest()
        assert package.size_bytes == len(package.content)
