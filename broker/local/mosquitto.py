"""Mosquitto as the local broker: where it is found and how it is configured.

The configuration is written for fleets of tens of thousands of devices with persistent sessions. Two of
Mosquitto's defaults would lose messages there without a word: at most 1,000 are queued for a client that
is away or slow, and only 20 are in flight to one.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
from pathlib import Path
from typing import Final

from broker.local.process import Program
from broker.private_files import write_private

# Packages of Debian and Homebrew put it where a user's PATH often doesn't reach.
EXTRA_PLACES: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
DEFAULT_PORT: Final = 1883
MAX_INFLIGHT_MESSAGES: Final = 1_000
MAX_QUEUED_MESSAGES: Final = 1_000_000
# The contract's payloads end at 64 KiB; a topic and properties come on top.
MAX_MESSAGE_BYTES: Final = 128 * 1024
AUTOSAVE_INTERVAL_S: Final = 5
SESSION_EXPIRY: Final = "14d"

_CONFIGURATION: Final = """\
# Written by Muster at every start; changes are lost.
listener {port} 127.0.0.1
socket_domain ipv4
allow_anonymous true
user {user}
max_connections -1
max_inflight_messages {inflight}
max_queued_messages {queued}
max_queued_bytes 0
max_packet_size {message_bytes}
set_tcp_nodelay true
persistence true
persistence_location {data}/
persistence_file mosquitto.db
autosave_interval {autosave_s}
persistent_client_expiration {expiry}
connection_messages false
log_dest stderr
log_type error
log_type warning
"""


def find_mosquitto() -> Path | None:
    """Mosquitto's server on PATH, else in the places where packages put it, else None."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(EXTRA_PLACES))
    return None if found is None else Path(found)


def mosquitto_program(executable: Path, directory: Path) -> Program:
    """The program that runs ``executable`` with its configuration, database and log in ``directory``."""

    def configuration(port: int) -> str:
        return _CONFIGURATION.format(
            port=port,
            # Started by root it would become the user "mosquitto", who can't write to the state directory.
            user=pwd.getpwuid(os.geteuid()).pw_name,
            inflight=MAX_INFLIGHT_MESSAGES,
            queued=MAX_QUEUED_MESSAGES,
            message_bytes=MAX_MESSAGE_BYTES,
            data=directory,
            autosave_s=AUTOSAVE_INTERVAL_S,
            expiry=SESSION_EXPIRY,
        )

    def command(port: int) -> tuple[str, ...]:
        path = directory / "mosquitto.conf"
        write_private(path, configuration(port))
        return (str(executable), "-c", str(path))

    return Program(
        name="mosquitto",
        role="broker",
        command=command,
        fingerprint=hashlib.sha256(f"{executable}\n{configuration(0)}".encode()).hexdigest(),
        default_port=DEFAULT_PORT,
    )
