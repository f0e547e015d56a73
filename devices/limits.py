"""What this process may open: a fleet needs a file descriptor for each device."""

from __future__ import annotations

import resource

from devices.errors import FleetStartError

# Beside the devices' own: the event loop, logs, the interpreter's files, sockets on their way out.
RESERVE = 128


def ensure_file_descriptors(needed: int) -> None:
    """Raise the soft limit on open files to ``needed`` plus a reserve.

    Raises `FleetStartError`, with the remedy, where the hard limit is lower.
    """
    wanted = needed + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise FleetStartError(
            f"this fleet needs {wanted:,} open files and the hard limit is {hard:,}: raise it "
            f"(`ulimit -Hn {wanted}` as root, or LimitNOFILE= in systemd), or share the fleet among "
            "more processes with --shard"
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        raise FleetStartError(
            f"this fleet needs {wanted:,} open files and its limit of {soft:,} can't be raised ({error}): "
            f"run `ulimit -n {wanted}` first, or share the fleet among more processes with --shard"
        ) from error
