"""Durable Functions' management API: starting, asking after one instance, and changing it. On each engine."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from provisioning.engines import EngineStoppedError
from provisioning.http import instances
from tests.unit.http.managed import INSTANCES, Managed

ENDED_IDS = ("plain", "run-1:dev-1", "rollout-1#3#7", "a/b", "a b", "100%", "ü")


def problem_of(answer: httpx.Response, status: int) -> str:
    """The detail of a problem with that status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    return detail


# Starting


async def test_a_client_that_polls_by_the_202_pattern_gets_the_output(api: Managed) -> None:
    answer = await api.client.post("/api/orchestrators/Greet", json="Ann")
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "10")
    urls = answer.json()
    assert answer.headers["location"] == urls["statusQueryGetUri"]
    location = answer.headers["location"]
    while (answer := await api.client.get(location)).status_code == 202:
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["runtimeStatus"] in ("Pending", "Running")
        location = answer.headers["location"]
        await asyncio.sleep(0.01)
    assert answer.status_code == 200
    found = answer.json()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.pop("createdTime"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.pop("lastUpdatedTime"))
    assert found == {
        "name": "Greet",
        "instanceId": urls["id"],
        "runtimeStatus": "Completed",
        "input": "Ann",
        "customStatus": None,
        "output": "Hello Ann!",
    }


@pytest.mark.parametrize("prefix", ["/api", "/runtime/webhooks/durabletask", "/Runtime/WebHooks/durableTask"])
async def test_it_starts_at_both_paths_in_any_case_with_the_id_given(embedded: Managed, prefix: str) -> None:
    answer = await embedded.client.post(
        f"{prefix}/orchestrators/Wait/w-1?taskHub=x&connection=Storage&code=k"
    )
    assert answer.status_code == 202
    there = f"http://localhost:7071{INSTANCES}/w-1"
    assert answer.json() == {
        "id": "w-1",
        "statusQueryGetUri": f"{there}?taskHub=muster",
        "sendEventPostUri": f"{there}/raiseEvent/{{eventName}}?taskHub=muster",
        "terminatePostUri": f"{there}/terminate?reason={{text}}&taskHub=muster",
        "rewindPostUri": f"{there}/rewind?reason={{text}}&taskHub=muster",
        "purgeHistoryDeleteUri": f"{there}?taskHub=muster",
        "restartPostUri": f"{there}/restart?taskHub=muster",
        "suspendPostUri": f"{there}/suspend?reason={{text}}&taskHub=muster",
        "resumePostUri": f"{there}/resume?reason={{text}}&taskHub=muster",
    }


@pytest.mark.parametrize("instance_id", ENDED_IDS)
async def test_the_urls_lead_to_the_instance_whatever_its_id_has_in_it(
    embedded: Managed, instance_id: str
) -> None:
    started = await embedded.client.post(f"/api/orchestrators/Wait/{_quoted(instance_id)}")
    urls = started.json()
    assert urls["id"] == instance_id
    there = await embedded.client.get(urls["statusQueryGetUri"])
    assert there.json()["instanceId"] == instance_id
    for name in ("suspendPostUri", "resumePostUri"):
        assert (await embedded.client.post(urls[name].replace("{text}", "why"))).status_code == 202
    raised = await embedded.client.post(urls["sendEventPostUri"].replace("{eventName}", "Go"), json=7)
    assert raised.status_code == 202
    await embedded.wait(instance_id)
    assert (await embedded.client.get(urls["statusQueryGetUri"])).json()["output"] == 7
    assert (await embedded.client.delete(urls["purgeHistoryDeleteUri"])).json() == {"instancesDeleted": 1}


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("Nobody", "There are: Greet, Leak, Parent, Try, Wait"),
        ("Greet/@entity@key", "starts with '@'"),
        ("Greet/%20", "is empty"),
        ("Greet/a%07b", "can't be seen"),
        ("Greet/a%E2%80%AEb", "can't be seen"),
        (f"Greet/{'x' * 257}", "256 characters at most"),
        ("Greet?timeout=-1", "timeout"),
        ("Greet?timeout=601", "timeout"),
        ("Greet?pollingInterval=soon", "pollingInterval"),
    ],
)
async def test_what_can_not_be_started_is_refused_with_the_reason(
    embedded: Managed, path: str, words: str
) -> None:
    assert words in problem_of(await embedded.client.post(f"/api/orchestrators/{path}"), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"NaN",
        b'{"a": Infinity}',
        b"1e999",
        b"\xff",
        b"[" * 101 + b"]" * 101,
        b"[" * 100_000,
        b"9" * 5_000,
    ],
)
async def test_an_input_that_is_no_json_is_refused(embedded: Managed, body: bytes) -> None:
    answer = await embedded.client.post("/api/orchestrators/Greet", content=body)
    assert "no JSON that can be used" in problem_of(answer, 400)


