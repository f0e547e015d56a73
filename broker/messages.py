"""The messages of the MQTT contract: one frozen model each, validated on both ends.

Every payload is a JSON object of at most `MAX_PAYLOAD_BYTES` with ``"v": 1``. Unknown fields are
ignored, so that either end may be newer; types are strict, so that a string is never a number.
``model.to_json()`` gives the bytes to publish, ``parse_*`` turn bytes into a model or raise
`broker.errors.BadMessageError`, which names the topic and the field.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from broker.errors import BadIdError, BadMessageError
from broker.labels import check_label
from broker.topics import (
    MAX_INSTANCE_ID_CHARS,
    MAX_PACKAGE_ID_CHARS,
    TOKEN_CLASS,
    Topic,
    device_id_of,
    instance_id_of,
)

__all__ = [
    "COMMANDS",
    "DURABLE_EVENTS",
    "EVENTS",
    "MAX_DETAIL_CHARS",
    "MAX_PACKAGE_BYTES",
    "MAX_PAYLOAD_BYTES",
    "Activate",
    "ActivationCompleted",
    "ActivationFailed",
    "Cancel",
    "Command",
    "DownloadCompletedAck",
    "DownloadFailed",
    "DownloadProgress",
    "DownloadStarted",
    "Event",
    "Message",
    "Package",
    "PackageRejected",
    "Presence",
    "Register",
    "device_id_of",
    "instance_id_of",
    "parse_command",
    "parse_event",
    "parse_package",
    "parse_presence",
    "parse_register",
]

MAX_PAYLOAD_BYTES: Final = 64 * 1024
MAX_PACKAGE_BYTES: Final = 4 * 1024**3
MAX_ATTEMPT: Final = 1_000_000
MAX_URL_CHARS: Final = 8_192
MAX_DETAIL_CHARS: Final = 1_000
MAX_LABEL_CHARS: Final = 200
MAX_TAGS: Final = 64


def _check_instance_id(value: str) -> str:
    try:
        device_id_of(value)
    except BadIdError as error:
        raise ValueError(error.problem) from None
    return value


InstanceId = Annotated[
    str, StringConstraints(max_length=MAX_INSTANCE_ID_CHARS), AfterValidator(_check_instance_id)
]
PackageId = Annotated[str, StringConstraints(max_length=MAX_PACKAGE_ID_CHARS, pattern=rf"^{TOKEN_CLASS}+$")]
Label = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS), AfterValidator(check_label)
]
TagValue = Annotated[str, StringConstraints(max_length=MAX_LABEL_CHARS), AfterValidator(check_label)]
Slug = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Detail = Annotated[str, StringConstraints(max_length=MAX_DETAIL_CHARS)]
Sha256Hex = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[0-9a-fA-F]{64}$")]
Ed25519Signature = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]
SizeBytes = Annotated[int, Field(ge=0, le=MAX_PACKAGE_BYTES)]
Attempt = Annotated[int, Field(ge=1, le=MAX_ATTEMPT)]
Url = Annotated[str, StringConstraints(max_length=MAX_URL_CHARS, pattern=r"^https?://[^\s]+$")]
# Not strict: JSON has no time type, and callers may hold an ISO 8601 string already.
Instant = Annotated[AwareDatetime, Field(strict=False)]


class Message(BaseModel):
    """Base of every message: version 1, frozen, strict types, unknown fields ignored."""

    # repr and error texts never show the input: a package's URL is a secret.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)

    v: Literal[1] = 1

    def to_json(self) -> bytes:
        """The payload to publish, without absent fields.

        Raises `BadMessageError` if it is longer than `MAX_PAYLOAD_BYTES`.
        """
        payload = self.model_dump_json(exclude_none=True).encode()
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise BadMessageError(type(self).__name__, "payload", _too_long(len(payload)))
        return payload


class Presence(Message):
    """Whether a device is connected; retained, and the ``offline`` one is its will."""

    state: Literal["online", "offline"]
    at: Instant | None = None


class Register(Message):
    """What a device is; published on every connection.

    ``fresh`` is there when the device, or its session at the broker, remembers nothing of what was said
    before: it was started, or the broker has lost the session. What was under way is then said again.
    Its value is a token, another one each time, so that the same news delivered twice is known as such.
    """

    model: Label
    firmware_version: Label
    tags: Annotated[dict[Label, TagValue], Field(max_length=MAX_TAGS)] = Field(default_factory=dict)
    fresh: Label | None = None


class Package(Message):
    """A package that is ready for a device.

    ``sha256`` is that of the whole package; ``signature`` is the base64 Ed25519 signature, by the
    key ``key_id``, over the 32 raw bytes of that hash. ``url`` is a SAS URL, valid until
    ``expires_at``: it is left out of ``repr``. ``ack_timeout_s`` is how long the service waits for an answer
    before it sends the package again.
    """

    instance_id: InstanceId
    package_id: PackageId
    release: Label
    attempt: Attempt
    url: Annotated[Url, Field(repr=False)]
    size_bytes: SizeBytes
    sha256: Sha256Hex
    signature: Ed25519Signature
    key_id: Label
    expires_at: Instant
    ack_timeout_s: Annotated[float, Field(gt=0)] | None = None


class Event(Message):
    """Base of what a device tells about one attempt at one package; the class name is the event's."""

    instance_id: InstanceId
    package_id: PackageId
    attempt: Attempt
    at: Instant | None = None


