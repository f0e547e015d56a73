"""Cells, series, the overview, readiness, metrics, children and versions, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any, cast

import httpx
import pytest

from provisioning.http.conditions import is_unchanged, wanted
from provisioning.inspection.overview import Inspection, NotReadyError
from provisioning.registry import Registry
from provisioning.service import Service
from provisioning.states import DeviceState
from tests.unit.inspection.conftest import end

Json = dict[str, Any]


async def get(api: httpx.AsyncClient, path: str, **parameters: Any) -> Json:
    answer = await api.get(path, params=parameters or None)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def states(cells: Json) -> list[str]:
    return [cells["states"][code] for code in base64.b64decode(cells["codes"])]


async def test_cells_say_the_state_of_each_device_in_order_of_id(
    api: httpx.AsyncClient, devices: list[str]
) -> None:
    cells = await get(api, "/api/cells")
    listed = (await get(api, "/api/devices"))["devices"]
    assert cells["ids"] == devices
    assert states(cells) == [device["state"] for device in listed]
    without = await get(api, "/api/cells", ids="false")
    assert (without["codes"], "ids" in without) == (cells["codes"], False)


async def test_cells_know_every_state(api: httpx.AsyncClient, registry: Registry) -> None:
    for state in DeviceState:
        registry.register(str(state), model="m", firmware_version="1", tags={})
    await registry.flush()

    def put(database: Any) -> None:
        database.execute("UPDATE devices SET state = device_id")

    await registry.transact(put)
    cells = await get(api, "/api/cells")
    assert states(cells) == cells["ids"]


async def test_cells_of_no_device_are_none(api: httpx.AsyncClient) -> None:
    cells = await get(api, "/api/cells")
    assert (cells["ids"], cells["codes"]) == ([], "")


async def test_cells_that_a_reader_has_are_not_sent_again(
    api: httpx.AsyncClient, devices: list[str], registry: Registry
) -> None:
    etags = [(await api.get(f"/api/cells?ids={ids}")).headers["ETag"] for ids in ("true", "false")]
    assert etags[0] != etags[1], "they are not the same answer"
    again = await api.get("/api/cells", headers={"If-None-Match": f'"x", W/{etags[0]}'})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etags[0])
    await end(registry, "r1", "d4")
    changed = await api.get("/api/cells", headers={"If-None-Match": etags[0]})
    assert (changed.status_code, changed.headers["ETag"] == etags[0]) == (200, False)


async def test_cells_of_a_rollout_are_as_its_devices_are_in_it(
    api: httpx.AsyncClient, devices: list[str], registry: Registry
) -> None:
    plan = {
        "name": "x",
        "targets": {"devices": devices[6:]},
        "waves": [{"count": 2, "gate": "approval"}, {}],
        "pace": {"in_flight": 1},
    }
    created = await api.post("/api/rollouts", json={"plan": plan})
    assert created.status_code == 201, created.text
    path = f"/api/rollouts/{created.json()['rollout_id']}"
    async with asyncio.timeout(60):
        while "packaging" not in states(await get(api, f"{path}/cells")):  # noqa: ASYNC110 (asked over HTTP)
            await asyncio.sleep(0.01)
    cells = await get(api, f"{path}/cells")
    listed = (await get(api, f"{path}/devices"))["devices"]
    assert cells["ids"] == devices[6:] == [device["device_id"] for device in listed]
    assert states(cells) == [device["state"] for device in listed]
    assert states(cells).count("pending") == 3
    cancel = {"action": "cancel"}
    await api.post(f"{path}/actions", json=cancel)
    async with asyncio.timeout(60):
        while states(await get(api, f"{path}/cells")).count("cancelled") < 3:  # noqa: ASYNC110 (asked over HTTP)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "path", ["/api/rollouts/ghost/cells", "/api/rollouts/ghost/series", "/api/runs/x/series"]
)
async def test_what_is_not_there_is_a_problem(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(f"/api/{path}")).status_code == 404


async def test_a_series_has_each_end_in_its_step(api: httpx.AsyncClient, registry: Registry) -> None:
    ids = [f"d{number}" for number in range(100)]
    for device_id in ids:
        registry.register(device_id, model="m", firmware_version="1", tags={})
    await registry.claim("r1", None, options={}, limit=100)
    began = 1_000.0
    for number, device_id in enumerate(ids):
        failed = number % 10 == 0
        await end(
            registry,
            "r1",
            device_id,
            DeviceState.FAILED if failed else DeviceState.PROVISIONED,
            ended_at=began + number,
            device_s=float(number),
        )

    def put(database: Any) -> None:
        database.execute("UPDATE runs SET started_at = ?, ended_at = ?", (began, began + 100))

    await registry.transact(put)
    series = await get(api, "/api/runs/r1/series", points=4)
    assert (series["from"], series["step_s"]) == ("1970-01-01T00:16:40.000+00:00", 25.0)
    assert series["ended"]["failed"] == [3, 2, 3, 2]
    assert series["ended"]["provisioned"] == [22, 23, 22, 23]
    assert series["ended"]["rejected"] == [0, 0, 0, 0]
    assert series["device_s"]["p50"] == [12, 37, 62, 87]
    assert series["device_s"]["p95"] == [23, 48, 73, 98]
    whole = await get(api, "/api/runs/r1/series", points=1)
    assert whole["ended"]["provisioned"] == [90]
    fine = await get(api, "/api/runs/r1/series", points=1_000)
    assert sum(fine["ended"]["provisioned"]) == 90
    assert fine["device_s"]["p50"][0] is None, "nothing was provisioned in it"
    assert (await api.get("/api/runs/r1/series?points=0")).status_code == 422
    assert (await api.get("/api/runs/r1/series?points=1001")).status_code == 422


async def test_the_overview_has_all_in_one_look(
    api: httpx.AsyncClient, devices: list[str], service: Service
) -> None:
    fleet = {"name": "g", "count": 2, "model": "m", "firmware_version": "1", "behaviours": {}, "prefix": "d"}
    await api.post("/api/fleets", json={"spec": {"seed": 1, "groups": [fleet]}})
    plan = {"name": "x", "targets": {"devices": ["d9"]}}
    created = (await api.post("/api/rollouts", json={"plan": plan})).json()
    overview = await get(api, "/api/overview")
    assert [rollout["rollout_id"] for rollout in overview["rollouts"]] == [created["rollout_id"]]
    assert [run["run_id"] for run in overview["runs"]] == ["r1"], "rollouts are no runs here"
    assert overview["runs"][0]["counts"]["timed_out"] == 2
    assert (overview["devices"], overview["online"], overview["states"]["timed_out"]) == (10, 8, 2)
    assert sum(overview["states"].values()) == 10
    assert overview["fleets"] == [{"fleet_id": "fleet-1", "devices": 2, "running": True, "connected": 0}]
    health = await get(api, "/api/health")
    assert {**overview["health"], "engine": {}} == {**health, "engine": {}}
    assert [(f["state"], f["count"]) for f in overview["failures"]] == [("timed_out", 2), ("failed", 1)]
    late = overview["failures"][0]
    assert (late["reason"], late["run_id"], late["example"]) == ("late", "r1", "d3")
    assert late["last_at"] == "1970-01-01T00:01:43.000+00:00"


async def test_a_failure_that_was_made_good_is_none_of_the_overview(
    api: httpx.AsyncClient, devices: list[str], registry: Registry
) -> None:
    await registry.claim("r2", ["d1"], options={}, limit=1)
    await end(registry, "r2", "d1")
    overview = await get(api, "/api/overview")
    assert [failure["state"] for failure in overview["failures"]] == ["timed_out"]


async def test_the_overview_has_what_is_open_and_the_latest_that_ended(
    api: httpx.AsyncClient, registry: Registry
) -> None:
    registry.register("d", model="m", firmware_version="1", tags={})
    for number in range(9):
        await registry.claim(f"r{number}", ["d"], options={}, limit=1)
        if number:
            await registry.end_run(f"r{number}", status="completed", left_over=DeviceState.FAILED, reason="")

    def put(database: Any) -> None:
        database.execute("UPDATE runs SET started_at = CAST(substr(run_id, 2) AS REAL)")

    await registry.transact(put)
    runs = (await get(api, "/api/overview"))["runs"]
    assert [run["run_id"] for run in runs] == ["r8", "r7", "r6", "r5", "r4", "r0"]


async def test_readiness_says_what_is_missing(api: httpx.AsyncClient, service: Service) -> None:
    answer = await api.get("/api/ready")
    assert (answer.status_code, answer.json()["title"]) == (503, "Not ready")
    assert "broker" in answer.json()["detail"]
    assert "blob storage" in answer.json()["detail"]

    def ready(**there: bool) -> Inspection:
        async def health() -> Json:
            return {
                "broker": {"connected": there.get("broker", True), "url": "mqtt://b"},
                "blob": {"reachable": there.get("blob", True), "endpoint": "http://s"},
                "engine": {"connected": there.get("engine", True)},
            }

        return Inspection(**{**dict.fromkeys(NEEDED, cast(Any, None)), "health": health})

    await ready().check_ready()
    for missing, words in (("broker", "mqtt://b"), ("blob", "http://s"), ("engine", "backend")):
        with pytest.raises(NotReadyError, match=words):
            await ready(**{missing: False}).check_ready()


NEEDED = (
    *("registry", "client", "devices", "rollouts", "runs", "events", "fleets", "health", "statistics"),
    *("metrics_of_fleets", "started_at"),
)


async def test_metrics_are_in_prometheus_format_and_say_how_it_is(
    api: httpx.AsyncClient, devices: list[str]
) -> None:
    await api.get("/api/nothing")
    answer = await api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    samples = re.findall(r"^([a-z_]+)(\{[^}]*\})? (\S+)$", text, re.MULTILINE)
    assert len(samples) + 2 * len(kinds) + 1 == len(text.splitlines()), "nothing else; the fleets' is a line"
    for name, labels, value in samples:
        float(value)
        family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in kinds else name
        assert family in kinds, name
        assert (kinds[family] == "counter") == name.endswith("_total"), name
        assert re.fullmatch(r'(\{([a-z_]+="[^"]*",?)+\})?', labels), labels
    assert len({(name, labels) for name, labels, _ in samples}) == len(samples)
    values = {name + labels: float(value) for name, labels, value in samples}
    assert values['muster_devices{state="timed_out"}'] == 2
    assert values["muster_devices_online"] == 8
    assert values['muster_runs{status="running"}'] == 1
    assert values['muster_http_requests_total{method="GET",code="404"}'] == 1
    assert values["muster_events_readers"] == 0
    assert values["muster_broker_connected"] == 0
    bucket = 'muster_http_request_duration_seconds_bucket{le="+Inf"}'
    assert values[bucket] == values["muster_http_request_duration_seconds_count"] >= 1
    buckets = [value for name, value in values.items() if name.startswith(bucket[:-8])]
    assert buckets == sorted(buckets), "they are cumulative"


async def test_metrics_of_one_fleet_are_that_alone(api: httpx.AsyncClient) -> None:
    assert (await api.get("/metrics?fleet_id=f")).text == "# f\n"


async def test_a_method_of_somebodys_invention_is_no_label(api: httpx.AsyncClient) -> None:
    for method in ("BREW", "X"):
        await api.request(method, "/api/health")
    text = (await api.get("/metrics")).text
    assert "BREW" not in text
    assert 'muster_http_requests_total{method="other",code="405"} 2' in text


async def test_sub_orchestrations_come_in_pages_with_their_parent(
    api: httpx.AsyncClient, registry: Registry
) -> None:
    for number in range(5):
        registry.register(f"d{number}", model="m", firmware_version="1", tags={})
    await registry.flush()
    run_id = (await api.post("/api/provision", json={})).json()["run_id"]
    path = f"/api/instances/{run_id}/children"
    async with asyncio.timeout(60):
        while len((await get(api, path))["children"]) < 5:  # noqa: ASYNC110 (asked over HTTP)
            await asyncio.sleep(0.01)
    ids: list[str] = []
    after: Json = {}
    while True:
        page = await get(api, path, top=2, **after)
        ids += [child["instanceId"] for child in page["children"]]
        assert page["parent"] is None
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert sorted(ids) == [f"{run_id}:d{number}" for number in range(5)]
    child = page["children"][0]
    assert set(child) == {"instanceId", "name", "runtimeStatus", "createdTime", "lastUpdatedTime"}
    below = await get(api, f"/api/instances/{ids[0]}/children")
    assert (below["children"], below["parent"]) == ([], run_id)
    assert (await api.get("/api/instances/ghost/children")).status_code == 404
    assert (await api.get(f"{path}?after=x")).status_code == 422


async def test_what_is_done_to_a_rollout_that_has_changed_is_refused(
    api: httpx.AsyncClient, devices: list[str]
) -> None:
    plan = {
        "name": "x",
        "targets": {"devices": ["d8", "d9"]},
        "schedule": {"start_at": "2190-01-01T00:00:00Z"},
    }
    path = f"/api/rollouts/{(await api.post('/api/rollouts', json={'plan': plan})).json()['rollout_id']}"

    async def settled() -> str:
        seen = ""
        async with asyncio.timeout(60):
            while (etag := (await api.get(path)).headers["ETag"]) != seen:
                seen = etag
                await asyncio.sleep(0.1)  # its orchestration has its say
        return seen

    async def act(action: str, if_match: str | None) -> httpx.Response:
        headers = {} if if_match is None else {"If-Match": if_match}
        return await api.post(f"{path}/actions", json={"action": action}, headers=headers)

    before = await settled()
    for refused in ('"other"', f"W/{before}", "", "nonsense"):
        answer = await act("pause", refused)
        assert (answer.status_code, answer.json()["title"]) == (412, "Rollout changed"), refused
    assert (await get(api, path))["state"] != "paused"
    done = await act("pause", f'"other", {before}')
    assert (done.status_code, done.json()["changed"]) == (200, True)
    assert done.headers["ETag"] not in ("", before)
    assert (await act("resume", before)).status_code == 412
    assert (await act("resume", "*")).status_code == 200
    assert (await act("pause", None)).status_code == 200


def test_conditions_are_read_as_the_standard_has_them() -> None:
    assert wanted(None) is None
    assert wanted(" * ") is None
    assert wanted('"a", W/"b","c,d"') == {"a", "c,d"}
    assert wanted("a") == set()
    assert is_unchanged('W/"a"', "a")
    assert is_unchanged('"b", "a"', "a")
    assert not is_unchanged('"b"', "a")
    assert not is_unchanged(None, "a")
