"""File descriptors: raised where they may be, refused with the remedy where not."""

from __future__ import annotations

import io
import logging
import resource

import pytest

from broker.logs import BoundedHandler
from devices.errors import FleetStartError
from devices.limits import RESERVE, ensure_file_descriptors


class Limits:
    """The process's limits, without touching the real ones."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.now

    def setrlimit(self, _: int, limits: tuple[int, int]) -> None:
        self.now = limits


def limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> Limits:
    fake = Limits(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", fake.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", fake.setrlimit)
    return fake


def test_the_soft_limit_is_raised_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = limits(monkeypatch, 1024, 524_288)
    ensure_file_descriptors(10_000)
    assert fake.now == (10_000 + RESERVE, 524_288)


@pytest.mark.parametrize("soft", [50_000, resource.RLIM_INFINITY])
def test_a_limit_that_is_high_enough_stays(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    fake = limits(monkeypatch, soft, resource.RLIM_INFINITY)
    ensure_file_descriptors(10_000)
    assert fake.now == (soft, resource.RLIM_INFINITY)


def test_a_hard_limit_that_is_too_low_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, 1024, 4096)
    with pytest.raises(FleetStartError, match=r"10,128 open files.*4,096.*ulimit -Hn 10128.*--shard"):
        ensure_file_descriptors(10_000)


def test_a_limit_that_sharing_does_not_help_is_told_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, 64, 100)
    with pytest.raises(FleetStartError, match=r"136 open files.*100.*ulimit -Hn 136") as caught:
        ensure_file_descriptors(8)
    assert "--processes" not in str(caught.value)


def test_a_process_says_no_more_than_its_log_may_hold() -> None:
    stream = io.StringIO()
    handler = BoundedHandler(stream, max_bytes=1_000)
    for number in range(1_000):
        handler.emit(logging.LogRecord("devices", logging.WARNING, "", 0, f"trouble {number}", None, None))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "trouble 0"
    assert lines[-1] == "more than that is not logged by this process"
    assert len(stream.getvalue()) < 1_100
