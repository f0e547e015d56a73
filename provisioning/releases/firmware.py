"""Firmware: the bytes of releases, in files by their SHA-256 and a few of them in memory.

A file comes into being whole: written beside, synced, renamed. What a crash leaves beside, or without a
release that names it, is swept at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from provisioning.errors import PackageError, UnavailableError

from .archive import Entry
from .records import MAX_FIRMWARE_BYTES, FirmwareTooLargeError

if TYPE_CHECKING:
    from hashlib import _Hash

_LOG = logging.getLogger(__name__)

FILE_NAME: Final = "firmware.bin"
"""In a package."""
CACHE_BYTES: Final = 128 * 1024 * 1024
"""Of firmware in memory that no package is being made of; one at least is kept."""
_CHUNK_BYTES: Final = 1024 * 1024
_STAGED: Final = ".staged-"
_OURS: Final = re.compile(r"\.staged-[0-9a-f]+|[0-9a-f]{64}\.bin")


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """A firmware in memory, with what each package needs of it reckoned once."""

    content: bytes = field(repr=False)
    sha256: str
    entry: Entry
    header: bytes = field(repr=False)
    begun: _Hash = field(repr=False)
    """The hash of an archive so far, which begins with this; to be copied."""

    @classmethod
    def of(cls, content: bytes) -> Firmware:
        """Takes as long as hashing it twice."""
        entry = Entry.of(FILE_NAME, content)
        header = entry.header()
        begun = hashlib.sha256(header)
        begun.update(content)
        return cls(
            content=content,
            sha256=hashlib.sha256(content).hexdigest(),
            entry=entry,
            header=header,
            begun=begun,
        )


def generated(name: str, size_bytes: int) -> Iterator[bytes]:
    """Pseudo-random bytes that follow from a release's name, the same everywhere, piece by piece."""
    source = random.Random(f"firmware of {name}")
    # Pieces of whole words, so that they are the bytes of one large piece.
    for done in range(0, size_bytes, _CHUNK_BYTES):
        yield source.randbytes(min(_CHUNK_BYTES, size_bytes - done))


@contextlib.contextmanager
def _on_disk(directory: Path) -> Generator[None, None, None]:
    """What the disk refuses, as an answer to whoever sends a firmware."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"The firmware can't be kept in {directory} ({error.strerror}): see that its disk has room and "
            f"may be written, then try again."
        ) from error


class Staged:
    """A firmware on its way to the disk; its file is gone at the end unless it was kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", 0)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Append; FirmwareTooLargeError as soon as it is too much, UnavailableError where it has no room."""
        self.size_bytes += len(data)
        if self.size_bytes > MAX_FIRMWARE_BYTES:
            raise FirmwareTooLargeError
        self._hash.update(data)
        with _on_disk(self._path.parent):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._hash.hexdigest()

    def sync(self) -> None:
        """On disk when this returns; nothing more can be written."""
        with _on_disk(self._path.parent):
            os.fsync(self._file.fileno())
            self._file.close()

    def rename(self, target: Path) -> None:
        """Take its name, over a file that is the same; `sync` first."""
        self._path.replace(target)

    def discard(self) -> None:
        """Nothing is left of it, unless it was renamed."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class FirmwareFiles:
    """The directory with the files; blocking, for threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, sha256: str) -> Path:
        """Where the firmware with this hash is, if it is there."""
        return self.directory / f"{sha256}.bin"

    def open(self, wanted: Collection[str]) -> list[str]:
        """Make the directory, sweep what no release names; returns the hashes whose files are missing."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        keep = {self.path(sha256).name for sha256 in wanted}
        for path in self.directory.iterdir():
            if path.name not in keep and _OURS.fullmatch(path.name):
                _LOG.info("%s is of no release; removed", path)
                path.unlink(missing_ok=True)
        return [sha256 for sha256 in wanted if not self.path(sha256).exists()]

    def stage(self) -> Staged:
        """Begin a file."""
        with _on_disk(self.directory):
            return Staged(self.directory / f"{_STAGED}{secrets.token_hex(8)}")

    def keep(self, staged: Staged) -> None:
        """A staged file is that of its hash from now on, whatever happens."""
        staged.sync()
        with _on_disk(self.directory):
            staged.rename(self.path(staged.sha256))
            descriptor = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def remove(self, sha256: str) -> None:
        """Delete a file; one that is gone is gone."""
        self.path(sha256).unlink(missing_ok=True)

    def read(self, sha256: str) -> Firmware:
        """Load and check one; PackageError where that can't be."""
        path = self.path(sha256)
        try:
            firmware = Firmware.of(path.read_bytes())
        except OSError as error:
            raise PackageError(
                f"The firmware {path} can't be read ({error.strerror}): put it back, or add its release anew "
                f"(`muster release add`, with the same content)."
            ) from error
        if firmware.sha256 != sha256:
            raise PackageError(
                f"The firmware {path} is damaged (its SHA-256 is not its name): add its release anew "
                f"(`muster release add`, with the same content)."
            )
        return firmware


class FirmwareCache:
    """The firmware used last, up to so many bytes; each is loaded once however many ask at once."""

    def __init__(self, files: FirmwareFiles, *, max_bytes: int = CACHE_BYTES) -> None:
        self._files = files
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Firmware] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Firmware]] = {}
        self.loads = 0

    @property
    def size_bytes(self) -> int:
        """Of what is kept."""
        return sum(len(firmware.content) for firmware in self._kept.values())

    async def get(self, sha256: str) -> Firmware:
        """The firmware with this hash; PackageError where its file can't be used."""
        if (kept := self._kept.get(sha256)) is not None:
            self._kept.move_to_end(sha256)
            return kept
        loading = self._loading.get(sha256)
        if loading is None:
            loading = self._loading[sha256] = asyncio.create_task(
                self._load(sha256), name=f"load-firmware-{sha256[:12]}"
            )
        # Whoever gives up must not take it from the others.
        return await asyncio.shield(loading)

    async def _load(self, sha256: str) -> Firmware:
        try:
            firmware = await asyncio.to_thread(self._files.read, sha256)
            self.loads += 1
            self._kept[sha256] = firmware
            while self.size_bytes > self._max_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
            return firmware
        finally:
            del self._loading[sha256]

    def forget(self, sha256: str) -> None:
        """Of no use any more."""
        self._kept.pop(sha256, None)

    async def close(self) -> None:
        """Wait for what is being read."""
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
