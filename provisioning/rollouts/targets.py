"""Which devices a plan means, among those that are registered."""

from __future__ import annotations

import json
from typing import Any

from provisioning.errors import NothingToDoError, UnknownDeviceError, name_some
from provisioning.states import WORKING

from .plan import RolloutPlan, in_percent
from .records import RolloutRefusedError
from .tables import Tables


def targets_of(tables: Tables, plan: RolloutPlan) -> list[str]:
    """The devices that the plan means, in order of id; those that are busy are left out or refused.

    Raises RolloutRefusedError, UnknownDeviceError, UnknownRolloutError and NothingToDoError.
    """
    targets = plan.targets
    excluded, qualifying = set(targets.exclude), {*targets.qualifying_states, *WORKING}
    chosen = {
        device_id: state
        for device_id, state in _matching(tables, plan).items()
        if device_id not in excluded and state in qualifying and in_percent(device_id, targets.percent)
    }
    busy = [device_id for device_id, state in chosen.items() if state in WORKING]
    if busy and plan.overlap == "refuse":
        raise RolloutRefusedError(
            f"{name_some(busy)} {'is' if len(busy) == 1 else 'are'} being provisioned by another run: wait "
            f'for it, or leave them out with overlap = "skip" (--overlap skip).'
        )
    left = [device_id for device_id, state in chosen.items() if state not in WORKING]
    if not left:
        raise NothingToDoError
    return left


def _matching(tables: Tables, plan: RolloutPlan) -> dict[str, str]:
    """The states of the devices that match, by id."""
    targets = plan.targets
    if targets.failed_in is not None:
        tables.rollout(targets.failed_in)
        named = tables.column("ended_in", targets.failed_in, json.dumps(list(targets.failed_states)))
    elif targets.devices is not None:
        named = list(targets.devices)
    else:
        return dict(
            tables.execute(
                "candidates",
                (
                    json.dumps([str(state) for state in targets.qualifying_states]),
                    _json_or_none(targets.models),
                    _json_or_none(targets.firmware_versions),
                    _json_or_none(targets.tags),
                ),
            )
        )
    known = tables.known(named)
    if unknown := [device_id for device_id in named if device_id not in known]:
        raise UnknownDeviceError(unknown)
    return known


def _json_or_none(value: Any) -> str | None:
    return None if value is None else json.dumps(value)
