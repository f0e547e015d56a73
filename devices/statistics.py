"""What a fleet counts: one mutable record for the process, given out as an immutable one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any


@dataclass(kw_only=True, slots=True)
class Counters:
    """Counts since the start of this process, over all its devices. All on one event loop: no lock."""

    connects: int = 0
    connect_failures: int = 0
    disconnects: int = 0
    registrations: int = 0
    planned_outages: int = 0
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
    activations: int = 0
    activations_failed: int = 0
    events_published: int = 0
    events_repeated: int = 0
    publish_failures: int = 0
    crashed: int = 0


@dataclass(frozen=True, kw_only=True)
class FleetStatistics:
    """A fleet at one moment: how many devices it has, how many are connected, and its `Counters`."""

    devices: int
    connected: int
    ever_registered: int
    downloading: int
    uptime_s: float
    counts: Mapping[str, int]

    @classmethod
    def of(
        cls,
        counters: Counters,
        *,
        devices: int,
        connected: int,
        ever_registered: int,
        downloading: int,
        uptime_s: float,
    ) -> FleetStatistics:
        """A snapshot: later counting does not change it."""
        return cls(
            devices=devices,
            connected=connected,
            ever_registered=ever_registered,
            downloading=downloading,
            uptime_s=uptime_s,
            counts=MappingProxyType(asdict(counters)),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data for a file or an answer: ``counts`` merged into the rest."""
        return {
            "devices": self.devices,
            "connected": self.connected,
            "ever_registered": self.ever_registered,
            "downloading": self.downloading,
            "uptime_s": round(self.uptime_s, 3),
            **self.counts,
        }
