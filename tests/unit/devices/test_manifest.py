"""What a device checks of a package before it will have it, attack by attack; and that it is told why not."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.messages import ActivationFailed, DownloadFailed, PackageRejected
from devices.behaviours import Refusal
from devices.manifest import Manifest
from devices.surroundings import Surroundings
from devices.verify import Verifier
from provisioning.packages import InstallationPackage
from provisioning.releases.archive import Entry, directory
from provisioning.signing import SigningKey
from tests.integration.devices.fake_service import package_of
from tests.unit.devices.test_device import DEVICE_ID, KEY, World, world

FIRMWARE = b"firmware" * 1000
CONFIG = b"{}"
FOREIGN = SigningKey.generate()

Json = dict[str, Any]


def listed(content: bytes) -> Json:
    return {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def manifest_of(**changes: Any) -> Json:
    """A good one, with ``changes``; None takes a field away."""
    document = {
        "format": 1,
        "version": "1.0.0",
        "models": [],
        "device_id": DEVICE_ID,
        "key_id": KEY.key_id,
        "files": {"firmware.bin": listed(FIRMWARE), "config.json": listed(CONFIG)},
        **changes,
    }
    return {name: value for name, value in document.items() if value is not None}


def packed(files: Mapping[str, bytes], key: SigningKey = KEY) -> InstallationPackage:
    """A package of whatever files, signed as a whole."""
    entries = [Entry.of(name, content) for name, content in files.items()]
    contents = (entry.header() + content for entry, content in zip(entries, files.values(), strict=True))
    content = b"".join((*contents, directory(entries)))
    digest = hashlib.sha256(content)
    return InstallationPackage(
        package_id="package",
        blob_name="blob",
        parts=(content,),
        size_bytes=len(content),
        sha256=digest.hexdigest(),
        signature=base64.b64encode(key.sign(digest.digest())).decode(),
        key_id=key.key_id,
    )


def made_of(
    manifest: Json | bytes, *, signature: bytes | None = None, key: SigningKey = KEY, **more: bytes
) -> InstallationPackage:
    """One with that manifest; signed by ``key`` unless ``signature`` is given."""
    raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    files = {
        "firmware.bin": FIRMWARE,
        "manifest.json": raw,
        "manifest.sig": key.sign(raw) if signature is None else signature,
        "config.json": CONFIG,
    }
    files |= {name.replace("_", "."): content for name, content in more.items()}
    return packed({name: content for name, content in files.items() if content != b"-"}, key)


async def refuses(made: World, built: InstallationPackage, *, attempt: int = 1) -> str:
    """The reason why the device won't have it; it can't be made to activate it either."""
    made.blobs.packages[DEVICE_ID] = built.content
    made.send(built, attempt=attempt)
    runs, activated = made.device._describe().firmware_version, made.versions()

    def told() -> list[DownloadFailed | PackageRejected]:
        events = (event for event in made.link.said if isinstance(event, DownloadFailed | PackageRejected))
        return [event for event in events if event.attempt == attempt]

    await made.until(lambda: bool(told()))
    made.activate()
    assert isinstance(made.link.said[-1], ActivationFailed)
    assert made.device._describe().firmware_version == runs
    assert made.versions() == activated
    return told()[0].reason


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (made_of(manifest_of(device_id="dev-00002")), "wrong-device"),
        (package_of("dev-00002", FIRMWARE, KEY), "wrong-device"),
        (package_of(DEVICE_ID, FIRMWARE, FOREIGN), "bad-signature"),
        (made_of(manifest_of(), signature=FOREIGN.sign(b"x")), "bad-signature"),
        (made_of(manifest_of(), signature=bytes(64)), "bad-signature"),
        (made_of(manifest_of(), signature=b"-"), "bad-signature"),
        (made_of(manifest_of(), manifest_json=b"-"), "bad-manifest"),
        (made_of(manifest_of(), firmware_bin=FIRMWARE[:-1] + b"?"), "bad-manifest"),
        (made_of(manifest_of(), firmware_bin=FIRMWARE + b"?"), "bad-manifest"),
        (made_of(manifest_of(), firmware_bin=b"-"), "bad-manifest"),
        (made_of(manifest_of(), extra_bin=b"x"), "bad-manifest"),
        (made_of(manifest_of(files={})), "bad-manifest"),
        (made_of(manifest_of(key_id=FOREIGN.key_id)), "bad-manifest"),
        (made_of(manifest_of(models=["thermo-1"])), "wrong-model"),
        (made_of(manifest_of(version="0.8.9")), "older-version"),
        (made_of(b"{"), "bad-manifest"),
    ],
    ids=[
        *("for another device", "another device's", "a foreign key's", "another's signature"),
        *("no signature in it", "no signature", "no manifest", "another firmware", "a longer firmware"),
        *("no firmware", "one file more", "a manifest of nothing", "another key named", "another model"),
        *("an older version", "no JSON"),
    ],
)
async def test_what_was_tampered_with_is_never_activated(built: InstallationPackage, reason: str) -> None:
    async with world() as made:
        assert await refuses(made, built) == reason


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        (lambda good, other: good[:60] + b"?" + good[61:], "hash-mismatch"),
        (lambda good, other: good.replace(b'"version":"1.0.0"', b'"version":"9.0.0"'), "hash-mismatch"),
        (lambda good, other: other, "hash-mismatch"),
        (lambda good, other: good + b"?", "size-mismatch"),
    ],
    ids=["a byte of the firmware", "the manifest", "another device's package", "another size"],
)
async def test_a_blob_that_was_overwritten_is_never_activated(served: Any, reason: str) -> None:
    good, other = (package_of(name, FIRMWARE, KEY, version="1.0.0") for name in (DEVICE_ID, "dev-00002"))
    async with world() as made:
        made.blobs.packages[DEVICE_ID] = content = served(good.content, other.content)
        assert content != good.content
        made.send(good)
        await made.answers(("DownloadFailed", 1))
        (told,) = (event for event in made.link.said if isinstance(event, DownloadFailed))
        assert told.reason == reason
        made.activate()
        assert made.versions() == []


async def test_a_device_says_the_version_of_what_it_runs() -> None:
    async with world() as made:
        made.send(package_of(DEVICE_ID, FIRMWARE, KEY, version="2.0", models=("demo-1", "other")))
        await made.answers(("DownloadCompletedAck", 1))
        made.activate()
        await made.answers(("DownloadCompletedAck", 1), ("ActivationCompleted", 1))
        assert made.versions() == ["2.0"]
        assert made.device._describe().firmware_version == "2.0"


async def test_an_older_version_comes_where_its_package_allows_it_and_not_otherwise() -> None:
    async with world() as made:

        async def runs(version: str, *, run: str, allow_downgrade: bool = False) -> None:
            built = package_of(DEVICE_ID, FIRMWARE, KEY, version=version, allow_downgrade=allow_downgrade)
            made.blobs.packages[DEVICE_ID] = built.content
            made.send(built, run=run)
            await made.until(lambda: made.link.answers()[-1:] == [("DownloadCompletedAck", 1)])
            made.activate(run=run)
            assert made.device._describe().firmware_version == version

        await runs("2.0.0", run="run-1")
        await runs("2.0.0", run="run-2")
        await runs("1.5.0", run="run-3", allow_downgrade=True)
        # Another line can't be compared.
        await runs("demo-1.0.0", run="run-4")
        await runs("demo-2.0.0", run="run-5")
        replayed = package_of(DEVICE_ID, FIRMWARE, KEY, version="demo-1.0.0")
        made.blobs.packages[DEVICE_ID] = replayed.content
        made.send(replayed, run="run-6")
        await made.until(lambda: isinstance(made.link.said[-1], PackageRejected))
        told = made.link.said[-1]
        assert isinstance(told, PackageRejected)
        assert (told.reason, told.detail) == (
            "older-version",
            "the package is demo-1.0.0; what runs here is newer, demo-2.0.0",
        )


async def test_what_a_retired_key_has_signed_is_not_activated_any_more() -> None:
    async with world() as made:
        made.send(package_of(DEVICE_ID, FIRMWARE, KEY))
        await made.answers(("DownloadCompletedAck", 1))
        trust(made, FOREIGN)
        made.activate()
        failed = made.link.said[-1]
        assert isinstance(failed, ActivationFailed)
        # The service sends the package again, signed by a key that counts.
        assert failed.reason == "package-not-present"
        built = package_of(DEVICE_ID, FIRMWARE, FOREIGN)
        made.blobs.packages[DEVICE_ID] = built.content
        made.send(built, attempt=2)
        await made.until(lambda: made.link.answers()[-1:] == [("DownloadCompletedAck", 2)])
        trust(made, KEY)
        assert await refuses(made, package_of(DEVICE_ID, FIRMWARE, FOREIGN), attempt=3) == "bad-signature"


def trust(made: World, key: SigningKey) -> None:
    around: Surroundings = made.device.around
    around.verifier._keys = Verifier.from_base64([key.public_key])._keys


@pytest.mark.parametrize(
    "changes",
    [
        {"device_id": None},
        {"device_id": 7},
        {"version": None},
        {"version": ""},
        {"version": 1},
        {"version": "v" * 201},
        {"models": [""]},
        {"models": 7},
        {"models": "demo-1"},
        {"key_id": 1},
        {"files": None},
        {"files": []},
        {"files": {"a": {}}},
        {"files": {"a": {"size_bytes": True, "sha256": "0" * 64}}},
        {"files": {"a": {"size_bytes": 1, "sha256": "0" * 63}}},
        {"files": {str(n): {"size_bytes": 1, "sha256": "0" * 64} for n in range(17)}},
    ],
)
def test_one_that_makes_no_sense_is_refused(changes: Json) -> None:
    Manifest.read(json.dumps(manifest_of()).encode())
    with pytest.raises(Refusal) as caught:
        Manifest.read(json.dumps(manifest_of(**changes)).encode())
    assert caught.value.reason == "bad-manifest"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(manifest_of())) | st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_manifest_makes_it_stumble(content: bytes) -> None:
    with pytest.raises(Refusal):
        Manifest.read(content)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(list(manifest_of())), JSON))
def test_no_field_of_a_manifest_makes_it_stumble(changes: Json) -> None:
    with contextlib.suppress(Refusal):
        Manifest.read(json.dumps({**manifest_of(), **changes}).encode())
