"""Whom a device trusts: packages must be signed by a known Ed25519 key."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker.messages import Package
from devices.errors import DownloadError, FleetStartError

KEY_BYTES = 32


class Verifier:
    """Checks a package's signature against the keys that the fleet was given."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = tuple(keys)
        if not self._keys:
            raise FleetStartError("no trust key: give the service's public key (see its /api/health)")

    @classmethod
    def from_base64(cls, texts: Iterable[str]) -> Verifier:
        """From raw public keys in base64; raises `FleetStartError` for what is none."""
        return cls(_public_key(text) for text in texts)

    @classmethod
    def distrustful(cls) -> Verifier:
        """One that was given a wrong key: nobody has signed anything with it."""
        return cls((Ed25519PrivateKey.generate().public_key(),))

    def verify(self, package: Package) -> None:
        """Raise `DownloadError` (``bad-signature``) unless a trusted key signed ``package.sha256``."""
        digest = bytes.fromhex(package.sha256)
        signature = base64.b64decode(package.signature)
        for key in self._keys:
            try:
                key.verify(signature, digest)
            except InvalidSignature:
                continue
            return
        raise DownloadError("bad-signature", f"no trusted key signed it (it names key {package.key_id})")


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise FleetStartError(
            f"trust key {text!r} is no Ed25519 public key: give its {KEY_BYTES} bytes in base64"
        )
    return Ed25519PublicKey.from_public_bytes(raw)
