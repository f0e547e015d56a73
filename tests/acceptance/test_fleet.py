"""Fleets as a user has them: their processes die, they are troubled, and every device ends as it should."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.conftest import Sandbox, wait_until
from tests.acceptance.test_up import wait_registered

pytestmark = pytest.mark.real

FLEET_FILE = """
seed = 3
speed = 4.0

[[groups]]
name = "line"
count = 60
prefix = "line"
behaviours = { healthy = 0.5, crawling = 0.4, "slow+flaky" = 0.1 }

[[groups]]
name = "field"
count = 20
prefix = "field"
behaviours = { healthy = 0.5, corrupt = 0.2, rejects = 0.2, duplicate-ack = 0.1 }

[behaviours.crawling]
is = "slow"
bandwidth_bytes_per_s = 8192
"""


def fleet(sandbox: Sandbox) -> dict[str, Any]:
    """The first fleet with its statistics."""
    return sandbox.json("fleet", "show", "fleet-1")


def test_a_process_that_is_killed_in_mid_run_costs_no_device_its_outcome(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET_FILE)
    sandbox.up()
    launched = sandbox.json("fleet", "launch", "--file", str(path), "--processes", "4")
    assert len(launched["pids"]) == 4
    assert wait_registered(sandbox, 80)
    run_id = sandbox.json("provision", "--ack-timeout", "20")["run_id"]
    # In the midst: some download, and some have not got to it.
    wait_until(lambda: fleet(sandbox)["statistics"]["downloading"] > 0)
    victim = launched["pids"][2]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: fleet(sandbox)["restarts"] == 1 and fleet(sandbox)["running"])
    assert victim not in fleet(sandbox)["pids"]
    assert not psutil.pid_exists(victim)

    sandbox.run("watch", run_id)
    code, out, err = sandbox.run("fleet", "check")
    assert (code, out, err) == (0, "fleet-1: 80 of 80 devices ended as expected\n", "")
    assert sandbox.json("devices", "--state", "rejected", "--limit", "1")["total"] == 4

    code, out, _ = sandbox.run("fleet", "stop")
    assert code == 0
    assert out.splitlines()[0] == "stopped: fleet-1, 80 devices; 1 process died and started again"


def test_a_fleet_that_is_troubled_by_hand(sandbox: Sandbox) -> None:
    up = sandbox.up()
    sandbox.json("fleet", "launch", "--count", "12", "--behaviours", "healthy", "--processes", "2")
    assert wait_registered(sandbox, 12)
    sandbox.json("fleet", "kill", "--devices", "dev-00001,dev-00002")
    sandbox.json("fleet", "behave", "rejects", "--devices", "dev-00003")
    sandbox.json("fleet", "add", "--count", "3", "--name", "late", "--model", "demo-1")
    assert wait_registered(sandbox, 15)
    wait_until(lambda: fleet(sandbox)["statistics"]["connected"] == 13)

    # All of that is there again after the service was away.
    up.signal(signal.SIGTERM)
    assert up.finish()[0] == 0
    sandbox.up().wait_line("fleet-1: 15 devices started again")
    wait_until(lambda: fleet(sandbox)["statistics"]["registered"] == 13)
    sandbox.json("fleet", "storm", "--spread", "0.2")
    answering = [f"dev-{number:05d}" for number in range(3, 16)]
    sandbox.run("provision", *answering, "--follow")
    code, out, _ = sandbox.run("fleet", "check")
    assert (code, out.splitlines()[0]) == (0, "fleet-1: 13 of 15 devices ended as expected")
    assert sandbox.json("device", "dev-00003")["state"] == "rejected"


def test_a_fleet_in_the_foreground(sandbox: Sandbox) -> None:
    sandbox.up("--open-broker")
    record = json.loads((sandbox.state_dir / "service.json").read_text())
    health = _health(record["url"])
    running = sandbox.start(
        *(
            "fleet",
            "run",
            "--count",
            "6",
            "--processes",
            "2",
            "--behaviours",
            "healthy",
            "--metrics-port",
            "0",
        ),
        *("--broker", record["broker_url"], "--trust", health["trust"]["public_key"]),
    )
    assert wait_registered(sandbox, 6)
    assert "6 of 6 provisioned" in sandbox.run("provision", "--follow")[1]
    running.wait_line("6/6 connected")
    url = running.wait_line("metrics at ").split()[-1]
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert 'muster_fleet_connected{fleet="fleet-1",group="devices"} 6' in answer.read().decode()
    running.signal(signal.SIGINT)
    code, out, err = running.finish()
    assert (code, err) == (0, ""), out
    assert "stopped: fleet-1, 6 devices" in out
    assert any(line.split()[:4] == ["downloads", "6", "of", "6,"] for line in out.splitlines())


def test_a_fleet_in_the_foreground_says_why_it_is_not_connected(sandbox: Sandbox) -> None:
    # Where nothing listens.
    running = sandbox.start(
        "fleet", "run", "--count", "2", "--broker", "mqtt://127.0.0.1:1", "--trust", "A" * 43 + "="
    )
    running.wait_line("can't connect to mqtt://127.0.0.1:1: ")
    running.signal(signal.SIGINT)
    code, out, err = running.finish()
    assert (code, err) == (0, ""), out
    assert "stopped: fleet-1, 2 devices" in out


def test_the_devices_of_a_foreground_that_is_killed_go_with_it(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a killed command can't remove is not to stay.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sandbox.up("--open-broker")
    record = json.loads((sandbox.state_dir / "service.json").read_text())
    running = sandbox.start(
        *("fleet", "run", "--count", "2", "--processes", "2", "--broker", record["broker_url"]),
        *("--trust", _health(record["url"])["trust"]["public_key"]),
    )
    assert wait_registered(sandbox, 2)
    children = psutil.Process(running.process.pid).children()
    assert len(children) == 2
    running.process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def _health(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/api/health", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    return document
