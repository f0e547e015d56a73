"""The ring of the latest events, and those who read it."""

from __future__ import annotations

import asyncio

import pytest

from provisioning.events.hub import TOPICS, Hub, Reader, StoppingError, TooManyReadersError, Topic
from tests.unit.events.watching import LIFE, hub, read, take


def opened(on: Hub, *topics: Topic, only: str | None = None, last_id: str | None = None) -> Reader:
    on.hold(topics or TOPICS)
    reader = on.open(topics or TOPICS, only=only, last_id=last_id)
    on.release(topics or TOPICS)
    return reader


async def greeted(on: Hub, *topics: Topic, only: str | None = None, last_id: str | None = None) -> Reader:
    reader = opened(on, *topics, only=only, last_id=last_id)
    assert (await take(reader))[0].name == "hello"
    return reader


async def test_a_stream_begins_with_who_serves_it() -> None:
    (hello,) = await take(opened(hub()))
    assert hello.data == {"service": LIFE, "version": "1"}
    assert hello.event_id.startswith(LIFE)


async def test_all_readers_are_sent_an_event_and_it_is_encoded_once() -> None:
    on = hub()
    readers = [await greeted(on) for _ in range(3)]
    on.publish("fleets", "fleet", {"fleet_id": "f"})
    texts = [await reader.next() for reader in readers]
    assert texts[0] is not None
    assert [event.data for event in read(texts[0])] == [{"fleet_id": "f"}]
    assert all(text is texts[0] for text in texts), "the same bytes, not as many copies"


async def test_readers_are_sent_what_they_asked_for() -> None:
    on = hub()
    fleets, runs = await greeted(on, "fleets"), await greeted(on, "runs", "devices")
    on.publish("fleets", "fleet", {"n": 1})
    on.publish("rollouts", "rollout", {"n": 2}, rollout_id="r")
    on.publish("runs", "run", {"n": 3})
    on.publish_devices("now", [("r", '["d"]')])
    assert [event.data["n"] for event in await take(fleets)] == [1]
    assert [event.name for event in await take(runs, 2)] == ["run", "devices"]


async def test_a_reader_of_one_rollout_hears_of_no_other_and_of_no_devices_elsewhere() -> None:
    on = hub()
    reader = await greeted(on, only="r1")
    on.publish("rollouts", "rollout", {"n": 1}, rollout_id="r2")
    on.publish_devices("t1", [("r2", '["a"]'), (None, '["b"]')])
    on.publish_devices("t2", [("r1", '["c"]'), ("r2", '["d"]')])
    on.publish("rollouts", "rollout", {"n": 2}, rollout_id="r1")
    events = await take(reader, 2)
    assert [event.data for event in events] == [{"at": "t2", "devices": [["c"]]}, {"n": 2}]


async def test_a_reader_that_comes_back_goes_on_where_it_was() -> None:
    on = hub()
    reader = await greeted(on)
    for number in range(5):
        on.publish("fleets", "fleet", {"n": number})
    events = await take(reader, 5)
    on.leave(reader)
    again = await greeted(on, last_id=events[2].event_id)
    assert [event.data["n"] for event in await take(again, 2)] == [3, 4]
    nothing = await greeted(on, last_id=events[4].event_id)
    on.publish("fleets", "fleet", {"n": 5})
    assert [event.data["n"] for event in await take(nothing)] == [5]
    assert on.statistics().resumed == 2


@pytest.mark.parametrize(
    "last_id", ["0000-2", f"{LIFE}-9999", f"{LIFE}-", "x", f"{LIFE}-x", f"{LIFE}-²", f"{LIFE}-" + "9" * 60]
)
async def test_an_id_that_is_not_of_this_life_is_a_reset(last_id: str) -> None:
    on = hub()
    await greeted(on)
    on.publish("fleets", "fleet", {"n": 1})
    reader = opened(on, last_id=last_id)
    hello, reset = await take(reader, 2)
    assert (hello.name, reset.name) == ("hello", "reset")
    assert reset.data["why"]
    on.publish("fleets", "fleet", {"n": 2})
    assert [event.data["n"] for event in await take(reader)] == [2], "what comes then is sent all the same"


