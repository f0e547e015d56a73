"""A package counts only when a trusted key signed its hash."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.messages import Package
from devices.errors import DownloadError, FleetStartError
from devices.verify import Verifier

DIGEST = hashlib.sha256(b"package").digest()


def public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def package(signature: bytes) -> Package:
    return Package(
        instance_id="run-1:dev-1",
        package_id="pkg-1",
        release="demo-1.0.0",
        attempt=1,
        url="http://127.0.0.1/a",
        size_bytes=7,
        sha256=DIGEST.hex(),
        signature=base64.b64encode(signature).decode(),
        key_id="key-7",
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
    )


def test_any_of_the_trusted_keys_will_do() -> None:
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    verifier = Verifier.from_base64([public(old), public(new)])
    for key in (old, new):
        verifier.verify(package(key.sign(DIGEST)))


def test_a_strangers_signature_and_one_over_something_else_are_refused() -> None:
    key = Ed25519PrivateKey.generate()
    verifier = Verifier.from_base64([public(key)])
    for signature in (Ed25519PrivateKey.generate().sign(DIGEST), key.sign(b"other"), bytes(64)):
        with pytest.raises(DownloadError, match="key-7") as caught:
            verifier.verify(package(signature))
        assert caught.value.reason == "bad-signature"


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", "é" * 44, "A" * 87 + "="])
def test_what_is_no_key_is_refused_by_name(text: str) -> None:
    with pytest.raises(FleetStartError, match="32 bytes in base64"):
        Verifier.from_base64([text])


def test_a_fleet_that_trusts_nobody_does_not_start() -> None:
    with pytest.raises(FleetStartError, match="no trust key"):
        Verifier.from_base64([])
