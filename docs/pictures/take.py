"""Take the pictures of the page: a real service, a real fleet, a rollout in mid-run and a device that failed.

    .venv/bin/python docs/pictures/take.py            # or: make pictures
    .venv/bin/python docs/pictures/take.py --all DIR  # every view, in both themes and on a phone, to look at

A service is started in an empty directory, and everything is stopped again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from provisioning.cli.client import ServiceClient

HERE = Path(__file__).absolute().parent
DEVICES = 600
BEHAVIOURS = "healthy=0.78,slow=0.12,corrupt=0.02,out-of-storage=0.02,rejects=0.02,never-answers=0.02,flaky=0.02"
SHOWN_AFTER_DONE = 240
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--force-color-profile=srgb"]
MAX_BYTES = 200_000
MUSTER = [sys.executable, "-m", "provisioning.cli"]
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 960}
REPORT = {"width": 900, "height": 860}


def muster(*argv: str) -> dict[str, object]:
    """A command, and what it says as JSON."""
    done = subprocess.run([*MUSTER, *argv, "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def shoot(
    browser: Browser, url: str, name: Path, address: str, *, dark: bool = False, phone: bool = False, full: bool = False
) -> None:
    """One picture, when all of the view is there."""
    page = browser.new_page(
        viewport=PHONE if phone else DESK,
        color_scheme="dark" if dark else "light",
        has_touch=phone,
        reduced_motion="reduce",
    )
    page.goto(f"{url}/{address}")
    page.locator("h1").wait_for()
    page.locator(".skeleton").first.wait_for(state="detached")
    page.get_by_text("Live", exact=True).wait_for()
    page.wait_for_timeout(400)
    page.screenshot(path=name, full_page=full)
    page.close()


def shoot_report(browser: Browser, rollout: str) -> None:
    """The top of the rollout's report."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.html"
        muster("report", rollout, "--out", str(report))
        page = browser.new_page(viewport=REPORT, color_scheme="light")
        page.goto(report.as_uri())
        page.screenshot(path=HERE / "report.png")
        page.close()


def take(url: str, browser: Browser, everything: Path | None) -> None:
    """Run a rollout, and take its pictures on the way."""
    client = ServiceClient(url)
    # One that has ended before: so that there is a device with a past.
    muster("rollout", "create", "--name", "Canary", "--percent", "8", "--attempts", "2", "--ack-timeout", "4")
    earlier = client.rollouts()[0]["rollout_id"]
    while client.rollout(earlier)["ended_at"] is None:
        time.sleep(0.2)
    rollout = str(
        muster(
            *("rollout", "create", "--name", "Spring firmware", "--waves", "10%,40%,100%", "--threshold", "80"),
            *("--in-flight", "60", "--per-minute", "540", "--attempts", "2", "--ack-timeout", "6"),
        )["rollout_id"]
    )
    while sum(client.rollout(rollout)["counts"][s] for s in ("provisioned", "failed", "rejected")) < SHOWN_AFTER_DONE:
        time.sleep(0.05)
    views = [("rollout", f"#/rollouts/{rollout}"), ("overview", "#/")]
    for name, address in views:
        for dark in (False, True):
            shoot(browser, url, HERE / f"{name}{'-dark' if dark else ''}.png", address, dark=dark)
    while client.rollout(rollout)["ended_at"] is None:
        time.sleep(0.2)
    failed = client.devices_page(state="timed_out", limit=1)["devices"][0]["device_id"]
    views.append(("device", f"#/devices/{failed}"))
    for dark in (False, True):
        shoot(browser, url, HERE / f"device{'-dark' if dark else ''}.png", views[-1][1], dark=dark)
    shoot_report(browser, rollout)
    for picture in HERE.glob("*.png"):
        size = picture.stat().st_size
        print(f"{picture.name}: {size:,} bytes")
        if size > MAX_BYTES:
            raise SystemExit(f"{picture.name} is larger than {MAX_BYTES:,} bytes")
    if everything is not None:
        views += [
            *(("rollouts", "#/rollouts"), ("devices", "#/devices"), ("orchestrations", "#/orchestrations")),
            *(("instance", f"#/orchestrations/{rollout}"), ("fleet", "#/launch/fleet")),
            *(("release", "#/launch/release"), ("plan", "#/launch/rollout")),
        ]
        everything.mkdir(parents=True, exist_ok=True)
        for name, address in views:
            for dark, phone in ((False, False), (True, False), (False, True), (True, True)):
                kind = f"{'-phone' if phone else ''}{'-dark' if dark else ''}"
                shoot(browser, url, everything / f"{name}{kind}.png", address, dark=dark, phone=phone, full=True)


def main(argv: Sequence[str]) -> int:
    """Take them; the exit code."""
    everything = Path(argv[1]) if len(argv) == 2 and argv[0] == "--all" else None
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is not installed (Debian: apt-get install chromium)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as place:
        os.environ["MUSTER_STATE"] = f"{place}/state"
        ports = ("--port", "0", "--broker-port", "0", "--blob-port", "0")
        up = subprocess.Popen([*MUSTER, "up", "--json", *ports], stdout=subprocess.PIPE)
        try:
            assert up.stdout is not None
            url = next(event["url"] for event in map(json.loads, up.stdout) if event["event"] == "ready")
            launch = ("--count", str(DEVICES), "--seed", "5", "--behaviours", BEHAVIOURS, "--wait")
            subprocess.run([*MUSTER, "fleet", "launch", *launch], check=True)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
                take(url, browser, everything)
                browser.close()
        finally:
            up.send_signal(signal.SIGINT)
            up.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
