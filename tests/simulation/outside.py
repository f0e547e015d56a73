"""The world outside the engine: it starts, raises, suspends and terminates until that is acknowledged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from durabletask.client import OrchestrationStatus

from provisioning.engine import (
    AsyncTaskHubClient,
    EngineError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
)
from provisioning.engine.records import to_datetime
from tests.simulation.audit import Audit, BrokenPromiseError
from tests.simulation.programs import READY, expected, runs
from tests.simulation.scenario import Operation, Scenario

_LONG_S = 3_600.0
"""Virtual seconds by which every scenario has ended."""
_LOOK_AGAIN_S = 0.05


class Outside:
    """Works through what is left of a scenario's lanes, in one life of the engine."""

    def __init__(
        self,
        scenario: Scenario,
        client: AsyncTaskHubClient,
        audit: Audit,
        dice: random.Random,
        now: Callable[[], int],
        note: Callable[[str], None],
        check_ends: Callable[[], None],
    ) -> None:
        self._scenario = scenario
        self._client = client
        self._audit = audit
        self._dice = dice
        self._now = now
        self._note = note
        self._check_ends = check_ends

    async def work(self) -> None:
        """Returns when all operations are done, all roots have the outputs they should, and all is quiet.

        Raises EngineStoppedError when the engine stops before that; by then all who waited for it have heard.
        """
        tasks = [asyncio.create_task(self._lane(lane)) for lane in self._scenario.lanes]
        tasks += [asyncio.create_task(self._see_end(root)) for root in self._scenario.roots]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done() and not isinstance(task.exception(), EngineError):
                    task.result()
            _, unanswered = await asyncio.wait(tasks, timeout=_LONG_S)
            if unanswered:
                raise BrokenPromiseError(
                    f"the engine has stopped, and {len(unanswered)} callers never hear of it"
                )
            for task in tasks:
                task.result()
            async with asyncio.timeout(_LONG_S):
                while not self._audit.settled():
                    await self._look_again()
            self._check_ends()
            for root in self._scenario.purged:
                await self._client.purge_orchestration(root, recursive=True)
                self._audit.purge_acknowledged(root)
                self._note(f"acknowledged: purge {root}")
        finally:
            for task in tasks:
                task.cancel()

    async def _look_again(self) -> None:
        """Wait a little. Raises EngineStoppedError where there is nothing to wait for any more."""
        await asyncio.sleep(_LOOK_AGAIN_S)
        await self._client.get_orchestration_state("nobody")

    async def _lane(self, lane: list[Operation]) -> None:
        for operation in lane:
            if not operation.done:
                await self._do(operation)
                operation.done = True

    async def _do(self, operation: Operation) -> None:
        target = operation.target
        match operation.kind:
            case "pause":
                await asyncio.sleep(operation.delay_s)
            case "start":
                await self._start(operation)
            case "start again":
                await self._start_again(operation)
            case "raise":
                await self._raise(operation)
            case "echo":
                assert operation.after is not None
                while not operation.after.done:
                    await self._look_again()
                for _ in range(self._dice.randint(1, 2)):
                    await asyncio.sleep(self._dice.choice((0.0, 0.01, 0.5)))
                    await self._raise(operation)
            case "suspend":
                await self._once_there(lambda: self._client.suspend_orchestration(target))
            case "resume":
                await self._once_there(lambda: self._client.resume_orchestration(target))
            case _:
                await self._terminate(operation)
        if operation.kind != "pause":
            self._note(f"acknowledged: {operation.kind} {target} {operation.payload or ''}")

    async def _start(self, operation: Operation) -> None:
        start_at = None
        if operation.delay_s:
            start_at = to_datetime(self._now()) + timedelta(seconds=operation.delay_s)
        tried, operation.tried = operation.tried, True
        try:
            await self._client.schedule_new_orchestration(
                runs, input=operation.step, instance_id=operation.target, start_at=start_at
            )
        except OrchestrationAlreadyExistsError:
            if not tried:
                raise BrokenPromiseError(f"{operation.target} exists before it was started") from None
        self._audit.start_acknowledged(operation.target)

    async def _start_again(self, operation: Operation) -> None:
        try:
            await self._client.schedule_new_orchestration(runs, instance_id=operation.target)
        except OrchestrationAlreadyExistsError:
            return
        raise BrokenPromiseError(f"{operation.target} was started twice")

    async def _raise(self, operation: Operation) -> None:
        target, payload, key = operation.target, operation.payload, operation.key
        if key is None and operation.tried and self._audit.has_event(target, payload):
            return  # it had arrived, and without a key it may not come twice
        operation.tried = True
        await self._once_there(
            lambda: self._client.raise_orchestration_event(
                target, operation.name, data=payload, idempotency_key=key
            )
        )
        self._audit.event_acknowledged(target, payload)

    async def _once_there(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Ask it of an instance as soon as that exists."""
        while True:
            try:
                await ask()
            except OrchestrationNotFoundError:
                await self._look_again()
            else:
                return

    async def _terminate(self, operation: Operation) -> None:
        """As soon as the last of the chain (``name``) is there and says so."""
        while True:
            state = await self._client.get_orchestration_state(operation.name)
            if state is not None and state.serialized_custom_status == f'"{READY}"':
                break
            await self._look_again()
        await self._client.terminate_orchestration(
            operation.target, output=operation.target, recursive=operation.recursive
        )

    async def _see_end(self, root: dict[str, Any]) -> None:
        path = root["path"]
        if self._audit.ends is not None:
            return  # seen in an earlier life; by now it may be purged
        state = await self._client.wait_for_orchestration_completion(path, timeout=_LONG_S)
        self._audit.end_seen(path)
        assert state is not None
        if state.runtime_status != OrchestrationStatus.COMPLETED:
            raise BrokenPromiseError(f"{path} is {state.runtime_status.name}: {state.failure_details}")
        if state.get_output() != expected(root):
            raise BrokenPromiseError(f"{path} gives {state.get_output()}, not {expected(root)}")
