"""What the devices of one process share, and the times of their connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import aiohttp

from broker.connection import BrokerAddress
from devices.behaviours.combined import Complaint
from devices.certificates import DeviceTls
from devices.credentials import Credentials
from devices.dice import Trace
from devices.download import DownloadLimits
from devices.pacing import Ramp
from devices.statistics import Counters, Latencies
from devices.verify import Verifier

_LOG = logging.getLogger(__name__)

# Brokers keep no more than a hundred or so connections waiting to be accepted (Mosquitto: 100). What comes on
# top is dropped, and tried again by the kernel a second later.
_MAX_OPENING: Final = 32


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """Times of a device's connection to the broker."""

    keepalive_s: int = 60
    connect_timeout_s: float = 15.0
    publish_timeout_s: float = 30.0
    goodbye_timeout_s: float = 5.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the devices of one process share."""

    address: BrokerAddress
    http: aiohttp.ClientSession
    verifier: Verifier
    distrustful: Verifier
    """Of devices that were given the wrong key."""
    counters: Counters
    latencies: Latencies
    ramp: Ramp
    true_clock: Callable[[], float]
    """Monotonic seconds: the event loop's."""
    complain: Complaint
    """Told of behaviours that fail."""
    credentials: Credentials
    speed: float = 1.0
    """How many times as fast as true time the fleet's clock goes."""
    trace: Trace | None = None
    """Told of each random choice."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    """Wall-clock time that goes into messages."""
    report: Callable[[str], None] = _LOG.warning
    """Told of trouble that many devices may share; a fleet logs it once in a while, not for each."""
    tls: DeviceTls | None = None
    opening: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_OPENING))
    """Held by a device while it connects, so that not all do so at once."""
    link: LinkOptions = field(default_factory=LinkOptions)
    limits: DownloadLimits = field(default_factory=DownloadLimits)

    def clock(self) -> float:
        """Seconds of the fleet's clock, by which devices wait for what is up to them."""
        return self.true_clock() * self.speed

    async def sleep(self, seconds: float) -> None:
        """Wait by the fleet's clock."""
        await asyncio.sleep(seconds / self.speed)
