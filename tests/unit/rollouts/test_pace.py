"""The time between two starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.rollouts.pace import interval_s
from provisioning.rollouts.plan import Pace


def of(per_minute: Any, *, notified: int = 0, succeeded: int = 0) -> float:
    pace = Pace.from_json({"per_minute": per_minute})
    return interval_s(pace.per_minute, notified=notified, succeeded=succeeded)


BY_NOTIFIED = {"base": 10, "factor": 2, "grow_after_notified": 100, "maximum": 55}
BY_SUCCEEDED = {"base": 10, "factor": 1.5, "grow_after_succeeded": 7, "maximum": 1_000_000}


@pytest.mark.parametrize(
    ("per_minute", "notified", "succeeded", "rate"),
    [
        (30, 0, 0, 30),
        (30, 10**6, 10**6, 30),
        (BY_NOTIFIED, 99, 99, 10),
        (BY_NOTIFIED, 100, 0, 20),
        (BY_NOTIFIED, 299, 0, 40),
        (BY_NOTIFIED, 300, 0, 55),
        (BY_NOTIFIED, 99, 500, 10),
        (BY_SUCCEEDED, 500, 6, 10),
        (BY_SUCCEEDED, 500, 14, 22.5),
        (BY_SUCCEEDED, 10**9, 10**9, 1_000_000),
        (BY_NOTIFIED | {"factor": 1}, 10**9, 0, 10),
        (BY_NOTIFIED | {"maximum": 10}, 10**9, 0, 10),
    ],
)
def test_so_many_a_minute(per_minute: Any, notified: int, succeeded: int, rate: float) -> None:
    assert of(per_minute, notified=notified, succeeded=succeeded) == pytest.approx(60 / rate)


def test_no_rate_is_no_wait() -> None:
    assert of(None) == 0.0


@given(
    st.floats(0.001, 10_000),
    st.floats(1, 100),
    st.integers(1, 100_000),
    st.floats(1, 100),
    st.integers(0, 10**9),
    st.integers(0, 10**6),
)
def test_it_grows_and_never_passes_its_maximum(
    base: float, factor: float, after: int, times: float, count: int, more: int
) -> None:
    rate = {"base": base, "factor": factor, "grow_after_succeeded": after, "maximum": base * times}
    before, later = (of(rate, succeeded=n) for n in (count, count + more))
    assert later <= before * (1 + 1e-9)
    assert 60 / (base * times) <= later <= 60 / base * (1 + 1e-9)
