"""The ramp and the backoff: bounded, jittered, and the same for the same seed."""

from __future__ import annotations

import asyncio

import pytest

from devices.errors import FleetSpecError
from devices.pacing import Ramp, backoff_s
from devices.spec import RampSpec, Stage


def test_the_ramp_gives_slots_at_its_rate_and_saves_none_up() -> None:
    now_s = [100.0]
    ramp = Ramp(RampSpec(devices_per_s=10), lambda: now_s[0])
    assert [round(ramp.take_slot(), 3) for _ in range(4)] == [0.0, 0.1, 0.2, 0.3]
    now_s[0] += 60
    # A minute of rest does not allow a burst of six hundred.
    assert [round(ramp.take_slot(), 3) for _ in range(3)] == [0.0, 0.1, 0.2]


def test_the_ramp_goes_by_its_stages_and_a_process_has_its_share_of_them() -> None:
    now_s = [50.0]
    spec = RampSpec(
        devices_per_s=100, stages=(Stage(devices_per_s=1, for_s=2), Stage(devices_per_s=10, for_s=0.5))
    )
    ramp = Ramp(spec, lambda: now_s[0])
    assert [round(ramp.take_slot(), 3) for _ in range(10)] == [0, 1, 2, 2.1, 2.2, 2.3, 2.4, 2.5, 2.51, 2.52]
    half = Ramp(spec, lambda: now_s[0], share=0.5)
    assert [round(half.take_slot(), 3) for _ in range(6)] == [0, 2, 2.2, 2.4, 2.6, 2.62]


def test_jitter_puts_off_each_connection_by_the_seed() -> None:
    spec = RampSpec(devices_per_s=1000, jitter_s=5)
    delays = [Ramp(spec, lambda: 0.0, seed=seed).take_slot() for seed in (1, 1, 2)]
    assert delays[0] == delays[1] != delays[2]
    assert all(0 <= delay <= 5 for delay in delays)


async def test_slots_of_devices_that_have_gone_are_for_those_that_come() -> None:
    # As where a fleet is stopped while it comes up, and started again.
    ramp = Ramp(RampSpec(devices_per_s=1), lambda: 50.0)
    waiting = [asyncio.create_task(ramp.wait_turn()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in waiting[1:]:
        task.cancel()
    await asyncio.wait(waiting)
    assert [round(ramp.take_slot(), 3) for _ in range(100)] == [*range(1, 100), 100]


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_ramp_needs_a_rate(rate: float) -> None:
    with pytest.raises(FleetSpecError, match="devices_per_s"):
        RampSpec(devices_per_s=rate)


def test_backoff_grows_to_its_limit_and_differs_between_devices() -> None:
    def delay(seed: int, failures: int) -> float:
        return backoff_s(seed=seed, failures=failures, first_s=0.5, max_s=10)

    for failures in range(1, 2000, 7):
        ceiling = min(10.0, 0.5 * 2.0 ** min(failures - 1, 40))
        delays = [delay(seed, failures) for seed in range(50)]
        assert all(ceiling / 2 <= one <= ceiling for one in delays)
        assert len(set(delays)) == 50
    assert delay(3, 4) == delay(3, 4)
