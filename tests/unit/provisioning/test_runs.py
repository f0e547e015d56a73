"""How a run's end is found out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from durabletask.client import OrchestrationStatus

from provisioning.runs import Runs


class _Purged:
    """A run that ends while it is waited for, and is purged at once."""

    def __init__(self) -> None:
        self.state: Any = SimpleNamespace(runtime_status=OrchestrationStatus.RUNNING)

    async def get_orchestration_state(self, _run_id: str, **_: Any) -> Any:
        return self.state

    async def wait_for_orchestration_completion(self, _run_id: str, **_: Any) -> Any:
        self.state = None
        return SimpleNamespace(runtime_status=OrchestrationStatus.COMPLETED)


async def test_a_run_that_is_purged_as_it_ends_has_not_failed() -> None:
    runs = Runs(registry=cast(Any, None), client=cast(Any, _Purged()), releases=cast(Any, None))
    state = await runs._final_state("run-1")
    assert state is not None
    assert state.runtime_status == OrchestrationStatus.COMPLETED
