"""Packages are deterministic and signed; their URLs are narrow and masked."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.topics import check_package_id
from provisioning.errors import SettingsError
from provisioning.package_store import PackageStore
from provisioning.packages import Release, build_package
from provisioning.signing import SigningKey

ACCOUNT_KEY = base64.b64encode(b"not a real key").decode()
RELEASE = Release.demo("demo-1.0.0", 1024)


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


def _store(scheme: str = "http", endpoint: str = "127.0.0.1:10000/account") -> PackageStore:
    return PackageStore(
        connection_string=f"DefaultEndpointsProtocol={scheme};AccountName=account;AccountKey={ACCOUNT_KEY};"
        f"BlobEndpoint={scheme}://{endpoint};",
        container="packages",
        policy="muster-1-1",
        max_concurrent_uploads=2,
        upload_timeout_s=1,
    )


def test_the_same_device_gets_the_same_bytes_and_another_does_not(key: SigningKey) -> None:
    one = build_package(RELEASE, device_id="dev-1", configuration={"b": 1, "a": 2}, key=key)
    again = build_package(RELEASE, device_id="dev-1", configuration={"a": 2, "b": 1}, key=key)
    other = build_package(RELEASE, device_id="dev-2", configuration={"b": 1, "a": 2}, key=key)
    assert one == again
    assert one.content != other.content
    assert one.package_id != other.package_id
    assert check_package_id(one.package_id)


def test_manifest_and_package_are_signed(key: SigningKey) -> None:
    package = build_package(RELEASE, device_id="dev-1", configuration={}, key=key)
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.public_key))
    assert hashlib.sha256(package.content).hexdigest() == package.sha256
    public.verify(base64.b64decode(package.signature), bytes.fromhex(package.sha256))
    with zipfile.ZipFile(io.BytesIO(package.content)) as archive:
        assert archive.namelist() == ["firmware.bin", "manifest.json", "manifest.sig", "config.json"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        manifest = archive.read("manifest.json")
        public.verify(archive.read("manifest.sig"), manifest)
        for name, stated in json.loads(manifest)["files"].items():
            content = archive.read(name)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (
                stated["size_bytes"],
                stated["sha256"],
            )
        assert json.loads(archive.read("config.json"))["device_id"] == "dev-1"
        with pytest.raises(InvalidSignature):
            public.verify(archive.read("manifest.sig"), manifest + b" ")


@pytest.mark.parametrize(("scheme", "protocol"), [("http", None), ("https", ["https"])])
async def test_a_shared_url_reads_one_blob_for_a_short_time(scheme: str, protocol: list[str] | None) -> None:
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    access = _store(scheme).sign("demo/dev-1.zip", lifetime_s=60, now=now)
    query = parse_qs(urlsplit(access.url).query)
    assert urlsplit(access.url).path == "/account/packages/demo/dev-1.zip"
    assert (query["si"], query["sr"]) == (["muster-1-1"], ["b"])
    assert "sp" not in query  # the policy says it, and storage refuses what is said twice
    assert query["st"] < ["2026-01-01T12:00:00Z"] < query["se"]
    assert query.get("spr") == protocol
    assert 60 <= (access.expires_at - now).total_seconds() <= 61
    assert query["sig"][0] not in repr(access)


@pytest.mark.parametrize(
    "text", ["nonsense", "AccountName=a;BlobEndpoint=http://127.0.0.1:1/a", f"AccountKey={ACCOUNT_KEY}"]
)
def test_a_bad_connection_string_is_an_error_that_does_not_repeat_it(text: str) -> None:
    with pytest.raises(SettingsError, match="MUSTER_BLOB") as caught:
        PackageStore(
            connection_string=text,
            container="c",
            policy="muster-1-1",
            max_concurrent_uploads=1,
            upload_timeout_s=1,
        )
    assert ACCOUNT_KEY not in f"{caught.value!r}{caught.value.__cause__!r}"
