"""The demo, as a user runs it, on the real broker and the real Azurite."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.acceptance.conftest import Sandbox, wait_until

pytestmark = pytest.mark.real


def test_a_demo_provisions_every_device_and_says_what_it_came_to(sandbox: Sandbox) -> None:
    code, out, err = sandbox.run("demo", "--devices", "30", "--seed", "3")
    assert (code, err) == (0, ""), out
    lines = out.splitlines()
    assert lines[0] == f"demo of 30 devices, seed 3, state in {sandbox.state_dir}"
    assert any(line.startswith("30 of 30 provisioned in 0:") for line in lines)
    rows = [line.split() for line in lines]
    assert ["provisioned", "30", "30"] in rows
    for step in ("packaging", "notifying", "downloading", "activating", "whole"):
        assert any(row[:1] == [step] for row in rows), out
    assert f"The state is kept in {sandbox.state_dir}" in out
    assert "\x1b" not in out
    assert sandbox.processes() == []


def test_devices_that_never_answer_are_expected_to_time_out(sandbox: Sandbox) -> None:
    document = sandbox.json(
        *("demo", "--devices", "10", "--behaviours", "healthy=8,never-answers=2"),
        *("--ack-timeout", "1", "--attempts", "2"),
    )
    assert document["outcomes"] == document["expected"] == {"provisioned": 8, "timed_out": 2}
    assert document["differences"] == []
    assert document["run"]["status"] == "completed"


def test_a_demo_fails_where_a_device_does_not_end_as_it_should(sandbox: Sandbox) -> None:
    # A slow device needs more than a second for its package, and gets a tenth of that.
    code, out, _ = sandbox.run(
        *("demo", "--devices", "2", "--behaviours", "slow", "--ack-timeout", "0.1", "--attempts", "1")
    )
    assert code == 1
    assert "0 of 2 provisioned" in out
    rows = [line.split()[:4] for line in out.splitlines()]
    assert ["dev-00001", "provisioned", "timed", "out"] in rows


@pytest.mark.parametrize("phase", ["demo of", "broker ", "service ", "fleet ", "run "])
def test_ctrl_c_stops_everything_and_says_how_to_go_on(sandbox: Sandbox, phase: str) -> None:
    demo = sandbox.start("demo", "--devices", "40", "--behaviours", "slow")
    demo.wait_line(phase)
    demo.signal(signal.SIGINT)
    code, _, err = demo.finish()
    assert code == 130
    assert err.count("\n") == 1
    assert f"muster demo --resume --state-dir {sandbox.state_dir}" in err
    assert sandbox.processes() == []

    code, _, err = sandbox.run("demo")
    assert code == 2
    assert err.count("\n") == 1
    assert "holds an unfinished demo (40 devices, seed 1)" in err


@pytest.mark.parametrize("phase", ["broker ", "fleet ", "run "])
def test_a_second_ctrl_c_leaves_no_orphans(sandbox: Sandbox, phase: str) -> None:
    demo = sandbox.start("demo", "--devices", "40", "--behaviours", "slow")
    demo.wait_line(phase)
    demo.signal(signal.SIGINT)
    time.sleep(0.05)  # a person's second Ctrl-C comes some time after the first: nothing to wait for
    demo.signal(signal.SIGINT)
    code, _, err = demo.finish()
    assert code == 130
    assert err.count("\n") == 1
    assert sandbox.processes() == []


@pytest.mark.parametrize("phase", ["fleet ", "run ", "/20 done"])
def test_an_interrupted_demo_is_resumed(sandbox: Sandbox, phase: str) -> None:
    # Slow ones are in the middle of their download, others between download and activation: the devices
    # of the resumed demo are new processes that know nothing of either.
    demo = sandbox.start(
        *("demo", "--devices", "20", "--behaviours", "healthy=1,slow=1", "--ack-timeout", "8")
    )
    demo.wait_line(phase)
    demo.signal(signal.SIGINT)
    assert demo.finish()[0] == 130
    code, out, err = sandbox.run("demo", "--resume")
    assert (code, err) == (0, ""), out
    assert "20 of 20 provisioned" in out

    code, _, err = sandbox.run("demo", "--resume")
    assert code == 2
    assert "nothing to resume" in err


def test_a_second_demo_on_the_same_state_harms_nobody(sandbox: Sandbox) -> None:
    first = sandbox.start("demo", "--devices", "20", "--behaviours", "slow")
    first.wait_line("demo of")
    code, _, err = sandbox.run("demo", "--fresh")
    assert code == 2
    assert err.count("\n") == 1
    assert f"state directory {sandbox.state_dir}" in err
    code, out, _ = first.finish()
    assert code == 0, out


def test_a_demo_beside_a_service_that_is_starting_harms_nobody(sandbox: Sandbox) -> None:
    up = sandbox.start("up", "--port=0", "--broker-port=0", "--blob-port=0")
    up.wait_line("broker ")
    assert sandbox.run("demo", "--fresh")[0] in (1, 2)
    up.wait_line("ready;")
    assert sandbox.run("fleet", "list")[0] == 0


def test_a_killed_demo_takes_its_stack_with_it(sandbox: Sandbox) -> None:
    demo = sandbox.start("demo", "--devices", "20")
    demo.wait_line("fleet ")
    demo.process.kill()
    wait_until(lambda: not sandbox.processes())


def test_a_fresh_demo_clears_up_after_a_killed_service(sandbox: Sandbox) -> None:
    up = sandbox.up()
    assert sandbox.json("fleet", "launch", "--count", "2")["fleet_id"] == "fleet-1"
    up.process.kill()
    up.process.wait()
    assert sandbox.processes()
    assert sandbox.run("demo", "--devices", "3")[0] == 2
    document = sandbox.json("demo", "--devices", "3", "--behaviours", "healthy", "--fresh")
    assert document["outcomes"] == {"provisioned": 3}
    assert json.loads((sandbox.state_dir / "demo.json").read_text())["finished"] is True
