"""Aedes as the local broker, in Node: for machines without Mosquitto.

It keeps sessions, queues and retained messages in memory: ``stack/aedes.mjs`` saves them at a clean stop and
takes them up again at the next start, but a crash of the broker loses them. Mosquitto, which writes them to
disk every few seconds, is the better broker wherever it is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from broker.identity import SERVICE_ACCOUNT
from broker.local.access import write_private
from broker.local.node import STACK_SOURCE, NodeStack
from broker.local.process import Program
from broker.local.tls import TlsListener

DEFAULT_PORT: Final = 1883


class AedesFile:
    """The file with the accounts: ``{"passwords": {name: SHA-256 in hex}, "keys": {device id: base64}}``.

    The script checks tokens itself, so each that a device signs is good until it expires.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "accounts.json"

    def prepare(self, service_password: str) -> None:
        """Write the service's account anew; the devices keep theirs."""
        try:
            keys: Any = json.loads(self.path.read_bytes())["keys"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            keys = {}
        self._write(service_password, keys)

    def write(self, service_password: str, keys: Mapping[str, str], *, now: float) -> None:
        """Write all accounts; raises OSError."""
        self._write(service_password, keys)

    def stale(self, now: float) -> bool:
        """Never: there are keys in it, no tokens."""
        return False

    def _write(self, service_password: str, keys: Mapping[str, str]) -> None:
        digest = hashlib.sha256(service_password.encode()).hexdigest()
        document = {"passwords": {SERVICE_ACCOUNT: digest}, "keys": dict(keys)}
        write_private(self.path, json.dumps(document))


def aedes_program(
    stack: NodeStack, directory: Path, file: AedesFile | None = None, tls: TlsListener | None = None
) -> Program:
    """The program that runs ``stack/aedes.mjs`` with its log in ``directory``.

    Without ``file`` it is open to all on this machine.
    """
    script = STACK_SOURCE / "aedes.mjs"
    secure = () if tls is None else _tls(tls)
    authority = b"" if tls is None else tls.files.authority()

    def command(port: int) -> tuple[str, ...]:
        return (
            str(stack.node),
            str(script),
            str(port),
            str(stack.modules),
            str(directory / "sessions.jsonl"),
            *(() if file is None else (str(file.path),)),
            *secure,
        )

    digest = hashlib.sha256(
        f"{stack.node}\n{stack.key}\n{directory}\n{file is None}\n{secure}\n".encode()
        + authority
        + script.read_bytes()
    )
    return Program(
        name="aedes",
        role="broker",
        command=command,
        fingerprint=digest.hexdigest(),
        default_port=DEFAULT_PORT,
    )


def _tls(listener: TlsListener) -> tuple[str, ...]:
    files = listener.files
    return str(listener.port), str(files.ca_file), str(files.certificate_file), str(files.revoked_file)
