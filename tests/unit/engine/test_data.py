"""Data at the boundaries: the converter, annotations, options, times."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
from durabletask.serialization import JsonDataConverter

from provisioning.engine import EngineOptions
from provisioning.engine.functions import Functions, function_name, input_type_of, return_type_of
from provisioning.engine.records import to_datetime, to_microseconds
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER


@dataclass
class Point:
    x: int
    y: int = 0


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Hooked:
    def to_json(self) -> Any:
        return {"hooked": Point(1)}


Pair = namedtuple("Pair", "a b")

VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    10**30,
    "",
    "é\ud83d\ude00\ud800",
    [],
    {},
    [1, [None, {"a": [Point(1, 2)]}]],
    {1: "integer keys", None: 1, False: 2},
    Point(1, 2),
    {"p": Point(3), "h": Hooked()},
    Hooked(),
    SimpleNamespace(a=1, b=[Point(0)]),
    Pair(1, 2),
    Color.RED,
    Level.LOW,
    float("inf"),
    (1, 2),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_the_short_way_writes_and_reads_what_the_sdk_does(value: Any) -> None:
    """S-DATA-2: through the DataConverter, JSON by default, the same on either engine."""
    sdk = JsonDataConverter()
    text = DEFAULT_DATA_CONVERTER.serialize(value)
    assert text == sdk.serialize(value)
    assert DEFAULT_DATA_CONVERTER.deserialize(text) == sdk.deserialize(text)


@pytest.mark.parametrize(
    "value", [object(), {"a": object()}, {(1, 2): 3}, {1, 2}, b"bytes"], ids=lambda v: type(v).__name__
)
def test_what_is_no_data_is_refused_as_by_the_sdk(value: Any) -> None:
    """S-FAIL-8: as above."""
    for converter in (DEFAULT_DATA_CONVERTER, JsonDataConverter()):
        with pytest.raises(TypeError):
            converter.serialize(value)


@pytest.mark.parametrize(
    "text", [None, "", "null", '{"x": 1, "y": 2}', '{"__durabletask_autoobject__": true, "a": 1}']
)
@pytest.mark.parametrize("target", [None, Point, list[Point], Point | None])
def test_reading_is_the_sdks(text: str | None, target: Any) -> None:
    """S-DATA-4: None is stored as null; older SDKs' marker; target types."""
    expected = JsonDataConverter().deserialize(text, target)
    assert DEFAULT_DATA_CONVERTER.deserialize(text, target) == expected


def test_annotations_that_can_be_rebuilt_are_used() -> None:
    """S-DATA-3: inputs are rebuilt to the function's annotation where the converter can."""

    def point(ctx: Any, value: Point) -> Point:
        return value

    def points(ctx: Any, value: Sequence[Point], extra: int = 0) -> Point | None:
        return None

    def plain(ctx: Any, value: dict[str, int]) -> int:
        return 1

    def none(ctx: Any) -> None: ...

    def unresolved(ctx: Any, value: NoSuchType) -> NoSuchType:  # type: ignore[name-defined]  # noqa: F821 -- the point
        return value

    found = [input_type_of(f, DEFAULT_DATA_CONVERTER) for f in (point, points, plain, none, unresolved)]
    assert found == [Point, Sequence[Point], None, None, None]
    results = [return_type_of(f, DEFAULT_DATA_CONVERTER) for f in (point, points, plain, none, unresolved)]
    assert results == [Point, Point | None, None, None, None]


def test_asynchronous_callables_are_known_as_such() -> None:
    """S-ACT-2: `async def` activities run on the loop; objects with an async call too."""

    class Callable_:  # noqa: N801 -- a callable object, for want of a better name
        __name__ = "called"

        async def __call__(self, ctx: Any, value: int) -> int:
            return value

    functions = Functions(DEFAULT_DATA_CONVERTER)
    functions.add_activity("object", Callable_())
    functions.add_activity("plain", lambda ctx, value: value)
    assert functions.activities["object"].is_async
    assert not functions.activities["plain"].is_async


def test_a_lambda_has_no_name_of_its_own() -> None:
    """As the SDK: a name must be given for it."""
    unnamed: Callable[..., Any] = lambda ctx, value: value  # noqa: E731 -- the point
    with pytest.raises(ValueError, match="lambda"):
        function_name(unnamed)
    assert function_name("given") == "given"


@pytest.mark.parametrize(
    "name", ["max_async_activities", "max_live_instances", "maximum_timer_interval", "timer_window"]
)
def test_bounds_must_be_positive(name: str) -> None:
    """STYLE 10: a bound of nothing would be a standstill."""
    zero: Any = timedelta(0) if name.startswith(("maximum", "timer")) else 0
    with pytest.raises(ValueError, match=name):
        EngineOptions(**{name: zero})


@pytest.mark.parametrize(
    "when",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=-9, minutes=-30))),
    ],
)
def test_times_are_exact_to_the_microsecond(when: datetime) -> None:
    """records: microseconds since the epoch; naive is UTC."""
    naive = when.astimezone(UTC).replace(tzinfo=None)
    assert to_microseconds(when) == to_microseconds(naive)
    assert to_datetime(to_microseconds(when)) == naive
