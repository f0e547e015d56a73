"""The page before a service that is only staged: looks, keyboard, hostile names, ten thousand cells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Route, expect

from benchmarks import page as page_benchmark
from benchmarks.staged_service import ROLLOUT, Stage, staged
from tests.page.conftest import Open, Watched, chromium

AXE = Path(__file__).parent / "axe" / "axe.min.js"
HOSTILE = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>\'"&amp;'
VIEWS = [
    "#/",
    "#/rollouts",
    f"#/rollouts/{ROLLOUT}",
    "#/devices",
    "#/devices/dev-00001",
    "#/launch/fleet",
    "#/launch/release",
    "#/launch/rollout",
    "#/orchestrations",
    "#/nowhere",
]

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def stage() -> Stage:
    made = Stage(60)
    for _ in range(8):
        made.move(30)
    return made


@pytest_asyncio.fixture(loop_scope="session")
async def url(stage: Stage) -> AsyncIterator[str]:
    async with staged(stage) as address:
        yield address


async def settled(page: Page) -> None:
    """Wait until what the view asks for is there."""
    await expect(page.locator("h1")).to_be_visible()
    await expect(page.locator(".skeleton")).to_have_count(0)


@pytest.mark.parametrize("address", VIEWS)
async def test_a_phone_shows_all_of_it_without_going_sideways(
    url: str, open_page: Open, address: str
) -> None:
    page = await open_page(url, address, viewport={"width": 390, "height": 844}, has_touch=True)
    await settled(page)
    wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


@pytest.mark.parametrize("address", VIEWS)
async def test_no_view_has_a_serious_violation_of_what_accessibility_wants(
    url: str, open_page: Open, address: str
) -> None:
    page = await open_page(url, address, color_scheme="light", reduced_motion="reduce")
    await settled(page)
    await page.evaluate(AXE.read_text("utf-8"))
    schemes: list[Literal["light", "dark"]] = ["light", "dark"]
    for scheme in schemes:
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found: dict[str, Any] = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [
            (one["id"], [node["html"][:120] for node in one["nodes"]][:3])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], scheme


async def test_the_theme_is_the_systems_until_one_is_chosen_and_then_kept(url: str, open_page: Open) -> None:
    page = await open_page(url, "#/", color_scheme="dark")

    async def paper() -> str:
        return str(await page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark = await paper()
    await page.get_by_role("button", name="Theme: system").click()
    light = await paper()
    assert light != dark
    await page.reload()
    assert await paper() == light
    await page.get_by_role("button", name="Theme: light").click()
    assert await paper() == dark


async def test_names_of_devices_are_text_whatever_they_are(url: str, stage: Stage, open_page: Open) -> None:
    stage.error = stage.model = stage.name = HOSTILE
    stage.tags = {HOSTILE: HOSTILE}
    stage.states = {HOSTILE if i == 0 else device: "failed" for i, device in enumerate(stage.ids)}
    stage.ids[0] = HOSTILE
    page = await open_page(url, "#/")
    for address in ("#/", "#/rollouts", f"#/rollouts/{ROLLOUT}", "#/devices", "#/devices/dev-00002"):
        await page.goto(f"{url}/{address}")
        await settled(page)
        await expect(page.get_by_text(HOSTILE, exact=False).first).to_be_visible()
        assert await page.locator("main img, main script, .tip img").count() == 0
    await page.goto(f"{url}/#/rollouts/{ROLLOUT}")
    await page.get_by_role("application").focus()
    await page.keyboard.press("Home")
    await expect(page.locator("#announcer")).to_contain_text(HOSTILE)
    assert await page.evaluate("window.broken") is None


async def test_everything_is_reached_by_the_keyboard(url: str, open_page: Open) -> None:
    page = await open_page(url, "#/")
    await settled(page)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()

    card = page.get_by_role("link", name="Winter firmware")
    while not await card.evaluate("one => one === document.activeElement"):
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement !== document.body"), "the card was not reached"
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_be_focused()
    await expect(page.locator("h1")).to_have_text("Winter firmware")
    await settled(page)

    await page.get_by_role("button", name="More").focus()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Pace")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Pace")).to_have_count(0)

    await page.get_by_role("application").focus()
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("ArrowRight")
    await expect(page.locator("#announcer")).to_contain_text("dev-00002")
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("dev-00002")
    await expect(page.locator("h1")).to_be_focused()


async def test_without_the_stream_the_page_asks_again_and_again(
    url: str, stage: Stage, open_page: Open, watched: Watched
) -> None:
    watched.may_fail = ("/api/events",)
    stage.streaming = False
    page = await open_page(url, f"#/rollouts/{ROLLOUT}")
    await expect(page.get_by_text("Every 2 s", exact=True)).to_be_visible()
    for device in stage.ids:
        stage.states[device] = "provisioned"
    panel = page.get_by_role("region", name="Progress", exact=True)
    await expect(panel.get_by_text("60 provisioned")).to_be_visible()
    await expect(page.get_by_role("button", name="provisioned 60")).to_be_visible()
    stage.streaming = True
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()


COUNT_DRAWN = """
window.drawn = 0;
const fill = CanvasRenderingContext2D.prototype.fillRect;
CanvasRenderingContext2D.prototype.fillRect = function (...all) {
  window.drawn += 1;
  return fill.apply(this, all);
};
"""


async def test_of_ten_thousand_cells_only_what_has_changed_is_drawn_again(open_page: Open) -> None:
    stage = Stage(10_000)
    async with staged(stage) as url:
        page = await open_page(url, "#/")
        await page.context.add_init_script(COUNT_DRAWN)
        await page.goto(f"{url}/#/rollouts/{ROLLOUT}")
        await page.reload()
        await settled(page)
        await expect(page.get_by_role("button", name="pending 10,000")).to_be_visible()
        assert await page.evaluate("window.drawn") >= 10_000
        await page.evaluate("window.drawn = 0")
        for device in stage.ids[:50]:
            stage.states[device] = "failed"
        stage.tell("devices", {"at": "", "devices": [stage.row(device) for device in stage.ids[:50]]})
        await expect(page.get_by_role("button", name="failed 50")).to_be_visible()
        while await page.evaluate("window.drawn") == 0:
            await page.evaluate("new Promise(requestAnimationFrame)")
        assert await page.evaluate("window.drawn") == 50

        cells = page.get_by_role("application")
        await cells.hover(position={"x": 3, "y": 3})
        await expect(page.locator(".tip")).to_contain_text("dev-00001")
        await page.get_by_role("button", name="pending 9,950").click()
        await cells.focus()
        await page.keyboard.press("Home")
        await expect(page.locator("#announcer")).to_contain_text("dev-00051, pending")
        await cells.click(position={"x": 3, "y": 3})
        await expect(page.locator("h1")).to_have_text("dev-00001")
        # Else it complains of a service that has gone.
        await page.close()


async def test_cells_are_compared_with_the_services_after_events_were_missed(
    url: str, stage: Stage, open_page: Open
) -> None:
    page = await open_page(url, f"#/rollouts/{ROLLOUT}")
    await settled(page)
    for device in stage.ids:
        stage.states[device] = "rejected"
    stage.tell("reset", {"why": "too old"})
    await expect(page.get_by_role("button", name="rejected 60")).to_be_visible()


async def test_a_device_that_comes_later_gets_its_cell(url: str, stage: Stage, open_page: Open) -> None:
    page = await open_page(url, f"#/rollouts/{ROLLOUT}")
    await settled(page)
    stage.ids.append("dev-99999")
    stage.states["dev-99999"] = "cancelled"
    stage.tell("devices", {"at": "", "devices": [stage.row("dev-99999")]})
    await expect(page.get_by_role("button", name="cancelled 1")).to_be_visible()


HIDE = """(state) => {
  Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_a_tab_that_nobody_looks_at_keeps_no_connection(
    url: str, stage: Stage, open_page: Open
) -> None:
    page = await open_page(url, "#/nowhere")
    await page.clock.install()
    await page.goto(f"{url}/#/")
    await page.reload()
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    assert not stage.deserted.is_set()
    await page.evaluate(HIDE, "hidden")
    await page.clock.fast_forward(61_000)
    await stage.deserted.wait()
    await page.evaluate(HIDE, "visible")
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()


async def test_a_tab_that_was_opened_behind_another_keeps_no_connection(
    url: str, stage: Stage, open_page: Open
) -> None:
    page = await open_page(url, "#/nowhere")
    await page.context.add_init_script(
        'Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true })'
    )
    await page.clock.install()
    await page.goto(f"{url}/#/")
    await page.reload()
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    assert not stage.deserted.is_set()
    await page.clock.fast_forward(61_000)
    async with asyncio.timeout(10):
        await stage.deserted.wait()


async def test_a_stream_that_broke_while_the_page_comes_back_is_followed_by_one_and_not_two(
    url: str, stage: Stage, open_page: Open, watched: Watched
) -> None:
    watched.may_fail = ("/api/events",)
    page = await open_page(url, "#/nowhere")
    answer = asyncio.Event()

    async def held(route: Route) -> None:
        await answer.wait()
        await route.continue_()

    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    await page.route("**/api/health", held)
    async with page.expect_request("**/api/health"):
        stage.close()
    await page.evaluate('dispatchEvent(new Event("online"))')
    while stage.readers != 1:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.01)
    answer.set()
    await page.wait_for_timeout(1_500)
    assert stage.readers == 1


