"""Durable Functions' management API: asking after many instances, and purging. On each engine."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from provisioning.http import instances
from tests.unit.http.managed import INSTANCES, Managed

TOKEN = "x-ms-continuation-token"


async def listed(api: Managed, token: str | None = None, **parameters: Any) -> httpx.Response:
    headers = {} if token is None else {TOKEN: token}
    answer = await api.client.get(INSTANCES, params=parameters, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def ids(api: Managed, **parameters: Any) -> list[str]:
    return [one["instanceId"] for one in (await listed(api, **parameters)).json()]


def problem_of(answer: httpx.Response, status: int = 400) -> str:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    return str(answer.json()["detail"])


async def test_instances_by_pages(api: Managed) -> None:
    assert (await listed(api)).json() == []
    for number in range(5):
        await api.ended(f"g-{number}", number)
    first = await listed(api, top=2)
    assert [one["instanceId"] for one in first.json()] == ["g-0", "g-1"]
    second = await listed(api, first.headers[TOKEN], top=2)
    assert [one["instanceId"] for one in second.json()] == ["g-2", "g-3"]
    last = await listed(api, second.headers[TOKEN], top=2)
    assert [one["instanceId"] for one in last.json()] == ["g-4"]
    assert TOKEN not in last.headers
    assert last.json()[0]["output"] == "Hello 4!"
    assert last.json()[0]["name"] == "Greet"


async def test_pages_stand_though_instances_come_and_go(embedded: Managed) -> None:
    for number in range(6):
        await embedded.ended(f"g-{number}")
    first = await listed(embedded, top=3)
    for gone in ("g-0", "g-2", "g-3"):
        assert (await embedded.client.delete(f"{INSTANCES}/{gone}")).status_code == 200
    await embedded.ended("g-6")
    rest = await listed(embedded, first.headers[TOKEN], top=10)
    assert [one["instanceId"] for one in rest.json()] == ["g-4", "g-5", "g-6"]


async def test_a_page_has_a_hundred_and_a_thousand_at_most(
    embedded: Managed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(101):
        await embedded.start("Greet", f"g-{number}")
    assert len(await ids(embedded)) == 100
    monkeypatch.setattr(instances, "MAX_INSTANCES_ON_PAGE", 50)
    assert len(await ids(embedded, top=1_000_000)) == 50


@pytest.mark.parametrize(
    "token",
    ["nonsense", "é", "", base64.urlsafe_b64encode(b"nonsense").decode(), base64.b64encode(b"\xff").decode()],
)
async def test_a_token_that_is_none_is_refused(embedded: Managed, token: str) -> None:
    answer = await embedded.client.get(INSTANCES, headers={TOKEN.encode(): token.encode()})
    if token:
        assert "no continuation token" in problem_of(answer)
    else:
        assert answer.json() == []


async def test_instances_by_status(api: Managed) -> None:
    await api.ended("g-1")
    await api.ended("t-1", name="Try")
    await api.start("Wait", "w-1")
    await api.until("w-1", "Running")
    await api.start("Wait", "w-2")
    await api.client.post(f"{INSTANCES}/w-2/terminate")
    await api.until("w-2", "Terminated")
    assert await ids(api, runtimeStatus="Completed") == ["g-1"]
    assert await ids(api, runtimeStatus="completed, Failed") == ["g-1", "t-1"]
    assert await ids(api, runtimeStatus=["Running", "Terminated"]) == ["w-1", "w-2"]
    assert await ids(api, runtimeStatus="") == ["g-1", "t-1", "w-1", "w-2"]
    assert await ids(api, runtimeStatus="Pending,Suspended,Canceled,ContinuedAsNew") == []
    answer = await api.client.get(INSTANCES, params={"runtimeStatus": "Completed,Sleeping"})
    assert "'Sleeping' is none. There are Running, Completed" in problem_of(answer)


async def test_instances_by_id_and_time(api: Managed) -> None:
    await api.ended("a-1")
    await api.ended("b-1")
    assert await ids(api, instanceIdPrefix="b") == ["b-1"]
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    before = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert await ids(api, createdTimeFrom=before, createdTimeTo=soon) == ["a-1", "b-1"]
    assert await ids(api, createdTimeFrom=soon) == []
    assert await ids(api, createdTimeTo=before) == []
    assert await ids(api, createdTimeTo=before.replace("+00:00", "")) == []
    for name in ("createdTimeFrom", "createdTimeTo"):
        answer = await api.client.get(INSTANCES, params={name: "yesterday"})
        assert name in problem_of(answer)


async def test_the_time_until_which_is_included(embedded: Managed) -> None:
    await embedded.ended("g-1")
    state = await embedded.engine.client.get_orchestration_state("g-1")
    assert state is not None
    at = state.created_at
    earlier = at - timedelta(microseconds=1)
    assert await ids(embedded, createdTimeFrom=at.isoformat(), createdTimeTo=at.isoformat()) == ["g-1"]
    assert await ids(embedded, createdTimeTo=earlier.isoformat()) == []
    assert await ids(embedded, createdTimeTo=f"{at.isoformat()}-01:00") == ["g-1"]
    assert await ids(embedded, createdTimeTo=f"{at.isoformat()}+01:00") == []


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59.999999-23:00"])
async def test_times_at_the_ends_of_time_are_refused(embedded: Managed, moment: str) -> None:
    answer = await embedded.client.get(INSTANCES, params={"createdTimeTo": moment})
    assert "out of range" in problem_of(answer)


async def test_the_last_moment_that_there_is(embedded: Managed) -> None:
    await embedded.ended("g-1")
    assert await ids(embedded, createdTimeTo="9999-12-31T23:59:59.999999") == ["g-1"]


async def test_inputs_are_shown_unless_not_wanted(api: Managed) -> None:
    await api.ended("g-1", "Ann")
    for path in (INSTANCES, f"{INSTANCES}/"):
        assert (await api.client.get(path)).json()[0]["input"] == "Ann"
    assert (await listed(api, showInput="false")).json()[0]["input"] is None
    assert "top" in problem_of(await api.client.get(INSTANCES, params={"top": 0}))


# Purging


async def test_one_is_purged_when_it_has_ended(api: Managed) -> None:
    await api.start("Wait", "w-1")
    await api.until("w-1", "Running")
    assert "is running: only one that has ended" in problem_of(
        await api.client.delete(f"{INSTANCES}/w-1"), 412
    )
    await api.client.post(f"{INSTANCES}/w-1/terminate")
    await api.until("w-1", "Terminated")
    answer = await api.client.delete(f"{INSTANCES}/w-1")
    assert (answer.status_code, answer.json()) == (200, {"instancesDeleted": 1})
    assert (await api.client.get(f"{INSTANCES}/w-1")).status_code == 404


async def test_a_purge_of_one_leaves_its_children(api: Managed) -> None:
    await api.ended("p-1", "Ann", name="Parent")
    assert (await api.client.delete(f"{INSTANCES}/p-1")).json() == {"instancesDeleted": 1}
    assert await ids(api) == ["p-1:child"]


async def test_many_are_purged_by_time_and_status(api: Managed) -> None:
    await api.ended("g-1")
    await api.ended("g-2")
    await api.ended("t-1", name="Try")
    await api.start("Wait", "w-1")
    await api.until("w-1", "Running")
    early = "2020-01-01T00:00:00Z"

    async def purge(**parameters: Any) -> httpx.Response:
        return await api.client.delete(INSTANCES, params=parameters)

    assert "createdTimeFrom" in problem_of(await purge())
    assert "fits this" in problem_of(await purge(createdTimeFrom=early, createdTimeTo=early), 404)
    assert "fits this" in problem_of(await purge(createdTimeFrom=early, runtimeStatus="Running"), 404)
    assert "no such filter" in problem_of(await purge(createdTimeFrom=early, instanceIdPrefix="g"))
    assert "is none" in problem_of(await purge(createdTimeFrom=early, runtimeStatus="Complete"))
    assert await ids(api) == ["g-1", "g-2", "t-1", "w-1"]
    failed = await purge(createdTimeFrom=early, runtimeStatus="Failed", taskHub="x", connection="y", code="z")
    assert (failed.status_code, failed.json()) == (200, {"instancesDeleted": 1})
    assert (await purge(createdTimeFrom=early)).json() == {"instancesDeleted": 2}
    assert await ids(api) == ["w-1"]
