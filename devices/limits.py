"""What this process may open: a fleet needs a file descriptor for each device."""

from __future__ import annotations

import resource
from typing import Final

from devices.errors import FleetStartError

# Beside the devices' own: the event loop, logs, the interpreter's files, sockets on their way out.
RESERVE: Final = 128
MAX_HTTP_CONNECTIONS: Final = 2_000
"""Downloads of a process at once."""


def descriptors_of(devices: int) -> int:
    """How many files a process with so many devices opens: their connections, and their downloads'."""
    return devices + min(devices, MAX_HTTP_CONNECTIONS)


def check_file_descriptors(needed: int) -> None:
    """Raise `FleetStartError`, with the remedy, where the hard limit is below ``needed`` plus a reserve.

    It holds for this process and for those that it starts.
    """
    wanted = needed + RESERVE
    hard = hard_limit()
    if hard is not None and hard < wanted:
        # What a process opens for itself does not grow less by sharing.
        share = ", or share the fleet among more processes (--processes) or hosts (--shard)"
        raise FleetStartError(
            f"a process of this fleet needs {wanted:,} open files and the hard limit is {hard:,}: raise it "
            f"(`ulimit -Hn {wanted}` as root, or LimitNOFILE= in systemd){share if hard > RESERVE else ''}"
        )


def ensure_file_descriptors(needed: int) -> None:
    """Raise the soft limit on open files to ``needed`` plus a reserve.

    Raises `FleetStartError`, with the remedy, where the hard limit is lower.
    """
    wanted = needed + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    check_file_descriptors(needed)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        raise FleetStartError(
            f"a process of this fleet needs {wanted:,} open files and its limit of {soft:,} can't be raised "
            f"({error}): run `ulimit -n {wanted}` first, or share the fleet among more processes "
            "(--processes) or hosts (--shard)"
        ) from error


def hard_limit() -> int | None:
    """How many files a process may open at most; None: any number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else hard
