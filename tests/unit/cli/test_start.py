"""Client commands start at once: they import none of the heavy parts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.cli.fake_service import FakeService

HEAVY = {
    "aiohttp",
    "aiomqtt",
    "asyncio",
    "azure",
    "cryptography",
    "durabletask",
    "fastapi",
    "grpc",
    "paho",
    "provisioning.engine",
    "provisioning.service",
    "pydantic",
    "rich",
    "uvicorn",
}
MOST_MODULES = 280
"""A client command has 235, with Python's own; rich, pydantic or aiohttp bring fifty to two hundred more."""

IMPORTS = """
import json, sys
from provisioning.cli import main
code = main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "argv",
    [
        ("fleet", "launch", "--count", "2", "--behaviours", "healthy=1"),
        ("fleet", "list"),
        ("fleet", "plan", "--count", "5", "--behaviours", "all"),
        ("fleet", "behaviours"),
        ("fleet", "example"),
        ("provision",),
        ("provision", "--follow"),
        ("devices",),
        ("device", "d1"),
        ("watch",),
        ("report", "--out", "-"),
        ("report", "--json", "--csv", "/dev/null", "--force"),
        ("rollout", "create", "--waves", "50%,rest", "--abort", "failed=20%/10:pause", "--follow"),
        ("rollout", "create", "--dry-run"),
        ("rollout", "example"),
        ("rollout", "list"),
        ("rollout", "show"),
        ("rollout", "pause"),
        ("rollout", "log"),
    ],
    ids=" ".join,
)
def test_client_commands_import_nothing_heavy(service: FakeService, argv: tuple[str, ...]) -> None:
    service.add_device("d1")
    service.rollouts.device_ids = ["d1", "d2"]
    if argv[0] == "rollout" and "create" not in argv:
        service.rollouts.route("POST", [], {"plan": {}, "actor": "ada"})
    if argv[0] in ("watch", "report"):
        service._provision({"device_ids": ["d1"]})
    loaded = imported(*argv)
    assert not {name for name in loaded if name in HEAVY or name.split(".")[0] in HEAVY}


def test_a_client_command_imports_little(service: FakeService) -> None:
    """How long it takes to start is what it imports, which no load of the machine changes."""
    assert len(imported("devices")) < MOST_MODULES
    assert len(imported("devices", before="import fastapi")) > MOST_MODULES


def imported(*argv: str, before: str = "") -> set[str]:
    """The modules that a command has loaded when it has succeeded."""
    result = subprocess.run(
        [sys.executable, "-c", before + IMPORTS, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stderr))
