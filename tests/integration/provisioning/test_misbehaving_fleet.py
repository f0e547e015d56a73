"""A fleet with every behaviour in it, provisioned by the real service: each device ends as it should."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from broker.local import start_broker
from devices.behaviours import BUILT_IN
from devices.roster import Roster
from devices.spec import FleetSpec, parse_behaviours
from provisioning.azurite import start_azurite
from provisioning.engine.records import Status
from provisioning.service import Service
from provisioning.settings import ServiceSettings

from .driving import Api, fleet

pytestmark = pytest.mark.real

# Some twenty of each kind.
DEVICES = 440
# A device that answers has three tries of these, on two cores that everything shares.
OPTIONS: dict[str, Any] = {"ack_timeout_s": 8, "activation_timeout_s": 5, "max_attempts": 3}
# By how much a busy machine may be late with a timer.
LATE_S = 10.0


@pytest.mark.timeout(400)
async def test_devices_with_every_behaviour_end_as_expected(tmp_path: Path) -> None:
    roster = Roster(FleetSpec.of(count=DEVICES, seed=4, behaviours=parse_behaviours("all")))
    expected = {
        device_id: roster.expected_outcome(entry, max_attempts=3)
        for device_id, entry in roster.entries.items()
    }
    assert {entry.behaviour for entry in roster.entries.values()} == BUILT_IN.keys()
    assert set(expected.values()) == {"provisioned", "failed", "timed_out", "rejected"}

    state_dir = tmp_path / "state"
    async with (
        await start_broker(state_dir=tmp_path, port=0) as broker,
        await start_azurite(state_dir=tmp_path, port=0) as azurite,
        Service(
            ServiceSettings(
                state_dir=state_dir,
                broker_url=broker.url,
                blob_connection_string=azurite.connection_string,
                api_port=0,
            )
        ),
    ):
        api = Api(state_dir)
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        async with fleet(broker.url, trust, count=DEVICES, behaviours="all", seed=4):
            await api.wait_registered(DEVICES)
            run_id = await api.provision(options=OPTIONS)
            run = await api.wait_ended(run_id, timeout_s=300)
            devices = await api.devices(run_id)
            statistics = await api.get("/api/statistics")

    wrong = [
        (device["device_id"], roster.entries[device["device_id"]].behaviour, device["state"], device["error"])
        for device in devices
        if device["state"] != expected[device["device_id"]]
    ]
    assert not wrong
    assert run["status"] == "completed"
    assert Counter(device["state"] for device in devices) == Counter(expected.values())
    # What the contract refuses was counted and dropped, and held nobody up.
    assert statistics["bridge"]["malformed"] > 50

    with closing(sqlite3.connect(f"file:{state_dir / 'engine.db'}?mode=ro", uri=True)) as engine:
        rows = engine.execute("SELECT status, output FROM instances").fetchall()
        timers = engine.execute("SELECT count(*) FROM timers").fetchone()
    # Nothing is stuck, nothing goes on.
    assert {status for status, _ in rows} == {Status.COMPLETED}
    assert timers == (0,)
    outcomes = [json.loads(output) for _, output in rows]
    steps = [step for outcome in outcomes if "steps" in outcome for step in outcome["steps"]]
    for name, deadline_s in (
        ("downloading", OPTIONS["ack_timeout_s"]),
        ("activating", OPTIONS["activation_timeout_s"]),
    ):
        longest_s = max(_took_s(step) for step in steps if step["step"] == name)
        # Those that never answer are waited for to the end, and nobody for much longer.
        assert deadline_s <= longest_s <= deadline_s + LATE_S


def _took_s(step: dict[str, Any]) -> float:
    began, ended = (datetime.fromisoformat(step[name]) for name in ("started_at", "ended_at"))
    return (ended - began).total_seconds()
