"""Lists of devices: every filter, every order, and pages in them."""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest

from provisioning.inspection.devices import MAX_OUTCOMES, MAX_PAGE_BYTES, SORTS
from provisioning.registry import Registry
from provisioning.states import DeviceState
from tests.unit.inspection.conftest import end

Json = dict[str, Any]
UNICODE = "é😀"


async def ask(api: httpx.AsyncClient, query: str = "", **parameters: Any) -> Json:
    answer = await api.get(f"/api/devices{query}", params=parameters or None)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", range(10)),
        ("?state=new", range(6, 10)),
        ("?state=timed_out&state=failed", [1, 2, 3]),
        ("?run_id=r1", range(6)),
        ("?model=a", [0, 2, 4, 6, 8]),
        ("?online=false", [8, 9]),
        ("?online=true&model=b", [1, 3, 5, 7]),
        ("?tag=site%3Doslo", [0, 1, 2]),
        ("?tag=site%3Doslo&tag=row%3D0", [0, 2]),
        ("?tag=site%3D", []),
        ("?tag=nothing%3Dx", []),
        ("?q=d", range(10)),
        ("?q=d7", [7]),
        ("?q=%25", []),
        ("?q=D", []),
        ("?state=new&q=d9&online=false&model=b&tag=row%3D1", [9]),
        ("?state=new&run_id=r1", []),
    ],
)
async def test_a_list_has_what_fits_all_filters(
    api: httpx.AsyncClient, devices: list[str], query: str, numbers: Any
) -> None:
    found = await ask(api, query)
    assert [device["device_id"] for device in found["devices"]] == [devices[number] for number in numbers]
    assert (found["total"], found["next"]) == (len(numbers), None)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_pages_in_an_order_have_every_device_once(
    api: httpx.AsyncClient, devices: list[str], sort: str, limit: int
) -> None:
    found: list[Json] = []
    after: Json = {}
    while True:
        page = await ask(api, sort=sort, limit=limit, **after)
        found += page["devices"]
        assert page["total"] == 10
        if page["next"] is None:
            break
        assert len(page["devices"]) == limit
        after = {"after": page["next"]}
    key = sort.lstrip("-")
    assert sorted(device["device_id"] for device in found) == devices
    values = [device[key] for device in found]
    assert values == sorted(values, reverse=sort.startswith("-"))


async def test_a_page_goes_on_where_it_ended_though_devices_come_and_change(
    api: httpx.AsyncClient, devices: list[str], registry: Registry
) -> None:
    first = await ask(api, sort="-updated_at", limit=5)
    registry.register("d00", model="a", firmware_version="1", tags={})
    await registry.flush()
    second = await ask(api, sort="-updated_at", limit=10, after=first["next"])
    seen = [device["device_id"] for page in (first, second) for device in page["devices"]]
    assert sorted(seen) == devices, "what came to the front shifts nothing"


@pytest.mark.parametrize(
    "query",
    [
        *(
            "?sort=model",
            "?sort=",
            "?tag=site",
            "?tag=%3Dx",
            "?tag=a%22b%3Dx",
            "?online=maybe",
            "?limit=1001",
        ),
        *("?after=x&sort=state", "?after=%C3%A9&sort=state", "?after=W10%3D&sort=state", "?state=gone"),
        *("?after=bnVsbA%3D%3D&sort=attempt", f"?q={'x' * 65}", "?tag=" + "&tag=".join(["a%3Db"] * 11)),
    ],
)
async def test_what_makes_no_sense_is_refused(api: httpx.AsyncClient, devices: list[str], query: str) -> None:
    answer = await api.get(f"/api/devices{query}")
    assert (answer.status_code, answer.json()["title"]) == (422, "Invalid request")


async def test_a_place_in_one_order_is_none_in_another(api: httpx.AsyncClient, devices: list[str]) -> None:
    page = await ask(api, sort="state", limit=1)
    answer = await api.get("/api/devices", params={"sort": "-state", "after": page["next"]})
    assert answer.status_code == 422


async def test_a_page_ends_before_it_gets_too_large_and_the_next_goes_on(
    api: httpx.AsyncClient, registry: Registry
) -> None:
    ids = [f"dev-{number:04d}" for number in range(900)]
    random.Random(1).shuffle(ids)
    for device_id in ids:
        registry.register(device_id, model=UNICODE * 20, firmware_version="1", tags={})
    await registry.flush()
    found: list[str] = []
    after: Json = {}
    while True:
        answer = await api.get("/api/devices", params={"limit": 1_000, "sort": "state", **after})
        assert len(answer.content) <= MAX_PAGE_BYTES + 100
        page = answer.json()
        found += [device["device_id"] for device in page["devices"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == sorted(ids)


async def test_a_device_has_its_latest_outcomes(
    api: httpx.AsyncClient, devices: list[str], registry: Registry
) -> None:
    for number in range(MAX_OUTCOMES + 3):
        run_id = f"s{number:02d}"
        await registry.claim(run_id, ["d9"], options={}, limit=1)
        failed = number % 2 == 0
        await end(
            registry,
            run_id,
            "d9",
            DeviceState.FAILED if failed else DeviceState.PROVISIONED,
            error="it can't" if failed else None,
            ended_at=200.0 + number,
        )
    device = (await api.get("/api/devices/d9")).json()
    assert device["tags"] == {"site": "rome", "row": "1"}
    history = device["history"]
    assert [one["run_id"] for one in history] == [f"s{number:02d}" for number in range(22, 2, -1)]
    assert history[0] == {
        "run_id": "s22",
        "state": "failed",
        "attempts": 2,
        "error": "it can't",
        "ended_at": "1970-01-01T00:03:42.000+00:00",
        "device_s": 1.0,
    }
    assert (await api.get("/api/devices/d8")).json()["history"] == []


async def test_no_list_has_a_secret_in_it(api: httpx.AsyncClient, devices: list[str]) -> None:
    for path in ("/api/devices", "/api/devices/d1", "/api/overview", "/api/runs/r1", "/metrics"):
        assert "c2VjcmV0" not in (await api.get(path)).text, path