async def test_an_answer_that_takes_longer_than_news_take_to_come_is_shown(
    url: str, stage: Stage, open_page: Open
) -> None:
    page = await open_page(url, "#/nowhere")
    asked = 0

    async def slow(route: Route) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(2)
        with contextlib.suppress(PlaywrightError):  # the page has given it up
            await route.continue_()

    await page.route("**/api/overview", slow)
    await page.goto(f"{url}/#/")
    region, shown = page.get_by_role("region", name="All devices"), 0
    # News never cease: a page that begins anew with each would show nothing, ever.
    for _ in range(300):
        stage.tell("devices", {"at": "", "devices": [stage.row("dev-00001")]})
        await asyncio.sleep(0.1)
        shown = await region.count()
        if shown and asked >= 2:
            break
    assert shown == 1
    assert asked >= 2, "what was news meanwhile is asked for"


async def test_the_filters_are_cleared_with_the_place_in_the_list(url: str, open_page: Open) -> None:
    page = await open_page(url, "#/nowhere")

    async def paged(route: Route) -> None:
        found = await (await route.fetch(max_retries=3)).json()
        await route.fulfill(json={**found, "next": "dev-00050"})

    await page.route("**/api/devices?**", paged)
    await page.goto(f"{url}/#/devices?q=dev")
    await page.get_by_role("button", name="Next").click()
    await expect(page.get_by_role("button", name="Back")).to_be_enabled()
    await page.get_by_role("button", name="Clear").click()
    await expect(page.get_by_role("button", name="Back")).to_be_disabled()


