"""The documents say what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from devices.behaviours import Behaviour
from devices.behaviours.__main__ import markdown
from devices.spec import FleetSpec, Group, RampSpec
from provisioning import states

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ARCHITECTURE = (DOCS / "ARCHITECTURE.md").read_text("utf-8")
FLEET = (DOCS / "FLEET.md").read_text("utf-8")


def section(text: str, name: str) -> str:
    """What stands between the markers ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    assert found is not None, f"no section {name}"
    return found[1]


def test_the_picture_of_the_states_is_drawn_from_the_table() -> None:
    expected = f"```mermaid\n{states.mermaid()}```\n"
    assert section(ARCHITECTURE, "states") == expected, "run: python -m provisioning.states"


def test_every_module_has_its_line_in_the_table_of_owners() -> None:
    owned = re.findall(r"`((?:provisioning|devices|broker)/[\w./-]+)`", section(ARCHITECTURE, "owners"))
    missing = [path for path in owned if not (ROOT / path).exists()]
    assert not missing, "named in the table, but not there"
    for package in ("provisioning", "devices", "broker"):
        for module in (ROOT / package).rglob("*.py"):
            path = module.relative_to(ROOT).as_posix()
            folders = [p.relative_to(ROOT).as_posix() + "/" for p in module.parents if ROOT in p.parents]
            known = path in owned or any(folder in owned for folder in folders)
            if path.startswith("provisioning/engine/") and module.parent.name == "engine":
                known = module.name in section(ARCHITECTURE, "owners")
            assert known or module.name in ("__init__.py", "__main__.py"), f"{path} has no line"


def test_the_table_of_behaviours_is_made_from_the_code() -> None:
    assert section(FLEET, "behaviours") == markdown(), "run: python -m devices.behaviours"


def test_every_key_of_a_fleet_file_is_told() -> None:
    told = set(re.findall(r"`([\w.]+)`", section(FLEET, "keys")))
    keys = {field.name for field in (*fields(FleetSpec), *fields(Group))} - {"groups", "ramp"}
    assert keys | {f"ramp.{field.name}" for field in fields(RampSpec)} <= told


def test_every_method_of_a_behaviour_is_told() -> None:
    told = set(re.findall(r"`(\w+)\(", section(FLEET, "methods")))
    assert told == {name for name, value in vars(Behaviour).items() if callable(value) and name[0] != "_"}


def headings(document: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CONTRIBUTING.md"),
        *("docs/ARCHITECTURE.md", "docs/ENGINE.md", "docs/FLEET.md", "docs/ROLLOUTS.md"),
        *("docs/HTTP-API.md", "docs/PAGE.md", "docs/RELEASES.md", "docs/SECURITY.md", "docs/SEMANTICS.md"),
    ],
)
def test_links_within_the_repository_lead_somewhere(name: str) -> None:
    document = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            there = document.parent / path if path else document
            assert there.exists(), f"{name}: {target}"
            assert not anchor or anchor in headings(there), f"{name}: {target}"
