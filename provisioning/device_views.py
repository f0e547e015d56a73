"""What a device's orchestration says of its way so far: steps with times, attempts, package."""

from __future__ import annotations

import json
from typing import Any

from .engines import EngineClient

Json = dict[str, Any]


async def steps_of(client: EngineClient, instance_id: str | None) -> Json:
    """Steps as a device's orchestration has them, whether it runs or has ended.

    ``step`` and ``since`` (the present one; null when it has ended), ``steps`` (all, with their times and
    errors), ``package`` (its id, release, size and SHA-256) and ``outcome``; empty for what does not exist.
    """
    status: Json = {}
    outcome: Json | None = None
    found = None if instance_id is None else await client.get_orchestration_state(instance_id)
    if found is not None and found.serialized_custom_status:
        status = json.loads(found.serialized_custom_status)
    if found is not None and found.serialized_output:
        output = json.loads(found.serialized_output)
        outcome = output if isinstance(output, dict) and "steps" in output else None
    return {
        "step": status.get("step"),
        "since": status.get("since"),
        "steps": (outcome or status).get("steps", []),
        "package": (outcome or status).get("package"),
        "outcome": None
        if outcome is None
        else {name: value for name, value in outcome.items() if name not in ("steps", "package")},
    }