async def test_an_input_too_large_for_the_engine_is_refused(
    embedded: Managed, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = embedded.engine
    monkeypatch.setattr(engine._engine, "options", _options(engine, max_payload_bytes=10))
    answer = await embedded.client.post("/api/orchestrators/Greet", json="x" * 20)
    assert "over the limit of 10" in problem_of(answer, 413)


def _options(engine: Any, **changes: Any) -> Any:
    return type(engine._engine.options)(**changes)


async def test_an_id_is_taken_until_its_instance_has_ended(api: Managed) -> None:
    await api.start("Wait", "one")
    again = await api.client.post("/api/orchestrators/Greet/one", json="Bob")
    assert "'one' already exists" in problem_of(again, 409)
    await api.client.post(f"{INSTANCES}/one/terminate")
    await api.until("one", "Terminated")
    await api.ended("one", "Bob")
    found = await api.status("one")
    assert (found["name"], found["output"]) == ("Greet", "Hello Bob!")


async def test_with_a_timeout_the_answer_is_the_output(api: Managed) -> None:
    answer = await api.client.post("/api/orchestrators/Greet?timeout=60&pollingInterval=1", json="Ann")
    assert (answer.status_code, answer.json()) == (200, "Hello Ann!")
    failed = await api.client.post("/api/orchestrators/Try/t-1?timeout=60", json="it")
    assert failed.status_code == 200
    assert failed.json()["runtimeStatus"] == "Failed"
    assert "it is broken" in failed.json()["output"]
    late = await api.client.post("/api/orchestrators/Wait/w-1?timeout=0.05")
    assert (late.status_code, late.json()["id"]) == (202, "w-1")


async def test_an_orchestration_has_the_version_that_it_is_started_with(embedded: Managed) -> None:
    await embedded.client.post("/api/orchestrators/Greet/g-1?version=2.5", json="Ann")
    await embedded.wait("g-1")
    events = await embedded.engine.client.get_orchestration_history("g-1", max_events=1)
    assert getattr(events[0], "version", None) == "2.5"


# Asking


async def test_what_an_instance_waits_with_is_shown(api: Managed) -> None:
    await api.start("Wait", "w-1", {"for": "it"})
    found = await api.until("w-1", "Running")
    async with asyncio.timeout(60):
        while found["customStatus"] is None:
            found = await api.status("w-1")
    assert found["customStatus"] == {"waits": "for Go"}
    assert (found["input"], found["output"]) == ({"for": "it"}, None)
    assert "historyEvents" not in found
    assert (await api.status("w-1", showInput="false"))["input"] is None


async def test_a_history_is_durable_functions(api: Managed) -> None:
    await api.ended("p-1", "Ann", name="Parent")
    history = (await api.status("p-1", showHistory="true", showHistoryOutput="true"))["historyEvents"]
    moment = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
    times = [event.pop("Timestamp") for event in history] + [history[1].pop("ScheduledTime")]
    assert all(moment.fullmatch(time) for time in times)
    assert history == [
        {"EventType": "ExecutionStarted", "FunctionName": "Parent", "Input": '"Ann"'},
        {
            "EventType": "SubOrchestrationInstanceCompleted",
            "FunctionName": "Greet",
            "Input": '"Ann"',
            "Result": "Hello Ann!",
        },
        {"EventType": "ExecutionCompleted", "OrchestrationStatus": "Completed", "Result": "Hello Ann!"},
    ]
    bare = (await api.status("p-1", showHistory="true", showInput="false"))["historyEvents"]
    assert [event["EventType"] for event in bare] == [event["EventType"] for event in history]
    assert not any("Result" in event or "Input" in event for event in bare)
    child = (await api.status("p-1:child", showHistory="true"))["historyEvents"]
    assert (child[1]["EventType"], child[1]["FunctionName"]) == ("TaskCompleted", "Say")


async def test_a_history_has_events_failures_and_what_is_not_answered_yet(api: Managed) -> None:
    await api.start("Try", "t-1", "it")
    await api.wait("t-1")
    failed = (await api.status("t-1", showHistory="true"))["historyEvents"]
    assert [event["EventType"] for event in failed] == [
        "ExecutionStarted",
        "TaskFailed",
        "ExecutionCompleted",
    ]
    assert failed[1]["FunctionName"] == "Break"
    assert failed[1]["Reason"] == failed[1]["FailureDetails"]["ErrorMessage"] == "it is broken"
    assert failed[2]["OrchestrationStatus"] == "Failed"

    await api.start("Wait", "w-1")
    await api.until("w-1", "Running")
    await api.client.post(f"{INSTANCES}/w-1/raiseEvent/Go", json={"a": 1})
    await api.wait("w-1")
    raised = (await api.status("w-1", showHistory="true"))["historyEvents"][1]
    raised.pop("Timestamp")
    assert raised == {"EventType": "EventRaised", "Name": "Go", "Input": '{"a": 1}'}


async def test_a_long_history_is_cut_off_and_says_so(api: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.ended("g-1", "Ann")
    whole = await api.client.get(f"{INSTANCES}/g-1?showHistory=true")
    assert "x-muster-history-truncated" not in whole.headers
    monkeypatch.setattr(instances, "MAX_HISTORY_EVENTS", 2)
    answer = await api.client.get(f"{INSTANCES}/g-1?showHistory=true")
    assert answer.headers["x-muster-history-truncated"] == "true"
    kinds = [event["EventType"] for event in answer.json()["historyEvents"]]
    assert "ExecutionStarted" in kinds
    assert "ExecutionCompleted" not in kinds


async def test_a_failure_is_a_200_or_a_500_as_one_likes(api: Managed) -> None:
    await api.ended("t-1", "it", name="Try")
    answer = await api.client.get(f"{INSTANCES}/t-1")
    assert (answer.status_code, answer.json()["runtimeStatus"]) == (200, "Failed")
    assert "location" not in answer.headers
    answer = await api.client.get(f"{INSTANCES}/t-1?returnInternalServerErrorOnFailure=true")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/json")
    assert "it is broken" in answer.json()["output"]
    await api.ended("g-1", "Ann")
    assert (
        await api.client.get(f"{INSTANCES}/g-1?returnInternalServerErrorOnFailure=true")
    ).status_code == 200


async def test_the_location_of_a_running_one_repeats_what_was_asked(embedded: Managed) -> None:
    await embedded.start("Wait", "w-1")
    path = f"{INSTANCES}/w-1?code=secret%20key==&showInput=false&showHistory="
    answer = await embedded.client.get(path)
    assert answer.status_code == 202
    assert answer.headers["location"] == (
        f"http://localhost:7071{INSTANCES}/w-1?code=secret%20key==&showInput=false"
    )


# Changing


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "none"),
        ("DELETE", "none"),
        ("POST", "none/raiseEvent/Go"),
        ("POST", "none/terminate"),
        ("POST", "none/suspend"),
        ("POST", "none/resume"),
        ("POST", "none/rewind"),
        ("POST", "none/restart"),
    ],
)
async def test_an_instance_that_is_not_there_is_a_404(api: Managed, method: str, path: str) -> None:
    assert "'none'" in problem_of(await api.client.request(method, f"{INSTANCES}/{path}"), 404)


