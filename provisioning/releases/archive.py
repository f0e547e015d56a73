"""ZIP archives of stored entries, in parts: what many have in common is neither copied nor hashed anew.

A package begins with the release's firmware, which is the same for each device, and goes on with what is the
device's own. So the hash of a package goes on from that of its beginning, and a thousand packages in the
making hold one firmware. The format is that of PKWARE's APPNOTE, without extensions: no entry reaches 4 GiB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_VERSION: Final = 20
_UNIX: Final = 3 << 8
_FIRST_DAY: Final = (1 << 5) | 1  # 1980-01-01, the first that there is: no archive is older or younger
_MODE: Final = 0o644 << 16


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file in an archive: what is said of it, not its content."""

    name: bytes
    """ASCII."""
    size_bytes: int
    crc32: int

    @classmethod
    def of(cls, name: str, content: bytes) -> Entry:
        """The entry for a content."""
        return cls(name=name.encode("ascii"), size_bytes=len(content), crc32=zlib.crc32(content))

    def header(self) -> bytes:
        """What comes right before the content."""
        return (
            _LOCAL.pack(
                *(b"PK\3\4", _VERSION, 0, 0, 0, _FIRST_DAY),
                *(self.crc32, self.size_bytes, self.size_bytes, len(self.name), 0),
            )
            + self.name
        )

    @property
    def length(self) -> int:
        """Of header and content."""
        return _LOCAL.size + len(self.name) + self.size_bytes


def directory(entries: Sequence[Entry]) -> bytes:
    """What comes after the contents: all entries with where they are, in that order from the beginning on."""
    lines, at = [], 0
    for entry in entries:
        line = _CENTRAL.pack(
            *(b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, 0, 0, _FIRST_DAY),
            *(entry.crc32, entry.size_bytes, entry.size_bytes, len(entry.name)),
            *(0, 0, 0, 0, _MODE, at),
        )
        lines.append(line + entry.name)
        at += entry.length
    listed = b"".join(lines)
    return listed + _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(listed), at, 0)
