"""The same functions on either engine: the embedded one, and the SDK's own in-memory backend over gRPC."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from durabletask.client import AsyncTaskHubGrpcClient, OrchestrationState, OrchestrationStatus
from durabletask.testing import create_test_backend
from durabletask.worker import TaskHubGrpcWorker

from provisioning.engine import AsyncTaskHubClient, Engine
from tests.conftest import free_port
from tests.unit.engine.waiting import LONG_S

EMBEDDED, SDK = "embedded", "sdk"
Function = Callable[[Any, Any], Any]


class Host:
    """One engine that runs, and its client, which has the same methods on both."""

    def __init__(self, kind: str, client: Any) -> None:
        self.kind = kind
        self.client = client

    async def start(self, orchestrator: Function | str, input: Any = None, **options: Any) -> str:
        instance_id = await self.client.schedule_new_orchestration(orchestrator, input=input, **options)
        assert isinstance(instance_id, str)
        return instance_id

    async def event(self, instance_id: str, name: str, data: Any = None) -> None:
        await self.client.raise_orchestration_event(instance_id, name, data=data)

    async def shows(self, instance_id: str, custom_status: Any) -> None:
        """Returns once the instance has that custom status."""
        async with asyncio.timeout(LONG_S):
            while True:
                state = await self.client.get_orchestration_state(instance_id)
                if state is not None and state.get_custom_status() == custom_status:
                    return
                await asyncio.sleep(0.005)

    async def ended(self, instance_id: str) -> OrchestrationState:
        state = await self.client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
        assert isinstance(state, OrchestrationState)
        return state

    async def output_of(self, instance_id: str) -> Any:
        """The output of an instance that must complete."""
        state = await self.ended(instance_id)
        assert state.runtime_status == OrchestrationStatus.COMPLETED, state.failure_details
        return state.get_output()

    async def run(self, orchestrator: Function | str, input: Any = None, **options: Any) -> Any:
        """The output of a new instance."""
        return await self.output_of(await self.start(orchestrator, input, **options))


@asynccontextmanager
async def running(
    kind: str, path: Path, orchestrators: Iterable[Function], activities: Iterable[Function]
) -> AsyncIterator[Host]:
    """A host of that kind with the functions on it; ``path`` is where the embedded one keeps its state."""
    if kind == EMBEDDED:
        engine = Engine(path)
        for function in orchestrators:
            engine.add_orchestrator(function)
        for function in activities:
            engine.add_activity(function)
        async with engine:
            yield Host(kind, AsyncTaskHubClient(engine))
        return
    port = free_port()
    backend = create_test_backend(port=port)
    worker = TaskHubGrpcWorker(host_address=f"127.0.0.1:{port}")
    for function in orchestrators:
        worker.add_orchestrator(function)
    for function in activities:
        worker.add_activity(_plain(function))
    worker.start()  # type: ignore[no-untyped-call]  # the SDK's own
    client = AsyncTaskHubGrpcClient(host_address=f"127.0.0.1:{port}")
    try:
        yield Host(kind, client)
    finally:
        await client.close()
        await asyncio.to_thread(worker.stop)
        await asyncio.to_thread(backend.stop)


def _plain(activity: Function) -> Function:
    """The SDK's worker has no asynchronous activities; its threads may run one each."""
    if not inspect.iscoroutinefunction(activity):
        return activity

    def run(context: Any, input_: Any) -> Any:
        return asyncio.run(activity(context, input_))

    run.__name__ = activity.__name__
    run.__annotations__ = activity.__annotations__
    return run
