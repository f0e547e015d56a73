"""What a fleet counts: one mutable record for the process, given out as plain data that adds up.

Documents of several processes are added by `merge`; latencies are histograms for that reason, in buckets
that are 10 % wide, so a percentile is that exact. Only the standard library is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

PERCENTILES: Final = (50, 95, 99)

_SMALLEST_S: Final = 0.0001
_GROWTH: Final = 1.1
_LOG_GROWTH: Final = math.log(_GROWTH)


def bucket_end_s(bucket: int) -> float:
    """The longest duration that bucket holds, in seconds."""
    return _SMALLEST_S * _GROWTH**bucket


class Histogram:
    """Durations in buckets that grow by 10 %."""

    __slots__ = ("_buckets", "count", "sum_s")

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0
        self._buckets: dict[int, int] = {}

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        bucket = max(0, math.ceil(math.log(max(seconds, _SMALLEST_S) / _SMALLEST_S) / _LOG_GROWTH))
        self.count += 1
        self.sum_s += seconds
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def percentile(self, percent: float) -> float | None:
        """The upper end of the bucket in which it lies, in seconds; None of nothing."""
        if not self.count:
            return None
        wanted = math.ceil(self.count * percent / 100)
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return bucket_end_s(bucket)
        raise AssertionError("the buckets hold less than was counted")

    def add(self, document: Mapping[str, Any]) -> None:
        """Count what another histogram, as given by `to_document`, has counted."""
        self.count += document["count"]
        self.sum_s += document["sum_s"]
        for bucket, count in document["buckets"].items():
            self._buckets[int(bucket)] = self._buckets.get(int(bucket), 0) + count

    def to_document(self) -> dict[str, Any]:
        """JSON values, with percentiles for people."""
        return {
            "count": self.count,
            "sum_s": round(self.sum_s, 6),
            **{
                f"p{percent}_s": None if (value := self.percentile(percent)) is None else round(value, 6)
                for percent in PERCENTILES
            },
            "buckets": {str(bucket): count for bucket, count in sorted(self._buckets.items())},
        }

    def cumulative(self) -> list[tuple[float, int]]:
        """Each bucket's upper end in seconds, and how many are at most that."""
        total, rows = 0, []
        for bucket in sorted(self._buckets):
            total += self._buckets[bucket]
            rows.append((bucket_end_s(bucket), total))
        return rows


@dataclass(kw_only=True, slots=True)
class Counters:
    """Counts since the start of this process, over all its devices. All on one event loop: no lock."""

    connects: int = 0
    connect_failures: int = 0
    reconnects: int = 0
    """Connections of devices that had been connected before."""
    disconnects: int = 0
    registrations: int = 0
    planned_outages: int = 0
    reboots: int = 0
    hangs: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    """MQTT payloads and topics; downloads are in `downloaded_bytes`."""
    bytes_out: int = 0
    packages: int = 0
    duplicates: int = 0
    ignored: int = 0
    malformed: int = 0
    commands: int = 0
    downloads_started: int = 0
    downloads_completed: int = 0
    downloads_failed: int = 0
    downloads_replaced: int = 0
    download_retries: int = 0
    download_restarts: int = 0
    downloaded_bytes: int = 0
    hash_failures: int = 0
    rejections: int = 0
    activations: int = 0
    activations_failed: int = 0
    events_published: int = 0
    events_repeated: int = 0
    publish_failures: int = 0
    behaviour_failures: int = 0
    """Of behaviours of the user's own."""
    crashed: int = 0


@dataclass(kw_only=True, slots=True)
class Latencies:
    """How long things took, over all devices of this process."""

    connect: Histogram = field(default_factory=Histogram)
    """From the beginning of a connection until the broker has the registration."""
    download: Histogram = field(default_factory=Histogram)
    """From the package message to the verified package."""
    ack: Histogram = field(default_factory=Histogram)
    """From the package message until the broker has the acknowledgement."""


COUNTERS: Final = tuple(f.name for f in fields(Counters))
LATENCIES: Final = tuple(f.name for f in fields(Latencies))
GAUGES: Final = (
    "devices",
    "running",
    "connected",
    "registered",
    "ever_registered",
    "downloading",
    "offline",
    "connects_per_s",
)
"""How it is at the moment, in all and for each group."""


def document(
    counters: Counters, latencies: Latencies, groups: Mapping[str, Mapping[str, float]], **more: Any
) -> dict[str, Any]:
    """The statistics of one process as JSON values; ``groups`` has the `GAUGES` of each."""
    return {
        **{name: sum(group.get(name, 0) for group in groups.values()) for name in GAUGES},
        **{name: getattr(counters, name) for name in COUNTERS},
        "latencies": {name: getattr(latencies, name).to_document() for name in LATENCIES},
        "groups": {name: dict(group) for name, group in groups.items()},
        **more,
    }


def merge(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of several processes together; ``uptime_s`` is that of the oldest."""
    counters = dict.fromkeys(COUNTERS, 0)
    histograms = {name: Histogram() for name in LATENCIES}
    groups: dict[str, dict[str, float]] = {}
    gauges: dict[str, float] = dict.fromkeys(GAUGES, 0)
    uptime_s = 0.0
    for one in documents:
        for name in COUNTERS:
            counters[name] += one.get(name, 0)
        for name in GAUGES:
            gauges[name] += one.get(name, 0)
        for name, histogram in histograms.items():
            if (counted := one.get("latencies", {}).get(name)) is not None:
                histogram.add(counted)
        for name, group in one.get("groups", {}).items():
            into = groups.setdefault(name, {})
            for gauge, value in group.items():
                into[gauge] = into.get(gauge, 0) + value
        uptime_s = max(uptime_s, one.get("uptime_s", 0.0))
    return {
        **gauges,
        **counters,
        "latencies": {name: histogram.to_document() for name, histogram in histograms.items()},
        "groups": groups,
        "uptime_s": uptime_s,
    }
