"""The archive that a package is, followed as it goes by: hashed, and but for the manifest forgotten.

A package is a ZIP archive of the plainest kind, and whatever makes two readers of it see two things is
refused: entries are stored, not compressed, one after the other from the first byte on; each says its size
before its content, and no name comes twice; the directory at the end lists the same entries in the same
order, and is the end. So what was hashed here is what any reader finds, nothing can unpack to more than it
is, and no more is kept than the manifest with its signature, a few names, and the directory.

Nothing is raised before `Archive.of`: a download that was damaged is found out by its hash, which is
looked at first.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from devices.behaviours import Refusal

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_SIGNATURE_BYTES: Final = 64
MAX_ENTRIES: Final = 16
MAX_NAME_BYTES: Final = 64

# Of PKWARE's APPNOTE, less the four bytes of signature: versions, flags, method, time and date, CRC, sizes,
# lengths of name and of what is extra; in the directory also of the comment, disk, attributes, offset.
_LOCAL: Final = struct.Struct("<2x2H4x3L2H")
_CENTRAL: Final = struct.Struct("<4x2H4x3L3HH6xL")
_END: Final = struct.Struct("<4H2LH")
_MARK_BYTES: Final = 4
_LOCAL_MARK: Final = b"PK\3\4"
_CENTRAL_MARK: Final = b"PK\1\2"
_END_MARK: Final = b"PK\5\6"


class _Expect(Enum):
    """What comes next of an archive's structure."""

    MARK = auto()
    HEADER = auto()
    NAME = auto()
    DIRECTORY = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """What a file in an archive is, without its content."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A whole archive."""

    manifest: bytes | None
    signature: bytes | None
    files: Mapping[str, File]
    """All others by name."""

    @classmethod
    def of(cls, reader: ArchiveReader) -> Archive:
        """What ``reader`` has been fed. Raises `Refusal`: ``bad-archive``, ``bad-manifest``."""
        reader.end()
        return cls(
            manifest=reader.kept.get(MANIFEST), signature=reader.kept.get(SIGNATURE), files=reader.files
        )


