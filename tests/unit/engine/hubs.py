"""What the tests of hubs and workers share: workers, and waiting without a loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from durabletask.client import OrchestrationState, OrchestrationStatus

from provisioning.engine import TaskHubClient, TaskHubWorker
from tests.unit.engine.waiting import LONG_S


def worker_of(
    path: Path, *orchestrators: Any, activities: Iterable[Any] = (), work: Any = None, **options: Any
) -> TaskHubWorker:
    """A worker of that hub, not started yet; ``work`` is the activity of that name."""
    worker = TaskHubWorker(hub=path, **options)
    for orchestrator in orchestrators:
        worker.add_orchestrator(orchestrator)
    for activity in activities:
        worker.add_activity(activity)
    if work is not None:
        worker.add_named_activity("work", work)
    return worker


def ended(client: TaskHubClient, instance_id: str) -> OrchestrationState:
    """The instance's state once it has ended."""
    state = client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
    assert state is not None
    return state


def output_of(client: TaskHubClient, instance_id: str) -> Any:
    """The output of an instance that must complete."""
    state = ended(client, instance_id)
    assert state.runtime_status == OrchestrationStatus.COMPLETED, state
    return state.get_output()
