"""Errors of the broker package.

BrokerError
├── ContractError             something on the wire breaks the MQTT contract
│   ├── BadTopicError         a topic that is none of the contract's
│   ├── BadMessageError       a payload that its model refuses
│   └── BadIdError            a device, instance or package id that the contract forbids
└── ...                       connection and local-broker errors: broker.connection, broker.local
"""

from __future__ import annotations


class BrokerError(Exception):
    """Base of every error that this package raises on purpose."""


class ContractError(BrokerError):
    """Something on the wire breaks the MQTT contract; count it, log it, drop it."""


class BadTopicError(ContractError):
    """A topic that is none of the contract's; ``topic`` is the offender."""

    def __init__(self, topic: str, problem: str) -> None:
        super().__init__(f"topic {topic!r}: {problem}")
        self.topic = topic
        self.problem = problem


class BadMessageError(ContractError):
    """A payload that its model refuses; ``topic`` and ``field`` say where, ``problem`` why.

    ``field`` is a dotted path into the payload, or ``"payload"`` when the whole of it is wrong.
    The message never quotes the payload: it may hold a SAS URL.
    """

    def __init__(self, topic: str, field: str, problem: str) -> None:
        super().__init__(f"message on {topic!r}: field {field!r}: {problem}")
        self.topic = topic
        self.field = field
        self.problem = problem


class BadIdError(ContractError):
    """A device, instance or package id that the contract forbids; ``value`` is the offender."""

    def __init__(self, value: str, problem: str) -> None:
        super().__init__(f"id {value!r}: {problem}")
        self.value = value
        self.problem = problem
