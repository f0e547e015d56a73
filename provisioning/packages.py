"""Installation packages: built the same every time, and signed.

A package is a ZIP (stored, not compressed) of

- `firmware.bin`    the release's firmware,
- `manifest.json`   format, release with version and models, device, key, whether the device may go back to it
                    from a newer version, and the size and SHA-256 of each file,
- `manifest.sig`    the Ed25519 signature (64 bytes) of manifest.json,
- `config.json`     the device's own configuration.

The firmware comes first, since it is the same for each device: it is neither copied nor hashed for each.

Same release, same device, same key: same bytes, so that an activity that runs twice overwrites a blob with
itself. `package_store` keeps and shares them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import PackageError
from .releases.archive import Entry, directory
from .releases.firmware import FILE_NAME, Firmware, generated
from .signing import SigningKey

MAX_PACKAGE_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Release:
    """A firmware under a name, with what goes into each manifest."""

    name: str
    version: str
    models: tuple[str, ...] = ()
    firmware: Firmware

    @classmethod
    def demo(cls, name: str, size_bytes: int) -> Release:
        """A release whose firmware follows from its name: pseudo-random bytes, the same everywhere."""
        return cls(name=name, version=name, firmware=Firmware.of(b"".join(generated(name, size_bytes))))


@dataclass(frozen=True, kw_only=True)
class InstallationPackage:
    """A built package; many of one release share its firmware."""

    package_id: str
    blob_name: str
    parts: tuple[bytes, ...] = field(repr=False)
    size_bytes: int
    sha256: str
    signature: str
    """Base64 Ed25519 over the 32 raw bytes of the SHA-256."""
    key_id: str
    """The key of that signature, and of the manifest's."""

    @property
    def content(self) -> bytes:
        """The whole of it, copied."""
        return b"".join(self.parts)


def build_package(
    release: Release,
    *,
    device_id: str,
    configuration: Mapping[str, object],
    key: SigningKey,
    allow_downgrade: bool = False,
) -> InstallationPackage:
    """The package of one device: deterministic. PackageError if it is too large.

    ``allow_downgrade``: the device takes it though it runs a newer version.
    """
    firmware = release.firmware
    config = _json({"device_id": device_id, **configuration})
    manifest = _json(
        {
            "format": 1,
            "release": release.name,
            "version": release.version,
            "models": release.models,
            "device_id": device_id,
            "key_id": key.key_id,
            **({"allow_downgrade": True} if allow_downgrade else {}),
            "files": {
                FILE_NAME: {"size_bytes": firmware.entry.size_bytes, "sha256": firmware.sha256},
                "config.json": {"size_bytes": len(config), "sha256": hashlib.sha256(config).hexdigest()},
            },
        }
    )
    entries, own = [firmware.entry], []
    for name, content in (
        ("manifest.json", manifest),
        ("manifest.sig", key.sign(manifest)),
        ("config.json", config),
    ):
        entry = Entry.of(name, content)
        entries.append(entry)
        own += [entry.header(), content]
    tail = b"".join((*own, directory(entries)))
    size_bytes = firmware.entry.length + len(tail)
    if size_bytes > MAX_PACKAGE_BYTES:
        raise PackageError(
            f"The package of {device_id} has {size_bytes:,} bytes; the limit is {MAX_PACKAGE_BYTES:,}. "
            f"Use a smaller release than {release.name}."
        )
    digest = firmware.begun.copy()
    digest.update(tail)
    return InstallationPackage(
        package_id=f"{release.name}-{digest.hexdigest()[:16]}",
        blob_name=blob_name_of(release.name, device_id),
        parts=(firmware.header, firmware.content, tail),
        size_bytes=size_bytes,
        sha256=digest.hexdigest(),
        signature=base64.b64encode(key.sign(digest.digest())).decode(),
        key_id=key.key_id,
    )


def blob_name_of(release: str, device_id: str) -> str:
    """Where the package of a device is in the container."""
    return f"{release}/{device_id}.zip"


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