@pytest.mark.parametrize("operation", ["raiseEvent/Go", "terminate", "suspend", "resume"])
async def test_an_instance_that_has_ended_is_gone(api: Managed, operation: str) -> None:
    await api.ended("g-1", "Ann")
    detail = problem_of(await api.client.post(f"{INSTANCES}/g-1/{operation}", json=1), 410)
    assert "has ended (completed)" in detail


async def test_an_event_reaches_the_instance(api: Managed) -> None:
    await api.start("Wait", "w-1")
    answer = await api.client.post(f"{INSTANCES}/w-1/raiseEvent/Go", json={"a": [1, None]})
    assert (answer.status_code, answer.content) == (202, b"")
    await api.wait("w-1")
    assert (await api.status("w-1"))["output"] == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("text/plain", b"1", "application/json"),
        (None, b"1", "application/json"),
        ("application/json", b"{", "no JSON"),
        ("application/json; charset=utf-8", b"NaN", "no JSON"),
    ],
)
async def test_the_data_of_an_event_is_json(
    embedded: Managed, content_type: str | None, body: bytes, words: str
) -> None:
    await embedded.start("Wait", "w-1")
    headers = {} if content_type is None else {"content-type": content_type}
    answer = await embedded.client.post(f"{INSTANCES}/w-1/raiseEvent/Go", content=body, headers=headers)
    assert words in problem_of(answer, 400)


async def test_an_event_without_data_and_one_with_a_slash_in_its_name(embedded: Managed) -> None:
    await embedded.start("Wait", "w-1")
    headers = {"content-type": "application/json"}
    odd = await embedded.client.post(f"{INSTANCES}/w-1/raiseEvent/a%2Fb", headers=headers)
    assert odd.status_code == 202
    blank = await embedded.client.post(f"{INSTANCES}/w-1/raiseEvent/%20", headers=headers)
    assert "name is empty" in problem_of(blank, 400)
    assert (await embedded.client.post(f"{INSTANCES}/w-1/raiseEvent/Go", headers=headers)).status_code == 202
    await embedded.wait("w-1")
    found = await embedded.status("w-1", showHistory="true")
    assert found["output"] is None
    assert [event.get("Name") for event in found["historyEvents"]][1:3] == ["a/b", "Go"]


