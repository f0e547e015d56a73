"""What the tests of client operations share: a bench whose activities break and are repaired at will."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durabletask import task
from durabletask.client import OrchestrationState, OrchestrationStatus

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions
from provisioning.engine.store import Store
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.waiting import LONG_S, until

Status = OrchestrationStatus


def one_event(ctx: Ctx, _: Any) -> Steps:
    """Waits for an event and returns its data."""
    return (yield ctx.wait_for_external_event("e"))


def echo(ctx: Ctx, value: Any) -> Any:
    """Returns its input."""
    return value


def one_activity(ctx: Ctx, value: Any) -> Steps:
    """Returns what the activity ``work`` makes of its input."""
    return (yield ctx.call_activity("work", input=value))


class Bench:
    """Builds engines whose activity ``work`` fails for ``broken`` labels and hangs for ``stuck`` ones.

    ``ran`` has the labels in the order in which the activity began. Engines of one bench share them, as
    lives of one process would share the world outside.
    """

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.stuck: dict[str, asyncio.Event] = {}
        self.ran: list[str] = []
        self.orchestrators: dict[str, Callable[..., Any]] = {"one_event": one_event, "echo": echo}

    def add(self, *orchestrators: Callable[..., Any]) -> None:
        """Register orchestrators with the engines that are built from now on; later ones replace earlier."""
        for orchestrator in orchestrators:
            self.orchestrators[orchestrator.__name__] = orchestrator

    def stick(self, label: str) -> asyncio.Event:
        """The activity hangs for that label until the event is set."""
        return self.stuck.setdefault(label, asyncio.Event())

    def engine(self, store: Store | Path, options: EngineOptions | None = None, **kwargs: Any) -> Engine:
        engine = Engine(store, options=options, **kwargs)
        for name, orchestrator in self.orchestrators.items():
            engine.add_named_orchestrator(name, orchestrator)
        engine.add_named_activity("work", self._work)
        return engine

    async def _work(self, ctx: task.ActivityContext, label: str) -> str:
        self.ran.append(label)
        if label in self.stuck:
            await self.stuck[label].wait()
        if label in self.broken:
            raise ValueError(f"{label} is broken")
        return f"{label} done"

    async def running(self, *labels: str) -> None:
        """Returns once the activity has begun with all of these."""
        await until(lambda: set(labels) <= set(self.ran))


async def status_of(client: AsyncTaskHubClient, instance_id: str) -> OrchestrationStatus:
    """The status on disk of an instance that must exist."""
    state = await client.get_orchestration_state(instance_id)
    assert state is not None
    return state.runtime_status


async def ends_as(
    client: AsyncTaskHubClient, instance_id: str, status: OrchestrationStatus
) -> OrchestrationState:
    """The state of an instance that must end like this."""
    state = await client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
    assert state is not None
    assert state.runtime_status == status, state
    return state


async def fails(client: AsyncTaskHubClient, instance_id: str) -> str:
    """The message with which the instance has failed."""
    state = await ends_as(client, instance_id, Status.FAILED)
    assert state.failure_details is not None
    return state.failure_details.message


def chain(ctx: Ctx, labels: list[str]) -> Steps:
    """One activity after another."""
    done = []
    for label in labels:
        done.append((yield ctx.call_activity("work", input=label)))  # noqa: PERF401 -- yields
    return done


def together(ctx: Ctx, labels: list[str]) -> Steps:
    """All activities at once."""
    return (yield task.when_all([ctx.call_activity("work", input=label) for label in labels]))


def family(ctx: Ctx, depth: int) -> Steps:
    """Two children each down to ``depth`` 0, where work is done under the instance's id."""
    if depth == 0:
        return (yield ctx.call_activity("work", input=ctx.instance_id))
    ids = [f"{ctx.instance_id}.{n}" for n in range(2)]
    return (
        yield task.when_all(
            [ctx.call_sub_orchestrator(family, input=depth - 1, instance_id=child) for child in ids]
        )
    )


def leaves(prefix: str, depth: int) -> list[str]:
    """Ids of the leaves of a family."""
    if depth == 0:
        return [prefix]
    return [leaf for n in range(2) for leaf in leaves(f"{prefix}.{n}", depth - 1)]


def rows_of(path: Path, table: str) -> int:
    """Number of rows on disk."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
