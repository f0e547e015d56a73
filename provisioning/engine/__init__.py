"""An embedded durable engine with Durable Task's semantics, on one SQLite file.

Register orchestrators (generators over :class:`durabletask.task.OrchestrationContext`) and
activities (plain or ``async`` functions) on an :class:`Engine`, enter it, and use an
:class:`AsyncTaskHubClient`::

    engine = Engine("state.db")
    engine.add_orchestrator(provision)
    engine.add_activity(create_package)
    async with engine:
        client = AsyncTaskHubClient(engine)
        instance_id = await client.schedule_new_orchestration(provision, input="device-1")
        state = await client.wait_for_orchestration_completion(instance_id)

Programs written for the ``durabletask`` SDK's worker and clients run on it by changing the constructors::

    with TaskHubWorker(hub="state.db") as worker, TaskHubClient(hub="state.db") as client:
        worker.add_orchestrator(provision)
        worker.add_activity(create_package)
        worker.start()
        instance_id = client.schedule_new_orchestration(provision, input="device-1")
        state = client.wait_for_orchestration_completion(instance_id)

It knows nothing of devices, MQTT or blobs.
"""

from provisioning.engine.client import AsyncTaskHubClient, OrchestrationIdReusePolicy
from provisioning.engine.engine import Engine, EngineStatistics
from provisioning.engine.errors import (
    ChildTerminatedError,
    EngineError,
    EngineStoppedError,
    EntitiesUnsupportedError,
    HistoryTooLongError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
    PayloadTooLargeError,
    StateError,
    StateFormatError,
    StateInUseError,
    UnsupportedError,
)
from provisioning.engine.hub import DEFAULT_HUB_FILE, TaskHub
from provisioning.engine.options import EngineOptions
from provisioning.engine.sync_client import TaskHubClient
from provisioning.engine.worker import TaskHubWorker

__all__ = [
    "DEFAULT_HUB_FILE",
    "AsyncTaskHubClient",
    "ChildTerminatedError",
    "Engine",
    "EngineError",
    "EngineOptions",
    "EngineStatistics",
    "EngineStoppedError",
    "EntitiesUnsupportedError",
    "HistoryTooLongError",
    "OrchestrationAlreadyExistsError",
    "OrchestrationIdReusePolicy",
    "OrchestrationNotFoundError",
    "OrchestrationStatusError",
    "PayloadTooLargeError",
    "StateError",
    "StateFormatError",
    "StateInUseError",
    "TaskHub",
    "TaskHubClient",
    "TaskHubWorker",
    "UnsupportedError",
]
