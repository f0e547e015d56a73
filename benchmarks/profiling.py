"""Where the time of the seed's workflow goes, by part: on the loop by cProfile, in the writer by statement.

cProfile makes small functions look dearer than they are: read the loop's shares as a hint of where to look.
The writer's are from a run without it.
"""

from __future__ import annotations

import contextlib
import cProfile
import pstats
import re
import sqlite3
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.embedded import run_seed
from benchmarks.tables import table

_Code = tuple[str, int, str]
"""File, line and name of a function, as pstats has it; the file of what is written in C is ``~``."""

_CORE = "turns: the core, with the SDK's tasks"
_AROUND = "turns: what is around the core"
_COMMITS = "commits: gathered and told"
_CLIENTS = "clients and the engine's face"
_READING = "reading the state file"
_PARTS_OF_MODULES = {
    "completion": _CORE,
    "context": _CORE,
    "execution": _CORE,
    "external_events": _CORE,
    "failures": _CORE,
    "functions": _CORE,
    "nondeterminism": _CORE,
    "retries": _CORE,
    "agenda": _AROUND,
    "clock": _AROUND,
    "instances": _AROUND,
    "outcomes": _AROUND,
    "records": _AROUND,
    "turns": _AROUND,
    "timers": "timers",
    "commits": _COMMITS,
    "health": _COMMITS,
    "store": _COMMITS,
    "waiters": _COMMITS,
    "writer": _COMMITS,
    "activities": "activities",
    "offers": "activities",
    "threads": "activities",
    "client": _CLIENTS,
    "engine": _CLIENTS,
    "histories": _CLIENTS,
    "hub": _CLIENTS,
    "interpreter": _CLIENTS,
    "lifecycle": _CLIENTS,
    "options": _CLIENTS,
    "queries": _CLIENTS,
    "rewinds": _CLIENTS,
    "sync_client": _CLIENTS,
    "worker": _CLIENTS,
    "serialization": "serialisation",
    "damage": _READING,
    "sqlite_store": _READING,
    "watched_store": _READING,
}
_PARTS_OF_PATHS = (
    (re.compile(r"/durabletask/serialization\.py$|/json/|^<frozen json"), "serialisation"),
    (re.compile(r"/durabletask/"), _CORE),
    (re.compile(r"/benchmarks/"), "user code: orchestrators, activities, who acknowledges"),
    (re.compile(r"/asyncio/|/selectors\.py$"), "the event loop"),
)
_PARTS_OF_BUILTINS = (
    (re.compile(r"select\.\w*poll|select\.kqueue|kqueue' objects"), "waiting: for the disk, mostly"),
    (re.compile(r"sqlite3\."), _READING),
    (re.compile(r"_json"), "serialisation"),
)


@dataclass
class StatementTimes:
    """What one kind of statement took in the writer's thread."""

    calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


Statements = dict[str, StatementTimes]


async def profile(devices: int, directory: Path) -> str:
    """Two runs: one with the writer's statements timed, and the same under cProfile. Markdown."""
    statements: Statements = defaultdict(StatementTimes)
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=directory) as first, timed(statements):
        seconds = (await run_seed(devices, Path(first)))["seconds"]
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=directory) as second:
        profiler.enable()
        try:
            slow_seconds = (await run_seed(devices, Path(second)))["seconds"]
        finally:
            profiler.disable()
    return f"""The seed's workflow, {devices:,} devices: {seconds:.2f} s; under cProfile {slow_seconds:.2f} s.

The loop's thread, under cProfile:

{_loop_table(profiler)}

The writer's thread, not under cProfile; what is not CPU is waiting for the disk or for the interpreter lock:

{_writer_table(statements, seconds)}"""


# The loop


def _loop_table(profiler: cProfile.Profile) -> str:
    parts = time_by_part(pstats.Stats(profiler))
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    rows = [[part, f"{spent:.2f}", f"{spent / total:.0%}"] for part, spent in ordered]
    return table(["part", "s", "share"], rows)


def time_by_part(stats: pstats.Stats) -> dict[str, float]:
    """Seconds by part; what is written in C counts for the Python that called it, with a few exceptions."""
    parts: dict[str, float] = defaultdict(float)
    # Not in the stubs, though documented as what the browsers of profiles use.
    functions: dict[_Code, tuple[int, int, float, float, dict[_Code, tuple[int, int, float, float]]]]
    functions = stats.stats  # type: ignore[attr-defined]
    for code, (_, _, own_s, _, callers) in functions.items():
        part = part_of(code)
        if part is not None:
            parts[part] += own_s
            continue
        for caller, (_, _, from_there_s, _) in callers.items():
            parts[part_of(caller) or "other"] += from_there_s
        if not callers:
            parts["other"] += own_s
    return dict(parts)


def part_of(code: _Code) -> str | None:
    """The part that a function belongs to; None for what is written in C and belongs to its caller."""
    path, _, name = code
    if path == "~":
        return next((part for pattern, part in _PARTS_OF_BUILTINS if pattern.search(name)), None)
    found = re.search(r"/provisioning/engine/(\w+)\.py$", path)
    if found:
        return _PARTS_OF_MODULES.get(found[1], f"engine: {found[1]}")
    return next((part for pattern, part in _PARTS_OF_PATHS if pattern.search(path)), "other")


# The writer


@contextlib.contextmanager
def timed(statements: Statements) -> Iterator[None]:
    """Connections that are made meanwhile time what other threads than this one do with them."""
    loop_thread = threading.get_ident()

    class TimedConnection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if threading.get_ident() == loop_thread:
                return super().execute(sql, *parameters)
            began, cpu = time.perf_counter(), time.thread_time()
            try:
                return super().execute(sql, *parameters)
            finally:
                _book(statements[kind_of(sql)], began, cpu)

        def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            began, cpu = time.perf_counter(), time.thread_time()
            try:
                return super().executemany(sql, *parameters)
            finally:
                if threading.get_ident() != loop_thread:
                    _book(statements[kind_of(sql)], began, cpu)

    original = sqlite3.connect

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = original(*args, **{"factory": TimedConnection, **options})
        return connection

    with mock.patch.object(sqlite3, "connect", connect):
        yield


def _book(times: StatementTimes, began: float, cpu: float) -> None:
    times.calls += 1
    times.wall_s += time.perf_counter() - began
    times.cpu_s += time.thread_time() - cpu


def kind_of(sql: str) -> str:
    """A statement by its verb and its table: ``INSERT history``, ``COMMIT``."""
    text = re.sub(r"--[^\n]*", "", sql)
    verb = text.split(None, 1)[0].upper()
    found = re.search(
        r"^\s*(?:INSERT(?:\s+OR\s+\w+)?\s+INTO|UPDATE|DELETE\s+FROM)\s+(\w+)", text, re.IGNORECASE
    )
    return f"{verb} {found[1]}" if found else verb


def _writer_table(statements: Statements, seconds: float) -> str:
    ordered = sorted(statements.items(), key=lambda item: -item[1].wall_s)
    rows = [
        [f"`{kind}`", f"{t.calls:,}", f"{t.wall_s:.3f}", f"{t.cpu_s:.3f}", f"{t.wall_s / seconds:.1%}"]
        for kind, t in ordered
    ]
    wall, cpu = sum(t.wall_s for t in statements.values()), sum(t.cpu_s for t in statements.values())
    rows.append(["all", "", f"{wall:.3f}", f"{cpu:.3f}", f"{wall / seconds:.1%}"])
    return table(["statement", "calls", "s", "of it CPU", "of the run"], rows)
