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
from provisioning.engine.options import EngineOptions

__all__ = [
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
    "UnsupportedError",
]
