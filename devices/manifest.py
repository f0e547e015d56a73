"""What a package says of itself: the manifest in its ZIP archive, picked out of the download as it goes by.

A device stores no package. So the archive is followed entry by entry, with the contents that it does not need
skipped, until the manifest has come; what is no such archive has no manifest, and says nothing.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Final

from broker.messages import MAX_LABEL_CHARS
from devices.behaviours import Refusal

NAME: Final = b"manifest.json"
MAX_MANIFEST_BYTES: Final = 256 * 1024
# Signature, version, flags, method, time and date, CRC, sizes, lengths of name and of what is extra.
_LOCAL: Final = struct.Struct("<4s3H4x4x2L2H")
_SIGNATURE: Final = b"PK\3\4"
# Sizes that come after the content are of no use to whoever reads on.
_SIZES_LATER: Final = 1 << 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a device makes of it."""

    version: str | None = None
    """What it runs once it has activated this; None: the package does not say."""
    models: tuple[str, ...] = ()
    """Whom it is for; none: for all."""

    @classmethod
    def read(cls, content: bytes | None) -> Manifest:
        """Raises `Refusal` (``bad-manifest``) for one that makes no sense."""
        if content is None:
            return cls()
        try:
            found: Any = json.loads(content)
            version, models = found.get("version"), tuple(found.get("models", ()))
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise Refusal("bad-manifest", "the package's manifest can't be read") from None
        labels = models if version is None else (version, *models)
        if not all(isinstance(label, str) and 0 < len(label) <= MAX_LABEL_CHARS for label in labels):
            raise Refusal("bad-manifest", "the package's manifest holds a version or model that is none")
        return cls(version=version, models=models)

    def check(self, model: str) -> None:
        """Raise `Refusal` (``wrong-model``) unless it is for this model."""
        if self.models and model not in self.models:
            raise Refusal("wrong-model", f"the package is for {', '.join(self.models)}; this is {model}")


class ManifestReader:
    """Follows an archive from its beginning; `content` is the manifest's, once it has come."""

    __slots__ = ("_buffer", "_over", "_skip", "content")

    def __init__(self) -> None:
        self.content: bytes | None = None
        self._buffer = bytearray()
        self._skip = 0
        self._over = False

    def feed(self, data: bytes) -> None:
        """The next bytes of the archive."""
        if self._over:
            return
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        self._buffer += memoryview(data)[self._skip :]
        self._skip = 0
        while len(self._buffer) >= _LOCAL.size and self._take_entry():
            pass

    def _take_entry(self) -> bool:
        """Skip the entry that the buffer begins with; False where more has to come first, or nothing."""
        buffer = self._buffer
        signature, _, flags, method, size, _, name_length, extra_length = _LOCAL.unpack_from(buffer)
        begin = _LOCAL.size + name_length + extra_length
        if signature != _SIGNATURE or method or flags & _SIZES_LATER:
            return self._end(None)
        if len(buffer) < begin:
            return False
        if buffer[_LOCAL.size : _LOCAL.size + name_length] != NAME:
            self._skip = max(begin + size - len(buffer), 0)
            del buffer[: begin + size]
            return True
        if size > MAX_MANIFEST_BYTES:
            return self._end(b"")
        if len(buffer) < begin + size:
            return False
        return self._end(bytes(buffer[begin : begin + size]))

    def _end(self, content: bytes | None) -> bool:
        self.content = content
        self._over = True
        self._buffer = bytearray()
        return False