class ArchiveReader:
    """Follows an archive from its first byte to its last."""

    __slots__ = (
        "_buffer",
        "_entries",
        "_expect",
        "_hash",
        "_left",
        "_name",
        "_offset",
        "_problem",
        "_wanted",
        "files",
        "kept",
    )

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.kept: dict[str, bytes] = {}
        # Of each entry, in order: name, CRC, size, where it begins.
        self._entries: list[tuple[bytes, int, int, int]] = []
        self._problem: tuple[str, str] | None = None
        # Structure is gathered until there is as much as wanted; of an entry's content so much is left.
        self._buffer = bytearray()
        self._expect = _Expect.MARK
        self._wanted = _MARK_BYTES
        self._offset = 0
        self._left = 0
        self._name = ""
        self._hash: hashlib._Hash | None = None

    def feed(self, data: bytes) -> None:
        """The next bytes of the archive."""
        at, end = 0, len(data)
        view = memoryview(data)
        while at < end and self._problem is None:
            if self._left:
                taken = min(self._left, end - at)
                self._left -= taken
                if self._hash is not None:
                    self._hash.update(view[at : at + taken])
                else:
                    self._buffer += view[at : at + taken]
                if not self._left:
                    self._end_entry()
            else:
                taken = min(self._wanted - len(self._buffer), end - at)
                self._buffer += view[at : at + taken]
                if taken == 0:
                    self._fail("something comes after its end")
                elif len(self._buffer) == self._wanted:
                    self._take_structure()
            at += taken

    def end(self) -> None:
        """That was all. Raises `Refusal`."""
        if self._problem is None:
            if self._expect is not _Expect.DIRECTORY or len(self._buffer) < self._wanted:
                self._fail("it is cut off, or no archive")
            elif not self._listed():
                self._fail("its directory is not that of its entries")
        if self._problem is not None:
            raise Refusal(*self._problem)

    # -- entries --------------------------------------------------------------------------------------

    def _take_structure(self) -> None:
        match self._expect:
            case _Expect.MARK:
                self._mark()
            case _Expect.HEADER:
                self._header()
            case _Expect.NAME:
                self._begin_entry()
            case _Expect.DIRECTORY:
                pass  # looked at in the end, when it is known that nothing comes after

    def _mark(self) -> None:
        mark = bytes(self._buffer)
        if mark == _LOCAL_MARK:
            self._buffer.clear()
            self._expect, self._wanted = _Expect.HEADER, _LOCAL.size
        elif mark == _CENTRAL_MARK and self._entries:
            # The mark stays: the directory is looked at as a whole.
            names = sum(len(name) for name, *_ in self._entries)
            self._expect = _Expect.DIRECTORY
            self._wanted = (
                (_MARK_BYTES + _CENTRAL.size) * len(self._entries) + names + _MARK_BYTES + _END.size
            )
        else:
            self._fail("it is no archive of files one after the other")

    def _header(self) -> None:
        flags, method, crc, packed, size, name_length, extra_length = _LOCAL.unpack(self._buffer)
        if flags or method or packed != size or extra_length:
            self._fail("an entry is compressed, encrypted, or says its size too late")
        elif not 0 < name_length <= MAX_NAME_BYTES:
            self._fail(f"an entry's name has {name_length} bytes, 1 to {MAX_NAME_BYTES} are allowed")
        elif len(self._entries) == MAX_ENTRIES:
            self._fail(f"it has more than {MAX_ENTRIES} entries")
        else:
            self._buffer.clear()
            self._entries.append((b"", crc, size, self._offset))
            self._expect, self._wanted = _Expect.NAME, name_length

    def _begin_entry(self) -> None:
        raw = bytes(self._buffer)
        self._buffer.clear()
        _, crc, size, offset = self._entries[-1]
        if any(raw == name for name, *_ in self._entries):
            self._fail("two entries have the same name")
            return
        self._entries[-1] = raw, crc, size, offset
        self._offset += _MARK_BYTES + _LOCAL.size + len(raw) + size
        self._name = raw.decode("latin-1")
        self._left = size
        if self._name == MANIFEST:
            self._hash = None
            if size > MAX_MANIFEST_BYTES:
                self._fail(
                    f"the manifest has {size} bytes, the limit is {MAX_MANIFEST_BYTES}", "bad-manifest"
                )
        elif self._name == SIGNATURE:
            self._hash = None
            if size > MAX_SIGNATURE_BYTES:
                self._fail(f"the manifest's signature has {size} bytes", "bad-manifest")
        else:
            self._hash = hashlib.sha256()
        if not size and self._problem is None:
            self._end_entry()

    def _end_entry(self) -> None:
        if self._hash is None:
            self.kept[self._name] = bytes(self._buffer)
            self._buffer.clear()
        else:
            size = self._entries[-1][2]
            self.files[self._name] = File(size_bytes=size, sha256=self._hash.hexdigest())
        self._expect, self._wanted = _Expect.MARK, _MARK_BYTES

    # -- the directory --------------------------------------------------------------------------------

    def _listed(self) -> bool:
        """Whether the directory lists the entries that came, and says nothing else."""
        at, directory = 0, bytes(self._buffer)
        for name, crc, size, offset in self._entries:
            fields = _CENTRAL.unpack_from(directory, at + _MARK_BYTES)
            begin = at + _MARK_BYTES + _CENTRAL.size
            at = begin + len(name)
            if (
                not directory.startswith(_CENTRAL_MARK, begin - _CENTRAL.size - _MARK_BYTES)
                or directory[begin:at] != name
                or fields != (0, 0, crc, size, size, len(name), 0, 0, 0, offset)
            ):
                return False
        count = len(self._entries)
        return directory.startswith(_END_MARK, at) and _END.unpack_from(directory, at + _MARK_BYTES) == (
            *(0, 0, count, count),
            *(at, self._offset, 0),
        )

    def _fail(self, detail: str, reason: str = "bad-archive") -> None:
        self._problem = reason, f"the package can't be read: {detail}"
        self._buffer.clear()
        self._left, self._hash = 0, None
