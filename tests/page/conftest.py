"""The page in a real Chromium, which reports every error, and every request that leaves the service."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from tests.acceptance.conftest import Sandbox, sandbox
from tests.conftest import missing

__all__ = ["Sandbox", "sandbox"]

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TIMEOUT_MS = 60_000
"""What a page waits for at most: a bound for what hangs, no measure of speed."""

expect.set_options(timeout=TIMEOUT_MS)

Open = Callable[..., Awaitable[Page]]


class Watched:
    """What pages have complained of."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.may_fail: tuple[str, ...] = ("/api/rollouts/plan",)
        """Parts of addresses whose refusals a test expects: a plan is asked for while it is written."""

    def listen(self, page: Page, base: str) -> None:
        """Note all that a page of the service at ``base`` does wrong."""

        def said(message: ConsoleMessage) -> None:
            where = str(message.location.get("url", ""))
            if message.type == "error" and not any(part in where for part in self.may_fail):
                self.errors.append(f"{message.text} ({where})")

        def asked(request: Request) -> None:
            if not request.url.startswith((f"{base}/", "data:", "blob:")):
                self.elsewhere.append(request.url)

        page.on("console", said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", asked)


def chromium() -> str:
    """Where the browser is."""
    found = os.environ.get("MUSTER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None or not Path(found).exists():
        missing("Chromium is not installed (Debian: apt-get install chromium)")
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium of this test process, on the session's loop, in which each test has contexts of its own."""
    path = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        await browser.close()


@pytest.fixture
def watched() -> Watched:
    """What must stay empty."""
    return Watched()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser, watched: Watched) -> AsyncIterator[Open]:
    """Open an address of a service, such as ``await open_page(url, "#/devices")``; further options are those
    of a browser's context. Whatever the page complains of fails the test in the end.
    """

    async def open_it(base: str, address: str = "", **options: Any) -> Page:
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(TIMEOUT_MS)
        page = await context.new_page()
        watched.listen(page, base)
        await page.goto(f"{base}/{address}")
        return page

    yield open_it
    for context in browser.contexts:
        await context.close()
    assert watched.errors == []
    assert watched.elsewhere == []
