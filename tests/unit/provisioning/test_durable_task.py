"""A Durable Task backend elsewhere: the SDK's in-memory backend over gRPC stands in for the real ones."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from durabletask.client import OrchestrationState
from durabletask.history import TaskFailedEvent
from durabletask.task import ActivityContext, OrchestrationContext, when_all

from provisioning import durable_task
from provisioning.durable_task import DurableTaskEngine
from provisioning.durable_task_sdk import MAX_ACTIVITIES
from provisioning.engine import (
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
)
from provisioning.errors import EngineAwayError, SettingsError
from provisioning.settings import EngineSettings
from tests.backend import Backend

Json = dict[str, Any]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def settings(port: int, **more: Any) -> EngineSettings:
    return EngineSettings(kind="durabletask", host="127.0.0.1", port=port, **more)


def one(ctx: OrchestrationContext, name: str) -> Any:
    """An orchestration with one activity."""
    return (yield ctx.call_activity(name, input={"for": ctx.instance_id}))


def many(ctx: OrchestrationContext, count: int) -> Any:
    return len((yield when_all([ctx.call_activity("Wait") for _ in range(count)])))


def event(ctx: OrchestrationContext, _: Any) -> Any:
    return (yield ctx.wait_for_external_event("Go"))


def empty(ctx: OrchestrationContext, _: Any) -> str:
    return "done"


class World:
    """Activities that can be held up."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting = 0
        self.left = 0
        self._changed = asyncio.Condition()

    async def wait(self, _ctx: ActivityContext, _: Any) -> str:
        await self._count(1)
        try:
            await self.go.wait()
            return "went"
        finally:
            self.left += 1

    async def _count(self, more: int) -> None:
        async with self._changed:
            self.waiting += more
            self._changed.notify_all()

    async def wait_waiting(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.waiting >= count)


async def greet(ctx: ActivityContext, value: Json) -> str:
    await asyncio.sleep(0)
    return f"hello {value['for']} {ctx.orchestration_id}"


async def fail(_ctx: ActivityContext, value: Json) -> str:
    await asyncio.sleep(0)
    raise OSError(f"no wire to {value['for']}")


async def fail_silently(_ctx: ActivityContext, _: Json) -> str:
    raise TimeoutError


async def give_up(_ctx: ActivityContext, _: Json) -> str:
    raise asyncio.CancelledError


def plain(_ctx: ActivityContext, value: Json) -> str:
    return f"plain {value['for']}"


@asynccontextmanager
async def running(port: int, world: World, **more: Any) -> AsyncIterator[DurableTaskEngine]:
    engine = DurableTaskEngine(settings(port, **more))
    for orchestrator in (one, many, event, empty):
        engine.add_orchestrator(orchestrator)
    activities: dict[str, Callable[[ActivityContext, Any], Any]] = {
        "Greet": greet,
        "Fail": fail,
        "FailSilently": fail_silently,
        "GiveUp": give_up,
        "Plain": plain,
        "Wait": world.wait,
    }
    for name, activity in activities.items():
        engine.add_named_activity(name, activity)
    async with engine:
        yield engine


@pytest.fixture
async def engine(backend: Backend) -> AsyncIterator[DurableTaskEngine]:
    backend.start()
    async with running(backend.port, World()) as entered:
        yield entered


async def ended(engine: DurableTaskEngine, instance_id: str) -> OrchestrationState:
    state = await engine.client.wait_for_orchestration_completion(instance_id, timeout=30)
    assert state is not None
    return state


async def result(engine: DurableTaskEngine, orchestrator: Any, value: Any, instance_id: str) -> Any:
    await engine.client.schedule_new_orchestration(orchestrator, input=value, instance_id=instance_id)
    return (await ended(engine, instance_id)).get_output()


async def test_plain_and_async_activities_run_and_their_results_and_errors_travel(
    engine: DurableTaskEngine,
) -> None:
    assert await result(engine, one, "Greet", "i1") == "hello i1 i1"
    assert await result(engine, one, "Plain", "i2") == "plain i2"
    await engine.client.schedule_new_orchestration(one, input="Fail", instance_id="i3")
    failure = (await ended(engine, "i3")).failure_details
    assert failure is not None
    assert "no wire to i3" in failure.message
    # One that cancels itself fails like any other: it must not be given to another worker for ever.
    for name, message in (("GiveUp", "cancelled itself"), ("FailSilently", "TimeoutError")):
        await engine.client.schedule_new_orchestration(one, input=name, instance_id=name)
        failure = (await ended(engine, name)).failure_details
        assert failure is not None
        assert message in failure.message
    assert engine.statistics()["activities"] == 4


async def test_activities_that_wait_hold_up_no_orchestration(backend: Backend) -> None:
    backend.start()
    world = World()
    async with running(backend.port, world) as engine:
        await engine.client.schedule_new_orchestration(many, input=MAX_ACTIVITIES, instance_id="m")
        await world.wait_waiting(MAX_ACTIVITIES)
        assert engine.statistics()["activity_backlog"] == MAX_ACTIVITIES
        assert await result(engine, empty, None, "e") == "done"
        world.go.set()
        assert (await ended(engine, "m")).get_output() == MAX_ACTIVITIES


