"""The asynchronous client: the Durable Task SDK's method names and types, on an embedded engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from durabletask import history, task
from durabletask.client import (
    CleanEntityStorageResult,
    EntityQuery,
    OrchestrationQuery,
    OrchestrationState,
    OrchestrationStatus,
    Page,
    PurgeInstancesResult,
)
from durabletask.entities import EntityInstanceId, EntityMetadata
from durabletask.serialization import DataConverter

from provisioning.engine import failures, queries
from provisioning.engine.context import check_size, check_text
from provisioning.engine.engine import Engine
from provisioning.engine.errors import EntitiesUnsupportedError, OrchestrationNotFoundError
from provisioning.engine.functions import AnyFunction, function_name
from provisioning.engine.histories import public_history
from provisioning.engine.hub import AnyHub, HubHold, hub_of
from provisioning.engine.records import (
    ENDED,
    RECURSIVE,
    InstanceFilter,
    InstanceRow,
    Kind,
    Message,
    Status,
    to_datetime,
    to_microseconds,
)
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER

P = ParamSpec("P")
T = TypeVar("T")


_PAGE_SIZE = 100
"""Ids on a page of :meth:`AsyncTaskHubClient.list_instance_ids`, unless asked otherwise; as in the SDK."""


class ReuseIdPolicy(Protocol):
    """What the SDK's own ``OrchestrationIdReusePolicy``, which is not public, and the one here have."""

    @property
    def replaceableStatus(self) -> Iterable[Any]:  # noqa: N802 -- the SDK's name
        """Statuses of instances that may be replaced, as OrchestrationStatus or as their numbers."""


@dataclass(frozen=True, kw_only=True)
class OrchestrationIdReusePolicy:
    """Which instances a new one of the same id may replace, by their statuses.

    One that runs is terminated, with its sub-orchestrations, and replaced in the same transaction.
    """

    replaceableStatus: Iterable[OrchestrationStatus]  # noqa: N815 -- the SDK's name


