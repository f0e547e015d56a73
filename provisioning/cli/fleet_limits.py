"""Whether a fleet fits on this machine: asked before anything of it is started.

A device is a connection: a file descriptor of its process, one of the broker's, and a local port. Each limit
that is too low would else show as devices that come and go for no reason that they could tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from devices.errors import FleetStartError
from devices.limits import RESERVE, check_file_descriptors, descriptors_of, hard_limit
from provisioning.settings import MAX_FLEET_PROCESSES

PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
# What a broker opens besides its devices: its listener, log and database, the service, others' clients.
BROKER_RESERVE: Final = 64


def check_machine(*, devices: int, processes: int, devices_in_all: int, broker_files: int | None) -> None:
    """Raise FleetStartError, which names the limit and the remedy, for a fleet that is too large for it.

    ``devices_in_all`` are those of this host, this fleet's among them; ``broker_files`` is how many files
    the broker may open, None where it is somebody else's.
    """
    check_file_descriptors(descriptors_of(-(-devices // processes)))
    if broker_files is not None and devices_in_all + BROKER_RESERVE > broker_files:
        wanted = devices_in_all + BROKER_RESERVE
        raise FleetStartError(
            f"the broker would need {wanted:,} open files for all devices here, and the hard limit is "
            f"{broker_files:,}: raise it (`ulimit -Hn {wanted}` as root, or LimitNOFILE= in systemd) and "
            "start the service again, or launch a smaller fleet"
        )
    ports = local_ports()
    if ports is not None and devices_in_all > ports:
        raise FleetStartError(
            f"{devices_in_all:,} devices on this host need as many local ports, and there are {ports:,}: "
            f'widen the range (`sysctl -w net.ipv4.ip_local_port_range="1024 65535"` as root), or share '
            "the fleet among hosts (--shard 1/2)"
        )


def local_ports() -> int | None:
    """How many connections to one address this host can have at once; None where it does not say."""
    try:
        low, high = map(int, PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        return None
    return high - low + 1


def processes_for(devices: int) -> int:
    """How many processes it takes so that each may open what its share of the devices needs."""
    hard = hard_limit()
    if hard is None:
        return 1
    return next(
        (
            processes
            for processes in range(1, MAX_FLEET_PROCESSES + 1)
            if descriptors_of(-(-devices // processes)) + RESERVE <= hard
        ),
        MAX_FLEET_PROCESSES,
    )
