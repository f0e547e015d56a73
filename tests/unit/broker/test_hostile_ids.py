"""No topic, payload or label of the contract carries an id that reaches for what is not its device's."""

from __future__ import annotations

import json

import pytest

from broker import messages, topics
from broker.errors import BadIdError, BadMessageError, BadTopicError
from broker.labels import check_label, label_problem
from tests.unit.hostile_ids import HOSTILE_IDS, HOSTILE_LABELS

IDS = pytest.mark.parametrize("hostile", HOSTILE_IDS.values(), ids=HOSTILE_IDS)
LABELS = pytest.mark.parametrize("hostile", HOSTILE_LABELS.values(), ids=HOSTILE_LABELS)
REGISTER = topics.parse("devices/dev-1/register")


@IDS
def test_no_topic_has_one(hostile: str) -> None:
    if hostile == "dev-1/register":
        hostile += "/x"  # or it would be another device's good topic
    for topic in (
        f"devices/{hostile}/register",
        f"devices/{hostile}/events/DownloadStarted",
        f"devices/dev-1/events/{hostile}",
        f"devices/dev-1/{hostile}",
    ):
        with pytest.raises(BadTopicError) as refused:
            topics.parse(topic)
        assert str(refused.value).isprintable(), "one line of a log, and no command to a terminal"


@IDS
def test_no_instance_is_of_one(hostile: str) -> None:
    with pytest.raises(BadIdError):
        topics.check_device_id(hostile)
    with pytest.raises(BadIdError):
        topics.instance_id_of("run-1", hostile)
    with pytest.raises(BadIdError):
        topics.device_id_of(f"run-1:{hostile}")
    payload = {"v": 1, "instance_id": f"run-1:{hostile}", "package_id": "p", "attempt": 1, "size_bytes": 1}
    with pytest.raises(BadMessageError):
        messages.parse_event(
            topics.parse("devices/dev-1/events/DownloadStarted"), json.dumps(payload).encode()
        )


@pytest.mark.parametrize(
    "hostile", ["a/b", "+", "#", "a\0", "a\n", "\u0430", "\uff0f", "\u202e", "", "r" * 201]
)
def test_no_run_is_called_so(hostile: str) -> None:
    with pytest.raises(BadIdError):
        topics.check_run_id(hostile)
    with pytest.raises(BadIdError):
        topics.check_package_id(hostile)


@LABELS
def test_no_device_registers_with_such_a_label(hostile: str) -> None:
    good = {"v": 1, "model": "m", "firmware_version": "1", "tags": {"site": "x"}}
    for change in (
        {"model": hostile},
        {"firmware_version": hostile},
        {"tags": {hostile: "x"}},
        {"tags": {"site": hostile}},
        {"fresh": hostile},
    ):
        with pytest.raises(BadMessageError) as refused:
            messages.parse_register(REGISTER, json.dumps(good | change).encode())
        assert str(refused.value).isprintable()


LANGUAGES = ["thermo-1", "2.1.0+build 7", "Köln", "Челябинск", "東京", "ירושלים", "Straße 1", "Sensor 🌡", ""]


@pytest.mark.parametrize("text", LANGUAGES)
def test_labels_are_of_any_language(text: str) -> None:
    assert check_label(text) == text


def test_another_way_to_write_a_label_is_refused_with_the_one_way() -> None:
    assert label_problem("Ko\u0308ln") == "it has characters that stand for others: write 'Köln'"
    assert label_problem("m\u00b2") == "it has characters that stand for others: write 'm2'"