class AsyncTaskHubClient:
    """Client of a task hub of this process, or of an engine on the caller's own loop.

    Made where ``durabletask.client.AsyncTaskHubGrpcClient`` was; ``hub`` is a :class:`TaskHub`, or the
    path of its file, ``taskhub.db`` by default. Such a client may be used on any loop and does not block it.
    Close it, lest the hub be open until the process ends. One of an ``engine`` belongs to the loop of that.

    It has the methods of the SDK's ``AsyncTaskHubGrpcClient``. They return when what they did is on disk,
    and raise EngineStoppedError where the engine is not running. ``default_version`` is that of
    orchestrations scheduled without one.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        hub: AnyHub | None = None,
        default_version: str | None = None,
        data_converter: DataConverter | None = None,
    ) -> None:
        #: Of orchestrations that are scheduled without one.
        self.default_version = default_version
        self._hold: HubHold | None = None
        if engine is None:
            self._converter = data_converter or DEFAULT_DATA_CONVERTER
            self._hold = HubHold(hub_of(hub))
            self._cross(self._hold)
        elif hub is not None:
            raise ValueError("a client is of an engine or of a hub, not of both")
        else:
            self._engine = engine
            self._converter = data_converter or engine.converter

    def _cross(self, hold: HubHold) -> None:
        """Have all methods run on the hub's loop, each called as it is."""
        for name in dir(type(self)):
            method = getattr(type(self), name)
            if not name.startswith("_") and inspect.iscoroutinefunction(method) and name != "close":
                setattr(self, name, self._crossing(hold, method))

    def _crossing(
        self, hold: HubHold, method: Callable[Concatenate[Self, P], Coroutine[Any, Any, T]]
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(method)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return await hold.call_async(lambda engine: self.on(engine, method, *args, **kwargs))

        return call

    def on(
        self,
        engine: Engine,
        method: Callable[Concatenate[Self, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, T]:
        """A call of a method of this class, to be awaited on the engine's loop."""
        self._engine = engine
        return method(self, *args, **kwargs)

    async def close(self) -> None:
        """Let go of the hub, which closes with the last who does. For a client of an engine: no effect."""
        if self._hold is not None:
            await self._hold.close_async()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def schedule_new_orchestration(
        self,
        orchestrator: AnyFunction | str,
        *,
        input: Any | None = None,
        instance_id: str | None = None,
        start_at: datetime | None = None,
        reuse_id_policy: ReuseIdPolicy | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> str:
        """Start an orchestration, now or at ``start_at`` (naive UTC, or aware). Returns its instance id.

        An id that exists, ended or not, is refused unless ``reuse_id_policy`` allows its status. Raises
        OrchestrationAlreadyExistsError, PayloadTooLargeError, and TypeError or ValueError for what is no
        text or time.
        """
        name = function_name(orchestrator)
        chosen = instance_id or uuid.uuid4().hex
        version = version or self.default_version
        for what, given in (("instance id", chosen), ("orchestrator's name", name), ("version", version)):
            check_text(f"the {what}", given)
        if not chosen.strip() or chosen.startswith("@"):
            raise ValueError(f"an instance id may not be blank nor start with '@': {chosen!r}")
        for key, value in (tags or {}).items():
            check_text("a tag's name", key)
            check_text(f"the tag {key!r}", value)
        text = self._encode(f"the input of {name!r}", input)
        await self._engine.wait_room()
        await self._engine.lifecycle.create(
            instance_id=chosen,
            name=name,
            input=text,
            start_at=_moment("start_at", start_at),
            version=version,
            tags=json.dumps(dict(tags)) if tags else None,
            replaceable=_replaceable(reuse_id_policy),
        )
        return chosen

    async def get_orchestration_state(
        self, instance_id: str, *, fetch_payloads: bool = True
    ) -> OrchestrationState | None:
        """The instance as it is on disk; None where there is none."""
        check_text("the instance id", instance_id)
        row = self._engine.read(instance_id)
        return None if row is None else self._state(row, fetch_payloads)

    async def get_orchestration_history(
        self,
        instance_id: str,
        *,
        execution_id: str | None = None,
        for_work_item_processing: bool = False,
        max_events: int | None = None,
    ) -> list[history.HistoryEvent]:
        """The history of the instance's execution, or its first ``max_events``: the latest, no other is kept.

        ``execution_id`` may name that one only; ``for_work_item_processing`` changes nothing here. Raises
        OrchestrationNotFoundError.
        """
        # One more, for the one that clients don't see.
        found = self._engine.history(instance_id, None if max_events is None else max_events + 1)
        if found is None or (execution_id and execution_id != str(found[0].execution)):
            raise OrchestrationNotFoundError(instance_id, execution_id)
        return public_history(*found)[:max_events]

    async def list_instance_ids(
        self,
        runtime_status: list[OrchestrationStatus] | None = None,
        completed_time_from: datetime | None = None,
        completed_time_to: datetime | None = None,
        page_size: int | None = None,
        continuation_token: str | None = None,
    ) -> Page[str]:
        """Ids of instances that have ended, in order of their creation, by pages.

        Times are those of their ends. A page goes on from the instance that its token names: what was
        created or purged meanwhile shifts nothing. Raises ValueError for a token that is none.
        """
        after = queries.parse_token(continuation_token)
        size = page_size if page_size is not None and page_size > 0 else _PAGE_SIZE
        which = InstanceFilter(
            statuses=ENDED & (_statuses(runtime_status) or ENDED),
            ended_from=_moment("completed_time_from", completed_time_from),
            ended_to=_moment("completed_time_to", completed_time_to),
        )
        ids: list[str] = []
        token: str | None = None
        async for outline in self._engine.queries.outlines(which, after=after, first=size + 1):
            if len(ids) == size:
                return Page(ids, token)
            ids.append(outline.id)
            token = queries.token_of(outline)
        return Page(ids, None)

    async def get_all_orchestration_states(
        self, orchestration_query: OrchestrationQuery | None = None
    ) -> list[OrchestrationState]:
        """All instances that the query fits, in order of their creation.

        Its ``max_instance_count``, the size of the pages in which a remote backend answers, limits nothing.
        """
        query = orchestration_query or OrchestrationQuery()
        rows = self._engine.queries.rows(_filter(query))
        return [self._state(row, query.fetch_inputs_and_outputs) async for row in rows]

    async def get_orchestration_states_page(
        self,
        orchestration_query: OrchestrationQuery | None = None,
        *,
        page_size: int = _PAGE_SIZE,
        continuation_token: str | None = None,
    ) -> Page[OrchestrationState]:
        """The next instances that the query fits, in order of their creation.

        A page goes on as those of :meth:`list_instance_ids` do. It is shorter where its payloads come to more
        than the engine's ``max_payload_bytes``. Raises ValueError for a token that is none.
        """
        query = orchestration_query or OrchestrationQuery()
        rows, more = await self._engine.queries.page(
            _filter(query),
            after=queries.parse_token(continuation_token),
            size=max(page_size, 1),
            payloads=query.fetch_inputs_and_outputs,
            max_chars=self._engine.options.max_payload_bytes,
        )
        states = [self._state(row, query.fetch_inputs_and_outputs) for row in rows]
        return Page(states, queries.token_of(rows[-1]) if rows and more else None)

    async def wait_for_orchestration_start(
        self, instance_id: str, *, fetch_payloads: bool = False, timeout: float = 60
    ) -> OrchestrationState | None:
        """Wait until it has begun; an instance that does not exist yet is waited for.

        Raises TimeoutError, which says how it stands with the instance.
        """
        async with self._within(timeout, instance_id, "start"):
            while True:
                row = self._engine.read(instance_id)
                if row is not None and row.status != Status.PENDING:
                    return self._state(row, fetch_payloads)
                await self._engine.wait_started(instance_id)

    async def wait_for_orchestration_completion(
        self, instance_id: str, *, fetch_payloads: bool = True, timeout: float = 60
    ) -> OrchestrationState | None:
        """Wait until it has ended; an instance that does not exist yet is waited for.

        Raises TimeoutError, which says how it stands with the instance.
        """
        async with self._within(timeout, instance_id, "complete"):
            while True:  # one that has ended may run again by now: its parent may have replaced it
                row = self._engine.read(instance_id)
                if row is not None and row.status in ENDED:
                    return self._state(row, fetch_payloads)
                await self._engine.wait_ended(instance_id)

    @contextlib.asynccontextmanager
    async def _within(self, timeout_s: float | None, instance_id: str, what: str) -> AsyncIterator[None]:
        check_text("the instance id", instance_id)
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            row = self._engine.read(instance_id)
            standing = "there is none of that id" if row is None else f"it is {Status(row.status).name}"
            if not self._engine.has_worker:
                standing += ", and no worker has been started on the hub"
            raise TimeoutError(
                f"timed out after {timeout_s:g} s waiting for orchestration {instance_id!r} to {what}: "
                f"{standing}"
            ) from None

    async def raise_orchestration_event(
        self,
        instance_id: str,
        event_name: str,
        *,
        data: Any | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Raise an external event. An event with a key that the instance has had already is dropped.

        Raises OrchestrationNotFoundError. Ended instances drop events silently.
        """
        for what, given in (("instance id", instance_id), ("name", event_name), ("key", idempotency_key)):
            check_text(f"the event's {what}", given)
        if not event_name or not event_name.strip():
            raise ValueError("the event's name is empty")
        text = self._encode(f"the data of event {event_name!r}", data)
        await self._engine.wait_room()
        await self._engine.send(
            instance_id, Message(Kind.EVENT_RAISED, name=event_name, ref=idempotency_key, data=text)
        )

    async def terminate_orchestration(
        self, instance_id: str, *, output: Any | None = None, recursive: bool = True
    ) -> None:
        """End an instance, with its running sub-orchestrations if recursive. An unknown one is no error."""
        text = self._encode("the output", output)
        ended = Message(Kind.TERMINATED, ref=RECURSIVE if recursive else None, data=text)
        with contextlib.suppress(OrchestrationNotFoundError):
            await self._control(instance_id, ended)

    async def suspend_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        """Hold back everything but resume and terminate. Raises OrchestrationNotFoundError."""
        await self._control(instance_id, Message(Kind.SUSPENDED, data=reason))

    async def resume_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        """Deliver in order what was held back. One that is not suspended is left as it is.

        Raises OrchestrationNotFoundError.
        """
        await self._control(instance_id, Message(Kind.RESUMED, data=reason))

    async def _control(self, instance_id: str, message: Message) -> None:
        check_text("the instance id", instance_id)
        check_text("the reason", message.data)
        await self._engine.send(instance_id, message)

    async def rewind_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        """Let a failed orchestration go on from its last good state: what failed runs again.

        What succeeded stays, and so do failures that the orchestrator took notice of and went on from.
        Sub-orchestrations that failed are rewound with it, those that are gone or were terminated begin
        anew. Retries begin anew too. Raises OrchestrationNotFoundError, and OrchestrationStatusError for
        one that has not failed, or whose code no longer fits its history.
        """
        for what, given in (("instance id", instance_id), ("reason", reason)):
            check_text(f"the {what}", given)
        await self._engine.rewinds.rewind(instance_id, reason)

    async def restart_orchestration(
        self, instance_id: str, *, restart_with_new_instance_id: bool = False
    ) -> str:
        """Begin an ended orchestration again with the same input, version and tags; returns its id.

        Raises OrchestrationNotFoundError, and OrchestrationStatusError for one that has not ended.
        """
        check_text("the instance id", instance_id)
        return await self._engine.lifecycle.restart(instance_id, with_new_id=restart_with_new_instance_id)

    async def purge_orchestration(self, instance_id: str, recursive: bool = True) -> PurgeInstancesResult:
        """Remove an ended orchestration, with those of its sub-orchestrations that have ended if recursive.

        They are those that its history shows: what ran before it continued as new is not in it. One that
        is unknown or has not ended is left, and counts as 0.
        """
        check_text("the instance id", instance_id)
        return PurgeInstancesResult(
            await self._engine.lifecycle.purge(instance_id, recursive=recursive), True
        )

    async def purge_orchestrations_by(
        self,
        created_time_from: datetime | None = None,
        created_time_to: datetime | None = None,
        runtime_status: list[OrchestrationStatus] | None = None,
        recursive: bool = False,
        timeout: timedelta | None = None,
    ) -> PurgeInstancesResult:
        """Remove all ended orchestrations that the filter fits; what is left after ``timeout`` stays.

        Raises ValueError for a time-out that is not positive.
        """
        if timeout is not None and timeout <= timedelta():
            raise ValueError("timeout must be greater than zero.")
        which = InstanceFilter(
            statuses=_statuses(runtime_status),
            created_from=_moment("created_time_from", created_time_from),
            created_to=_moment("created_time_to", created_time_to),
        )
        timeout_s = None if timeout is None else timeout.total_seconds()
        purged = await self._engine.lifecycle.purge_by(which, recursive=recursive, timeout_s=timeout_s)
        return PurgeInstancesResult(*purged)

    # Entities

    async def signal_entity(
        self,
        entity_instance_id: EntityInstanceId,
        operation_name: str,
        input: Any | None = None,
        signal_time: datetime | None = None,
    ) -> None:
        """Raises EntitiesUnsupportedError, as do all methods for entities."""
        raise EntitiesUnsupportedError

    async def get_entity(
        self, entity_instance_id: EntityInstanceId, include_state: bool = True
    ) -> EntityMetadata | None:
        raise EntitiesUnsupportedError

    async def get_all_entities(self, entity_query: EntityQuery | None = None) -> list[EntityMetadata]:
        raise EntitiesUnsupportedError

    async def clean_entity_storage(
        self, remove_empty_entities: bool = True, release_orphaned_locks: bool = True
    ) -> CleanEntityStorageResult:
        raise EntitiesUnsupportedError

    def _encode(self, what: str, value: Any) -> str | None:
        return check_size(what, self._converter.serialize(value), self._engine.options.max_payload_bytes)

    def _state(self, row: InstanceRow, fetch_payloads: bool) -> OrchestrationState:
        failure: task.FailureDetails | None = failures.decode(row.failure) if row.failure else None
        return OrchestrationState(
            row.id,
            row.name,
            OrchestrationStatus(row.status),
            to_datetime(row.created_at),
            to_datetime(row.updated_at),
            row.input if fetch_payloads else None,
            row.output if fetch_payloads else None,
            row.custom_status,
            failure,
            self._converter,
        )


def _replaceable(policy: ReuseIdPolicy | None) -> frozenset[int]:
    """Raises ValueError for what is no status."""
    given = () if policy is None else policy.replaceableStatus
    return frozenset(OrchestrationStatus(status).value for status in given)


def _statuses(given: Iterable[OrchestrationStatus] | None) -> frozenset[int] | None:
    """None, for all, also where none is named, as in the SDK."""
    return frozenset(status.value for status in given) if given else None


def _moment(what: str, when: datetime | None) -> int | None:
    """In microseconds. Raises TypeError for what is no datetime."""
    if when is None:
        return None
    if not isinstance(when, datetime):
        raise TypeError(f"{what} must be a datetime, not {type(when).__name__!r}")
    return to_microseconds(when)


def _filter(query: OrchestrationQuery) -> InstanceFilter:
    return InstanceFilter(
        statuses=_statuses(query.runtime_status),
        created_from=_moment("created_time_from", query.created_time_from),
        created_to=_moment("created_time_to", query.created_time_to),
        id_prefix=query.instance_id_prefix or "",
    )