@pytest.mark.parametrize("bound", [{"max_events": 3}, {"max_bytes": 3 * 2 * len('{"n":10}')}])
async def test_what_the_ring_has_lost_is_a_reset(bound: dict[str, int]) -> None:
    on = hub(**bound)
    reader = await greeted(on)
    ids = []
    for number in range(10, 20):
        on.publish("fleets", "fleet", {"n": number})
        ids += [event.event_id for event in await take(reader)]
    again = await greeted(on, last_id=ids[-4])
    assert [event.data["n"] for event in await take(again, 3)] == [17, 18, 19]
    assert (await take(opened(on, last_id=ids[-5]), 2))[1].name == "reset"
    assert on.statistics().kept == 3


async def test_what_happened_while_nobody_read_it_is_a_reset() -> None:
    on = hub(linger_s=0)
    reader = await greeted(on, "devices")
    on.publish_devices("t", [(None, '["d"]')])
    (event,) = await take(reader)
    on.leave(reader)
    while on.topics:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0)
    assert (await take(opened(on, "devices", last_id=event.event_id), 2))[1].name == "reset"


async def test_an_id_is_good_for_topics_that_were_recorded_all_the_time() -> None:
    on = hub()
    (event_id,) = [event.event_id for event in await take(opened(on, "devices"))]
    assert (await take(opened(on, "devices", "fleets", last_id=event_id), 2))[1].name == "reset"
    await greeted(on, "devices", last_id=event_id)


async def test_topics_are_kept_for_those_who_have_left_and_not_for_ever() -> None:
    on = hub(linger_s=0)
    told: list[set[str]] = []
    on.on_topics = lambda: told.append(set(on.topics))
    first, second = await greeted(on, "devices"), await greeted(on, "devices", "fleets")
    on.leave(second)
    while "fleets" in on.topics:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0)
    on.leave(first)
    while on.topics:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0)
    assert told == [{"devices"}, {"devices", "fleets"}, {"devices"}, set()]
    assert on.statistics().kept_bytes == 0


async def test_who_is_too_slow_is_dropped_and_nothing_is_kept_for_it() -> None:
    on = hub(max_events=10)
    slow, quick = await greeted(on), await greeted(on)
    cut: list[str] = []
    slow.abort, quick.abort = lambda: cut.append("slow"), lambda: cut.append("quick")
    for number in range(1_000):
        on.publish("fleets", "fleet", {"n": number})
        await take(quick)
    assert cut == ["slow"]
    assert await slow.next() is None
    assert (on.statistics().dropped, on.statistics().readers, on.statistics().kept) == (1, 1, 10)


async def test_one_event_that_is_larger_than_the_ring_reaches_those_who_keep_up() -> None:
    on = hub(max_bytes=10)
    reader = await greeted(on)
    for number in range(3):
        on.publish("fleets", "fleet", {"n": number, "text": "x" * 100})
        assert [event.data["n"] for event in await take(reader)] == [number]


async def test_there_is_a_limit_to_readers_and_a_place_when_one_has_left() -> None:
    on = hub(max_readers=2)
    first, _ = await greeted(on), await greeted(on)
    with pytest.raises(TooManyReadersError, match="2 read"):
        opened(on)
    on.leave(first)
    await greeted(on)
    assert on.statistics().refused == 1


async def test_a_comment_says_that_the_stream_lives_where_nothing_happens() -> None:
    reader = await greeted(hub(keep_alive_s=0))
    assert await reader.next() == b": keep-alive\n\n"


async def test_the_end_of_the_service_ends_all_streams_and_lets_none_begin() -> None:
    on = hub()
    waiting, sending = await greeted(on), await greeted(on)
    cut: list[str] = []
    waiting.abort, sending.abort = lambda: cut.append("waiting"), lambda: cut.append("sending")
    sending.sending = True
    end = asyncio.create_task(waiting.next())
    await asyncio.sleep(0)
    on.close()
    assert await end is None
    assert cut == ["sending"], "who waits is let go, who takes nothing is cut off"
    with pytest.raises(StoppingError):
        on.open(TOPICS)


async def test_no_event_has_a_secret_in_it() -> None:
    on = hub()
    reader = await greeted(on)
    on.publish("runs", "run", {"reason": "no https://x/y?sv=1&sig=c2VjcmV0&se=2"})
    on.publish_devices("t", [(None, '["d","https://x/y?sig=c2VjcmV0"]')])
    texts = await reader.next()
    assert texts is not None
    assert b"c2VjcmV0" not in texts
    assert texts.count(b"sig=***") == 2
