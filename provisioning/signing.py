"""The key that packages are signed with: made at the first start, kept for its owner only."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from .errors import StateError


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """The key that packages are signed with; devices get its public half when they are made."""

    private: Ed25519PrivateKey = field(repr=False)
    key_id: str
    public_key: str
    """Base64 of the 32 raw bytes."""

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Read the key in `path` (PEM, mode 0600), or make one there; StateError if it is none."""
        try:
            pem = path.read_bytes()
        except FileNotFoundError:
            return cls._create(path)
        except OSError as error:
            raise StateError(f"Can't read the signing key {path}: {error.strerror}.") from error
        try:
            private = load_pem_private_key(pem, password=None)
        except ValueError as error:
            raise StateError(
                f"{path} holds no signing key. Put the right file back, or remove it to get a new key "
                f"(fleets that run trust the old one)."
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise StateError(f"{path} holds a key of another kind than Ed25519.")
        return cls._of(private)

    @classmethod
    def _create(cls, path: Path) -> SigningKey:
        private = Ed25519PrivateKey.generate()
        # Whole or not at all: half a key after a crash would be worse than none.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return cls._of(private)

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> SigningKey:
        raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(
            private=private,
            key_id=hashlib.sha256(raw).hexdigest()[:16],
            public_key=base64.b64encode(raw).decode(),
        )

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of the signature over `data`."""
        return self.private.sign(data)
