"""Which devices a plan means, among those that are registered."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any, NamedTuple

from provisioning.errors import NothingToDoError, UnknownDeviceError, name_some
from provisioning.states import WORKING

from .plan import RolloutPlan, in_percent
from .records import Held, Member, Rollout, RolloutRefusedError
from .tables import Known, Tables


class Hold(NamedTuple):
    """Which run has a device, and how it is another rollout's all the same."""

    run_id: str
    how: Held


@dataclass(frozen=True, slots=True)
class Targets:
    """The devices of a rollout, each in one of the two, in order of id."""

    free: list[str]
    busy: dict[str, Hold]
    """Those that the rollout is to have though another run has them now."""

    def __len__(self) -> int:
        return len(self.free) + len(self.busy)

    def members(self, placed: Iterable[tuple[str, int, int]]) -> Iterator[Member]:
        """The devices with wave and place, as they are to be kept."""
        for device_id, wave, place in placed:
            hold = self.busy.get(device_id)
            if hold is None:
                yield Member(device_id, wave, place)
            else:
                yield Member(device_id, wave, place, hold.how, hold.run_id)


def targets_of(tables: Tables, plan: RolloutPlan) -> Targets:
    """The devices that the plan means; a continuous one may have none yet.

    Raises RolloutRefusedError, UnknownDeviceError, UnknownRolloutError and NothingToDoError.
    """
    chosen = settle(tables, plan, _chosen(plan, _matching(tables, plan)))
    if not len(chosen) and not plan.targets.continuous:
        raise NothingToDoError(_why_none(tables, plan))
    return chosen


def _why_none(tables: Tables, plan: RolloutPlan) -> str | None:
    """Why a plan means no device, in words; None where there is no new one at all."""
    targets = plan.targets
    if targets.failed_in is not None:
        states = name_some([state.replace("_", " ") for state in map(str, targets.failed_states)])
        return f"No device of {targets.failed_in} ended as {states}, or the plan leaves all of these out."
    # Of all states, those that other runs have, too.
    anyhow = plan.model_copy(update={"overlap": "wait"})
    matching = _chosen(anyhow, _matching(tables, anyhow))
    if run_ids := {known.run_id for known in matching.values() if known.state in WORKING and known.run_id}:
        return (
            f"All devices that the plan means ({len(matching):,}) are being provisioned by "
            f"{name_some(sorted(run_ids))}: wait for its end, or say by overlap (--overlap) wait or join "
            f"what is to become of them."
        )
    if targets == type(targets)():
        return None
    states = name_some([str(state).replace("_", " ") for state in targets.qualifying_states])
    return (
        f"No device is as the plan's targets say, and {states}: `muster devices` shows what there is; to "
        f"provision devices again name them (--devices), or their states (--states)."
    )


def joiners_of(tables: Tables, rollout: Rollout, among: Collection[str] | None) -> Targets:
    """The devices that a continuous rollout means now, of some or all: new ones, and such as came after it.

    What was there before it, and not new, joins no more, whatever other runs make of its state. Nobody is
    there to be refused: what can't be joined, as it is given another release, is waited for.
    """
    plan = rollout.plan
    chosen = _chosen(plan, _candidates(tables, plan, among, registered_since=rollout.created_at))
    if plan.overlap == "join":
        run_ids = [known.run_id for known in chosen.values() if known.run_id is not None]
        others = _other_releases(tables, plan, run_ids)
        apart = {device_id: known for device_id, known in chosen.items() if known.run_id in others}
        together = {device_id: known for device_id, known in chosen.items() if device_id not in apart}
        joined = settle(tables, plan, together)
        waiting = settle(tables, plan.model_copy(update={"overlap": "wait"}), apart)
        return Targets(joined.free + waiting.free, joined.busy | waiting.busy)
    return settle(tables, plan, chosen)


def let_join(tables: Tables, rollout: Rollout, joiners: Targets, now: float) -> list[str]:
    """Let devices that are not in it join the last wave of a rollout; returns them."""
    mine = set(tables.column("members", rollout.rollout_id, json.dumps([*joiners.free, *joiners.busy])))
    claimed = tables.claim(rollout.rollout_id, [one for one in joiners.free if one not in mine], now)
    busy = {one: hold for one, hold in joiners.busy.items() if one not in mine}
    devices = sorted([*claimed, *busy])
    if not devices:
        return []
    last = tables.execute("last_place", (rollout.rollout_id,)).fetchone()[0]
    placed = zip(devices, repeat(len(rollout.plan.waves)), count(last + 1), strict=False)
    tables.join(rollout.rollout_id, Targets(claimed, busy).members(placed))
    return devices


def settle(tables: Tables, plan: RolloutPlan, chosen: Mapping[str, Known]) -> Targets:
    """What becomes of the devices that another run has, by the plan's rule; raises RolloutRefusedError."""
    free = [device_id for device_id, known in chosen.items() if known.state not in WORKING]
    busy = {
        device_id: known.run_id
        for device_id, known in chosen.items()
        if known.state in WORKING and known.run_id is not None
    }
    match plan.overlap:
        case _ if not busy:
            return Targets(free, {})
        case "skip":
            return Targets(free, {})
        case "wait":
            return Targets(free, {device_id: Hold(run_id, "wait") for device_id, run_id in busy.items()})
        case "join":
            if others := _other_releases(tables, plan, busy.values()):
                run_id, release = next(iter(others.items()))
                raise RolloutRefusedError(
                    f"{run_id} brings {_called(release)} to devices that are to have "
                    f"{_called(plan.release)}: only the same release can be joined. Use overlap (--overlap) "
                    f"wait, which brings it after that, or skip."
                )
            return Targets(free, {device_id: Hold(run_id, "join") for device_id, run_id in busy.items()})
    raise RolloutRefusedError(
        f"{_are(list(busy))} being provisioned by {name_some(sorted(set(busy.values())))}: wait for its end, "
        f"or say by overlap (--overlap) what is to become of them: skip leaves them out, wait takes them "
        f"when they are free, join takes that run's outcome for its own."
    )


def _other_releases(tables: Tables, plan: RolloutPlan, run_ids: Iterable[str]) -> dict[str, str | None]:
    """The runs that bring another release than the plan does."""
    rows = tables.execute("releases_of", (json.dumps(sorted(set(run_ids))),))
    return {run_id: release for run_id, release in rows if release != plan.release}


def _called(release: str | None) -> str:
    return "the service's own release" if release is None else f"the release {release}"


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
