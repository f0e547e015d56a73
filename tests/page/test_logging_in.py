"""The log-in, and the page of who may only look, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import expect

from benchmarks.staged_service import ROLLOUT, Stage, staged
from provisioning.api_settings import ApiSettings
from provisioning.api_tokens import provide_token, rotate_token
from provisioning.service import Service
from tests.page.conftest import Open, Watched
from tests.unit.http.elsewhere import own_address
from tests.unit.http.running import settings
from tests.unit.provisioning.fleet_doubles import Launcher

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = Path(__file__).parent / "axe" / "axe.min.js"
ACTIONS = ["#/", "#/rollouts", f"#/rollouts/{ROLLOUT}", "#/devices", "#/devices/dev-00001"]


async def test_who_comes_from_elsewhere_logs_in_and_out(
    tmp_path: Path, open_page: Open, watched: Watched
) -> None:
    # A log-in is a 401, which a browser tells as an error.
    watched.may_fail = ("/",)
    async with Service(settings(tmp_path, api=ApiSettings(host=own_address())), Launcher()) as service:
        token = provide_token(tmp_path / "api.token")
        page = await open_page(service.url)
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        await page.get_by_label("Token").fill("wrong")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert")).to_have_text("That is no token of this service.")
        await page.evaluate(AXE.read_text("utf-8"))
        schemes: list[Literal["light", "dark"]] = ["light", "dark"]
        for scheme in schemes:
            await page.emulate_media(color_scheme=scheme)
            found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            assert [one["id"] for one in found["violations"]] == []
        await page.get_by_label("Token").fill(token)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
        await expect(page.get_by_text("Live", exact=True)).to_be_visible()
        await expect(page.get_by_role("link", name="New rollout")).to_be_visible()
        # What changes something is taken from the page, and from no other.
        status = await page.evaluate(
            "fetch('/api/provision', {method: 'POST', headers: {'Content-Type': 'application/json'},"
            " body: '{}'}).then((answer) => answer.status)"
        )
        assert status == 409  # there is no new device

        rotate_token(tmp_path / "api.token")
        await page.evaluate("import('/page/live.js').then(({ live }) => live.ping())")
        await expect(page.get_by_text("The session is over.", exact=False).first).to_be_visible()
        await page.get_by_role("button", name="Log in").click()

        read = provide_token(tmp_path / "api-read.token")
        await page.get_by_label("Token").fill(read)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_text("Read only", exact=True)).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()


@pytest.mark.parametrize("may", ["full", "read"])
async def test_who_may_only_look_is_offered_nothing_else(open_page: Open, may: str) -> None:
    stage = Stage(20)
    stage.move(20)
    stage.session = {"access": may, "by": "session", "ends_in_s": 60}
    offered = []
    async with staged(stage) as url:
        page = await open_page(url)
        for address in ACTIONS:
            await page.goto(f"{url}/{address}")
            await expect(page.locator("h1")).to_be_visible()
            await expect(page.locator(".skeleton")).to_have_count(0)
            offered.append(await page.locator("main .page-aside :is(button, a), main td.end button").count())
        launch = page.get_by_role("link", name="Launch", exact=True)
        await expect(launch).to_have_count(1 if may == "full" else 0)
        await page.goto(f"{url}/#/launch/rollout")
        named = "Launch" if may == "full" else "This is for looking only"
        await expect(page.get_by_role("heading", level=1)).to_have_text(named)
        # Else it complains of a service that has gone.
        await page.close()
    assert all(offered) if may == "full" else not any(offered)
