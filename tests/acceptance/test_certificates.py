"""A fleet that comes in by certificates, as a user has it."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.conftest import Sandbox

pytestmark = pytest.mark.real


def test_a_fleet_with_certificates_is_provisioned(sandbox: Sandbox) -> None:
    assert sandbox.run("ca", "init")[0] == 0
    up = sandbox.up("--mtls", "--tls-port=0")
    assert "mqtts://127.0.0.1:" in up.wait_line("broker ")
    sandbox.json("fleet", "launch", "--count", "20", "--behaviours", "healthy", "--wait")
    code, out, _ = sandbox.run("provision", "--follow")
    assert code == 0, out
    assert "20 of 20 provisioned" in out
    keys = sandbox.state_dir / "fleets" / "certificates"
    assert len(list(keys.iterdir())) == 20
    # It is off when the command returns.
    sandbox.json("enrolment", "revoke", "dev-00003")
    assert sandbox.json("device", "dev-00003")["online"] is False
    up.signal(signal.SIGINT)
    code, _, err = up.finish()
    assert (code, err) == (0, "")
    assert sandbox.processes() == []
