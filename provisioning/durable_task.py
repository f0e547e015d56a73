"""A Durable Task backend elsewhere, through the official SDK: its worker runs our functions, its client asks.

Any backend with the SDK's gRPC protocol will do; one with a task hub is Azure's Durable Task Scheduler or its
emulator, and takes the packages of the extra `azure`. The backend may be away at any time, at the start too:
the worker connects again by itself, callers get EngineAwayError, and `health()` says so.

A task hub belongs to one service: whichever worker is connected gets the work, and registry, MQTT session and
signing key are this service's own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import logging
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from azure.core.exceptions import AzureError
from durabletask.client import (
    AsyncTaskHubGrpcClient,
    OrchestrationQuery,
    OrchestrationState,
    OrchestrationStatus,
    Page,
    PurgeInstancesResult,
)
from durabletask.history import (
    ExecutionStartedEvent,
    HistoryEvent,
    SubOrchestrationInstanceCreatedEvent,
)
from durabletask.task import ActivityContext, Orchestrator

from broker.masking import masked

from .durable_task_sdk import connect, query_page
from .engine.errors import (
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
)
from .errors import EngineAwayError, UnsupportedByEngineError
from .settings import EngineSettings

_LOG = logging.getLogger(__name__)

_MAX_HISTORY_EVENTS = 1_000_000

UNSUPPORTED = (
    "idempotency keys: an event that is delivered twice is taken twice, which the orchestrations allow for",
    "statistics of the engine's inside: they are the backend's",
)
"""What the embedded engine has and a backend elsewhere has not."""

START_PATIENCE_S = 10.0
"""For how long the start of an orchestration is tried while the backend is away."""

_PROBE_INTERVAL_S = 5.0
_PROBE_INTERVAL_AWAY_S = 1.0
_PROBED_INSTANCE = "muster-probe"
ENDED = (OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED)
_FIRST_RETRY_S = 0.2
_MAX_REASON_CHARS = 200

Json = dict[str, Any]
Activity = Callable[[ActivityContext, Any], Any]
T = TypeVar("T")


class DurableTaskEngine:
    """The SDK's worker and client on one backend; to be entered once.

    Raises SettingsError where the packages for a task hub are missing.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._sdk = connect(settings)
        self._reach = _Reach(settings.name)
        self._activities = _Activities()
        self.orchestrators: list[str] = []
        self.client = DurableTaskClient(self._sdk.client, self._reach)
        self._prober: asyncio.Task[None] | None = None
        self._stop_task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._reach.connected

    def add_orchestrator(self, fn: Orchestrator[Any, Any]) -> str:
        self.orchestrators.append(self._sdk.worker.add_orchestrator(fn))
        return self.orchestrators[-1]

    def add_named_activity(self, name: str, fn: Activity) -> str:
        # The SDK's worker takes a function's own name, and what a coroutine function returns for its result.
        return self._sdk.worker.add_activity(self._activities.named(name, fn))

    async def __aenter__(self) -> Self:
        _LOG.info("orchestrations run on %s, without %s", self._settings.name, "; ".join(UNSUPPORTED))
        self._activities.start(asyncio.get_running_loop())
        self.client.start()
        self._sdk.worker.start()  # type: ignore[no-untyped-call]
        self._prober = asyncio.create_task(self._keep_probing(), name="engine-probe")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # It goes on where its caller is cancelled: the worker's threads would keep the process.
        if self._stop_task is None:
            self._stop_task = asyncio.create_task(self._stop(), name="engine-stop")
        await asyncio.shield(self._stop_task)

    async def _stop(self) -> None:
        self.client.stop()
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait([self._prober])
        await self._activities.stop()
        # In a thread, because the worker waits for its activities, which need this loop to come to an end.
        await asyncio.to_thread(self._sdk.worker.stop)
        await self._sdk.client.close()
        await self._sdk.close_credentials()

    async def wait_broken(self) -> BaseException | None:
        """Never returns: a backend that is away may come back."""
        await asyncio.get_running_loop().create_future()
        return None

    def health(self) -> Json:
        return {
            "kind": "durabletask",
            "endpoint": self._settings.endpoint,
            "task_hub": self._settings.task_hub,
            "tls": self._settings.tls,
            "connected": self._reach.connected,
            "trouble": self._reach.trouble,
            "unsupported": list(UNSUPPORTED),
            **self.statistics(),
        }

    def statistics(self) -> Json:
        return {
            "calls": self._reach.answered,
            "calls_failed": self._reach.failed,
            "activities": self._activities.begun,
            "activity_backlog": self._activities.running,
        }

    async def _keep_probing(self) -> None:
        while True:
            with contextlib.suppress(EngineAwayError):
                await self.client.get_orchestration_state(_PROBED_INSTANCE, fetch_payloads=False)
            await asyncio.sleep(_PROBE_INTERVAL_S if self._reach.connected else _PROBE_INTERVAL_AWAY_S)


