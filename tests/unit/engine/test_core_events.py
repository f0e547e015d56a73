"""External events and their idempotency keys on the pure core."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from durabletask import task
from durabletask.serialization import JsonDataConverter

from provisioning.engine.options import EngineOptions
from provisioning.engine.records import Kind
from tests.unit.engine.driving import Ctx, Driver, Steps, failure_of, output_of


def test_event_names_match_by_casefold_and_are_buffered_in_order() -> None:
    """S-EVT-1, S-EVT-2: names match by `casefold()`; earlier events are buffered, in order."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        first = yield ctx.wait_for_external_event("STRASSE")
        second = yield ctx.wait_for_external_event("straße")
        return [first, second]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("Straße", 1), driver.event("strasse", 2))
    driver.reload()
    assert output_of(driver.turn(driver.event("GO"))) == [1, 2]


def test_the_earliest_waiter_gets_the_earliest_event() -> None:
    """S-EVT-2: the earliest waiter gets the earliest event; a waiter left behind takes the next."""

    def main(ctx: Ctx, _: Any) -> Steps:
        left_behind = ctx.wait_for_external_event("e")
        mine = ctx.wait_for_external_event("e")
        value = yield mine
        return [left_behind.get_result(), value]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("e", "first"))
    assert output_of(driver.turn(driver.event("e", "second"))) == ["first", "second"]


def test_a_cancelled_waiter_takes_no_event() -> None:
    """S-EVT-4: one races the wait with a timer and must cancel the loser."""

    def main(ctx: Ctx, _: Any) -> Steps:
        wait, timer = ctx.wait_for_external_event("e"), ctx.create_timer(timedelta(minutes=1))
        winner = yield task.when_any([wait, timer])
        assert winner is timer
        wait.cancel()
        return (yield ctx.wait_for_external_event("e"))

    driver = Driver(main)
    driver.start()
    driver.turn(driver.fired(1))
    assert output_of(driver.turn(driver.event("e", "kept"))) == "kept"


def test_a_cancelled_timer_is_reported_for_removal_once_it_is_on_disk() -> None:
    """S-EVT-5, S-TMR-2: a timer left behind keeps nothing running; cancellable."""

    def main(ctx: Ctx, _: Any) -> Steps:
        wait, timer = ctx.wait_for_external_event("e"), ctx.create_timer(timedelta(minutes=1))
        yield task.when_any([wait, timer])
        assert timer.cancel()
        assert not timer.cancel()
        yield ctx.wait_for_external_event("end")

    driver = Driver(main)
    driver.start()
    turn = driver.turn(driver.event("e"))
    assert turn.cancelled_timers == [1]
    late = driver.turn(driver.fired(1))
    assert late.events == []


def test_events_are_decoded_by_the_waiters_type() -> None:
    """S-EVT-3: the payload is kept as raw JSON and decoded by the waiter's `data_type`."""
    from dataclasses import dataclass

    @dataclass
    class Ack:
        size: int

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        buffered = yield ctx.wait_for_external_event("ack", data_type=Ack)
        direct = yield ctx.wait_for_external_event("ack", data_type=Ack)
        return [isinstance(buffered, Ack), buffered.size, isinstance(direct, Ack), direct.size]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("ack", {"size": 1}))
    driver.turn(driver.event("go"))
    assert output_of(driver.turn(driver.event("ack", {"size": 2}))) == [True, 1, True, 2]


def test_an_idempotency_key_is_applied_once() -> None:
    """S-EVT-8: the same key is applied once to an instance, after a replay too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        got = []
        for _n in range(3):
            got.append((yield ctx.wait_for_external_event("e")))  # noqa: PERF401 -- yields
        return got

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("e", 1, key="k1"), driver.event("e", 1, key="k1"))
    driver.reload()
    assert driver.turn(driver.event("e", 1, key="k1")).events == []
    driver.turn(driver.event("e", 2, key="k2"))
    assert output_of(driver.turn(driver.event("e", 3))) == [1, 2, 3]


def test_events_before_the_start_are_kept() -> None:
    """S-EVT-7: an event for an instance that is pending is kept."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.wait_for_external_event("e"))

    driver = Driver(main)
    assert output_of(driver.turn(driver.start_message(), driver.event("e", 7))) == 7


