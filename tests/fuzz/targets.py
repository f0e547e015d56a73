"""What is fuzzed: each target takes any bytes, and raises nothing but what its callers are told of.

A target is a parser of what others say: devices, a broker, callers of the API, files that somebody wrote.
What it lets through has to hold, which the target checks too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from broker import messages, topics
from broker.address import BrokerAddress, BrokerAddressError, holds_password
from broker.errors import BadIdError, BadMessageError, BadTopicError
from broker.identity import (
    GroupKeyError,
    TokenError,
    check_token,
    device_key,
    make_token,
    read_group_key,
    read_token,
)
from broker.labels import label_problem
from broker.local.records import RECORD_FILE, read_record
from broker.masking import masked
from devices import packets
from devices.control import ControlServer
from devices.errors import ConnectionLostError, FleetSpecError
from devices.fleet_file import FleetFile, load_fleet_file
from devices.roster import Change
from devices.spec import FleetSpec
from provisioning.cli.client import SERVICE_RECORD, read_service_record
from provisioning.cli.errors import UsageError
from provisioning.cli.fleet_records import FleetBook
from provisioning.cli.rollout.plan_file import key_of, load_plan_file
from provisioning.errors import RequestError, SettingsError
from provisioning.http.conditions import is_unchanged, wanted
from provisioning.releases.firmware import Staged
from provisioning.releases.records import NewRelease, ReleaseError
from provisioning.releases.uploads import Form, read_form
from provisioning.rollouts.plan import RolloutPlan
from provisioning.settings import EngineSettings, RunOptions

BOUNDARY: Final = "b"


def fuzz_topics(data: bytes) -> None:
    """A topic is one of the contract's, and the same again, or refused."""
    text = data.decode("utf-8", "surrogateescape")
    topic = _refused(BadTopicError, topics.parse, text)
    if topic is None:
        return
    assert str(topic) == text
    assert topic.device_id.isascii()
    with contextlib.suppress(BadIdError):
        assert topics.device_id_of(text) == topic.device_id


def fuzz_messages(data: bytes) -> None:
    """A payload is a message that can be sent on, or refused without being quoted."""
    parsers: list[tuple[str, Callable[[topics.Topic, bytes], messages.Message]]] = [
        ("presence", messages.parse_presence),
        ("register", messages.parse_register),
        ("package", messages.parse_package),
        *((f"events/{name}", messages.parse_event) for name in (*messages.EVENTS, "Unknown")),
        *((f"commands/{name}", messages.parse_command) for name in (*messages.COMMANDS, "Unknown")),
    ]
    tail, parse = parsers[data[0] % len(parsers)] if data else parsers[0]
    topic, payload = topics.parse(f"devices/dev-1/{tail}"), data[1:]
    message = _refused(BadMessageError, parse, topic, payload)
    if message is None:
        return
    with contextlib.suppress(BadMessageError):  # without the spaces of others it may still be too long
        assert parse(topic, message.to_json()) == message


def _refused(error: type[Exception], parse: Callable[..., Any], *given: Any) -> Any:
    """What is parsed, or None where it is refused in one line that a log can have."""
    try:
        return parse(*given)
    except error as refused:
        if not str(refused).isprintable():
            raise AssertionError(repr(str(refused))) from refused
        return None


def fuzz_packets(data: bytes) -> None:
    """What a broker sends is the same packets wherever it is cut, or ends the connection."""
    cut = data[0] % (len(data) or 1) if data else 0
    with contextlib.suppress(ConnectionLostError):
        whole, rest = packets.split(data)
        first, begun = packets.split(data[:cut])
        second, end = packets.split(begun + data[cut:])
        assert (first + second, end) == (whole, rest)
        for head, body in whole:
            for read in (packets.read_connack, packets.read_packet_id):
                with contextlib.suppress(ConnectionLostError):
                    read(body)
            with contextlib.suppress(ConnectionLostError):
                message = packets.read_publish(head, body)
                assert len(message.payload) <= len(body)


def fuzz_addresses(data: bytes) -> None:
    """A broker's URL, and an engine's endpoint; no error repeats a password."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(BrokerAddressError):
        address = BrokerAddress.parse(text)
        assert address.password is None or holds_password(text)
        assert BrokerAddress.parse(address.url).host == address.host
    with contextlib.suppress(SettingsError):
        EngineSettings.read({"MUSTER_ENGINE": "durabletask", "MUSTER_ENGINE_ENDPOINT": text})


def fuzz_tokens(data: bytes) -> None:
    """A device's token: taken apart or refused, and good only as it was made."""
    text = data.decode("utf-8", "surrogateescape")
    key = device_key(b"k" * 32, "dev-1")
    with contextlib.suppress(TokenError):
        token = check_token(text, device_id="dev-1", key=key, now=0.0)
        # The same token may be written in several ways: %2f is %2F.
        assert token == read_token(make_token(key, "dev-1", token.expires_at))
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(GroupKeyError):
        file.write(data)
        file.flush()
        read_group_key(Path(file.name))


def fuzz_labels(data: bytes) -> None:
    """A label can be printed, and is written in one way."""
    text = data.decode("utf-8", "surrogateescape")
    if label_problem(text) is None:
        assert all(character.isprintable() for character in text)
        assert text.strip() == text or not text.isascii()


