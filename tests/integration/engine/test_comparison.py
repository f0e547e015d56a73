"""The same orchestrators on the SDK's own in-memory backend over gRPC, and on the embedded engine."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask.client import AsyncTaskHubGrpcClient
from durabletask.testing import create_test_backend
from durabletask.worker import TaskHubGrpcWorker

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions
from tests.conftest import free_port
from tests.integration.engine.catalogue import (
    ORCHESTRATORS,
    PROGRAMS,
    Outcome,
    Program,
    Properties,
    activities,
    run,
)

ROOT = Path(__file__).parents[3]
TIMER_INTERVAL = timedelta(milliseconds=200)
"""Short, so that some timers are made of several pieces."""

AT_ONCE = 6
"""The SDK's backend has ten threads, and each client that waits occupies one."""

Outcomes = dict[str, Outcome | BaseException]

# Their import fills the catalogue.
for _of in ("tasks", "failures", "ends", "operations"):
    importlib.import_module(f"tests.integration.engine.programs_{_of}")


async def run_all(client: Any, programs: list[Program]) -> Outcomes:
    """Several at once: most of them wait most of the time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def in_a_place(one: Program) -> Outcome:
        async with places:
            return await run(client, one)

    ends = await asyncio.gather(*(in_a_place(one) for one in programs), return_exceptions=True)
    return {one.name: end for one, end in zip(programs, ends, strict=True)}


async def run_on_ours(path: Path) -> Outcomes:
    engine = Engine(
        path,
        options=EngineOptions(maximum_timer_interval=TIMER_INTERVAL),
        exception_properties_provider=Properties(),
    )
    for orchestrator in ORCHESTRATORS:
        engine.add_orchestrator(orchestrator)
    for activity in activities():
        engine.add_activity(activity)
    async with engine:
        return await run_all(AsyncTaskHubClient(engine), PROGRAMS)


async def run_on_the_sdks(address: str) -> Outcomes:
    worker: Any = TaskHubGrpcWorker(
        host_address=address,
        maximum_timer_interval=TIMER_INTERVAL,
        exception_properties_provider=Properties(),
    )
    for orchestrator in ORCHESTRATORS:
        worker.add_orchestrator(orchestrator)
    for activity in activities():
        worker.add_activity(activity)
    ends = [one for one in PROGRAMS if one.difference is None or one.difference.sdk is not None]
    worker.start()
    try:
        async with AsyncTaskHubGrpcClient(host_address=address) as client:
            return await run_all(client, ends)
    finally:
        await asyncio.to_thread(worker.stop)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return asyncio.run(run_on_ours(tmp_path_factory.mktemp("comparison") / "engine.db"))


@pytest.fixture(scope="module")
def sdks() -> Iterator[Outcomes]:
    port = free_port()
    backend = create_test_backend(port=port)
    try:
        yield asyncio.run(run_on_the_sdks(f"127.0.0.1:{port}"))
    finally:
        backend.stop()


def of(outcomes: Outcomes, one: Program) -> dict[str, Any]:
    outcome = outcomes[one.name]
    if isinstance(outcome, BaseException):
        raise outcome
    return asdict(outcome)


@pytest.mark.parametrize("one", [p for p in PROGRAMS if p.difference is None], ids=lambda one: one.name)
def test_both_engines_end_alike(one: Program, ours: Outcomes, sdks: Outcomes) -> None:
    assert of(ours, one) == of(sdks, one)


@pytest.mark.parametrize("one", [p for p in PROGRAMS if p.difference is not None], ids=lambda one: one.name)
def test_where_they_differ_it_is_on_purpose(one: Program, ours: Outcomes, sdks: Outcomes) -> None:
    difference = one.difference
    assert difference is not None
    mine = of(ours, one)
    assert {name: mine[name] for name in difference.ours} == difference.ours, difference.reason
    if difference.sdk is not None:
        theirs = of(sdks, one)
        assert {name: theirs[name] for name in difference.sdk} == difference.sdk, difference.reason
        assert difference.sdk != difference.ours
        same = mine.keys() - difference.sdk.keys() - difference.ours.keys()
        assert {name: mine[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.parametrize("one", [p for p in PROGRAMS if p.difference is not None], ids=lambda one: one.name)
def test_each_difference_is_a_rule_of_ours(one: Program) -> None:
    """The reason begins with the number of the rule, whose last column in the document says how we differ."""
    assert one.difference is not None
    number = one.difference.reason.split(":")[0]
    document = (ROOT / "docs" / "SEMANTICS.md").read_text("utf-8")
    row = re.search(rf"^\| {number} \|.*\| (.+) \|$", document, re.MULTILINE)
    assert row is not None, f"{number} says nothing of ours"
