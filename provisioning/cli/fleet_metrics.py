"""Statistics of fleets in Prometheus' text format 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from devices.statistics import COUNTERS, GAUGES, LATENCIES, Histogram, bucket_end_s

# From 1 ms to some minutes, each about twice the one before: ends of the histograms' own buckets.
_BUCKETS: Final = tuple(bucket_end_s(bucket) for bucket in range(24, 153, 8))

_COUNTER_HELP: Final[Mapping[str, str]] = {
    "connects": "Connections that were made to the broker.",
    "connect_failures": "Connections that could not be made.",
    "reconnects": "Connections of devices that had been connected before.",
    "disconnects": "Connections that ended.",
    "messages_in": "MQTT messages from the broker.",
    "messages_out": "MQTT messages to the broker.",
    "bytes_in": "Bytes of topics and payloads from the broker.",
    "bytes_out": "Bytes of topics and payloads to the broker.",
    "downloads_completed": "Packages that were downloaded and verified.",
    "hash_failures": "Downloads whose hash was not that of the package.",
    "crashed": "Devices that ended by a defect of Muster's.",
}
_GAUGE_HELP: Final[Mapping[str, str]] = {
    "devices": "Devices that there are.",
    "running": "Devices that are switched on.",
    "connected": "Devices that are connected to the broker.",
    "registered": "Devices that are connected and have registered.",
    "ever_registered": "Devices that have registered since their process began.",
    "downloading": "Devices that download a package.",
    "offline": "Devices that an operator has taken off the network.",
}
_LATENCY_HELP: Final[Mapping[str, str]] = {
    "connect": "From the beginning of a connection until the broker has the registration.",
    "download": "From the package message to the verified package.",
    "ack": "From the package message until the broker has the acknowledgement.",
}


def prometheus(fleets: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Return the text for fleets, each as its record and its statistics."""
    known = list(fleets)
    lines: list[str] = []
    for name in COUNTERS:
        metric = f"muster_fleet_{name}_total"
        lines += _head(metric, "counter", _COUNTER_HELP.get(name, f"Count of {name.replace('_', ' ')}."))
        lines += [f"{metric}{_labels(fleet=f['fleet_id'])} {_number(s.get(name, 0))}" for f, s in known]
    for name in GAUGES:
        lines += _gauge(name, known)
    lines += _head("muster_fleet_restarts_total", "counter", "Processes that died and were started again.")
    lines += [
        f"muster_fleet_restarts_total{_labels(fleet=f['fleet_id'])} {_number(f.get('restarts', 0))}"
        for f, _ in known
    ]
    for name in LATENCIES:
        metric = f"muster_fleet_{name}_seconds"
        lines += _head(metric, "histogram", _LATENCY_HELP.get(name, f"Durations of {name}."))
        for f, s in known:
            lines += _histogram(metric, f["fleet_id"], s.get("latencies", {}).get(name))
    return "\n".join(lines) + "\n"


def _gauge(name: str, known: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[str]:
    if name == "connects_per_s":
        metric = "muster_fleet_connects_per_second"
        yield from _head(metric, "gauge", "Connections made per second, over the last seconds.")
        for fleet, statistics in known:
            yield f"{metric}{_labels(fleet=fleet['fleet_id'])} {_number(statistics.get(name, 0))}"
        return
    metric = f"muster_fleet_{name}"
    yield from _head(metric, "gauge", _GAUGE_HELP.get(name, f"Devices that are {name.replace('_', ' ')}."))
    for fleet, statistics in known:
        for group, values in statistics.get("groups", {}).items():
            labels = _labels(fleet=fleet["fleet_id"], group=group)
            yield f"{metric}{labels} {_number(values.get(name, 0))}"


def _histogram(metric: str, fleet_id: str, document: Mapping[str, Any] | None) -> Iterator[str]:
    histogram = Histogram()
    if document is not None:
        histogram.add(document)
    rows = histogram.cumulative()
    for end_s in _BUCKETS:
        # Both sides are powers of the same number, computed alike.
        below = max((count for end, count in rows if end <= end_s), default=0)
        yield f"{metric}_bucket{_labels(fleet=fleet_id, le=f'{end_s:.6g}')} {below}"
    yield f"{metric}_bucket{_labels(fleet=fleet_id, le='+Inf')} {histogram.count}"
    yield f"{metric}_sum{_labels(fleet=fleet_id)} {_number(histogram.sum_s)}"
    yield f"{metric}_count{_labels(fleet=fleet_id)} {histogram.count}"


def _head(metric: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {metric} {text}", f"# TYPE {metric} {kind}"]


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
