"""The keys that packages are signed with: made, replaced, retired; in one file that its owner alone can read.

``signing.key`` holds PEM blocks, the oldest key first. The last PRIVATE KEY signs, but for one that is there
for the next rotation. A key that was replaced is left as a PUBLIC KEY: devices trust it on, for what it has
signed may be on its way, until it is retired. Lines ahead of a block say when the key was made and retired; a
file of one block, without any, is what earlier versions have left.

``trusted.keys``, beside it, holds the public keys that devices trust, in base64, one on each line, as
``python -m devices --trust-file`` reads them. It follows from the other: a start writes it anew.

| step of a rotation, and of a retirement | where everything ends after it |
|---|---|
| trusted.keys has the new key too | devices trust one that nobody has, until the next start |
| signing.key has it, and the old one's public half | from the next start on it signs |
| it signs | |
| signing.key says that a key is retired | from the next start on devices refuse it |
| trusted.keys has it no more | |

RequestError
├── UnknownKeyError   404
└── KeyRefusedError   409: what was asked can't be done with this key, or now
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from .errors import RequestError, StateError
from .state_directory import iso

SIGNING_KEYS: Final = "signing.key"
TRUSTED_KEYS: Final = "trusted.keys"
MAX_TRUSTED_KEYS: Final = 16
"""Of one state directory at once, the one that signs among them."""
MAX_RETIRED_KEYS: Final = 100
"""That are remembered; the oldest ones are forgotten, and then no key of the file's."""
_MAX_FILE_BYTES: Final = 256 * 1024

_BLOCK: Final = re.compile(rb"-----BEGIN (PRIVATE|PUBLIC) KEY-----.+?-----END \1 KEY-----", re.DOTALL)
_CREATED: Final = re.compile(rb"^Created: (\S+)\s*$", re.MULTILINE)
_LATER: Final = re.compile(rb"^Signs: later\s*$", re.MULTILINE)
_RETIRED: Final = re.compile(rb"^Retired: (\S+)\s*$", re.MULTILINE)

Json = dict[str, Any]


class UnknownKeyError(RequestError):
    """There is no key of that id."""

    status = 404
    title = "Unknown key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no signing key {key_id[:80]!r}: `muster key list` shows all.")


class KeyRefusedError(RequestError):
    """What was asked of the keys can't be done as things are."""

    status = 409
    title = "Key refused"


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A key that packages are signed with."""

    private: Ed25519PrivateKey = field(repr=False)
    key_id: str
    public_key: str
    """Base64 of the 32 raw bytes."""

    @classmethod
    def generate(cls) -> SigningKey:
        """A new one."""
        return cls.of(Ed25519PrivateKey.generate())

    @classmethod
    def of(cls, private: Ed25519PrivateKey) -> SigningKey:
        """A key by its private half."""
        raw = private.public_key().public_bytes_raw()
        return cls(private=private, key_id=_id_of(raw), public_key=base64.b64encode(raw).decode())

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of the signature over `data`."""
        return self.private.sign(data)


