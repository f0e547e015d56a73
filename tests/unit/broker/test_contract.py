"""The MQTT contract: what its topics, ids and messages accept, refuse and look like on the wire."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker import messages, topics
from broker.errors import BadIdError, BadMessageError, BadTopicError, BrokerError

DEVICE_IDS = st.from_regex(topics.DEVICE_ID_PATTERN, fullmatch=True)
NAMES = st.from_regex(topics.NAME_PATTERN, fullmatch=True)
RUN_IDS = st.from_regex(rf"{topics.TOKEN_CLASS}{{1,200}}", fullmatch=True)

PACKAGE: dict[str, Any] = {
    "v": 1,
    "instance_id": "run-1:dev-00001",
    "package_id": "pkg-1",
    "release": "demo-1.0.0",
    "attempt": 1,
    "url": "http://127.0.0.1:10000/devstoreaccount1/packages/a.zip?sig=SECRET",
    "size_bytes": 65536,
    "sha256": "ab" * 32,
    "signature": "A" * 86 + "==",
    "key_id": "key-1",
    "expires_at": "2030-01-01T00:00:00Z",
}
ON_PACKAGE = topics.Topic(device_id="dev-00001", kind="package")


def package_with(**changes: Any) -> bytes:
    fields = {key: value for key, value in (PACKAGE | changes).items() if value is not ...}
    return json.dumps(fields).encode()


@given(DEVICE_IDS, NAMES)
def test_every_built_topic_parses_back(device_id: str, name: str) -> None:
    for text, kind, parsed_name in (
        (topics.presence(device_id), "presence", None),
        (topics.register(device_id), "register", None),
        (topics.package(device_id), "package", None),
        (topics.event(device_id, name), "event", name),
        (topics.command(device_id, name), "command", name),
    ):
        topic = topics.parse(text)
        assert (topic.device_id, topic.kind, topic.name) == (device_id, kind, parsed_name)
        assert str(topic) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "devices",
        "devices/dev-1",
        "devices//presence",
        "devices/.dev/presence",
        "devices/dev-1/nonsense",
        "devices/dev-1/events",
        "devices/dev-1/events/",
        "devices/dev-1/events/+",
        "devices/dev-1/events/A/B",
        "devices/dev-1/presence/extra",
        "devices/dev-1/presence\n",
        "devices/" + "d" * 65 + "/presence",
        "things/dev-1/presence",
    ],
)
def test_a_foreign_topic_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadTopicError) as caught:
        topics.parse(text)
    assert caught.value.topic == text
    assert isinstance(caught.value, BrokerError)


@given(RUN_IDS, DEVICE_IDS)
def test_an_instance_id_gives_its_device_back_even_when_the_run_id_holds_colons(
    run_id: str, device_id: str
) -> None:
    assert topics.device_id_of(topics.instance_id_of(run_id, device_id)) == device_id


@pytest.mark.parametrize("run_id", ["", "a/b", "a+b", "a#b", "a\0b", "é", "x" * 201, "tab\t", "a\n"])
def test_a_run_id_that_would_break_a_topic_is_refused(run_id: str) -> None:
    with pytest.raises(BadIdError):
        topics.instance_id_of(run_id, "dev-1")


@pytest.mark.parametrize("instance_id", ["", "dev-1", ":dev-1", "run:", "run:a b", "run:dev-1\n"])
def test_an_instance_id_without_run_and_device_is_refused(instance_id: str) -> None:
    with pytest.raises(BadIdError):
        topics.device_id_of(instance_id)


def test_a_package_survives_the_wire_and_hides_its_url() -> None:
    package = messages.parse_package(ON_PACKAGE, package_with(later_field=[1]))
    assert package.expires_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert messages.parse_package(ON_PACKAGE, package.to_json()) == package
    assert json.loads(package.to_json()) == PACKAGE
    assert "SECRET" not in repr(package)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 2),
        ("v", ...),
        ("instance_id", "no-colon"),
        ("instance_id", "a/b:dev-1"),
        ("package_id", "a/b"),
        ("package_id", ""),
        ("attempt", 0),
        ("attempt", "1"),
        ("url", "file:///etc/passwd"),
        ("url", "http://x/" + "y" * 9000),
        ("size_bytes", -1),
        ("size_bytes", 2**40),
        ("sha256", "ab" * 31),
        ("sha256", "zz" * 32),
        ("signature", "short"),
        ("expires_at", "2030-01-01T00:00:00"),
        ("release", ...),
    ],
)
def test_a_bad_field_is_named_and_never_quoted(field: str, value: Any) -> None:
    if field == "v" and value is ...:
        # Absent means version 1: the first shell scripts that join need not know of versions.
        assert messages.parse_package(ON_PACKAGE, package_with(v=...)).v == 1
        return
    with pytest.raises(BadMessageError) as caught:
        messages.parse_package(ON_PACKAGE, package_with(**{field: value}))
    assert caught.value.field == field
    assert caught.value.topic == "devices/dev-00001/package"
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"v":1}' + b" " * 65536])
def test_a_payload_that_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(BadMessageError):
        messages.parse_register(topics.Topic(device_id="d", kind="register"), payload)


@given(st.binary(max_size=200))
def test_no_payload_makes_a_parser_raise_anything_else(payload: bytes) -> None:
    for parse, topic in (
        (messages.parse_presence, topics.Topic(device_id="d", kind="presence")),
        (messages.parse_event, topics.Topic(device_id="d", kind="event", name="DownloadFailed")),
        (messages.parse_command, topics.Topic(device_id="d", kind="command", name="Cancel")),
    ):
        try:
            parse(topic, payload)
        except BadMessageError as error:
            assert error.field  # noqa: PT017 (either outcome is right; only the kind of error counts)


def test_events_and_commands_are_found_by_their_names() -> None:
    common = {"instance_id": "r:d", "package_id": "p", "attempt": 2}
    extra: dict[str, dict[str, Any]] = {
        "DownloadStarted": {"size_bytes": 5},
        "DownloadProgress": {"received_bytes": 2, "size_bytes": 5},
        "DownloadCompletedAck": {"size_bytes": 5, "sha256": "AB" * 32},
        "DownloadFailed": {"reason": "expired-url"},
        "PackageRejected": {"reason": "wrong-model", "detail": "x"},
        "ActivationCompleted": {"firmware_version": "1.0"},
        "ActivationFailed": {"reason": "no-space"},
    }
    assert set(extra) == set(messages.EVENTS)
    for name, fields in extra.items():
        topic = topics.Topic(device_id="d", kind="event", name=name)
        event = messages.parse_event(topic, json.dumps(common | fields).encode())
        assert type(event).__name__ == name
        assert messages.parse_event(topic, event.to_json()) == event
    assert messages.EVENTS.keys() - messages.DURABLE_EVENTS == {"DownloadStarted", "DownloadProgress"}
    activate = messages.parse_command(
        topics.Topic(device_id="d", kind="command", name="Activate"),
        json.dumps(common | {"release": "demo-1.0.0"}).encode(),
    )
    assert isinstance(activate, messages.Activate)
    with pytest.raises(BadMessageError, match="unknown event"):
        messages.parse_event(topics.Topic(device_id="d", kind="event", name="Nonsense"), b"{}")
    with pytest.raises(BadMessageError, match="unknown command"):
        messages.parse_command(topics.Topic(device_id="d", kind="command", name="Nonsense"), b"{}")


def test_hashes_compare_whatever_the_case_they_were_sent_in() -> None:
    upper = messages.parse_package(ON_PACKAGE, package_with(sha256="AB" * 32))
    assert upper.sha256 == "ab" * 32


def test_a_message_is_frozen_and_absent_fields_stay_off_the_wire() -> None:
    online = messages.Presence(state="online")
    assert online.to_json() == b'{"v":1,"state":"online"}'
    with pytest.raises(ValidationError):
        online.__setattr__("state", "offline")


def test_a_message_too_long_for_the_broker_is_refused_before_it_is_sent() -> None:
    tags = {f"{index:02}" + "🦉" * 190: "🦉" * 200 for index in range(messages.MAX_TAGS)}
    register = messages.Register(model="m", firmware_version="1", tags=tags)
    with pytest.raises(BadMessageError, match="limit is 65536"):
        register.to_json()
