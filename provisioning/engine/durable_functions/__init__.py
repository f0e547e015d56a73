"""Durable Functions style: orchestrators of one argument, on both engines.

What is written for ``azure.durable_functions`` runs unchanged once it is wrapped::

    import provisioning.engine.durable_functions as df

    @df.orchestrator
    def provision(context: df.DurableOrchestrationContext):
        device_id = context.get_input()
        return (yield context.call_activity("CreatePackage", device_id))

    @df.activity
    def create_package(device_id: str) -> str: ...

The wrapped functions are those of the SDK, ``(context, input)``, and are registered as such on an
:class:`~provisioning.engine.Engine` or on any worker of the ``durabletask`` SDK. Everything goes through
the SDK's public ``OrchestrationContext`` and tasks; docs/ENGINE.md says what differs from Azure's host.
"""

from provisioning.engine.durable_functions.context import DurableOrchestrationContext, RetryOptions
from provisioning.engine.durable_functions.tasks import Task, TaskState, TimerTask
from provisioning.engine.durable_functions.wrappers import Orchestrator, activity, orchestrator

__all__ = [
    "DurableOrchestrationContext",
    "Orchestrator",
    "RetryOptions",
    "Task",
    "TaskState",
    "TimerTask",
    "activity",
    "orchestrator",
]
