"""Waiting for conditions, and for orchestrations, with a bound that no sound run comes near."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from durabletask.client import OrchestrationState, OrchestrationStatus

from provisioning.engine import AsyncTaskHubClient

LONG_S = 20.0


async def until(condition: Callable[[], object]) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 -- conditions of every kind, most of them on disk
            await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], object]) -> None:
    """As :func:`until`, where there is no loop."""
    asyncio.run(until(condition))


async def ended(client: AsyncTaskHubClient, instance_id: str) -> OrchestrationState:
    """The instance's state once it has ended."""
    state = await client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
    assert state is not None
    return state


async def output_of(client: AsyncTaskHubClient, instance_id: str) -> Any:
    """The output of an instance that must complete."""
    state = await ended(client, instance_id)
    assert state.runtime_status == OrchestrationStatus.COMPLETED, state
    return state.get_output()
