"""The main job, by the page alone: a fleet, a rollout, a device that failed, and its retry."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.page.conftest import Open, Sandbox

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session")]


def service_of(sandbox: Sandbox) -> str:
    """The address of the service that runs there."""
    record: dict[str, Any] = json.loads((sandbox.state_dir / "service.json").read_text())
    return str(record["url"])


async def launch_a_fleet(page: Page, *, count: int, weights: dict[str, str]) -> None:
    """Fill in the form, and wait for the devices."""
    await page.get_by_label("How many").fill(str(count))
    await page.get_by_role("button", name="Healthy alone").click()
    for name, weight in weights.items():
        if name != "healthy":
            await page.get_by_label("Add a behaviour").select_option(name)
        await page.get_by_label(f"Weight of {name}").fill(weight)
    await page.get_by_role("button", name=f"Launch {count} devices").click()
    await expect(page.get_by_role("heading", level=1, name="Devices")).to_be_visible()
    await expect(page.get_by_text(f"{count} in all")).to_be_visible()


async def test_a_fleet_is_rolled_out_to_and_a_device_that_failed_is_retried(
    sandbox: Sandbox, open_page: Open
) -> None:
    sandbox.up()
    page = await open_page(service_of(sandbox))
    await expect(page.get_by_text("No rollout is running")).to_be_visible()

    await page.get_by_role("link", name="launch a fleet").click()
    await launch_a_fleet(page, count=20, weights={"healthy": "0.9", "out-of-storage": "0.1"})

    await page.get_by_role("link", name="Launch", exact=True).click()
    await page.get_by_role("link", name="A rollout").click()
    await page.get_by_label("Name").fill("Trial")
    await page.get_by_label("Size of wave 1").fill("50")
    await page.get_by_label("successes that wave 1 needs").fill("")
    await page.get_by_role("button", name="Remove criterion 1").click()
    plan = page.get_by_role("complementary")
    await expect(plan.get_by_text("Wave 1")).to_be_visible()
    await page.get_by_role("button", name="Start with 20 devices").click()

    await expect(page.get_by_role("heading", level=1, name="Trial")).to_be_visible()
    panel = page.get_by_role("region", name="Progress", exact=True)
    await expect(panel.get_by_text("completed", exact=True)).to_be_visible()
    await expect(panel.get_by_text("18 provisioned")).to_be_visible()
    await expect(panel.get_by_text("2 failed")).to_be_visible()
    await expect(page).to_have_title("100 % · Trial · Muster")

    await page.get_by_role("button", name="failed 2").click()
    await page.get_by_role("application").focus()
    await page.keyboard.press("Home")
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_contain_text("dev-")
    await expect(page.get_by_role("region", name="State").get_by_text("failed", exact=True)).to_be_visible()
    steps = page.get_by_role("table", name="Steps of the device")
    assert await steps.get_by_role("rowheader", name="downloading").count() >= 1
    await expect(page.get_by_text("CreateInstallationPackage").first).to_be_visible()
    text = await page.locator("main").inner_text()
    assert "sig=***" in text
    assert "sig=%" not in text

    device = await page.locator("h1").inner_text()
    await page.get_by_role("button", name="Retry").click()
    await page.get_by_role("dialog").get_by_role("button", name="Provision").click()
    runs = page.get_by_role("table", name="Runs of the device")
    await expect(runs.get_by_role("rowheader", name="run-")).to_be_visible()
    answer = await page.request.get(f"{service_of(sandbox)}/api/devices/{device}")
    assert (await answer.json())["run_id"].startswith("run-")


async def test_what_an_operator_does_is_asked_first_and_then_done(sandbox: Sandbox, open_page: Open) -> None:
    sandbox.up()
    assert sandbox.run("fleet", "launch", "--count", "6", "--behaviours", "healthy", "--wait")[0] == 0
    rollout = sandbox.json("rollout", "create", "--in-flight", "1", "--per-minute", "6")["rollout_id"]
    page = await open_page(service_of(sandbox), f"#/rollouts/{rollout}")
    panel = page.get_by_role("region", name="Progress", exact=True)

    await page.get_by_role("button", name="Pause").click()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.get_by_role("button", name="Pause")).to_be_focused()
    await expect(panel.get_by_text("running", exact=True)).to_be_visible()

    await page.get_by_role("button", name="Pause").click()
    await page.get_by_label("Reason").fill("a look at it")
    await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    await expect(panel.get_by_text("paused", exact=True)).to_be_visible()
    await expect(
        page.get_by_role("region", name="Log").get_by_text("a look at it", exact=True)
    ).to_be_visible()

    await page.get_by_role("button", name="Cancel", exact=True).click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel", exact=True).click()
    await expect(panel.get_by_text("cancelled", exact=True).first).to_be_visible()


async def test_a_release_is_added_by_form_and_then_rolled_out(sandbox: Sandbox, open_page: Open) -> None:
    sandbox.up()
    page = await open_page(service_of(sandbox), "#/launch/release")
    await expect(page.get_by_text("There is none yet")).to_be_visible()
    await page.get_by_role("textbox", name="Name").fill("trial-1")
    await page.get_by_label("Version").fill("1.0.0")
    await page.get_by_role("button", name="Add the release").click()
    await page.get_by_role("link", name="roll it out").click()
    await expect(page.get_by_role("combobox", name="Release")).to_have_value("trial-1")


async def test_an_orchestration_is_suspended_resumed_and_terminated(
    sandbox: Sandbox, open_page: Open
) -> None:
    sandbox.up()
    rollout = sandbox.json("rollout", "create", "--continuous")["rollout_id"]
    page = await open_page(service_of(sandbox), "#/orchestrations")
    await page.get_by_role("link", name=rollout, exact=True).click()
    for verb, status in (("Suspend", "Suspended"), ("Resume", "Running"), ("Terminate", "Terminated")):
        await page.get_by_role("button", name=verb).click()
        await page.get_by_role("dialog").get_by_role("button", name=verb).click()
        await expect(page.get_by_role("definition").get_by_text(status, exact=True)).to_be_visible()
    await expect(page.get_by_role("list").get_by_text("Terminated", exact=True).first).to_be_visible()


async def test_a_plan_that_can_not_be_says_so_at_the_field(sandbox: Sandbox, open_page: Open) -> None:
    sandbox.up()
    page = await open_page(service_of(sandbox), "#/launch/rollout")
    await page.get_by_label("Devices at once").fill("5000")
    field = page.get_by_label("Devices at once")
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("#in_flight-error")).to_contain_text("give a whole number from 1 to 1,000")
    await field.fill("100")
    await page.get_by_label("Size of wave 1").fill("0")
    await expect(page.get_by_label("Size of wave 1")).to_have_attribute("aria-invalid", "true")
    await expect(field).not_to_have_attribute("aria-invalid", "true")


async def test_a_lost_connection_is_shown_and_healed(sandbox: Sandbox, open_page: Open, watched: Any) -> None:
    running = sandbox.up()
    url = service_of(sandbox)
    watched.may_fail = (url,)
    page = await open_page(url)
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    await expect(page.get_by_text("No fleet runs")).to_be_visible()

    sandbox.run("down")
    running.finish()
    await expect(page.get_by_role("alert").get_by_text("The service does not answer.")).to_be_visible()
    await expect(page.get_by_text("No connection", exact=True)).to_be_visible()

    sandbox.up("--port", url.rpartition(":")[2])
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    await expect(page.get_by_text("The service does not answer.")).to_have_count(0)
    assert sandbox.run("fleet", "launch", "--count", "3", "--wait")[0] == 0
    await expect(page.get_by_role("rowheader", name="fleet-1")).to_be_visible()