def fuzz_masking(data: bytes) -> None:
    """No signature survives, whatever is around it."""
    text = data.decode("utf-8", "replace")
    assert "s3cr3t" not in masked(f"{text}?sv=1&sig=s3cr3t")
    assert masked(masked(text)) == masked(text)


def fuzz_uploads(data: bytes) -> None:
    """A multipart body, in two pieces."""
    cut = data[0] % (len(data) or 1) if data else 0

    async def pieces() -> AsyncIterator[bytes]:
        yield data[:cut]
        yield data[cut:]

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "firmware")
        form = Form()
        try:
            with contextlib.suppress(RequestError, ReleaseError):
                asyncio.run(
                    read_form(
                        f"multipart/form-data; boundary={BOUNDARY}", pieces(), lambda: Staged(path), form
                    )
                )
                _new_release({name: values[0] for name, values in form.fields.items()})
        finally:
            if form.staged is not None:
                form.staged.discard()
        assert not path.exists()
    with contextlib.suppress(RequestError, ReleaseError):
        kind = data.decode("latin-1")
        asyncio.run(read_form(kind, pieces(), lambda: cast(Staged, None), Form()))


def _new_release(fields: dict[str, str]) -> None:
    NewRelease.read(
        name=fields.get("name"),
        version=fields.get("version"),
        models=[fields.get("model", "m")],
        configuration=fields.get("configuration"),
        notes=fields.get("notes"),
        generated_size_bytes=fields.get("generated_size_bytes"),
    )


def fuzz_releases(data: bytes) -> None:
    """A release's fields, and its configuration filled in."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(ReleaseError):
        release = NewRelease.read(name="fw", version="1", configuration=text)
        record = release.record(sha256="0" * 64, size_bytes=1, created_at=0.0)
        tags = dict.fromkeys(record.tags, "x")
        json.dumps(record.configure(device_id="d", model="m", tags=tags)).encode()
    for field in ("name", "version", "generated_size_bytes", "notes"):
        with contextlib.suppress(ReleaseError):
            _new_release({"name": "fw", "version": "1", field: text})


def fuzz_conditions(data: bytes) -> None:
    """ETags of If-Match and If-None-Match."""
    text = data.decode("latin-1")
    is_unchanged(text, "v1")
    found = wanted(text)
    assert found is None or all('"' not in tag for tag in found)


def fuzz_plans(data: bytes) -> None:
    """A rollout's plan from JSON and TOML, and the options of runs."""
    with _file(data, ".json") as path, contextlib.suppress(UsageError):
        _plan(load_plan_file(path).document)
    with _file(data, ".toml") as path, contextlib.suppress(UsageError):
        _plan(load_plan_file(path).document)
    key_of(data.decode("utf-8", "replace"))


def _plan(document: Any) -> None:
    with contextlib.suppress(SettingsError):
        plan = RolloutPlan.from_json(document)
        assert RolloutPlan.from_json(plan.to_json()) == plan
    with contextlib.suppress(SettingsError):
        options = RunOptions.from_json(document)
        assert RunOptions.from_json(options.to_json()) == options
    with contextlib.suppress(SettingsError):
        RunOptions.from_json({"retries": document})


def fuzz_fleets(data: bytes) -> None:
    """A fleet from TOML, as a process is started with it, by the API; and changes of one."""
    with _file(data, ".toml") as path, contextlib.suppress(FleetSpecError):
        load_fleet_file(path)
    with _file(data, ".fleet") as path, contextlib.suppress(FleetSpecError):
        FleetFile.read(path)
    document = _json(data)
    if isinstance(document, dict):
        with contextlib.suppress(FleetSpecError):
            spec = FleetSpec.from_document(document)
            assert FleetSpec.from_document(spec.to_document()) == spec
        with contextlib.suppress(FleetSpecError):
            Change.from_document(document)


def fuzz_control(data: bytes) -> None:
    """A line for a fleet process, without its token and with it."""
    server = ControlServer(cast(Any, _NoFleet()), Path("nowhere"), number=0)
    assert "error" in server._answer(data)
    document = _json(data)
    answer = server._answer(json.dumps({"token": server._token, "number": None, "change": document}).encode())
    json.dumps(answer)


class _NoFleet:
    def apply(self, change: Change) -> int:
        return 0


def fuzz_records(data: bytes) -> None:
    """Records in a state directory: what can't be read is as if it were not there."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "fleets").mkdir()
        for name in (RECORD_FILE, SERVICE_RECORD, "fleets/fleet-1.json"):
            (root / name).write_bytes(data)
        if (process := read_record(root)) is not None:
            process.process()
        if (service := read_service_record(root)) is not None:
            _ = service.alive
        book = FleetBook(root)
        assert len(book.entries()) + len(book.unreadable()) == 1
        book.next_id()
        list(book.living())


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


@contextlib.contextmanager
def _file(data: bytes, suffix: str) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    function.__name__.removeprefix("fuzz_"): function
    for function in (
        fuzz_topics,
        fuzz_messages,
        fuzz_packets,
        fuzz_addresses,
        fuzz_tokens,
        fuzz_labels,
        fuzz_masking,
        fuzz_uploads,
        fuzz_releases,
        fuzz_conditions,
        fuzz_plans,
        fuzz_fleets,
        fuzz_control,
        fuzz_records,
    )
}
