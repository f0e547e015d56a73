"""Releases on a registry of their own, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from provisioning.packages import Release
from provisioning.registry import Registry
from provisioning.releases.records import NewRelease, ReleaseRecord
from provisioning.releases.store import Releases

DEFAULT = Release.demo("demo-1.0.0", 16)


@contextlib.asynccontextmanager
async def releases_in(directory: Path) -> AsyncIterator[Releases]:
    """The releases of a service on ``directory``."""
    async with registry_in(directory) as registry, opened(registry, directory) as releases:
        yield releases


def registry_in(directory: Path) -> Registry:
    return Registry(directory / "registry.db", linger_s=0)


@contextlib.asynccontextmanager
async def opened(registry: Registry, directory: Path) -> AsyncIterator[Releases]:
    releases = Releases(registry=registry, state_dir=directory, default=DEFAULT)
    await releases.open()
    try:
        yield releases
    finally:
        await releases.close()


def new(name: str = "fw-2", **changes: Any) -> NewRelease:
    return NewRelease.read(**{"name": name, "version": "2.0", **changes})


async def add(
    releases: Releases, name: str = "fw-2", *, firmware: bytes = b"firmware", **changes: Any
) -> tuple[ReleaseRecord, bool]:
    with releases.stage() as staged:
        staged.write(firmware)
        return await releases.add(new(name, **changes), staged)


def files_in(directory: Path) -> set[str]:
    return {path.name for path in (directory / "releases").iterdir()}
