"""The service in Prometheus' text format 0.0.4; that of the fleets is their launcher's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from provisioning.http.counting import BUCKETS_S, HttpCounts

Kind = Literal["counter", "gauge"]
Table = Mapping[str, tuple[Kind, str]]

_BROKER: Final[Table] = {
    "connected": ("gauge", "Whether the service is connected to the broker."),
    "connects": ("counter", "Connections that were made to the broker."),
    "connect_failures": ("counter", "Connections that could not be made."),
    "disconnects": ("counter", "Connections that ended."),
    "sessions_lost": ("counter", "Connections at which the broker knew no session."),
    "received": ("counter", "Messages from the broker."),
    "redelivered": ("counter", "Messages that the broker delivered again."),
    "acknowledged": ("counter", "Messages that were acknowledged, on disk by then."),
    "stale_acknowledgements": ("counter", "Acknowledgements for a connection that had ended."),
    "published": ("counter", "Messages that the broker has taken."),
    "publish_timeouts": ("counter", "Messages that the broker has not taken in time."),
    "unacknowledged": ("gauge", "Messages that are not acknowledged yet."),
    "publishing": ("gauge", "Messages that the broker has not taken yet."),
}
_BRIDGE: Final[Table] = {
    "registrations": ("counter", "Registrations of devices."),
    "presences": ("counter", "Devices that came or went."),
    "telemetry": ("counter", "Reports of progress."),
    "events": ("counter", "Events of devices that orchestrations got."),
    "duplicates": ("counter", "Messages that came again while the first was not on disk."),
    "malformed": ("counter", "Messages that are none of the contract."),
    "foreign": ("counter", "Events of a device about another one."),
    "unknown": ("counter", "Events for an orchestration that does not exist."),
    "returned": ("counter", "Devices that may have missed what was sent."),
    "retries": ("counter", "Events that the engine could not take at once."),
    "in_flight": ("gauge", "Messages that are being handled."),
}
_ENGINE: Final[Table] = {
    "live_instances": ("gauge", "Orchestrations in memory."),
    "armed_timers": ("gauge", "Timers that have not fired."),
    "activity_backlog": ("gauge", "Activities that run or wait for a place."),
    "waiting_starts": ("gauge", "Orchestrations that wait for their first turn."),
    "unclaimed": ("gauge", "Orchestrations and activities that no worker takes."),
    "turns": ("counter", "Turns of orchestrations."),
    "commits": ("counter", "Transactions of the engine."),
    "rows": ("counter", "Rows that the engine has written."),
    "replays": ("counter", "Orchestrations that were brought back from their histories."),
    "calls": ("counter", "Calls that the backend has answered."),
    "calls_failed": ("counter", "Calls that the backend has not answered."),
    "activities": ("counter", "Activities that were begun."),
}
_REGISTRY: Final[Table] = {
    "commits": ("counter", "Batches that are on disk."),
    "rows_written": ("counter", "Rows in these batches."),
    "rows_merged": ("counter", "News that another of the same batch has replaced."),
    "commit_failures": ("counter", "Batches that could not be written at once."),
    "pending_rows": ("gauge", "Rows that wait for their batch."),
    "slowest_commit_seconds": ("gauge", "The slowest batch since the start."),
}
_PACKAGES: Final[Table] = {
    "uploads": ("counter", "Packages that were uploaded."),
    "upload_failures": ("counter", "Uploads that failed."),
}
_EVENTS: Final[Table] = {
    "readers": ("gauge", "Clients that read events."),
    "opened": ("counter", "Streams of events that were opened."),
    "dropped": ("counter", "Readers that were too slow, and were cut off."),
    "refused": ("counter", "Readers for whom there was no place."),
    "resumed": ("counter", "Streams that went on where they had ended."),
    "resets": ("counter", "Streams that could not go on where they had ended."),
    "published": ("counter", "Events that were made."),
    "kept": ("gauge", "Events that can be sent again."),
    "kept_bytes": ("gauge", "Memory that these take, about."),
}


def prometheus(
    *,
    version: str,
    started_at: float,
    statistics: Mapping[str, Any],
    online: int,
    rollouts: Mapping[str, int],
    runs: Mapping[str, int],
    events: Mapping[str, Any],
    engine_connected: bool,
    storage_reachable: bool,
    cpu_s: float,
    http: HttpCounts,
) -> str:
    """The text."""
    registry = dict(statistics["registry"])
    registry["slowest_commit_seconds"] = registry.pop("slowest_commit_s")
    bridge = statistics["bridge"]
    parts = [
        _family("muster_info", "gauge", "The service's version.", [({"version": version}, 1)]),
        _one("muster_start_time_seconds", "gauge", "When the service started, since the epoch.", started_at),
        _one("process_cpu_seconds_total", "counter", "Processor time of the service.", cpu_s),
        _by("muster_devices", "Devices that have registered, by state.", "state", statistics["states"]),
        _one("muster_devices_online", "gauge", "Devices that are connected.", online),
        _by("muster_rollouts", "Rollouts on record, by state.", "state", rollouts),
        _by("muster_runs", "Runs on record that are no rollouts, by status.", "status", runs),
        _table("muster_broker", _BROKER, bridge),
        _one("muster_storage_reachable", "gauge", "Whether blob storage answers.", storage_reachable),
        _table("muster_bridge", _BRIDGE, bridge),
        _one("muster_engine_connected", "gauge", "Whether the engine takes work.", engine_connected),
        _table("muster_engine", _ENGINE, statistics["engine"]),
        _table("muster_registry", _REGISTRY, registry),
        _table("muster_packages", _PACKAGES, statistics["packages"]),
        _table("muster_events", _EVENTS, events),
        _http(http),
    ]
    return "".join(f"{line}\n" for part in parts for line in part)


def _http(counts: HttpCounts) -> Iterator[str]:
    yield from _family(
        "muster_http_requests_total",
        "counter",
        "Requests that were answered.",
        [
            ({"method": method, "code": str(code)}, count)
            for (method, code), count in sorted(counts.answered.items())
        ],
    )
    yield from _one("muster_http_requests_in_flight", "gauge", "Requests under way.", counts.under_way)
    name = "muster_http_request_duration_seconds"
    yield f"# HELP {name} How long requests took, but for streams of events."
    yield f"# TYPE {name} histogram"
    below = 0
    for end_s, count in zip((*BUCKETS_S, None), counts.buckets, strict=True):
        below += count
        end = "+Inf" if end_s is None else f"{end_s:g}"
        yield f"{name}_bucket{_labels({'le': end})} {below}"
    yield f"{name}_sum {_number(counts.seconds)}"
    yield f"{name}_count {below}"


def _table(prefix: str, table: Table, values: Mapping[str, Any]) -> Iterator[str]:
    """What there is of it: engines have not all the same."""
    for name, (kind, text) in table.items():
        if name in values:
            total = "_total" if kind == "counter" else ""
            yield from _one(f"{prefix}_{name}{total}", kind, text, values[name])


def _by(name: str, text: str, label: str, counts: Mapping[str, int]) -> Iterator[str]:
    return _family(name, "gauge", text, [({label: key}, count) for key, count in counts.items()])


def _one(name: str, kind: Kind, text: str, value: float) -> Iterator[str]:
    return _family(name, kind, text, [({}, value)])


def _family(
    name: str, kind: Kind, text: str, samples: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{_labels(labels)} {_number(value)}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")