async def test_a_list_has_the_filters_of_its_address_also_when_it_is_gone_to_from_itself(
    url: str, open_page: Open
) -> None:
    page = await open_page(url, "#/devices")
    await page.get_by_label("Id begins with").fill("lab")
    await page.wait_for_function("location.hash.includes('q=lab')")
    await page.get_by_role("navigation").get_by_role("link", name="Devices").click()
    await expect(page.get_by_label("Id begins with")).to_have_value("")


async def test_as_many_devices_of_another_state_directory_are_not_taken_for_those_of_before(
    url: str, stage: Stage, open_page: Open
) -> None:
    page = await open_page(url, f"#/rollouts/{ROLLOUT}")
    await settled(page)
    stage.states = {device.replace("dev", "lab"): state for device, state in stage.states.items()}
    stage.ids = list(stage.states)
    async with page.expect_response(lambda answer: answer.url.endswith("/cells")):
        stage.tell("hello", {"service": "another", "version": "0"})
    await page.get_by_role("application").focus()
    await page.keyboard.press("Home")
    await expect(page.locator("#announcer")).to_contain_text("lab-00001")


RESIZED_AND_GONE = """async () => {
  const area = document.querySelector("canvas").parentElement;
  // It is told of the size after the frames of its turn: the view is gone by the next ones.
  const gone = new Promise((resolve) => {
    const observer = new ResizeObserver(() => {
      if (area.style.width !== "300px") return;
      observer.disconnect();
      history.replaceState(null, "", "#/nowhere");
      dispatchEvent(new HashChangeEvent("hashchange"));
      resolve();
    });
    observer.observe(area);
  });
  area.style.width = "300px";
  await gone;
  for (let i = 0; i < 5; i += 1) await new Promise(requestAnimationFrame);
}"""


async def test_cells_that_are_left_while_they_are_resized_are_no_error(url: str, open_page: Open) -> None:
    page = await open_page(url, f"#/rollouts/{ROLLOUT}")
    await settled(page)
    await page.evaluate(RESIZED_AND_GONE)
    await expect(page.locator("canvas")).to_have_count(0)


async def test_a_retry_is_of_what_is_ticked_and_of_nothing_else(
    url: str, stage: Stage, open_page: Open
) -> None:
    stage.states = {device: "cancelled" if i == 0 else "provisioned" for i, device in enumerate(stage.states)}
    page = await open_page(url, f"#/rollouts/{ROLLOUT}")
    asked: list[Any] = []

    async def retry(route: Route) -> None:
        asked.append(route.request.post_data_json)
        await route.fulfill(json={"rollout_id": ROLLOUT})

    await page.route("**/retry", retry)
    await page.get_by_role("button", name="Retry 1").click()
    start = page.get_by_role("button", name="Start the retry")
    await start.click()
    await expect(page.get_by_text("Tick at least one")).to_be_visible()
    assert asked == []
    await page.get_by_label("cancelled (1)").check()
    await start.click()
    await expect(start).to_have_count(0)
    assert asked == [{"actor": "page", "states": ["cancelled"]}]


async def test_the_measurement_of_frames_runs(capsys: pytest.CaptureFixture[str]) -> None:
    await page_benchmark.measure(devices=50, changes=5, seconds=0.5, chromium=chromium())
    said = capsys.readouterr().out
    assert "50 cells" in said
    assert "script" in said
