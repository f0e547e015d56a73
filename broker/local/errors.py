"""Errors of the local stack.

BrokerError
└── LocalStackError           the local broker, Azurite or what they need
    ├── PortInUseError        the port that was asked for belongs to another program
    ├── StackInUseError       another Muster process looks after this state directory's stack
    ├── StartError            a program of the stack didn't come up; its last log lines are in the message
    ├── MissingProgramError   a program that was asked for is not installed
    └── InstallError          Node or the npm packages could not be fetched
"""

from __future__ import annotations

from broker.errors import BrokerError


class LocalStackError(BrokerError):
    """Base of the local stack's errors; every message ends with what to do."""


class PortInUseError(LocalStackError):
    """The port that was asked for belongs to another program; ``port`` and ``name`` say which."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(
            f"port {port} on 127.0.0.1 is in use by another program, so {name} can't listen there: "
            "stop that program, or choose another port (0 takes any free one)"
        )
        self.name = name
        self.port = port


class StackInUseError(LocalStackError):
    """Another Muster process looks after the program ``name`` of this state directory."""

    def __init__(self, name: str, directory: str) -> None:
        super().__init__(
            f"{name} in {directory} is looked after by another Muster process: "
            "stop that one first ('muster down'), or use another state directory"
        )
        self.name = name
        self.directory = directory


class StartError(LocalStackError):
    """A program of the stack didn't come up; the message ends with its last log lines."""


class MissingProgramError(LocalStackError):
    """A program that was asked for by name is not installed."""


class InstallError(LocalStackError):
    """Node or the npm packages could not be fetched."""