class DurableTaskClient:
    """The SDK's client with the embedded engine's errors, and EngineAwayError for all that may pass."""

    def __init__(self, client: AsyncTaskHubGrpcClient, reach: _Reach) -> None:
        self._client = client
        self._reach = reach
        self._running = False

    def start(self) -> None:
        self._running = True

    def stop(self) -> None:
        """From now on every call is an EngineStoppedError."""
        self._running = False

    async def schedule_new_orchestration(
        self, orchestrator: Any, *, input: Any | None = None, instance_id: str | None = None
    ) -> str:
        """Start one; where the backend is away it is tried for `START_PATIENCE_S`, and started once."""
        chosen = instance_id if instance_id is not None else uuid.uuid4().hex
        delay_s = _FIRST_RETRY_S
        away: EngineAwayError | None = None
        try:
            async with asyncio.timeout(START_PATIENCE_S):
                while True:
                    call = self._client.schedule_new_orchestration(
                        orchestrator, input=input, instance_id=chosen
                    )
                    try:
                        return await self._ask(chosen, call)
                    except OrchestrationAlreadyExistsError:
                        if away is not None:  # an earlier try was accepted, and only its answer was lost
                            return chosen
                        raise
                    except EngineAwayError as error:
                        away = error
                    await asyncio.sleep(delay_s)
                    delay_s *= 2
        except TimeoutError:
            # Also in mid-call, to a backend that is there and does not answer.
            raise away or self._reach.lost(f"no answer within {START_PATIENCE_S:g} s") from None

    async def get_orchestration_state(
        self, instance_id: str, *, fetch_payloads: bool = True
    ) -> OrchestrationState | None:
        try:
            return await self._ask(
                instance_id, self._client.get_orchestration_state(instance_id, fetch_payloads=fetch_payloads)
            )
        except OrchestrationNotFoundError:
            return None

    async def wait_for_orchestration_completion(
        self, instance_id: str, *, fetch_payloads: bool = True, timeout: float = 60
    ) -> OrchestrationState | None:
        return await self._ask(
            instance_id,
            self._client.wait_for_orchestration_completion(
                instance_id, fetch_payloads=fetch_payloads, timeout=timeout
            ),
        )

    async def raise_orchestration_event(
        self,
        instance_id: str,
        event_name: str,
        *,
        data: Any | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Return when the backend has the event. It knows no keys: the same event may be taken twice."""
        await self._ask(
            instance_id, self._client.raise_orchestration_event(instance_id, event_name, data=data)
        )

    # What operators ask

    async def start_orchestration(
        self, name: str, *, input: Any | None, instance_id: str, version: str | None
    ) -> None:
        replaceable: Any = {"replaceableStatus": [status.value for status in ENDED]}
        call = self._client.schedule_new_orchestration(
            name, input=input, instance_id=instance_id, version=version, reuse_id_policy=replaceable
        )
        await self._ask(instance_id, call)

    async def get_orchestration_states_page(
        self, orchestration_query: OrchestrationQuery, *, page_size: int, continuation_token: str | None
    ) -> Page[OrchestrationState]:
        """As stable as the backend's own pages are."""
        query = replace(orchestration_query, max_instance_count=page_size)
        return await self._ask("", query_page(self._client, query, continuation_token), "queries")

    async def get_orchestration_history(self, instance_id: str, *, max_events: int) -> list[HistoryEvent]:
        """The backend streams the whole history all the same."""
        call = self._client.get_orchestration_history(instance_id)
        return (await self._ask(instance_id, call, "histories to be read"))[:max_events]

    async def get_children(
        self, instance_id: str, *, after: int, limit: int
    ) -> tuple[list[tuple[int, str]], str | None]:
        """From the history, which the backend streams whole."""
        events = await self.get_orchestration_history(instance_id, max_events=_MAX_HISTORY_EVENTS)
        begun = [
            event.instance_id for event in events if isinstance(event, SubOrchestrationInstanceCreatedEvent)
        ]
        started = next((event for event in events if isinstance(event, ExecutionStartedEvent)), None)
        parent = None if started is None else started.parent_instance
        link = None if parent is None else parent.orchestration_instance
        children = list(enumerate(begun, start=1))[after : after + limit]
        return children, None if link is None else link.instance_id

    async def terminate_orchestration(self, instance_id: str, *, output: Any | None = None) -> None:
        call = self._client.terminate_orchestration(instance_id, output=output)
        await self._ask(instance_id, call, "termination")

    async def suspend_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        call = self._client.suspend_orchestration(instance_id, reason=reason)
        await self._ask(instance_id, call, "suspension")

    async def resume_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        call = self._client.resume_orchestration(instance_id, reason=reason)
        await self._ask(instance_id, call, "suspension")

    async def rewind_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        call = self._client.rewind_orchestration(instance_id, reason=reason)
        await self._ask(instance_id, call, "rewind")

    async def restart_orchestration(
        self, instance_id: str, *, restart_with_new_instance_id: bool = False
    ) -> str:
        call = self._client.restart_orchestration(
            instance_id, restart_with_new_instance_id=restart_with_new_instance_id
        )
        return await self._ask(instance_id, call, "restart")

    async def purge_orchestration(self, instance_id: str, recursive: bool = True) -> PurgeInstancesResult:
        call = self._client.purge_orchestration(instance_id, recursive=recursive)
        return await self._ask(instance_id, call, "purge")

    async def purge_orchestrations_by(
        self,
        created_time_from: datetime | None = None,
        created_time_to: datetime | None = None,
        runtime_status: list[OrchestrationStatus] | None = None,
    ) -> PurgeInstancesResult:
        call = self._client.purge_orchestrations_by(created_time_from, created_time_to, runtime_status)
        return await self._ask("", call, "purge by filter")

    async def _ask(self, instance_id: str, call: Coroutine[Any, Any, T], what: str | None = None) -> T:
        """``what`` it is, for calls that not every backend has, and not every instance allows."""
        if not self._running:
            call.close()
            raise EngineStoppedError("the engine is not running: start it first")
        try:
            answer = await call
        except grpc.RpcError as error:
            if not self._running:
                raise EngineStoppedError("the engine was stopped") from error
            refusal = _refusal(error, instance_id)
            if what is not None and error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                refusal = OrchestrationStatusError(instance_id, "in another state", str(error.details()))
            if what is not None and error.code() == grpc.StatusCode.UNIMPLEMENTED:
                refusal = UnsupportedByEngineError(self._reach.backend, what)
            if refusal is None:
                raise self._reach.lost(_reason(error)) from error
            self._reach.found()
            raise refusal from error
        except AzureError as error:
            raise self._reach.lost(f"no token: {type(error).__name__}: {error}") from error
        self._reach.found()
        return answer


class _Reach:
    """Whether the backend answers, as the latest call found it. The log is told when that changes."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.connected = False
        self.trouble: str | None = None
        self.answered = 0
        self.failed = 0

    def found(self) -> None:
        self.answered += 1
        if not self.connected and self.failed:
            _LOG.warning("%s answers", self.backend)
        self.connected, self.trouble = True, None

    def lost(self, reason: str) -> EngineAwayError:
        """Take note of it; the error is for the caller."""
        self.failed += 1
        reason = masked(" ".join(reason.split()))
        reason = reason if len(reason) <= _MAX_REASON_CHARS else f"{reason[: _MAX_REASON_CHARS - 1]}…"
        if self.trouble is None:
            _LOG.warning("%s does not answer (%s); trying on", self.backend, reason)
        self.connected, self.trouble = False, reason
        return EngineAwayError(self.backend, reason)


class _Activities:
    """Runs activities that are coroutines on the service's loop, for threads of the SDK's worker.

    After `stop()` what runs is cancelled and nothing begins. A thread that is cut off so ends with a
    cancellation, of which the worker reports neither a result nor a failure: to the backend it is as if the
    process had died, and it gives the activity to the next worker.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self.begun = 0

    @property
    def running(self) -> int:
        return len(self._tasks)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def stop(self) -> None:
        self._stopping = True
        for running in self._tasks:
            running.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def named(self, name: str, fn: Activity) -> Activity:
        """The activity as a plain function of that name."""

        def run(ctx: ActivityContext, value: Any) -> Any:
            return self._wait_for(fn, ctx, value) if inspect.iscoroutinefunction(fn) else fn(ctx, value)

        run.__name__ = name
        return run

    def _wait_for(self, fn: Activity, ctx: ActivityContext, value: Any) -> Any:
        """In a thread of the worker."""
        future = asyncio.run_coroutine_threadsafe(self._run(fn, ctx, value), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            if self._stopping:
                raise asyncio.CancelledError from None
            raise RuntimeError("the activity cancelled itself") from error
        except Exception as error:
            if str(error):
                raise
            # Some backends take a failure without a message for a success.
            raise RuntimeError(f"{type(error).__qualname__} without a message") from error

    async def _run(self, fn: Activity, ctx: ActivityContext, value: Any) -> Any:
        if self._stopping:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.begun += 1
        try:
            return await fn(ctx, value)
        finally:
            self._tasks.discard(task)


def _refusal(error: grpc.RpcError, instance_id: str) -> Exception | None:
    """What the backend's answer means to a caller; None where it is none, and another try may do."""
    details = (error.details() or "").lower()
    match error.code():
        # Of the backend and not of the instance: nothing may be dropped for it.
        case _ if "task hub" in details or "taskhub" in details:
            return None
        case grpc.StatusCode.NOT_FOUND:
            return OrchestrationNotFoundError(instance_id)
        case grpc.StatusCode.ALREADY_EXISTS:
            return OrchestrationAlreadyExistsError(instance_id)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return ValueError(error.details())
        # Some backends in Go (Dapr's) have no codes for these.
        case grpc.StatusCode.UNKNOWN if "no such instance" in details:
            return OrchestrationNotFoundError(instance_id)
        case grpc.StatusCode.UNKNOWN if "already exists" in details:
            return OrchestrationAlreadyExistsError(instance_id)
    return None


def _reason(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
