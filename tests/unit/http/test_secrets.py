"""No signature of a SAS URL leaves by the management API, wherever it was."""

from __future__ import annotations

import re
from urllib.parse import quote

import httpx

from tests.unit.http.managed import INSTANCES, SIGNED, Managed


def assert_no_secret(answer: httpx.Response) -> None:
    assert "c2VjcmV0" not in answer.text
    assert not re.search(r"sig(=|%3D)(?!\*\*\*)", answer.text, re.IGNORECASE)
    assert not any("c2VjcmV0" in value for value in answer.headers.values())


async def test_no_answer_has_a_signature_in_it(api: Managed) -> None:
    client = api.client
    answers = [await api.start("Leak", "l-1", SIGNED), await api.start("Leak", "l-2", {"url": [SIGNED]})]
    for instance_id in ("l-1", "l-2"):
        await api.until(instance_id, "Running")
        answers.append(await client.get(f"{INSTANCES}/{instance_id}?showHistory=true&showHistoryOutput=true"))
    for event in ("done", "fail"):
        instance_id = f"l-{1 + (event == 'fail')}"
        raised = await client.post(f"{INSTANCES}/{instance_id}/raiseEvent/Other", json=SIGNED)
        assert raised.status_code == 202
        await client.post(f"{INSTANCES}/{instance_id}/raiseEvent/Go", json=event)
        await api.wait(instance_id)
    for path in ("", "/l-1", "/l-2"):
        for more in ("", "?showHistory=true&showHistoryOutput=true&returnInternalServerErrorOnFailure=true"):
            answers += [await client.get(f"{INSTANCES}{path}{more}")]
    answers.append(await client.post("/api/orchestrators/Greet?timeout=60", json=SIGNED))
    answers.append(await client.post("/api/orchestrators/Try?timeout=60", json=SIGNED))
    await api.start("Wait", "w-1")
    await client.post(f"{INSTANCES}/w-1/terminate", params={"reason": SIGNED})
    await api.until("w-1", "Terminated")
    answers.append(await client.get(f"{INSTANCES}/w-1?showHistory=true"))
    texts = "".join(answer.text for answer in answers)
    assert texts.count("sig=***") > 10, "the URLs themselves are there"
    for answer in answers:
        assert_no_secret(answer)


async def test_no_problem_has_a_signature_in_it(embedded: Managed) -> None:
    client = embedded.client
    for answer in (
        await client.get(f"{INSTANCES}/x?top=1&sig=c2VjcmV0"),
        await client.get(f"{INSTANCES}/{quote(SIGNED, safe='')}"),
        await client.get(INSTANCES, params={"runtimeStatus": SIGNED}),
        await client.get(INSTANCES, headers={"x-ms-continuation-token": SIGNED}),
        await client.post(f"/api/orchestrators/{quote(SIGNED, safe='')}"),
        await client.get("/nowhere", headers={"origin": SIGNED}),
    ):
        assert answer.status_code in (400, 403, 404)
        assert_no_secret(answer)