async def test_a_termination_has_its_reason_as_output(api: Managed) -> None:
    await api.start("Wait", "w-1")
    answer = await api.client.post(f"{INSTANCES}/w-1/terminate?reason=buggy")
    assert (answer.status_code, answer.content) == (202, b"")
    assert (await api.until("w-1", "Terminated"))["output"] == "buggy"


async def test_a_suspended_instance_waits_until_it_is_resumed(api: Managed) -> None:
    await api.start("Wait", "w-1")
    await api.until("w-1", "Running")
    assert (await api.client.post(f"{INSTANCES}/w-1/suspend?reason=lunch")).status_code == 202
    await api.until("w-1", "Suspended")
    answer = await api.client.get(f"{INSTANCES}/w-1?showHistory=true")
    assert (answer.status_code, "location" in answer.headers) == (202, True)
    await api.client.post(f"{INSTANCES}/w-1/raiseEvent/Go", json=1)
    assert (await api.status("w-1"))["runtimeStatus"] == "Suspended"
    assert (await api.client.post(f"{INSTANCES}/w-1/resume?reason=back")).status_code == 202
    found = await api.until("w-1", "Completed")
    assert found["output"] == 1


async def test_reasons_are_on_record(embedded: Managed) -> None:
    await embedded.start("Wait", "w-1")
    for operation in ("suspend?reason=lunch", "resume?reason=back", "terminate?reason=buggy"):
        assert (await embedded.client.post(f"{INSTANCES}/w-1/{operation}")).status_code == 202
    events = (await embedded.status("w-1", showHistory="true"))["historyEvents"]
    assert [event.get("Reason") for event in events][1:3] == ["lunch", "back"]
    too_long = await embedded.client.post(f"{INSTANCES}/w-1/suspend?reason={'x' * 4_001}")
    assert "reason" in problem_of(too_long, 400)


async def test_a_failed_instance_goes_on_from_where_it_failed(api: Managed) -> None:
    await api.ended("t-1", "it", name="Try")
    api.world.broken = False
    answer = await api.client.post(f"{INSTANCES}/t-1/rewind?reason=fixed")
    assert (answer.status_code, answer.content) == (202, b"")
    assert (await api.until("t-1", "Completed"))["output"] == "it works"
    again = await api.client.post(f"{INSTANCES}/t-1/rewind")
    assert "is completed: only one that has failed" in problem_of(again, 412)
    events = (await api.status("t-1", showHistory="true"))["historyEvents"]
    assert [event["Reason"] for event in events if event["EventType"] == "ExecutionRewound"] == ["fixed"]


async def test_an_instance_is_restarted_under_a_new_id_or_its_own(api: Managed) -> None:
    await api.start("Wait", "w-1", "in")
    running = await api.client.post(f"{INSTANCES}/w-1/restart?restartWithNewInstanceId=false")
    assert "only one that has ended" in problem_of(running, 409)
    beside = await api.client.post(f"{INSTANCES}/w-1/restart")
    assert beside.status_code == 202
    assert (await api.status(beside.json()["id"]))["input"] == "in"
    assert (await api.status("w-1"))["runtimeStatus"] in ("Pending", "Running")
    await api.client.post(f"{INSTANCES}/w-1/terminate")
    await api.until("w-1", "Terminated")

    other = await api.client.post(f"{INSTANCES}/w-1/restart")
    assert other.status_code == 202
    urls = other.json()
    assert urls["id"] != "w-1"
    assert (other.headers["location"], other.headers["retry-after"]) == (urls["statusQueryGetUri"], "10")
    assert (await api.status(urls["id"]))["input"] == "in"
    assert (await api.status("w-1"))["runtimeStatus"] == "Terminated"

    await api.ended("g-1", "Ann")
    waited = await api.client.post(f"{INSTANCES}/g-1/restart?timeout=60&pollingInterval=1")
    assert (waited.status_code, waited.json()) == (200, "Hello Ann!")

    same = await api.client.post(f"{INSTANCES}/w-1/restart?restartWithNewInstanceId=false")
    assert (same.status_code, same.json()["id"]) == (202, "w-1")
    assert (await api.status("w-1"))["runtimeStatus"] in ("Pending", "Running")


async def test_a_stopped_engine_is_a_503(embedded: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stopped(*_: Any, **__: Any) -> None:
        raise EngineStoppedError("the engine is not running: start it first")

    monkeypatch.setattr(embedded.engine.client, "get_orchestration_state", stopped)
    detail = problem_of(await embedded.client.get(f"{INSTANCES}/g-1"), 503)
    assert detail == "The engine is not running: start it first."
