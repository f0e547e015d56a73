"""Anybody's device: a shell script is provisioned by the real service beside emulated devices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Sandbox
from tests.acceptance.test_up import wait_registered
from tests.conftest import missing

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).parents[2] / "examples" / "shell-device.sh"
TOOLS = ("mosquitto_sub", "mosquitto_pub", "curl")


def test_a_shell_script_is_provisioned_like_any_device(sandbox: Sandbox) -> None:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed (Debian: apt-get install mosquitto-clients curl)")
    sandbox.up()
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
