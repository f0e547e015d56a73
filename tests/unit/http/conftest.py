"""Engines for the tests of the management API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backend import Backend
from tests.unit.http.managed import Managed, managed


@pytest.fixture(params=["embedded", "durabletask"])
async def api(request: pytest.FixtureRequest, tmp_path: Path, backend: Backend) -> AsyncIterator[Managed]:
    """The management API, on each engine."""
    async with managed(request.param, tmp_path, backend) as found:
        yield found


@pytest.fixture
async def embedded(tmp_path: Path, backend: Backend) -> AsyncIterator[Managed]:
    """The management API on the embedded engine."""
    async with managed("embedded", tmp_path, backend) as found:
        yield found


@pytest.fixture
async def remote(tmp_path: Path, backend: Backend) -> AsyncIterator[Managed]:
    """The management API on a backend elsewhere."""
    async with managed("durabletask", tmp_path, backend) as found:
        yield found
