"""`kill -9` of the service, at moments that chance picks: nothing is lost, nothing is done twice."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from provisioning.engine.records import Kind, Status
from tests.acceptance.conftest import Sandbox
from tests.acceptance.test_up import wait_registered

pytestmark = pytest.mark.real

DEVICES = 300
KILLS = 3


def test_every_device_is_provisioned_whenever_the_service_is_killed(sandbox: Sandbox) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")  # shown where the test fails
    chance = random.Random(seed)

    up = sandbox.up()
    sandbox.json("fleet", "launch", "--count", str(DEVICES), "--behaviours", "healthy=3,slow=1")
    assert wait_registered(sandbox, DEVICES)
    run_id = sandbox.json("provision")["run_id"]
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.0, 1.2))  # the moment
        up.process.kill()
        up.process.wait()
        time.sleep(chance.uniform(0.0, 1.5))  # devices go on, and acknowledge into the void
        up = sandbox.up()
    assert sandbox.run("watch", run_id)[0] == 0

    assert sandbox.json("devices", "--state", "provisioned", "--limit", "1")["total"] == DEVICES
    sandbox.run("down")
    assert histories(sandbox.state_dir / "engine.db") == {
        # One orchestration for each device and their parent, ended once, none started over.
        "ended once, in their first execution": DEVICES + 1,
        "instances": DEVICES + 1,
        # Had one acknowledgement been lost, its device would have been sent its package again.
        "packages asked for": DEVICES,
        "acknowledgements": DEVICES,
    }


def histories(path: Path) -> dict[str, int]:
    """What the engine's file says of the whole."""
    with closing(sqlite3.connect(path)) as database:

        def count(query: str, *values: object) -> int:
            return int(database.execute(query, values).fetchone()[0])

        return {
            "instances": count("SELECT count(*) FROM instances"),
            "ended once, in their first execution": count(
                "SELECT count(*) FROM instances WHERE status = ? AND execution = 1 AND 1 = "
                "(SELECT count(*) FROM history WHERE instance = key AND kind = ?)",
                Status.COMPLETED,
                Kind.EXECUTION_COMPLETED,
            ),
            "packages asked for": count(
                "SELECT count(*) FROM history WHERE kind = ? AND name = 'CreateInstallationPackage'",
                Kind.TASK_SCHEDULED,
            ),
            "acknowledgements": count(
                "SELECT count(*) FROM history WHERE kind = ? AND name = 'DownloadCompletedAck'",
                Kind.EVENT_RAISED,
            ),
        }
