"""The topics of the MQTT contract, and the ids that appear in them.

| topic                              | direction | kind         |
|------------------------------------|-----------|--------------|
| ``devices/{device_id}/presence``   | device →  | ``presence`` |
| ``devices/{device_id}/register``   | device →  | ``register`` |
| ``devices/{device_id}/package``    | → device  | ``package``  |
| ``devices/{device_id}/events/{E}`` | device →  | ``event``    |
| ``devices/{device_id}/commands/{C}``| → device | ``command``  |

All of them carry QoS 1 messages (`broker.messages`); presence is retained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from broker.errors import BadIdError, BadTopicError

Kind = Literal["presence", "register", "package", "event", "command"]

QOS: Final = 1
MAX_DEVICE_ID_CHARS: Final = 64
MAX_RUN_ID_CHARS: Final = 200
MAX_PACKAGE_ID_CHARS: Final = 200
MAX_INSTANCE_ID_CHARS: Final = MAX_RUN_ID_CHARS + 1 + MAX_DEVICE_ID_CHARS

DEVICE_ID_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
NAME_PATTERN: Final = r"[A-Za-z][A-Za-z0-9]{0,63}"
# Printable ASCII without the characters that MQTT gives a meaning (/ + #); the space is printable.
TOKEN_CLASS: Final = r"[ -\"$-*,-.0-~]"  # noqa: S105 (a character class, not a secret)

ALL_PRESENCE: Final = "devices/+/presence"
ALL_REGISTER: Final = "devices/+/register"
ALL_EVENTS: Final = "devices/+/events/+"

_DEVICE_ID: Final = re.compile(DEVICE_ID_PATTERN)
_NAME: Final = re.compile(NAME_PATTERN)
_TOKEN: Final = re.compile(f"{TOKEN_CLASS}+")
_PLAIN_KINDS: Final[dict[str, Kind]] = {
    "presence": "presence",
    "register": "register",
    "package": "package",
}
_NAMED_KINDS: Final[dict[str, Kind]] = {"events": "event", "commands": "command"}
_FOLDER_OF: Final[dict[Kind, str]] = {"event": "events", "command": "commands"}
assert {*_PLAIN_KINDS.values(), *_NAMED_KINDS.values()} == set(get_args(Kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """A parsed topic; ``name`` is the event's or command's name, else None. ``str()`` gives it back."""

    device_id: str
    kind: Kind
    name: str | None = None

    def __str__(self) -> str:
        folder = _FOLDER_OF.get(self.kind, self.kind)
        tail = f"/{self.name}" if self.name is not None else ""
        return f"devices/{self.device_id}/{folder}{tail}"


def is_device_id(text: str) -> bool:
    """Whether ``text`` may be a device id."""
    return _DEVICE_ID.fullmatch(text) is not None


def check_device_id(text: str) -> str:
    """Return ``text`` if it may be a device id; raises `BadIdError` otherwise."""
    if not is_device_id(text):
        raise BadIdError(
            text,
            f"a device id is 1 to {MAX_DEVICE_ID_CHARS} letters, digits, '.', '_' or '-', "
            "and begins with a letter or digit",
        )
    return text


def check_run_id(text: str) -> str:
    """Return ``text`` if it may be a run id; raises `BadIdError` otherwise."""
    return _check_token(text, "run id", MAX_RUN_ID_CHARS)


def check_package_id(text: str) -> str:
    """Return ``text`` if it may be a package id; raises `BadIdError` otherwise."""
    return _check_token(text, "package id", MAX_PACKAGE_ID_CHARS)


def instance_id_of(run_id: str, device_id: str) -> str:
    """The orchestration instance of one device in one run; raises `BadIdError`."""
    return f"{check_run_id(run_id)}:{check_device_id(device_id)}"


def device_id_of(instance_id: str) -> str:
    """The device that an orchestration instance is about: what follows the last ':'.

    Raises `BadIdError` when ``instance_id`` is not ``"{run_id}:{device_id}"``.
    """
    run_id, colon, device_id = instance_id.rpartition(":")
    if not colon:
        raise BadIdError(instance_id, "an instance id is '{run_id}:{device_id}'")
    check_run_id(run_id)
    return check_device_id(device_id)


def presence(device_id: str) -> str:
    """Topic of a device's retained presence."""
    return f"devices/{device_id}/presence"


def register(device_id: str) -> str:
    """Topic on which a device registers."""
    return f"devices/{device_id}/register"


def package(device_id: str) -> str:
    """Topic on which a device receives its packages."""
    return f"devices/{device_id}/package"


def event(device_id: str, name: str) -> str:
    """Topic of one event of a device."""
    return f"devices/{device_id}/events/{name}"


def command(device_id: str, name: str) -> str:
    """Topic of one command to a device; the name ``"+"`` subscribes to all of them."""
    return f"devices/{device_id}/commands/{name}"


def parse(topic: str) -> Topic:
    """Take a topic apart; raises `BadTopicError` for one that is none of the contract's."""
    parts = topic.split("/")
    if len(parts) not in (3, 4) or parts[0] != "devices":
        raise BadTopicError(topic, "expected devices/{device_id}/{kind}")
    device_id, folder = parts[1], parts[2]
    if not is_device_id(device_id):
        raise BadTopicError(topic, "its second level is no device id")
    if len(parts) == 3:
        if (kind := _PLAIN_KINDS.get(folder)) is None:
            raise BadTopicError(topic, f"unknown kind {folder!r}")
        return Topic(device_id=device_id, kind=kind)
    if (kind := _NAMED_KINDS.get(folder)) is None:
        raise BadTopicError(topic, f"unknown kind {folder!r}")
    if not _NAME.fullmatch(parts[3]):
        raise BadTopicError(topic, f"{parts[3]!r} is no {kind} name")
    return Topic(device_id=device_id, kind=kind, name=parts[3])


def _check_token(text: str, what: str, max_chars: int) -> str:
    if len(text) > max_chars or not _TOKEN.fullmatch(text):
        raise BadIdError(
            text, f"a {what} is 1 to {max_chars} printable ASCII characters without '/', '+', '#'"
        )
    return text
