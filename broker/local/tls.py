"""A second listener of the local broker, by TLS, for devices with a certificate."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.local.access import write_private
from broker.local.errors import PortInUseError
from broker.local.ports import any_free_port, is_free
from broker.local.records import read_record

DEFAULT_PORT: Final = 8883
_PORT_FILE: Final = "broker-tls-port"


@dataclass(frozen=True, kw_only=True)
class TlsFilesOfBroker:
    """What the listener goes by, each in PEM. The broker reads them again when it is told to reload."""

    ca_file: Path
    """Whose certificates it takes."""
    certificate_file: Path
    """Its own key and certificate."""
    revoked_file: Path
    """Those that it takes no more: a revocation list."""

    def authority(self) -> bytes:
        """The authority's certificate: a broker that runs can't change to another one."""
        return self.ca_file.read_bytes()


@dataclass(frozen=True, kw_only=True)
class TlsListener:
    """The listener with its port."""

    port: int
    files: TlsFilesOfBroker


def choose_port(directory: Path, requested: int | None) -> int:
    """The port of the listener of the broker in ``directory``: that of the last time wherever it can be.

    ``requested`` is as in `broker.local.start_broker`. Raises `PortInUseError`.
    """
    file = directory.parent / _PORT_FILE
    previous = None
    with contextlib.suppress(OSError, ValueError):
        previous = int(file.read_text(encoding="ascii"))
    record = read_record(directory)
    # A broker that was left running, and will be adopted or ended, holds the port itself.
    ours = previous if record is not None and record.process() is not None else None
    if requested:
        if requested != ours and not is_free(requested):
            raise PortInUseError("the broker's TLS listener", requested)
        port = requested
    else:
        candidates = [previous, DEFAULT_PORT if requested is None else None]
        port = next((p for p in candidates if p is not None and (p == ours or is_free(p))), any_free_port())
    write_private(file, f"{port}\n")
    return port
