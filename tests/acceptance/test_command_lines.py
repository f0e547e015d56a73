"""What is secret is on no command line, in no environment of a program that does without it, in no output."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from broker.local.mosquitto import find_mosquitto
from broker.local.ports import accepts_connections, any_free_port
from provisioning.azurite import ACCOUNT_KEY
from tests.acceptance.conftest import Sandbox
from tests.acceptance.test_up import wait_registered
from tests.conftest import missing

pytestmark = pytest.mark.real

PASSWORD = "correct-horse-battery"


@pytest.fixture
def guarded_broker(tmp_path: Path) -> Iterator[str]:
    """A Mosquitto that wants a password; its URL with that."""
    executable = find_mosquitto()
    if executable is None:
        missing("Mosquitto is not installed")
    salt, rounds = os.urandom(12), 101
    hashed = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, rounds)
    entry = f"muster:$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(hashed).decode()}\n"
    (tmp_path / "passwords").write_text(entry)
    port = any_free_port()
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\nuser root\n"
        f"password_file {tmp_path / 'passwords'}\n"
    )
    command = [str(executable), "-c", str(tmp_path / "mosquitto.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while not accepts_connections(port):
                assert process.poll() is None
                time.sleep(0.01)
            yield f"mqtt://muster:{PASSWORD}@127.0.0.1:{port}"
        finally:
            process.terminate()


def test_a_run_with_secrets_shows_none_of_them(
    sandbox: Sandbox, guarded_broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broker-url").write_text(guarded_broker + "\n")
    (tmp_path / "broker-url").chmod(0o600)
    monkeypatch.setenv("MUSTER_BROKER_FILE", str(tmp_path / "broker-url"))
    up = sandbox.up()
    sandbox.json("fleet", "launch", "--count", "2", "--processes", "2")
    assert wait_registered(sandbox, 2)
    follow = sandbox.start("provision", "--follow")
    service = psutil.Process(up.process.pid)
    commands: dict[str, str] = {}
    environments: dict[str, str] = {}
    while follow.process.poll() is None:
        for process in (service, *service.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                command = " ".join(process.cmdline())
                commands[command] = command
                environments[command] = Path(f"/proc/{process.pid}/environ").read_bytes().decode()
    assert follow.finish()[0] == 0
    listed, shown = sandbox.run("fleet", "list"), sandbox.run("doctor")

    fleets = [command for command in commands if "-m devices" in command]
    assert len(fleets) == 2
    assert any("azurite" in command for command in commands)
    group_key = (sandbox.state_dir / "group.key").read_text().strip()
    signing_key = (sandbox.state_dir / "signing.key").read_text().splitlines()[1]
    for secret in (PASSWORD, ACCOUNT_KEY, group_key, signing_key):
        assert not [command for command in commands if secret in command]
        assert not [command for command, environment in environments.items() if secret in environment]
        for _, out, err in (listed, shown):
            assert secret not in out + err
        assert secret not in "".join(up.lines + up.errors)
    for command, environment in environments.items():
        if command != " ".join(service.cmdline()):
            assert "MUSTER_" not in environment, command

    holding = {path.name for path in sandbox.state_dir.rglob("*") if path.is_file() and _has(path, PASSWORD)}
    assert holding == {"fleet-1.json", "fleet-1.broker"}


def _has(path: Path, secret: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return secret.encode() in path.read_bytes()
    return False
