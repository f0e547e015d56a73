"""Who is at the other end of a connection, as its socket says, and how often each of them may ask."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

MAX_PEERS: Final = 4_096
"""Peers that are remembered; whoever has not asked for longest is forgotten."""
_IPV6_NETWORK_BITS: Final = 64
"""One subscriber has all addresses of such a network."""


class Peer(NamedTuple):
    """The other end of a connection."""

    key: str
    """What counts as one peer: an address, of IPv6 a network."""
    loopback: bool


_NOBODY: Final = Peer("", loopback=False)


@lru_cache(maxsize=MAX_PEERS)
def peer_of(host: str | None) -> Peer:
    """The peer at an address. What is no address, as on a socket without one, is not this machine."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return _NOBODY
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            network = ipaddress.ip_network((int(address), _IPV6_NETWORK_BITS), strict=False)
            return Peer(str(network.network_address), address.is_loopback)
        address = address.ipv4_mapped
    return Peer(str(address), address.is_loopback)


class Buckets:
    """A token bucket for each peer: ``burst`` at once, then ``rate_per_s``."""

    def __init__(
        self,
        *,
        rate_per_s: float,
        burst: int,
        max_peers: int = MAX_PEERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._max_peers = max_peers
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left of each, and when that was."""

    def __len__(self) -> int:
        return len(self._levels)

    def wait_s(self, key: str) -> int:
        """For how many whole seconds there is nothing left; 0: there is."""
        left = self._left(key, self._clock())
        return 0 if left >= 1 else max(1, math.ceil((1 - left) / self._rate_per_s))

    def take(self, key: str) -> int:
        """Take one, if there is one: 0. Else the whole seconds until there is."""
        now = self._clock()
        left = self._left(key, now)
        if left < 1:
            return self.wait_s(key)
        self._levels[key] = (left - 1, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._max_peers:
            self._levels.popitem(last=False)
        return 0

    def _left(self, key: str, now: float) -> float:
        left, at = self._levels.get(key, (float(self._burst), now))
        return min(float(self._burst), left + (now - at) * self._rate_per_s)
