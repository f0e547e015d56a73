"""How fast a rollout goes of late, whatever it waited for before."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.rollouts.rates import WINDOW_S, Rates
from tests.unit.rollouts.harness import Devices, register, service_on


def test_the_rate_is_that_of_the_last_minute() -> None:
    rates = Rates()
    assert rates.of_late("r", 0.0, 0) is None
    for second in range(3):
        rates.note("r", float(second), second)
    assert rates.of_late("r", 3.0, 3) is None
    # A night's pause: what was before it counts no more.
    night = 30_000.0
    rates.note("r", night, 3)
    assert rates.of_late("r", night + 1, 5) is None
    for second in range(1, 200):
        rates.note("r", night + second, 3 + 2 * second)
    assert rates.of_late("r", night + 200, 403) == pytest.approx(2.0)
    assert rates.of_late("other", night, 1) is None


def test_no_more_is_kept_than_the_window() -> None:
    rates = Rates()
    for tenth in range(10_000):
        rates.note("r", tenth / 10, tenth)
    assert len(rates._samples["r"]) <= WINDOW_S + 1
    assert rates.of_late("r", 1_000.0, 10_000) == pytest.approx(10.0)


async def test_the_expected_end_goes_by_it(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 100)
        made = await service.rollouts.create({"pace": {"in_flight": 1}}, actor="test")
        rollout_id = made["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 1)
        begun = service.rollouts._clock()
        # As if it had stood for a day, and then ended ten devices in ten seconds.
        rates = service.rollouts._store.rates
        rates._samples.clear()
        rates.note(rollout_id, begun + 86_400, -10)
        service.rollouts._clock = lambda: begun + 86_410
        view = await service.rollouts.view(rollout_id)
        assert view["devices_per_s"] == pytest.approx(1.0, rel=0.01)
        assert view["eta_s"] == pytest.approx(100, rel=0.01)
        devices.open.set()
        await service.ended(rollout_id)
