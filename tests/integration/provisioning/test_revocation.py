"""Revoked URLs: a device under way gets a fresh one, and nothing on disk has either."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from broker import messages
from broker.local import LocalBroker
from provisioning.azurite import LocalAzurite
from provisioning.service import Service
from provisioning.settings import ServiceSettings

from .driving import Api
from .test_engines import DEVICE, device_by_hand

pytestmark = pytest.mark.real


async def test_a_device_whose_url_is_revoked_gets_another_with_its_next_attempt(
    tmp_path: Path, any_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    settings = ServiceSettings(
        state_dir=state_dir,
        broker_url=any_broker.url,
        blob_connection_string=azurite.connection_string,
        container=unique,
        api_port=0,
    )
    async with Service(settings), device_by_hand(any_broker) as device, httpx.AsyncClient() as http:
        api = Api(state_dir)
        await device.register()
        await api.wait_registered(1)
        run_id = await api.provision(options={"max_attempts": 2})
        first = await device.told()
        before = await api.get("/api/sas")
        status, after = await api.call("POST", "/api/sas/revoke", {})
        assert (status, after["pending"]) == (200, False)
        assert after == await api.get("/api/sas") != before

        refused = await http.get(first["url"])
        assert refused.status_code == 403
        # As libraries do that put the URL into their errors.
        told = messages.DownloadFailed(
            **{name: first[name] for name in ("instance_id", "package_id", "attempt")},
            reason="expired-url",
            detail=f"403 Forbidden: {first['url']}",
        )
        await device.say(told)
        second = await device.told()
        assert (second["attempt"], second["package_id"]) == (2, first["package_id"])
        assert (await http.get(second["url"])).is_success
        await device.acknowledge(second)
        await device.confirm(await device.told())
        run = await api.wait_ended(run_id)
        shown = await api.get(f"/api/devices/{DEVICE}")

    assert run["counts"]["provisioned"] == 1
    assert "sig=***" in shown["steps"][2]["error"]
    signatures = [message["url"].partition("sig=")[2].partition("&")[0] for message in (first, second)]
    for path in (path for path in state_dir.rglob("*") if path.is_file()):
        assert not any(signature.encode() in path.read_bytes() for signature in signatures), path
