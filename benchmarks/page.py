"""How fluid the page is with ten thousand cells: python -m benchmarks.page

A staged rollout of ten thousand devices is shown in a real Chromium while events of `--changes` devices come
four times a second. Measured are the frames (by `requestAnimationFrame`), and the browser's own account of
its time: script, layout, all tasks. Needs Chromium, and the development environment.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from itertools import pairwise
from statistics import median, quantiles

from playwright.async_api import CDPSession, async_playwright

from benchmarks.staged_service import ROLLOUT, Stage, staged

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
EVENTS_PER_S = 4
NOTE_FRAMES = """
window.frames_ = [];
const note = (at) => { window.frames_.push(at); requestAnimationFrame(note); };
requestAnimationFrame(note);
"""


async def _times(session: CDPSession) -> dict[str, float]:
    answer = await session.send("Performance.getMetrics")
    return {one["name"]: one["value"] for one in answer["metrics"]}


async def measure(*, devices: int, changes: int, seconds: float, chromium: str) -> None:
    """Show, and say what it took."""
    stage = Stage(devices)
    async with staged(stage) as url, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable")
        await page.goto(f"{url}/#/rollouts/{ROLLOUT}")
        await page.get_by_role("application").wait_for()
        await page.evaluate(NOTE_FRAMES)
        before = await _times(session)
        for _ in range(round(seconds * EVENTS_PER_S)):
            stage.tell("devices", stage.move(changes))
            stage.tell("rollout", stage.rollout())
            await asyncio.sleep(1 / EVENTS_PER_S)
        after = await _times(session)
        frames: list[float] = await page.evaluate("window.frames_")
        await browser.close()
    gaps_ms = sorted(later - earlier for earlier, later in pairwise(frames))
    print(f"{devices:,} cells, {EVENTS_PER_S} events a second of {changes:,} devices each, {seconds:g} s")
    print(
        f"  frames      {len(gaps_ms) / seconds:.0f}/s; between two of them {median(gaps_ms):.1f} ms,"
        f" p99 {quantiles(gaps_ms, n=100)[98]:.1f} ms, at most {gaps_ms[-1]:.1f} ms"
    )
    for name, key in (
        ("script", "ScriptDuration"),
        ("layout", "LayoutDuration"),
        ("all tasks", "TaskDuration"),
    ):
        took_s = after[key] - before[key]
        each_ms = 1000 * took_s / (seconds * EVENTS_PER_S)
        print(f"  {name:<11} {each_ms:.1f} ms for each event; {100 * took_s / seconds:.0f} % of the time")
    print(f"  heap        {after['JSHeapUsedSize'] / 1e6:.1f} MB")


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=15.0)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is not installed (Debian: apt-get install chromium)", file=sys.stderr)
        return 1
    asyncio.run(measure(devices=args.devices, changes=args.changes, seconds=args.seconds, chromium=chromium))
    return 0


if __name__ == "__main__":
    sys.exit(main())
