"""The device in Python of the examples, without a broker."""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from broker.identity import device_key, expiry_of, make_token

SCRIPT = Path(__file__).parents[2] / "examples" / "device.py"
DAY_S = 86_400


class Client:
    """In paho's place: keeps what it logs in with."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.password = ""
        self.on_disconnect: Any = None

    def username_pw_set(self, username: str, password: str) -> None:
        assert username == "dev-1"
        self.password = password

    def will_set(self, *_: Any, **__: Any) -> None: ...
    def connect(self, *_: Any) -> None: ...
    def loop_forever(self) -> None: ...


def test_it_logs_in_with_the_token_of_each_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_900_000_000.0
    key = device_key(b"k" * 32, "dev-1")
    (tmp_path / "dev-1.key").write_text(f"{key}\n")
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(mqtt, "Client", Client)
    monkeypatch.setattr("sys.argv", ["device.py", "dev-1", str(tmp_path / "dev-1.key"), "127.0.0.1", "1883"])
    client = runpy.run_path(str(SCRIPT))["client"]
    assert client.password == make_token(key, "dev-1", expiry_of("dev-1", now=now))
    now += DAY_S
    client.on_disconnect()
    assert client.password == make_token(key, "dev-1", expiry_of("dev-1", now=now))
