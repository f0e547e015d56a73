"""`muster release …`, and `--release` of the commands that bring one, against the fake service."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from provisioning.cli.release.adding import _progress, size_bytes
from provisioning.cli.release.upload import FirmwareFile, Upload
from provisioning.cli.terminal import Terminal
from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_rollouts import FakeRefusalError
from tests.unit.cli.fake_service import FakeService

FIRMWARE = b"\x7fELF\r\n--\x00\xff" * 100_000


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "thermo.bin"
    path.write_bytes(FIRMWARE)
    return path


def add(muster: Muster, firmware: Path, *more: str) -> Any:
    return muster("release", "add", "fw-2", "--firmware", str(firmware), "--version", "2.0", *more)


class TestAdd:
    def test_sends_all_that_was_given_and_says_what_is_next(
        self, service: FakeService, muster: Muster, firmware: Path, tmp_path: Path
    ) -> None:
        config = tmp_path / "config.toml"
        config.write_text('site = "{tags.site}"\n[mqtt]\nport = 1883\n')
        result = add(
            muster, firmware, "--model", "a,b", "--model", "c", "--config", str(config), "--notes", "für alle"
        )
        assert (result.exit_code, result.err) == (0, "")
        assert result.out == (
            "fw-2: version 2.0, 1.0 MB, for a, b, c; roll it out with: muster rollout create --release fw-2\n"
        )
        release = service.releases.known["fw-2"]
        assert release["models"] == ["a", "b", "c"]
        assert release["configuration"] == {"site": "{tags.site}", "mqtt": {"port": 1883}}
        assert release["notes"] == "für alle"

    def test_the_same_again_is_no_error(self, service: FakeService, muster: Muster, firmware: Path) -> None:
        add(muster, firmware)
        result = add(muster, firmware)
        assert (result.exit_code, result.out) == (
            0,
            "fw-2 is there already, the same: version 2.0, 1.0 MB, for all models\n",
        )

    def test_a_firmware_is_generated(self, service: FakeService, muster: Muster) -> None:
        result = muster("release", "add", "g", "--generate", "1KiB", "--version", "1", "--json")
        assert json.loads(result.out)["firmware"]["size_bytes"] == 1024
        assert service.requests[-1][2] == {
            "model": [],
            "name": "g",
            "version": "1",
            "generated_size_bytes": "1024",
        }

    def test_a_json_file_is_a_configuration_too(
        self, service: FakeService, muster: Muster, tmp_path: Path
    ) -> None:
        config = tmp_path / "c.json"
        config.write_text('{"a": [1, "{model}"]}')
        muster("release", "add", "g", "--generate", "10", "--version", "1", "--config", str(config))
        assert service.releases.known["g"]["configuration"] == {"a": [1, "{model}"]}

    def test_what_the_service_refuses_is_told_in_one_line(
        self, service: FakeService, muster: Muster, firmware: Path
    ) -> None:
        service.releases.refusal = FakeRefusalError(409, "There is a release fw-2 already, …")
        result = add(muster, firmware)
        assert (result.exit_code, result.error_line) == (1, "muster: There is a release fw-2 already, …")

    def test_a_mistake_in_the_template_is_told_by_file_and_line(
        self, service: FakeService, muster: Muster, firmware: Path, tmp_path: Path
    ) -> None:
        config = tmp_path / "config.toml"
        config.write_text('# a template\n[mqtt]\ntopic = "{modle}"\n')
        problem = "there is no placeholder {modle}; did you mean {model}?"
        service.releases.refusal = FakeRefusalError(422, f"configuration.mqtt.topic: {problem}")
        result = add(muster, firmware, "--config", str(config))
        assert result.exit_code == 2
        assert result.error_line == f"muster: {config}, line 3: configuration.mqtt.topic: {problem}"
        service.releases.refusal = FakeRefusalError(422, "version: it is missing")
        assert add(muster, firmware, "--config", str(config)).error_line == "muster: version: it is missing"

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "it can't be read (No such file or directory); name the firmware's file"),
            (b"", "it has 0 bytes; a firmware has 1 to 67,108,864"),
        ],
    )
    def test_a_firmware_that_is_none_is_told_before_anything_is_sent(
        self, service: FakeService, muster: Muster, tmp_path: Path, content: bytes | None, words: str
    ) -> None:
        path = tmp_path / "f.bin"
        if content is not None:
            path.write_bytes(content)
        result = add(muster, path)
        assert (result.exit_code, result.error_line) == (2, f"muster: {path}: {words}")
        assert add(muster, tmp_path).error_line.startswith(f"muster: {tmp_path}: it can't be read")
        with path.open("wb") as file:
            file.truncate(64 * 1024**2 + 1)
        assert "it has 67,108,865 bytes" in add(muster, path).error_line
        assert service.requests == []

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("c.toml", b"a = ", "it is no TOML: Invalid value"),
            ("c.toml", b"a = 2030-01-01", "it holds a date or time, which JSON lacks; write it as text"),
            ("c.json", b'{\n"a": }', "line 2: it is no JSON: Expecting value; mend it"),
            ("c.json", b'{"a": ' + b"[" * 50_000, "it is nested too deeply; make it flatter"),
            ("c.toml", b"a = " + b"[" * 50_000, "it is nested too deeply; make it flatter"),
            ("c.json", b"[]", "it is no JSON object; write one, as in {}"),
            ("c.json", b"\xff", "it is no UTF-8 text; write it as UTF-8"),
            ("c.json", b" " * (1024 * 1024 + 1), "it is too long; use at most 1,048,576 bytes"),
            ("none.json", None, "it can't be read (No such file or directory); name a JSON or TOML file"),
        ],
    )
    def test_a_template_that_is_none_is_told(
        self, muster: Muster, firmware: Path, tmp_path: Path, name: str, content: bytes | None, words: str
    ) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        result = add(muster, firmware, "--config", str(path))
        assert result.exit_code == 2
        assert result.error_line.startswith(f"muster: {path}")
        assert words in result.error_line

    def test_a_pipe_is_no_firmware_and_not_waited_for(
        self, service: FakeService, muster: Muster, tmp_path: Path
    ) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        assert "it is no file; name one that holds the firmware" in add(muster, path).error_line
        assert service.requests == []

    def test_a_model_that_is_empty_is_not_every_model(
        self, service: FakeService, muster: Muster, firmware: Path
    ) -> None:
        result = add(muster, firmware, "--model", "")
        assert result.exit_code == 2
        assert "'' names nothing: give a name, or leave the flag out" in result.error_line
        assert service.requests == []

    def test_it_takes_one_firmware(self, muster: Muster, firmware: Path) -> None:
        assert "not allowed with argument" in add(muster, firmware, "--generate", "1MiB").error_line
        assert "is required" in muster("release", "add", "x", "--version", "1").error_line

    def test_help_has_examples(self, muster: Muster) -> None:
        for command in ([], ["add"], ["list"], ["show"], ["remove"]):
            out = muster("release", *command, "--help").out
            assert "examples:\n  muster release" in out
        assert "{tags.NAME}" in muster("release", "add", "--help").out
        assert "say what to do: add, list, show or remove" in muster("release").error_line


class TestShowListAndRemove:
    def test_they_show_what_there_is(self, service: FakeService, muster: Muster, firmware: Path) -> None:
        add(muster, firmware, "--model", "a,b", "--notes", "two\nlines")
        muster("release", "add", "g", "--generate", "10", "--version", "1")
        lines = muster("release", "list").out.splitlines()
        assert lines[0].split() == ["release", "version", "size", "added", "models", "notes"]
        assert [line.split()[0] for line in lines[1:]] == ["fw-2", "g"]
        assert lines[1].endswith("a, b    two lines")
        shown = muster("release", "show", "fw-2").out
        assert f"  sha256    {hashlib.sha256(FIRMWARE).hexdigest()}\n" in shown
        assert "  firmware  1.0 MB (1,000,000 bytes)\n" in shown
        assert "  config    each device's model and tags\n" in shown
        assert json.loads(muster("release", "show", "g", "--json").out)["name"] == "g"
        assert len(json.loads(muster("release", "list", "--json").out)["releases"]) == 2

    def test_a_release_is_removed(self, service: FakeService, muster: Muster, firmware: Path) -> None:
        add(muster, firmware)
        assert muster("release", "remove", "fw-2").out == "fw-2 is removed\n"
        result = muster("release", "remove", "fw-2")
        assert (result.exit_code, result.error_line) == (
            1,
            "muster: There is no release 'fw-2': `muster release list` shows all.",
        )


class TestUse:
    def test_a_rollout_names_it_and_says_whom_it_does_not_fit(
        self, service: FakeService, muster: Muster
    ) -> None:
        service.rollouts.device_ids = ["d1", "d2", "d3"]
        service.rollouts.not_fitting = 2
        planned = muster("rollout", "create", "--release", "fw-2", "--dry-run").out
        words = "2 devices do not fit the release fw-2 and will be rejected"
        assert planned.startswith(f"3 devices in 1 wave; {words}; nothing was started")
        created = muster("rollout", "create", "--release", "fw-2").out
        assert created == f"rollout-1: 3 devices; {words}; follow it with: muster rollout watch rollout-1\n"
        body = service.requests[-1][2]
        assert body is not None
        assert body["plan"]["release"] == "fw-2"
        assert "  release   fw-2\n" in _squeezed(muster("rollout", "show").out)
        assert muster("rollout", "list").out.splitlines()[1].split()[-1] == "fw-2"

    def test_a_plan_file_may_name_it_and_the_flag_goes_before(
        self, service: FakeService, muster: Muster, tmp_path: Path
    ) -> None:
        service.rollouts.device_ids = ["d1"]
        plan = tmp_path / "plan.toml"
        plan.write_text('release = "from-file"\n')
        for flags, name in (((), "from-file"), (("--release", "from-flag"), "from-flag")):
            muster("rollout", "create", "--file", str(plan), *flags)
            body = service.requests[-1][2]
            assert body is not None
            assert body["plan"]["release"] == name
        service.rollouts.refusal = FakeRefusalError(422, "release: there is no release 'x'; name one")
        told = muster("rollout", "create", "--file", str(plan)).error_line
        assert told == f"muster: {plan}, line 1: release: there is no release 'x'; name one"
        told = muster("rollout", "create", "--release", "x").error_line
        assert told == "muster: --release: release: there is no release 'x'; name one"

    def test_a_run_names_it(self, service: FakeService, muster: Muster) -> None:
        service.add_device("d1")
        service.releases.not_fitting = 1
        result = muster("provision", "--release", "fw-2")
        assert result.out.startswith(
            "run-1: provisioning 1 device; 1 device does not fit the release fw-2 and will be rejected; f"
        )
        bodies = [body for _, path, body in service.requests if path == "/api/provision"]
        assert bodies[0] is not None
        assert bodies[0]["release"] == "fw-2"
        service.add_device("d2")
        muster("provision")
        bodies = [body for _, path, body in service.requests if path == "/api/provision"]
        assert bodies[1] is not None
        assert "release" not in bodies[1]


def _squeezed(text: str) -> str:
    return "\n".join(
        f"  {words[0].ljust(8)}  {' '.join(words[1:])}" if (words := line.split()) else ""
        for line in text.splitlines()
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("64KiB", 65_536), ("1MiB", 1_048_576), ("1.5 MiB", 1_572_864), ("2MB", 2_000_000)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "1GiBs", "-1", "MiB", "1e6"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write one like 64KiB or 1MiB"):
        size_bytes(text)


def test_an_upload_has_the_length_that_it_says_and_tells_how_far_it_is() -> None:
    told: list[int] = []
    content = b"x" * 600_000
    upload = Upload([("name", "ä")], FirmwareFile(file=io.BytesIO(content), size_bytes=600_000), told.append)
    assert len(b"".join(upload)) == upload.length
    assert told == [262_144, 524_288, 600_000]
    shorter = Upload([], FirmwareFile(file=io.BytesIO(b"x"), size_bytes=2))
    with pytest.raises(EOFError):
        b"".join(shorter)
    without = Upload([("name", "a")], None)
    assert len(b"".join(without)) == without.length


def test_a_bar_is_drawn_for_what_is_large_on_a_terminal_and_nothing_in_a_pipe() -> None:
    large = FirmwareFile(file=io.BytesIO(), size_bytes=2 * 1024 * 1024)
    screen, pipe = io.StringIO(), io.StringIO()
    terminal = Terminal(console=Console(file=screen, force_terminal=True, width=80))
    with _progress(terminal, large, quiet=False) as on_progress:
        on_progress(1024 * 1024)
    assert "sending" in screen.getvalue()
    with _progress(Terminal(pipe), large, quiet=False) as on_progress:
        on_progress(1024 * 1024)
    assert pipe.getvalue() == ""
