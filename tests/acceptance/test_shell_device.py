"""Anybody's device: a shell script is provisioned by the real service beside emulated devices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Sandbox, wait_until
from tests.acceptance.test_up import wait_registered
from tests.conftest import missing

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).parents[2] / "examples" / "shell-device.sh"
TOOLS = ("mosquitto_sub", "mosquitto_pub", "curl")


def test_a_shell_script_is_provisioned_like_any_device(sandbox: Sandbox) -> None:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed (Debian: apt-get install mosquitto-clients curl)")
    # It publishes on connections of their own, which no device may that has an account.
    sandbox.up("--open-broker")
    broker = urlsplit(json.loads((sandbox.state_dir / "service.json").read_text())["broker_url"])
    shell = subprocess.Popen(
        ["/bin/sh", str(SCRIPT), "shell-1", broker.hostname or "", str(broker.port)], start_new_session=True
    )
    try:
        sandbox.json("fleet", "launch", "--count", "2", "--behaviours", "healthy")
        assert wait_registered(sandbox, 3)
        code, out, _ = sandbox.run("provision", "--follow")
        assert (code, "3 of 3 provisioned" in out) == (0, True), out
        device = sandbox.json("device", "shell-1")
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait()
    assert device["model"] == "shell"
    assert device["tags"] == {"written-in": "sh"}
    assert device["firmware_version"] == "demo-1.0.0"


def test_a_python_script_logs_in_with_its_own_token_until_it_is_revoked(sandbox: Sandbox) -> None:
    sandbox.up()
    broker = urlsplit(json.loads((sandbox.state_dir / "service.json").read_text())["broker_url"])
    sandbox.json("enrolment", "add", "python-1")
    key = sandbox.state_dir / "python-1.key"
    code, out, _ = sandbox.run("enrolment", "token", "python-1", "--key")
    assert code == 0
    key.write_text(out)
    script = SCRIPT.with_name("device.py")
    device = subprocess.Popen(
        [sys.executable, str(script), "python-1", str(key), broker.hostname or "", str(broker.port)],
        start_new_session=True,
    )
    try:
        assert wait_registered(sandbox, 1)
        code, out, _ = sandbox.run("provision", "--follow")
        assert (code, "1 of 1 provisioned" in out) == (0, True), out
        assert sandbox.json("enrolment", "revoke", "python-1")["changed"] == ["python-1"]
        wait_until(lambda: not sandbox.json("device", "python-1")["online"])
        code, out, _ = sandbox.run("provision", "python-1", "--follow")
        assert (code, "the device was revoked" in out) == (1, True), out
    finally:
        os.killpg(device.pid, signal.SIGTERM)
        device.wait()
