"""Aedes as the local broker, in Node: for machines without Mosquitto.

It keeps sessions, queues and retained messages in memory: ``stack/aedes.mjs`` saves them at a clean stop and
takes them up again at the next start, but a crash of the broker loses them. Mosquitto, which writes them to
disk every few seconds, is the better broker wherever it is installed.
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
        return (
            str(stack.node),
            str(script),
            str(port),
            str(stack.modules),
            str(directory / "sessions.jsonl"),
        )

    digest = hashlib.sha256(f"{stack.node}\n{stack.key}\n{directory}\n".encode() + script.read_bytes())
    return Program(
        name="aedes",
        role="broker",
        command=command,
        fingerprint=digest.hexdigest(),
        default_port=DEFAULT_PORT,
    )