@dataclass(frozen=True, kw_only=True)
class KnownKey:
    """A key on record. Only the one that signs, and one that will, have their private halves."""

    public: Ed25519PublicKey
    private: Ed25519PrivateKey | None = field(default=None, repr=False)
    created_at: str | None = None
    """ISO 8601; None: it was made by a version that did not say."""
    retired_at: str | None = None
    later: bool = False
    """Whether it is trusted already and signs from the next rotation on."""

    @property
    def key_id(self) -> str:
        return _id_of(self.public.public_bytes_raw())

    @property
    def public_key(self) -> str:
        """Base64 of the 32 raw bytes."""
        return base64.b64encode(self.public.public_bytes_raw()).decode()

    def to_pem(self) -> bytes:
        """As it is on record."""
        said = (
            ("Created", self.created_at),
            ("Retired", self.retired_at),
            ("Signs", "later" if self.later else None),
        )
        lines = [f"{what}: {value}\n".encode() for what, value in said if value is not None]
        if self.private is not None:
            lines.append(self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        else:
            lines.append(self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return b"".join(lines)


class KeyRing:
    """The keys of one state directory; one service at a time has it open."""

    def __init__(self, directory: Path, keys: Sequence[KnownKey]) -> None:
        """``keys`` are on record."""
        self._path = directory / SIGNING_KEYS
        self._trusted_path = directory / TRUSTED_KEYS
        self._lock = asyncio.Lock()
        self._adopt(keys)

    def _adopt(self, keys: Sequence[KnownKey]) -> None:
        signs = _signing(keys)
        assert signs is not None
        assert signs.private is not None
        self._keys = tuple(keys)
        self.current = SigningKey.of(signs.private)
        """The key that signs; a package is signed by one, so it is asked for once."""

    @classmethod
    def open(cls, directory: Path) -> KeyRing:
        """The keys of a state directory, with a first one where there is none; StateError for a bad file."""
        path = directory / SIGNING_KEYS
        try:
            with path.open("rb") as file:
                keys = _read(file.read(_MAX_FILE_BYTES))
        except FileNotFoundError:
            keys = [_made()]
            with _starting(path):
                _write(path, keys)
        except OSError as error:
            raise StateError(f"Can't read the signing keys {path}: {error.strerror}.") from error
        except ValueError as error:
            raise StateError(
                f"{path} holds no signing key that can be used ({error}). Put the right file back, or remove "
                f"it to get a new key, which fleets on other machines have to be told."
            ) from error
        ring = cls(directory, keys)
        with _starting(ring._trusted_path):
            ring._write_trusted(keys)
        return ring

    @property
    def trusted(self) -> tuple[str, ...]:
        """What devices trust: public keys in base64, the oldest first."""
        return tuple(key.public_key for key in self._keys if key.retired_at is None)

    def to_json(self) -> list[Json]:
        """All keys, the oldest first; nothing secret."""
        return [
            {
                "key_id": key.key_id,
                "public_key": key.public_key,
                "state": _state(key, signs=key is _signing(self._keys)),
                "created_at": key.created_at,
                "retired_at": key.retired_at,
            }
            for key in self._keys
        ]

    def _show(self, key_id: str) -> Json:
        """One key; UnknownKeyError."""
        for key in self.to_json():
            if key["key_id"] == key_id:
                return key
        raise UnknownKeyError(key_id)

    async def prepare(self) -> Json:
        """Make the key of the next rotation, which is trusted from now on; the one that is there already.

        KeyRefusedError where there are too many, or no room on the disk; then nothing has changed.
        """
        async with self._lock:
            if not self._keys[-1].later:
                await self._put([*self._keys, replace(self._fresh(), later=True)])
            return self.to_json()[-1]

    async def rotate(self) -> Json:
        """Sign by the key that was prepared, or a new one, from now on; the others are trusted on.

        Returns it; raises as `prepare` does.
        """
        async with self._lock:
            *others, last = self._keys if self._keys[-1].later else (*self._keys, self._fresh())
            await self._put([*(replace(key, private=None) for key in others), replace(last, later=False)])
            return self._show(self.current.key_id)

    def _fresh(self) -> KnownKey:
        if len(self.trusted) >= MAX_TRUSTED_KEYS:
            raise KeyRefusedError(
                f"{MAX_TRUSTED_KEYS} keys are trusted: retire some first (`muster key retire`)"
            )
        return _made()

    async def _put(self, keys: Sequence[KnownKey]) -> None:
        await asyncio.to_thread(self._put_rotated, keys)
        self._adopt(keys)

    async def retire(self, key_id: str) -> Json:
        """Have devices refuse what a key has signed. Returns the key; twice is as once.

        Raises UnknownKeyError, and KeyRefusedError for the one that signs.
        """
        async with self._lock:
            self._show(key_id)
            if key_id == self.current.key_id:
                raise KeyRefusedError(
                    f"{key_id} signs the packages: make another one first (`muster key rotate`)"
                )
            keys = [
                replace(key, private=None, later=False, retired_at=iso(time.time()))
                if key.key_id == key_id and not key.retired_at
                else key
                for key in self._keys
            ]
            retired = [key for key in keys if key.retired_at is not None]
            forgotten = retired[: max(len(retired) - MAX_RETIRED_KEYS, 0)]
            keys = [key for key in keys if key not in forgotten]
            await asyncio.to_thread(self._put_retired, keys)
            return self._show(key_id)

    def _put_rotated(self, keys: Sequence[KnownKey]) -> None:
        with _writing(self._path):
            self._write_trusted(keys)
            _write(self._path, keys)

    def _put_retired(self, keys: Sequence[KnownKey]) -> None:
        with _writing(self._path):
            _write(self._path, keys)
            # On record: it holds whatever becomes of the next line, which the next try, or start, makes good.
            self._adopt(keys)
            self._write_trusted(keys)

    def _write_trusted(self, keys: Sequence[KnownKey]) -> None:
        content = "".join(f"{key.public_key}\n" for key in keys if key.retired_at is None).encode()
        # What is so already needs no room: a service starts on a full disk too.
        with contextlib.suppress(OSError):
            if self._trusted_path.read_bytes() == content:
                return
        _write_private(self._trusted_path, content)


def _made() -> KnownKey:
    private = Ed25519PrivateKey.generate()
    return KnownKey(public=private.public_key(), private=private, created_at=iso(time.time()))


def _id_of(raw: bytes) -> str:
    """A key by the beginning of its SHA-256; devices know it by the same."""
    return hashlib.sha256(raw).hexdigest()[:16]


def _signing(keys: Sequence[KnownKey]) -> KnownKey | None:
    """The one that signs."""
    return next(
        (
            key
            for key in reversed(keys)
            if key.private is not None and not key.later and key.retired_at is None
        ),
        None,
    )


def _state(key: KnownKey, *, signs: bool) -> str:
    if signs:
        return "signs"
    if key.later:
        return "next"
    return "trusted" if key.retired_at is None else "retired"


def _read(data: bytes) -> list[KnownKey]:
    """The keys of a file; ValueError says why they can't be used."""
    keys: list[KnownKey] = []
    at = 0
    for block in _BLOCK.finditer(data):
        said, at = data[at : block.start()], block.end()
        public, private = _parsed(block[0], private=block[1] == b"PRIVATE")
        created, retired = _CREATED.search(said), _RETIRED.search(said)
        keys.append(
            KnownKey(
                public=public,
                private=private,
                created_at=None if created is None else created[1].decode("ascii", "replace"),
                retired_at=None if retired is None else retired[1].decode("ascii", "replace"),
                later=_LATER.search(said) is not None,
            )
        )
    if not keys or data[at:].strip():
        raise ValueError("it is no PEM file of keys, or it is cut off")
    if _signing(keys) is None:
        raise ValueError("there is no key in it to sign with")
    return keys


def _parsed(pem: bytes, *, private: bool) -> tuple[Ed25519PublicKey, Ed25519PrivateKey | None]:
    key = load_pem_private_key(pem, password=None) if private else load_pem_public_key(pem)
    if isinstance(key, Ed25519PrivateKey):
        return key.public_key(), key
    if isinstance(key, Ed25519PublicKey):
        return key, None
    raise ValueError("a key in it is of another kind than Ed25519")


def _write(path: Path, keys: Sequence[KnownKey]) -> None:
    _write_private(path, b"".join(key.to_pem() for key in keys))


def _write_private(path: Path, content: bytes) -> None:
    """Write a file for its owner only, whole or not at all: half a key would be worse than none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def _starting(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"Can't write {path} ({error.strerror}): make room, or see whose it is.") from error


@contextlib.contextmanager
def _writing(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        refused = KeyRefusedError(f"the keys can't be written to {path.parent} ({error.strerror}): make room")
        refused.status = 503
        raise refused from error
