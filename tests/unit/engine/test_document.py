"""What docs/ENGINE.md says of the engine: its examples run, its tables are those of the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from provisioning.engine import AsyncTaskHubClient, EngineOptions, TaskHub, TaskHubClient
from tests.unit.test_docs import DOCS, section

ENGINE = (DOCS / "ENGINE.md").read_text("utf-8")
EXAMPLES = re.findall(r"<!-- ([\w-]+):begin -->\n```python\n", ENGINE)
PRINTS = {
    "quick-start": ["reserving anvil", "reserving rope"],
    "own-loop": [],
    "versions": ["Good day, Bob"],
    "durable-functions": ["sent https://blobs.example/lamp", "sent https://blobs.example/lock"],
}
"""What the examples that are programs print before their last line, which the document has."""


def command_of(example: str, directory: Path) -> list[str]:
    """Writes the example down as a program; how to run it there."""
    code = section(ENGINE, example).removeprefix("```python\n").removesuffix("```\n")
    (directory / f"{example}.py").write_text(code, "utf-8")
    return [sys.executable, "-u", f"{example}.py"]


def run(command: list[str], directory: Path) -> list[str]:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_one_that_runs() -> None:
    assert ENGINE.count("```python\n") == len(EXAMPLES)
    assert {*EXAMPLES} == {*PRINTS, "backup"}


@pytest.mark.parametrize("example", PRINTS)
def test_an_example_runs_and_ends_as_the_document_says(example: str, tmp_path: Path) -> None:
    *before, last = run(command_of(example, tmp_path), tmp_path)
    assert sorted(before) == PRINTS[example]
    after = ENGINE.partition(f"<!-- {example}:end -->\n\n")[2]
    assert after.startswith(f"It ends with `{last}`")


def test_the_quick_start_runs_again_without_doing_anything_again(tmp_path: Path) -> None:
    command = command_of("quick-start", tmp_path)
    first = run(command, tmp_path)
    assert run(command, tmp_path) == first[-1:]


def test_the_quick_start_goes_on_after_kill_9(tmp_path: Path) -> None:
    command = command_of("quick-start", tmp_path)
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reserving anvil\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    last = run(command, tmp_path)[-1]
    assert f"It ends with `{last}`" in ENGINE


def test_the_backup_is_a_whole_copy_of_a_hub_that_is_open(tmp_path: Path) -> None:
    original, copy = tmp_path / "orders.db", tmp_path / "copy.db"
    with TaskHub(original), TaskHubClient(hub=original) as client:
        client.schedule_new_orchestration("order", instance_id="order-1", input="anvil")
        run([*command_of("backup", tmp_path), original.name, copy.name], tmp_path)
        client.schedule_new_orchestration("order", instance_id="order-2")
    assert copy.stat().st_mode & 0o777 == 0o600
    with TaskHub(copy), TaskHubClient(hub=copy) as client:
        state = client.get_orchestration_state("order-1")
        assert state is not None
        assert state.get_input() == "anvil"
        assert client.get_orchestration_state("order-2") is None


def rows_of(table: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    lines = section(ENGINE, table).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_options_and_their_defaults_are_those_of_the_code() -> None:
    options = EngineOptions()
    shown = {
        name.strip("`"): eval(default.strip("`"), {"timedelta": timedelta})
        for name, default, _ in rows_of("options")
    }
    wanted = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    assert list(shown.items()) == list(wanted.items())


def test_every_operation_of_the_clients_has_its_line() -> None:
    operations = {
        name
        for name, _ in inspect.getmembers(AsyncTaskHubClient, inspect.iscoroutinefunction)
        if not name.startswith("_") and name != "close" and "entit" not in name
    }
    shown = [name.strip("`") for name, _ in rows_of("operations")]
    assert sorted(shown) == sorted(operations)
