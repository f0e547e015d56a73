"""The description of the API, and the viewer of it: there without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from provisioning.http import documentation
from provisioning.http.problems import MANAGEMENT_PATHS
from tests.unit.http.managed import Managed
from tests.unit.http.test_description import DESCRIPTION
from tests.unit.test_docs import ROOT, section

FILES = Path(documentation.__file__).parent / "swagger_ui"


class Links(HTMLParser):
    """What a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


async def test_the_page_and_all_that_it_loads_are_here(embedded: Managed) -> None:
    page = await embedded.client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    links = Links(page.text).found
    assert len(links) == 4
    for link in links:
        assert ":" not in link, "from here"
        found = await embedded.client.get(page.url.join(link))
        assert found.status_code == 200
        assert len(found.content) == (FILES / link.removeprefix("docs/")).stat().st_size
    start = (FILES / "start.js").read_text()
    (description,) = re.findall(r'url: "([^"]+)"', start)
    assert (await embedded.client.get(page.url.join(description))).json()["info"]["title"] == "Muster"
    assert "validatorUrl: null" in start, (
        "the viewer would ask somebody else whether the description is valid"
    )


def test_the_viewer_says_which_version_it_is() -> None:
    version = documentation.SWAGGER_UI_VERSION
    assert f"version {version}" in (FILES / "README.md").read_text("utf-8")
    assert version in (FILES / "swagger-ui-bundle.js").read_text("utf-8")
    assert "Apache License" in (FILES / "LICENSE").read_text("utf-8")


@pytest.mark.parametrize(("old", "new"), [("/api/docs", "/docs"), ("/api/openapi.json", "/openapi.json")])
async def test_earlier_addresses_lead_there(embedded: Managed, old: str, new: str) -> None:
    answer = await embedded.client.get(old)
    assert (answer.status_code, answer.headers["location"]) == (307, new)


def test_errors_are_described_as_problems_everywhere() -> None:
    operations = [
        (path, method, operation)
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) > 30
    for path, method, operation in operations:
        responses: dict[str, Any] = operation["responses"]
        assert operation["tags"], (method, path)
        assert {"4XX", "5XX"} <= set(responses), (method, path)
        for status, response in responses.items():
            if status[0] in "45":
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (method, path, status)
    assert "HTTPValidationError" not in str(DESCRIPTION)


def test_every_call_has_a_sentence_about_it() -> None:
    without = [
        (method, path)
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
        if not operation.get("description", "").startswith(operation["summary"])
    ]
    assert without == [], "their docstrings are missing"


def test_the_document_has_every_call_of_the_management_api_with_its_parameters() -> None:
    text = (ROOT / "docs" / "HTTP-API.md").read_text("utf-8")
    routes = section(text, "routes")
    rows = {
        match[1]: match[2] for match in re.finditer(r"^\| `([A-Z]+ [^`]+)` \|(.*?)\|", routes, re.MULTILINE)
    }
    described = {
        f"{method.upper()} {path}": {
            parameter["name"]
            for parameter in operation["parameters"]
            if parameter["in"] != "path" and parameter["name"] not in ("taskHub", "connection", "code")
        }
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
        if path.startswith(MANAGEMENT_PATHS) or f"{path}/" in MANAGEMENT_PATHS
    }
    assert set(rows) == set(described)
    for call, parameters in described.items():
        if "the same" not in rows[call]:
            assert set(re.findall(r"`([^`]+)`", rows[call])) == parameters, call
        assert all(f"`{name}`" in text for name in parameters), call


def test_every_call_of_the_management_api_is_described_with_its_parameters() -> None:
    one = DESCRIPTION["paths"]["/runtime/webhooks/durabletask/instances/{instanceId}"]["get"]
    names = {parameter["name"] for parameter in one["parameters"]}
    assert names == {
        *("instanceId", "showHistory", "showHistoryOutput", "showInput"),
        *("returnInternalServerErrorOnFailure", "taskHub", "connection", "code"),
    }
    for status in ("200", "202", "500"):
        schema = one["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/InstanceStatus"}
    many = DESCRIPTION["paths"]["/runtime/webhooks/durabletask/instances"]["get"]
    assert "x-ms-continuation-token" in {parameter["name"] for parameter in many["parameters"]}
    assert set(many["responses"]["200"]["headers"]) == {"x-ms-continuation-token"}
