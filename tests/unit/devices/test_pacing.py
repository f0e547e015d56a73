"""The ramp and the backoff: bounded, jittered, and the same for the same seed."""

from __future__ import annotations

import pytest

from devices.errors import FleetSpecError
from devices.pacing import Ramp, backoff_s


def test_the_ramp_gives_slots_at_its_rate_and_saves_none_up() -> None:
    now_s = [100.0]
    ramp = Ramp(10, lambda: now_s[0])
    assert [round(ramp.take_slot(), 3) for _ in range(4)] == [0.0, 0.1, 0.2, 0.3]
    now_s[0] += 60
    # A minute of rest does not allow a burst of six hundred.
    assert [round(ramp.take_slot(), 3) for _ in range(3)] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_ramp_needs_a_rate(rate: float) -> None:
    with pytest.raises(FleetSpecError, match="connects_per_s"):
        Ramp(rate, lambda: 0.0)


def test_backoff_grows_to_its_limit_and_differs_between_devices() -> None:
    def delay(seed: int, failures: int) -> float:
        return backoff_s(seed=seed, failures=failures, first_s=0.5, max_s=10)

    for failures in range(1, 2000, 7):
        ceiling = min(10.0, 0.5 * 2.0 ** min(failures - 1, 40))
        delays = [delay(seed, failures) for seed in range(50)]
        assert all(ceiling / 2 <= one <= ceiling for one in delays)
        assert len(set(delays)) == 50
    assert delay(3, 4) == delay(3, 4)
