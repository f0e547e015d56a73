"""No parser breaks: each target on what is known to be hard, on any bytes, on good inputs that are spoilt.

`make fuzz` looks further, guided by what code is reached.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import COMMON, SEEDS
from tests.fuzz.targets import TARGETS

EXAMPLES = 60
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=5,
)


def spoilt(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with a piece of it replaced: by other bytes or, where it is JSON, a value by another."""

    @st.composite
    def one(draw: st.DrawFn) -> bytes:
        seed = draw(st.sampled_from(seeds))
        head = seed[:1] if seed[1:2] == b"{" else b""
        try:
            document = json.loads(seed.removeprefix(head))
        except ValueError:
            document = None
        if isinstance(document, dict | list) and draw(st.booleans()):
            return head + json.dumps(_replaced(draw, document)).encode()
        begin = draw(st.integers(0, len(seed)))
        end = draw(st.integers(begin, min(len(seed), begin + 30)))
        return seed[:begin] + draw(st.binary(max_size=12)) * draw(st.sampled_from([1, 1, 300])) + seed[end:]

    return one()


def _replaced(draw: st.DrawFn, document: Any) -> Any:
    """The document with a value in it, at any depth, in the place of another."""
    if isinstance(document, dict | list) and document and draw(st.integers(0, 3)):
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        key = draw(st.sampled_from(keys))
        changed = document.copy()
        changed[key] = _replaced(draw, document[key])
        return changed
    return draw(VALUES)


def test_every_target_has_seeds() -> None:
    assert SEEDS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_known_to_be_hard_breaks_nothing(name: str) -> None:
    for data in (*SEEDS[name], *COMMON):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_breaks(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=200) | spoilt(SEEDS[name]))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()