@pytest.mark.parametrize("away", [False, True], ids=["backend there", "backend away"])
async def test_a_stop_ends_activities_and_reports_nothing_of_them(backend: Backend, away: bool) -> None:
    backend.start()
    world = World()
    async with running(backend.port, world) as engine:
        await engine.client.schedule_new_orchestration(many, input=5, instance_id="m")
        await world.wait_waiting(5)
        if away:
            backend.stop()
    # User code has ended when the stop has.
    assert world.left == 5
    if away:
        backend.start()
    async with running(backend.port, World()) as engine:
        state = await engine.client.get_orchestration_state("m")
        history = await engine._sdk.client.get_orchestration_history("m")
    assert state is not None
    assert state.runtime_status.name == "RUNNING"
    assert not any(isinstance(event, TaskFailedEvent) for event in history)


async def test_a_result_that_comes_while_the_backend_is_away_is_kept_for_it(backend: Backend) -> None:
    backend.start()
    world = World()
    async with running(backend.port, world) as engine:
        await engine.client.schedule_new_orchestration(many, input=1, instance_id="m")
        await world.wait_waiting(1)
        backend.stop()
        world.go.set()
        await wait_connected(engine, False)
        backend.start()
        await wait_connected(engine, True)
        # This backend gives no activity twice: what did not get through would be missing for ever.
        assert (await ended(engine, "m")).get_output() == 1


async def test_a_second_leave_waits_for_the_first(backend: Backend) -> None:
    backend.start()
    async with running(backend.port, World()) as engine:
        await asyncio.gather(engine.__aexit__(None, None, None), engine.__aexit__(None, None, None))
    for call in (
        engine.client.schedule_new_orchestration(empty),
        engine.client.get_orchestration_state("i"),
        engine.client.raise_orchestration_event("i", "Go"),
    ):
        with pytest.raises(EngineStoppedError):
            await call


async def wait_connected(engine: DurableTaskEngine, connected: bool) -> None:
    while engine.connected is not connected:
        with suppress(EngineAwayError):
            await engine.client.get_orchestration_state("i")


