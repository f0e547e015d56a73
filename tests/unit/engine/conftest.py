"""What the engine's tests share: a state file, a clock that is moved by hand, and either engine at work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from provisioning.engine import timers as timers_module
from tests.unit.engine.hosts import EMBEDDED, SDK, Host, running
from tests.unit.engine.stores import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's state file goes."""
    return tmp_path / "engine.db"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """A clock that is moved by hand; engines look at it every few milliseconds."""
    monkeypatch.setattr(timers_module, "_LONGEST_SLEEP_S", 0.002)
    return ManualClock()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[EMBEDDED, SDK])
async def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    """Each engine in turn, with the ORCHESTRATORS and ACTIVITIES of the test's module on it."""
    module = request.module
    path = tmp_path_factory.mktemp("host") / "engine.db"
    async with running(request.param, path, module.ORCHESTRATORS, module.ACTIVITIES) as host:
        yield host
