"""Which devices a plan means, among those that are registered."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any

from provisioning.errors import NothingToDoError, UnknownDeviceError, name_some
from provisioning.states import WORKING

from .plan import RolloutPlan, in_percent
from .records import Held, Member, Rollout, RolloutRefusedError
from .tables import Known, Tables


@dataclass(frozen=True, slots=True)
class Targets:
    """The devices of a rollout, each in one of the two, in order of id."""

    free: list[str]
    busy: dict[str, str]
    """Those that the rollout is to have though another run has them now: which one."""
    held: Held | None = None
    """How the busy ones are the rollout's."""

    def __len__(self) -> int:
        return len(self.free) + len(self.busy)

    def members(self, placed: Iterable[tuple[str, int, int]]) -> Iterator[Member]:
        """The devices with wave and place, as they are to be kept."""
        for device_id, wave, place in placed:
            run_id = self.busy.get(device_id)
            yield Member(device_id, wave, place, self.held if run_id is not None else None, run_id)


def targets_of(tables: Tables, plan: RolloutPlan) -> Targets:
    """The devices that the plan means; a continuous one may have none yet.

    Raises RolloutRefusedError, UnknownDeviceError, UnknownRolloutError and NothingToDoError.
    """
    chosen = settle(plan, _chosen(plan, _matching(tables, plan)))
    if not len(chosen) and not plan.targets.continuous:
        raise NothingToDoError
    return chosen


def joiners_of(tables: Tables, rollout: Rollout, among: Collection[str] | None) -> Targets:
    """The devices that a continuous rollout means now, of some or all: new ones, and such as came after it.

    What was there before it, and not new, joins no more, whatever other runs make of its state.
    """
    found = _candidates(tables, rollout.plan, among, registered_since=rollout.created_at)
    return settle(rollout.plan, _chosen(rollout.plan, found))


def let_join(tables: Tables, rollout: Rollout, joiners: Targets, now: float) -> str | None:
    """Let devices that are not in it join the last wave of a rollout; names them, or None: there are none."""
    mine = set(tables.column("members", rollout.rollout_id, json.dumps([*joiners.free, *joiners.busy])))
    claimed = tables.claim(rollout.rollout_id, [one for one in joiners.free if one not in mine], now)
    busy = {one: run_id for one, run_id in joiners.busy.items() if one not in mine}
    devices = sorted([*claimed, *busy])
    if not devices:
        return None
    last = tables.execute("last_place", (rollout.rollout_id,)).fetchone()[0]
    placed = zip(devices, repeat(len(rollout.plan.waves)), count(last + 1), strict=False)
    tables.join(rollout.rollout_id, Targets(claimed, busy, joiners.held).members(placed))
    return name_some(devices)


def settle(plan: RolloutPlan, chosen: Mapping[str, Known]) -> Targets:
    """What becomes of the devices that another run has, by the plan's rule; raises RolloutRefusedError."""
    free = [device_id for device_id, known in chosen.items() if known.state not in WORKING]
    busy = {
        device_id: known.run_id
        for device_id, known in chosen.items()
        if known.state in WORKING and known.run_id is not None
    }
    if not busy or plan.overlap == "skip":
        return Targets(free, {})
    if plan.overlap == "refuse":
        raise RolloutRefusedError(
            f"{_are(list(busy))} being provisioned by {name_some(sorted(set(busy.values())))}: wait for its "
            f"end, or say by overlap (--overlap) what is to become of them: skip leaves them out, wait takes "
            f"them when they are free, join takes that run's outcome for its own."
        )
    return Targets(free, busy, plan.overlap)


def _chosen(plan: RolloutPlan, matching: Mapping[str, Known]) -> dict[str, Known]:
    targets = plan.targets
    excluded, qualifying = set(targets.exclude), {*targets.qualifying_states, *WORKING}
    return {
        device_id: known
        for device_id, known in matching.items()
        if device_id not in excluded and known.state in qualifying and in_percent(device_id, targets.percent)
    }


def _matching(tables: Tables, plan: RolloutPlan) -> dict[str, Known]:
    """The devices that match, whatever their state may be where they are named."""
    targets = plan.targets
    if targets.failed_in is not None:
        tables.rollout(targets.failed_in)
        named = tables.column("ended_in", targets.failed_in, json.dumps(list(targets.failed_states)))
    elif targets.devices is not None:
        named = list(targets.devices)
    else:
        return _candidates(tables, plan)
    known = tables.known(named)
    if unknown := [device_id for device_id in named if device_id not in known]:
        raise UnknownDeviceError(unknown)
    return known


def _candidates(
    tables: Tables,
    plan: RolloutPlan,
    among: Collection[str] | None = None,
    *,
    registered_since: float | None = None,
) -> dict[str, Known]:
    """Those that match; where it is to wait for other runs, or to join them, those that they have do too."""
    targets = plan.targets
    states = [str(state) for state in targets.qualifying_states]
    if plan.overlap in ("wait", "join"):
        states += WORKING
    rows = tables.execute(
        "candidates" if among is None else "candidates_among",
        (
            json.dumps(states),
            _json_or_none(targets.models),
            _json_or_none(targets.firmware_versions),
            _json_or_none(targets.tags),
            registered_since,
            *([] if among is None else [json.dumps(list(among))]),
        ),
    )
    return {device_id: Known(state, run_id) for device_id, state, run_id in rows}


def _are(device_ids: list[str]) -> str:
    return f"{name_some(device_ids)} {'is' if len(device_ids) == 1 else 'are'}"


def _json_or_none(value: Any) -> str | None:
    return None if value is None else json.dumps(value)
