"""Wrong input and missing services: one clear line on stderr, and an exit code."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.local.ports import any_free_port
from provisioning.cli.errors import MAX_MESSAGE_CHARS, one_line
from provisioning.durable_task import START_PATIENCE_S
from provisioning.runs import _CLAIM_TIMEOUT_S
from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_service import FakeService


def dead_pid() -> int:
    """The pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_no_service(muster: Muster, state_dir: Path) -> None:
    result = muster("devices")
    assert result.exit_code == 1
    assert f"no service runs on the state directory {state_dir}" in result.error_line
    assert "muster up" in result.error_line


def test_a_record_that_is_no_json_counts_as_no_service(muster: Muster, state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "service.json").write_text("[")
    assert "no service runs" in muster("devices").error_line


def test_the_service_is_gone(service: FakeService, muster: Muster) -> None:
    service.write_record(dead_pid())
    result = muster("devices")
    assert result.exit_code == 1
    assert "is gone: `muster up` starts it again" in result.error_line


def test_connection_refused(muster: Muster) -> None:
    result = muster("devices", "--url", f"http://127.0.0.1:{any_free_port()}")
    assert result.exit_code == 1
    assert "(connection refused): start it with `muster up`" in result.error_line


def test_something_else_answers(
    service: FakeService, muster: Muster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_route", lambda *_: (200, ["not", "an", "object"]))
    assert "is no Muster service" in muster("devices").error_line


def test_the_start_of_a_run_is_waited_for_longer_than_a_mere_answer(
    service: FakeService, muster: Muster, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.add_device("d1")
    waits: dict[str, float] = {}

    class Connection(http.client.HTTPConnection):
        def request(self, method: str, url: str, **kwargs: Any) -> None:  # type: ignore[override]
            assert isinstance(self.timeout, float)
            waits[method] = self.timeout
            super().request(method, url, **kwargs)

    monkeypatch.setattr("provisioning.cli.client.http.client.HTTPConnection", Connection)
    muster("devices")
    assert muster("provision").exit_code == 0
    assert waits["POST"] > START_PATIENCE_S + _CLAIM_TIMEOUT_S > waits["GET"]


@pytest.mark.parametrize("name", ["registry.db", "engine.db"])
@pytest.mark.parametrize("kind", ["directory", "link into nowhere"])
def test_up_on_a_state_file_that_can_not_be_opened(state_dir: Path, name: str, kind: str) -> None:
    state_dir.mkdir()
    if kind == "directory":
        (state_dir / name).mkdir()
    else:
        (state_dir / name).symlink_to(state_dir / "missing" / name)
    # Named, so that no stack is started; that nobody is there is worth a warning, and no reason not to start.
    nobody = f"127.0.0.1:{any_free_port()}"
    blob = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=http://{nobody}/a"
    up = subprocess.run(
        [sys.executable, "-m", "provisioning.cli", "up", "--broker", f"mqtt://{nobody}", "--port", "0"],
        env=os.environ | {"MUSTER_BLOB": blob},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert up.returncode == 1
    (line,) = (line for line in up.stderr.splitlines() if " WARNING " not in line)
    assert f"{state_dir / name} can't be opened" in line
    assert "that no other program holds it, or choose another" in line


@pytest.mark.parametrize("command", [("up",), ("fleet", "run", "--count", "1", "--trust", "A")])
@pytest.mark.parametrize("broker", ["mqtt://muster:hunter2@host", "mqqt://muster:hunter2@host"])
def test_a_password_on_a_command_line_is_refused(
    muster: Muster, command: tuple[str, ...], broker: str
) -> None:
    result = muster(*command, "--broker", broker)
    assert result.exit_code == 2
    assert "MUSTER_BROKER_FILE" in result.error_line
    assert "hunter2" not in result.error_line


@pytest.mark.parametrize("url", ["ftp://x", "localhost:80", "http://:99999", "http://[::1"])
def test_bad_addresses(muster: Muster, url: str) -> None:
    result = muster("devices", "--url", url)
    assert result.exit_code == 2
    assert "is no service address" in result.error_line


@pytest.mark.parametrize("argv", [("device", "ghost"), ("provision", "ghost")])
def test_unknown_device(service: FakeService, muster: Muster, argv: tuple[str, ...]) -> None:
    result = muster(*argv)
    assert result.exit_code == 1
    assert "Unknown device: ghost" in result.error_line


def test_nothing_to_provision(service: FakeService, muster: Muster) -> None:
    result = muster("provision")
    assert result.exit_code == 1
    assert "No new device" in result.error_line


@pytest.mark.parametrize("count", ["0", "1000000", "-5", "many"])
@pytest.mark.parametrize("command", [("demo", "--devices"), ("fleet", "launch", "--count")])
def test_impossible_numbers_of_devices(muster: Muster, command: tuple[str, ...], count: str) -> None:
    result = muster(*command, count)
    assert result.exit_code == 2
    assert "1 to 100,000 devices" in result.error_line or "no number of devices" in result.error_line


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("nonsense",), "nonsense"),
        (("fleet",), "launch, list, stop or another command"),
        (("fleet", "launch"), "--count"),
        (("fleet", "launch", "--count", "1", "--behaviours", "evil=1"), "unknown behaviour 'evil'"),
        (("fleet", "launch", "--count", "1", "--behaviours", "healthy=x"), "'healthy=x' has no number"),
        (("provision", "--ack-timeout", "0"), "no number of seconds"),
        (("devices", "--limit", "-1"), "--limit"),
        (("up", "--port", "70000"), "70000"),
        (("up", "--broker", "rabbit"), "rabbit"),
        (("demo", "--fresh", "--resume"), "exclude each other"),
        (("demo", "--resume"), "no demo to resume"),
    ],
)
def test_usage_errors_are_one_line(muster: Muster, argv: tuple[str, ...], named: str) -> None:
    result = muster(*argv)
    assert result.exit_code == 2
    assert named in result.error_line


def test_a_bad_environment_is_one_line(muster: Muster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_BROKER", "rabbit")
    result = muster("devices")
    assert result.exit_code == 2
    assert "MUSTER_BROKER" in result.error_line


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("up", "--engine", "durabletask"), "MUSTER_ENGINE_ENDPOINT"),
        (("up", "--engine-endpoint", "127.0.0.1:4001"), "MUSTER_ENGINE=durabletask"),
        (("up", "--engine", "durabletask", "--engine-endpoint", "nowhere"), "host:port"),
    ],
)
def test_an_engine_that_is_half_named_is_one_line(muster: Muster, argv: tuple[str, ...], named: str) -> None:
    result = muster(*argv)
    assert result.exit_code == 2
    assert named in result.error_line


def test_messages_are_one_printable_line() -> None:
    assert one_line("a\n  b\tc\x1b[1m") == "a b c\\x1b[1m"
    assert len(one_line("x" * 5000)) == MAX_MESSAGE_CHARS


def test_a_closed_pipe_is_no_failure(service: FakeService, state_dir: Path) -> None:
    for index in range(2000):
        service.add_device(f"device-{index:05d}")
    command = f"{sys.executable} -m provisioning.cli devices --limit 0 | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ), timeout=60, check=True
    )
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "0"
