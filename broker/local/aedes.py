"""Aedes as the local broker, in Node: for machines without Mosquitto.

It speaks MQTT 3.1 and 3.1.1 only, and keeps sessions, queues and retained messages in memory, written to a
file when it is stopped (see ``stack/aedes.mjs``); Mosquitto is the better broker wherever it is installed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from broker.local.node import STACK_SOURCE, NodeStack
from broker.local.process import Program

DEFAULT_PORT: Final = 1883


def aedes_program(stack: NodeStack, directory: Path) -> Program:
    """The program that runs ``stack/aedes.mjs`` with its log in ``directory``."""
    script = STACK_SOURCE / "aedes.mjs"

    def command(port: int) -> tuple[str, ...]:
        return (str(stack.node), str(script), str(port), str(stack.modules))

    digest = hashlib.sha256(f"{stack.node}\n{stack.key}\n{directory}\n".encode() + script.read_bytes())
    return Program(
        name="aedes",
        role="broker",
        command=command,
        fingerprint=digest.hexdigest(),
        default_port=DEFAULT_PORT,
    )
