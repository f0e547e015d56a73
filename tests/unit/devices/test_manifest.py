"""A device finds a package's manifest while the package goes by, and does as it says."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from broker.messages import PackageRejected
from devices.behaviours import Refusal
from devices.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestReader
from provisioning.packages import Release, build_package
from provisioning.releases.firmware import Firmware
from provisioning.signing import SigningKey
from tests.unit.devices.test_device import World, world


def fed(content: bytes, size: int) -> bytes | None:
    reader = ManifestReader()
    for start in range(0, len(content), size):
        reader.feed(content[start : start + size])
    return reader.content


def archive(*files: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in files:
            made.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [1, 2, 7, 29, 30, 31, 64, 1000, 100_000])
def test_it_is_found_wherever_it_is_and_however_the_package_comes(tmp_path: Path, size: int) -> None:
    key = SigningKey.load_or_create(tmp_path / "signing.key")
    firmware = Firmware.of(b"PK\3\4 manifest.json" * 100)
    release = Release(name="fw", version="2.0", models=("a", "b"), firmware=firmware)
    package = build_package(release, device_id="d", configuration={}, key=key).content
    content = fed(package, size)
    assert content is not None
    assert json.loads(content)["device_id"] == "d"
    assert Manifest.read(content) == Manifest(version="2.0", models=("a", "b"))
    first = archive(("manifest.json", b"{}"), ("firmware.bin", b"x"))
    assert fed(first, size) == b"{}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive, but long enough to be one",
        archive(("other", b"x" * 1000)),
        archive(("manifest.json", b"{}" * 1000), method=zipfile.ZIP_DEFLATED),
        archive(("manifest.json", b"{}"))[:40],
    ],
    ids=["nothing", "no archive", "no manifest", "compressed", "cut off"],
)
def test_what_has_none_says_nothing(content: bytes) -> None:
    assert fed(content, 10) is None
    assert Manifest.read(None) == Manifest()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"version": 1}', b'{"version": ""}', b'{"models": [""]}', b'{"models": 7}'],
)
def test_one_that_makes_no_sense_is_refused(content: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        Manifest.read(content)
    assert caught.value.reason == "bad-manifest"


def test_one_that_is_too_large_is_refused_and_not_kept() -> None:
    content = fed(archive(("manifest.json", b" " * (MAX_MANIFEST_BYTES + 1))), 1000)
    with pytest.raises(Refusal):
        Manifest.read(content)


def send(made: World, manifest: dict[str, Any], *, attempt: int = 1) -> None:
    made.blobs.content = archive(
        ("firmware.bin", b"x" * 100_000), ("manifest.json", json.dumps(manifest).encode())
    )
    made.send(attempt=attempt)


async def test_a_device_says_the_version_of_what_it_runs() -> None:
    async with world() as made:
        send(made, {"version": "2.0", "models": ["demo-1", "other"]})
        await made.answers(("DownloadCompletedAck", 1))
        made.activate()
        await made.answers(("DownloadCompletedAck", 1), ("ActivationCompleted", 1))
        assert made.versions() == ["2.0"]
        assert made.device._describe().firmware_version == "2.0"


async def test_without_a_version_it_is_the_name_of_the_release() -> None:
    async with world() as made:
        made.send()
        await made.answers(("DownloadCompletedAck", 1))
        made.activate()
        await made.answers(("DownloadCompletedAck", 1), ("ActivationCompleted", 1))
        assert made.versions() == ["demo-1"]


async def test_a_device_of_another_model_rejects_the_package() -> None:
    async with world() as made:
        send(made, {"version": "2.0", "models": ["thermo-1"]})
        await made.answers(("PackageRejected", 1))
        (rejected,) = (event for event in made.link.said if isinstance(event, PackageRejected))
        assert (rejected.reason, rejected.detail) == (
            "wrong-model",
            "the package is for thermo-1; this is demo-1",
        )
        made.activate()
        await made.answers(("PackageRejected", 1), ("ActivationFailed", 1))
