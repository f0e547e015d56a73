"""Requests as clients of Durable Functions write them: in any case, with slashes, with empty parameters."""

from __future__ import annotations

import pytest

from tests.unit.http.managed import INSTANCES, Managed

BASE = "/runtime/webhooks/durabletask"


@pytest.mark.parametrize(
    "path",
    [
        "/API/Orchestrators/Greet/Id-1",
        "/api/orchestrators/Greet/Id-1/",
        "/api/orchestrators/Greet/Id-1?timeout=&pollingInterval=&version=&code=",
        "/Runtime/Webhooks/DurableTask/ORCHESTRATORS/Greet/Id-1",
    ],
)
async def test_starts(embedded: Managed, path: str) -> None:
    answer = await embedded.client.post(path, json="Ann")
    assert (answer.status_code, answer.json()["id"]) == (202, "Id-1")


@pytest.mark.parametrize("path", ["/api/orchestrators/Greet/", f"{BASE}/orchestrators/Greet/"])
async def test_a_slash_at_the_end_is_no_id(embedded: Managed, path: str) -> None:
    answer = await embedded.client.post(path, json="Ann")
    assert (answer.status_code, len(answer.json()["id"])) == (202, 32)


@pytest.mark.parametrize("instance_id", ["Id-1", "a/", "a/Terminate", "INSTANCES"])
async def test_operations_in_any_case_on_the_instance_of_just_that_id(
    embedded: Managed, instance_id: str
) -> None:
    quoted = instance_id.replace("/", "%2F")
    await embedded.client.post(f"/api/orchestrators/Wait/{quoted}")
    there = f"{BASE}/Instances/{quoted}"
    for path in (there, f"{there}/"):
        answer = await embedded.client.get(path, params={"SHOWINPUT": "True"})
        assert (answer.status_code, answer.json()["instanceId"]) == (202, instance_id)
    for operation in ("Suspend", "RESUME/", "raiseevent/Other", "RaiseEvent/a%2FB/", "Terminate"):
        answer = await embedded.client.post(f"{there}/{operation}", json={})
        assert answer.status_code == 202, (operation, answer.text)


async def test_the_name_of_an_event_stays_as_it_is(embedded: Managed) -> None:
    await embedded.start("Wait", "w-1")
    await embedded.client.post(f"{INSTANCES}/w-1/RAISEEVENT/Go", json="went")
    await embedded.wait("w-1")
    assert (await embedded.status("w-1"))["output"] == "went"


async def test_a_filter_in_another_case_is_one(embedded: Managed) -> None:
    await embedded.ended("g-1")
    await embedded.ended("t-1", "it", name="Try")
    listed = await embedded.client.get(f"{BASE}/INSTANCES/", params={"runtimestatus": "Failed", "TOP": "5"})
    assert [one["instanceId"] for one in listed.json()] == ["t-1"]
    purged = await embedded.client.delete(
        INSTANCES, params={"createdtimefrom": "2020-01-01", "RuntimeStatus": "Failed"}
    )
    assert purged.json() == {"instancesDeleted": 1}


@pytest.mark.parametrize("moment", ["2026", "20260101", "1.5", "-5", "1e3"])
async def test_a_number_is_no_time(embedded: Managed, moment: str) -> None:
    await embedded.ended("g-1")
    for name in ("createdTimeFrom", "createdTimeTo"):
        times = {"createdTimeFrom": "2020-01-01", name: moment}
        for method in ("GET", "DELETE"):
            answer = await embedded.client.request(method, INSTANCES, params=times)
            assert (answer.status_code, "ISO 8601" in answer.json()["detail"]) == (400, True)
    assert (await embedded.status("g-1"))["runtimeStatus"] == "Completed"


@pytest.mark.parametrize("moment", ["1-01-01T00:00:00.000000Z", "2020-01-01", "2020-01-01T00:00:00"])
async def test_times_as_clients_write_them(embedded: Managed, moment: str) -> None:
    await embedded.ended("g-1")
    answer = await embedded.client.get(INSTANCES, params={"createdTimeFrom": moment})
    assert [one["instanceId"] for one in answer.json()] == ["g-1"]
