"""What a package says of itself, and what a device checks before it will have it.

The order is that of what can be believed: nothing is read before it is known who wrote it.

| check | what it stops | told as |
|---|---|---|
| size, SHA-256 of the whole (`devices.download`) | damage, another blob | size-mismatch, hash-mismatch |
| signature of that hash, by a trusted key (`devices.verify`) | a package of somebody else's | bad-signature |
| the archive is one, for every reader (`devices.archive`) | other files than were looked at | bad-archive |
| signature of the manifest, by the same key | a manifest that was put together otherwise | bad-signature |
| the manifest makes sense, and names that key | | bad-manifest |
| the device | another device's package, with its secrets | wrong-device |
| the files: those, with those sizes and hashes, no others | files from elsewhere | bad-manifest |
| the model | firmware that would not run here | wrong-model |
| the version: not older, unless the manifest allows it | mended errors come back | older-version |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from broker.messages import MAX_LABEL_CHARS, Package
from devices.archive import MAX_ENTRIES, Archive, ArchiveReader, File
from devices.behaviours import Refusal
from devices.verify import Verifier
from devices.versions import is_older

_SHA256: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a device makes of it."""

    device_id: str
    version: str
    """What it runs once it has activated this."""
    models: tuple[str, ...] = ()
    """Whom it is for; none: for all."""
    allow_downgrade: bool = False
    """Whether it may replace a newer version."""
    key_id: str | None = None
    """The key that it is signed with; None: packages did not always say so."""
    files: Mapping[str, File]

    @classmethod
    def read(cls, content: bytes) -> Manifest:
        """Raises `Refusal` (``bad-manifest``) for one that makes no sense."""
        try:
            found: Any = json.loads(content)
            manifest = cls(
                device_id=_label(found["device_id"]),
                version=_label(found["version"]),
                models=tuple(_label(model) for model in _list(found.get("models", []))),
                allow_downgrade=found.get("allow_downgrade", False) is True,
                key_id=None if found.get("key_id") is None else _label(found["key_id"]),
                files={name: _file(one) for name, one in found["files"].items()},
            )
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            _refuse("the package's manifest can't be read, or lacks something")
        if len(manifest.files) > MAX_ENTRIES:
            _refuse(f"the package's manifest lists more than {MAX_ENTRIES} files")
        return manifest

    def check(self, archive: Archive, *, device_id: str, model: str, running: str) -> None:
        """Raise `Refusal` unless it is of this archive, and for this device, which runs ``running``."""
        if self.device_id != device_id:
            raise Refusal("wrong-device", f"the package is for {self.device_id}; this is {device_id}")
        for name in self.files.keys() | archive.files.keys():
            if self.files.get(name) != archive.files.get(name):
                _refuse(f"the package's {name[:80]!r} is not what its manifest lists")
        if self.models and model not in self.models:
            raise Refusal("wrong-model", f"the package is for {', '.join(self.models)}; this is {model}")
        if not self.allow_downgrade and is_older(self.version, running):
            raise Refusal(
                "older-version",
                f"the package is {self.version}; what runs here is newer, {running}",
            )


def examine(
    reader: ArchiveReader, package: Package, verifier: Verifier, *, device_id: str, model: str, running: str
) -> Manifest:
    """Check a package that has come, of the size and the hash that were told.

    Raises `DownloadError` (``bad-signature``) where nobody trusted has signed it, else `Refusal`.
    """
    verifier.verify(package)
    archive = Archive.of(reader)
    if archive.manifest is None:
        _refuse("the package has no manifest")
    verifier.verify_manifest(archive.manifest, archive.signature, package.key_id)
    manifest = Manifest.read(archive.manifest)
    if manifest.key_id not in (None, package.key_id):
        _refuse(f"the package's manifest names the key {manifest.key_id}, the message {package.key_id}")
    manifest.check(archive, device_id=device_id, model=model, running=running)
    return manifest


def _refuse(detail: str) -> NoReturn:
    raise Refusal("bad-manifest", detail)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _label(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_LABEL_CHARS:
        raise TypeError
    return value


def _file(value: Mapping[str, object]) -> File:
    size, sha256 = value["size_bytes"], value["sha256"]
    if type(size) is not int or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise TypeError
    return File(size_bytes=size, sha256=sha256)
