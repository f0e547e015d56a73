"""The releases of one service: added, found, removed; their firmware handed to whoever makes packages.

A release is there from the commit of its row on, and its file is there before: so a crash leaves at most a
file that no row names. A row goes before its file. All rows are in memory too: each package asks for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from provisioning.errors import StateError, name_some
from provisioning.packages import Release
from provisioning.registry import Registry

from .firmware import FirmwareCache, FirmwareFiles, Staged, generated
from .records import (
    MAX_RELEASES,
    NewRelease,
    ReleaseError,
    ReleaseRecord,
    ReleaseRefusedError,
    UnknownReleaseError,
)
from .tables import ReleaseTables

_LOG = logging.getLogger(__name__)

DIRECTORY: Final = "releases"
"""In the state directory."""

_T = TypeVar("_T")


class Releases:
    """The releases in ``registry`` and ``state_dir``, and the ``default`` one that comes with the service."""

    def __init__(
        self,
        *,
        registry: Registry,
        state_dir: Path,
        default: Release,
        started_at: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._files = FirmwareFiles(state_dir / DIRECTORY)
        self._cache = FirmwareCache(self._files)
        self._default = ReleaseRecord(
            name=default.name,
            version=default.version,
            sha256=default.firmware.sha256,
            size_bytes=default.firmware.entry.size_bytes,
            notes="comes with the service",
            created_at=started_at,
            default=True,
        )
        self._records: dict[str, ReleaseRecord] = {}
        self._clock = clock
        # Rows and files change together: one who adds a firmware must not lose it to one who removes it.
        self._changing = asyncio.Lock()
        self._held: Counter[str] = Counter()

    async def open(self) -> None:
        """Read what is there, and sweep what a crash has left; raises StateError."""
        records = await self._registry.ask(lambda database: ReleaseTables(database).all())
        self._records = {record.name: record for record in records}
        try:
            missing = await asyncio.to_thread(self._files.open, {record.sha256 for record in records})
        except OSError as error:
            raise StateError(
                f"{self._files.directory} can't be used for the firmware of releases ({error.strerror}). See "
                f"that it is a directory that may be written, or choose another state directory."
            ) from error
        for record in records:
            if record.sha256 in missing:
                _LOG.error(
                    "the firmware of release %s is gone from %s: put it back, or add the release anew",
                    record.name,
                    self._files.directory,
                )

    async def close(self) -> None:
        """Wait for what is being read."""
        await self._cache.close()

    # -- questions -----------------------------------------------------------------------------------

    def resolve(self, name: str | None) -> str | None:
        """The name as it goes with a run: None for the default. Raises UnknownReleaseError."""
        if name is None or name == self._default.name:
            return None
        if name not in self._records:
            raise UnknownReleaseError(name)
        return name

    def find(self, name: str) -> ReleaseRecord | None:
        """One that is not the default, or None."""
        return self._records.get(name)

    def show(self, name: str) -> ReleaseRecord:
        """One of all; raises UnknownReleaseError."""
        record = self._default if name == self._default.name else self._records.get(name)
        if record is None:
            raise UnknownReleaseError(name)
        return record

    def all(self) -> Sequence[ReleaseRecord]:
        """The latest first, the default last."""
        latest = sorted(self._records.values(), key=lambda record: (-record.created_at, record.name))
        return [*latest, self._default]

    async def load(self, record: ReleaseRecord) -> Release:
        """With its firmware; PackageError where its file can't be used."""
        return Release(
            name=record.name,
            version=record.version,
            models=record.models,
            firmware=await self._cache.get(record.sha256),
        )

    async def not_fitting(self, name: str | None, run_id: str) -> int:
        """How many devices of a run the release does not fit."""
        record = None if name is None else self._records.get(name)
        if record is None:
            return 0

        def work(database: sqlite3.Connection) -> int:
            tables = ReleaseTables(database)
            return tables.not_fitting(record, [row[0] for row in tables.execute("of_run", (run_id,))])

        return await self._registry.ask(work)

    @contextlib.contextmanager
    def held(self, name: str | None) -> Generator[str | None, None, None]:
        """As `resolve`, and it is not removed meanwhile: a run that begins has no row yet."""
        name = self.resolve(name)
        if name is None:
            yield None
            return
        self._held[name] += 1
        try:
            yield name
        finally:
            self._held[name] -= 1

    # -- changes -------------------------------------------------------------------------------------

    def stage(self) -> Staged:
        """A file for a firmware that comes, to be used as a context; blocking, for threads."""
        return self._files.stage()

    async def add(self, new: NewRelease, staged: Staged | None) -> tuple[ReleaseRecord, bool]:
        """A new release, and True; where it is there already with the same content, that one and False.

        The firmware is ``staged`` or generated. Raises ReleaseError and ReleaseRefusedError.
        """
        if new.generated_size_bytes is not None:
            if staged is not None:
                raise ReleaseError("firmware", "generated_size_bytes is given too", "give one of the two")
            size_bytes = new.generated_size_bytes

            def generate(into: Staged) -> None:
                for piece in generated(new.name, size_bytes):
                    into.write(piece)

            with await asyncio.to_thread(self._files.stage) as made:
                await asyncio.to_thread(generate, made)
                return await self._add(new, made)
        if staged is None:
            raise ReleaseError("firmware", "it is missing", "give a file, or generated_size_bytes")
        if staged.size_bytes == 0:
            raise ReleaseError("firmware", "it is empty", "give a file that holds something")
        return await self._add(new, staged)

    async def _add(self, new: NewRelease, staged: Staged) -> tuple[ReleaseRecord, bool]:
        if new.name == self._default.name:
            raise ReleaseRefusedError(
                f"{new.name} is the release that comes with the service: choose another name."
            )
        return await _to_the_end(self._commit(new, staged))

    async def _commit(self, new: NewRelease, staged: Staged) -> tuple[ReleaseRecord, bool]:
        record = new.record(
            sha256=staged.sha256, size_bytes=staged.size_bytes, created_at=round(self._clock(), 3)
        )
        async with self._changing:
            there = self._records.get(record.name)
            if there is not None and (different := there.differences(record)):
                raise ReleaseRefusedError(
                    f"There is a release {record.name} already, with other content ({name_some(different)}): "
                    f"a release never changes. Choose another name, or remove that one first "
                    f"(`muster release remove {record.name}`)."
                )
            if there is None and len(self._records) >= MAX_RELEASES:
                raise ReleaseRefusedError(
                    f"There are {MAX_RELEASES:,} releases, which is the limit: remove some first "
                    f"(`muster release remove NAME`)."
                )
            # Where the release is there its file is, too: unless somebody has deleted or damaged it.
            await asyncio.to_thread(self._files.keep, staged)
            if there is not None:
                return there, False
            await self._registry.transact(lambda database: ReleaseTables(database).add(record))
            self._records[record.name] = record
            _LOG.info("release %s: version %s, %d bytes", record.name, record.version, record.size_bytes)
            return record, True

    async def remove(self, name: str) -> ReleaseRecord:
        """Remove one; raises UnknownReleaseError, and ReleaseRefusedError while something brings it."""
        record = self.show(name)
        if record.default:
            raise ReleaseRefusedError(f"{name} comes with the service and can't be removed.")
        return await _to_the_end(self._remove(record))

    async def _remove(self, record: ReleaseRecord) -> ReleaseRecord:
        name = record.name

        def work(database: sqlite3.Connection) -> bool:
            tables = ReleaseTables(database)
            if unfinished := tables.unfinished(name):
                raise ReleaseRefusedError(
                    f"{name_some(unfinished)} {'brings' if len(unfinished) == 1 else 'bring'} the release "
                    f"{name} to devices: wait for the end, or cancel it; then remove the release."
                )
            tables.execute("remove", (name,))
            return int(tables.execute("of_firmware", (record.sha256,)).fetchone()[0]) == 0

        async with self._changing:
            if self._held[name]:
                raise ReleaseRefusedError(
                    f"A run that brings the release {name} is being started: wait for its end."
                )
            # Before the row: no run may begin with it from now on.
            if self._records.pop(name, None) is None:
                raise UnknownReleaseError(name)
            try:
                last = await self._registry.transact(work)
            except BaseException:
                self._records[name] = record
                raise
            if last:
                self._cache.forget(record.sha256)
                await asyncio.to_thread(self._files.remove, record.sha256)
            _LOG.info("release %s is removed", name)
            return record


async def _to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Do it though the caller is cancelled: rows, files and memory change together."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
