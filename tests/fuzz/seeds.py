"""What targets are begun with: good inputs, and what has broken parsers before."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Final

from broker.identity import device_key, make_token
from devices import packets
from tests.unit.hostile_ids import HOSTILE_IDS, HOSTILE_LABELS

_PACKAGE: Final[dict[str, Any]] = {
    "v": 1,
    "instance_id": "run-1:dev-1",
    "package_id": "fw-1",
    "release": "fw",
    "attempt": 1,
    "url": "http://127.0.0.1:1/c/b?sig=x",
    "size_bytes": 9,
    "sha256": "0" * 64,
    "signature": "A" * 86 + "==",
    "key_id": "k",
    "expires_at": "2030-01-01T00:00:00Z",
    "ack_timeout_s": 1.5,
    "reason": "no-room",
    "detail": "",
    "firmware_version": "1",
    "received_bytes": 1,
    "model": "m",
    "tags": {"site": "x"},
    "state": "online",
}
_DEEP: Final = [b"[" * 100_000, b'{"a":' * 50_000, b"a" + b".a" * 2_000 + b" = 1\n", b"a = " + b"[" * 5_000]
_NUMBERS: Final = [b"1e999", b"-0", b"NaN", b"9" * 5_000, b"null", b'"\\ud800"']
_TEXTS: Final = [
    text.encode("utf-8", "surrogatepass") for text in (*HOSTILE_IDS.values(), *HOSTILE_LABELS.values())
]
_FORM: Final = (
    b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nfw-1\r\n'
    b'--b\r\nContent-Disposition: form-data; name="version"\r\n\r\n1\r\n'
    b'--b\r\nContent-Disposition: form-data; name="firmware"; filename="f"\r\n\r\n\x00\x01\r\n--b--\r\n'
)
_PLAN: Final[dict[str, Any]] = {
    "name": "spring",
    "targets": {"devices": ["dev-1"], "exclude": ["dev-2"]},
    "waves": [{"percent": 5.0, "threshold_percent": 95.0}, {"percent": 100.0}],
    "pace": {"max_in_flight": 10, "per_minute": 60.0},
    "options": {"ack_timeout_s": 9, "retries": {"no_ack": {"max_attempts": 2, "delay_s": 1.0}}},
    "schedule": {"start_at": "2030-01-01T00:00:00Z"},
}
_FLEET: Final[dict[str, Any]] = {
    "seed": 1,
    "groups": [{"name": "g", "count": 2, "behaviours": {"slow+flaky": 1.0}, "tags": {"a": "b"}}],
    "behaviours": {"crawling": {"is": "slow", "bandwidth_bytes_per_s": 9}},
}
_RECORD: Final[dict[str, Any]] = {
    "format": 2,
    "fleet_id": "fleet-1",
    "request": {"spec": _FLEET},
    "processes": 1,
    "broker_url": "",
    "trust": "x",
    "started_at": "x",
    "members": [{"part": 1, "pid": 1, "created_at": 1.0}],
    "changes": [],
}
_PROCESS: Final[dict[str, Any]] = {
    "format": 1,
    "name": "x",
    "port": 1,
    "pid": 1,
    "created_at": 1.0,
    "argv": ["x"],
    "fingerprint": "x",
    "url": "http://x",
}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _resource(package: str, name: str) -> bytes:
    return files(package).joinpath(name).read_bytes()


SEEDS: Final[dict[str, list[bytes]]] = {
    "topics": [b"devices/dev-1/register", b"devices/dev-1/events/DownloadStarted", b"run-1:dev-1"],
    "messages": [bytes([number]) + _json(_PACKAGE) for number in range(14)],
    "packets": [
        packets.publish(7, "devices/dev-1/package", b"{}"),
        b"\x20\x02\x01\x00" + packets.puback(1) + b"\x90\x03\x00\x01\x01\xd0\x00",
    ],
    "addresses": [
        b"mqtts://user:p%40ss@[::1]:8883",
        b"https://host:1",
        b"mqtt://h:99999",
        b"mqtt://[v1.x]",
        b"mqtt://[::1%25eth0]:1",
    ],
    "tokens": [
        make_token(device_key(b"k" * 32, "dev-1"), "dev-1", 9).encode(),
        b"SharedAccessSignature sr=muster%2Fregistrations%2Fdev-1&sig=AA%3D%3D&se=9",
        b"QUJD" * 11,
    ],
    "labels": [b"Stra\xc3\x9fe 1", b"s\xed\xa0\x80"],
    "masking": [b"AccountKey=c2VjcmV0;", b"https://x/?sig=abc&se=1", b"?sig="],
    "uploads": [
        _FORM,
        b"\x09" + _FORM,
        b"multipart/form-data; boundary=" + b"b" * 300,
        b'multipart/form-data; boundary="',
    ],
    "releases": [b'{"site": "{tags.site}", "id": "{device_id}"}', b'{"a": ["{{", "}}", {"{x}": 1}]}', b"{}"],
    "conditions": [b'W/"v1", "v2"', b"*", b'"'],
    "plans": [_json(_PLAN), _resource("provisioning.cli.rollout", "example-plan.toml")],
    "fleets": [
        _json(_FLEET),
        _json({"spec": _FLEET, "changes": [{"do": "kill", "devices": ["dev-1"]}], "number": 1}),
        _json({"do": "behave", "behaviour": "slow", "group": "g"}),
        b'seed = 1\n[[groups]]\nname = "g"\ncount = 2\n[groups.behaviours]\n"slow" = 1.0\n',
    ],
    "control": [b'{"token": "x", "number": 1, "change": {}}', _json({"do": "kill", "devices": ["dev-1"]})],
    "records": [_json(_RECORD), _json(_PROCESS), _json({**_RECORD, "format": 1})],
}
COMMON: Final = [b"", *_DEEP, *_NUMBERS, *_TEXTS]
"""For every target: too deep, too large, no number, hostile ids."""
