"""Which version is older, for all labels that people give."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.versions import is_older

LABELS = st.one_of(
    st.text(max_size=30),
    st.from_regex(r"\A[a-z]{0,3}-?v?[0-9]{1,3}(\.[0-9]{1,3}){0,3}(-[a-z0-9.]{1,5})?(\+[a-z0-9]{1,3})?\Z"),
)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.9.0", "1.0.0"),
        ("2.9", "2.10"),
        ("1.0", "1.0.1"),
        ("v1.2", "1.3"),
        ("thermo-2.1.0", "thermo-2.2.0"),
        ("a-b-c_1", "a-b-c_2"),
        ("t1 fw 2.0", "t1 fw 3.0"),
        ("1.0.0-alpha", "1.0.0-alpha.1"),
        ("1.0.0-alpha.1", "1.0.0-alpha.beta"),
        ("1.0.0-beta.2", "1.0.0-beta.11"),
        ("1.0.0-rc.1", "1.0.0"),
        ("2026-06-01", "2026-07-01"),
    ],
)
def test_one_is_older(older: str, newer: str) -> None:
    assert is_older(older, newer)
    assert not is_older(newer, older)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.0", "1.0"),
        ("1.0", "1.0.0"),
        ("1.0+build1", "1.0+build2"),
        ("v1.0", "1.0"),
        # Another line, or none: they can't be compared.
        ("demo-1.0.0", "0.9.0"),
        ("thermo-1.0", "demo-2.0"),
        ("blue", "red"),
        ("blue", "1.0"),
        ("1.0.0a", "1.0.0b"),
        ("x1", "x2"),
        ("", "1"),
        ("-", "_"),
        ("\u0661.0", "\u0662.0"),
    ],
)
def test_neither_is_older(one: str, other: str) -> None:
    assert not is_older(one, other)
    assert not is_older(other, one)


@settings(deadline=None)
@given(LABELS, LABELS, LABELS)
def test_it_is_an_order_of_whatever_labels(one: str, two: str, three: str) -> None:
    assert not is_older(one, one)
    assert not (is_older(one, two) and is_older(two, one))
    if is_older(one, two) and is_older(two, three):
        assert is_older(one, three)