class DownloadStarted(Event):
    """Telemetry: the first byte was asked for."""

    size_bytes: SizeBytes


class DownloadProgress(Event):
    """Telemetry: how far the download is."""

    received_bytes: SizeBytes
    size_bytes: SizeBytes


class DownloadCompletedAck(Event):
    """The package arrived whole and its size, hash and signature were verified."""

    size_bytes: SizeBytes
    sha256: Sha256Hex


class DownloadFailed(Event):
    """The device gave up on this attempt; a new one may succeed."""

    reason: Slug
    detail: Detail = ""


class PackageRejected(Event):
    """The device will not install this package, whatever the attempt."""

    reason: Slug
    detail: Detail = ""


class ActivationCompleted(Event):
    """The package runs; ``firmware_version`` is what the device now has."""

    firmware_version: Label


class ActivationFailed(Event):
    """The package was downloaded and does not run."""

    reason: Slug
    detail: Detail = ""


class Command(Message):
    """Base of what the service tells a device to do; the class name is the command's."""

    instance_id: InstanceId


class Activate(Command):
    """Step 4: install and run the package that was acknowledged."""

    package_id: PackageId
    release: Label
    attempt: Attempt


class Cancel(Command):
    """Forget the provisioning under way."""

    reason: Detail = ""


EVENTS: Final[dict[str, type[Event]]] = {
    model.__name__: model
    for model in (
        DownloadStarted,
        DownloadProgress,
        DownloadCompletedAck,
        DownloadFailed,
        PackageRejected,
        ActivationCompleted,
        ActivationFailed,
    )
}
# The events that become external events of an orchestration; the others are telemetry.
DURABLE_EVENTS: Final = frozenset(EVENTS) - {DownloadStarted.__name__, DownloadProgress.__name__}
COMMANDS: Final[dict[str, type[Command]]] = {model.__name__: model for model in (Activate, Cancel)}

MessageT = TypeVar("MessageT", bound=Message)


def parse_presence(topic: Topic, payload: bytes) -> Presence:
    """A device's presence; raises `BadMessageError`."""
    return _parse(Presence, topic, payload)


def parse_register(topic: Topic, payload: bytes) -> Register:
    """A device's registration; raises `BadMessageError`."""
    return _parse(Register, topic, payload)


def parse_package(topic: Topic, payload: bytes) -> Package:
    """A package for a device; raises `BadMessageError`."""
    return _parse(Package, topic, payload)


def parse_event(topic: Topic, payload: bytes) -> Event:
    """The event that ``topic.name`` names; raises `BadMessageError`, also for an unknown name."""
    if (model := EVENTS.get(topic.name or "")) is None:
        raise BadMessageError(str(topic), "name", f"unknown event {topic.name!r}")
    return _parse(model, topic, payload)


def parse_command(topic: Topic, payload: bytes) -> Command:
    """The command that ``topic.name`` names; raises `BadMessageError`, also for an unknown name."""
    if (model := COMMANDS.get(topic.name or "")) is None:
        raise BadMessageError(str(topic), "name", f"unknown command {topic.name!r}")
    return _parse(model, topic, payload)


def _parse(model: type[MessageT], topic: Topic, payload: bytes) -> MessageT:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise BadMessageError(str(topic), "payload", _too_long(len(payload)))
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "payload"
        raise BadMessageError(str(topic), field, first["msg"]) from None


def _too_long(size_bytes: int) -> str:
    return f"{size_bytes} bytes long, the limit is {MAX_PAYLOAD_BYTES}"
