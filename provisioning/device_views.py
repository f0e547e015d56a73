"""What a device's orchestration says of its way so far: steps with times, attempts, package."""

from __future__ import annotations

import json
from typing import Any, Final

from durabletask.client import OrchestrationStatus

from .engines import EngineClient

Json = dict[str, Any]

ENDED: Final = (OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED)
"""How an orchestration is when it goes on no more."""


async def steps_of(client: EngineClient, instance_id: str | None) -> Json:
    """Steps as a device's orchestration has them, whether it runs or has ended.

    ``step`` and ``since`` (the present one), ``retrying_at`` and ``retrying_after`` (when a device that waits
    has its next attempt, and after what; else null), ``steps`` (all, with times and errors), ``package`` (its
    id, release, size and SHA-256) and ``outcome``; empty for what does not exist.
    """
    status: Json = {}
    outcome: Json | None = None
    found = None if instance_id is None else await client.get_orchestration_state(instance_id)
    under_way = found is not None and found.runtime_status not in ENDED
    if found is not None and found.serialized_custom_status:
        status = json.loads(found.serialized_custom_status)
    if found is not None and found.serialized_output:
        output = json.loads(found.serialized_output)
        outcome = output if isinstance(output, dict) and "steps" in output else None
    return {
        "step": status.get("step"),
        "since": status.get("since"),
        "retrying_at": status.get("retrying_at") if under_way else None,
        "retrying_after": status.get("retrying_after") if under_way else None,
        "steps": (outcome or status).get("steps", []),
        "package": (outcome or status).get("package"),
        "outcome": None
        if outcome is None
        else {name: value for name, value in outcome.items() if name not in ("steps", "package")},
    }