async def test_a_backend_that_is_away_is_said_and_waited_for(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(backend.port, World()) as engine:
        with pytest.raises(EngineAwayError, match=rf"127\.0\.0\.1:{backend.port}.*MUSTER_ENGINE_ENDPOINT"):
            await engine.client.raise_orchestration_event("i", "Go")
        health = engine.health()
        assert (health["kind"], health["connected"]) == ("durabletask", False)
        assert "UNAVAILABLE" in health["trouble"]
        assert any("idempotency" in feature for feature in health["unsupported"])
        starting = asyncio.create_task(result(engine, one, "Greet", "i"))
        backend.start()
        assert await starting == "hello i i"
        assert (engine.connected, engine.health()["trouble"]) == (True, None)
        backend.stop()
        await wait_connected(engine, False)
        backend.start()
        await wait_connected(engine, True)
        assert await result(engine, one, "Plain", "i2") == "plain i2"
    said = [record.getMessage() for record in caplog.records if record.name == "provisioning.durable_task"]
    assert [("does not answer" in line, line.endswith("answers")) for line in said] == [
        (True, False),
        (False, True),
    ] * 2


async def test_events_are_taken_with_a_key_that_the_backend_does_not_know(engine: DurableTaskEngine) -> None:
    await engine.client.schedule_new_orchestration(event, instance_id="i")
    await engine.client.raise_orchestration_event("i", "Go", data={"n": 1}, idempotency_key="k")
    assert (await ended(engine, "i")).get_output() == {"n": 1}
    # As on the embedded engine: an ended instance drops events, an unknown one is an error.
    await engine.client.raise_orchestration_event("i", "Go", data={"n": 1}, idempotency_key="k")
    with pytest.raises(OrchestrationNotFoundError):
        await engine.client.raise_orchestration_event("nobody", "Go")
    assert await engine.client.get_orchestration_state("nobody") is None
    with pytest.raises(OrchestrationAlreadyExistsError):
        await engine.client.schedule_new_orchestration(event, instance_id="i")


def rpc_error(code: grpc.StatusCode, details: str = "") -> Exception:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


class ScriptedClient:
    """The SDK's client whose calls end as the test says."""

    def __init__(self, *ends: Exception | str) -> None:
        self.ends = list(ends)
        self.ids: list[str] = []
        #: Whether a call that never ends was cancelled.
        self.cut_off = False

    async def schedule_new_orchestration(self, _orchestrator: Any, *, input: Any, instance_id: str) -> str:
        self.ids.append(instance_id)
        return await self._end()

    async def raise_orchestration_event(self, _instance_id: str, _name: str, *, data: Any) -> str:
        return await self._end()

    async def _end(self) -> str:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        if end == "never":
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.cut_off = True
        return end


def scripted(*ends: Exception | str) -> tuple[Any, ScriptedClient]:
    sdk: Any = ScriptedClient(*ends)
    client = durable_task.DurableTaskClient(sdk, durable_task._Reach("the backend"))
    client.start()
    return client, sdk


async def test_a_start_whose_answer_was_lost_counts_once() -> None:
    client, sdk = scripted(rpc_error(UNAVAILABLE), rpc_error(grpc.StatusCode.ALREADY_EXISTS))
    started = await client.schedule_new_orchestration("one")
    assert sdk.ids == [started, started]
    # Without such a try before it, the id is someone else's.
    client, _ = scripted(rpc_error(grpc.StatusCode.ALREADY_EXISTS))
    with pytest.raises(OrchestrationAlreadyExistsError):
        await client.schedule_new_orchestration("one")


@pytest.mark.parametrize("before", [(), (rpc_error(UNAVAILABLE),)], ids=["at once", "in a later try"])
async def test_a_start_on_a_backend_that_never_answers_ends_with_the_patience(
    monkeypatch: pytest.MonkeyPatch, before: tuple[Exception, ...]
) -> None:
    monkeypatch.setattr(durable_task, "START_PATIENCE_S", 0.05)
    monkeypatch.setattr(durable_task, "_FIRST_RETRY_S", 0.0)
    client, sdk = scripted(*before, "never")
    with pytest.raises(EngineAwayError, match="he backend does not answer"):
        await client.schedule_new_orchestration("one")
    assert len(set(sdk.ids)) == 1
    assert sdk.cut_off or before  # where a machine is slow it has no time for a second try
    assert not client._reach.connected


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, "instance i", OrchestrationNotFoundError),
        (grpc.StatusCode.NOT_FOUND, "The task hub 'x' does not exist", EngineAwayError),
        (grpc.StatusCode.UNKNOWN, "no such instance exists", OrchestrationNotFoundError),
        (grpc.StatusCode.UNKNOWN, "orchestration instance already exists", OrchestrationAlreadyExistsError),
        (grpc.StatusCode.INVALID_ARGUMENT, "too long", ValueError),
        (UNAVAILABLE, "connection refused", EngineAwayError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", EngineAwayError),
        (grpc.StatusCode.FAILED_PRECONDITION, "suspended", EngineAwayError),
        (grpc.StatusCode.UNAUTHENTICATED, "who?", EngineAwayError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "throttled", EngineAwayError),
        (grpc.StatusCode.INTERNAL, "oops", EngineAwayError),
    ],
)
async def test_what_the_backend_answers_becomes_the_errors_that_the_service_knows(
    code: grpc.StatusCode, details: str, expected: type[Exception]
) -> None:
    client, _ = scripted(rpc_error(code, details))
    with pytest.raises(expected):
        await client.raise_orchestration_event("i", "Go", idempotency_key="k")


async def test_a_task_hub_is_served_by_the_scheduler_s_own_classes(backend: Backend) -> None:
    backend.start()
    async with running(backend.port, World(), task_hub="default") as engine:
        assert type(engine._sdk.worker).__name__ == "DurableTaskSchedulerWorker"
        assert await result(engine, one, "Greet", "i") == "hello i i"
        assert engine.health()["task_hub"] == "default"


def test_a_task_hub_without_its_packages_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "durabletask.azuremanaged.worker", None)
    with pytest.raises(SettingsError, match=r"MUSTER_ENGINE_TASKHUB.*pip install durabletask\.azuremanaged"):
        DurableTaskEngine(settings(1, task_hub="default"))


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
async def test_what_libraries_tell_of_each_try_is_for_those_who_want_to_know(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    told = ("azure.identity._credentials.chained", "provisioning.durable_task_sdk.sdk")
    with caplog.at_level(level):
        DurableTaskEngine(settings(1))
        for name in told:
            logging.getLogger(name).warning("no token, no connection, …")
    assert [record.name for record in caplog.records] == [name for name in told if level == logging.INFO]


class Listener(grpc.GenericRpcHandler):
    """A server that notes who calls, and with which token."""

    def __init__(self) -> None:
        self.tokens: dict[str, str | None] = {}
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def service(self, details: grpc.HandlerCallDetails) -> None:
        token = dict(details.invocation_metadata or ()).get("x-token")
        self.tokens[details.method.rpartition("/")[2]] = None if token is None else str(token)
        self._loop.call_soon_threadsafe(self._changed.set)

    async def wait_called(self, *methods: str) -> None:
        while not self.tokens.keys() >= set(methods):
            self._changed.clear()
            await self._changed.wait()


async def test_a_credential_goes_with_each_call_and_shows_nowhere() -> None:
    listener = Listener()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), handlers=[listener])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with running(port, World(), credential="x-token=s3cret") as engine:
            await listener.wait_called("Hello", "GetInstance")
            shown = f"{engine.health()}{engine._settings!r}"
    finally:
        server.stop(None)
    assert set(listener.tokens.values()) == {"s3cret"}
    assert "s3cret" not in shown