def test_send_event_is_fire_and_forget_with_a_task_id() -> None:
    """S-EVT-9: `send_event` from an orchestrator: fire and forget."""

    def main(ctx: Ctx, _: Any) -> Steps:
        ctx.send_event("other", "Hello", data={"n": 1})
        return (yield ctx.call_activity("A"))

    driver = Driver(main)
    turn = driver.start()
    sent = turn.actions[0]
    assert (sent.kind, sent.task_id, sent.name, sent.ref, sent.data) == (
        Kind.EVENT_SENT,
        1,
        "Hello",
        "other",
        '{"n": 1}',
    )
    assert output_of(driver.turn(driver.done(2, "x"))) == "x"


@pytest.mark.parametrize(("target", "name"), [("", "e"), (" ", "e"), ("@entity", "e"), ("x", ""), ("x", " ")])
def test_send_event_checks_its_arguments(target: str, name: str) -> None:
    """As the SDK: empty names and entity ids are a ValueError into the orchestrator."""

    def main(ctx: Ctx, _: Any) -> None:
        ctx.send_event(target, name)

    assert failure_of(Driver(main).start()).error_type == "builtins.ValueError"


def test_buffered_events_have_a_bound() -> None:
    """S-DATA-7: limits are ours to name: events buffered."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("never")

    driver = Driver(main, options=EngineOptions(max_buffered_events=2))
    driver.start()
    driver.turn(driver.event("e"), driver.event("e"))
    failure = failure_of(driver.turn(driver.event("e")))
    assert failure.error_type == "builtins.BufferError"
    assert "'e'" in failure.message


def test_a_waiter_left_behind_takes_the_next_event_and_a_composite_does_not_cancel_it() -> None:
    """S-EVT-4: losers of a race go on waiting, unless they are cancelled."""

    def main(ctx: Ctx, _: Any) -> Steps:
        loser = ctx.wait_for_external_event("e")
        yield task.when_any([loser, ctx.create_timer(timedelta(seconds=1))])
        second = ctx.wait_for_external_event("e")
        value = yield second
        return [loser.get_result(), value]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.fired(1))
    driver.turn(driver.event("e", "the loser's"))
    driver.reload()
    assert output_of(driver.turn(driver.event("e", "mine"))) == ["the loser's", "mine"]


# Idempotency keys and continue_as_new


def takes_and_goes_on(ctx: Ctx, state: list[Any]) -> Steps:
    """Takes one event in each of its executions, and says at last what it has had."""
    save, want, *had = state
    got = yield ctx.wait_for_external_event("e")
    if len(had) + 1 == want:
        return [*had, got]
    ctx.continue_as_new([save, want, *had, got], save_events=save)


def goes_on(driver: Driver) -> None:
    """Begin the next execution, and go on with a replayed one, as after a restart."""
    assert driver.last is not None
    assert driver.last.completion is not None
    driver.continue_as_new(driver.last.completion)


@pytest.mark.parametrize("save", [True, False])
def test_a_key_is_applied_once_whatever_the_number_of_executions(save: bool) -> None:
    """S-EVT-8: the same key is applied once to an instance, after `continue_as_new` too."""
    driver = Driver(takes_and_goes_on)
    driver.start([save, 4])
    for n in range(3):
        driver.turn(driver.event("e", n, key=f"k{n}"))
        goes_on(driver)
        driver.reload()
        for earlier in range(n + 1):
            assert driver.turn(driver.event("e", "again", key=f"k{earlier}")).events == []
    assert output_of(driver.turn(driver.event("e", 3, key="k3"))) == [0, 1, 2, 3]


def test_an_event_that_is_carried_over_is_applied_there_and_once() -> None:
    """S-EVT-8, S-CAN-4: neither its key nor a repetition of it takes the event away."""
    driver = Driver(takes_and_goes_on)
    driver.start([True, 3])
    driver.turn(
        driver.event("e", 0, key="k0"),
        driver.event("e", 1, key="k1"),  # comes in the turn of the change: carried over
        driver.event("e", "again", key="k0"),
        driver.event("e", "again", key="k1"),
    )
    goes_on(driver)
    assert driver.last is not None
    assert driver.last.completion is not None, "the event that came along was taken"
    goes_on(driver)
    assert driver.turn(driver.event("e", "again", key="k1")).events == []
    assert output_of(driver.turn(driver.event("e", 2))) == [0, 1, 2]


def test_events_that_were_kept_come_along_before_later_ones() -> None:
    """S-CAN-4: in order of arrival, those of the last turn and those after it behind."""

    def main(ctx: Ctx, n: int) -> Steps:
        if n == 0:
            yield ctx.wait_for_external_event("go")
            ctx.continue_as_new(1, save_events=True)
            return None
        got = []
        for _ in range(4):
            got.append((yield ctx.wait_for_external_event("e")))  # noqa: PERF401 -- yields
        return got

    driver = Driver(main)
    driver.start(0)
    driver.turn(driver.event("e", 1, key="k1"))
    driver.turn(driver.event("E", 2), driver.event("go"), driver.event("e", 3))
    goes_on(driver)
    driver.reload()
    assert output_of(driver.turn(driver.event("e", 4))) == [1, 2, 3, 4]


def test_an_event_that_was_dropped_has_had_its_turn() -> None:
    """S-EVT-8, S-CAN-4: without `save_events` what nobody took is gone, and does not come by repetition."""
    driver = Driver(takes_and_goes_on)
    driver.start([False, 2])
    driver.turn(driver.event("other", key="kept"))
    driver.turn(driver.event("e", 0), driver.event("e", "dropped", key="late"))
    goes_on(driver)
    for key in ("kept", "late"):
        assert driver.turn(driver.event("e", "again", key=key)).events == []
    assert output_of(driver.turn(driver.event("e", 1))) == [0, 1]


def test_the_latest_keys_come_along_up_to_their_bound() -> None:
    """S-EVT-8: `max_carried_event_keys`, for what no execution forgets would grow for ever."""
    driver = Driver(takes_and_goes_on, options=EngineOptions(max_carried_event_keys=2))
    driver.start([False, 5])
    for n in range(3):
        driver.turn(driver.event("e", n, key=f"k{n}"))
        goes_on(driver)
    carried = [e for e in driver.history if e.kind == Kind.EVENT_KEYS]
    assert [e.data for e in carried] == ['["k1", "k2"]']
    assert driver.turn(driver.event("e", "again", key="k1")).events == []
    assert driver.turn(driver.event("e", "forgotten", key="k0")).events != []


def test_events_without_keys_carry_nothing() -> None:
    """S-EVT-8: an orchestration without keys pays nothing for them."""
    driver = Driver(takes_and_goes_on)
    driver.start([True, 2])
    driver.turn(driver.event("e", 0))
    goes_on(driver)
    assert [Kind(e.kind) for e in driver.history] == [Kind.EXECUTION_STARTED]


def test_a_suspension_does_not_hold_the_keys_that_came_along() -> None:
    """S-EVT-8, S-CAN-6: a suspension of the very turn reaches the next execution, and so do the keys."""
    driver = Driver(takes_and_goes_on)
    driver.start([True, 2])
    driver.turn(driver.event("e", 0, key="k0"), driver.suspend())
    goes_on(driver)
    assert driver.execution.suspended
    driver.reload()
    assert driver.turn(driver.event("e", "again", key="k0")).events == []
    driver.turn(driver.event("e", 1))
    assert output_of(driver.turn(driver.resume())) == [0, 1]


# Data that a converter refuses


class Picky(JsonDataConverter):
    """Refuses what says that it is bad."""

    def deserialize(self, data: str | None, target_type: type | None = None) -> Any:
        if data == '"bad"':
            raise ValueError("bad data")
        return super().deserialize(data, target_type)


@pytest.mark.parametrize("how", ["result", "event"])
def test_data_that_the_converter_refuses_fails_the_orchestration(how: str) -> None:
    """S-DATA-9: nobody is there to hear it but the orchestration."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield task.when_any([ctx.call_activity("A"), ctx.wait_for_external_event("e")])

    driver = Driver(main, converter=Picky())
    driver.start()
    failure = failure_of(driver.turn(driver.done(1, "bad") if how == "result" else driver.event("e", "bad")))
    assert (failure.error_type, failure.message) == ("builtins.ValueError", "bad data")


def test_a_kept_event_that_the_converter_refuses_raises_where_it_is_taken() -> None:
    """S-DATA-9: the code that takes it may handle it."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        try:
            yield ctx.wait_for_external_event("e")
        except ValueError as error:
            return str(error)

    driver = Driver(main, converter=Picky())
    driver.start()
    assert output_of(driver.turn(driver.event("e", "bad"), driver.event("go"))) == "bad data"


def test_a_wait_for_what_is_no_name_is_an_error_in_the_code() -> None:
    """S-EVT-1: names are text."""

    def main(ctx: Ctx, name: Any) -> str:
        try:
            ctx.wait_for_external_event(name)
        except TypeError as error:
            return str(error)
        return "no error"

    assert output_of(Driver(main).start()) == "the event's name must be text, not 'NoneType'"
