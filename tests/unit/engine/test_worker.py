"""The worker on a task hub: what a user of the SDK's worker knows of it, and what befalls it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus
from durabletask.serialization import JsonDataConverter
from durabletask.worker import (
    ConcurrencyOptions,
    OrchestrationWorkItemFilter,
    VersionFailureStrategy,
    VersioningOptions,
    VersionMatchStrategy,
    WorkItemFilters,
)

from provisioning.engine import (
    AsyncTaskHubClient,
    Engine,
    EngineOptions,
    OrchestrationIdReusePolicy,
    OrchestrationStatusError,
    TaskHub,
    TaskHubClient,
    TaskHubWorker,
)
from provisioning.engine.functions import Functions
from provisioning.engine.offers import Offer
from provisioning.engine.records import Kind
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER
from tests.unit.engine import waiting
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.hubs import ended, output_of, worker_of
from tests.unit.engine.operating import echo, one_activity, one_event
from tests.unit.engine.stores import GatedStore
from tests.unit.engine.waiting import LONG_S, until, wait_until

PENDING, RUNNING, COMPLETED, FAILED, TERMINATED = (
    OrchestrationStatus.PENDING,
    OrchestrationStatus.RUNNING,
    OrchestrationStatus.COMPLETED,
    OrchestrationStatus.FAILED,
    OrchestrationStatus.TERMINATED,
)


@pytest.fixture
def client(path: Path) -> Iterator[TaskHubClient]:
    with TaskHubClient(hub=path) as client:
        yield client


def status_of(client: TaskHubClient, instance_id: str) -> OrchestrationStatus:
    state = client.get_orchestration_state(instance_id)
    assert state is not None
    return state.runtime_status


def events_of(path: Path, kind: Kind) -> int:
    """How many history events of that kind are on disk."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM history WHERE kind = ?", (kind,)).fetchone()
        return int(count)


# Registration


def test_registration_is_over_while_it_runs(path: Path) -> None:
    """S-HUB-2: after start RuntimeError, a duplicate ValueError; stopped, it takes more."""
    with worker_of(path, echo) as worker:
        with pytest.raises(ValueError, match="an orchestrator named 'echo' is already registered"):
            worker.add_orchestrator(echo)
        nameless: list[Any] = [None, partial(print)]
        for nobody in nameless:
            with pytest.raises(ValueError, match="has no name: give a function"):
                worker.add_orchestrator(nobody)
        with pytest.raises(ValueError, match="non-empty"):
            worker.add_named_activity("", echo)
        with pytest.raises(ValueError, match="no function"):
            worker.add_named_activity("none", None)  # type: ignore[arg-type]  # what is tested
        worker.start()
        for late in (
            lambda: worker.add_orchestrator(one_event),
            lambda: worker.add_activity(echo),
            lambda: worker.add_orchestrator(lambda ctx, _: None),
            lambda: worker.use_versioning(VersioningOptions()),
            lambda: worker.use_work_item_filters(),
        ):
            with pytest.raises(RuntimeError, match="while the worker is running"):
                late()
        with pytest.raises(RuntimeError, match="already running"):
            worker.start()
        worker.stop()
        assert worker.add_named_orchestrator("late", one_event) == "late"


def test_stop_and_start_again(path: Path, client: TaskHubClient) -> None:
    """S-HUB-1: second stop and restart work."""
    worker = worker_of(path, echo)
    worker.stop()
    for n in range(3):
        worker.start()
        assert output_of(client, client.schedule_new_orchestration(echo, input=n)) == n
        worker.stop()
        worker.stop()


def test_there_are_no_entities(path: Path) -> None:
    """S-ENT-1: one clear error."""
    worker = worker_of(path)
    for call in (lambda: worker.add_entity(echo), worker.configure_scheduled_tasks):
        with pytest.raises(NotImplementedError, match="no durable entities"):
            call()


