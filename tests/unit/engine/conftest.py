"""What the engine's tests share: a state file, and a clock that is moved by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.engine import timers as timers_module
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
