"""Groups that join a fleet: what may be left out of them follows from what there is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from devices.spec import FleetSpec, Group


def completed(change: Mapping[str, Any], fleet_id: str, specs: Mapping[str, FleetSpec]) -> Mapping[str, Any]:
    """Return ``change`` with a name and ids for the group that it adds to a fleet, where it gives none.

    The prefix is that of the fleet's first group; the numbers go on from the highest one of that prefix,
    over all fleets of this host. Whatever else there is to be said of it, `Change.from_document` says.
    """
    group = change.get("group")
    if change.get("do") != "add" or not isinstance(group, Mapping):
        return change
    own = specs[fleet_id]
    given = dict(group)
    if "name" not in given:
        given["name"] = _free_name({other.name for other in own.groups})
    if "ids" not in given:
        given.setdefault("prefix", own.groups[0].prefix)
        if "first" not in given:
            groups = (other for spec in specs.values() for other in spec.groups)
            given["first"] = next_number(groups, str(given["prefix"]))
    return {**change, "group": given}


def next_number(groups: Iterable[Group], prefix: str) -> int:
    """Return the number after the highest one that a device of that prefix has; 1 where there is none."""
    numbered = re.compile(re.escape(prefix) + r"-(\d{1,18})")
    highest = 0
    for group in groups:
        if group.ids is not None:
            found = (numbered.fullmatch(device_id) for device_id in group.ids)
            highest = max([highest, *(int(match[1]) for match in found if match is not None)])
        elif group.prefix == prefix:
            highest = max(highest, group.first + group.count - 1)
    return highest + 1


def _free_name(taken: set[str]) -> str:
    number = len(taken) + 1
    while f"group-{number}" in taken:
        number += 1
    return f"group-{number}"
