"""A package counts only when a trusted key, named by its id, signed its hash."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.messages import Package
from devices.errors import DownloadError, FleetStartError
from devices.verify import Verifier
from provisioning.signing import SigningKey

DIGEST = hashlib.sha256(b"package").digest()
OLD, NEW, FOREIGN = (SigningKey.generate() for _ in range(3))


def package(signature: bytes, key_id: str) -> Package:
    return Package(
        instance_id="run-1:dev-1",
        package_id="pkg-1",
        release="demo-1.0.0",
        attempt=1,
        url="http://127.0.0.1/a",
        size_bytes=7,
        sha256=DIGEST.hex(),
        signature=base64.b64encode(signature).decode(),
        key_id=key_id,
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
    )


def signed_by(key: SigningKey) -> Package:
    return package(key.sign(DIGEST), key.key_id)


def test_any_of_the_trusted_keys_will_do() -> None:
    verifier = Verifier.from_base64([OLD.public_key, NEW.public_key])
    for key in (OLD, NEW):
        verifier.verify(signed_by(key))
        verifier.verify_manifest(b"{}", key.sign(b"{}"), key.key_id)
        assert verifier.trusts(key.key_id)


@pytest.mark.parametrize(
    "wrong",
    [
        signed_by(FOREIGN),
        package(FOREIGN.sign(DIGEST), OLD.key_id),
        package(OLD.sign(DIGEST), NEW.key_id),
        package(OLD.sign(DIGEST), "key-7"),
        package(OLD.sign(b"other"), OLD.key_id),
        package(bytes(64), OLD.key_id),
    ],
    ids=["foreign", "foreign by our name", "another of ours", "no such key", "of other bytes", "nothing"],
)
def test_a_strangers_signature_and_one_over_something_else_are_refused(wrong: Package) -> None:
    verifier = Verifier.from_base64([OLD.public_key, NEW.public_key])
    with pytest.raises(DownloadError, match=wrong.key_id) as caught:
        verifier.verify(wrong)
    assert caught.value.reason == "bad-signature"


@pytest.mark.parametrize(
    "signature",
    [None, b"", bytes(64), OLD.sign(b"{ }")],
    ids=["none", "empty", "zeros", "of another manifest"],
)
def test_a_manifest_that_is_not_signed_is_refused(signature: bytes | None) -> None:
    with pytest.raises(DownloadError) as caught:
        Verifier.from_base64([OLD.public_key]).verify_manifest(b"{}", signature, OLD.key_id)
    assert caught.value.reason == "bad-signature"


def test_a_trust_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "trusted.keys"
    path.write_text(f"{OLD.public_key}\n")
    verifier = Verifier.from_file(path)
    verifier.verify(signed_by(OLD))
    assert not verifier.trusts(NEW.key_id)

    def put(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.replace(path)

    put(f"{OLD.public_key}\n{NEW.public_key}\n")
    verifier.verify(signed_by(OLD))
    verifier.verify(signed_by(NEW))
    put(f"{NEW.public_key}\n")
    with pytest.raises(DownloadError):
        verifier.verify(signed_by(OLD))
    # What can't be read, or holds none, changes nothing.
    for text in ("", "nonsense", "\xff"):
        put(text)
        assert verifier.trusts(NEW.key_id)
        assert not verifier.trusts(OLD.key_id)
    path.unlink()
    assert verifier.trusts(NEW.key_id)
    put(f"{OLD.public_key}\n")
    assert verifier.trusts(OLD.key_id)
    assert not verifier.trusts(NEW.key_id)


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", "é" * 44, "A" * 87 + "="])
def test_what_is_no_key_is_refused_by_name(text: str) -> None:
    with pytest.raises(FleetStartError, match="32 bytes in base64"):
        Verifier.from_base64([text])


def test_a_fleet_that_trusts_nobody_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(FleetStartError, match="no trust key"):
        Verifier.from_base64([])
    path = tmp_path / "trusted.keys"
    with pytest.raises(FleetStartError, match="can't be read"):
        Verifier.from_file(path)
    path.write_text("\n")
    with pytest.raises(FleetStartError, match="holds no key"):
        Verifier.from_file(path)