def test_the_loggers_arguments(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S-HUB-7: a logger, or a handler and a formatter, as the SDK has them."""
    with pytest.raises(ValueError, match="together"):
        TaskHubWorker(hub=path, logger=logging.getLogger("x"), log_handler=logging.NullHandler())
    records: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(self.format(record))

    with TaskHubWorker(
        hub=path, log_handler=Keeper(), log_formatter=logging.Formatter("<%(message)s>")
    ) as worker:
        worker.start()
    assert records[0].startswith("<the worker has started")
    caplog.set_level(logging.INFO, "mine")
    with TaskHubWorker(hub=path, logger=logging.getLogger("mine")) as worker:
        worker.start()
    assert "the worker has stopped" in caplog.messages


def test_wrong_options_are_refused_at_once(path: Path) -> None:
    """S-HUB-7: constructors check their arguments first."""
    with pytest.raises(ValueError, match="positive"):
        TaskHubWorker(hub=path, concurrency_options=ConcurrencyOptions(maximum_thread_pool_workers=0))
    with pytest.raises(ValueError, match="positive"):
        TaskHubWorker(hub=path, maximum_timer_interval=timedelta(0))
    with pytest.raises(TypeError, match="WorkItemFilters"):
        TaskHubWorker(hub=path).use_work_item_filters("all")  # type: ignore[arg-type]  # what is tested


# Work that waits


def test_without_a_worker_clients_work_and_instances_wait(path: Path, client: TaskHubClient) -> None:
    """S-VER-4, S-VER-6: work that no worker accepts waits: none started. Events for it are kept."""
    client.schedule_new_orchestration(one_event, instance_id="i")
    client.raise_orchestration_event("i", "e", data="early")
    client.schedule_new_orchestration(one_event, instance_id="doomed")
    assert (status_of(client, "i"), status_of(client, "doomed")) == (PENDING, PENDING)
    client.terminate_orchestration("doomed", output="never begun")
    state = ended(client, "doomed")
    assert (state.runtime_status, state.get_output()) == (TERMINATED, "never begun")
    with worker_of(path, one_event) as worker:
        worker.start()
        assert output_of(client, "i") == "early"


def test_instances_go_on_with_the_next_worker(path: Path, client: TaskHubClient) -> None:
    """S-VER-7: what a stopped worker had begun goes on when another one starts, by replay."""

    def long(ctx: Ctx, _: Any) -> Steps:
        got = []
        for _n in range(4):
            got.append((yield ctx.wait_for_external_event("e")))
            ctx.set_custom_status(got)
        return got

    client.schedule_new_orchestration(long, instance_id="i")
    for n in range(4):
        with worker_of(path, long) as worker:
            worker.start()
            client.wait_for_orchestration_start("i", timeout=LONG_S)
            if n % 2:
                worker.stop()  # the event comes while nobody is there
            client.raise_orchestration_event("i", "e", data=n)
            if n < 3:
                assert status_of(client, "i") == RUNNING
    with worker_of(path, long) as worker:
        worker.start()
        assert output_of(client, "i") == [0, 1, 2, 3]


def test_many_instances_change_workers_at_once(path: Path, client: TaskHubClient) -> None:
    """S-VER-7: each live generator is let go and replayed elsewhere, none lost, none doubled."""
    ran: list[int] = []
    lock = threading.Lock()

    def work(ctx: task.ActivityContext, n: int) -> int:
        with lock:
            ran.append(n)
        return n

    def steps(ctx: Ctx, n: int) -> Steps:
        total = 0
        for _n in range(5):
            total += yield ctx.call_activity("work", input=n)
        return total

    def has_run(count: int) -> bool:
        return len(ran) >= count

    for n in range(30):
        client.schedule_new_orchestration(steps, instance_id=str(n), input=n)
    with TaskHub(path):
        for _ in range(6):
            worker = worker_of(path, steps, activities=(work,))
            worker.start()
            wait_until(partial(has_run, min(len(ran) + 10, 150)))
            worker.stop()
        with worker_of(path, steps, activities=(work,)) as worker:
            worker.start()
            assert [output_of(client, str(n)) for n in range(30)] == [5 * n for n in range(30)]
    assert len(ran) == 150  # a plain activity that was begun is waited for, and counts


async def test_another_worker_goes_on_from_what_is_not_on_disk_yet(path: Path) -> None:
    """S-VER-7: a replay has all that was done, in the batch under way and in the one being gathered too."""

    def four_events(ctx: Ctx, _: Any) -> Steps:
        got = []
        for _n in range(4):
            got.append((yield ctx.wait_for_external_event("e")))
            ctx.set_custom_status(len(got))
        return got

    def offer() -> Offer:
        functions = Functions(DEFAULT_DATA_CONVERTER)
        functions.add_orchestrator("four_events", four_events)
        return Offer(functions=functions, options=EngineOptions())

    store = GatedStore(path)
    async with Engine(store, own_functions=False) as engine:
        client = AsyncTaskHubClient(engine)
        offers = [offer() for _ in range(3)]
        engine.add_offer(offers[0])
        await client.schedule_new_orchestration(four_events, instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        store.gate.clear()
        instance = engine._commits.instances["i"]
        events = []
        for n in range(4):  # under way, gathered, and by another worker each
            events.append(asyncio.create_task(client.raise_orchestration_event("i", "e", data=n)))
            await until(lambda n=n: instance.custom_status == str(n + 1))  # type: ignore[misc]  # a bound n
            if n in (1, 2):
                engine.add_offer(offers[n])
                await engine.remove_offer(offers[n - 1])
        assert engine.statistics().replays == 2
        store.gate.set()
        await asyncio.gather(*events)
        assert await waiting.output_of(client, "i") == [0, 1, 2, 3]
        assert engine._turns._unwritten == {}


def test_what_nobody_runs_can_be_terminated(path: Path, client: TaskHubClient) -> None:
    """S-VER-6, S-LIFE-5: terminate, recursive, of a running instance that no worker takes; events too."""

    def parent(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_sub_orchestrator(one_event, instance_id="child")

    with worker_of(path, parent, one_event) as worker:
        worker.start()
        client.schedule_new_orchestration(parent, instance_id="parent")
        client.wait_for_orchestration_start("child", timeout=LONG_S)
    client.raise_orchestration_event("parent", "e")
    client.terminate_orchestration("parent", output="stopped")
    assert ended(client, "parent").get_output() == "stopped"
    assert ended(client, "child").runtime_status == TERMINATED


def test_what_nobody_runs_can_be_replaced_and_restarted(path: Path, client: TaskHubClient) -> None:
    """S-VER-6, S-ID-3, S-LIFE-8: by another of the same id, which waits for a worker in its turn."""
    running = OrchestrationIdReusePolicy(replaceableStatus=[RUNNING])
    with worker_of(path, one_event) as worker:
        worker.start()
        client.schedule_new_orchestration(one_event, instance_id="i")
        client.wait_for_orchestration_start("i", timeout=LONG_S)
    client.raise_orchestration_event("i", "e", data="for the one before")
    client.schedule_new_orchestration(one_event, instance_id="i", reuse_id_policy=running)
    assert status_of(client, "i") == PENDING
    client.raise_orchestration_event("i", "e", data="for this one")
    with worker_of(path, one_event) as worker:
        worker.start()
        assert output_of(client, "i") == "for this one"
    client.restart_orchestration("i")
    assert status_of(client, "i") == PENDING
    client.raise_orchestration_event("i", "e", data="again")
    with worker_of(path, one_event) as worker:
        worker.start()
        assert output_of(client, "i") == "again"


def test_a_rewind_needs_a_worker(path: Path, client: TaskHubClient) -> None:
    """S-LIFE-7: the last turn is taken again, by the code; without it there is an error that says so."""
    left = [1]

    def work(ctx: task.ActivityContext, _: Any) -> str:
        if left:
            left.pop()
            raise OSError("not yet")
        return "at last"

    with worker_of(path, one_activity, activities=(work,)) as worker:
        worker.start()
        client.schedule_new_orchestration(one_activity, instance_id="i")
        assert ended(client, "i").runtime_status == FAILED
        worker.stop()
        with pytest.raises(OrchestrationStatusError, match="no worker runs it now"):
            client.rewind_orchestration("i")
        worker.start()
        client.rewind_orchestration("i")
        assert output_of(client, "i") == "at last"


def test_a_suspension_without_a_worker_holds_when_one_comes(path: Path, client: TaskHubClient) -> None:
    """S-VER-6, S-LIFE-3: messages keep their order while no worker is there."""
    with worker_of(path, one_event) as worker:
        worker.start()
        client.schedule_new_orchestration(one_event, instance_id="i")
        client.wait_for_orchestration_start("i", timeout=LONG_S)
        worker.stop()
        client.suspend_orchestration("i")
        client.raise_orchestration_event("i", "e", data=1)
        client.resume_orchestration("i")
        worker.start()
        assert output_of(client, "i") == 1


def test_a_result_that_came_while_no_orchestrator_was_there_counts(path: Path) -> None:
    """S-ACT-5: one whose completion is on disk never runs again, though no turn has taken it."""
    ran: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(ctx: task.ActivityContext, value: str) -> str:
        ran.append(value)
        begun.set()
        assert go_on.wait(LONG_S)
        return value

    activities_only = worker_of(path, activities=(work,))
    activities_only.use_work_item_filters()
    with TaskHubClient(hub=path) as client, worker_of(path, one_activity) as orchestrators, activities_only:
        orchestrators.use_work_item_filters()
        orchestrators.start()
        activities_only.start()
        client.schedule_new_orchestration(one_activity, instance_id="i", input="x")
        assert begun.wait(LONG_S)
        orchestrators.stop()
        go_on.set()
        activities_only.stop()
    with TaskHubClient(hub=path) as client, worker_of(path, one_activity, activities=(work,)) as worker:
        worker.start()
        assert output_of(client, "i") == "x"
    assert ran == ["x"]


# The end of user code


def test_stop_waits_for_plain_activities_and_they_count(path: Path, client: TaskHubClient) -> None:
    """S-HUB-1: stop() blocks until no user code runs; the result is not lost."""
    begun, go_on, stopped = threading.Event(), threading.Event(), threading.Event()
    ran: list[int] = []

    def work(ctx: task.ActivityContext, n: int) -> int:
        begun.set()
        assert go_on.wait(LONG_S)
        assert not stopped.is_set()
        ran.append(n)
        return n

    worker = worker_of(path, one_activity, activities=(work,))
    worker.start()
    client.schedule_new_orchestration(one_activity, instance_id="i", input=1)
    assert begun.wait(LONG_S)

    def stop() -> None:
        worker.stop()
        stopped.set()

    threads = [threading.Thread(target=stop) for _ in range(2)]  # the second one waits like the first
    for thread in threads:
        thread.start()
    assert not stopped.wait(0.05)
    go_on.set()
    for thread in threads:
        thread.join(LONG_S)
    assert stopped.is_set()
    worker.start()
    assert output_of(client, "i") == 1
    worker.stop()
    assert ran == [1]


def test_stop_cancels_asynchronous_activities_which_run_again(path: Path, client: TaskHubClient) -> None:
    """S-HUB-1, S-ACT-5: what is cut off runs again later, here or with another worker."""
    begun = threading.Event()
    ends: list[str] = []

    async def work(ctx: task.ActivityContext, n: int) -> int:
        if not begun.is_set():
            begun.set()
            try:
                await asyncio.sleep(LONG_S * 1000)
            finally:
                ends.append("cut off")
        ends.append("done")
        return n

    with worker_of(path, one_activity, activities=(work,)) as worker:
        worker.start()
        client.schedule_new_orchestration(one_activity, instance_id="i", input=1)
        assert begun.wait(LONG_S)
        worker.stop()
        assert ends == ["cut off"]
        worker.start()
        assert output_of(client, "i") == 1
    assert ends == ["cut off", "done"]


def test_stop_closes_the_orchestrators(path: Path, client: TaskHubClient) -> None:
    """S-HUB-1: no code of a stopped worker is left waiting."""
    closed: list[str] = []

    def waits(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.wait_for_external_event("never")
        finally:
            closed.append(ctx.instance_id)

    with worker_of(path, waits) as worker:
        worker.start()
        client.schedule_new_orchestration(waits, instance_id="i")
        client.wait_for_orchestration_start("i", timeout=LONG_S)
        worker.stop()
        assert closed == ["i"]
    assert status_of(client, "i") == RUNNING


@pytest.mark.parametrize("kind", ["plain", "async", "orchestrator"])
def test_stop_in_code_of_its_own_is_an_error(path: Path, client: TaskHubClient, kind: str) -> None:
    """S-HUB-10: it would wait for itself for ever."""
    worker = TaskHubWorker(hub=path)

    def stop(ctx: Any, _: Any) -> None:
        worker.stop()

    async def stop_async(ctx: Any, _: Any) -> None:
        worker.stop()

    worker.add_orchestrator(one_activity)
    worker.add_named_orchestrator("stop", stop)
    worker.add_named_activity("work", stop if kind == "plain" else stop_async)
    with worker:
        worker.start()
        name = "stop" if kind == "orchestrator" else "one_activity"
        state = ended(client, client.schedule_new_orchestration(name))
        assert state.failure_details is not None
        failure = state.failure_details.inner_failure or state.failure_details
        assert failure.error_type == "builtins.RuntimeError"
        assert "wait" in failure.message


def test_stop_in_the_hubs_thread_does_not_wait_for_another_stop(path: Path, client: TaskHubClient) -> None:
    """S-HUB-10: the other one waits for that thread."""
    worker = TaskHubWorker(hub=path)
    begun, stopping = threading.Event(), threading.Event()
    errors: list[str] = []

    async def work(_: Any, __: Any) -> None:
        begun.set()
        stopping.wait(LONG_S)
        try:
            worker.stop()
        except RuntimeError as error:
            errors.append(str(error))

    worker.add_orchestrator(one_activity)
    worker.add_named_activity("work", work)
    worker.start()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(client.schedule_new_orchestration, one_activity)  # told only when that thread is free
        assert begun.wait(LONG_S)
        other = pool.submit(worker.stop)
        wait_until(worker._lock.locked)
        stopping.set()
        other.result()
    assert ["wait" in error for error in errors] == [True]


# Names, versions, filters


def test_what_is_not_registered_fails(path: Path, client: TaskHubClient) -> None:
    """S-FAIL-6, S-FAIL-7: unregistered names, with the SDK's errors, where a worker takes everything."""
    with worker_of(path, one_activity) as worker:
        worker.start()
        state = ended(client, client.schedule_new_orchestration("unknown"))
        assert state.failure_details is not None
        assert state.failure_details.error_type == "durabletask.worker.OrchestratorNotRegisteredError"
        state = ended(client, client.schedule_new_orchestration(one_activity))
        assert state.failure_details is not None
        assert state.failure_details.inner_failure is not None
        assert (
            state.failure_details.inner_failure.error_type == "durabletask.worker.ActivityNotRegisteredError"
        )


def test_filters_share_the_work(path: Path, client: TaskHubClient) -> None:
    """S-VER-5: filtered work waits for a worker that takes it."""

    def other(ctx: Ctx, value: Any) -> Any:
        return f"other {value}"

    with worker_of(path, echo, other) as first, worker_of(path, other, echo) as second:
        first.use_work_item_filters(WorkItemFilters(orchestrations=[OrchestrationWorkItemFilter("echo")]))
        second.use_work_item_filters(WorkItemFilters(orchestrations=[OrchestrationWorkItemFilter("other")]))
        first.start()
        client.schedule_new_orchestration("other", instance_id="other", input=1)
        client.schedule_new_orchestration("unknown", instance_id="unknown")
        assert output_of(client, client.schedule_new_orchestration("echo", input=2)) == 2
        assert status_of(client, "other") == PENDING
        second.start()
        assert output_of(client, "other") == "other 1"
        assert status_of(client, "unknown") == PENDING
        client.terminate_orchestration("unknown")
        assert ended(client, "unknown").runtime_status == TERMINATED
        first.stop()
        first.use_work_item_filters(None)
        client.schedule_new_orchestration("unknown", instance_id="again")
        first.start()
        assert ended(client, "again").runtime_status == FAILED


def versioned(
    path: Path,
    *orchestrators: Any,
    version: str | None,
    match: VersionMatchStrategy | None = VersionMatchStrategy.STRICT,
    failure: VersionFailureStrategy | None = VersionFailureStrategy.REJECT,
    default: str | None = None,
) -> TaskHubWorker:
    worker = worker_of(path, *orchestrators)
    worker.use_versioning(
        VersioningOptions(
            version=version, default_version=default, match_strategy=match, failure_strategy=failure
        )
    )
    return worker


def version(ctx: Ctx, _: Any) -> str | None:
    return ctx.version


def test_a_mismatch_fails(path: Path, client: TaskHubClient) -> None:
    """S-VER-2: FAIL ends it with the error type VersionMismatch; also what was under way."""
    with versioned(path, version, one_event, version=None, match=VersionMatchStrategy.NONE) as any_version:
        any_version.start()
        client.schedule_new_orchestration(one_event, instance_id="under way", version="2.0")
        client.wait_for_orchestration_start("under way", timeout=LONG_S)
    with versioned(
        path,
        version,
        one_event,
        version="1.0",
        match=VersionMatchStrategy.CURRENT_OR_OLDER,
        failure=VersionFailureStrategy.FAIL,
    ) as worker:
        worker.start()
        client.raise_orchestration_event("under way", "e")
        client.schedule_new_orchestration(version, instance_id="new", version="1.1")
        for instance_id in ("new", "under way"):
            state = ended(client, instance_id)
            assert state.failure_details is not None
            assert state.failure_details.error_type == "VersionMismatch"
            assert "greater than the worker version '1.0'" in state.failure_details.message
        assert output_of(client, client.schedule_new_orchestration(version, version="0.9")) == "0.9"


def test_a_rejected_version_waits_for_another_worker(path: Path, client: TaskHubClient) -> None:
    """S-VER-2: REJECT leaves it for another worker."""
    client.schedule_new_orchestration(version, instance_id="i", version="2")
    with versioned(path, version, version="1") as old:
        old.start()
        assert output_of(client, client.schedule_new_orchestration(version, version="1")) == "1"
        assert status_of(client, "i") == PENDING
        with versioned(path, version, version="2") as new:
            new.start()
            assert output_of(client, "i") == "2"


def test_sub_orchestrations_take_the_workers_default_version(path: Path, client: TaskHubClient) -> None:
    """S-VER-3: the worker's default is for those that name none; clients have theirs."""

    def parent(ctx: Ctx, _: Any) -> Steps:
        default = yield ctx.call_sub_orchestrator(version)
        named = yield ctx.call_sub_orchestrator(version, version="7")
        return [ctx.version, default, named]

    with versioned(path, parent, version, version=None, match=None, failure=None, default="3") as worker:
        worker.start()
        assert output_of(client, client.schedule_new_orchestration(parent)) == [None, "3", "7"]
        client.default_version = "5"
        assert output_of(client, client.schedule_new_orchestration(version)) == "5"
        assert output_of(client, client.schedule_new_orchestration(version, version="6")) == "6"


def test_a_retry_keeps_its_version(path: Path, client: TaskHubClient) -> None:
    """S-RTY-7: also where the worker's default is another one by then."""
    tried: list[str | None] = []

    def child(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("e")
        tried.append(ctx.version)
        if len(tried) == 1:
            raise OSError("not yet")

    def parent(ctx: Ctx, _: Any) -> Steps:
        policy = task.RetryPolicy(first_retry_interval=timedelta(milliseconds=1), max_number_of_attempts=2)
        yield ctx.call_sub_orchestrator(child, instance_id="child", retry_policy=policy)

    with versioned(path, parent, child, version=None, match=None, default="1") as worker:
        worker.start()
        client.schedule_new_orchestration(parent, instance_id="parent")
        client.wait_for_orchestration_start("child", timeout=LONG_S)
    with versioned(path, parent, child, version=None, match=None, default="2") as worker:
        worker.start()
        client.raise_orchestration_event("child", "e")
        while len(tried) < 2:
            client.raise_orchestration_event("child", "e")
        assert ended(client, "parent").runtime_status == COMPLETED
    assert tried == ["1", "1"]


def test_it_continues_as_a_version_that_another_worker_takes(path: Path, client: TaskHubClient) -> None:
    """S-CAN-3: new_version; with it the instance may change workers, events and all."""

    def eternal(ctx: Ctx, _: Any) -> Steps:
        if ctx.version == "1":
            ctx.continue_as_new(None, save_events=True, new_version="2")
            return None
        return (yield ctx.wait_for_external_event("e"))

    with versioned(path, eternal, version="1") as old:
        old.start()
        client.schedule_new_orchestration(eternal, instance_id="i", version="1")
        client.wait_for_orchestration_start("i", timeout=LONG_S)
        client.raise_orchestration_event("i", "e", data="kept")
    with versioned(path, eternal, version="2") as new:
        new.start()
        assert output_of(client, "i") == "kept"


# Options


def test_plain_activities_are_bounded(path: Path, client: TaskHubClient) -> None:
    """S-ACT-1, S-HUB-11: a bounded pool of their own; the SDK's concurrency options say how many."""
    lock = threading.Lock()
    running = most = 0
    full = threading.Event()

    def work(ctx: task.ActivityContext, n: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                full.set()
        assert full.wait(LONG_S)
        with lock:
            running -= 1

    def fan(ctx: Ctx, _: Any) -> Steps:
        yield task.when_all([ctx.call_activity(work, input=n) for n in range(20)])

    for options in (
        ConcurrencyOptions(maximum_concurrent_activity_work_items=2, maximum_thread_pool_workers=9),
        ConcurrencyOptions(maximum_concurrent_activity_work_items=9, maximum_thread_pool_workers=2),
    ):
        full.clear()
        with worker_of(path, fan, activities=(work,), concurrency_options=options) as worker:
            assert worker.concurrency_options is options
            worker.start()
            assert ended(client, client.schedule_new_orchestration(fan)).runtime_status == COMPLETED
    assert most == 2


def test_asynchronous_activities_are_bounded(path: Path, client: TaskHubClient) -> None:
    """S-ACT-2, S-HUB-11: bounded too, by the same option."""
    running = most = 0

    async def work(ctx: task.ActivityContext, n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    def fan(ctx: Ctx, _: Any) -> Steps:
        yield task.when_all([ctx.call_activity(work, input=n) for n in range(20)])

    options = ConcurrencyOptions(maximum_concurrent_activity_work_items=3)
    with worker_of(path, fan, activities=(work,), concurrency_options=options) as worker:
        worker.start()
        assert ended(client, client.schedule_new_orchestration(fan)).runtime_status == COMPLETED
    assert most == 3


class TaggedConverter(JsonDataConverter):
    """JSON with a mark before it."""

    def serialize(self, value: Any) -> str | None:
        text = super().serialize(value)
        return None if text is None else f"#{text}"

    def deserialize(self, data: str | None, target_type: type | None = None) -> Any:
        assert data is None or data.startswith("#"), data
        return super().deserialize(data and data[1:], target_type)


def test_a_data_converter(path: Path) -> None:
    """S-DATA-1: all that crosses a boundary goes through the converters of worker and client."""

    def work(ctx: task.ActivityContext, value: Any) -> Any:
        return [value]

    converter = TaggedConverter()
    with (
        TaskHubClient(hub=path, data_converter=converter) as client,
        worker_of(path, one_activity, activities=(work,), data_converter=converter) as worker,
    ):
        worker.start()
        state = ended(client, client.schedule_new_orchestration(one_activity, input={"a": 1}))
        assert (state.serialized_input, state.serialized_output) == ('#{"a": 1}', '#[{"a": 1}]')
        assert state.get_output() == [{"a": 1}]


class CodeProvider:
    """Says of each error what its code is."""

    def get_exception_properties(self, exception: Exception) -> dict[str, Any]:
        return {"code": getattr(exception, "errno", None)}


def test_an_exception_properties_provider(path: Path, client: TaskHubClient) -> None:
    """S-FAIL-14: the worker's, for orchestrators and activities."""

    def work(ctx: task.ActivityContext, _: Any) -> None:
        raise OSError(28, "no space")

    provider = CodeProvider()
    with worker_of(path, one_activity, activities=(work,), exception_properties_provider=provider) as worker:
        worker.start()
        state = ended(client, client.schedule_new_orchestration(one_activity))
        assert state.failure_details is not None
        assert state.failure_details.properties == {"code": None}
        assert state.failure_details.inner_failure is not None
        assert state.failure_details.inner_failure.properties == {"code": 28}


@pytest.mark.parametrize(("interval", "pieces"), [(timedelta(milliseconds=1), 2), (None, 1)])
def test_the_maximum_timer_interval(
    path: Path, client: TaskHubClient, interval: timedelta | None, pieces: int
) -> None:
    """S-TMR-3: longer ones are made of several; None: none is."""

    def sleeps(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta(milliseconds=2))

    with worker_of(path, sleeps, maximum_timer_interval=interval) as worker:
        assert worker.maximum_timer_interval == interval
        worker.start()
        assert ended(client, client.schedule_new_orchestration(sleeps)).runtime_status == COMPLETED
    assert (events_of(path, Kind.TIMER_CREATED) >= 2) == (pieces == 2)
