"""The service in the foreground and its clients, as a user runs them, on real parts."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import urllib.request
from pathlib import Path

import pytest

from tests.acceptance.conftest import COMMAND_TIMEOUT_S, Sandbox, wait_until
from tests.backend import Backend

pytestmark = pytest.mark.real


def test_the_three_jobs(sandbox: Sandbox) -> None:
    up = sandbox.up()
    code, out, _ = sandbox.run("fleet", "launch", "--count", "10", "--behaviours", "healthy")
    assert (code, out) == (0, "fleet-1: 10 devices launched (seed 1); next: muster provision\n")
    assert wait_registered(sandbox, 10)
    code, out, _ = sandbox.run("provision", "--follow")
    assert code == 0, out
    assert "10 of 10 provisioned" in out
    assert sandbox.json("devices", "--state", "provisioned")["total"] == 10
    assert sandbox.json("devices", "--state", "new")["total"] == 0

    device = sandbox.json("device", "dev-00003")
    assert device["state"] == "provisioned"
    steps = [step["step"] for step in device["steps"]]
    assert steps == ["packaging", "notifying", "downloading", "activating"]
    assert all(step["ended_at"] for step in device["steps"])
    assert sandbox.run("watch")[0] == 0

    code, _, err = sandbox.run("device", "dev-99999")
    assert code == 1
    assert err.count("\n") == 1
    assert "dev-99999" in err

    up.signal(signal.SIGINT)
    code, _, err = up.finish()
    assert (code, err) == (0, "")
    assert sandbox.processes() == []
    assert not (sandbox.state_dir / "service.json").exists()


def test_the_main_job_on_a_backend_elsewhere(sandbox: Sandbox, backend: Backend) -> None:
    backend.start()
    up = sandbox.up("--engine", "durabletask", "--engine-endpoint", backend.endpoint)
    line = up.wait_line("engine ")
    assert f"the Durable Task backend at {backend.endpoint}" in line
    assert "without idempotency keys" in line
    assert sandbox.run("fleet", "launch", "--count", "5")[0] == 0
    assert wait_registered(sandbox, 5)
    code, out, _ = sandbox.run("provision", "--follow")
    assert code == 0, out
    assert "5 of 5 provisioned" in out
    up.signal(signal.SIGINT)
    code, _, err = up.finish()
    assert (code, err) == (0, "")
    assert sandbox.processes() == []


def test_a_fleet_comes_back_with_the_service_until_it_is_stopped(sandbox: Sandbox) -> None:
    up = sandbox.up()
    sandbox.json("fleet", "launch", "--count", "3")
    assert sandbox.run("down")[0] == 0
    assert up.finish()[0] == 0
    assert sandbox.processes() == []

    up = sandbox.up()
    assert up.wait_line("fleet-1: 3 devices started again")
    assert sandbox.run("fleet", "stop", "fleet-1")[0] == 0
    up.signal(signal.SIGTERM)
    assert up.finish()[0] == 0

    up = sandbox.up()
    assert not any("fleet-1" in line for line in up.lines)


def test_what_a_killed_service_left_running_is_adopted_and_the_run_goes_on(sandbox: Sandbox) -> None:
    up = sandbox.up()
    sandbox.json("fleet", "launch", "--count", "60", "--behaviours", "healthy=2,slow=1")
    assert wait_registered(sandbox, 60)
    run_id = sandbox.json("provision")["run_id"]
    up.process.kill()
    up.process.wait()
    code, _, err = sandbox.run("devices")
    assert code == 1
    assert "is gone: `muster up` starts it again" in err

    up = sandbox.up()
    for found in ("broker ", "blob storage", "fleet-1: 60 devices"):
        assert "found running" in up.wait_line(found)
    assert sandbox.run("watch", run_id)[0] == 0
    assert sandbox.json("devices", "--state", "provisioned")["total"] == 60


def test_down_ends_what_a_killed_service_left_running(sandbox: Sandbox) -> None:
    up = sandbox.up()
    sandbox.json("fleet", "launch", "--count", "3")
    up.process.kill()
    up.process.wait()
    stopped = sandbox.json("down")["stopped"]
    assert "fleet-1" in stopped
    assert "azurite" in stopped
    assert sandbox.processes() == []
    code, out, _ = sandbox.run("down")
    assert (code, out) == (0, f"nothing runs on the state directory {sandbox.state_dir}\n")


def test_a_second_ctrl_c_ends_up_at_once(sandbox: Sandbox) -> None:
    up = sandbox.up()
    sandbox.json("fleet", "launch", "--count", "3")
    up.signal(signal.SIGINT)
    up.wait_line("stopping")
    up.signal(signal.SIGINT)
    assert up.finish()[0] in (0, 130), "0 where everything had ended before the second one came"
    assert sandbox.processes() == []


def test_a_second_service_on_the_same_state_is_refused(sandbox: Sandbox) -> None:
    sandbox.up()
    code, _, err = sandbox.run("up", "--port=0")
    assert code == 1
    assert err.count("\n") == 1
    assert "runs on the state directory" in err
    assert "muster down" in err


@pytest.mark.parametrize("option", ["--port", "--broker-port", "--blob-port"])
def test_a_port_in_use_is_named(sandbox: Sandbox, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = sandbox.run("up", "--port=0", "--broker-port=0", "--blob-port=0", f"{option}={port}")
    assert code == 1
    assert err.count("\n") == 1
    assert str(port) in err
    assert "in use" in err
    assert sandbox.processes() == []


def newer_marker(state_dir: Path) -> None:
    (state_dir / "muster.json").write_text(json.dumps({"format": 99, "created_at": "2030-01-01"}))


def newer_engine(state_dir: Path) -> None:
    with sqlite3.connect(state_dir / "engine.db") as database:
        database.execute("PRAGMA user_version = 999")
        database.execute("CREATE TABLE anything (x)")
    database.close()


def no_database(state_dir: Path) -> None:
    (state_dir / "engine.db").write_text("this is no database " * 100)


def no_registry(state_dir: Path) -> None:
    (state_dir / "registry.db").write_text("this is no database " * 100)


@pytest.mark.parametrize("spoil", [newer_marker, newer_engine, no_database, no_registry])
def test_a_state_that_cannot_be_used_is_named(sandbox: Sandbox, spoil: object) -> None:
    sandbox.state_dir.mkdir()
    assert callable(spoil)
    spoil(sandbox.state_dir)
    code, _, err = sandbox.run("up", "--port=0", "--broker-port=0", "--blob-port=0")
    assert code == 1
    assert err.count("\n") == 1, err
    assert str(sandbox.state_dir) in err
    assert sandbox.processes() == []


def test_a_user_directory_named_like_ours_is_not_imported(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "project"
    (trap / "devices").mkdir(parents=True)
    (trap / "devices" / "__init__.py").write_text("raise SystemExit('wrong devices')")
    monkeypatch.chdir(trap)
    assert os.listdir() == ["devices"]  # noqa: PTH208 - the point is the working directory
    code, out, err = sandbox.run("demo", "--devices", "2", "--behaviours", "healthy")
    assert (code, err) == (0, ""), out


def wait_registered(sandbox: Sandbox, count: int) -> bool:
    """Wait until so many devices have registered. The API is asked: a command is a process each time."""
    url = json.loads((sandbox.state_dir / "service.json").read_text())["url"]

    def registered() -> bool:
        with urllib.request.urlopen(f"{url}/api/statistics") as answer:
            return bool(json.load(answer)["devices"] >= count)

    wait_until(registered, timeout_s=COMMAND_TIMEOUT_S)
    return True
