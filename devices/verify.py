"""Whom a device trusts: packages must be signed by an Ed25519 key that it knows, named by its id.

Keys come as arguments, or from a file that whoever signs keeps (``--trust-file``), one in base64 on each
line. The file is looked at before each use, and read again when it has changed: a key counts as soon as it is
written there, and no more as soon as it is gone. A file that can't be read, or holds none, changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker.messages import Package
from devices.errors import DownloadError, FleetStartError

_LOG = logging.getLogger(__name__)

KEY_BYTES: Final = 32
MAX_TRUST_FILE_BYTES: Final = 64 * 1024


class Verifier:
    """Checks packages' signatures against the keys that the fleet was given."""

    def __init__(self, keys: Iterable[Ed25519PublicKey], *, path: Path | None = None) -> None:
        """``path`` is the file that the keys come from, if they do."""
        self._keys = _by_id(keys)
        self._path = path
        self._seen = None if path is None else _state_of(path)
        if not self._keys:
            raise FleetStartError("no trust key: give the service's public key (see its /api/health)")

    @classmethod
    def from_base64(cls, texts: Iterable[str]) -> Verifier:
        """From raw public keys in base64; raises `FleetStartError` for what is none."""
        return cls(_public_key(text) for text in texts)

    @classmethod
    def from_file(cls, path: Path) -> Verifier:
        """From a file that is followed; raises `FleetStartError` where it can't be read or holds none."""
        # Looked at before it is read: what is written in between is read again.
        seen = _state_of(path)
        verifier = cls(_read(path), path=path)
        verifier._seen = seen
        return verifier

    @classmethod
    def distrustful(cls) -> Verifier:
        """One that was given a wrong key: nobody has signed anything with it."""
        return cls((Ed25519PrivateKey.generate().public_key(),))

    def trusts(self, key_id: str) -> bool:
        """Whether the key of that id is trusted now."""
        return self._key(key_id) is not None

    def verify(self, package: Package) -> None:
        """Raise `DownloadError` (``bad-signature``) unless the trusted key that it names signed its hash."""
        signature = base64.b64decode(package.signature)
        if not self._signed(package.key_id, signature, bytes.fromhex(package.sha256)):
            raise DownloadError(
                "bad-signature", f"no trusted key signed it (it names key {package.key_id[:80]})"
            )

    def verify_manifest(self, manifest: bytes, signature: bytes | None, key_id: str) -> None:
        """Raise `DownloadError` (``bad-signature``) unless that trusted key signed the manifest."""
        if signature is None or not self._signed(key_id, signature, manifest):
            raise DownloadError("bad-signature", f"the manifest is not signed by the key {key_id[:80]}")

    def _signed(self, key_id: str, signature: bytes, data: bytes) -> bool:
        key = self._key(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def _key(self, key_id: str) -> Ed25519PublicKey | None:
        if self._path is not None and (now := _state_of(self._path)) != self._seen:
            self._seen = now
            try:
                self._keys = _by_id(_read(self._path))
            except FleetStartError as error:
                _LOG.warning("%s; the keys that it had before are trusted on", error)
        return self._keys.get(key_id)


def key_id_of(key: Ed25519PublicKey) -> str:
    """The name of a key: the beginning of the SHA-256 of its bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _by_id(keys: Iterable[Ed25519PublicKey]) -> dict[str, Ed25519PublicKey]:
    return {key_id_of(key): key for key in keys}


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """What is another once the file has been written anew; None where there is none to be seen."""
    try:
        found = os.stat(path)  # noqa: PTH116 (Path.stat takes twice as long, for each package)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> list[Ed25519PublicKey]:
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_TRUST_FILE_BYTES).decode().split()
    except (OSError, UnicodeDecodeError) as error:
        raise FleetStartError(f"the trust file {path} can't be read ({error})") from error
    if not lines:
        raise FleetStartError(f"the trust file {path} holds no key: put the service's there, a line for each")
    return [_public_key(line) for line in lines]


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise FleetStartError(
            f"trust key {text[:80]!r} is no Ed25519 public key: give its {KEY_BYTES} bytes in base64"
        )
    return Ed25519PublicKey.from_public_bytes(raw)
