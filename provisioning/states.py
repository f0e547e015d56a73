"""The life of a device as one transition table; the picture in the docs is drawn from it.

Within one attempt a device moves only forward. Steps may be skipped: its messages and the service's own
writes travel by different ways, so "downloading" can be on record before "notified", which is then late and
has no effect. A new attempt leads back to `packaging`, a new run back to `queued`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class DeviceState(StrEnum):
    """Where a device is in its provisioning."""

    NEW = "new"
    QUEUED = "queued"
    PACKAGING = "packaging"
    NOTIFIED = "notified"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    ACTIVATING = "activating"
    PROVISIONED = "provisioned"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


_S = DeviceState

FINAL: frozenset[DeviceState] = frozenset(
    {_S.PROVISIONED, _S.FAILED, _S.TIMED_OUT, _S.REJECTED, _S.CANCELLED}
)
"""A run has ended for the device."""

WORKING: tuple[DeviceState, ...] = (
    _S.QUEUED,
    _S.PACKAGING,
    _S.NOTIFIED,
    _S.DOWNLOADING,
    _S.DOWNLOADED,
    _S.ACTIVATING,
)
"""A run is provisioning the device, in the order of the steps."""

TRANSITIONS: Mapping[DeviceState, frozenset[DeviceState]] = MappingProxyType(
    {
        _S.NEW: frozenset({_S.QUEUED}),
        _S.QUEUED: frozenset({_S.PACKAGING, _S.NOTIFIED, _S.DOWNLOADING, _S.DOWNLOADED, _S.ACTIVATING})
        | FINAL,
        _S.PACKAGING: frozenset({_S.NOTIFIED, _S.DOWNLOADING, _S.DOWNLOADED, _S.ACTIVATING}) | FINAL,
        _S.NOTIFIED: frozenset({_S.DOWNLOADING, _S.DOWNLOADED, _S.ACTIVATING}) | FINAL,
        _S.DOWNLOADING: frozenset({_S.DOWNLOADED, _S.ACTIVATING}) | FINAL,
        _S.DOWNLOADED: frozenset({_S.ACTIVATING}) | FINAL,
        _S.ACTIVATING: FINAL,
        _S.PROVISIONED: frozenset({_S.QUEUED}),
        _S.FAILED: frozenset({_S.QUEUED}),
        _S.TIMED_OUT: frozenset({_S.QUEUED}),
        _S.REJECTED: frozenset({_S.QUEUED}),
        _S.CANCELLED: frozenset({_S.QUEUED}),
    }
)
"""What may follow what within one attempt; `queued` starts a run."""

RETRY_TARGETS: frozenset[DeviceState] = frozenset(WORKING[1:]) | FINAL
"""What a later attempt may set, whatever working state the attempt before it had reached."""


def may_follow(before: DeviceState, after: DeviceState, *, later_attempt: bool = False) -> bool:
    """True where the table allows the step; `later_attempt` when `after` belongs to a higher attempt."""
    return after in TRANSITIONS[before] or (later_attempt and before in WORKING and after in RETRY_TARGETS)


def transition_rows() -> list[tuple[str, str, int]]:
    """The table as rows (before, after, later attempt 0 or 1), for the registry to join with."""
    return [
        (before.value, after.value, int(later))
        for before in DeviceState
        for after in DeviceState
        for later in (False, True)
        if may_follow(before, after, later_attempt=later)
    ]


def mermaid() -> str:
    """The picture for the docs: the usual way, retries and ends, without the skips that lateness causes."""
    lines = ["stateDiagram-v2", "    [*] --> new: register"]
    usual = (_S.NEW, *WORKING, _S.PROVISIONED)
    for before, after in itertools.pairwise(usual):
        if after not in TRANSITIONS[before]:
            raise AssertionError(f"the picture shows {before} → {after}, which the table does not allow")
        lines.append(f"    {before} --> {after}")
    lines += [
        f"    {before} --> packaging: next attempt" for before in (_S.NOTIFIED, _S.DOWNLOADING, _S.DOWNLOADED)
    ]
    ends = {
        _S.TIMED_OUT: (_S.PACKAGING, _S.NOTIFIED, _S.DOWNLOADING, _S.ACTIVATING),
        _S.REJECTED: (_S.PACKAGING, _S.DOWNLOADING),
        _S.FAILED: (_S.PACKAGING, _S.DOWNLOADING, _S.DOWNLOADED, _S.ACTIVATING),
        _S.CANCELLED: (_S.QUEUED,),
    }
    lines += [f"    {before} --> {end}" for end, befores in ends.items() for before in befores]
    lines += [f"    {end} --> queued: next run" for end in DeviceState if end in FINAL]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(f"```mermaid\n{mermaid()}```")
