"""How the page is served, and what may not be in its files."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

import provisioning.page
from provisioning.page import page_routes

STATIC = Path(provisioning.page.__file__).parent / "static"
SOURCES = [path for path in STATIC.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg")]
OWN = [path for path in SOURCES if "vendor" not in path.parts]
MODULES = [path for path in SOURCES if path.suffix == ".js"]


@pytest_asyncio.fixture
async def client() -> AsyncIterator[AsyncClient]:
    app = FastAPI()
    app.include_router(page_routes())
    async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/views/rollout.js", "/page/style.css"])
async def test_a_file_is_served_with_what_keeps_others_out_of_it(client: AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_what_the_browser_has_is_not_sent_again(client: AsyncClient) -> None:
    first = await client.get("/page/main.js")
    again = await client.get(
        "/page/main.js", headers={"If-None-Match": f'"other", W/{first.headers["ETag"]}'}
    )
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (await client.get("/page/main.js", headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/nothing.js", "/page/index.html", "/page/../__init__.py", "/page/%2e%2e/__init__.py"]
)
async def test_nothing_else_is_served(client: AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_file_of_ours_parses_data_as_markup_or_names_another_host(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(?i)innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_all_that_a_module_imports_is_there(path: Path) -> None:
    for target in re.findall(r"""(?:from|import)\s*"([^"]+)";""", path.read_text("utf-8")):
        assert target.startswith("."), target
        assert (path.parent / target).resolve() in SOURCES, target


def test_what_is_of_others_has_its_licence_and_version_beside_it() -> None:
    table = (STATIC / "vendor" / "README.md").read_text("utf-8")
    for folder in (path for path in (STATIC / "vendor").iterdir() if path.is_dir()):
        assert (folder / "LICENSE").exists()
        assert re.search(rf"\| `{folder.name}` \| \d+\.\d+\.\d+ \| [\w.-]+ ", table), folder.name
