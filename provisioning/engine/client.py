"""The asynchronous client: the Durable Task SDK's method names and types, on an embedded engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from durabletask import task
from durabletask.client import OrchestrationState, OrchestrationStatus

from provisioning.engine import failures
from provisioning.engine.context import check_size, check_text
from provisioning.engine.engine import Engine
from provisioning.engine.errors import OrchestrationNotFoundError
from provisioning.engine.functions import AnyFunction, function_name
from provisioning.engine.records import (
    ENDED,
    RECURSIVE,
    InstanceRow,
    Kind,
    Message,
    Status,
    to_datetime,
    to_microseconds,
)

T = TypeVar("T")


class AsyncTaskHubClient:
    """Client of an engine in this process and on this loop.

    Methods return when what they did is on disk. They raise EngineStoppedError where the engine is
    not running.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def schedule_new_orchestration(
        self,
        orchestrator: AnyFunction | str,
        *,
        input: Any | None = None,
        instance_id: str | None = None,
        start_at: datetime | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> str:
        """Start an orchestration, now or at ``start_at`` (naive UTC, or aware). Returns its instance id.

        Raises OrchestrationAlreadyExistsError, PayloadTooLargeError, and ValueError for text that is none.
        """
        name = function_name(orchestrator)
        chosen = instance_id if instance_id is not None else uuid.uuid4().hex
        if not chosen.strip() or chosen.startswith("@"):
            raise ValueError(f"an instance id may not be empty nor start with '@': {chosen!r}")
        for what, given in (("instance id", chosen), ("orchestrator's name", name), ("version", version)):
            check_text(f"the {what}", given)
        text = self._encode(f"the input of {name!r}", input)
        await self._engine.wait_room()
        await self._engine.create(
            instance_id=chosen,
            name=name,
            input=text,
            start_at=None if start_at is None else to_microseconds(start_at),
            version=version,
            tags=json.dumps(dict(tags)) if tags else None,
        )
        return chosen

    async def get_orchestration_state(
        self, instance_id: str, *, fetch_payloads: bool = True
    ) -> OrchestrationState | None:
        """The instance as it is on disk; None where there is none."""
        row = self._engine.read(instance_id)
        return None if row is None else self._state(row, fetch_payloads)

    async def wait_for_orchestration_start(
        self, instance_id: str, *, fetch_payloads: bool = False, timeout: float = 60
    ) -> OrchestrationState | None:
        """Wait until it has begun; an instance that does not exist yet is waited for.

        Raises TimeoutError.
        """
        async with _within(timeout, "start"):
            while True:
                row = self._engine.read(instance_id)
                if row is not None and row.status != Status.PENDING:
                    return self._state(row, fetch_payloads)
                await self._engine.wait_started(instance_id)

    async def wait_for_orchestration_completion(
        self, instance_id: str, *, fetch_payloads: bool = True, timeout: float = 60
    ) -> OrchestrationState | None:
        """Wait until it has ended; an instance that does not exist yet is waited for.

        Raises TimeoutError.
        """
        async with _within(timeout, "complete"):
            while True:  # one that has ended may run again by now: its parent may have replaced it
                row = self._engine.read(instance_id)
                if row is not None and row.status in ENDED:
                    return self._state(row, fetch_payloads)
                await self._engine.wait_ended(instance_id)

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
        if not event_name.strip():
            raise ValueError("the event's name is empty")
        for what, given in (("instance id", instance_id), ("name", event_name), ("key", idempotency_key)):
            check_text(f"the event's {what}", given)
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
        await self._control(
            instance_id, Message(Kind.TERMINATED, ref=RECURSIVE if recursive else None, data=text)
        )

    async def suspend_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        """Hold back everything but resume and terminate. An unknown instance is no error."""
        await self._control(instance_id, Message(Kind.SUSPENDED, data=reason))

    async def resume_orchestration(self, instance_id: str, *, reason: str | None = None) -> None:
        """Deliver in order what was held back. One that is not suspended is left as it is."""
        await self._control(instance_id, Message(Kind.RESUMED, data=reason))

    async def _control(self, instance_id: str, message: Message) -> None:
        check_text("the instance id", instance_id)
        check_text("the reason", message.data)
        try:
            await self._engine.send(instance_id, message)
        except OrchestrationNotFoundError:
            return

    def _encode(self, what: str, value: Any) -> str | None:
        return check_size(
            what, self._engine.converter.serialize(value), self._engine.options.max_payload_bytes
        )

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
            row.custom_status if fetch_payloads else None,
            failure,
            self._engine.converter,
        )


@contextlib.asynccontextmanager
async def _within(timeout_s: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise TimeoutError(f"timed out waiting for the orchestration to {what}") from None
