"""What engines ask of the interpreter is asked once, and taken back with the last of them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.engine import Engine, EngineOptions


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    thresholds, interval_s = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval_s)


def settings() -> tuple[int, float]:
    return gc.get_threshold()[0], round(sys.getswitchinterval(), 6)


async def test_it_holds_while_any_engine_runs_whichever_stops_first(path: Path) -> None:
    gc.set_threshold(700, 10, 10)
    sys.setswitchinterval(0.005)
    first, second = Engine(path), Engine(path.with_name("other.db"))
    await first.start()
    tuned = (EngineOptions().gc_threshold, EngineOptions().switch_interval_s)
    assert settings() == tuned
    await second.start()
    await first.stop()
    assert settings() == tuned
    await second.stop()
    assert settings() == (700, 0.005)


async def test_what_is_tuned_already_stays(path: Path) -> None:
    gc.set_threshold(0)
    sys.setswitchinterval(0.000125)
    async with Engine(path):
        assert settings() == (0, 0.000125)
    gc.set_threshold(1_000_000)
    async with Engine(path):
        assert settings()[0] == 1_000_000
